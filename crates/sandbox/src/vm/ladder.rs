//! The ladder: where a VM's guest comes from. Each rung hides those below it.
//!
//! ```text
//! snapshot ── there is one ─▶ a copy of it ── it does not answer ─┐ set aside
//!    └─ there is none ─▶ boot, saving one on the way ◀────────────┘
//!                    │                 └─ it is dead of being saved ─┐
//!                    └─ somebody else saves it, or nothing may be saved ─▶ boot
//! ```
//! Every boot takes the translations of a relative, if there is one, and is made once more without them if it fails.
//! A rung that fails costs its caller time and nothing else: none of his code has run. What would fail on every rung, as a machine out
//! of descriptors or a guest that does not boot, is told at once.

use std::{fs::File, io, sync::Arc};

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use tokio::{
    sync::oneshot,
    time::{Duration, Instant},
};
use tracing::warn;

use super::{
    BootTiming,
    blanks::Blank,
    phases::{BootError, Donor, Failed, Life, Outline, Prepared, Ready, details, shape},
};
use crate::{
    host::Host,
    outcome::Origin,
    request::ValidVm,
    snapshot::{Donation, MAX_TRANSLATIONS_BYTES, Offer, Template, Want},
};

/// How long a copy is given for its first answer, which comes within a tenth of a second on an idle machine. A guest that is dead says
/// nothing, and a VM that boots takes its place.
const PATIENCE: Duration = Duration::from_secs(20);

/// The same for a copy in a QEMU that has waited, which may have been stopped meanwhile. Another QEMU takes its place.
const BLANK_PATIENCE: Duration = Duration::from_secs(3);

/// What every rung is told.
#[derive(Debug)]
pub(super) struct Climb<'a, T> {
    pub(super) host: &'a Arc<Host>,
    /// That of a blank, if it becomes one.
    pub(super) vm_id: String,
    pub(super) spec: &'a ValidVm,
    /// Closes when the caller is gone.
    pub(super) wanted: &'a mut oneshot::Sender<T>,
}

