//! The desk: the session of a shell, what is executed in it, and what happens when it is over.
//!
//! A session that is over is not mourned: that is said, and the next thing to do is done in a new one.

use std::io;

use exec_sandbox::{ErrorKind, ExecRequest, Exit, Outcome, Output, Scheduler, Session, SessionRequest, VmSpec};
use futures_util::{FutureExt as _, future};
use tokio::{signal::unix, sync::mpsc};

use crate::{
    args::ShellArgs,
    exit::Status,
    failure::Failure,
    files::{self, DownloadSpec, Plan},
    interrupt::Signal,
    meter::Meter,
    network, print,
    printer::{Ending, Event, PIECES_IN_FLIGHT, Printer, View, installing},
    progress::Progress,
    table::table,
};

/// Linux's number of SIGINT.
const SIGINT: u8 = 2;

/// What one shell has.
pub(super) struct Desk<'a> {
    pub(super) scheduler: &'a Scheduler,
    pub(super) args: &'a ShellArgs,
    pub(super) request: SessionRequest,
    /// Uploaded into each new VM.
    pub(super) plan: &'a Plan,
    pub(super) wants_progress: bool,
    /// Ctrl-C, where it does not end the shell.
    pub(super) keyboard: Option<unix::Signal>,
    pub(super) session: Option<Session>,
}

/// What a session is asked to be.
pub(super) fn request(args: &ShellArgs) -> SessionRequest {
    let (network, expose, packages) = (args.network.policy(), args.network.expose.clone(), args.package.clone());
    let vm = VmSpec { memory_mib: args.memory, packages, network, expose, ..VmSpec::new(args.language()) };
    SessionRequest { vm, idle_timeout: args.idle_timeout }
}

impl Desk<'_> {
    /// Starts a session in place of the one before it, which is ended first.
    pub(super) async fn start(&mut self) -> Result<(), Failure> {
        if let Some(session) = self.session.take() {
            session.close().await?;
        }
        let progress = Progress::start("starting a VM", self.wants_progress);
        let meter = Meter::new(progress.clone(), "uploading", self.plan.bytes);
        let starting = async {
            let session = started(self.scheduler, self.request.clone(), &progress).await?;
            files::upload(session.vm(), self.plan, &meter).await?;
            Ok(session)
        };
        let session = watched(starting, &progress, &mut self.keyboard).await?;
        for port in session.exposed_ports().iter().filter(|_| self.wants_progress || self.args.verbose) {
            print::note(&network::address(port));
        }
        self.session = Some(session);
        Ok(())
    }

    /// Executes a block and shows what it writes.
    pub(super) async fn execute(&mut self, code: &str) -> Result<Status, Failure> {
        self.renew().await?;
        let Self { session: Some(session), keyboard, args, .. } = self else { return Ok(Status::SANDBOX) };
        let request = ExecRequest { timeout: args.timeout, env: args.env.clone(), ..ExecRequest::new(code) };
        let result = stream(session, request, keyboard, args).await?;
        let is_gone = session.is_closed()
            || result.as_ref().is_err_and(|error| {
                matches!(error.kind(), ErrorKind::OutcomeUnknown | ErrorKind::Vm | ErrorKind::SessionClosed)
            });
        if is_gone {
            self.session = None;
            self.say("the VM is gone, with all it held; what comes next runs in a new one");
        }
        Ok(match result {
            Ok(outcome) => outcome.exit.into(),
            Err(error) => error.kind().into(),
        })
    }

    pub(super) async fn upload(&mut self, plan: &Plan) -> Result<(), Failure> {
        self.renew().await?;
        let progress = Progress::start("uploading", self.wants_progress);
        let meter = Meter::new(progress.clone(), "uploading", plan.bytes);
        if plan.left_out > 0 {
            self.say(&format!("{} links and devices are not uploaded", plan.left_out));
        }
        let Self { session: Some(session), keyboard, .. } = self else { return Ok(()) };
        watched(files::upload(session.vm(), plan, &meter), &progress, keyboard).await
    }

    pub(super) async fn download(&mut self, spec: &DownloadSpec) -> Result<(), Failure> {
        files::check(std::slice::from_ref(spec), 1)?;
        self.renew().await?;
        let progress = Progress::start("downloading", self.wants_progress);
        let meter = Meter::new(progress.clone(), "downloading", 0);
        let Self { session: Some(session), keyboard, .. } = self else { return Ok(()) };
        let left_out = watched(files::download(session.vm(), spec, &meter), &progress, keyboard).await?;
        if left_out > 0 {
            self.say(&format!("{left_out} links and devices are not downloaded"));
        }
        Ok(())
    }

    pub(super) async fn list(&mut self, path: &str) -> Result<(), Failure> {
        self.renew().await?;
        let Some(session) = &self.session else { return Ok(()) };
        let rows: Vec<[String; 3]> = session.list_files(path, 1).await?.iter().map(row).collect();
        print::page(&table(["MODE", "BYTES", "NAME"], &rows))
    }

    /// A session that works, in place of one that is over.
    async fn renew(&mut self) -> Result<(), Failure> {
        if let Some(session) = &self.session {
            // What is begun and let go has not run; whether it may begin is what is asked.
            let Err(error) = session.begin(ExecRequest::new("0")).await else { return Ok(()) };
            self.say(&format!("{error}; this runs in a new VM"));
            self.session = None;
        }
        self.start().await
    }

    fn say(&self, text: &str) {
        if !self.args.quiet {
            print::note(text);
        }
    }
}

