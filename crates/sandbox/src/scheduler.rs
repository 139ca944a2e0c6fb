//! The scheduler: the door of the library for whoever wants code run. It makes a VM for each run and ends it afterwards.

use std::{pin::pin, time::Duration};

use tokio::{sync::mpsc, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    Error, Outcome, Output, RunRequest, SchedulerConfig, Session, SessionRequest, VmManager,
    outcome::Timing,
    request::ValidVm,
    vm::{self, BootTiming, Ending, Executed},
};

/// What the scheduler found on this machine and uses.
pub use crate::host::Facts;

/// Runs code in VMs.
///
/// Dropped without [`close`](Self::close), its VMs are still torn down as long as the runtime lives; with `close` that is
/// proven.
#[derive(Debug)]
pub struct Scheduler {
    manager: VmManager,
}

impl Scheduler {
    /// Finds QEMU, an accelerator and the image, and removes what processes that are gone have left.
    ///
    /// # Errors
    /// As for [`VmManager::start`].
    pub async fn start(config: SchedulerConfig) -> Result<Self, Error> {
        Ok(Self { manager: VmManager::start(config).await? })
    }

    /// The configuration that it was started with.
    #[must_use]
    pub fn config(&self) -> &SchedulerConfig {
        self.manager.config()
    }

    /// What was found on this machine.
    #[must_use]
    pub fn facts(&self) -> &Facts {
        self.manager.facts()
    }

    /// The manager whose VMs its runs are in: the door for whoever wants VMs themselves.
    #[must_use]
    pub fn manager(&self) -> &VmManager {
        &self.manager
    }

    /// Runs `request` in a fresh VM and returns once the VM is confirmed dead. Should it resist SIGKILL, an error is returned
    /// after some seconds, and its owner keeps trying and keeps its share of memory and CPU.
    ///
    /// Dropping the future ends the VM in the background.
    ///
    /// # Errors
    /// The sandbox failed, not the program: see [`ErrorKind`](crate::ErrorKind).
    pub async fn run(&self, request: RunRequest) -> Result<Outcome, Error> {
        self.run_checked(request, None, &CancellationToken::new()).await
    }

    /// Like [`run`](Self::run), and sends what the VM writes as it arrives. A slow receiver slows the program down; one that
    /// is dropped does not stop it.
    ///
    /// # Errors
    /// As for [`run`](Self::run).
    pub async fn run_streaming(&self, request: RunRequest, output: mpsc::Sender<Output>) -> Result<Outcome, Error> {
        self.run_checked(request, Some(output), &CancellationToken::new()).await
    }

    /// Like [`run_streaming`](Self::run_streaming), until `called_off` is ready: then the VM is ended, and this returns once it is
    /// confirmed dead. Whoever only drops the future does not learn when that is.
    ///
    /// # Errors
    /// As for [`run`](Self::run), and [`ErrorKind::Closed`](crate::ErrorKind::Closed): it was called off.
    pub async fn run_until(
        &self,
        request: RunRequest,
        output: mpsc::Sender<Output>,
        called_off: impl Future<Output = ()>,
    ) -> Result<Outcome, Error> {
        let off = CancellationToken::new();
        let mut running = pin!(self.run_checked(request, Some(output), &off));
        tokio::select! {
            biased;
            outcome = &mut running => outcome,
            () = called_off => {
                off.cancel();
                running.await
            }
        }
    }

    /// Starts a session: a VM that is kept for many executions.
    ///
    /// # Errors
    /// As for [`VmManager::create_vm`].
    pub async fn session(&self, request: SessionRequest) -> Result<Session, Error> {
        let idle_timeout = Some(request.idle_timeout(self.config())?);
        let spec = ValidVm { idle_timeout, ..request.vm.validate(self.config(), self.manager.registries())? };
        Ok(Session::of(self.manager.create(spec, &CancellationToken::new()).await?))
    }

    /// Waits until the pool that [`warm_pool_size`](SchedulerConfig::warm_pool_size) asks for is full; at once if it asks for none.
    ///
    /// # Errors
    /// [`ErrorKind::BootTimeout`](crate::ErrorKind::BootTimeout): it was not within `patience`. It is filled further.
    pub async fn wait_pool_ready(&self, patience: Duration) -> Result<(), Error> {
        self.manager.wait_pool_ready(patience).await
    }

    /// Refuses new runs, ends those under way with [`ErrorKind::Closed`](crate::ErrorKind::Closed), and waits until every VM is
    /// confirmed dead.
    ///
    /// # Errors
    /// As for [`VmManager::close`].
    pub async fn close(&self) -> Result<(), Error> {
        self.manager.close().await
    }

    async fn run_checked(
        &self,
        request: RunRequest,
        output: Option<mpsc::Sender<Output>>,
        off: &CancellationToken,
    ) -> Result<Outcome, Error> {
        let called = Instant::now();
        let (spec, execution) = request.validate(self.config(), self.manager.registries(), output.as_ref())?;
        let vm = self.manager.create(spec, off).await?;
        let executed = tokio::select! {
            executed = vm.run(execution, output) => executed,
            () = off.cancelled() => Err(vm::called_off()),
        };
        // A network is asked while it is there, and has nothing to tell of what came to nothing.
        let traffic = if executed.is_ok() { vm.traffic().await } else { None };
        let dying = Instant::now();
        let used = vm.end(Ending::AtOnce).await;
        if executed.is_err() && off.is_cancelled() {
            used?;
            return Err(vm::called_off());
        }
        let executed = executed?;
        let timing = timing(called, vm.boot_timing(), &executed, dying);
        executed.ran.into_outcome(&vm, timing, used?.into(), traffic)
    }
}

fn timing(called: Instant, booted: BootTiming, executed: &Executed, dying: Instant) -> Timing {
    let BootTiming { origin, packages, admission, prepare, gateway_start, spawn, guest_wait, snapshot } = booted;
    Timing {
        origin,
        packages,
        // For the VM, and for the program if the VM had given back its CPU.
        admission: admission + executed.admission,
        prepare,
        gateway_start,
        spawn,
        guest_wait,
        snapshot,
        execute: executed.finished - executed.dispatched,
        teardown: dying.elapsed(),
        total: called.elapsed(),
        first_output: executed.first_output.map(|at| at - called),
    }
}
