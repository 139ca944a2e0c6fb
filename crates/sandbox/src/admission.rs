//! Admission: memory and CPU for a VM, granted in the order of asking.
//!
//! Both ledgers are first come, first served, with exact sizes: a large request is not overtaken for ever by small ones. The
//! permit is kept until the VM's death is confirmed.

use std::{sync::Arc, time::Duration};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{Error, ErrorKind};

/// How long a request waits for its turn.
const PATIENCE: Duration = Duration::from_secs(120);

/// What QEMU itself needs beside the guest's memory, in MiB: its code, its translation buffer's used part, its buffers.
const QEMU_OVERHEAD_MIB: u32 = 64;

/// The host's memory and CPU that VMs may use.
#[derive(Debug)]
pub(crate) struct Admission {
    memory: Arc<Semaphore>,
    memory_mib: u32,
    cpu: Arc<Semaphore>,
}

/// The right to have one VM. Given back when dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    _memory: OwnedSemaphorePermit,
    _cpu: OwnedSemaphorePermit,
}

impl Admission {
    /// Ledgers for `memory_mib` of memory and `slots` VMs that boot or execute at once.
    pub(crate) fn new(memory_mib: u32, slots: usize) -> Self {
        Self {
            memory: Arc::new(Semaphore::new(memory_mib as usize)),
            memory_mib,
            cpu: Arc::new(Semaphore::new(slots.max(1))),
        }
    }

    /// Waits for a VM of `memory_mib`.
    pub(crate) async fn admit(&self, memory_mib: u32) -> Result<Permit, Error> {
        let wanted = memory_mib.saturating_add(QEMU_OVERHEAD_MIB);
        if wanted > self.memory_mib {
            let message = format!(
                "admitting a VM of {memory_mib} MiB: with QEMU's own {QEMU_OVERHEAD_MIB} MiB it is over the {} MiB that VMs may use here",
                self.memory_mib
            );
            return Err(Error::new(ErrorKind::Capacity, message).remedied_by("ask for less memory"));
        }
        let both = async {
            let memory = Arc::clone(&self.memory).acquire_many_owned(wanted).await;
            let cpu = Arc::clone(&self.cpu).acquire_owned().await;
            (memory, cpu)
        };
        match tokio::time::timeout(PATIENCE, both).await {
            Ok((Ok(memory), Ok(cpu))) => Ok(Permit { _memory: memory, _cpu: cpu }),
            Ok(_closed) => Err(Error::new(ErrorKind::Closed, "admitting a VM: the scheduler has been closed")),
            Err(_elapsed) => {
                let message =
                    format!("admitting a VM of {memory_mib} MiB: nothing became free in {} s", PATIENCE.as_secs());
                Err(Error::new(ErrorKind::Capacity, message).remedied_by("try again later, or run fewer at once"))
            }
        }
    }

    /// Refuses everyone who waits and everyone who comes.
    pub(crate) fn close(&self) {
        self.memory.close();
        self.cpu.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_permit_is_free_again_when_it_is_dropped() {
        let admission = Admission::new(2 * (128 + QEMU_OVERHEAD_MIB), 8);
        let first = admission.admit(128).await.expect("there is room");
        let _second = admission.admit(128).await.expect("there is room");
        let refused = admission.admit(128).await.expect_err("there is none, and nobody leaves");
        assert_eq!(refused.kind(), ErrorKind::Capacity);
        drop(first);
        admission.admit(128).await.expect("there is room again");
    }

    #[tokio::test(start_paused = true)]
    async fn what_can_never_fit_is_refused_at_once() {
        let admission = Admission::new(1024, 1);
        let before = tokio::time::Instant::now();
        assert_eq!(admission.admit(1024).await.expect_err("it is too large").kind(), ErrorKind::Capacity);
        assert_eq!(before.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_small_request_does_not_overtake_a_large_one() {
        let admission = Arc::new(Admission::new(1000, 8));
        let holder = admission.admit(500).await.expect("there is room");
        let large = tokio::spawn({
            let admission = Arc::clone(&admission);
            async move { admission.admit(700).await.map(drop) }
        });
        tokio::task::yield_now().await;
        let small = tokio::spawn({
            let admission = Arc::clone(&admission);
            async move { admission.admit(128).await.map(drop) }
        });
        tokio::task::yield_now().await;
        assert!(!small.is_finished(), "it waits behind the large one, though it would fit");
        drop(holder);
        large.await.expect("no panic").expect("it is admitted");
        small.await.expect("no panic").expect("it is admitted");
    }

    #[tokio::test(start_paused = true)]
    async fn a_closed_ledger_sends_everyone_away() {
        let admission = Admission::new(1000, 1);
        admission.close();
        assert_eq!(admission.admit(128).await.expect_err("it is closed").kind(), ErrorKind::Closed);
    }
}
