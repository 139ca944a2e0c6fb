//! A VM, as its callers see it: a handle, behind which is the mailbox of the one task that owns it.

mod channel;
mod execution;
#[cfg(fuzzing)]
pub(crate) mod fuzzing;
mod grave;
mod inbox;
mod instance;
mod link;
mod monitor;
mod phases;
#[cfg(test)]
mod pretend;
mod supervisor;
mod turn;

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{Mutex, Notify, mpsc, oneshot},
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub(crate) use execution::Ran;

use crate::{
    Error, ErrorKind, ExecRequest, Language, Outcome, Output, SchedulerConfig,
    admission::Permit,
    host::{self, Host},
    outcome::{Timing, Usage},
    process::{ChildUsage, Process, ProcessUsage},
    request::{ValidExec, ValidVm},
};
use grave::{DestroyReply, Grave};
use inbox::{Next, Outlet};
use supervisor::{Desk, Finale};

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
    booted: Booted,
    mailbox: mpsc::Sender<Request>,
    attention: Arc<Notify>,
    /// Held by the caller whose execution it is.
    turn: Mutex<()>,
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

/// How long the phases of a boot took.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Booted {
    pub(crate) prepare: Duration,
    pub(crate) spawn: Duration,
    pub(crate) guest_wait: Duration,
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
    Execute { request: Box<ValidExec>, outlet: Outlet<Finale> },
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
    /// Boots a VM; its owner is a task of its own.
    pub(crate) async fn boot(common: &Common, spec: ValidVm, permit: Permit) -> Result<Self, Error> {
        let (id, language) = (host::new_vm_id(), spec.language);
        let (mailbox, requests) = mpsc::channel(1);
        let (attention, grave) = (Arc::new(Notify::new()), Arc::new(Grave::new()));
        let desk = Desk {
            mailbox: requests,
            attention: Arc::clone(&attention),
            closing: common.closing.clone(),
            grave: Arc::clone(&grave),
        };
        let (booted, answer) = oneshot::channel();
        let host = Arc::clone(&common.host);
        common.alive.spawn(supervisor::supervise(host, (id.clone(), spec), permit, desk, booted));
        let closing = common.closing.clone();
        let (booted, process) = answer.await.map_err(|_gone| gone(&id, &closing))??;
        let (config, turn) = (Arc::clone(&common.config), Mutex::new(()));
        Ok(Self { id, language, config, process, booted, mailbox, attention, turn, closing, grave })
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
        None
    }

    /// The channel to its agent.
    #[must_use]
    pub fn channel(&self) -> Channel<'_> {
        Channel { vm: self }
    }

    /// Runs one program. What the interpreter holds is kept from execution to execution. Dropping the future ends the VM, once
    /// the program's turn has come.
    ///
    /// The outcome's timing has no phases of a boot, and the usage of QEMU is that of this execution, but for the peak of memory,
    /// which is the highest since the VM was started.
    ///
    /// # Errors
    /// The sandbox failed, not the program: see [`ErrorKind`]. An invalid request leaves the VM as it was.
    pub async fn execute(&self, request: ExecRequest) -> Result<Outcome, Error> {
        self.execute_measured(request, None).await
    }

    /// Like [`execute`](Self::execute), and sends what the program writes as it arrives. A slow receiver slows the program down;
    /// one that is dropped does not stop it.
    ///
    /// # Errors
    /// As for [`execute`](Self::execute).
    pub async fn execute_streaming(
        &self,
        request: ExecRequest,
        output: mpsc::Sender<Output>,
    ) -> Result<Outcome, Error> {
        self.execute_measured(request, Some(output)).await
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

    pub(crate) fn booted(&self) -> Booted {
        self.booted
    }

    /// Runs a program that has been checked.
    pub(crate) async fn run(
        &self,
        request: ValidExec,
        output: Option<mpsc::Sender<Output>>,
    ) -> Result<Executed, Error> {
        let _turn = self.turn.lock().await;
        let (outlet, mut inbox) = inbox::pair(Arc::clone(&self.attention));
        self.ask(Request::Execute { request: Box::new(request), outlet }).await?;
        let mut output = output;
        loop {
            match inbox.next().await {
                Next::Piece(piece) => {
                    // A caller who stops listening does not stop the program.
                    if let Some(listener) = &output
                        && listener.send(piece).await.is_err()
                    {
                        output = None;
                    }
                }
                Next::End(finale) => return finale,
                // The owner answers every request, so this one has panicked, and nobody knows how far it had come.
                Next::Gone => {
                    let doing = "waiting for the program's end; it may have run";
                    return Err(Error::new(ErrorKind::OutcomeUnknown, doing).on_vm(&self.id));
                }
            }
        }
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
        Ok(self.grave.get().copied().flatten())
    }

    async fn execute_measured(
        &self,
        request: ExecRequest,
        output: Option<mpsc::Sender<Output>>,
    ) -> Result<Outcome, Error> {
        let called = Instant::now();
        let request = request.validate(self.language, &self.config)?;
        let before = self.process.usage().ok();
        let executed = self.run(request, output).await?;
        let after = self.process.usage().ok();
        let cpu = |usage: Option<ProcessUsage>| usage.map(|usage| usage.cpu);
        let used = Used {
            qemu_cpu: cpu(after).zip(cpu(before)).map(|(after, before)| after.saturating_sub(before)),
            qemu_memory_peak_bytes: after.map(|after| after.resident_peak_bytes),
        };
        let timing = Timing {
            admission: executed.admission,
            execute: executed.finished - executed.dispatched,
            total: called.elapsed(),
            first_output: executed.first_output.map(|at| at - called),
            ..Timing::default()
        };
        executed.ran.into_outcome(self.id.clone(), timing, used)
    }

    fn gone(&self) -> Error {
        gone(&self.id, &self.closing)
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

/// What QEMU used for an execution.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Used {
    pub(crate) qemu_cpu: Option<Duration>,
    pub(crate) qemu_memory_peak_bytes: Option<u64>,
}

impl From<Option<ChildUsage>> for Used {
    fn from(used: Option<ChildUsage>) -> Self {
        Self { qemu_cpu: used.map(|used| used.cpu), qemu_memory_peak_bytes: used.map(|used| used.max_resident_bytes) }
    }
}

impl Ran {
    /// The outcome, unless the program wrote too much.
    pub(crate) fn into_outcome(self, vm_id: String, timing: Timing, used: Used) -> Result<Outcome, Error> {
        if let Some(stream) = self.over_limit {
            let message = format!("running a program: it wrote more to {stream} than is kept");
            return Err(Error::new(ErrorKind::OutputLimit, message).on_vm(&vm_id).remedied_by(
                "write less: 1,000,000 bytes of stdout and 100,000 of stderr are kept; what came before was streamed",
            ));
        }
        let usage = Usage {
            interpreter_start: self.usage.map(|usage| Duration::from_micros(usage.spawn_us)),
            process: self.usage.map(|usage| Duration::from_micros(usage.run_us)),
            guest_cpu: self.usage.and_then(|usage| usage.cpu_us).map(Duration::from_micros),
            guest_memory_peak_bytes: self.usage.and_then(|usage| usage.memory_peak_bytes),
            qemu_cpu: used.qemu_cpu,
            qemu_memory_peak_bytes: used.qemu_memory_peak_bytes,
        };
        Ok(Outcome { exit: self.exit, stdout: self.stdout, stderr: self.stderr, timing, usage, vm_id })
    }
}

/// The VM ended before the request reached it, perhaps because all VMs are to end.
fn gone(vm_id: &str, closing: &CancellationToken) -> Error {
    let kind = if closing.is_cancelled() { ErrorKind::Closed } else { ErrorKind::Vm };
    Error::new(kind, "using a VM that has ended").on_vm(vm_id)
}

/// The VM lives, and its agent does not answer.
fn unreachable(vm_id: &str) -> Error {
    Error::new(ErrorKind::Vm, "sending a program to an agent that does not answer").on_vm(vm_id)
}

/// What a guest or QEMU says to people: at most `most` characters, and none that steers a terminal.
fn printable(text: &str, most: usize) -> String {
    let keep = |c: char| if c.is_control() && c != '\n' { char::REPLACEMENT_CHARACTER } else { c };
    text.chars().take(most).map(keep).collect()
}
