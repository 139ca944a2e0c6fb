//! Rehearsing: a program that is nobody's, for which an interpreter is started and warmed before its guest is saved.

use exec_sandbox_wire::{GuestMessage, HostMessage};
use tokio::{
    sync::oneshot,
    time::{Duration, sleep},
};
use tracing::debug;

use super::{BootError, Live, Ready, died, lost};
use crate::{
    request::{ValidExec, ValidVm},
    vm::{
        channel::{Channel, ChannelError},
        execution::{Execution, Finished},
        inbox::{StreamName, Taken},
    },
};

/// The operation of a rehearsal; those of a supervisor begin anew once it has been acknowledged.
const REHEARSAL_OP: u32 = 1;

/// The operation of the question that follows it.
const PING_OP: u32 = 2;

/// How long a rehearsal may take, which starts an interpreter, unless a boot may take less.
const REHEARSAL_TIMEOUT: Duration = Duration::from_secs(60);

/// How long loading packages may take, which tries no other after 30 s; and until that has been brought to its end.
const PRELOAD_TIMEOUT: Duration = Duration::from_secs(45);
const PRELOAD_PATIENCE: Duration = Duration::from_secs(60);

impl Ready {
    /// Warms the interpreter of what is to be `spec`; with its packages, unless these end it or take too long.
    pub(super) async fn rehearse<T>(
        &mut self,
        spec: &ValidVm,
        wanted: &mut oneshot::Sender<T>,
    ) -> Result<Result<(), String>, BootError> {
        if let (Some(packages), true) = (&spec.packages, spec.preloads) {
            let request = ValidExec::rehearsal_with(packages, PRELOAD_TIMEOUT);
            match self.run_unless_gone(&request, PRELOAD_PATIENCE, wanted).await? {
                Ok(()) => return Ok(Ok(())),
                Err(why) => debug!(why, packages = ?packages.requirements(), "packages are not loaded ahead"),
            }
        }
        let request = ValidExec::rehearsal(spec.language, REHEARSAL_TIMEOUT);
        self.run_unless_gone(&request, self.patience.min(REHEARSAL_TIMEOUT), wanted).await
    }

    async fn run_unless_gone<T>(
        &mut self,
        request: &ValidExec,
        patience: Duration,
        wanted: &mut oneshot::Sender<T>,
    ) -> Result<Result<(), String>, BootError> {
        let Live { instance, channel, .. } = &mut self.live;
        let rehearsed = tokio::select! {
            biased;
            () = wanted.closed() => return Err(BootError::Abandoned),
            () = sleep(patience) => return Err(BootError::TimedOut { patience }),
            rehearsed = run(channel, request) => rehearsed,
            death = instance.death() => return Err(died(instance, death).await),
        };
        match rehearsed {
            Ok(result) => Ok(result),
            Err(error @ (ChannelError::Closed | ChannelError::Io(_))) => Err(lost(instance, error.into()).await),
            Err(error) => Err(error.into()),
        }
    }
}

/// Runs a program that is nobody's. `Ok(Err)`: why it did not run.
async fn run(channel: &mut Channel, request: &ValidExec) -> Result<Result<(), String>, ChannelError> {
    let (mut execution, frames) = Execution::start(REHEARSAL_OP, request, 0);
    for frame in &frames {
        channel.send(frame)?;
    }
    while !execution.is_over() {
        let (op, message) = channel.next().await?;
        if op != REHEARSAL_OP {
            continue;
        }
        let taken = match execution.on_message(message) {
            Ok(Some((StreamName::Stdout, bytes))) => Taken { stdout: bytes.len(), ..Taken::default() },
            Ok(Some((_, bytes))) => Taken { stderr: bytes.len(), ..Taken::default() },
            Ok(None) => continue,
            Err(violation) => return Ok(Err(violation.to_string())),
        };
        if let Some(frame) = execution.on_taken(taken) {
            channel.send(&frame)?;
        }
    }
    channel.send(&HostMessage::Ack.into_frame(REHEARSAL_OP))?;
    // Once this is answered the agent has forgotten the operation, and so will its copies have.
    channel.send(&HostMessage::Ping(bytes::Bytes::new()).into_frame(PING_OP))?;
    while !matches!(channel.next().await?, (PING_OP, GuestMessage::Pong(_))) {}
    Ok(match execution.into_finished() {
        Some(Finished::Ran(ran)) if ran.exit.code() == 0 => Ok(()),
        Some(Finished::Ran(ran)) => Err(format!("it ended with {}", ran.exit.code())),
        Some(Finished::Refused(why)) => Err(why),
        None => Err("it did not end".into()),
    })
}
