//! A VM, as the scheduler sees it: a mailbox of the one task that owns it.

mod channel;
mod execution;
mod instance;
mod monitor;
mod phases;
#[cfg(test)]
mod pretend;
mod supervisor;

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};
use tokio_util::task::TaskTracker;

pub(crate) use execution::Ran;

use crate::{
    Error, ErrorKind, Language, Output, admission::Permit, host::Host, process::ChildUsage, request::ValidRequest,
};

/// What makes one VM different from the next.
#[derive(Debug)]
pub(crate) struct VmSpec {
    pub(crate) id: String,
    pub(crate) memory_mib: u32,
    /// What it is made for, for whoever looks at it from outside.
    pub(crate) language: Language,
    /// Where the guest's console goes; without it the guest has none.
    pub(crate) boot_log: Option<mpsc::Sender<Output>>,
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
    pub(crate) dispatched: Instant,
    pub(crate) first_output: Option<Instant>,
    pub(crate) finished: Instant,
}

/// What a VM's owner is asked.
#[derive(Debug)]
pub(crate) enum Request {
    Execute {
        request: Box<ValidRequest>,
        output: Option<mpsc::Sender<Output>>,
        reply: oneshot::Sender<Result<Executed, Error>>,
    },
    Destroy {
        reply: oneshot::Sender<Result<Option<ChildUsage>, Error>>,
    },
}

/// A handle on a VM. Dropped, the VM is torn down by its owner.
#[derive(Debug)]
pub(crate) struct Vm {
    id: String,
    mailbox: mpsc::Sender<Request>,
}

impl Vm {
    /// Boots a VM; its owner is a task of `tracker`.
    pub(crate) async fn boot(
        host: Arc<Host>,
        spec: VmSpec,
        permit: Permit,
        tracker: &TaskTracker,
    ) -> Result<(Self, Booted), Error> {
        let id = spec.id.clone();
        let (mailbox, requests) = mpsc::channel(1);
        let (booted, answer) = oneshot::channel();
        tracker.spawn(supervisor::supervise(host, spec, permit, requests, booted));
        let booted = answer.await.map_err(|_gone| gone(&id))??;
        Ok((Self { id, mailbox }, booted))
    }

    /// Runs one program. Dropping the future ends the VM.
    pub(crate) async fn execute(
        &self,
        request: ValidRequest,
        output: Option<mpsc::Sender<Output>>,
    ) -> Result<Executed, Error> {
        let (reply, answer) = oneshot::channel();
        let request = Request::Execute { request: Box::new(request), output, reply };
        self.mailbox.send(request).await.map_err(|_closed| gone(&self.id))?;
        // The owner answers every request, so this one has panicked, and nobody knows how far it had come.
        answer.await.map_err(|_panicked| {
            Error::new(ErrorKind::OutcomeUnknown, "waiting for the program's end; it may have run").on_vm(&self.id)
        })?
    }

    /// Ends the VM; returns when its process is confirmed dead and its files are gone. `None`: what it used is not known.
    pub(crate) async fn destroy(self) -> Result<Option<ChildUsage>, Error> {
        let (reply, answer) = oneshot::channel();
        // The owner leaves only when the VM is dead, so an owner who is gone is an answer too.
        if self.mailbox.send(Request::Destroy { reply }).await.is_err() {
            return Ok(None);
        }
        answer.await.unwrap_or(Ok(None))
    }
}

/// The VM ended before the request reached it.
fn gone(vm_id: &str) -> Error {
    Error::new(ErrorKind::Vm, "using a VM that has ended").on_vm(vm_id)
}

/// What a guest or QEMU says to people: at most `most` characters, and none that steers a terminal.
fn printable(text: &str, most: usize) -> String {
    let keep = |c: char| if c.is_control() && c != '\n' { char::REPLACEMENT_CHARACTER } else { c };
    text.chars().take(most).map(keep).collect()
}
