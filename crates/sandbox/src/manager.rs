//! The manager of VMs: it checks what is asked for, waits for memory and CPU, and makes VMs. It owns none of them: each has a
//! supervisor, and the manager only knows that they are still there.

use std::{pin::pin, sync::Arc, time::Duration};

use tokio::time::{Instant, sleep};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};
use tracing::info;

use crate::{
    Error, ErrorKind, QemuVm, SchedulerConfig, VmSpec,
    admission::{Admission, Charged, Kernel, Permit, Priority},
    assets,
    config::Settings,
    host::{self, Facts, Host},
    layers::Workshop,
    network::Registries,
    paths::Environment,
    pool::Pool,
    request::ValidVm,
    run_dir,
    vm::{Common, called_off},
};

/// How long [`VmManager::close`] waits for VMs that are being torn down.
const CLOSE_PATIENCE: Duration = Duration::from_secs(30);

/// How soon what the pool keeps makes room for a request that waits for memory, and how soon the next of it does.
const PRESSURE_LOOK: Duration = Duration::from_millis(50);

/// The same when the pool kept nothing: what was being made then may have been put there since.
const PRESSURE_REST: Duration = Duration::from_secs(1);

/// Makes VMs.
///
/// This is the lower of two doors: [`Scheduler`](crate::Scheduler) runs code, and a manager hands out the VMs themselves. Dropped
/// without [`close`](Self::close), VMs that nobody holds are still torn down as long as the runtime lives; with `close` that is
/// proven for all.
#[derive(Debug)]
pub struct VmManager {
    common: Common,
    admission: Admission,
    /// `None`: nothing is started ahead of need.
    pool: Option<Arc<Pool>>,
    /// Ends the pool, whose keeper would have it for ever.
    _pool_ends: DropGuard,
}

impl VmManager {
    /// Finds QEMU, an accelerator and the image, and ends and removes what processes that are gone have left. An image that is not
    /// there is fetched, if the configuration says from where and allows it; the log tells how far that is.
    ///
    /// # Errors
    /// [`ErrorKind::Dependency`], [`ErrorKind::AssetNotFound`], [`ErrorKind::AssetDownload`] or [`ErrorKind::AssetDamaged`] with a
    /// remedy, or an invalid field of `config`.
    pub async fn start(config: SchedulerConfig) -> Result<Self, Error> {
        let settings = config.resolve(&Environment::read())?;
        let config = settings.config.clone();
        let host = match examine(settings.clone()).await {
            // Last of what a start needs, so that nothing is fetched where nothing could be run.
            Err(error) if error.kind() == ErrorKind::AssetNotFound && assets::would_be_fetched(&settings) => {
                assets::fetch_missing(&settings).await?;
                examine(settings).await?
            }
            examined => examined?,
        };
        if let Some(snapshots) = &host.snapshots {
            snapshots.tidy();
        }
        let admission = Admission::new(host.budget, Kernel::of_this_machine());
        let (alive, closing) = (TaskTracker::new(), CancellationToken::new());
        let common = Common { config: Arc::new(config), host: Arc::new(host), alive, closing };
        let layers = Arc::clone(&common.host.layers);
        drop(common.alive.spawn_blocking(move || layers.tidy()));
        Ok(Self::of(common, admission))
    }

    fn of(common: Common, admission: Admission) -> Self {
        let end = common.closing.child_token();
        let pool = Pool::start(&common, &admission, end.clone());
        Self { common, admission, pool, _pool_ends: end.drop_guard() }
    }

    /// The configuration that it was started with, and what the environment says of packages beside it.
    #[must_use]
    pub fn config(&self) -> &SchedulerConfig {
        &self.common.config
    }

    /// The hosts that each language installs packages from.
    pub(crate) fn registries(&self) -> &Registries {
        &self.common.host.registries
    }

    /// What was found on this machine.
    #[must_use]
    pub fn facts(&self) -> &Facts {
        &self.common.host.facts
    }

    /// Boots a VM. Dropping the future ends what has been made of it.
    ///
    /// # Errors
    /// `spec` is invalid, there is no room, or the VM did not come up; see [`ErrorKind`].
    pub async fn create_vm(&self, spec: VmSpec) -> Result<QemuVm, Error> {
        let spec = spec.validate(&self.common.config, &self.common.host.registries)?;
        self.create(spec, &CancellationToken::new()).await
    }

