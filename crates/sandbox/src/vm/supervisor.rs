//! The supervisor: the one task that owns a VM, from before its process exists until after its death is confirmed.
//!
//! ```text
//! Booting ─▶ Ready ⇄ Busy ─▶ Dying ─▶ Dead
//!    └──────────┴──────┴───────▲          callers hold a mailbox; one that is dropped means "abandon"
//! ```
//!
//! It is never cancelled. The state is Busy before the first byte of an execution leaves, and that is the retry contract: a VM
//! lost before it is transient, a VM lost after it leaves the outcome unknown.

use std::{io, sync::Arc, time::Duration};

use exec_sandbox_wire::limits::{HOST_SLACK, INTERPRETER_START};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep_until},
};
use tracing::{debug, warn};

use super::{
    Booted, Executed, Request, VmSpec,
    channel::{Channel, ChannelError},
    execution::{Execution, Finished, Violation},
    instance::{Instance, Obituary, TeardownError},
    phases::{BootError, Failed, Prepared, Ready},
};
use crate::{
    Error, ErrorKind, Output,
    admission::Permit,
    host::Host,
    process::{ChildUsage, Ended},
    request::ValidRequest,
};

/// How often a process that does not die is killed again.
const RETRY_TEARDOWN: Duration = Duration::from_secs(1);

/// A VM with an agent that answers.
struct Supervisor {
    vm_id: String,
    instance: Instance,
    channel: Channel,
    next_op: u32,
}

