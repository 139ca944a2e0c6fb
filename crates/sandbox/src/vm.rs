//! A VM, as its callers see it: a handle, behind which is the mailbox of the one task that owns it.

mod blanks;
mod channel;
mod execution;
mod executions;
mod files;
#[cfg(fuzzing)]
pub(crate) mod fuzzing;
mod gateway;
mod grave;
mod inbox;
mod instance;
mod ladder;
mod life;
mod link;
mod monitor;
mod phases;
#[cfg(test)]
mod pretend;
mod supervisor;
mod traffic;
mod transfer;
mod transfers;
mod turn;

use std::{
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use exec_sandbox_wire::HostMessage;
use tokio::{
    sync::{Mutex, Notify, mpsc, oneshot},
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub(crate) use blanks::Blanks;
pub(crate) use execution::Ran;
pub use executions::{Control, Execution};
pub use files::{FileInfo, FileType, MAX_FILE_BYTES, MAX_LISTED_ENTRIES, WriteOptions};

use crate::{
    Error, ErrorKind, ExposedPort, Language, SchedulerConfig,
    admission::Permit,
    host::{self, Host},
    outcome::Origin,
    process::{ChildUsage, Process},
    request::{ValidExec, ValidVm},
    run_dir::Details,
};
use executions::Wish;
use grave::{DestroyReply, Grave};
use inbox::Outlet;
#[cfg(test)]
pub(crate) use supervisor::tests::Fixture;
use supervisor::{Desk, Finale};
use traffic::Network;
pub(crate) use traffic::Traffic;
use transfers::FileEnd;

/// A VM. One task owns it and this is a handle: dropped, the VM is torn down in the background.
///
/// Its methods may be called from several tasks at once. Executions follow each other in the order of asking; everything else is
/// served beside them.
#[derive(Debug)]
pub struct QemuVm {
    id: String,
    language: Language,
    config: Arc<SchedulerConfig>,
    process: Process,
    network: Option<Network>,
    booted: BootTiming,
    mailbox: mpsc::Sender<Request>,
    attention: Arc<Notify>,
    /// Held by the caller whose execution it is.
    turn: Mutex<()>,
    /// Tickets of executions so far.
    tickets: AtomicU64,
    closing: CancellationToken,
    grave: Arc<Grave>,
}

/// The channel to the agent in a VM: see [`QemuVm::channel`].
#[derive(Clone, Copy, Debug)]
pub struct Channel<'a> {
    vm: &'a QemuVm,
}

/// How a VM is brought to its end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Ending {
    /// QEMU is killed. Nothing is lost by it: a VM has nothing that outlives it.
    #[default]
    AtOnce,
    /// QEMU is asked to end, and killed if it has not after so long.
    Gently {
        /// Between SIGTERM and SIGKILL.
        patience: Duration,
    },
}

/// How long the phases of a boot took, which do not overlap. They mean what they mean in [`Timing`](crate::Timing).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct BootTiming {
    /// Where its guest came from.
    pub origin: Origin,
    /// Before anything else: finding or installing its packages. `None`: it has none.
    pub packages: Option<Duration>,
    /// Waiting for memory and CPU.
    pub admission: Duration,
    /// From there to a VM that can be started.
    pub prepare: Duration,
    /// Starting the gateway's process, until it has been executed. `None`: it has no network.
    pub gateway_start: Option<Duration>,
    /// Starting QEMU's process, until it has been executed.
    pub spawn: Duration,
    /// From there to the agent's first answer.
    pub guest_wait: Duration,
    /// Warming the guest and saving it for those that come later. `None`: that was not done.
    pub snapshot: Option<Duration>,
}

/// A VM that is up, as its owner hands it to whoever asked for it.
#[derive(Debug)]
struct Booted {
    id: String,
    timing: BootTiming,
    process: Process,
    network: Option<Network>,
}

/// A program that ran, and when.
#[derive(Debug)]
pub(crate) struct Executed {
    pub(crate) ran: Ran,
    /// How long it waited for CPU.
    pub(crate) admission: Duration,
    pub(crate) dispatched: Instant,
    pub(crate) first_output: Option<Instant>,
    pub(crate) finished: Instant,
}

/// What a VM's owner is asked.
#[derive(Debug)]
enum Request {
    Execute { ticket: u64, request: Box<ValidExec>, outlet: Outlet<Finale> },
    Interfere { ticket: u64, wish: Wish },
    File { request: Box<HostMessage>, outlet: Outlet<FileEnd> },
    Ping { reply: oneshot::Sender<()> },
    Claim { details: Box<Details>, idle_timeout: Option<Duration>, reply: oneshot::Sender<()> },
    OpenChannel { reply: oneshot::Sender<Result<(), Error>> },
    CloseChannel { reply: oneshot::Sender<()> },
    Destroy { ending: Ending, reply: DestroyReply },
}

