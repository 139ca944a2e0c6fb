//! The shelf: the snapshots that this process has in hand, and those that it is making.
//!
//! Whoever wants a VM is offered a snapshot, or the right to make one, or nothing. While one is being made in this process, whoever wants
//! it waits: the copy costs a fraction of the boot that it spares. Nobody waits for another process.

use std::{
    collections::HashMap,
    fs::{self, File},
    os::unix::fs::MetadataExt as _,
    sync::{Arc, Mutex, MutexGuard, Once, PoisonError},
    time::Duration,
};

use exec_sandbox_image::Digest;
use rustix::fs::AtFlags;
use tokio::{sync::watch, task::JoinHandle, time::Instant};
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};

use super::{Draft, Key, Parts, RAM, STATE, Store, StoreError, Template};
use crate::{
    Language, cache_dir,
    shared::{self, SharedCache},
};

/// How long a snapshot that is being written down is waited for at the end. It takes a tenth of a second.
const SETTLE_PATIENCE: Duration = Duration::from_secs(10);

/// How long no snapshot is tried of what could not boot: as long as all who want it now need to boot without.
const AFTER_A_FAILURE: Duration = Duration::from_secs(10);

/// Snapshots for the VMs of one host.
#[derive(Debug)]
pub(crate) struct Shelf {
    store: Store,
    /// The directory in which every QEMU looks for memories, and whether it was told that it is not the store's any more.
    memories: File,
    is_told: Once,
    /// What all VMs of the host have in common.
    common: Parts,
    places: Mutex<HashMap<Key, Place>>,
    /// When a snapshot was taken away last because a copy of it failed.
    condemned: Mutex<HashMap<Key, Instant>>,
    /// How long nothing is tried after that.
    rest: Duration,
    /// Where snapshots may come from, and go.
    shared: Option<Arc<SharedCache>>,
    /// What is written to the disk beside everything else, and which of it is which snapshot.
    writing: TaskTracker,
    written: Mutex<HashMap<Key, JoinHandle<()>>>,
}

/// What there is of one snapshot.
#[derive(Debug)]
enum Place {
    There(Arc<Template>),
    /// It is looked for or made. Closed when that has come to an end.
    Coming(watch::Receiver<()>),
    /// It is not tried before this time.
    Resting(Instant),
}

/// What somebody who wants a VM may do.
#[derive(Debug)]
pub(crate) enum Offer {
    /// Copy this.
    Template(Arc<Template>),
    /// Boot, and save what has booted.
    Donation(Box<Donation>),
    /// Boot.
    Nothing,
}

/// What a VM differs by from others of its host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Want {
    pub(crate) machine: Vec<String>,
    pub(crate) memory_mib: u32,
    pub(crate) language: Language,
    pub(crate) packages: Vec<String>,
    pub(crate) layer: Option<Digest>,
    pub(crate) is_preloaded: bool,
}

/// The right to make a snapshot. Dropped, it is somebody else's.
#[derive(Debug)]
pub(crate) struct Donation {
    draft: Draft,
    place: Coming,
}

/// A place that is empty for as long as this lives, and those who wait for what comes there.
#[derive(Debug)]
pub(crate) struct Coming {
    shelf: Arc<Shelf>,
    key: Key,
    _waited_for: watch::Sender<()>,
}

impl Shelf {
    /// The snapshots in `store` of VMs that have `common` in common; machine, memory and language are each VM's own. Their QEMUs look
    /// for memories in `memories`. What has failed is not tried again for `rest`.
    pub(crate) fn new(store: Store, memories: File, common: Parts, rest: Duration) -> Self {
        Self {
            store,
            memories,
            is_told: Once::new(),
            common,
            places: Mutex::default(),
            condemned: Mutex::default(),
            rest,
            shared: None,
            writing: TaskTracker::new(),
            written: Mutex::default(),
        }
    }

    /// The same, which takes from and gives to other machines.
    pub(crate) fn sharing(self, shared: Option<Arc<SharedCache>>) -> Self {
        Self { shared, ..self }
    }

    /// What a VM like `want` may be made of.
    pub(crate) async fn offer(self: &Arc<Self>, want: &Want) -> Offer {
        if !self.is_in_place() {
            return Offer::Nothing;
        }
        let parts = self.parts(want);
        let place = loop {
            match self.reserve(parts.key()) {
                Reserved::There(template) => return Offer::Template(template),
                Reserved::Nothing => return Offer::Nothing,
                Reserved::Others(mut coming) => drop(coming.changed().await),
                Reserved::Own(place) => break place,
            }
        };
        let shelf = Arc::clone(self);
        let found = tokio::task::spawn_blocking(move || {
            shelf.forget_the_gone();
            find_or_begin(&shelf.store, &parts)
        });
        let found = found.await;
        match found {
            Ok(Ok(Found::Template(template))) => {
                place.fill(Arc::clone(&template));
                Offer::Template(template)
            }
            Ok(Ok(Found::Draft(draft))) => match self.take(*draft).await {
                Taken::Whole(draft, template) => {
                    place.publish(draft);
                    Offer::Template(template)
                }
                Taken::Nothing(draft) => Offer::Donation(Box::new(Donation { draft, place })),
                Taken::Lost => Offer::Nothing,
            },
            Ok(Ok(Found::Nothing)) => Offer::Nothing,
            Ok(Err(error)) => {
                warn!(error = &error as &dyn std::error::Error, "snapshots of this kind cannot be used for a while");
                place.give_up();
                Offer::Nothing
            }
            Err(panicked) => {
                warn!(%panicked, "snapshots cannot be used");
                Offer::Nothing
            }
        }
    }

