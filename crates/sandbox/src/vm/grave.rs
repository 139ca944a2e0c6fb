//! The end of a VM: from the wish that it ends until its death is confirmed and all that it had is given back.
//!
//! A VM is disposable, so it is killed at once unless somebody wants QEMU to end by itself first. Whoever asks meanwhile joins the
//! one teardown, and a wish for an end at once hurries it. A process that does not die is reported to everyone who waits, and
//! killed again until it does: nothing that it holds is given back before.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use tokio::{
    sync::oneshot,
    time::{Instant, sleep_until},
};
use tracing::{debug, warn};

use super::{
    Ending, Request, gone,
    instance::{Instance, TeardownError},
    supervisor::Desk,
};
use crate::{Error, ErrorKind, process::ChildUsage};

/// How often a process that does not die is killed again.
const RETRY_TEARDOWN: Duration = Duration::from_secs(1);

/// Why a VM ended that nobody ended.
pub(super) const LOST: &str = "it was lost";

/// What a caller who asked for the end is told of it. `None`: it is dead, and what it used is not known.
pub(super) type DestroyReply = oneshot::Sender<Result<Option<ChildUsage>, Error>>;

/// What is left of a VM, for whoever asks afterwards.
#[derive(Debug, Default)]
pub(super) struct Grave {
    why: OnceLock<&'static str>,
    used: OnceLock<Option<ChildUsage>>,
}

impl Grave {
    /// The VM is to end.
    pub(super) fn begin(&self, why: &'static str) {
        let _ = self.why.set(why);
    }

    /// Why the VM ends or has ended; `None`: it does not.
    pub(super) fn why(&self) -> Option<&'static str> {
        self.why.get().copied()
    }

    /// What it used, once it is dead and if that is known.
    pub(super) fn used(&self) -> Option<ChildUsage> {
        self.used.get().copied().flatten()
    }
}

/// A VM that is to end: how, and who waits for it.
#[derive(Debug)]
pub(super) struct Dying {
    ending: Ending,
    waiting: Vec<DestroyReply>,
}

impl Dying {
    /// Nobody waits.
    pub(super) fn at_once() -> Self {
        Self { ending: Ending::AtOnce, waiting: Vec::new() }
    }

    pub(super) fn asked(ending: Ending, reply: DestroyReply) -> Self {
        Self { ending, waiting: vec![reply] }
    }

    /// Answers a letter that came too late for anything but the end.
    fn join(&mut self, request: Request, gone: impl FnOnce() -> Error) {
        match request {
            Request::Destroy { ending, reply } => {
                self.waiting.push(reply);
                if ending == Ending::AtOnce {
                    self.ending = ending;
                }
            }
            Request::Execute { outlet, .. } => outlet.end(Err(gone())),
            Request::File { outlet, .. } => outlet.end(Err(gone())),
            // Whose answer is dropped sees that the VM is gone.
            Request::Interfere { .. } | Request::Ping { .. } | Request::Claim { .. } => {}
            Request::OpenChannel { reply } => drop(reply.send(Err(gone()))),
            Request::CloseChannel { reply } => drop(reply.send(())),
        }
    }
}

/// Dying, until dead. Whoever asked is told of the first try, as is who asks meanwhile; this task keeps trying.
pub(super) async fn bury(mut instance: Instance, vm_id: &str, mut dying: Dying, desk: &mut Desk) {
    if let Ending::Gently { patience } = dying.ending {
        ask_to_end(&mut instance, vm_id, patience, &mut dying, desk).await;
    }
    let mut marked = false;
    loop {
        let result = instance.tear_down().await.map_err(Arc::new);
        if let Err(error) = &result {
            warn!(vm_id, error = error as &dyn std::error::Error, "the teardown is not complete");
        }
        let is_dead = !result.as_ref().is_err_and(|error| error.leaves_a_process());
        if is_dead {
            let _ = desk.grave.used.set(result.as_ref().ok().copied().flatten());
            desk.mailbox.close();
        } else if !marked {
            marked = true;
            instance.mark_undead();
        }
        // A mailbox that is closed is emptied to the last letter on its way.
        while let Some(request) = if is_dead { desk.mailbox.recv().await } else { desk.mailbox.try_recv().ok() } {
            dying.join(request, || gone(vm_id, &desk.closing));
        }
        for reply in dying.waiting.drain(..) {
            let _ = reply.send(result.clone().map_err(|error| incomplete(error, vm_id)));
        }
        if is_dead {
            return;
        }
        tokio::time::sleep(RETRY_TEARDOWN).await;
    }
}

/// Gives QEMU the time to end by itself, until it has or somebody is in more of a hurry.
async fn ask_to_end(instance: &mut Instance, vm_id: &str, patience: Duration, dying: &mut Dying, desk: &mut Desk) {
    if let Err(error) = instance.terminate() {
        debug!(vm_id, %error, "QEMU cannot be asked to end");
        return;
    }
    let (deadline, mut is_open) = (Instant::now() + patience, true);
    while dying.ending != Ending::AtOnce {
        tokio::select! {
            biased;
            _ended = instance.ended() => return,
            () = sleep_until(deadline) => return,
            request = desk.mailbox.recv(), if is_open => match request {
                Some(request) => dying.join(request, || gone(vm_id, &desk.closing)),
                None => is_open = false,
            },
        }
    }
}

fn incomplete(error: Arc<TeardownError>, vm_id: &str) -> Error {
    Error::new(ErrorKind::Teardown, "ending a VM")
        .because(error)
        .on_vm(vm_id)
        .remedied_by("sbx ps shows what is left; its owner keeps trying, and sbx gc ends what has no owner any more")
}
