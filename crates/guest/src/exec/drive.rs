//! Driving one execution: from the hand-over to the interpreter until all its output is taken over.

use std::{
    io,
    path::Path,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use tokio::sync::mpsc;

use super::{
    Command,
    current::{Current, Demand},
    ladder::{Cause, Ladder, Step},
};
use crate::{
    cgroup::UserGroup,
    interpreter::{Interpreter, Report, Said, Token},
    kmsg,
    output::{Outbox, Pipe, Streams},
    reaper::Exit,
};

/// Between two looks at whether the processes of a program that was asked to end have ended.
const TREE_STEP: Duration = Duration::from_millis(10);

/// How long a program's end waits for processes that were killed to be gone.
const GONE_PATIENCE: Duration = Duration::from_secs(2);

/// How long the next interpreter's start waits for them beyond that: on a busy machine a thousand take seconds.
const LATE_PATIENCE: Duration = Duration::from_secs(10);

/// Lines on the control socket that mean nothing: so many come of clumsiness. More would keep the agent from its work, and are the end
/// of whoever writes them.
const MAX_BABBLE: u32 = 256;

/// What an execution is driven with.
#[derive(Debug)]
pub(super) struct Drive<'a> {
    pub(super) current: &'a mut Current,
    pub(super) interpreter: &'a mut Interpreter,
    pub(super) commands: &'a mut mpsc::Receiver<Command>,
    pub(super) outbox: &'a Outbox,
    pub(super) group: &'a UserGroup,
    /// All processes of the program were killed. Begins as `false`.
    pub(super) killed: bool,
}

/// How it came to its end.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ended {
    /// The interpreter's report or death; nothing if even a kill did not end it.
    pub(super) exit: Option<Exit>,
    /// Why the program was asked to end, if it was.
    pub(super) asked: Option<Cause>,
    /// The kernel killed for memory while it ran.
    pub(super) out_of_memory: bool,
    /// The interpreter can take another execution.
    pub(super) reusable: bool,
    /// Processes that were killed are not gone yet.
    pub(super) leaves_dying: bool,
    /// When the program ended.
    pub(super) at: Instant,
}

/// What happened next.
#[derive(Debug)]
enum Event {
    Said(Said),
    Died(Exit),
    Command(Command),
    Due,
    Moved,
}