    /// One of which a VM like `want`, if it boots, has translations to take.
    pub(crate) async fn relative(&self, want: &Want) -> Option<Arc<Template>> {
        let (store, parts) = (self.store.clone(), self.parts(want));
        tokio::task::spawn_blocking(move || store.relative(&parts)).await.ok()?
    }

    /// Takes a snapshot away, because a copy of it failed. What has come in its place meanwhile stays.
    pub(crate) async fn condemn(&self, template: &Template, why: &(dyn std::error::Error + Sync)) {
        if self.put_down(template) {
            // One that is still being written down would appear when it has been taken away.
            let written = self.written.lock().unwrap_or_else(PoisonError::into_inner).remove(&template.key());
            if let Some(written) = written {
                let _ = written.await;
            }
        }
        let Ok(memory) = template.memory_name() else { return };
        let (store, key, why) = (self.store.clone(), template.key(), why.to_string());
        let _ = tokio::task::spawn_blocking(move || store.condemn(key, &memory, &why)).await;
    }

    /// Offers it to nobody any more, and nothing of its kind for a while if one was put down a while ago. `false`: another is offered,
    /// or none.
    fn put_down(&self, template: &Template) -> bool {
        let key = template.key();
        let mut places = self.places();
        if !matches!(places.get(&key), Some(Place::There(there)) if there.is_same(template)) {
            return false;
        }
        places.remove(&key);
        if self.was_condemned(key) {
            places.insert(key, Place::Resting(Instant::now() + self.rest));
        }
        self.condemned.lock().unwrap_or_else(PoisonError::into_inner).insert(key, Instant::now());
        true
    }

    /// Takes what another machine has saved into `draft`, unless a snapshot of this kind was of no use a while ago.
    async fn take(&self, draft: Draft) -> Taken {
        let (Some(shared), false) = (&self.shared, self.was_condemned(draft.key())) else {
            return Taken::Nothing(draft);
        };
        let Ok(incoming) = draft.incoming() else { return Taken::Nothing(draft) };
        // No translations: they are code that the host runs, and only this machine's own is believed.
        let files = (&[RAM, STATE][..], draft.most_bytes());
        let Some(facts) = shared.take(entry_name(draft.key()), files, incoming.path()).await else {
            return Taken::Nothing(draft);
        };
        let mut draft = draft;
        let adopting = tokio::task::spawn_blocking(move || {
            let adopted = draft.adopt(incoming.path(), facts.as_bytes());
            (draft, adopted)
        });
        match adopting.await {
            Ok((draft, Ok(template))) => Taken::Whole(draft, template),
            Ok((draft, Err(error))) => {
                warn!(error = &*error, "a snapshot of the remote cache is not used");
                if draft.is_taken() { Taken::Lost } else { Taken::Nothing(draft) }
            }
            Err(_panicked) => Taken::Lost,
        }
    }

    /// Whether that was so short a while ago that it would be of no use again.
    fn was_condemned(&self, key: Key) -> bool {
        let condemned = self.condemned.lock().unwrap_or_else(PoisonError::into_inner);
        condemned.get(&key).is_some_and(|last| last.elapsed() < self.rest)
    }

    /// Whether QEMU would find what the store keeps: not if somebody has removed its directories and they were made again.
    fn is_in_place(&self) -> bool {
        let ours = self.memories.metadata();
        let found = fs::symlink_metadata(self.store.memories_dir());
        let is_it =
            ours.is_ok_and(|ours| found.is_ok_and(|found| (ours.dev(), ours.ino()) == (found.dev(), found.ino())));
        if !is_it {
            let dir = self.store.memories_dir();
            self.is_told.call_once(
                || warn!(dir = %dir.display(), "it was removed: there are no snapshots until the next start"),
            );
        }
        is_it
    }

    /// Whether QEMU finds the memory of what is in hand, which may have been removed.
    fn finds(&self, template: &Template) -> bool {
        let found = |name: String| rustix::fs::statat(&self.memories, name, AtFlags::SYMLINK_NOFOLLOW).is_ok();
        template.memory_name().is_ok_and(found)
    }

    /// Lets go of what was removed, for an open file keeps its room on the disk.
    fn forget_the_gone(&self) {
        self.places().retain(|_, place| !matches!(place, Place::There(template) if !self.finds(template)));
    }

    /// Removes what is over the limits, beside everything else.
    pub(crate) fn tidy(&self) {
        let store = self.store.clone();
        self.writing.spawn_blocking(move || {
            let report = store.tidy();
            debug!(?report, "tidied the snapshots");
        });
    }

