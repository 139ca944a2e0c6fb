//! Donating: a guest that has booted is warmed, saved, and goes on as what it was meant to be.
//!
//! The guest is halted while its memory is copied, some tens of milliseconds. It is then told, as each of its copies is, to become a machine
//! of its own: what it was up to here is in a file. Nobody's program has run in it before.

use std::{fs::File, io};

use exec_sandbox_qemu::qmp::{self, Migration};
use exec_sandbox_wire::{CONNECTION_OP, GuestMessage, HostMessage};
use tokio::{
    io::AsyncReadExt as _,
    net::unix::pipe,
    sync::oneshot,
    time::{Duration, Instant, sleep},
};
use tracing::debug;

use super::{BootError, Connected, Failed, Live, Ready, died, lost, restore::hello_of_a_copy};
use crate::{
    request::{ValidExec, ValidVm},
    snapshot::{Draft, Saved},
    vm::{
        channel::{Channel, ChannelError},
        execution::{Execution, Finished},
        inbox::{StreamName, Taken},
        monitor::MonitorError,
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

/// Largest state that is taken from a QEMU: a hundred times what one has.
const MAX_STATE_BYTES: u64 = 8 << 20;

/// Between two looks at whether a state is saved, which takes a few milliseconds.
const LOOK: Duration = Duration::from_millis(1);

/// How long saving may take, unless a boot may take less; and so for letting the guest go on.
const SAVE_PATIENCE: Duration = Duration::from_secs(10);

/// Why a guest was not saved. It goes on all the same.
#[derive(Debug, thiserror::Error)]
pub(in crate::vm) enum DonationError {
    #[error("the rehearsal came to nothing: {0}")]
    Rehearsal(String),
    #[error("having QEMU save the guest")]
    Monitor(#[from] MonitorError),
    #[error("QEMU could not save the guest, saying: {0}")]
    Failed(String),
    #[error("the guest was not saved within {} s", patience.as_secs_f64())]
    Overdue { patience: Duration },
    #[error("taking the guest's state and memory")]
    Io(#[from] io::Error),
    #[error("its state is larger than {MAX_STATE_BYTES} bytes")]
    TooLarge,
    #[error("its agent cannot make a copy a machine of its own")]
    NotRenewed,
    #[error("its state has no bytes")]
    NoState,
}

impl Ready {
    /// Warms the interpreter of what is to be `spec` and saves the guest, whose memory is `memory`, to `draft`, which is given back whole
    /// unless that failed.
    pub(in crate::vm) async fn donate<T>(
        mut self,
        (draft, memory): (Draft, File),
        spec: &ValidVm,
        wanted: &mut oneshot::Sender<T>,
    ) -> Result<(Self, Result<Draft, DonationError>), Failed> {
        let saved = match self.rehearse_unless_gone(spec, wanted).await {
            Ok(Ok(())) => self.save(draft, memory).await,
            Ok(Err(refused)) => Err(DonationError::Rehearsal(refused)),
            Err(error) => return Err(Failed { error, instance: Some(self.live.instance) }),
        };
        // Also after a failure: QEMU may have halted it.
        if let Err(error) = self.go_on(wanted).await {
            return Err(Failed { error, instance: Some(self.live.instance) });
        }
        let Self { live: Live { instance, channel, boot_id }, born, ready_at, patience } = self;
        // How long it has been there says nothing about its answer.
        let deadline = Instant::now() + patience;
        let again = Connected { instance, born, channel, patience, deadline }.greet(wanted).await?;
        // An agent that has not become another here would not in a copy either.
        let saved = if again.live.boot_id == boot_id { saved.and(Err(DonationError::NotRenewed)) } else { saved };
        Ok((Self { ready_at, ..again }, saved))
    }

    /// Lets the guest go on as a machine of its own.
    async fn go_on<T>(&mut self, wanted: &mut oneshot::Sender<T>) -> Result<(), BootError> {
        let patience = self.patience.min(SAVE_PATIENCE);
        let Live { instance, channel, .. } = &mut self.live;
        let orders = instance.orders()?;
        let answered = tokio::select! {
            biased;
            () = wanted.closed() => return Err(BootError::Abandoned),
            // A QEMU that still owes an answer takes no other order.
            () = sleep(patience) => return Err(BootError::TimedOut { patience }),
            answered = orders.give([qmp::Command::Continue], None) => answered,
            death = instance.death() => return Err(died(instance, death).await),
        };
        match answered {
            Ok(_value) => {}
            Err(error @ MonitorError::Closed) => return Err(lost(instance, error.into()).await),
            Err(refused) => return Err(refused.into()),
        }
        channel.send(&HostMessage::Hello(hello_of_a_copy()?).into_frame(CONNECTION_OP))?;
        Ok(())
    }

    /// Warms the interpreter of what is to be `spec`; with its packages, unless these end it or take too long.
    async fn rehearse_unless_gone<T>(
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
            rehearsed = rehearse(channel, request) => rehearsed,
            death = instance.death() => return Err(died(instance, death).await),
        };
        match rehearsed {
            Ok(result) => Ok(result),
            Err(error @ (ChannelError::Closed | ChannelError::Io(_))) => Err(lost(instance, error.into()).await),
            Err(error) => Err(error.into()),
        }
    }

    /// Saves the guest, which is halted afterwards.
    async fn save(&self, draft: Draft, memory: File) -> Result<Draft, DonationError> {
        let orders = self.live.instance.orders()?;
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(io::Error::from)?;
        let read = pipe::Receiver::from_owned_fd(read)?;
        let mut state = Vec::new();
        let patience = self.patience.min(SAVE_PATIENCE);
        let save = async {
            orders.give(qmp::save(), Some(write)).await?;
            // To its end, which is QEMU's closing of it.
            read.take(MAX_STATE_BYTES + 1).read_to_end(&mut state).await?;
            loop {
                let reply = orders.give([qmp::Command::QueryMigration], None).await?;
                match Migration::from_reply(&reply) {
                    Some(Migration::Completed) => return Ok(()),
                    Some(Migration::Failed(why)) => return Err(DonationError::Failed(why)),
                    Some(Migration::UnderWay) | None => sleep(LOOK).await,
                }
            }
        };
        tokio::select! {
            saved = save => saved?,
            () = sleep(patience) => return Err(DonationError::Overdue { patience }),
        }
        if state.is_empty() {
            return Err(DonationError::NoState);
        }
        if state.len() as u64 > MAX_STATE_BYTES {
            return Err(DonationError::TooLarge);
        }
        let fill = move || draft.fill(&Saved { memory: &memory, state: &state, translations: None });
        let filled = tokio::task::spawn_blocking(fill);
        Ok(filled.await.map_err(io::Error::other)??)
    }
}

/// Runs a program that is nobody's. `Ok(Err)`: why it did not run.
async fn rehearse(channel: &mut Channel, request: &ValidExec) -> Result<Result<(), String>, ChannelError> {
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
