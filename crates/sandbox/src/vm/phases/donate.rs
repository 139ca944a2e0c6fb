//! Donating: a guest that has booted is warmed, saved, and goes on as what it was meant to be.
//!
//! The guest is halted while its memory is copied, some tens of milliseconds. It is then told, as each of its copies is, to become a machine
//! of its own: what it was up to here is in a file. Nobody's program has run in it before.

use std::{fs::File, io, os::fd::OwnedFd};

use exec_sandbox_qemu::qmp::{self, Migration};
use exec_sandbox_wire::{CONNECTION_OP, HostMessage};
use serde_json::Value;
use tokio::{
    io::AsyncReadExt as _,
    net::unix::pipe,
    sync::oneshot,
    task::spawn_blocking,
    time::{Duration, Instant, sleep},
};
use tracing::warn;

use super::{BootError, Connected, Failed, Live, Ready, died, lost, restore::hello_of_a_copy};
use crate::{request::ValidVm, snapshot::Draft, vm::monitor::MonitorError};

/// Largest state that is taken from a QEMU: a hundred times what one has.
const MAX_STATE_BYTES: u64 = 8 << 20;

/// Between two looks at whether a state is saved, which takes a few milliseconds.
const LOOK: Duration = Duration::from_millis(1);

/// How long saving may take, unless a boot may take less; and so for letting the guest go on.
const SAVE_PATIENCE: Duration = Duration::from_secs(10);

/// How long all of it may take, of which most is writing to the disk.
const ALL_PATIENCE: Duration = Duration::from_secs(30);

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

/// Where a guest is saved to.
#[derive(Debug)]
pub(in crate::vm) struct Donor {
    /// What the snapshot will be.
    pub(in crate::vm) draft: Draft,
    /// The guest's memory.
    pub(in crate::vm) memory: File,
    /// Room for its translations, if its code is translated.
    pub(in crate::vm) translations: Option<File>,
}

impl Ready {
    /// Warms the interpreter of what is to be `spec` and saves the guest to the draft, which is given back whole unless that failed.
    pub(in crate::vm) async fn donate<T>(
        self,
        donor: Donor,
        spec: &ValidVm,
        wanted: &mut oneshot::Sender<T>,
    ) -> Result<(Self, Result<Draft, DonationError>), Failed> {
        let ready_at = self.ready_at;
        let (warm, rehearsed) = self.warm(donor.translations.is_some(), spec, wanted).await?;
        let saved = match rehearsed {
            // What is not waited for is of no use, and removed when it is done.
            Ok(()) => tokio::select! {
                biased;
                () = wanted.closed() => return Err(warm.live.failed(BootError::Abandoned)),
                () = sleep(ALL_PATIENCE) => Err(DonationError::Overdue { patience: ALL_PATIENCE }),
                saved = warm.save(donor) => saved,
            },
            Err(refused) => Err(DonationError::Rehearsal(refused)),
        };
        let boot_id = warm.live.boot_id.clone();
        // Also after a failure: QEMU may have halted it.
        let again = warm.begin_again(wanted).await?;
        // An agent that has not become another here would not in a copy either.
        let saved = if again.live.boot_id == boot_id { saved.and(Err(DonationError::NotRenewed)) } else { saved };
        Ok((Self { ready_at, ..again }, saved))
    }

    /// Has the guest do what its copies will not do again; if QEMU `keeps_translations`, what they will as well, to become machines of
    /// their own and run. `Err` inside: why the rehearsal did not run.
    async fn warm<T>(
        mut self,
        keeps_translations: bool,
        spec: &ValidVm,
        wanted: &mut oneshot::Sender<T>,
    ) -> Result<(Self, Result<(), String>), Failed> {
        let rehearsed = match self.rehearse(spec, wanted).await {
            Ok(rehearsed) => rehearsed,
            Err(error) => return Err(self.live.failed(error)),
        };
        if rehearsed.is_err() || !keeps_translations {
            return Ok((self, rehearsed));
        }
        let mut again = self.begin_again(wanted).await?;
        // A guest in which the second comes to nothing is not one to make copies of.
        match again.rehearse(spec, wanted).await {
            Ok(rehearsed) => Ok((again, rehearsed)),
            Err(error) => Err(again.live.failed(error)),
        }
    }

    /// Lets a guest go on, if it was halted, as a machine of its own.
    async fn begin_again<T>(mut self, wanted: &mut oneshot::Sender<T>) -> Result<Self, Failed> {
        if let Err(error) = self.go_on(wanted).await {
            return Err(self.live.failed(error));
        }
        let Self { live: Live { instance, channel, .. }, born, ready_at, patience } = self;
        // How long it has been there says nothing about its answer.
        let deadline = Instant::now() + patience;
        let again = Connected { instance, born, channel, patience, deadline }.greet(wanted).await?;
        Ok(Self { ready_at, ..again })
    }

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

    /// Saves the guest, which is halted afterwards. Its memory is copied while QEMU writes down its translations, for a caller waits.
    async fn save(&self, donor: Donor) -> Result<Draft, DonationError> {
        let Donor { draft, memory, translations } = donor;
        let state = self.save_state().await?;
        let room = draft.room_for_translations();
        let filled = spawn_blocking(move || draft.fill(&memory, &state));
        // Without them its copies are slower, and otherwise the same.
        let translated = async {
            let Some(file) = translations else { return Ok(None) };
            let Some(length) = self.save_translations(&file).await else { return Ok(None) };
            spawn_blocking(move || room.copy(&file, length)).await.map_err(io::Error::other)?
        };
        let (filled, translated) = tokio::join!(filled, translated);
        let mut draft = filled.map_err(io::Error::other)??;
        if let Some(written) = translated? {
            draft.add_translations(written);
        }
        Ok(draft)
    }

    async fn save_state(&self) -> Result<Vec<u8>, DonationError> {
        let orders = self.live.instance.orders()?;
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(io::Error::from)?;
        let read = pipe::Receiver::from_owned_fd(read)?;
        let mut state = Vec::new();
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
        let patience = self.patience.min(SAVE_PATIENCE);
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
        Ok(state)
    }

    /// How many bytes of `file` the translations of the guest take, if QEMU has written them there.
    async fn save_translations(&self, file: &File) -> Option<u64> {
        let saved = match file.try_clone() {
            Ok(file) => self.order(qmp::save_translations(), Some(file.into())).await,
            Err(error) => Err(error.into()),
        };
        match saved {
            Ok(reply) => qmp::translations_length(&reply),
            Err(error) => {
                warn!(error = &error as &dyn std::error::Error, "a guest's translations were not saved");
                None
            }
        }
    }

    /// Has QEMU carry out what it is given while the guest is halted.
    async fn order(
        &self,
        commands: impl Into<Vec<qmp::Command>> + Send,
        descriptor: Option<OwnedFd>,
    ) -> Result<Value, DonationError> {
        let patience = self.patience.min(SAVE_PATIENCE);
        let orders = self.live.instance.orders()?;
        tokio::select! {
            answered = orders.give(commands, descriptor) => Ok(answered?),
            () = sleep(patience) => Err(DonationError::Overdue { patience }),
        }
    }
}
