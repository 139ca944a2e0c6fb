//! The service's end: conversations with clients, each a task, around one scheduler.
//!
//! ```text
//! greeting ─▶ Run ───────▶ output … ─▶ Outcome │ Failed        a client that hangs up calls its run off
//!          ─▶ AwaitPool ─▶ Done │ Failed
//!          ─▶ End ───────▶ Done │ Failed                       when every VM is confirmed dead, or is not
//! ```

use std::{io, sync::Arc, time::Duration};

use exec_sandbox::{Output, RunRequest, Scheduler};
use futures_util::future;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _},
    net::{UnixListener, UnixStream},
    sync::{mpsc, watch},
    task::JoinSet,
    time::{sleep, timeout},
};

use super::{
    client::is_own,
    frame::{self, Frame, Inlet, Kind, MAX_REQUEST_BYTES},
    message::{self, Greeting, Told},
    places::Lock,
};
use crate::{failure::Failure, interrupt::Interrupts, printer::PIECES_IN_FLIGHT};

/// Clients at once. A run waits for memory and CPU long before there are as many; the next one goes on alone.
const MAX_CONVERSATIONS: usize = 256;

/// How long a client that has been greeted may take to say what it wants.
const REQUEST_PATIENCE: Duration = Duration::from_secs(10);

/// How long clients have to take the last they are told.
const FAREWELL_PATIENCE: Duration = Duration::from_secs(1);

/// After a connection could not be taken, for want of descriptors or memory.
const ACCEPT_REST: Duration = Duration::from_millis(100);

/// How long a pool may take to fill: several boots of a busy machine.
const POOL_PATIENCE: Duration = Duration::from_secs(120);

/// What all conversations share.
#[derive(Debug)]
pub(super) struct Desk {
    pub(super) scheduler: Scheduler,
    pub(super) greeting: Greeting,
    /// Somebody wants the service to end.
    end: watch::Sender<bool>,
    /// How it ended.
    ended: watch::Sender<Option<Result<(), Told>>>,
}

impl Desk {
    pub(super) fn new(scheduler: Scheduler, greeting: Greeting) -> Self {
        Self { scheduler, greeting, end: watch::Sender::new(false), ended: watch::Sender::new(None) }
    }

    /// Returns when somebody wants the service to end.
    async fn is_to_end(&self) {
        // This holds the sender, so there is nothing to fail.
        let _ = self.end.subscribe().wait_for(|end| *end).await;
    }

    async fn ended(&self) -> Result<(), Told> {
        let mut ended = self.ended.subscribe();
        let ended = ended.wait_for(Option::is_some).await;
        ended.ok().and_then(|ended| ended.clone()).unwrap_or(Ok(()))
    }
}

/// Serves whoever connects until somebody wants an end, or a signal does; returns when every VM is confirmed dead.
pub(super) async fn serve(
    listener: UnixListener,
    lock: &Lock,
    desk: Arc<Desk>,
    mut interrupts: Interrupts,
) -> Result<(), Failure> {
    let mut conversations = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                // One too many is hung up on.
                Ok((client, _)) if conversations.len() < MAX_CONVERSATIONS => {
                    conversations.spawn(Box::pin(converse(client, Arc::clone(&desk))));
                }
                Ok(_) => {}
                Err(_) => sleep(ACCEPT_REST).await,
            },
            Some(_over) = conversations.join_next() => {}
            () = desk.is_to_end() => break,
            _signal = interrupts.next() => break,
        }
    }
    // Whoever comes from now on goes on alone; those who wait to be taken are hung up on.
    let cleared = lock.clear();
    drop(listener);
    desk.end.send_replace(true);
    let closed = tokio::select! {
        closed = desk.scheduler.close() => closed.map_err(Failure::from),
        signal = interrupts.next() => Err(Failure::Interrupted(signal)),
    };
    let closed = closed.and_then(|()| cleared.map_err(|error| Failure::host("removing the service's socket", error)));
    desk.ended.send_replace(Some(closed.as_ref().copied().map_err(Told::from)));
    let farewell = async { while conversations.join_next().await.is_some() {} };
    // One that does not listen is let go with the process.
    let _ = timeout(FAREWELL_PATIENCE, farewell).await;
    closed
}

/// One client, from its arrival to its end. What cannot be told to it is its own loss.
async fn converse(mut client: UnixStream, desk: Arc<Desk>) {
    if is_own(&client) {
        let _ = converse_with_own(&mut client, &desk).await;
    }
}

async fn converse_with_own(client: &mut UnixStream, desk: &Desk) -> io::Result<()> {
    frame::send(client, Kind::Greeting, &message::body(&desk.greeting)?).await?;
    let mut inlet = Inlet::new(MAX_REQUEST_BYTES);
    let asked = tokio::select! {
        // Who has asked is answered, be it that it is too late.
        biased;
        asked = timeout(REQUEST_PATIENCE, inlet.next(client)) => asked.map_err(io::Error::from)??,
        () = desk.is_to_end() => return Ok(()),
    };
    let Some(Frame { kind, body }) = asked else { return Ok(()) };
    match kind {
        Kind::Run => run(client, &body, &desk.scheduler).await,
        Kind::AwaitPool => {
            let waited = tokio::select! {
                waited = desk.scheduler.wait_pool_ready(POOL_PATIENCE) => waited.map_err(Failure::from),
                () = desk.is_to_end() => Err(Failure::usage("the service has been ended", "`sbx up` starts another")),
                () = hung_up(client) => return Ok(()),
            };
            answer(client, waited.map_err(|failure| Told::from(&failure))).await
        }
        Kind::End => {
            desk.end.send_replace(true);
            answer(client, desk.ended().await).await
        }
        other => Err(frame::wrong(format!("a client asks with {other:?}"))),
    }
}

/// Runs what `body` asks for, as long as the client wants it.
async fn run(client: &mut UnixStream, body: &[u8], scheduler: &Scheduler) -> io::Result<()> {
    let request: RunRequest = match message::read(body) {
        Ok(request) => request,
        Err(error) => {
            let failure = Failure::host("reading what the service is asked to run", error);
            return answer(client, Err(Told::from(&failure))).await;
        }
    };
    let (pieces, mut arriving) = mpsc::channel(PIECES_IN_FLIGHT);
    let (mut from, mut to) = client.split();
    let running = scheduler.run_until(request, pieces, hung_up(&mut from));
    let carrying = async move {
        while let Some(piece) = arriving.recv().await {
            let (kind, bytes) = match &piece {
                Output::Stdout(bytes) => (Kind::Stdout, bytes),
                Output::Stderr(bytes) => (Kind::Stderr, bytes),
                Output::BootLog(bytes) => (Kind::BootLog, bytes),
                Output::Progress(bytes) => (Kind::Progress, bytes),
            };
            // It has hung up, which the run is about to learn.
            if frame::send(&mut to, kind, bytes).await.is_err() {
                break;
            }
        }
    };
    match future::join(running, carrying).await.0 {
        Ok(outcome) => frame::send(client, Kind::Outcome, &message::body(&outcome)?).await,
        Err(error) => answer(client, Err(Told::from(&Failure::from(error)))).await,
    }
}

async fn answer(client: &mut UnixStream, done: Result<(), Told>) -> io::Result<()> {
    match done {
        Ok(()) => frame::send(client, Kind::Done, b"").await,
        Err(told) => frame::send(client, Kind::Failed, &message::body(&told)?).await,
    }
}

/// Returns when a client that has nothing to say hangs up, or says something all the same.
async fn hung_up(client: &mut (impl AsyncRead + Unpin)) {
    let _ = client.read(&mut [0]).await;
}