impl Drive<'_> {
    /// Runs the program in `dir` to its end.
    pub(super) async fn run(mut self, token: Token, dir: &Path) -> io::Result<Ended> {
        self.interpreter.forget_output();
        self.interpreter.control.execute(token, dir, self.current.terms.role).await?;
        let mut ladder = Ladder::begin(Instant::now(), self.current.terms.timeout);
        let (exit, reported) = self.until_end(&mut ladder, token).await;
        let at = Instant::now();
        let asked = ladder.asked();
        if asked.is_some() {
            if exit.is_some() && !reported {
                self.until_tree_ended(&mut ladder).await;
            }
            self.kill();
        }
        // A kill for memory takes the whole group, so where the interpreter lives there was none.
        let out_of_memory = !reported && self.group.oom_kills() > self.interpreter.oom_kills;
        // What was killed still dies, and still holds its memory: the next interpreter would be killed with it, or for lack of it.
        let were_killed = asked.is_some() || self.killed || out_of_memory;
        let leaves_dying = exit.is_some() && were_killed && !are_gone_within(self.group, GONE_PATIENCE).await;
        self.interpreter.take_output(&self.current.streams);
        Ok(Ended { exit, asked, out_of_memory, reusable: reported && asked.is_none(), leaves_dying, at })
    }

    /// How the interpreter ended, and whether it reported that instead of dying.
    async fn until_end(&mut self, ladder: &mut Ladder, token: Token) -> (Option<Exit>, bool) {
        let (expected, mut babble) = (token.to_string(), 0_u32);
        loop {
            match self.next(ladder).await {
                Event::Said(Said::Report(Report::Done { token, code })) if token == expected => {
                    return (Some(Exit::Code(code)), true);
                }
                Event::Said(said) => {
                    // A program found the socket. It can say nothing there that counts: the wrapper goes on, or dies.
                    babble += 1;
                    if babble == 1 || babble == MAX_BABBLE {
                        kmsg::warn(&format!("a program writes to the control socket ({babble}): {said:?}"));
                    }
                    if babble == MAX_BABBLE {
                        self.kill();
                    }
                }
                Event::Died(exit) => return (Some(exit), false),
                Event::Command(command) => self.command(command, ladder),
                Event::Due => match ladder.climb(Instant::now()) {
                    Step::GiveUp => return (None, false),
                    step => self.take(step),
                },
                Event::Moved => {}
            }
        }
    }

    async fn next(&mut self, ladder: &Ladder) -> Event {
        let Self { current, interpreter, commands, outbox, .. } = self;
        let Interpreter { process, control, stdout, stderr, .. } = &mut **interpreter;
        tokio::select! {
            biased;
            // First what a program cannot keep waiting by babbling on the control socket.
            () = tokio::time::sleep_until(ladder.due().into()) => Event::Due,
            Some(command) = commands.recv() => Event::Command(command),
            said = control.hear() => Event::Said(said),
            exit = process.end() => Event::Died(exit),
            () = pump(&current.streams, stdout, stderr, outbox) => Event::Moved,
        }
    }

    /// The grace is the whole tree's: a child may still be cleaning up after the interpreter died of the signal.
    async fn until_tree_ended(&mut self, ladder: &mut Ladder) {
        while !self.group.is_empty() && Instant::now() < ladder.due() {
            let Self { current, interpreter, commands, outbox, .. } = self;
            let Interpreter { stdout, stderr, .. } = &mut **interpreter;
            let event = tokio::select! {
                biased;
                Some(command) = commands.recv() => Event::Command(command),
                () = tokio::time::sleep(TREE_STEP) => Event::Due,
                () = pump(&current.streams, stdout, stderr, outbox) => Event::Moved,
            };
            if let Event::Command(command) = event {
                self.command(command, ladder);
            }
        }
    }

    fn command(&mut self, command: Command, ladder: &mut Ladder) {
        match self.current.absorb(command) {
            Some(Demand::Signal(number)) => self.interpreter.process.signal(number.into()),
            Some(Demand::Cancel) => {
                if let Some(step) = ladder.cancel(Instant::now()) {
                    self.take(step);
                }
            }
            None => {}
        }
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Ask => self.group.signal_all(self.interpreter.process.pid(), Signal::TERM),
            Step::Kill | Step::GiveUp => self.kill(),
        }
    }

    fn kill(&mut self) {
        self.killed = true;
        if let Err(error) = self.group.kill() {
            kmsg::warn(&format!("cannot kill the programs' control group: {error}"));
        }
    }
}

/// Waits until nothing is left of what a program left dying, or does not go.
pub(super) async fn let_die(group: &UserGroup) {
    if !are_gone_within(group, LATE_PATIENCE).await {
        kmsg::warn("processes that were killed are not gone");
    }
}

/// Waits until the group is empty; `false`: it is not.
async fn are_gone_within(group: &UserGroup, patience: Duration) -> bool {
    let until = Instant::now() + patience;
    while !group.is_empty() {
        if Instant::now() >= until {
            return false;
        }
        tokio::time::sleep(TREE_STEP).await;
    }
    true
}

/// Moves what comes next of either stream, or returns because more may be moved than before. Neither stream can keep the other
/// waiting: which one is asked first is drawn anew each time.
async fn pump(streams: &Streams, stdout: &mut Pipe, stderr: &mut Pipe, outbox: &Outbox) {
    tokio::select! {
        () = streams.changed() => {}
        () = stdout.pump(&streams.stdout, outbox) => {}
        () = stderr.pump(&streams.stderr, outbox) => {}
    }
}
