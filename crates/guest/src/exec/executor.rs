//! The executor: takes executions one by one, keeps an interpreter for each language, measures.

use std::{
    io,
    rc::Rc,
    time::{Duration, Instant},
};

use exec_sandbox_wire::{Done, End, Program, Refusal, Refused, Usage, limits};
use tokio::sync::mpsc;

use super::{
    Command, Finished, Terminal,
    current::{Current, Stopped},
    drive::{Drive, Ended, let_die},
    interpreters::Interpreters,
    verdict::{Seen, Verdict},
    workspace::{Blank, Workspace},
};
use crate::{
    cgroup::UserGroup,
    interpreter::{self, Interpreter, StartError},
    kmsg,
    output::Outbox,
    program::{Role, Terms},
    reaper::Reaper,
};

/// What the executor works with.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) group: UserGroup,
    pub(crate) reaper: Rc<Reaper>,
    pub(crate) outbox: Outbox,
    pub(crate) commands: mpsc::Receiver<Command>,
    pub(crate) finished: mpsc::Sender<Finished>,
}

/// Runs programs.
#[derive(Debug)]
pub(crate) struct Executor {
    parts: Parts,
    interpreters: Interpreters,
    /// Of the last program processes were left that had been killed.
    dying: bool,
    /// Executions so far, but for rehearsals: names their directories.
    count: u64,
    /// The directory of the next execution, made with a rehearsal, which mostly is that of a machine about to be saved: each of its copies
    /// finds it there.
    ahead: Option<Blank>,
    /// What a last program leaves. Its end is told before this is cleared up, which is when another begins all the same: mostly the
    /// machine ends first.
    last: Option<(Workspace, Interpreter)>,
}

impl Executor {
    pub(crate) fn new(parts: Parts) -> Self {
        Self { parts, interpreters: Interpreters::default(), dying: false, count: 0, ahead: None, last: None }
    }

    /// Runs until the agent ends.
    pub(crate) async fn run(mut self) {
        while let Some(command) = self.parts.commands.recv().await {
            match command {
                Command::Begin(op, terms, streams, asked_at) => {
                    self.last = None;
                    let terminal = self.execute(Current::new(op, terms, streams), asked_at).await;
                    if self.parts.finished.send(Finished { op, terminal }).await.is_err() {
                        return;
                    }
                }
                Command::Reseed => self.interpreters.reseed().await,
                // For an operation that is over.
                _ => {}
            }
        }
    }

    async fn execute(&mut self, mut current: Current, asked_at: Instant) -> Option<Terminal> {
        let terminal = self.execute_one(&mut current, asked_at).await;
        if current.terms.role == Role::Rehearsal {
            self.prepare();
        }
        if current.outdates {
            self.interpreters.clear();
        }
        terminal
    }

    async fn execute_one(&mut self, current: &mut Current, asked_at: Instant) -> Option<Terminal> {
        let language = current.terms.language;
        match self.acquire(current).await {
            Err(error) => Some(Terminal::Refused(refusal(&error))),
            Ok(None) => stopped(current),
            Ok(Some(interpreter)) => {
                let spawn = asked_at.elapsed();
                match self.program(current).await {
                    Some(program) => Some(self.run_program(current, interpreter, &program, spawn).await),
                    None => {
                        self.interpreters.keep(language, interpreter);
                        stopped(current)
                    }
                }
            }
        }
    }

    /// An interpreter that is ready; none if the execution is called off meanwhile.
    async fn acquire(&mut self, current: &mut Current) -> Result<Option<Interpreter>, StartError> {
        let Terms { language, .. } = current.terms;
        let Self { parts: Parts { group, reaper, commands, .. }, interpreters, dying, .. } = self;
        match unless_stopped(current, commands, interpreters.take(language)).await {
            Some(Some(interpreter)) => Ok(Some(interpreter)),
            Some(None) => {
                let started = async {
                    if *dying {
                        let_die(group).await;
                        *dying = false;
                    }
                    Interpreter::start(language, reaper, group).await
                };
                unless_stopped(current, commands, started).await.transpose()
            }
            None => Ok(None),
        }
    }

