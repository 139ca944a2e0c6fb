//! The client's end: a run is handed to a service that is up and would do the very same, or not at all.
//!
//! ```text
//! connect ─▶ greeted ─▶ request sent ─▶ output … ─▶ outcome
//!    └──────────┴───────────┴─ any failure up to here: the run is this process's own, for its code has run nowhere
//! ```
//! From then on the code may have run, so a service that is lost is an error and nothing is tried again.

use std::{io, path::Path, time::Duration};

use bytes::BytesMut;
use exec_sandbox::{
    Outcome, Output, RunRequest, SchedulerConfig,
    doctor::{Check, Status as Health},
};
use tokio::{io::AsyncWriteExt as _, net::UnixStream, sync::mpsc, time::timeout};

use super::{
    frame::{self, Frame, Inlet, Kind, MAX_ANSWER_BYTES, MAX_REQUEST_BYTES, wrong},
    identity::Identity,
    message::{self, Greeting, Told},
    places::Places,
};
use crate::{
    exit::Status,
    failure::{Explanation, Failure},
    interrupt::Interrupts,
    print,
    progress::Progress,
    scheduled::cancelled,
};

/// How long a service may take to greet, which it does within a millisecond; a run alone takes about as long as this.
const GREETING_PATIENCE: Duration = Duration::from_millis(500);

/// How long it may take to take a request in.
const REQUEST_PATIENCE: Duration = Duration::from_secs(2);

/// Most that a run may have written: more than the library lets a program write, so that only a service that is out of its mind goes
/// over it.
const MAX_OUTPUT_BYTES: usize = 4 * 1024 * 1024;

/// In what a service differs from a process without image or QEMU.
const NOTHING_RUNS: &str = "this process could run nothing";

/// A connection to a service that has greeted.
#[derive(Debug)]
pub(super) struct Line {
    stream: UnixStream,
    inlet: Inlet,
    pub(super) greeting: Greeting,
}

/// A run that a service has.
#[derive(Debug)]
pub(crate) struct Remote {
    line: Line,
    has_ended: bool,
}

/// Runs in the order of their sources. `None`: no service has it.
#[derive(Debug)]
pub(crate) struct HandedOver {
    pub(crate) runs: Vec<Option<Remote>>,
    /// How the processor of the service's guests is run.
    pub(crate) accelerator: String,
    pub(crate) pid: u32,
}

/// Why a run is this process's own.
#[derive(Debug)]
pub(crate) enum Alone {
    /// No service listens.
    NotUp,
    /// It does other things than this process would.
    Differs(&'static str),
    /// It was there, and could not be talked to.
    Lost(io::Error),
}

impl Alone {
    /// What a user who wants to know is told.
    pub(crate) fn reason(&self) -> String {
        match self {
            Self::NotUp => "no service is up".into(),
            Self::Differs(what) => format!("the service that is up does not fit: {what}"),
            Self::Lost(error) => format!("the service that is up does not answer: {error}"),
        }
    }
}

impl From<io::Error> for Alone {
    fn from(error: io::Error) -> Self {
        Self::Lost(error)
    }
}

/// Hands `requests` to the service that is up under `config`, if there is one that would do what this process would.
pub(crate) async fn hand_over(config: &SchedulerConfig, requests: Vec<RunRequest>) -> Result<HandedOver, Alone> {
    // What is wrong with the configuration, the run itself will say.
    let socket = Places::of(config).map_err(|_| Alone::NotUp)?.socket();
    let own = || Identity::of(config).map_err(|_| Alone::Differs(NOTHING_RUNS));
    let requests = requests.into_iter().map(|request| in_full(request, config)).collect();
    hand_over_at(&socket, own, requests).await
}

/// The same to the service that listens at `socket`. This process's `own` identity is asked for if one does.
async fn hand_over_at(
    socket: &Path,
    own: impl FnOnce() -> Result<Identity, Alone>,
    requests: Vec<RunRequest>,
) -> Result<HandedOver, Alone> {
    let mut lines = vec![Line::to(socket).await?];
    for _ in requests.iter().skip(1) {
        lines.push(Line::to(socket).await?);
    }
    let own = own()?;
    if let Some(what) = lines.iter().find_map(|line| own.difference(&line.greeting.identity)) {
        return Err(Alone::Differs(what));
    }
    let Some(Greeting { accelerator, pid, .. }) = lines.first().map(|line| line.greeting.clone()) else {
        return Err(Alone::NotUp);
    };
    let mut runs = Vec::new();
    for (line, request) in lines.into_iter().zip(requests) {
        let sent = line.send_run(&request).await;
        // The first that fails is the only one as a rule; once one is sent, the others stand for themselves.
        match sent {
            Err(error) if runs.iter().all(Option::is_none) => return Err(Alone::Lost(error)),
            sent => runs.push(sent.ok()),
        }
    }
    Ok(HandedOver { runs, accelerator, pid })
}

impl Line {
    /// Connects to the service at `socket` and hears its greeting.
    pub(super) async fn to(socket: &Path) -> Result<Self, Alone> {
        let stream = match UnixStream::connect(socket).await {
            Ok(stream) => stream,
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
                return Err(Alone::NotUp);
            }
            Err(error) => return Err(error.into()),
        };
        if !is_own(&stream) {
            return Err(Alone::Differs("it is another user's"));
        }
        let greeted = timeout(GREETING_PATIENCE, Self::greeted(stream)).await;
        Ok(greeted.unwrap_or_else(|_elapsed| Err(io::ErrorKind::TimedOut.into()))?)
    }