/// Why an execution that was sent did not come to an end.
#[derive(Debug, thiserror::Error)]
enum Lost {
    #[error(transparent)]
    QemuEnded(#[from] Obituary),
    #[error("waiting for QEMU's process")]
    Wait(#[source] io::Error),
    #[error(transparent)]
    Channel(ChannelError),
    #[error(transparent)]
    Dishonest(#[from] Violation),
    #[error("the agent did not report the end of the program in time")]
    Overdue,
    #[error("the caller is gone")]
    Abandoned,
}

/// Boots a VM, serves its mailbox, and ends it. The permit is released only when it is dead.
pub(super) async fn supervise(
    host: Arc<Host>,
    spec: VmSpec,
    permit: Permit,
    mut mailbox: mpsc::Receiver<Request>,
    booted: oneshot::Sender<Result<Booted, Error>>,
) {
    let vm_id = spec.id.clone();
    let (instance, answer) = match boot(&host, spec, booted).await {
        Ok(supervisor) => supervisor.serve(&mut mailbox).await,
        Err(None) => return,
        Err(Some(instance)) => (instance, None),
    };
    bury(instance, &vm_id, answer, &mut mailbox).await;
    drop(permit);
}

/// The phases in order, and the caller told how they went. `Err` is what is left to tear down.
async fn boot(
    host: &Host,
    spec: VmSpec,
    mut booted: oneshot::Sender<Result<Booted, Error>>,
) -> Result<Supervisor, Option<Instance>> {
    let vm_id = spec.id.clone();
    let begun = Instant::now();
    let prepared = Prepared::new(host, spec);
    let spawning = Instant::now();
    let ready = async {
        let prepared = prepared.map_err(|error| Failed { error, instance: None })?;
        prepared.spawn().await?.connect().await?.greet(&mut booted).await
    };
    match ready.await {
        Ok(Ready { instance, channel, spawned_at, ready_at }) => {
            let times =
                Booted { prepare: spawning - begun, spawn: spawned_at - spawning, guest_wait: ready_at - spawned_at };
            debug!(vm_id, ?times, "booted");
            // A caller who has gone meanwhile has dropped the mailbox too, and the supervisor will see that.
            let _ = booted.send(Ok(times));
            Ok(Supervisor { vm_id, instance, channel, next_op: 1 })
        }
        Err(Failed { error, mut instance }) => {
            debug!(vm_id, %error, "did not boot");
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
    }
}

/// What a caller who asked for the end is told of it.
type DestroyReply = oneshot::Sender<Result<ChildUsage, Error>>;

impl Supervisor {
    /// Serves requests until the VM is to end. Returns what is to be torn down and who waits for it.
    async fn serve(mut self, mailbox: &mut mpsc::Receiver<Request>) -> (Instance, Option<DestroyReply>) {
        loop {
            let request = tokio::select! {
                biased;
                // The guest's events come before the callers' wishes.
                ended = self.instance.ended() => {
                    self.report_end(ended).await;
                    break;
                }
                message = self.channel.next() => match message {
                    Ok((op, message)) => {
                        debug!(vm_id = self.vm_id, op, ?message, "nobody waits for this");
                        continue;
                    }
                    Err(error) => {
                        warn!(vm_id = self.vm_id, %error, "the agent is lost");
                        break;
                    }
                },
                request = mailbox.recv() => request,
            };
            match request {
                None => break,
                Some(Request::Destroy { reply }) => return (self.instance, Some(reply)),
                Some(Request::Execute { request, output, reply }) => {
                    if self.execute(&request, output, reply).await.is_err() {
                        break;
                    }
                }
            }
        }
        (self.instance, None)
    }

    async fn report_end(&mut self, ended: io::Result<Ended>) {
        match ended {
            Ok(ended) => {
                let obituary = self.instance.obituary(ended).await;
                warn!(vm_id = self.vm_id, %obituary, "the VM is gone");
            }
            Err(error) => warn!(vm_id = self.vm_id, %error, "QEMU's process cannot be waited for"),
        }
    }

    /// One execution, answered. `Err`: the VM cannot be used any more.
    async fn execute(
        &mut self,
        request: &ValidRequest,
        output: Option<mpsc::Sender<Output>>,
        mut reply: oneshot::Sender<Result<Executed, Error>>,
    ) -> Result<(), ()> {
        match self.run(request, output, &mut reply).await {
            Ok(executed) => {
                let _ = reply.send(executed);
                Ok(())
            }
            Err(lost) => {
                let error = Error::new(ErrorKind::OutcomeUnknown, "waiting for the program's end; it may have run")
                    .because(lost)
                    .on_vm(&self.vm_id);
                let _ = reply.send(Err(error));
                Err(())
            }
        }
    }

    /// Busy: from the first frame to the terminal one.
    async fn run(
        &mut self,
        request: &ValidRequest,
        mut output: Option<mpsc::Sender<Output>>,
        reply: &mut oneshot::Sender<Result<Executed, Error>>,
    ) -> Result<Result<Executed, Error>, Lost> {
        let op = self.next_op;
        self.next_op = self.next_op.wrapping_add(1).max(1);
        let dispatched = Instant::now();
        let deadline = dispatched + INTERPRETER_START + request.timeout + HOST_SLACK;
        let (mut execution, frames) = Execution::start(op, request);
        for frame in &frames {
            self.channel.send(frame).map_err(Lost::Channel)?;
        }
        let (mut first_output, mut deaf) = (None, false);
        loop {
            // A caller who stops listening does not stop the program.
            if output.is_none() || deaf {
                output = None;
                self.deliver(&mut execution, None)?;
            }
            if execution.is_over() {
                break;
            }
            tokio::select! {
                biased;
                message = self.channel.next() => match message {
                    Ok((from, message)) if from == op => {
                        execution.on_message(message)?;
                        if execution.has_output() {
                            first_output.get_or_insert_with(Instant::now);
                        }
                    }
                    Ok(_other) => {}
                    Err(ChannelError::Closed | ChannelError::Io(_)) => {
                        let ended = tokio::time::timeout_at(deadline, self.instance.ended()).await;
                        return Err(self.lost(ended.unwrap_or_else(|_elapsed| Err(io::ErrorKind::TimedOut.into()))).await);
                    }
                    Err(error) => return Err(Lost::Channel(error)),
                },
                ended = self.instance.ended() => return Err(self.lost(ended).await),
                permit = reserve(output.as_ref()), if output.is_some() && execution.has_output() => match permit {
                    Some(permit) => self.deliver(&mut execution, Some(permit))?,
                    None => deaf = true,
                },
                () = reply.closed() => return Err(Lost::Abandoned),
                () = sleep_until(deadline) => return Err(Lost::Overdue),
            }
        }
        let finished = Instant::now();
        let Some((outcome, ack)) = execution.into_finished() else { return Err(Lost::Overdue) };
        self.channel.send(&ack).map_err(Lost::Channel)?;
        Ok(match outcome {
            Finished::Ran(ran) => Ok(Executed { ran, dispatched, first_output, finished }),
            Finished::Refused(refused) => Err(Error::new(ErrorKind::Guest, "starting the program in the guest")
                .because(refused.detail)
                .on_vm(&self.vm_id)),
        })
    }

    /// Hands output to the caller: one piece under a permit, or all of it to nobody. The delivery grants the guest more.
    fn deliver(&mut self, execution: &mut Execution, permit: Option<mpsc::Permit<'_, Output>>) -> Result<(), Lost> {
        let mut permit = permit;
        while let Some((piece, grant)) = execution.deliver() {
            if let Some(grant) = grant {
                self.channel.send(&grant).map_err(Lost::Channel)?;
            }
            if let Some(permit) = permit.take() {
                permit.send(piece);
                break;
            }
        }
        Ok(())
    }

    async fn lost(&mut self, ended: io::Result<Ended>) -> Lost {
        match ended {
            Ok(ended) => self.instance.obituary(ended).await.into(),
            Err(error) => Lost::Wait(error),
        }
    }
}

async fn reserve(output: Option<&mpsc::Sender<Output>>) -> Option<mpsc::Permit<'_, Output>> {
    output?.reserve().await.ok()
}

/// Dying, until dead. Whoever asked is told of the first try, as is who asks meanwhile; this task keeps trying.
async fn bury(mut instance: Instance, vm_id: &str, asked: Option<DestroyReply>, mailbox: &mut mpsc::Receiver<Request>) {
    let mut waiting: Vec<DestroyReply> = asked.into_iter().collect();
    loop {
        let result = instance.tear_down().await;
        if let Err(error) = &result {
            warn!(vm_id, %error, "the teardown is not complete");
        }
        // Anything but a request to end is refused by the drop of its reply: it never reached the guest.
        while let Ok(request) = mailbox.try_recv() {
            if let Request::Destroy { reply } = request {
                waiting.push(reply);
            }
        }
        for reply in waiting.drain(..) {
            let _ = reply.send(result.as_ref().map(|usage| *usage).map_err(|error| incomplete(error, vm_id)));
        }
        if !matches!(result, Err(TeardownError::Undead { .. } | TeardownError::Wait(_))) {
            return;
        }
        tokio::time::sleep(RETRY_TEARDOWN).await;
    }
}

fn incomplete(error: &TeardownError, vm_id: &str) -> Error {
    Error::new(ErrorKind::Teardown, "ending a VM")
        .because(error.to_string())
        .on_vm(vm_id)
        .remedied_by("sbx doctor shows what is left; it is tried again until it succeeds")
}
