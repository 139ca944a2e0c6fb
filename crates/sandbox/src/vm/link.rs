//! The link to the agent: one channel after another, for it may be closed and opened again while the VM lives.
//!
//! ```text
//! Open ─ close ─▶ Closed ─ open ─▶ Opening ⟲ rest, connect, wait for the hello ─▶ Open
//!                    ▲                └── no hello at all
//!                    └────────────────┘
//! ```
//! A connection proves nothing about the guest; its hello does, and that it is still the same boot. A guest does not notice a host
//! that leaves and returns in one instant, and what it had begun to say to the one that left can stand before, or swallow, its
//! hello. So a connection is not made sooner than a rest after the last one, and one without a clean hello is given up for another.
//!
//! What is said to a link that is not open is dropped: whoever says it states anew how far he has come when it opens.

use std::{future, mem, sync::Arc, time::Duration};

use exec_sandbox_wire::{CONNECTION_OP, Frame, GENERATION, GuestMessage, Hello};
use tokio::{sync::oneshot, time::Instant};

use super::{
    channel::{Channel, ChannelError},
    instance::Instance,
};
use crate::{Error, ErrorKind};

/// Between two connections: 50 ms were always enough for a guest to see that the first is gone.
const REST: Duration = Duration::from_millis(100);

/// How long a first connection is given for its hello, which comes within milliseconds unless it was swallowed. Each later one has
/// twice the time of the one before: on a machine that is very busy the hello is late, not lost.
const FIRST_TRY: Duration = Duration::from_secs(1);

/// How long the opening may take altogether.
const PATIENCE: Duration = Duration::from_secs(30);

/// Who waits for the link to open.
pub(super) type OpenReply = oneshot::Sender<Result<(), Error>>;

/// See the head of this file.
#[derive(Debug)]
pub(super) enum Link {
    Open(Channel),
    Closed { since: Instant },
    Opening(Opening),
}

/// A link on its way to being open.
#[derive(Debug)]
pub(super) struct Opening {
    /// The connection on which the hello is waited for; `None`: it is rested.
    channel: Option<Channel>,
    /// When the rest, or the wait for the hello, is over.
    due: Instant,
    patience: Duration,
    deadline: Instant,
    /// Why the last connection came to nothing.
    failed: Option<Arc<dyn std::error::Error + Send + Sync>>,
    waiting: Vec<OpenReply>,
}

/// Why the agent behind a new connection is not the one that was left.
#[derive(Debug, thiserror::Error)]
pub(super) enum Stranger {
    #[error("the agent speaks generation {found} of the wire and this host speaks {GENERATION}")]
    Generation { found: u32 },
    #[error("the guest has started anew, and what ran in it is lost")]
    OtherBoot,
}

