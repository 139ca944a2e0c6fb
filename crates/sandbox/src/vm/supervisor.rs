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
    gone,
    instance::{Instance, Obituary, TeardownError},
    phases::{BootError, Failed, Prepared, Ready},
};
use crate::{
    Error, ErrorKind, Output,
    admission::Permit,
    host::Host,
    process::{ChildUsage, Ended},
    request::ValidRequest,
    run_dir::RunDir,
};

/// How often a process that does not die is killed again.
const RETRY_TEARDOWN: Duration = Duration::from_secs(1);

/// Messages that a guest may send while nothing is asked of it. An honest one of this generation sends none, a newer one may;
/// one that never stops would keep callers from being heard.
const MAX_UNASKED: u32 = 1000;

/// How long an idle VM keeps its CPU. Callers that have the next request ready send it at once, and need not stand in the line
/// again; others in the line hardly notice.
const LINGER: Duration = Duration::from_millis(20);

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

/// What a caller who asked for the end is told of it.
type DestroyReply = oneshot::Sender<Result<Option<ChildUsage>, Error>>;

/// Boots a VM, serves its mailbox, and ends it. The permit is released only when it is dead.
pub(super) async fn supervise(
    host: Arc<Host>,
    spec: VmSpec,
    mut permit: Permit,
    mut mailbox: mpsc::Receiver<Request>,
    booted: oneshot::Sender<Result<Booted, Error>>,
) {
    let vm_id = spec.id.clone();
    let (instance, answer) = match boot(host, spec, booted).await {
        Ok(supervisor) => {
            permit.booted();
            supervisor.serve(&mut mailbox, &mut permit).await
        }
        Err(None) => return,
        Err(Some(instance)) => (instance, None),
    };
    bury(instance, &vm_id, answer, &mut mailbox).await;
    drop(permit);
}