/// What all VMs of a manager have in common.
#[derive(Clone, Debug)]
pub(crate) struct Common {
    pub(crate) config: Arc<SchedulerConfig>,
    pub(crate) host: Arc<Host>,
    /// The owners of VMs, and the calls that may still make one.
    pub(crate) alive: TaskTracker,
    pub(crate) closing: CancellationToken,
}

impl QemuVm {
    /// Boots a VM; its owner is a task of its own. Called `off`, it returns when nothing is left of what was made; dropped, that is
    /// ended in the background.
    pub(crate) async fn boot(
        common: &Common,
        spec: ValidVm,
        permit: Permit,
        off: &CancellationToken,
    ) -> Result<Self, Error> {
        let (suggested, language) = (host::new_vm_id(), spec.language);
        let (mailbox, requests) = mpsc::channel(1);
        let (attention, grave) = (Arc::new(Notify::new()), Arc::<Grave>::default());
        let desk = Desk {
            mailbox: requests,
            attention: Arc::clone(&attention),
            closing: common.closing.clone(),
            grave: Arc::clone(&grave),
        };
        let (booted, mut answer) = oneshot::channel();
        let host = Arc::clone(&common.host);
        let (bell, supervised) =
            (Arc::clone(&common.host.bell), life::supervise(host, (suggested.clone(), spec), permit, desk, booted));
        let owner = common.alive.spawn(async move {
            supervised.await;
            bell.notify_one();
        });
        let closing = common.closing.clone();
        let answer = tokio::select! {
            answer = &mut answer => answer,
            () = off.cancelled() => {
                // Nobody wants it any more, which its owner sees by these; one that has panicked is gone as well.
                drop((answer, mailbox));
                let _ = owner.await;
                return Err(called_off());
            }
        };
        let Booted { id, timing: booted, process, network } = answer.map_err(|_gone| gone(&suggested, &closing))??;
        let (config, turn) = (Arc::clone(&common.config), Mutex::new(()));
        let tickets = AtomicU64::new(0);
        Ok(Self { id, language, config, process, network, booted, mailbox, attention, turn, tickets, closing, grave })
    }

    /// Its name, which no other VM has.
    #[must_use]
    pub fn vm_id(&self) -> &str {
        &self.id
    }

    /// The language of its executions.
    #[must_use]
    pub fn language(&self) -> Language {
        self.language
    }

    /// QEMU's process, for observation.
    #[must_use]
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// The process that is the VM's network; `None`: it has no network.
    #[must_use]
    pub fn gateway(&self) -> Option<&Process> {
        self.network.as_ref().map(Network::process)
    }

    /// Its ports that are reached from the host. They are open since before it was started.
    #[must_use]
    pub fn exposed_ports(&self) -> &[ExposedPort] {
        self.network.as_ref().map(Network::ports).unwrap_or_default()
    }

    /// What went through its network since this was asked last. `None`: it has none. Whoever asks has the turn.
    pub(crate) async fn traffic(&self) -> Option<Traffic> {
        match &self.network {
            Some(network) => Some(network.since_last().await),
            None => None,
        }
    }

    /// Notes how long its packages took before it.
    pub(crate) fn note_packages(&mut self, took: Option<Duration>) {
        self.booted.packages = took;
    }

    /// Where the time of its boot went.
    #[must_use]
    pub fn boot_timing(&self) -> BootTiming {
        self.booted
    }

