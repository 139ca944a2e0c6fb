//! The link to the agent: one channel after another, for it may be closed and opened again while the VM lives.
//!
//! ```text
//! Open ─ close ─▶ Closed ─ open ─▶ Greeting ─ the agent's hello ─▶ Open
//!                    ▲                 └── no hello in time, or the connection is lost
//!                    └─────────────────┘
//! ```
//! A connection proves nothing about the guest; its hello does, and that it is still the same boot. What is said to a link that is
//! not open is dropped: whoever says it states anew how far he has come when it opens.

use std::{future, time::Duration};

use exec_sandbox_wire::{CONNECTION_OP, Frame, GENERATION, GuestMessage, Hello};
use tokio::{sync::oneshot, time::Instant};

use super::{
    channel::{Channel, ChannelError},
    gone,
    instance::Instance,
};
use crate::{Error, ErrorKind};

/// From a connection to the agent's hello. The agent looks for a host every second at the latest; on a busy machine that takes
/// its time.
const GREETING_PATIENCE: Duration = Duration::from_secs(30);

/// Who waits for the link to open.
pub(super) type OpenReply = oneshot::Sender<Result<(), Error>>;

/// See the head of this file.
#[derive(Debug)]
pub(super) enum Link {
    Open(Channel),
    Closed,
    Greeting(Greeting),
}

/// A connection on which the agent has not spoken yet.
#[derive(Debug)]
pub(super) struct Greeting {
    channel: Channel,
    deadline: Instant,
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

impl Link {
    pub(super) fn is_open(&self) -> bool {
        matches!(self, Self::Open(_))
    }

    /// Lets the connection go. Whoever waits for it to open is told so.
    pub(super) fn close(&mut self, vm_id: &str) {
        if let Self::Greeting(greeting) = std::mem::replace(self, Self::Closed) {
            greeting.answer(|| {
                Err(Error::new(ErrorKind::Vm, "opening the agent's channel: it was closed meanwhile").on_vm(vm_id))
            });
        }
    }

    /// Connects to the agent in `instance`, unless that is done or under way; `reply` learns how it went.
    pub(super) async fn open(&mut self, instance: &Instance, vm_id: &str, reply: Option<OpenReply>) {
        match self {
            Self::Open(_) => answer(reply, Ok(())),
            Self::Greeting(greeting) => greeting.waiting.extend(reply),
            Self::Closed => match Channel::connect(&instance.agent_socket(), instance.pid()).await {
                Ok(channel) => {
                    let waiting = reply.into_iter().collect();
                    *self = Self::Greeting(Greeting { channel, deadline: Instant::now() + GREETING_PATIENCE, waiting });
                }
                Err(error) => answer(reply, Err(unopened("connecting to the agent's channel", vm_id).because(error))),
            },
        }
    }

    /// The next message, also from an agent that is being greeted. Pends for ever while there is no connection.
    pub(super) async fn next(&mut self) -> Result<(u32, GuestMessage), ChannelError> {
        match self {
            Self::Open(channel) => channel.next().await,
            Self::Greeting(greeting) => greeting.channel.next().await,
            Self::Closed => future::pending().await,
        }
    }

    /// Queues a frame, if the link is open.
    pub(super) fn send(&mut self, frame: &Frame) -> Result<(), ChannelError> {
        match self {
            Self::Open(channel) => channel.send(frame),
            Self::Closed | Self::Greeting(_) => Ok(()),
        }
    }

    /// When the agent must have spoken, if it is being greeted.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match self {
            Self::Greeting(greeting) => Some(greeting.deadline),
            Self::Open(_) | Self::Closed => None,
        }
    }

    /// The agent did not speak, or the connection was lost before it did. The VM lives on, and the link may be opened again.
    pub(super) fn fail(&mut self, vm_id: &str, why: Option<ChannelError>) {
        if let Self::Greeting(greeting) = std::mem::replace(self, Self::Closed) {
            let why = why.map(std::sync::Arc::new);
            greeting.answer(|| {
                let error = unopened("waiting for the agent's hello", vm_id);
                Err(match &why {
                    Some(why) => error.because(std::sync::Arc::clone(why)),
                    None => error.because(format!("it has said nothing for {} s", GREETING_PATIENCE.as_secs())),
                })
            });
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
        if let Self::Greeting(mut greeting) = std::mem::replace(self, Self::Closed) {
            greeting.channel.send(&answer())?;
            for reply in greeting.waiting {
                let _ = reply.send(Ok(()));
            }
            *self = Self::Open(greeting.channel);
        }
        Ok(true)
    }

    /// The VM has ended: whoever waits is told.
    pub(super) fn bury(self, vm_id: &str) {
        if let Self::Greeting(greeting) = self {
            greeting.answer(|| Err(gone(vm_id)));
        }
    }
}

/// Why a greeting came to nothing although something was said.
#[derive(Debug, thiserror::Error)]
pub(super) enum Greeted {
    #[error(transparent)]
    ByStranger(#[from] Stranger),
    #[error(transparent)]
    Channel(#[from] ChannelError),
}

impl Greeting {
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

fn answer(reply: Option<OpenReply>, result: Result<(), Error>) {
    if let Some(reply) = reply {
        let _ = reply.send(result);
    }
}

fn unopened(doing: &'static str, vm_id: &str) -> Error {
    Error::new(ErrorKind::Vm, doing).on_vm(vm_id)
}
