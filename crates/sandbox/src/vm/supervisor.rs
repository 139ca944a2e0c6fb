//! The supervisor: the one task that owns a VM, from before its process exists until after its death is confirmed.
//!
//! ```text
//! Booting ─▶ Ready ⇄ Busy ─▶ Dying ─▶ Dead
//!    └──────────┴──────┴───────▲          callers hold a mailbox; one that is dropped means "abandon"
//! ```
//!
//! It is never cancelled. The state is Busy before the first byte of an execution leaves, and that is the retry contract: a VM
//! lost before it is transient, a VM lost after it leaves the outcome unknown.
//!
//! Whether the link to the agent is open is another matter than whether the VM is busy: a program goes on while nobody is
//! connected, and its time on the host stands still until somebody is.

use std::{collections::BTreeMap, io, sync::Arc, time::Duration};

use bytes::Bytes;
use exec_sandbox_wire::{CONNECTION_OP, Frame, GuestMessage, HostMessage, limits::HOST_SLACK};
use tokio::{
    sync::{Notify, mpsc, oneshot},
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::{
    Ending, Executed, Request,
    channel::ChannelError,
    execution::Violation,
    gateway,
    grave::{self, DestroyReply, Dying, Grave},
    inbox::Outlet,
    instance::{Death, Instance, Obituary},
    link::{Greeted, Link, Stranger},
    phases::{Live, host_hello},
    transfers::{self, FileEnd, Transfers},
    turn::{Turn, Waiting},
};
use crate::{
    Error,
    admission::{Cpu, Permit},
    process::Ended,
    run_dir::Details,
};

/// Messages that a guest may send while nothing is asked of it. An honest one of this generation sends none, a newer one may;
/// one that never stops would keep its VM busy for ever, and one that does not read would make the answers pile up here. An agent
/// that has lost acknowledgements repeats at most [`MAX_OPERATIONS`](exec_sandbox_wire::limits::MAX_OPERATIONS) ends.
const MAX_UNASKED: u32 = 1000;

/// How long an idle VM keeps its CPU. Callers that have the next request ready send it at once, and need not stand in the line
/// again; others in the line hardly notice.
const LINGER: Duration = Duration::from_millis(20);

/// Where callers reach a supervisor.
#[derive(Debug)]
pub(super) struct Desk {
    pub(super) mailbox: mpsc::Receiver<Request>,
    /// A caller has taken output, or is gone.
    pub(super) attention: Arc<Notify>,
    /// Every VM is to end.
    pub(super) closing: CancellationToken,
    pub(super) grave: Arc<Grave>,
}

/// A VM with an agent that has answered.
#[derive(Debug)]
pub(super) struct Supervisor {
    pub(super) vm_id: String,
    pub(super) instance: Instance,
    pub(super) permit: Permit,
    pub(super) link: Link,
    pub(super) turn: Turn,
    pub(super) transfers: Transfers,
    /// Whom an answer of the agent is for. Dropped when the connection is lost.
    pings: BTreeMap<u32, oneshot::Sender<()>>,
    /// How long it may be idle, if not for ever.
    pub(super) idle_timeout: Option<Duration>,
    idle_since: Instant,
    /// The agent's, by which it is known again after the link was closed.
    pub(super) boot_id: Vec<u8>,
    pub(super) next_op: u32,
    pub(super) unasked: u32,
}

/// Why an execution that was sent did not come to an end.
#[derive(Debug, thiserror::Error)]
pub(super) enum Lost {
    #[error(transparent)]
    QemuEnded(#[from] Obituary),
    #[error("waiting for QEMU's process")]
    Wait(#[source] io::Error),
    #[error(transparent)]
    Channel(#[from] ChannelError),
    #[error(transparent)]
    Dishonest(#[from] Violation),
    #[error(transparent)]
    Stranger(#[from] Stranger),
    #[error("the agent talks without being asked")]
    Talkative,
    #[error("the agent did not report the end of the program in time")]
    Overdue,
}

/// Why a VM is to end.
#[derive(Debug)]
pub(super) enum End {
    /// Somebody asks for it.
    Asked(Ending, DestroyReply),
    /// All VMs are to end.
    Closing,
    /// Nobody has a use for it any more.
    Abandoned,
    /// Nobody has used it for as long as it may be idle.
    Idle,
    /// It cannot be used any more.
    Lost(Lost),
}

/// What happened next.
enum Event {
    Closing,
    Attention,
    Due,
    Cpu(Result<Cpu, Error>),
    Asked(Option<Request>),
    Heard(Result<(u32, GuestMessage), ChannelError>),
    Death(Death),
}

impl Supervisor {
    pub(super) fn new(vm_id: String, live: Live, permit: Permit, idle_timeout: Option<Duration>) -> Self {
        let Live { instance, channel, boot_id } = live;
        Self {
            vm_id,
            instance,
            permit,
            link: Link::Open(channel),
            turn: Turn::idle(),
            transfers: Transfers::default(),
            pings: BTreeMap::new(),
            idle_timeout,
            idle_since: Instant::now(),
            boot_id,
            next_op: 1,
            unasked: 0,
        }
    }

    /// Serves requests until the VM is to end. Returns what is to be torn down and who waits for it.
    pub(super) async fn serve(mut self, desk: &mut Desk) -> (Instance, Permit, Dying) {
        let end = loop {
            let event = self.next(desk).await;
            if let Err(end) = self.on(event).await {
                break end;
            }
        };
        if let End::Lost(lost) = &end {
            warn!(vm_id = self.vm_id, error = lost as &dyn std::error::Error, "the VM is lost");
        }
        let why = match &end {
            End::Asked(..) => "it was destroyed",
            End::Closing => "all VMs were ended",
            End::Abandoned => "a call was dropped while it was at work",
            End::Idle => "it was idle for as long as it may be",
            End::Lost(_) => grave::LOST,
        };
        desk.grave.begin(why);
        // A VM that dies executes nothing any more, but its memory is not free before it is dead.
        self.permit.give_back_cpu();
        let gone = || super::gone(&self.vm_id, &desk.closing);
        self.transfers.end_all(gone);
        self.link.bury(gone);
        let dying = self.turn.bury(end, &self.vm_id, gone);
        (self.instance, self.permit, dying)
    }

    async fn next(&mut self, desk: &mut Desk) -> Event {
        let due = self.due();
        tokio::select! {
            biased;
            // First what ends things, because a guest that never stops talking would outlast it otherwise.
            () = desk.closing.cancelled() => Event::Closing,
            () = desk.attention.notified() => Event::Attention,
            () = until(due) => Event::Due,
            cpu = self.turn.cpu() => Event::Cpu(cpu),
            request = desk.mailbox.recv() => Event::Asked(request),
            // Before the end of QEMU, because what came before it counts.
            message = self.link.next() => Event::Heard(message),
            death = self.instance.death() => Event::Death(death),
        }
    }

    async fn on(&mut self, event: Event) -> Result<(), End> {
        match event {
            Event::Closing => Err(End::Closing),
            Event::Attention => self.on_attention(),
            Event::Due => self.on_due().await,
            Event::Cpu(cpu) => self.on_cpu(cpu),
            Event::Asked(None) => Err(End::Abandoned),
            Event::Asked(Some(request)) => {
                self.on_request(request)?;
                // Its caller may have called for attention before there was anything to attend to.
                self.on_attention()
            }
            Event::Heard(Ok((op, message))) => self.on_message(op, message).map_err(End::Lost),
            Event::Heard(Err(error)) => self.on_silence(error).await,
            Event::Death(Death::Qemu(ended)) => Err(End::Lost(self.lost(ended).await)),
            Event::Death(Death::Gateway(obituary)) => {
                gateway::mourn(&self.vm_id, &obituary);
                Ok(())
            }
        }
    }

    /// When something is to be done though nothing happens.
    fn due(&self) -> Option<Instant> {
        let idle = self.turn.idle_since().filter(|_| self.permit.has_cpu()).map(|since| since + LINGER);
        let running = self.turn.deadline().filter(|_| self.link.is_open());
        let transfers = self.transfers.due().filter(|_| self.link.is_open());
        [idle, running, self.link.due(), transfers, self.end_of_idleness()].into_iter().flatten().min()
    }

    /// When it will have been idle for as long as it may be, if it is idle.
    fn end_of_idleness(&self) -> Option<Instant> {
        let is_idle = self.turn.idle_since().is_some() && self.transfers.is_empty();
        self.idle_timeout.filter(|_| is_idle).map(|timeout| self.idle_since + timeout)
    }

    async fn on_due(&mut self) -> Result<(), End> {
        let now = Instant::now();
        if self.link.due().is_some_and(|due| due <= now) && !self.link.on_due(&self.instance, &self.vm_id).await {
            self.turn.refuse_waiting(|| super::unreachable(&self.vm_id));
        }
        if self.turn.idle_since().is_some_and(|since| since + LINGER <= now) {
            self.permit.give_back_cpu();
        }
        let overdue = self.link.is_open() && self.turn.deadline().is_some_and(|deadline| deadline <= now);
        if overdue && !self.turn.forgive(now) {
            return Err(End::Lost(Lost::Overdue));
        }
        if self.end_of_idleness().is_some_and(|end| end <= now) {
            return Err(End::Idle);
        }
        let overdue = self.transfers.expire(now, &self.vm_id);
        self.send_all(&overdue).map_err(End::Lost)
    }

    /// A caller has taken output, which is worth a grant, has given some of a file, or is gone, which ends the VM.
    fn on_attention(&mut self) -> Result<(), End> {
        if self.turn.is_abandoned() || self.transfers.is_abandoned() {
            return Err(End::Abandoned);
        }
        let mut frames = self.transfers.attend();
        frames.extend(self.turn.grant());
        self.idle_since = Instant::now();
        self.send_all(&frames).map_err(End::Lost)
    }

    fn on_cpu(&mut self, cpu: Result<Cpu, Error>) -> Result<(), End> {
        match cpu {
            Ok(cpu) => {
                self.permit.keep_cpu(cpu);
                self.dispatch().map_err(End::Lost)
            }
            // The VM keeps its life: the next execution may be luckier.
            Err(refused) => {
                self.turn.refuse(refused.on_vm(&self.vm_id));
                Ok(())
            }
        }
    }

    fn on_request(&mut self, request: Request) -> Result<(), End> {
        self.idle_since = Instant::now();
        match request {
            Request::Execute { ticket, request, outlet } => {
                let cpu = (!self.permit.has_cpu()).then(|| self.permit.claim_cpu());
                self.turn.wait(Waiting::new(ticket, request, outlet, cpu));
                self.link.open(None);
                self.dispatch().map_err(End::Lost)
            }
            Request::Interfere { ticket, wish } => match self.turn.interfere(ticket, wish) {
                Some(frame) => self.send(&frame).map_err(End::Lost),
                None => Ok(()),
            },
            Request::File { request, outlet } => self.begin_transfer(*request, outlet).map_err(End::Lost),
            Request::Ping { reply } => self.ping(reply).map_err(End::Lost),
            Request::Claim { details, idle_timeout, reply } => {
                self.idle_timeout = idle_timeout;
                self.describe(&details);
                self.ping(reply).map_err(End::Lost)
            }
            Request::OpenChannel { reply } => {
                self.link.open(Some(reply));
                Ok(())
            }
            Request::CloseChannel { reply } => {
                debug!(vm_id = self.vm_id, "the agent's channel is closed");
                self.transfers.end_all(|| transfers::cut_off(&self.vm_id));
                self.pings.clear();
                self.link.close(&self.vm_id);
                let _ = reply.send(());
                Ok(())
            }
            Request::Destroy { ending, reply } => Err(End::Asked(ending, reply)),
        }
    }

    /// Asks the agent whether it is there. Nobody can be asked while the link is not open.
    fn ping(&mut self, reply: oneshot::Sender<()>) -> Result<(), Lost> {
        if !self.link.is_open() {
            return Ok(());
        }
        let op = self.next_op();
        // Those whose callers are gone by now.
        self.pings.retain(|_, reply| !reply.is_closed());
        self.pings.insert(op, reply);
        self.send(&HostMessage::Ping(Bytes::new()).into_frame(op))
    }

    /// Writes down what a VM is for that was made ahead of need. What cannot be written is missing for observers only.
    fn describe(&self, details: &Details) {
        let described = self.instance.run_dir().map_or(Ok(()), |dir| dir.describe(details));
        if let Err(error) = described {
            warn!(vm_id = self.vm_id, error = &error as &dyn std::error::Error, "the record of a VM is not up to date");
        }
    }

    /// Begins a file operation, which waits for nobody: it needs no CPU to speak of, and no other one's end.
    fn begin_transfer(&mut self, request: HostMessage, outlet: Outlet<FileEnd>) -> Result<(), Lost> {
        if !self.link.is_open() {
            outlet.end(Err(transfers::cut_off(&self.vm_id)));
            return Ok(());
        }
        let op = self.next_op();
        let frame = self.transfers.begin(op, request, outlet);
        self.send(&frame)
    }

    /// A number that no operation has.
    fn next_op(&mut self) -> u32 {
        let op = self.next_op;
        self.next_op = op.wrapping_add(1).max(1);
        self.unasked = 0;
        op
    }

    /// Sends the program that waits for it, once there is CPU to run it and an agent to hear of it.
    fn dispatch(&mut self) -> Result<(), Lost> {
        if !self.link.is_open() || !self.permit.has_cpu() {
            return Ok(());
        }
        let op = self.next_op;
        let Some(frames) = self.turn.dispatch(op) else { return Ok(()) };
        self.next_op();
        debug!(vm_id = self.vm_id, op, "executing");
        self.send_all(&frames)
    }

    fn on_message(&mut self, op: u32, message: GuestMessage) -> Result<(), Lost> {
        if self.link.is_opening() {
            return self.on_greeting(op, &message);
        }
        if self.transfers.has(op) {
            self.idle_since = Instant::now();
            return Ok(self.transfers.on_message(op, message, &self.vm_id)?);
        }
        if let (GuestMessage::Pong(_), Some(reply)) = (&message, self.pings.remove(&op)) {
            let _ = reply.send(());
            return Ok(());
        }
        if self.turn.op() != Some(op) {
            return self.on_unasked(op, &message);
        }
        if self.turn.on_message(message, &self.vm_id)? {
            self.send(&HostMessage::Ack.into_frame(op))?;
            (self.turn, self.unasked, self.idle_since) = (Turn::idle(), 0, Instant::now());
        }
        Ok(())
    }

    /// Takes in what nobody waits for.
    fn on_unasked(&mut self, op: u32, message: &GuestMessage) -> Result<(), Lost> {
        self.unasked = self.unasked.saturating_add(1);
        if self.unasked > MAX_UNASKED {
            // While a program runs it is not answered: its deadline ends what the guest says in vain.
            return if self.turn.deadline().is_some() { Ok(()) } else { Err(Lost::Talkative) };
        }
        // Its acknowledgement was lost with an earlier connection, and the agent keeps it until it has one.
        if matches!(message, GuestMessage::Done(_) | GuestMessage::Refused(_)) {
            self.send(&HostMessage::Ack.into_frame(op))?;
        }
        Ok(())
    }

    fn on_greeting(&mut self, op: u32, message: &GuestMessage) -> Result<(), Lost> {
        let turn = &mut self.turn;
        let answer = || HostMessage::Hello(host_hello(turn.resume())).into_frame(CONNECTION_OP);
        let opened = self.link.on_greeting(op, message, &self.boot_id, answer).map_err(|error| match error {
            Greeted::ByStranger(stranger) => Lost::Stranger(stranger),
            Greeted::Channel(error) => Lost::Channel(error),
        })?;
        if opened {
            debug!(vm_id = self.vm_id, "the agent's channel is open again");
            self.turn.extend(Instant::now() + HOST_SLACK);
            self.dispatch()?;
        }
        Ok(())
    }

    /// The connection cannot be used any more. QEMU closes it when it ends, and its end says more.
    async fn on_silence(&mut self, error: ChannelError) -> Result<(), End> {
        if self.link.is_opening() {
            self.link.retry(error);
            return Ok(());
        }
        let is_closed = matches!(error, ChannelError::Closed | ChannelError::Io(_));
        if is_closed && let Some(ended) = self.instance.ended_soon().await {
            return Err(End::Lost(self.lost(ended).await));
        }
        Err(End::Lost(error.into()))
    }

    fn send_all(&mut self, frames: &[Frame]) -> Result<(), Lost> {
        frames.iter().try_for_each(|frame| self.send(frame))
    }

    fn send(&mut self, frame: &Frame) -> Result<(), Lost> {
        Ok(self.link.send(frame)?)
    }

    async fn lost(&mut self, ended: io::Result<Ended>) -> Lost {
        match ended {
            Ok(ended) => self.instance.obituary(ended).await.into(),
            Err(error) => Lost::Wait(error),
        }
    }
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => std::future::pending().await,
    }
}

/// What is handed to the caller of one execution at its end.
pub(super) type Finale = Result<Executed, Error>;

#[cfg(test)]
pub(super) mod tests;
