//! The store of layers: a directory that is shared with other processes.
//!
//! `<dir>/<key>/` is a layer: `layer`, a read-only EROFS; `manifest.json`, what it was made of and what it is; `verified`, a stamp that
//! spares reading it; `used`, whose time is that of the last use; and `pinned`, if it is to stay whatever the limits say. It appears by
//! rename, is never changed, and goes by rename too, so it is found whole or not at all. Beside the layers are `drafts` that are being
//! made, the `locks` of those who make them, and `trash`.

use std::{
    fs::{self, File, Permissions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use exec_sandbox_image::{Digest, Stamp};
use rustix::fs::OFlags;
use tracing::{debug, warn};

use super::{
    Layer,
    manifest::{LayerManifest, MAX_MANIFEST_BYTES, ManifestError},
    parts::{LayerKey, LayerParts},
};
use crate::{
    cache_dir::{self, Candidate, Limits, Rule, chain, discard, entries, is_taken},
    key_lock::{Held, KeyLock},
    private_dir,
};

pub(crate) const LAYER: &str = "layer";
pub(crate) const MANIFEST: &str = "manifest.json";
const VERIFIED: &str = "verified";
const USED: &str = "used";

const FOR_EVER: u32 = 0o444;

/// See the head of this file. Clones are the same store.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    dir: PathBuf,
    limits: Limits,
    boot_id: Option<Arc<str>>,
    held: Arc<Held>,
}

/// A layer in the making: a directory that has no name yet, and the right to give it one. Dropped, it is removed.
#[derive(Debug)]
pub(crate) struct Draft {
    store: Store,
    parts: LayerParts,
    dir: PathBuf,
    // Last, so that the directory is gone when it is given back.
    lock: KeyLock,
}

/// Why the store could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    #[error("cannot {doing} {}", path.display())]
    Io { doing: &'static str, path: PathBuf, source: io::Error },
    #[error("there is no room in {}: {free_bytes} bytes are free, {needed_bytes} are needed", path.display())]
    NoRoom { path: PathBuf, free_bytes: u64, needed_bytes: u64 },
}

/// Why a layer is not used and is made anew.
#[derive(Debug, thiserror::Error)]
enum Damage {
    #[error("its manifest cannot be used")]
    Manifest(#[from] ManifestError),
    #[error("its manifest is of another layer")]
    WrongKey,
    #[error("it has {found_bytes} bytes instead of {expected_bytes}")]
    Length { found_bytes: u64, expected_bytes: u64 },
    #[error("it has another content")]
    Content,
    #[error("{0} is missing")]
    Missing(&'static str),
}

enum Trouble {
    Damaged(Damage),
    Failed(StoreError),
}

impl Store {
    /// The store in `dir`, which need not exist yet.
    pub(crate) fn at(dir: PathBuf, limits: Limits) -> Self {
        let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok().map(|id| id.trim().into());
        Self { dir, limits, boot_id, held: Arc::default() }
    }

    /// The layer of these parts, if there is one and it is whole; one that is damaged is removed. It is read in full once in a boot of
    /// the machine, and then only if its file was touched.
    pub(crate) fn find(&self, parts: &LayerParts) -> Result<Option<Arc<Layer>>, StoreError> {
        match private_dir::check(&self.dir) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(StoreError::io("use", &self.dir)(error)),
        }
        let path = self.layer_dir(parts.key());
        if fs::symlink_metadata(&path).is_err() {
            return Ok(None);
        }
        match self.open(&path, parts) {
            Ok(layer) => {
                self.note_use(parts.key());
                Ok(Some(Arc::new(layer)))
            }
            Err(Trouble::Failed(error)) => Err(error),
            Err(Trouble::Damaged(damage)) => {
                // What somebody else has begun to remove is not damaged.
                if fs::symlink_metadata(&path).is_ok() {
                    warn!(key = %parts.key(), why = chain(&damage), "a layer of packages is damaged and is made anew");
                    discard(&self.trash_dir(), &path);
                }
                Ok(None)
            }
        }
    }

    /// Notes that a layer was used now.
    pub(crate) fn note_use(&self, key: LayerKey) {
        cache_dir::note_use(&self.layer_dir(key).join(USED));
    }

    /// Begins to make the layer of these parts. `None`: another process or task is making it.
    pub(crate) fn begin(&self, parts: &LayerParts) -> Result<Option<Draft>, StoreError> {
        let (key, locks, drafts) = (parts.key(), self.locks_dir(), self.drafts_dir());
        for dir in [&self.dir, &locks, &drafts] {
            private_dir::create(dir).map_err(StoreError::io("use", dir))?;
        }
        let lock =
            KeyLock::try_take(&locks, key.digest(), &self.held).map_err(StoreError::io("lock a file in", &locks))?;
        let Some(lock) = lock else { return Ok(None) };
        cache_dir::clear_drafts(&drafts, key.digest());
        let made = tempfile::Builder::new()
            .prefix(&cache_dir::draft_prefix(key.digest()))
            .permissions(Permissions::from_mode(0o700))
            .tempdir_in(&drafts)
            .map_err(StoreError::io("make a directory in", &drafts))?;
        Ok(Some(Draft { store: self.clone(), parts: parts.clone(), dir: made.keep(), lock }))
    }

    /// Removes what is over the limits, and what processes have left that are gone. Safe beside others that use the store.
    pub(crate) fn tidy(&self) {
        self.tidy_to(self.limits.max_bytes, SystemTime::now());
    }

    fn tidy_to(&self, max_bytes: u64, now: SystemTime) {
        if private_dir::check(&self.dir).is_err() {
            return;
        }
        self.clear_up();
        let rule = Rule::Within { max_bytes };
        let evicted =
            cache_dir::evict(self.all(now), rule, now, |candidate| discard(&candidate.trash, &candidate.path));
        for gone in evicted.gone {
            debug!(path = %gone.path.display(), bytes = gone.bytes, "a layer of packages was removed");
        }
    }

    /// Removes what processes have left that are gone.
    pub(crate) fn clear_up(&self) {
        cache_dir::empty(&self.trash_dir());
        cache_dir::clear_abandoned_drafts(&self.drafts_dir(), &self.locks_dir(), &self.held);
    }

    /// What there is and could go, for one who looks at it. Nothing is there if the store is not.
    pub(crate) fn candidates(&self, now: SystemTime) -> Result<Vec<Candidate>, StoreError> {
        match private_dir::check(&self.dir) {
            Ok(()) => Ok(self.all(now)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(StoreError::io("use", &self.dir)(error)),
        }
    }

    /// What the layer in the directory `path` says of itself. Nothing is proven, nor is its use noted.
    pub(crate) fn describe(path: &Path, key: LayerKey) -> Result<LayerManifest, String> {
        match open_claimed(path) {
            Ok((manifest, _)) if manifest.parts.key() == key => Ok(manifest),
            Ok(_) => Err(chain(&Damage::WrongKey)),
            Err(Trouble::Damaged(damage)) => Err(chain(&damage)),
            Err(Trouble::Failed(error)) => Err(chain(&error)),
        }
    }

    fn all(&self, now: SystemTime) -> Vec<Candidate> {
        let trash = self.trash_dir();
        self.paths().map(|path| Candidate::at(path, &trash, USED, self.limits.max_age, now)).collect()
    }

    /// Where each layer is.
    fn paths(&self) -> impl Iterator<Item = PathBuf> + use<> {
        let is_layer = |name: &str| name.parse::<LayerKey>().is_ok();
        let paths =
            entries(&self.dir).into_iter().filter(move |entry| entry.file_name().to_str().is_some_and(is_layer));
        paths.map(|entry| entry.path())
    }

    fn open(&self, path: &Path, parts: &LayerParts) -> Result<Layer, Trouble> {
        let (manifest, file) = open_claimed(path)?;
        if manifest.parts != *parts {
            return Err(Trouble::Damaged(Damage::WrongKey));
        }
        let examine = || file.metadata().map_err(|error| failed("examine", path, error));
        let found = examine()?;
        let stamp = self.stamped(Stamp::of(&found, manifest.digest));
        let place = path.join(VERIFIED);
        if !stamp.as_ref().is_some_and(|stamp| stamp.is_at(&place)) {
            let (digest, _) = Digest::of_reader(&file).map_err(|error| failed("read", path, error))?;
            if digest != manifest.digest {
                return Err(Trouble::Damaged(Damage::Content));
            }
            if self.stamped(Stamp::of(&examine()?, digest)) == stamp {
                // Without it the next process reads again: slower, and just as right.
                let _ = stamp.map(|stamp| stamp.leave_at(&place));
            }
        }
        Ok(Layer::new(manifest, file))
    }

    /// A proof as it is written down, if it can be said for which boot of the machine it holds.
    fn stamped(&self, stamp: Stamp) -> Option<Stamp> {
        self.boot_id.as_deref().map(|boot_id| stamp.during_boot(boot_id))
    }

    fn layer_dir(&self, key: LayerKey) -> PathBuf {
        self.dir.join(key.to_string())
    }

    fn drafts_dir(&self) -> PathBuf {
        self.dir.join("drafts")
    }

    fn locks_dir(&self) -> PathBuf {
        self.dir.join("locks")
    }

    /// What goes, goes through here.
    pub(crate) fn trash_dir(&self) -> PathBuf {
        self.dir.join("trash")
    }
}

impl Draft {
    /// The directory in which its file is made.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where the layer's content is written to.
    pub(crate) fn path(&self) -> PathBuf {
        self.dir.join(LAYER)
    }

    pub(crate) fn parts(&self) -> &LayerParts {
        &self.parts
    }

    /// Finds room for so many bytes, if need be by removing layers that were not used for longest. `let_go` closes those that are
    /// removed: until then they take their room.
    pub(crate) fn make_room(&self, needed_bytes: u64, let_go: impl Fn()) -> Result<(), StoreError> {
        let free = || {
            let_go();
            cache_dir::free_bytes(&self.dir).map_err(StoreError::io("examine", &self.dir))
        };
        let lacking = needed_bytes.saturating_sub(free()?);
        if lacking > 0 {
            let taken: u64 = self.store.paths().map(|path| cache_dir::allocated_bytes(&path)).sum();
            self.store.tidy_to(taken.saturating_sub(lacking), SystemTime::now());
        }
        let free_bytes = free()?;
        if free_bytes < needed_bytes {
            return Err(StoreError::NoRoom { path: self.store.dir.clone(), free_bytes, needed_bytes });
        }
        Ok(())
    }

    /// Makes it a layer that others find: all of it or nothing. Reads the file, and blocks for so long.
    pub(crate) fn publish(self, installed: Vec<String>) -> Result<Arc<Layer>, StoreError> {
        let path = self.path();
        let read = |file: &File| Digest::of_reader(file).map_err(StoreError::io("read", &path));
        let file = File::open(&path).map_err(StoreError::io("open", &path))?;
        file.set_permissions(Permissions::from_mode(FOR_EVER)).map_err(StoreError::io("seal", &path))?;
        let (digest, size_bytes) = read(&file)?;
        let manifest = LayerManifest::new(self.parts.clone(), digest, size_bytes, installed);
        let json = manifest.to_json().map_err(|error| StoreError::io("write", &path)(error.into()))?;
        self.write(MANIFEST, FOR_EVER, &json)?;
        self.write(USED, 0o600, b"")?;
        let examined = file.metadata().map_err(StoreError::io("examine", &path))?;
        // Without it the next process reads the file, and finds the same.
        let _ = self.store.stamped(Stamp::of(&examined, digest)).map(|stamp| stamp.leave_at(&self.dir.join(VERIFIED)));
        let target = self.store.layer_dir(self.parts.key());
        match fs::rename(&self.dir, &target) {
            Ok(()) => Ok(Arc::new(Layer::new(manifest, file))),
            // Another has been published meanwhile, which is as good.
            Err(error) if is_taken(&error) => match self.store.find(&self.parts)? {
                Some(other) => Ok(other),
                None => fs::rename(&self.dir, &target)
                    .map(|()| Arc::new(Layer::new(manifest, file)))
                    .map_err(StoreError::io("create", &target)),
            },
            Err(error) => Err(StoreError::io("create", &target)(error)),
        }
    }

    fn write(&self, name: &str, mode: u32, content: &[u8]) -> Result<(), StoreError> {
        let path = self.dir.join(name);
        let file = File::options().write(true).create_new(true).mode(mode).open(&path);
        file.and_then(|mut file| file.write_all(content)).map_err(StoreError::io("write", &path))
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if self.lock.is_own() {
            // Gone already if it was published.
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}

impl StoreError {
    pub(crate) fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { doing, path: path.to_owned(), source }
    }

    /// Whether the disk is full.
    pub(crate) fn is_no_room(&self) -> bool {
        match self {
            Self::NoRoom { .. } => true,
            Self::Io { source, .. } => {
                matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
            }
        }
    }
}

fn failed(doing: &'static str, path: &Path, error: io::Error) -> Trouble {
    Trouble::Failed(StoreError::io(doing, path)(error))
}

/// The files in the directory `path` of a layer, whose manifest says how long the other one is. Nothing has been read of that.
fn open_claimed(path: &Path) -> Result<(LayerManifest, File), Trouble> {
    let open = |name: &'static str| {
        let at = path.join(name);
        let file = File::options().read(true).custom_flags(no_links()).open(&at);
        file.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Trouble::Damaged(Damage::Missing(name)),
            _ => Trouble::Failed(StoreError::io("open", &at)(error)),
        })
    };
    let (manifest, file) = (open(MANIFEST)?, open(LAYER)?);
    let mut json = Vec::new();
    manifest.take(MAX_MANIFEST_BYTES).read_to_end(&mut json).map_err(|error| failed("read", path, error))?;
    let manifest = LayerManifest::from_json(&json).map_err(|error| Trouble::Damaged(error.into()))?;
    let found_bytes = file.metadata().map_err(|error| failed("examine", path, error))?.len();
    if found_bytes != manifest.size_bytes {
        let expected_bytes = manifest.size_bytes;
        return Err(Trouble::Damaged(Damage::Length { found_bytes, expected_bytes }));
    }
    Ok((manifest, file))
}

/// A link in the place of a file is not followed.
fn no_links() -> i32 {
    i32::try_from(OFlags::NOFOLLOW.bits()).unwrap_or_default()
}

#[cfg(test)]
pub(crate) mod tests;