    /// The program, once it is whole; none if the execution is called off meanwhile.
    async fn program(&mut self, current: &mut Current) -> Option<Program> {
        while current.stopped.is_none() {
            if let Some(program) = current.program.take() {
                return Some(program);
            }
            let command = self.parts.commands.recv().await?;
            let _ = current.absorb(command);
        }
        None
    }

    async fn run_program(
        &mut self,
        current: &mut Current,
        mut interpreter: Interpreter,
        program: &Program,
        spawn: Duration,
    ) -> Terminal {
        let workspace = self.blank(current.terms.role).and_then(|blank| blank.fill(program));
        let (workspace, token) = match (workspace, interpreter::draw_token()) {
            (Ok(workspace), Ok(token)) => (workspace, token),
            (Err(error), _) => return failed(&format!("cannot write the program: {error}")),
            (_, Err(error)) => return failed(&format!("cannot draw a token: {error}")),
        };
        self.parts.group.reset_memory_peak();
        let Parts { group, outbox, commands, .. } = &mut self.parts;
        let (cpu_us, started) = (group.cpu_us(), Instant::now());
        let drive = Drive { current, interpreter: &mut interpreter, commands, outbox, group, killed: false };
        let ended = match drive.run(token, workspace.dir()).await {
            Ok(ended) => ended,
            Err(error) => return failed(&format!("cannot hand over the program: {error}")),
        };
        let usage = Usage {
            spawn_us: micros(spawn),
            run_us: micros(ended.at - started),
            cpu_us: group.cpu_us().zip(cpu_us).map(|(after, before)| after.saturating_sub(before)),
            memory_peak_bytes: group.memory_peak_bytes(),
        };
        self.dying |= ended.leaves_dying;
        match current.terms.role {
            Role::Last if ended.reusable => self.last = Some((workspace, interpreter)),
            _ if ended.reusable => self.interpreters.keep(current.terms.language, interpreter),
            _ => {}
        }
        Terminal::Done(done(current, ended, usage))
    }

    /// The directory of the next program. Rehearsals have one that is no other program's.
    fn blank(&mut self, role: Role) -> io::Result<Blank> {
        if role == Role::Rehearsal {
            return Blank::create(0);
        }
        self.count += 1;
        self.ahead.take().map_or_else(|| Blank::create(self.count), Ok)
    }

    /// Makes the directory of the program after a rehearsal. One that cannot be made is tried for again when it is needed.
    fn prepare(&mut self) {
        if self.ahead.is_none() {
            self.ahead = Blank::create(self.count + 1).ok();
        }
    }
}

/// What comes of `work`; nothing if the execution is called off meanwhile.
async fn unless_stopped<T>(
    current: &mut Current,
    commands: &mut mpsc::Receiver<Command>,
    work: impl Future<Output = T>,
) -> Option<T> {
    let mut work = std::pin::pin!(work);
    while current.stopped.is_none() {
        tokio::select! {
            biased;
            done = &mut work => return Some(done),
            Some(command) = commands.recv() => drop(current.absorb(command)),
        }
    }
    None
}

fn done(current: &Current, ended: Ended, usage: Usage) -> Done {
    let Ended { exit, asked, out_of_memory, .. } = ended;
    let Verdict { end, exit_code, signal } = Seen { exit, asked, out_of_memory }.verdict();
    Done {
        end: end.into(),
        exit_code,
        signal,
        stdout_bytes: current.streams.stdout.total(),
        stderr_bytes: current.streams.stderr.total(),
        usage: Some(usage),
    }
}

/// The end of an execution that was called off before its program ran.
fn stopped(current: &Current) -> Option<Terminal> {
    match current.stopped {
        Some(Stopped::Abandoned) | None => None,
        Some(Stopped::Cancelled) => {
            Some(Terminal::Done(Done { end: End::Cancelled.into(), exit_code: -1, ..Done::default() }))
        }
    }
}

fn refusal(error: &StartError) -> Refused {
    let reason = match error {
        StartError::Missing { .. } => Refusal::NoInterpreter,
        _ => Refusal::SpawnFailed,
    };
    let mut detail = kmsg::chain(error);
    detail.truncate(detail.floor_char_boundary(limits::MAX_DETAIL_BYTES));
    Refused { reason: reason.into(), detail }
}

fn failed(detail: &str) -> Terminal {
    Terminal::Refused(Refused { reason: Refusal::SpawnFailed.into(), detail: detail.to_owned() })
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