    /// The channel to its agent.
    #[must_use]
    pub fn channel(&self) -> Channel<'_> {
        Channel { vm: self }
    }

    /// Ends the VM; returns when its process is confirmed dead and its files are gone. May be called again, and by several at
    /// once: they share one teardown.
    ///
    /// # Errors
    /// [`ErrorKind::Teardown`]: death is not confirmed yet. The owner keeps trying, and keeps the VM's share of memory.
    pub async fn destroy(&self) -> Result<(), Error> {
        self.end(Ending::AtOnce).await.map(drop)
    }

    /// The same in the way of `ending`.
    ///
    /// # Errors
    /// As for [`destroy`](Self::destroy).
    pub async fn destroy_with(&self, ending: Ending) -> Result<(), Error> {
        self.end(ending).await.map(drop)
    }

    /// Ends the VM for a reason that is told to whoever uses it afterwards.
    pub(crate) async fn end_because(&self, why: &'static str) -> Result<(), Error> {
        self.grave.begin(why);
        self.end(Ending::AtOnce).await.map(drop)
    }

    /// Why it has ended, or is about to.
    pub(crate) fn ended_because(&self) -> Option<&'static str> {
        self.grave.why()
    }

    /// Whether it has ended, or is about to, without anybody having ended it.
    pub(crate) fn is_lost(&self) -> bool {
        self.grave.why() == Some(grave::LOST)
    }

    /// Ends the VM. `None`: it is dead, and what it used is not known.
    pub(crate) async fn end(&self, ending: Ending) -> Result<Option<ChildUsage>, Error> {
        let (reply, answer) = oneshot::channel();
        // The owner leaves only when the VM is dead, so an owner who is gone is an answer too.
        if self.mailbox.send(Request::Destroy { ending, reply }).await.is_ok()
            && let Ok(ended) = answer.await
        {
            return ended;
        }
        Ok(self.grave.used())
    }

    fn gone(&self) -> Error {
        gone(&self.id, &self.closing)
    }

    /// Asks the agent whether it is there, also while a program runs; returns how long the answer took.
    ///
    /// # Errors
    /// The VM has ended, or its channel is closed.
    pub async fn ping(&self) -> Result<Duration, Error> {
        let (asked, (reply, answer)) = (Instant::now(), oneshot::channel());
        self.ask(Request::Ping { reply }).await?;
        answer.await.map_err(|_lost| match self.grave.why() {
            Some(_) => self.gone(),
            None => unreachable(&self.id),
        })?;
        Ok(asked.elapsed())
    }

    /// Makes a VM that was made ahead of need the one that `spec` asks for, once its agent has answered. It is of no more use when the
    /// future is dropped.
    pub(crate) async fn claim(&mut self, host: &Host, spec: &ValidVm) -> Result<(), Error> {
        let (asked, (reply, answer)) = (Instant::now(), oneshot::channel());
        let details = Box::new(phases::details(host, spec));
        self.ask(Request::Claim { details, idle_timeout: spec.idle_timeout, reply }).await?;
        answer.await.map_err(|_lost| unreachable(&self.id))?;
        self.booted = BootTiming { origin: Origin::Ready, prepare: asked.elapsed(), ..BootTiming::default() };
        Ok(())
    }

    async fn ask(&self, request: Request) -> Result<(), Error> {
        self.mailbox.send(request).await.map_err(|_closed| self.gone())
    }
}

impl Channel<'_> {
    /// Lets the connection go. The VM lives on: a program that runs goes on within its time, what it writes is kept as far as the
    /// limits of output go, and the agent sleeps until somebody connects. Closing what is closed does nothing.
    ///
    /// # Errors
    /// The VM has ended.
    pub async fn close(&self) -> Result<(), Error> {
        let (reply, answer) = oneshot::channel();
        self.vm.ask(Request::CloseChannel { reply }).await?;
        answer.await.map_err(|_gone| self.vm.gone())
    }

    /// Connects again, and returns when the agent has answered. An execution that was under way comes to its end as if nothing had
    /// been; the next execution would have opened the channel by itself.
    ///
    /// # Errors
    /// The VM has ended, or its agent does not answer; then the channel stays closed and may be opened again.
    pub async fn open(&self) -> Result<(), Error> {
        let (reply, answer) = oneshot::channel();
        self.vm.ask(Request::OpenChannel { reply }).await?;
        answer.await.map_err(|_gone| self.vm.gone())?
    }
}

/// The VM ended before the request reached it, perhaps because all VMs are to end.
fn gone(vm_id: &str, closing: &CancellationToken) -> Error {
    let kind = if closing.is_cancelled() { ErrorKind::Closed } else { ErrorKind::Vm };
    Error::new(kind, "using a VM that has ended").on_vm(vm_id)
}

/// Its caller does not want what he asked for any more; nothing of it is left.
pub(crate) fn called_off() -> Error {
    Error::new(ErrorKind::Closed, "running a program: its caller has called it off")
}

/// The VM lives, and its agent does not answer.
fn unreachable(vm_id: &str) -> Error {
    Error::new(ErrorKind::Vm, "asking an agent that does not answer").on_vm(vm_id)
}

/// What a guest or QEMU says to people: at most `most` characters, and none that steers a terminal.
fn printable(text: &str, most: usize) -> String {
    let keep = |c: char| if c.is_control() && c != '\n' { char::REPLACEMENT_CHARACTER } else { c };
    text.chars().take(most).map(keep).collect()
}