    /// Waits until what is being written down is there, for a while.
    pub(crate) async fn settle(&self) {
        self.writing.close();
        if tokio::time::timeout(SETTLE_PATIENCE, self.writing.wait()).await.is_err() {
            warn!("a snapshot is not written down yet, and will be made anew");
        }
    }

    /// What is there, or who is waited for; if there is nobody, the place is taken.
    fn reserve(self: &Arc<Self>, key: Key) -> Reserved {
        let mut places = self.places();
        match places.get(&key) {
            Some(Place::There(template)) if self.finds(template) => {
                self.store.note_use(key);
                Reserved::There(Arc::clone(template))
            }
            Some(Place::Coming(coming)) => Reserved::Others(coming.clone()),
            Some(Place::Resting(until)) if Instant::now() < *until => Reserved::Nothing,
            Some(Place::There(_) | Place::Resting(_)) | None => {
                let (waited_for, coming) = watch::channel(());
                places.insert(key, Place::Coming(coming));
                Reserved::Own(Coming { shelf: Arc::clone(self), key, _waited_for: waited_for })
            }
        }
    }

    fn parts(&self, want: &Want) -> Parts {
        let Want { machine, memory_mib, language, packages, layer, is_preloaded } = want.clone();
        Parts { machine, memory_mib, language: Some(language), packages, layer, is_preloaded, ..self.common.clone() }
    }

    fn places(&self) -> MutexGuard<'_, HashMap<Key, Place>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Donation {
    /// What is to be filled, and where it will stand.
    pub(crate) fn into_parts(self) -> (Draft, Coming) {
        (self.draft, self.place)
    }
}

impl Coming {
    /// Offers what was made to everyone in this process, and writes it down for others beside everything else.
    pub(crate) fn publish(self, draft: Draft) {
        let shelf = Arc::clone(&self.shelf);
        let template = match draft.template() {
            Ok(template) => template,
            Err(error) => return warn!(%error, "a snapshot cannot be used"),
        };
        self.fill(Arc::clone(&template));
        let key = template.key();
        let (shared, facts, is_taken) = (shelf.shared.clone(), draft.facts(), draft.is_taken());
        let tidied = Arc::clone(&shelf);
        let written = shelf.writing.spawn_blocking(move || match draft.publish() {
            Ok(template) => {
                info!(key = %template.key(), "saved a snapshot");
                if let (Some(shared), Some(facts), false) = (shared, facts, is_taken) {
                    // Translations stay here: no other machine would believe them.
                    shared.give(entry_name(key), facts, &[(RAM, template.ram()), (STATE, template.state_file())]);
                }
                tidied.store.tidy();
                tidied.forget_the_gone();
            }
            Err(error) => warn!(error = &error as &dyn std::error::Error, "a snapshot cannot be written down"),
        });
        shelf.written.lock().unwrap_or_else(PoisonError::into_inner).insert(key, written);
    }

    /// Nothing came of it, and would not at once if it were tried again.
    pub(crate) fn give_up(self) {
        let rest = self.shelf.rest;
        self.rest_for(rest);
    }

    /// Nothing came of it for no fault of the snapshot's. Those who wait do without, and do not try one after the other.
    pub(crate) fn step_back(self) {
        let rest = self.shelf.rest.min(AFTER_A_FAILURE);
        self.rest_for(rest);
    }

    fn rest_for(self, rest: Duration) {
        self.shelf.places().insert(self.key, Place::Resting(Instant::now() + rest));
    }

    fn fill(self, template: Arc<Template>) {
        let mut places = self.shelf.places();
        cache_dir::make_place(&mut places, |place| matches!(place, Place::There(_)));
        places.insert(self.key, Place::There(template));
    }
}

impl Drop for Coming {
    fn drop(&mut self) {
        let mut places = self.shelf.places();
        if matches!(places.get(&self.key), Some(Place::Coming(_))) {
            places.remove(&self.key);
        }
    }
}

/// What came of taking a snapshot from another machine.
enum Taken {
    /// It is in the draft.
    Whole(Draft, Arc<Template>),
    /// The draft is to be filled.
    Nothing(Draft),
    /// The draft is of no use any more.
    Lost,
}

/// The name of a snapshot where several machines find it.
fn entry_name(key: Key) -> (&'static str, String) {
    (shared::SNAPSHOT, key.to_string())
}

/// A place as it is found.
enum Reserved {
    There(Arc<Template>),
    /// Somebody fills it; an error is the end of that.
    Others(watch::Receiver<()>),
    /// It stays empty for a while.
    Nothing,
    Own(Coming),
}

/// What the store has.
enum Found {
    Template(Arc<Template>),
    Draft(Box<Draft>),
    Nothing,
}

fn find_or_begin(store: &Store, parts: &Parts) -> Result<Found, StoreError> {
    if let Some(template) = store.find(parts)? {
        return Ok(Found::Template(template));
    }
    if let Some(draft) = store.begin(parts)? {
        return Ok(Found::Draft(Box::new(draft)));
    }
    // It may have appeared just now.
    Ok(store.find(parts)?.map_or(Found::Nothing, Found::Template))
}

#[cfg(test)]
mod tests;