impl<T> Climb<'_, T> {
    /// Brings a VM up, by the highest rung that holds.
    pub(super) async fn up(&mut self) -> Result<(Ready, BootTiming), Failed> {
        let begun = Instant::now();
        match self.offer().await? {
            Offer::Template(template) => match self.copy(&template, begun).await {
                Err(failed) if failed.error.is_the_guests() => {
                    self.condemn(&template, failed).await?;
                    // Once: what is made anew is believed, or this run does without.
                    match self.offer().await? {
                        Offer::Donation(donation) => self.donate(*donation, begun).await,
                        Offer::Template(_) | Offer::Nothing => self.boot(begun).await,
                    }
                }
                restored => restored,
            },
            Offer::Donation(donation) => self.donate(*donation, begun).await,
            Offer::Nothing => self.boot(begun).await,
        }
    }

    /// What there is to start from. It may have to be waited for.
    async fn offer(&mut self) -> Result<Offer, Failed> {
        let want = self.want();
        match &self.host.snapshots {
            Some(shelf) if self.spec.boot_log.is_none() && !self.spec.installs => tokio::select! {
                biased;
                () = self.wanted.closed() => Err(nothing_yet(BootError::Abandoned)),
                offer = shelf.offer(&want) => Ok(offer),
            },
            // There are none, or its console is what the caller wants to see, or no other will be like it.
            _ => Ok(Offer::Nothing),
        }
    }

    fn want(&self) -> Want {
        let ValidVm { memory_mib, language, network, packages, layer, preloads, .. } = self.spec;
        let machine = shape(self.host, *memory_mib, (network.is_some(), layer.is_some()));
        let packages = packages.iter().flat_map(|set| set.requirements()).cloned().collect();
        let layer = layer.as_ref().map(|layer| layer.digest());
        Want { machine, memory_mib: *memory_mib, language: *language, packages, layer, is_preloaded: *preloads }
    }

    async fn boot(&mut self, begun: Instant) -> Result<(Ready, BootTiming), Failed> {
        self.boot_with(None, begun).await
    }

    /// Boots, with `memory` as the guest's if it is to be saved, and with what a relative has of its code.
    async fn boot_with(&mut self, memory: Option<&File>, begun: Instant) -> Result<(Ready, BootTiming), Failed> {
        if let Some((relative, translations)) = self.relative().await? {
            match self.boot_knowing(Some(&translations), memory, begun).await {
                // Once: what fails without them is not their fault.
                Err(failed) if failed.error.is_the_guests() => {
                    warn!(
                        vm_id = self.vm_id,
                        error = &failed.error as &dyn std::error::Error,
                        "a guest could not boot with another's translations"
                    );
                    let blamed = failed.error.is_of_its_making().then(|| io::Error::other(failed.error.to_string()));
                    clear_up(failed).await?;
                    memory.map_or(Ok(()), clear).map_err(BootError::Prepare).map_err(nothing_yet)?;
                    let booted = self.boot_knowing(None, memory, begun).await?;
                    // A host that is short of something is so without them.
                    if let (Some(shelf), Some(why)) = (&self.host.relatives, blamed) {
                        shelf.condemn(&relative, &why).await;
                    }
                    return Ok(booted);
                }
                booted => return booted,
            }
        }
        self.boot_knowing(None, memory, begun).await
    }

    async fn boot_knowing(
        &mut self,
        translations: Option<&str>,
        memory: Option<&File>,
        begun: Instant,
    ) -> Result<(Ready, BootTiming), Failed> {
        let memory = memory.map(File::try_clone).transpose().map_err(BootError::Prepare).map_err(nothing_yet)?;
        let spawning = self.prepare(Life::Boot { memory, waits: translations.is_some() }).await?;
        let mut connected = spawning.prepared.spawn().await?.connect().await?;
        if let Some(translations) = translations {
            connected = connected.boot(translations, self.wanted).await?;
        }
        let ready = connected.greet(self.wanted).await?;
        let timing = timing(begun, spawning.at, &ready, Origin::Cold);
        Ok((ready, timing))
    }

    /// A snapshot with translations of what this guest will run, and their name.
    async fn relative(&mut self) -> Result<Option<(Arc<Template>, String)>, Failed> {
        let Some(shelf) = &self.host.relatives else { return Ok(None) };
        let want = self.want();
        let relative = tokio::select! {
            biased;
            () = self.wanted.closed() => return Err(nothing_yet(BootError::Abandoned)),
            relative = shelf.relative(&want) => relative,
        };
        Ok(relative.and_then(|relative| Some((Arc::clone(&relative), relative.translations_name().ok()??))))
    }

    async fn copy(&mut self, template: &Template, begun: Instant) -> Result<(Ready, BootTiming), Failed> {
        match self.restore_into_blank(template, begun).await? {
            Some(up) => Ok(up),
            None => self.restore(template, begun).await,
        }
    }

    async fn restore(&mut self, template: &Template, begun: Instant) -> Result<(Ready, BootTiming), Failed> {
        let spawning = self.prepare(Life::Blank).await?;
        let blank = spawning.prepared.spawn().await?.connect().await?;
        let ready = blank.restore(template, PATIENCE, self.wanted).await?.greet(self.wanted).await?;
        let timing = timing(begun, spawning.at, &ready, Origin::Snapshot);
        Ok((ready, timing))
    }

    /// Makes a QEMU that waits for a guest this VM. `None`: there is none, or it did not work, which says nothing about the template.
    async fn restore_into_blank(
        &mut self,
        template: &Template,
        begun: Instant,
    ) -> Result<Option<(Ready, BootTiming)>, Failed> {
        if self.spec.network.is_some() || self.spec.layer.is_some() {
            return Ok(None);
        }
        let Some(Blank { vm_id, connected, .. }) = self.host.blanks.take(self.spec.memory_mib).await else {
            return Ok(None);
        };
        let restored = async {
            if let Err(error) = connected.describe(&details(self.host, self.spec)) {
                return Err(Failed { error: error.into(), instance: Some(connected.into_instance()) });
            }
            connected.restore(template, BLANK_PATIENCE, self.wanted).await?.greet(self.wanted).await
        };
        match restored.await {
            Ok(ready) => {
                self.vm_id = vm_id;
                let guest_wait = ready.ready_at - begun;
                Ok(Some((ready, BootTiming { origin: Origin::Blank, guest_wait, ..BootTiming::default() })))
            }
            Err(gone @ Failed { error: BootError::Abandoned, .. }) => Err(gone),
            Err(failed) => {
                warn!(
                    vm_id,
                    error = &failed.error as &dyn std::error::Error,
                    "a QEMU that waited for its guest failed"
                );
                clear_up(failed).await?;
                Ok(None)
            }
        }
    }

    /// Boots, and saves the guest on the way. That it could not be saved is no failure of the VM.
    async fn donate(&mut self, donation: Donation, begun: Instant) -> Result<(Ready, BootTiming), Failed> {
        let memory = file_in_memory("guest-memory", u64::from(self.spec.memory_mib) << 20);
        let memory = memory.map_err(BootError::Prepare).map_err(nothing_yet)?;
        let booted = self.boot_with(Some(&memory), begun).await;
        if booted.as_ref().is_err_and(|failed| failed.error.is_the_guests()) {
            donation.into_parts().1.step_back();
            return booted;
        }
        let (ready, mut timing) = booted?;
        let translations =
            self.host.keeps_translations().then(|| file_in_memory("translations", MAX_TRANSLATIONS_BYTES));
        let translations = translations.and_then(Result::ok);
        let saving = Instant::now();
        let (draft, place) = donation.into_parts();
        let donor = Donor { draft, memory, translations };
        let (ready, saved) = match ready.donate(donor, self.spec, self.wanted).await {
            // It had booted, so another one will.
            Err(failed) if failed.error.is_the_guests() => {
                warn!(
                    vm_id = self.vm_id,
                    error = &failed.error as &dyn std::error::Error,
                    "a VM did not survive being saved"
                );
                clear_up(failed).await?;
                place.give_up();
                return self.boot(begun).await;
            }
            donated => donated?,
        };
        timing.snapshot = Some(saving.elapsed());
        match saved {
            Ok(draft) => place.publish(draft),
            Err(error) => {
                warn!(vm_id = self.vm_id, error = &error as &dyn std::error::Error, "no snapshot was made");
                place.give_up();
            }
        }
        Ok((ready, timing))
    }

    /// A copy did not come to life: it is cleared up, and its template is not used again unless it was no fault of that.
    async fn condemn(&self, template: &Template, failed: Failed) -> Result<(), Failed> {
        let error = &failed.error;
        warn!(vm_id = self.vm_id, error = error as &dyn std::error::Error, "a snapshot could not be restored");
        if let (Some(shelf), true) = (&self.host.snapshots, error.is_of_its_making()) {
            shelf.condemn(template, error).await;
        }
        clear_up(failed).await
    }

    async fn prepare(&self, life: Life) -> Result<Spawning, Failed> {
        let outline = Outline::of(self.host, self.spec);
        let prepared = Prepared::new(Arc::clone(self.host), self.vm_id.clone(), outline, life);
        let prepared = prepared.await.map_err(nothing_yet)?;
        Ok(Spawning { prepared, at: Instant::now() })
    }
}