/// Why a greeting came to nothing although something was said.
#[derive(Debug, thiserror::Error)]
pub(super) enum Greeted {
    #[error(transparent)]
    ByStranger(#[from] Stranger),
    #[error(transparent)]
    Channel(#[from] ChannelError),
}

impl Link {
    pub(super) fn is_open(&self) -> bool {
        matches!(self, Self::Open(_))
    }

    pub(super) fn is_opening(&self) -> bool {
        matches!(self, Self::Opening(_))
    }

    /// Lets the connection go. Whoever waits for it to open is told so.
    pub(super) fn close(&mut self, vm_id: &str) {
        if matches!(self, Self::Closed { .. }) {
            return;
        }
        if let Self::Opening(opening) = mem::replace(self, Self::closed()) {
            opening.answer(|| Err(unopened("opening the agent's channel: it was closed meanwhile", vm_id)));
        }
    }

    /// Begins to open it, unless that is done or under way; `reply` learns how it went.
    pub(super) fn open(&mut self, reply: Option<OpenReply>) {
        match self {
            Self::Open(_) => {
                if let Some(reply) = reply {
                    let _ = reply.send(Ok(()));
                }
            }
            Self::Opening(opening) => opening.waiting.extend(reply),
            Self::Closed { since } => {
                *self = Self::Opening(Opening {
                    channel: None,
                    due: *since + REST,
                    patience: FIRST_TRY,
                    deadline: Instant::now() + PATIENCE,
                    failed: None,
                    waiting: reply.into_iter().collect(),
                });
            }
        }
    }

    /// When something is to be done about a link that is being opened.
    pub(super) fn due(&self) -> Option<Instant> {
        match self {
            Self::Opening(opening) => Some(opening.due.min(opening.deadline)),
            Self::Open(_) | Self::Closed { .. } => None,
        }
    }

    /// Does it. `false`: the link could not be opened, and whoever waited has been told.
    pub(super) async fn on_due(&mut self, instance: &Instance, vm_id: &str) -> bool {
        let Self::Opening(opening) = self else { return true };
        let now = Instant::now();
        if opening.deadline <= now {
            return self.give_up(vm_id);
        }
        if opening.due > now {
            return true;
        }
        if opening.channel.take().is_some() {
            opening.rest();
            return true;
        }
        match Channel::connect(&instance.agent_socket(), instance.pid()).await {
            Ok(channel) => {
                opening.channel = Some(channel);
                opening.due = Instant::now() + opening.patience;
                opening.patience *= 2;
                true
            }
            Err(error) => {
                opening.failed = Some(Arc::new(error));
                self.give_up(vm_id)
            }
        }
    }

    /// The connection came to nothing before the hello; there is another one to be tried.
    pub(super) fn retry(&mut self, why: ChannelError) {
        if let Self::Opening(opening) = self {
            opening.channel = None;
            opening.failed = Some(Arc::new(why));
            opening.rest();
        }
    }

    /// The next message, also from an agent that is being greeted. Pends for ever while there is no connection.
    pub(super) async fn next(&mut self) -> Result<(u32, GuestMessage), ChannelError> {
        match self {
            Self::Open(channel) | Self::Opening(Opening { channel: Some(channel), .. }) => channel.next().await,
            Self::Closed { .. } | Self::Opening(_) => future::pending().await,
        }
    }

    /// Queues a frame, if the link is open.
    pub(super) fn send(&mut self, frame: &Frame) -> Result<(), ChannelError> {
        match self {
            Self::Open(channel) => channel.send(frame),
            Self::Closed { .. } | Self::Opening(_) => Ok(()),
        }
    }

    /// Takes in what an agent that is being greeted says. `true`: it was the hello of the boot `boot_id`, and `answer` has been
    /// sent.
    pub(super) fn on_greeting(
        &mut self,
        op: u32,
        message: &GuestMessage,
        boot_id: &[u8],
        answer: impl FnOnce() -> Frame,
    ) -> Result<bool, Greeted> {
        let (CONNECTION_OP, GuestMessage::Hello(hello)) = (op, message) else { return Ok(false) };
        check(hello, boot_id)?;
        if let Self::Opening(mut opening) = mem::replace(self, Self::closed())
            && let Some(mut channel) = opening.channel.take()
        {
            channel.send(&answer())?;
            opening.answer(|| Ok(()));
            *self = Self::Open(channel);
        }
        Ok(true)
    }

    /// The VM has ended: whoever waits is told.
    pub(super) fn bury(self, gone: impl Fn() -> Error) {
        if let Self::Opening(opening) = self {
            opening.answer(|| Err(gone()));
        }
    }

    fn closed() -> Self {
        Self::Closed { since: Instant::now() }
    }

    /// Nothing has helped. The VM lives on, and the link may be opened again.
    fn give_up(&mut self, vm_id: &str) -> bool {
        if let Self::Opening(opening) = mem::replace(self, Self::closed()) {
            let failed = opening.failed.clone();
            opening.answer(|| {
                let error = unopened("waiting for the agent's hello", vm_id);
                Err(match &failed {
                    Some(failed) => error.because(Arc::clone(failed)),
                    None => error.because(format!("it has said nothing for {} s", PATIENCE.as_secs())),
                })
            });
        }
        false
    }
}

impl Opening {
    fn rest(&mut self) {
        self.due = Instant::now() + REST;
    }

    fn answer(self, result: impl Fn() -> Result<(), Error>) {
        for reply in self.waiting {
            let _ = reply.send(result());
        }
    }
}

fn check(hello: &Hello, boot_id: &[u8]) -> Result<(), Stranger> {
    if hello.generation != GENERATION {
        return Err(Stranger::Generation { found: hello.generation });
    }
    if hello.boot_id == boot_id { Ok(()) } else { Err(Stranger::OtherBoot) }
}

fn unopened(doing: &'static str, vm_id: &str) -> Error {
    Error::new(ErrorKind::Vm, doing).on_vm(vm_id)
}
