//! Package layers: what is installed for a set of packages, once, as a read-only disk that every VM with that set has.
//!
//! ```text
//! a set ── in hand, or in the store ─────────────────────────────▶ layer
//!   └─ being made by somebody ── waits ──────────────────────────▶ layer
//!   └─ nobody makes it: a task does ── installs in a VM of ours ──▶ published ▶ layer
//! ```
//! The task is not its caller's: one who goes away leaves it to those who wait, and to whoever asks next. The disk goes to QEMU as a
//! descriptor that is open for reading, so nobody who runs in a VM can change what the next one finds, or read another's.

#[cfg(fuzzing)]
pub(crate) mod fuzzing;
mod install;
mod manifest;
mod parts;
mod source;
mod store;
#[cfg(test)]
mod tests;
mod verdict;

use std::{
    collections::HashMap,
    fs::File,
    io,
    os::{fd::OwnedFd, unix::fs::MetadataExt as _},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use exec_sandbox_image::Digest;
use tokio::{
    sync::{mpsc, watch},
    time::sleep,
};
use tracing::{debug, info, warn};

pub(crate) use install::Workshop;
pub(crate) use manifest::LayerManifest;
pub(crate) use parts::LayerKey;
pub(crate) use source::{Indexes, Sources, ToolVariables};
pub(crate) use store::Store;
#[cfg(test)]
pub(crate) use store::tests as store_tests;

use crate::{
    Error, ErrorKind, MAX_FILE_BYTES, Output, cache_dir,
    request::PackageSet,
    shared::{self, SharedCache},
};
use install::Installation;
use parts::{FORMAT, LayerParts};
use store::{Draft, StoreError};

/// Between two looks at what another process makes.
const LOOK: Duration = Duration::from_millis(200);

/// Largest layer: what can be taken out of the machine that makes it.
const MAX_LAYER_BYTES: u64 = MAX_FILE_BYTES;

/// Machines that are lost while they install, before it is believed that they always will be.
const MOST_LOST: u32 = 2;

/// A layer for use: its file is open, so it stays whole when it is removed, and nobody writes to it.
#[derive(Debug)]
pub(crate) struct Layer {
    manifest: LayerManifest,
    file: File,
}

/// The layers of one image, shared by all VMs of a host.
#[derive(Debug)]
pub(crate) struct Layers {
    store: Store,
    /// The image's root file system.
    root: Digest,
    sources: Sources,
    /// Where layers may come from, and go.
    shared: Option<Arc<SharedCache>>,
    places: Mutex<HashMap<LayerKey, Place>>,
}

/// What there is of one layer.
#[derive(Clone, Debug)]
enum Place {
    There(Arc<Layer>),
    /// It is looked for or made.
    Coming(watch::Receiver<Option<Made>>),
}

/// How the making of a layer ended.
type Made = Result<Arc<Layer>, Failure>;

/// Why there is no layer, for all who wait for it.
#[derive(Clone, Debug)]
struct Failure {
    kind: ErrorKind,
    message: String,
    remedy: Option<String>,
    cause: Option<String>,
    /// The machine ended under the installation, which another may not.
    is_of_a_lost_machine: bool,
}

impl Layer {
    fn new(manifest: LayerManifest, file: File) -> Self {
        Self { manifest, file }
    }

    /// What is in it.
    pub(crate) fn digest(&self) -> Digest {
        self.manifest.digest
    }

    /// Its file, to be passed to one QEMU, which reads it by positions of its own.
    pub(crate) fn open(&self) -> io::Result<OwnedFd> {
        use std::os::fd::AsRawFd as _;
        Ok(File::open(format!("/proc/self/fd/{}", self.file.as_raw_fd()))?.into())
    }

    /// Whether it takes room of the disk only because it is open.
    fn is_removed(&self) -> bool {
        self.file.metadata().is_ok_and(|file| file.nlink() == 0)
    }
}

impl Layers {
    pub(crate) fn new(store: Store, root: Digest, sources: Sources, shared: Option<Arc<SharedCache>>) -> Self {
        Self { store, root, sources, shared, places: Mutex::default() }
    }

    /// The layer of `set`, which is installed in `workshop` if nobody has done that yet. What the installer says goes to `progress`.
    /// Dropping the future leaves the installation to whoever asks next.
    ///
    /// # Errors
    /// [`ErrorKind::PackageInstall`] and [`ErrorKind::PackageInstallTransient`] with the installer's own words; others for what keeps its
    /// machine from coming up.
    pub(crate) async fn get(
        self: &Arc<Self>,
        set: &PackageSet,
        workshop: &Workshop,
        progress: Option<mpsc::Sender<Output>>,
    ) -> Result<Arc<Layer>, Error> {
        let parts = self.parts(set)?;
        let mut coming = match self.reserve(parts.key()) {
            Reserved::There(layer) => return Ok(layer),
            Reserved::Others(coming) => coming,
            Reserved::Own(made, coming) => {
                let (layers, workshop) = (Arc::clone(self), workshop.clone());
                let alive = workshop.common.alive.clone();
                alive.spawn(async move { layers.bring(parts, workshop, progress, made).await });
                coming
            }
        };
        let made = coming.wait_for(Option::is_some).await.ok().and_then(|made| made.clone());
        match made {
            Some(Ok(layer)) => Ok(layer),
            Some(Err(failure)) => Err(failure.into()),
            None => Err(Error::new(ErrorKind::PackageInstallTransient, "installing packages: it was broken off")),
        }
    }

    /// Removes what is over the limits. Blocks.
    pub(crate) fn tidy(&self) {
        self.store.tidy();
    }

    fn parts(&self, set: &PackageSet) -> Result<LayerParts, Error> {
        let index = self.sources.of(set.language())?.index.map(|index| index.public());
        Ok(LayerParts { format: FORMAT, root: self.root, set: set.clone(), index })
    }

    /// Finds the layer or makes it, and tells everybody who waits.
    async fn bring(
        self: Arc<Self>,
        parts: LayerParts,
        workshop: Workshop,
        progress: Option<mpsc::Sender<Output>>,
        waiting: watch::Sender<Option<Made>>,
    ) {
        let key = parts.key();
        let closing = workshop.common.closing.clone();
        let made = tokio::select! {
            biased;
            () = closing.cancelled() => Err(Error::new(ErrorKind::Closed, "installing packages: the scheduler has been closed").into()),
            made = self.find_or_make(&parts, &workshop, progress) => made,
        };
        {
            let mut places = self.places();
            match &made {
                Ok(layer) => {
                    cache_dir::make_place(&mut places, |place| matches!(place, Place::There(_)));
                    places.insert(key, Place::There(Arc::clone(layer)));
                }
                Err(_) => drop(places.remove(&key)),
            }
        }
        waiting.send_replace(Some(made));
    }

    async fn find_or_make(
        &self,
        parts: &LayerParts,
        workshop: &Workshop,
        progress: Option<mpsc::Sender<Output>>,
    ) -> Made {
        let draft = loop {
            let (store, wanted) = (self.store.clone(), parts.clone());
            let found = tokio::task::spawn_blocking(move || find_or_begin(&store, &wanted)).await;
            match found.map_err(|panicked| Failure::host(&panicked))?? {
                Found::Layer(layer) => return Ok(layer),
                Found::Draft(draft) => break *draft,
                // Another process makes it.
                Found::Nothing => sleep(LOOK).await,
            }
        };
        match self.take(&draft).await {
            Some(manifest) => self.publish(draft, manifest.installed).await,
            None => self.make(draft, workshop, progress).await,
        }
    }

    /// Takes what another machine has installed to where `draft` wants it.
    async fn take(&self, draft: &Draft) -> Option<LayerManifest> {
        let (shared, name) = (self.shared.as_ref()?, entry_name(draft.parts().key()));
        let facts = shared.take(name, (&[store::LAYER], MAX_LAYER_BYTES), draft.dir()).await?;
        let manifest =
            LayerManifest::from_json(facts.as_bytes()).ok().filter(|manifest| manifest.parts == *draft.parts());
        let path = draft.path();
        let is_that = tokio::task::spawn_blocking(move || {
            let found = Digest::of_file(&path).ok();
            let manifest = manifest.filter(|manifest| found == Some((manifest.digest, manifest.size_bytes)));
            if manifest.is_none() {
                warn!("a layer of the remote cache is not what it is said to be, and is not used");
                let _ = std::fs::remove_file(&path);
            }
            manifest
        });
        is_that.await.ok().flatten()
    }

    async fn make(&self, draft: Draft, workshop: &Workshop, progress: Option<mpsc::Sender<Output>>) -> Made {
        let (set, key) = (draft.parts().set.clone(), draft.parts().key());
        debug!(%key, packages = ?set.requirements(), "packages are installed");
        let authorities = self.sources.authorities()?;
        let installation = Installation { workshop, layers: self, set: &set, authorities, progress };
        let mut lost = 0;
        let installed = loop {
            match installation.run(&draft).await {
                Err(failure) if failure.is_of_a_lost_machine && lost + 1 < MOST_LOST => lost += 1,
                ended => break ended?,
            }
        };
        let layer = self.publish(draft, installed).await?;
        info!(%key, packages = ?set.requirements(), "installed packages");
        if let Some(shared) = &self.shared
            && let Ok(facts) = layer.manifest.to_json()
        {
            let facts = String::from_utf8_lossy(&facts).into_owned();
            shared.give(entry_name(key), facts, &[(store::LAYER, &layer.file)]);
        }
        Ok(layer)
    }

    async fn publish(&self, draft: Draft, installed: Vec<String>) -> Made {
        let store = self.store.clone();
        let published = tokio::task::spawn_blocking(move || {
            let published = draft.publish(installed);
            store.tidy();
            published
        });
        Ok(published.await.map_err(|panicked| Failure::host(&panicked))??)
    }

    /// What is there, and used now, or who is waited for; if there is nobody, the place is taken.
    fn reserve(&self, key: LayerKey) -> Reserved {
        let mut places = self.places();
        match places.get(&key) {
            Some(Place::There(layer)) => {
                let layer = Arc::clone(layer);
                drop(places);
                self.store.note_use(key);
                Reserved::There(layer)
            }
            // One whose maker has panicked is nobody's.
            Some(Place::Coming(coming)) if coming.has_changed().is_ok() => Reserved::Others(coming.clone()),
            Some(Place::Coming(_)) | None => {
                let (made, coming) = watch::channel(None);
                places.insert(key, Place::Coming(coming.clone()));
                Reserved::Own(made, coming)
            }
        }
    }

    /// Lets those go that are in hand and were removed from the store. Who has one in use keeps it.
    fn let_go_of_removed(&self) {
        self.places().retain(|_, place| !matches!(place, Place::There(layer) if layer.is_removed()));
    }

    fn places(&self) -> MutexGuard<'_, HashMap<LayerKey, Place>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The name of a layer where several machines find it.
fn entry_name(key: LayerKey) -> (&'static str, String) {
    (shared::LAYER, key.to_string())
}

/// A place as it is found.
enum Reserved {
    There(Arc<Layer>),
    Others(watch::Receiver<Option<Made>>),
    Own(watch::Sender<Option<Made>>, watch::Receiver<Option<Made>>),
}

/// What the store has.
enum Found {
    Layer(Arc<Layer>),
    Draft(Box<Draft>),
    Nothing,
}

fn find_or_begin(store: &Store, parts: &LayerParts) -> Result<Found, StoreError> {
    if let Some(layer) = store.find(parts)? {
        return Ok(Found::Layer(layer));
    }
    let Some(draft) = store.begin(parts)? else { return Ok(Found::Nothing) };
    // Whoever had the right before may have published it since it was looked for.
    Ok(store.find(parts)?.map_or_else(|| Found::Draft(Box::new(draft)), Found::Layer))
}

impl Failure {
    fn host(error: &dyn std::error::Error) -> Self {
        let (message, cause) = ("installing packages".into(), Some(error.to_string()));
        Self { kind: ErrorKind::Host, message, remedy: None, cause, is_of_a_lost_machine: false }
    }
}

impl From<Error> for Failure {
    /// An error of the machine that installs. Its user's code has not run, whatever has become of ours.
    fn from(error: Error) -> Self {
        let (told, cause) = (error.to_string(), std::error::Error::source(&error).map(cache_dir::chain));
        let whole = cause.as_ref().map_or_else(|| told.clone(), |cause| format!("{told}: {cause}"));
        let remedy = error.remedy().map(str::to_owned);
        let failure = |kind, message: String, cause| Self { kind, message, remedy, cause, is_of_a_lost_machine: false };
        match error.kind() {
            ErrorKind::Vm | ErrorKind::OutcomeUnknown | ErrorKind::Guest | ErrorKind::Gateway => {
                let message = "installing packages: the machine in which they are installed was lost".into();
                let kind = ErrorKind::PackageInstallTransient;
                Self { is_of_a_lost_machine: true, ..failure(kind, message, Some(whole)) }
            }
            ErrorKind::OutputLimit | ErrorKind::File | ErrorKind::FileNotFound => {
                let message = "installing packages: what was installed could not be taken out".into();
                failure(ErrorKind::PackageInstall, message, Some(whole))
            }
            ErrorKind::Capacity => {
                let less = "give the machine that installs packages less memory: EXEC_SANDBOX_PACKAGE_MEMORY_MIB";
                Self { remedy: Some(less.to_owned()), ..failure(ErrorKind::Capacity, told, cause) }
            }
            kind => failure(kind, told, cause),
        }
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        let is_no_room = error.is_no_room();
        let remedy =
            is_no_room.then(|| "free some of the disk (sbx cache gc), or name another cache directory".to_owned());
        let message = "keeping what was installed".into();
        let cause = Some(cache_dir::chain(&error));
        Self { kind: ErrorKind::Host, message, remedy, cause, is_of_a_lost_machine: false }
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        let Failure { kind, message, remedy, cause, is_of_a_lost_machine: _ } = failure;
        let mut error = Self::new(kind, message);
        if let Some(cause) = cause {
            error = error.because(cause);
        }
        match remedy {
            Some(remedy) => error.remedied_by(remedy),
            None => error,
        }
    }
}