/// A VM that is about to be started.
struct Spawning {
    prepared: Prepared,
    at: Instant,
}

/// Takes away what is left of a VM that another is to take the place of.
async fn clear_up(failed: Failed) -> Result<(), Failed> {
    let Failed { error, instance } = failed;
    let Some(mut instance) = instance else { return Ok(()) };
    match instance.tear_down().await {
        Ok(_used) => Ok(()),
        // It is buried before anything else is made.
        Err(_incomplete) => Err(Failed { error, instance: Some(instance) }),
    }
}

fn nothing_yet(error: BootError) -> Failed {
    Failed { error, instance: None }
}

fn timing(begun: Instant, spawning: Instant, ready: &Ready, origin: Origin) -> BootTiming {
    let Ready { born, ready_at, .. } = ready;
    let gateway_start = born.gateway_start;
    let spawn = (born.at - spawning).saturating_sub(gateway_start.unwrap_or_default());
    let (prepare, guest_wait) = (spawning - begun, *ready_at - born.at);
    BootTiming { origin, prepare, gateway_start, spawn, guest_wait, ..BootTiming::default() }
}

/// A file of zeros that takes no room yet.
fn file_in_memory(name: &str, length_bytes: u64) -> io::Result<File> {
    let file = memfd_create(name, MemfdFlags::CLOEXEC)?;
    ftruncate(&file, length_bytes)?;
    Ok(file.into())
}

/// Makes it a file of zeros again.
fn clear(file: &File) -> io::Result<()> {
    let length_bytes = file.metadata()?.len();
    file.set_len(0)?;
    file.set_len(length_bytes)
}