/// The phases in order, and the caller told how they went. `Err` is what is left to tear down.
async fn boot(
    host: Arc<Host>,
    spec: VmSpec,
    mut booted: oneshot::Sender<Result<Booted, Error>>,
) -> Result<Supervisor, Option<Instance>> {
    let vm_id = spec.id.clone();
    let begun = Instant::now();
    let prepared = Prepared::new(host, spec).await;
    let spawning = Instant::now();
    let ready = async {
        let prepared = prepared.map_err(|error| Failed { error, instance: None })?;
        prepared.spawn().await?.connect().await?.greet(&mut booted).await
    };
    match ready.await {
        Ok(Ready { instance, channel, spawned_at, ready_at }) => {
            let times =
                Booted { prepare: spawning - begun, spawn: spawned_at - spawning, guest_wait: ready_at - spawned_at };
            debug!(vm_id, pid = instance.pid(), ?times, "booted");
            // A caller who has gone meanwhile has dropped the mailbox too, and the supervisor will see that.
            let _ = booted.send(Ok(times));
            Ok(Supervisor { vm_id, instance, channel, next_op: 1 })
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
    }
}

impl Supervisor {
    /// Serves requests until the VM is to end. Returns what is to be torn down and who waits for it.
    async fn serve(
        mut self,
        mailbox: &mut mpsc::Receiver<Request>,
        permit: &mut Permit,
    ) -> (Instance, Option<DestroyReply>) {
        let (mut unasked, mut idle_since) = (0, Instant::now());
        loop {
            let request = tokio::select! {
                biased;
                // The guest's events come before the callers' wishes.
                ended = self.instance.ended() => {
                    self.report_end(ended).await;
                    break;
                }
                message = self.channel.next() => match message {
                    Ok(_) if unasked < MAX_UNASKED => {
                        unasked += 1;
                        continue;
                    }
                    Ok(_) => {
                        warn!(vm_id = self.vm_id, "the agent talks without being asked");
                        break;
                    }
                    Err(error) => {
                        warn!(vm_id = self.vm_id, error = &error as &dyn std::error::Error, "the agent is lost");
                        break;
                    }
                },
                request = mailbox.recv() => request,
                () = sleep_until(idle_since + LINGER), if permit.has_cpu() => {
                    permit.give_back_cpu();
                    continue;
                }
            };
            match request {
                None => break,
                Some(Request::Destroy { reply }) => return (self.instance, Some(reply)),
                Some(Request::Execute { request, output, mut reply }) => {
                    match self.take_cpu(permit, &mut reply).await {
                        Some(Ok(())) => {
                            if self.execute(&request, output, reply).await.is_err() {
                                break;
                            }
                        }
                        Some(Err(refused)) => drop(reply.send(Err(refused.on_vm(&self.vm_id)))),
                        None => {
                            // Nothing has left: who still listens may ask another VM.
                            let _ = reply.send(Err(gone(&self.vm_id)));
                            break;
                        }
                    }
                    (unasked, idle_since) = (0, Instant::now());
                }
            }
        }
        (self.instance, None)
    }

    /// What an idle VM has given back and needs to execute. `None`: there is nobody, or nothing, to execute for.
    async fn take_cpu(
        &mut self,
        permit: &mut Permit,
        reply: &mut oneshot::Sender<Result<Executed, Error>>,
    ) -> Option<Result<(), Error>> {
        tokio::select! {
            biased;
            () = reply.closed() => None,
            ended = self.instance.ended() => {
                self.report_end(ended).await;
                None
            }
            taken = permit.take_cpu() => Some(taken),
        }
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
                debug!(vm_id = self.vm_id, error = &lost as &dyn std::error::Error, "the execution is lost");
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
        debug!(vm_id = self.vm_id, op, language = %request.language, timeout = ?request.timeout, "executing");
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
                // First, because a guest that never stops talking would outlast its time otherwise.
                () = reply.closed() => return Err(Lost::Abandoned),
                () = sleep_until(deadline) => return Err(Lost::Overdue),
                permit = reserve(output.as_ref()), if output.is_some() && execution.has_output() => match permit {
                    Some(permit) => self.deliver(&mut execution, Some(permit))?,
                    None => deaf = true,
                },
                // Before the end of QEMU, because what came before it counts.
                message = self.channel.next() => match message {
                    Ok((from, message)) if from == op => {
                        execution.on_message(message)?;
                        if execution.has_output() {
                            first_output.get_or_insert_with(Instant::now);
                        }
                    }
                    Ok(_other) => {}
                    Err(error) => return Err(self.unheard(error).await),
                },
                ended = self.instance.ended() => return Err(self.lost(ended).await),
            }
        }
        let finished = Instant::now();
        let Some((outcome, ack)) = execution.into_finished() else { return Err(Lost::Overdue) };
        self.channel.send(&ack).map_err(Lost::Channel)?;
        debug!(vm_id = self.vm_id, op, elapsed = ?finished - dispatched, "executed");
        Ok(match outcome {
            Finished::Ran(ran) => Ok(Executed { ran, dispatched, first_output, finished }),
            Finished::Refused(detail) => Err(Error::new(ErrorKind::Guest, "starting the program in the guest")
                .because(detail)
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

    /// A channel that cannot be used any more. QEMU closes it when it ends, and its end says more.
    async fn unheard(&mut self, error: ChannelError) -> Lost {
        if !matches!(error, ChannelError::Closed | ChannelError::Io(_)) {
            return Lost::Channel(error);
        }
        match self.instance.ended_soon().await {
            Some(ended) => self.lost(ended).await,
            None => Lost::Channel(error),
        }
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
        let result = instance.tear_down().await.map_err(Arc::new);
        if let Err(error) = &result {
            warn!(vm_id, error = error as &dyn std::error::Error, "the teardown is not complete");
            if error.leaves_a_process()
                && let Some(Err(error)) = instance.run_dir().map(RunDir::mark_undead)
            {
                warn!(vm_id, error = &error as &dyn std::error::Error, "that cannot be noted for others");
            }
        }
        let is_dead = !result.as_ref().is_err_and(|error| error.leaves_a_process());
        if is_dead {
            mailbox.close();
        }
        // A mailbox that is closed is emptied to the last letter on its way.
        while let Some(request) = if is_dead { mailbox.recv().await } else { mailbox.try_recv().ok() } {
            match request {
                Request::Destroy { reply } => waiting.push(reply),
                Request::Execute { reply, .. } => drop(reply.send(Err(gone(vm_id)))),
            }
        }
        for reply in waiting.drain(..) {
            let _ = reply.send(result.clone().map_err(|error| incomplete(error, vm_id)));
        }
        if is_dead {
            return;
        }
        tokio::time::sleep(RETRY_TEARDOWN).await;
    }
}

fn incomplete(error: Arc<TeardownError>, vm_id: &str) -> Error {
    Error::new(ErrorKind::Teardown, "ending a VM")
        .because(error)
        .on_vm(vm_id)
        .remedied_by("sbx doctor shows what is left; the next start of any sandbox ends and removes what it can")
}

#[cfg(test)]
mod tests;