    async fn greeted(mut stream: UnixStream) -> io::Result<Self> {
        let mut inlet = Inlet::new(MAX_ANSWER_BYTES);
        match inlet.next(&mut stream).await? {
            Some(Frame { kind: Kind::Greeting, body }) => Ok(Self { stream, inlet, greeting: message::read(&body)? }),
            Some(Frame { kind, .. }) => Err(wrong(format!("it greets with {kind:?}"))),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// Sends a request whole. If that fails, the service has not got all of it and does nothing.
    async fn send_run(mut self, request: &RunRequest) -> io::Result<Remote> {
        let body = message::body(request)?;
        if body.len() > MAX_REQUEST_BYTES {
            return Err(wrong("the request is longer than a service takes".into()));
        }
        let sent = timeout(REQUEST_PATIENCE, frame::send(&mut self.stream, Kind::Run, &body)).await;
        sent.unwrap_or_else(|_elapsed| Err(io::ErrorKind::TimedOut.into()))?;
        Ok(Remote { line: self, has_ended: false })
    }

    /// Asks for what is answered by `Done` or by a failure.
    pub(super) async fn ask(&mut self, kind: Kind) -> Result<(), Failure> {
        let lost = |error| Failure::host("talking to the service", error);
        frame::send(&mut self.stream, kind, b"").await.map_err(lost)?;
        match self.inlet.next(&mut self.stream).await.map_err(lost)? {
            Some(Frame { kind: Kind::Done, .. }) => Ok(()),
            Some(Frame { kind: Kind::Failed, body }) => Err(message::read::<Told>(&body).map_err(lost)?.into()),
            Some(Frame { kind, .. }) => Err(lost(wrong(format!("it answers with {kind:?}")))),
            None => Err(lost(io::ErrorKind::UnexpectedEof.into())),
        }
    }
}

impl Remote {
    /// Passes on what the program writes, and returns what came of it.
    pub(crate) async fn run(&mut self, pieces: mpsc::Sender<Output>) -> Result<Outcome, Failure> {
        let (mut stdout, mut stderr) = (BytesMut::new(), BytesMut::new());
        loop {
            let Frame { kind, body } = match self.line.inlet.next(&mut self.line.stream).await {
                Ok(Some(frame)) => frame,
                Ok(None) => return Err(self.lost(&io::ErrorKind::UnexpectedEof.into())),
                Err(error) => return Err(self.lost(&error)),
            };
            let piece = match kind {
                Kind::Stdout => {
                    stdout.extend_from_slice(&body);
                    Output::Stdout(body)
                }
                Kind::Stderr => {
                    stderr.extend_from_slice(&body);
                    Output::Stderr(body)
                }
                Kind::BootLog => Output::BootLog(body),
                Kind::Progress => Output::Progress(body),
                Kind::Outcome => {
                    self.has_ended = true;
                    let outcome = message::read::<Outcome>(&body).map_err(|error| self.lost(&error))?;
                    return Ok(with_output(outcome, stdout, stderr));
                }
                Kind::Failed => {
                    self.has_ended = true;
                    return Err(message::read::<Told>(&body).map_err(|error| self.lost(&error))?.into());
                }
                Kind::Greeting | Kind::Run | Kind::AwaitPool | Kind::End | Kind::Done => {
                    return Err(self.lost(&wrong(format!("it answers with {kind:?}"))));
                }
            };
            if stdout.len() + stderr.len() > MAX_OUTPUT_BYTES {
                return Err(self.lost(&wrong("it sends more than a program may write".into())));
            }
            // A printer that is gone has said why; its failure ends the whole run.
            let _ = pieces.send(piece).await;
        }
    }

    /// Calls it off and returns when the service has ended its VM, or is gone, and its VMs with it.
    async fn call_off(&mut self) {
        if self.has_ended || self.line.stream.shutdown().await.is_err() {
            return;
        }
        // What is still written is nobody's any more.
        while let Ok(Some(Frame { kind, .. })) = self.line.inlet.next(&mut self.line.stream).await {
            if matches!(kind, Kind::Outcome | Kind::Failed) {
                break;
            }
        }
        self.has_ended = true;
    }

    fn lost(&mut self, cause: &io::Error) -> Failure {
        self.has_ended = true;
        let explanation = Explanation {
            kind: "outcome_unknown".into(),
            message: "running a program through the service, which was lost: the program may have run".into(),
            causes: vec![cause.to_string()],
            remedy: Some("`sbx down`, then `sbx up` starts another service; --no-service does without".into()),
        };
        Failure::Told { explanation, status: Status::SANDBOX }
    }
}

/// What the doctor says of the service under `config`. Without one everything works, if slower.
pub(crate) async fn check(config: &SchedulerConfig) -> Check {
    let fitting = async {
        let line = Line::to(&Places::of(config).map_err(|_| Alone::NotUp)?.socket()).await?;
        let own = Identity::of(config).map_err(|_| Alone::Differs(NOTHING_RUNS))?;
        own.difference(&line.greeting.identity).map_or(Ok(line.greeting), |what| Err(Alone::Differs(what)))
    };
    match fitting.await {
        Ok(Greeting { pid, pool, .. }) => {
            Check::new("service", Health::Ok, format!("process {pid}, {pool} ready VMs of each language"), None)
        }
        Err(Alone::NotUp) => Check::new("service", Health::Ok, "not up; `sbx up` keeps VMs ready", None),
        Err(alone) => {
            let remedy = "runs do without it; `sbx down`, then `sbx up` starts another";
            Check::new("service", Health::Warning, alone.reason(), Some(remedy.into()))
        }
    }
}

/// Does `work` with runs that a service has. Whatever ends it, each of their VMs is confirmed dead when this returns.
///
/// A signal calls the runs off; a second one does not wait.
pub(crate) async fn served<T>(
    runs: &mut [Option<Remote>],
    progress: &Progress,
    wants_notes: bool,
    work: impl AsyncFnOnce(&mut [Option<Remote>]) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let mut interrupts = Interrupts::listen()?;
    let done = tokio::select! {
        done = work(runs) => done,
        signal = interrupts.next() => cancelled(signal, progress),
        never = progress.appear() => never,
    };
    progress.end();
    if wants_notes && matches!(done, Err(Failure::Interrupted(_))) {
        print::note("stopping the VM; once more leaves without waiting for it");
    }
    let calling_off = async {
        for run in runs.iter_mut().flatten() {
            run.call_off().await;
        }
    };
    tokio::select! {
        () = calling_off => done,
        signal = interrupts.next() => Err(Failure::Interrupted(signal)),
    }
}

/// `request` with what this process's configuration means by what it does not say, which need not be what the service's means.
fn in_full(mut request: RunRequest, config: &SchedulerConfig) -> RunRequest {
    request.memory_mib.get_or_insert(config.default_memory_mib);
    request.timeout.get_or_insert(config.default_timeout);
    request
}

/// Whether the other end is a process of this user.
pub(super) fn is_own(stream: &UnixStream) -> bool {
    stream.peer_cred().is_ok_and(|peer| peer.uid() == rustix::process::geteuid().as_raw())
}

fn with_output(mut outcome: Outcome, stdout: BytesMut, stderr: BytesMut) -> Outcome {
    outcome.stdout = stdout.freeze();
    outcome.stderr = stderr.freeze();
    outcome
}

#[cfg(test)]
mod tests;
