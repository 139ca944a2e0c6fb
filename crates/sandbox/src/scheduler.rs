//! The scheduler: the door of the library.
//!
//! It checks requests, waits for memory and CPU, and hands each run a VM of its own. It owns no VM: each has a supervisor, and
//! the scheduler only knows that they are still there.

use std::{sync::Arc, time::Duration};

use tokio::{sync::mpsc, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::info;

use crate::{
    Error, ErrorKind, Outcome, Output, RunRequest, SchedulerConfig,
    admission::{Admission, Kernel, Priority},
    host::{self, Host},
    outcome::{Timing, Usage},
    paths::Environment,
    process::ChildUsage,
    run_dir,
    vm::{Booted, Executed, Vm, VmSpec},
};

/// How long [`Scheduler::close`] waits for VMs that are being torn down.
const CLOSE_PATIENCE: Duration = Duration::from_secs(30);

/// What the scheduler found on this machine and uses.
pub use crate::host::Facts;

/// Runs code in VMs.
///
/// Dropped without [`close`](Self::close), its VMs are still torn down as long as the runtime lives; with `close` that is
/// proven.
#[derive(Debug)]
pub struct Scheduler {
    config: SchedulerConfig,
    host: Arc<Host>,
    admission: Admission,
    /// The owners of VMs, and the calls that may still make one.
    alive: TaskTracker,
    closing: CancellationToken,
}

impl Scheduler {
    /// Finds QEMU, an accelerator and the image, and removes what processes that are gone have left.
    ///
    /// # Errors
    /// [`ErrorKind::Dependency`], [`ErrorKind::AssetNotFound`] or [`ErrorKind::AssetDamaged`] with a remedy, or an invalid
    /// field of `config`.
    pub async fn start(config: SchedulerConfig) -> Result<Self, Error> {
        let settings = config.clone().resolve(&Environment::read())?;
        let host = host::blocking("examining this machine", move || {
            let reaped = run_dir::reap(&settings.run_dir)
                .map_err(|error| Error::new(ErrorKind::Host, "clearing up after earlier processes").because(error))?;
            if !reaped.removed.is_empty() {
                info!(vms = ?reaped.removed, ended = reaped.ended.len(), "cleared up after processes that are gone");
            }
            Host::examine(&settings)
        })
        .await?;
        let admission = Admission::new(host.budget, Kernel::of_this_machine());
        let (alive, closing) = (TaskTracker::new(), CancellationToken::new());
        Ok(Self { config, host: Arc::new(host), admission, alive, closing })
    }

    /// The configuration that it was started with.
    #[must_use]
    pub fn config(&self) -> &SchedulerConfig {
        &self.config
    }

    /// What was found on this machine.
    #[must_use]
    pub fn facts(&self) -> &Facts {
        &self.host.facts
    }

    /// Runs `request` in a fresh VM and returns once the VM is confirmed dead. Should it resist SIGKILL, an error is returned
    /// after some seconds, and its owner keeps trying and keeps its share of memory and CPU.
    ///
    /// Dropping the future ends the VM in the background.
    ///
    /// # Errors
    /// The sandbox failed, not the program: see [`ErrorKind`].
    pub async fn run(&self, request: RunRequest) -> Result<Outcome, Error> {
        self.run_checked(request, None).await
    }

    /// Like [`run`](Self::run), and sends what the VM writes as it arrives. A slow receiver slows the program down; one that
    /// is dropped does not stop it.
    ///
    /// # Errors
    /// As for [`run`](Self::run).
    pub async fn run_streaming(&self, request: RunRequest, output: mpsc::Sender<Output>) -> Result<Outcome, Error> {
        self.run_checked(request, Some(output)).await
    }

    /// Refuses new runs, ends those under way with [`ErrorKind::Closed`], and waits until every VM is confirmed dead.
    ///
    /// # Errors
    /// [`ErrorKind::Teardown`] if one is not within 30 s.
    pub async fn close(&self) -> Result<(), Error> {
        self.admission.close();
        self.closing.cancel();
        self.alive.close();
        tokio::time::timeout(CLOSE_PATIENCE, self.alive.wait()).await.map_err(|_elapsed| {
            let message = format!("closing the scheduler: {} VMs are not confirmed dead", self.alive.len());
            Error::new(ErrorKind::Teardown, message).remedied_by("sbx doctor shows what is left")
        })
    }

    async fn run_checked(&self, request: RunRequest, output: Option<mpsc::Sender<Output>>) -> Result<Outcome, Error> {
        // Before the look at `closing`, so that whoever closes waits for a call that has looked before.
        let _alive = self.alive.token();
        tokio::select! {
            biased;
            // What is dropped here abandons its VM.
            () = self.closing.cancelled() => {
                Err(Error::new(ErrorKind::Closed, "running a program: the scheduler has been closed"))
            }
            result = self.run_unless_closed(request, output) => result,
        }
    }

    async fn run_unless_closed(
        &self,
        request: RunRequest,
        output: Option<mpsc::Sender<Output>>,
    ) -> Result<Outcome, Error> {
        let called = Instant::now();
        let request = request.validate(&self.config)?;
        let permit = self.admission.admit(request.memory_mib, Priority::Normal).await?;
        let admission = called.elapsed();
        let spec = VmSpec {
            id: host::new_vm_id(),
            memory_mib: request.memory_mib,
            language: request.language,
            boot_log: output.clone().filter(|_| request.boot_log),
        };
        let vm_id = spec.id.clone();
        let (vm, booted) = Vm::boot(Arc::clone(&self.host), spec, permit, &self.alive).await?;
        let executed = vm.execute(request, output).await;
        let dying = Instant::now();
        let used = vm.destroy().await;
        let executed = executed?;
        let timing = timing(called, admission, booted, &executed, dying);
        outcome(vm_id, executed, timing, used?)
    }
}

fn timing(called: Instant, admission: Duration, booted: Booted, executed: &Executed, dying: Instant) -> Timing {
    Timing {
        admission,
        prepare: booted.prepare,
        spawn: booted.spawn,
        guest_wait: booted.guest_wait,
        execute: executed.finished - executed.dispatched,
        teardown: dying.elapsed(),
        total: called.elapsed(),
        first_output: executed.first_output.map(|at| at - called),
    }
}

fn outcome(vm_id: String, executed: Executed, timing: Timing, used: Option<ChildUsage>) -> Result<Outcome, Error> {
    let ran = executed.ran;
    if let Some(stream) = ran.over_limit {
        let message = format!("running a program: it wrote more to {stream} than is kept");
        return Err(Error::new(ErrorKind::OutputLimit, message).on_vm(&vm_id).remedied_by(
            "write less: 1,000,000 bytes of stdout and 100,000 of stderr are kept; what came before was streamed",
        ));
    }
    let usage = Usage {
        interpreter_start: ran.usage.map(|usage| Duration::from_micros(usage.spawn_us)),
        process: ran.usage.map(|usage| Duration::from_micros(usage.run_us)),
        guest_cpu: ran.usage.and_then(|usage| usage.cpu_us).map(Duration::from_micros),
        guest_memory_peak_bytes: ran.usage.and_then(|usage| usage.memory_peak_bytes),
        qemu_cpu: used.map(|used| used.cpu),
        qemu_memory_peak_bytes: used.map(|used| used.max_resident_bytes),
    };
    Ok(Outcome { exit: ran.exit, stdout: ran.stdout, stderr: ran.stderr, timing, usage, vm_id })
}