/// A session that has started, with what an installer of packages says shown meanwhile.
async fn started(scheduler: &Scheduler, mut request: SessionRequest, progress: &Progress) -> Result<Session, Failure> {
    let (said, mut arriving) = mpsc::channel(PIECES_IN_FLIGHT);
    request.vm.progress = Some(said);
    let mut starting = std::pin::pin!(scheduler.session(request));
    loop {
        tokio::select! {
            biased;
            session = &mut starting => return Ok(session?),
            Some(piece) = arriving.recv() => if let Output::Progress(said) = piece {
                installing(progress, &said);
            },
        }
    }
}

/// Does `work` with `progress` beside it, unless Ctrl-C ends it.
async fn watched<T>(
    work: impl Future<Output = Result<T, Failure>>,
    progress: &Progress,
    keyboard: &mut Option<unix::Signal>,
) -> Result<T, Failure> {
    forget_presses(keyboard);
    let done = tokio::select! {
        done = work => done,
        () = pressed(keyboard) => Err(Failure::Interrupted(Signal::Interrupt)),
        never = progress.appear() => never,
    };
    progress.end();
    done
}

/// Executes `request`. The first Ctrl-C is the program's, the second ends it.
async fn stream(
    session: &Session,
    request: ExecRequest,
    keyboard: &mut Option<unix::Signal>,
    args: &ShellArgs,
) -> Result<Result<Outcome, exec_sandbox::Error>, Failure> {
    let (events, feed) = mpsc::channel(PIECES_IN_FLIGHT);
    let wants_notes = !args.quiet;
    let view = View { wants_notes, programs: true, progress: Progress::start("", false) };
    let mut printer = Printer::start(feed, vec![String::new()], view)?;
    let running = async {
        let (pieces, mut arriving) = mpsc::channel::<Output>(PIECES_IN_FLIGHT);
        let forward = async {
            while let Some(piece) = arriving.recv().await {
                if events.send(Event::Piece(0, piece)).await.is_err() {
                    break;
                }
            }
        };
        let (result, ()) = future::join(interruptible(session, request, keyboard, pieces), forward).await;
        let exit = result.as_ref().ok().map(|outcome| outcome.exit);
        let notes = result.as_ref().ok().filter(|_| args.verbose).map(network::notes).unwrap_or_default();
        let failures = result.as_ref().err().into_iter().map(Into::into).collect();
        // A printer that is gone has said why.
        let _ = events.send(Event::End(0, Ending { exit, notes, failures })).await;
        drop(events);
        result
    };
    let result = tokio::select! {
        result = running => result,
        ended = printer.ended() => return Err(ended.err().unwrap_or(Failure::BrokenPipe)),
    };
    printer.ended().await?;
    if wants_notes && result.as_ref().is_ok_and(|outcome| outcome.exit == Exit::Cancelled) {
        print::note("called off");
    }
    Ok(result)
}

async fn interruptible(
    session: &Session,
    request: ExecRequest,
    keyboard: &mut Option<unix::Signal>,
    pieces: mpsc::Sender<Output>,
) -> Result<Outcome, exec_sandbox::Error> {
    forget_presses(keyboard);
    let execution = session.begin(request).await?;
    let control = execution.control();
    let interrupt = async {
        pressed(keyboard).await;
        control.signal(SIGINT).await;
        loop {
            pressed(keyboard).await;
            control.cancel().await;
        }
    };
    tokio::select! {
        outcome = session.settle(execution, Some(pieces)) => outcome,
        () = interrupt => std::future::pending().await,
    }
}

async fn pressed(keyboard: &mut Option<unix::Signal>) {
    let Some(keyboard) = keyboard else { return std::future::pending().await };
    if keyboard.recv().await.is_none() {
        std::future::pending().await
    }
}

/// What was pressed too late for the last program is not meant for the next.
fn forget_presses(keyboard: &mut Option<unix::Signal>) {
    while keyboard.as_mut().and_then(|keyboard| keyboard.recv().now_or_never()).flatten().is_some() {}
}

fn row(file: &exec_sandbox::FileInfo) -> [String; 3] {
    // The guest's names steer no terminal.
    let name: String =
        file.name.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect();
    let slash = if file.is_dir() { "/" } else { "" };
    [format!("{:04o}", file.mode & 0o7777), file.size.to_string(), format!("{name}{slash}")]
}

/// Listens for Ctrl-C.
pub(super) fn keyboard() -> Result<unix::Signal, Failure> {
    unix::signal(unix::SignalKind::interrupt())
        .map_err(|error: io::Error| Failure::host("listening for signals", error))
}
