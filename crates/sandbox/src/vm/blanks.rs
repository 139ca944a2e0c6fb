//! Blanks: QEMUs that have been started and wait to be told whose guest they are to run.
//!
//! They know no language and no snapshot, only how much memory their guest will have, so one stock of them serves all. Each has a run
//! directory like a VM's, and the id in its name is that of the VM it becomes.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use super::{
    instance::Instance,
    phases::{BootError, Connected, Failed, Life, Outline, Prepared},
};
use crate::{
    Error,
    admission::Permit,
    host::{self, Host},
};

/// A stock of blanks of one size.
#[derive(Debug)]
pub(crate) struct Blanks {
    /// As many are kept.
    most: usize,
    memory_mib: u32,
    /// None, once no more are to wait.
    waiting: Mutex<Option<VecDeque<Blank>>>,
    /// Rung when one is taken or given up.
    bell: Arc<Notify>,
}

/// A QEMU that waits.
#[derive(Debug)]
pub(super) struct Blank {
    pub(super) vm_id: String,
    pub(super) connected: Connected,
    /// For what it takes while it waits; whoever takes it has one for what it will take.
    _permit: Permit,
}

impl Blanks {
    /// Up to `most` for guests of `memory_mib`.
    pub(crate) fn new(most: usize, memory_mib: u32, bell: Arc<Notify>) -> Self {
        Self { most, memory_mib, waiting: Mutex::new(Some(VecDeque::new())), bell }
    }

    /// Whether there are less than there should be.
    pub(crate) fn are_lacking(&self) -> bool {
        self.waiting().as_ref().is_some_and(|waiting| waiting.len() < self.most)
    }

    /// Starts one more. To be waited for: one that is being started when this is dropped lives on for a moment.
    pub(crate) async fn add(&self, host: &Arc<Host>, permit: Permit) -> Result<(), Error> {
        let vm_id = host::new_vm_id();
        match self.start(host, &vm_id).await {
            Ok(connected) => {
                let mut permit = permit;
                permit.booted();
                permit.give_back_cpu();
                debug!(vm_id, memory_mib = self.memory_mib, "a QEMU waits for its guest");
                let blank = Blank { vm_id, connected, _permit: permit };
                let too_late = match &mut *self.waiting() {
                    Some(waiting) => {
                        waiting.push_back(blank);
                        None
                    }
                    None => Some(blank),
                };
                if let Some(Blank { vm_id, connected, .. }) = too_late {
                    end(&vm_id, connected.into_instance()).await;
                }
                Ok(())
            }
            Err(Failed { error, instance }) => {
                if let Some(instance) = instance {
                    end(&vm_id, instance).await;
                }
                Err(error.into_error(&vm_id))
            }
        }
    }

    /// One that lives, for a guest of `memory_mib`.
    pub(super) async fn take(&self, memory_mib: u32) -> Option<Blank> {
        if memory_mib != self.memory_mib {
            return None;
        }
        loop {
            let mut blank = self.waiting().as_mut()?.pop_front()?;
            self.bell.notify_one();
            if !blank.connected.has_ended().await {
                return Some(blank);
            }
            let Blank { vm_id, connected, .. } = blank;
            warn!(vm_id, "a QEMU ended while it waited for its guest");
            end(&vm_id, connected.into_instance()).await;
        }
    }

    /// Lets the oldest go, for its memory is needed; one of those `alive` ends it. `false`: there is none.
    pub(crate) fn give_up_one(&self, alive: &TaskTracker) -> bool {
        let Some(Blank { vm_id, connected, _permit: permit }) = self.waiting().as_mut().and_then(VecDeque::pop_front)
        else {
            return false;
        };
        debug!(vm_id, "a QEMU without a guest makes room");
        let bell = Arc::clone(&self.bell);
        alive.spawn(async move {
            end(&vm_id, connected.into_instance()).await;
            drop(permit);
            bell.notify_one();
        });
        true
    }

    /// Ends all of them, and whatever comes afterwards.
    pub(crate) async fn clear(&self) {
        let all = self.waiting().take();
        for Blank { vm_id, connected, .. } in all.into_iter().flatten() {
            end(&vm_id, connected.into_instance()).await;
        }
    }

    async fn start(&self, host: &Arc<Host>, vm_id: &str) -> Result<Connected, Failed> {
        let outline = Outline::blank(host, self.memory_mib);
        let prepared = Prepared::new(Arc::clone(host), vm_id.to_owned(), outline, Life::Blank).await;
        let prepared = prepared.map_err(|error: BootError| Failed { error, instance: None })?;
        prepared.spawn().await?.connect().await
    }

    fn waiting(&self) -> MutexGuard<'_, Option<VecDeque<Blank>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn end(vm_id: &str, mut instance: Instance) {
    if let Err(error) = instance.tear_down().await {
        warn!(vm_id, error = &error as &dyn std::error::Error, "the teardown is not complete");
    }
}
