//! Restoring: a QEMU that has made no machine yet is given the memory and the state of a guest that was saved.
//!
//! The guest goes on where the other was halted, with an agent that thinks of the host that was there then. So the host speaks first: its
//! hello has a seed, by which the agent learns that its guest is a copy, and the agent's hello is the answer to that: nothing runs
//! before it, and nothing in an interpreter that has not taken a seed of its own. From there on the VM is one like any other.

use std::{io, os::fd::OwnedFd, time::Duration};

use exec_sandbox_qemu::qmp;
use exec_sandbox_wire::{CONNECTION_OP, Hello, HostMessage, limits::SEED_BYTES};
use rustix::rand::{GetRandomFlags, getrandom};
use tokio::{
    sync::oneshot,
    time::{Instant, sleep_until},
};

use super::{BootError, Connected, Failed, died, host_hello, lost, prepare::memory_path};
use crate::{process::nameless_file, snapshot::Template, vm::monitor::MonitorError};

impl Connected {
    /// Makes it a copy of the guest that `template` was made of, whose first answer is waited for so long.
    pub(in crate::vm) async fn restore<T>(
        mut self,
        template: &Template,
        patience: Duration,
        wanted: &mut oneshot::Sender<T>,
    ) -> Result<Self, Failed> {
        self.patience = self.patience.min(patience);
        self.deadline = Instant::now() + self.patience;
        match self.load(template, wanted).await {
            Ok(()) => Ok(self),
            Err(error) => Err(Failed { error, instance: Some(self.instance) }),
        }
    }

    /// Has a QEMU that waits make the machine and boot, with the translations of this name if they are still there.
    pub(in crate::vm) async fn boot<T>(
        mut self,
        translations: &str,
        wanted: &mut oneshot::Sender<T>,
    ) -> Result<Self, Failed> {
        match self.order(qmp::boot(memory_path(translations)), None, wanted).await {
            Ok(()) => Ok(self),
            Err(error) => Err(Failed { error, instance: Some(self.instance) }),
        }
    }

    async fn load<T>(&mut self, template: &Template, wanted: &mut oneshot::Sender<T>) -> Result<(), BootError> {
        // Not in a pipe: those of a user have little room when there are many.
        let state =
            template.state().and_then(|state| nameless_file("guest-state", &state)).map_err(BootError::Prepare)?;
        let memory = template.memory_name().map_err(BootError::Prepare)?;
        let translations = template.translations_name().map_err(BootError::Prepare)?;
        let translations = translations.as_deref().map(memory_path);
        let commands = qmp::restore(memory_path(&memory), template.memory_mib(), translations);
        // Queued before anything runs. It is read when the guest goes on.
        self.channel.send(&HostMessage::Hello(hello_of_a_copy()?).into_frame(CONNECTION_OP))?;
        self.order(commands, Some(state), wanted).await
    }

    async fn order<T>(
        &mut self,
        commands: impl Into<Vec<qmp::Command>> + Send,
        descriptor: Option<OwnedFd>,
        wanted: &mut oneshot::Sender<T>,
    ) -> Result<(), BootError> {
        let orders = self.instance.orders()?;
        let answered = tokio::select! {
            biased;
            () = wanted.closed() => return Err(BootError::Abandoned),
            () = sleep_until(self.deadline) => return Err(BootError::TimedOut { patience: self.patience }),
            answered = orders.give(commands, descriptor) => answered,
            death = self.instance.death() => return Err(died(&mut self.instance, death).await),
        };
        match answered {
            Ok(_value) => Ok(()),
            Err(error @ MonitorError::Closed) => Err(lost(&mut self.instance, error.into()).await),
            Err(refused) => Err(refused.into()),
        }
    }
}

/// What makes a copy of a guest a machine of its own.
pub(in crate::vm) fn hello_of_a_copy() -> Result<Hello, BootError> {
    let mut seed = vec![0; SEED_BYTES];
    let drawn = getrandom(&mut seed[..], GetRandomFlags::empty()).map_err(|errno| BootError::Prepare(errno.into()))?;
    if drawn != SEED_BYTES {
        return Err(BootError::Prepare(io::ErrorKind::UnexpectedEof.into()));
    }
    Ok(Hello { seed, ..host_hello(Vec::new()) })
}
