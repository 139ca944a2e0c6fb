//! A VM's life, as the one task that owns it lives it: it comes up, is served, and is buried.

use std::{sync::Arc, time::Duration};

use tokio::sync::oneshot;
use tracing::debug;

use super::{
    BootTiming, Booted,
    grave::{self, Dying},
    instance::Instance,
    ladder::Climb,
    phases::{BootError, Failed, Live, Ready},
    supervisor::{Desk, Supervisor},
    traffic::Network,
};
use crate::{Error, admission::Permit, host::Host, request::ValidVm};

/// Boots a VM, serves its mailbox, and ends it. The permit is released only when it is dead.
pub(super) async fn supervise(
    host: Arc<Host>,
    spec: (String, ValidVm),
    permit: Permit,
    mut desk: Desk,
    booted: oneshot::Sender<Result<Booted, Error>>,
) {
    let idle_timeout = spec.1.idle_timeout;
    let (vm_id, came_up) = boot(host, spec, permit.waited(), booted).await;
    let (instance, permit, dying) = match came_up {
        Ok(live) => {
            permit.booted();
            Supervisor::new(vm_id.clone(), live, permit, idle_timeout).serve(&mut desk).await
        }
        Err(None) => return,
        Err(Some(instance)) => (instance, permit, Dying::at_once()),
    };
    grave::bury(instance, &vm_id, dying, &mut desk).await;
    drop(permit);
}

/// Brings it up, and tells the caller how that went. Returns its name, and as an error what is left to tear down.
async fn boot(
    host: Arc<Host>,
    (vm_id, spec): (String, ValidVm),
    admission: Duration,
    mut booted: oneshot::Sender<Result<Booted, Error>>,
) -> (String, Result<Live, Option<Instance>>) {
    let mut climb = Climb { host: &host, vm_id, spec: &spec, wanted: &mut booted };
    let (came_up, vm_id) = (climb.up().await, climb.vm_id);
    let came_up = match came_up {
        Ok((Ready { live, born, .. }, timing)) => {
            let timing = BootTiming { admission, ..timing };
            debug!(vm_id, pid = born.process.pid(), ?timing, "booted");
            let network = live.instance.gateway().and_then(|gateway| Network::of(gateway, born.ports).ok());
            // A caller who has gone meanwhile has dropped the mailbox too, and the supervisor will see that.
            let _ = booted.send(Ok(Booted { id: vm_id.clone(), timing, process: born.process, network }));
            Ok(live)
        }
        Err(Failed { error, mut instance }) => {
            let pid = instance.as_ref().map(Instance::pid);
            debug!(vm_id, pid, error = &error as &dyn std::error::Error, "did not boot");
            // The caller gets an error once nothing is left, so that a retry does not meet what failed.
            if let Some(dying) = &mut instance
                && dying.tear_down().await.is_ok()
            {
                instance = None;
            }
            if !matches!(error, BootError::Abandoned) {
                let _ = booted.send(Err(error.into_error(&vm_id)));
            }
            Err(instance)
        }
    };
    (vm_id, came_up)
}