    /// Refuses new VMs, ends all there are, executions under way with [`ErrorKind::Closed`], and waits until every VM is confirmed
    /// dead.
    ///
    /// # Errors
    /// [`ErrorKind::Teardown`] if one is not within 30 s.
    pub async fn close(&self) -> Result<(), Error> {
        let Common { host, alive, closing, .. } = &self.common;
        self.admission.close();
        closing.cancel();
        alive.close();
        let ended = tokio::time::timeout(CLOSE_PATIENCE, alive.wait()).await;
        if let Some(snapshots) = &host.snapshots {
            snapshots.settle().await;
        }
        if let Some(shared) = &host.shared {
            shared.settle().await;
        }
        ended.map_err(|_elapsed| {
            let message = format!("closing the scheduler: {} VMs are not confirmed dead", alive.len());
            Error::new(ErrorKind::Teardown, message).remedied_by("sbx ps shows what is left")
        })
    }

    /// Boots a VM that has been checked. Called `off`, it returns when nothing is left of what was made.
    pub(crate) async fn create(&self, spec: ValidVm, off: &CancellationToken) -> Result<QemuVm, Error> {
        // Before the look at `closing`, so that whoever closes waits for a call that has looked before.
        let _alive = self.common.alive.token();
        tokio::select! {
            biased;
            // What is dropped here abandons its VM.
            () = self.common.closing.cancelled() => {
                Err(Error::new(ErrorKind::Closed, "creating a VM: the scheduler has been closed"))
            }
            vm = self.prepare_and_boot(spec, off) => vm,
        }
    }

    /// Finds or makes the layer of the VM's packages first.
    async fn prepare_and_boot(&self, mut spec: ValidVm, off: &CancellationToken) -> Result<QemuVm, Error> {
        let Some(set) = &spec.packages else { return self.admit_and_boot(spec, off).await };
        let begun = Instant::now();
        let workshop = Workshop { common: self.common.clone(), admission: self.admission.clone() };
        let layer = tokio::select! {
            layer = self.common.host.layers.get(set, &workshop, spec.progress.take()) => layer?,
            () = off.cancelled() => return Err(called_off()),
        };
        spec.layer = Some(layer);
        let took = begun.elapsed();
        let mut vm = self.admit_and_boot(spec, off).await?;
        vm.note_packages(Some(took));
        Ok(vm)
    }

    async fn admit_and_boot(&self, spec: ValidVm, off: &CancellationToken) -> Result<QemuVm, Error> {
        if spec.network.is_some() {
            // Before it waits for memory: without a gateway there will be no such VM.
            let host = Arc::clone(&self.common.host);
            host::blocking("finding the gateway", move || host.gateway().map(drop)).await?;
        }
        if let Some(pool) = &self.pool
            && let Some(vm) = pool.take(&spec, off).await?
        {
            return Ok(vm);
        }
        let charged = Charged { memory_mib: spec.memory_mib, has_network: spec.network.is_some() };
        let permit = tokio::select! {
            permit = self.admit(charged) => permit?,
            () = off.cancelled() => return Err(called_off()),
        };
        QemuVm::boot(&self.common, spec, permit, off).await
    }

    /// Waits for memory and CPU; what the pool keeps makes room for whoever waits for memory.
    async fn admit(&self, charged: Charged) -> Result<Permit, Error> {
        let mut admitted = pin!(self.admission.admit(charged, Priority::Normal));
        let Some(pool) = &self.pool else { return admitted.await };
        let mut pause = PRESSURE_LOOK;
        loop {
            tokio::select! {
                biased;
                permit = &mut admitted => return permit,
                () = sleep(pause) => {}
            }
            let in_vain = self.admission.is_short_of_memory() && !pool.give_up_one();
            pause = if in_vain { PRESSURE_REST } else { PRESSURE_LOOK };
        }
    }

    /// Waits until the pool is full: at once if there is none.
    pub(crate) async fn wait_pool_ready(&self, patience: Duration) -> Result<(), Error> {
        match &self.pool {
            Some(pool) => pool.wait_until_full(patience).await,
            None => Ok(()),
        }
    }
}

/// Clears up after processes that are gone, and finds what VMs are made of.
async fn examine(settings: Settings) -> Result<Host, Error> {
    host::blocking("examining this machine", move || {
        let reaped = run_dir::reap(&settings.run_dir)
            .map_err(|error| Error::new(ErrorKind::Host, "clearing up after earlier processes").because(error))?;
        if !reaped.removed.is_empty() {
            info!(vms = ?reaped.removed, ended = reaped.ended.len(), "cleared up after processes that are gone");
        }
        Host::examine(&settings)
    })
    .await
}

#[cfg(test)]
mod tests;
