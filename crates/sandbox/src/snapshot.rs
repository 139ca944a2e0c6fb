//! Memory snapshots: the store of VMs that were saved when their interpreter was warm, from which others are cloned.
//!
//! `<dir>/<key>/` is a snapshot: `ram`, the guest's memory as a sparse file; `state`, QEMU's device state; under software emulation
//! perhaps `translations`, the guest's code as QEMU has translated it, which another process of the same program takes instead of doing
//! that again; `manifest.json`, what these are and what the VM was made of (`parts`); `verified`, a stamp that spares reading them
//! (`template`); and `used`, whose time is that of the last use. It appears by rename, is never changed, and goes by rename too, so it is
//! found whole or not at all. Beside the snapshots are the `memories`, where QEMU finds what it may map (`memories`), `drafts` that are
//! being made (`draft`), the `locks` of those who make them (`lock`), a `quarantine` of what turned out to be damaged, and `trash` that is
//! being removed (`tidy`).
//!
//! Translations are code that runs on the host, outside the guest. QEMU wrote them to a file of no name, and what is here is the host's
//! copy, which nobody had open for writing but the host. They never leave the machine, nor come from another; guests of other kinds that
//! boot take them too (`relatives`).
//!
//! Owns files. What a VM does to be saved or restored is not its business.

mod draft;
mod error;
mod fill;
#[cfg(fuzzing)]
pub(crate) mod fuzzing;
mod manifest;
mod memories;
mod parts;
mod relatives;
mod shelf;
mod template;
mod tidy;

use std::{
    collections::{HashMap, HashSet},
    fs::{self, File},
    io::{self, Read as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use exec_sandbox_image::Stamp;
use tracing::warn;

use crate::{
    cache_dir::{Candidate, Limits, chain, note_use, unix_ns},
    key_lock::{Held, KeyLock},
    private_dir,
};
use error::{Damage, Trouble};
use template::Claimed;

pub(crate) use draft::Draft;
pub(crate) use error::StoreError;
pub(crate) use fill::MAX_TRANSLATIONS_BYTES;
pub(crate) use parts::{Key, Parts};
pub(crate) use shelf::{Donation, Offer, Shelf, Want};
pub(crate) use template::Template;
pub(crate) use tidy::Report;

/// Files of a snapshot.
const RAM: &str = "ram";
const STATE: &str = "state";
const TRANSLATIONS: &str = "translations";
const MANIFEST: &str = "manifest.json";
const VERIFIED: &str = "verified";
const USED: &str = "used";

/// Why something is in quarantine, for people.
const REASON: &str = "reason";
/// Most that is read of it.
const MAX_REASON_BYTES: u64 = 4096;

/// A directory of snapshots, shared with other processes. Clones are the same store.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    dir: PathBuf,
    limits: Limits,
    known: Arc<Known>,
    held: Arc<Held>,
}

/// What this process has found out about snapshots.
#[derive(Debug, Default)]
struct Known {
    /// This boot of this machine; `None` if it has no name.
    boot_id: Option<String>,
    /// Snapshots that this process has read, where that could not be written down.
    proven: Mutex<HashMap<Key, Stamp>>,
    /// Snapshots that are damaged and could not be taken away.
    refused: Mutex<HashSet<Key>>,
}

impl Store {
    /// The store in `dir`, which need not exist yet.
    pub(crate) fn at(dir: PathBuf, limits: Limits) -> Self {
        let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok().map(|id| id.trim().to_owned());
        Self { dir, limits, known: Arc::new(Known { boot_id, ..Known::default() }), held: Arc::default() }
    }

    /// The snapshot of these parts, if there is one and it is whole. One that is damaged is set aside.
    ///
    /// It is read in full once in a boot of the machine, and then only if its files were touched.
    pub(crate) fn find(&self, parts: &Parts) -> Result<Option<Arc<Template>>, StoreError> {
        let key = parts.key();
        if self.refused().contains(&key) || !self.is_there()? {
            return Ok(None);
        }
        match self.open(key) {
            Ok(template) => Ok(template.map(Arc::new)),
            Err(Trouble::Failed(error)) => Err(error),
            Err(Trouble::Damaged(damage)) => {
                self.set_aside(key, &damage);
                Ok(None)
            }
        }
    }

    /// Begins to make the snapshot of these parts. `None`: another process or task is making it, or has just made it.
    pub(crate) fn begin(&self, parts: &Parts) -> Result<Option<Draft>, StoreError> {
        let (key, locks) = (parts.key(), self.locks_dir());
        private_dir::create(&self.dir).map_err(StoreError::io("use", &self.dir))?;
        private_dir::create(&locks).map_err(StoreError::io("use", &locks))?;
        let lock =
            KeyLock::try_take(&locks, key.digest(), &self.held).map_err(StoreError::io("lock a file in", &locks))?;
        let Some(lock) = lock else { return Ok(None) };
        // Whoever had the lock before may have published it since it was looked for.
        if fs::symlink_metadata(self.template_dir(key)).is_ok() {
            return Ok(None);
        }
        Draft::begin(self, parts, lock).map(Some)
    }

    /// Takes the snapshot with this [memory](Template::memory_name) away for good, because a VM that was restored from it did not work;
    /// not another that is in its place now.
    pub(crate) fn condemn(&self, key: Key, memory: &str, why: &str) {
        let found = File::open(self.template_dir(key).join(RAM)).and_then(|ram| memories::name(&ram));
        if found.is_ok_and(|found| found == memory) {
            self.quarantine(&key, why);
        }
    }

    /// Notes that a snapshot was used now.
    fn note_use(&self, key: Key) {
        note_use(&self.template_dir(key).join(USED));
    }

    pub(crate) fn quarantine(&self, key: &Key, why: &str) {
        let name = format!("{}-{key}", unix_ns(SystemTime::now()));
        let (from, dir) = (self.template_dir(*key), self.quarantine_dir());
        let to = dir.join(name);
        match private_dir::create(&dir).and_then(|()| fs::rename(&from, &to)) {
            Ok(()) => {
                warn!(%key, why, "a memory snapshot is of no use and was set aside");
                let _ = fs::write(to.join(REASON), why);
            }
            // Somebody else was faster.
            Err(_) if fs::symlink_metadata(&from).is_err() => {}
            Err(error) => {
                warn!(%key, why, %error, "a memory snapshot is of no use and cannot be set aside");
                self.refused().insert(*key);
            }
        }
        if tidy::thin_out(&dir) > 0 {
            memories::sweep(&self.memories_dir());
        }
    }

    /// Removes what is over the limits and what processes have left that are gone. Safe beside others that use the store.
    pub(crate) fn tidy(&self) -> Report {
        tidy::tidy(self, SystemTime::now())
    }

    /// Removes what is of no use to anybody, whatever the limits are.
    pub(crate) fn clear_up(&self) {
        tidy::clear_up(self);
    }

    /// What there is and could go, for one who looks at it. Nothing is there if the store is not.
    pub(crate) fn candidates(&self, now: SystemTime) -> Result<Vec<Candidate>, StoreError> {
        Ok(if self.is_there()? { tidy::candidates(self, now) } else { Vec::new() })
    }

    /// What the snapshot in the directory `path` was made of, as it says itself. Nothing is proven, nor is its use noted.
    pub(crate) fn describe(path: &Path, key: Key) -> Result<Parts, String> {
        match Claimed::open(path, key) {
            Ok(Some(claimed)) => Ok(claimed.parts().clone()),
            Ok(None) => Err("it is gone".into()),
            Err(Trouble::Damaged(damage)) => Err(chain(&damage)),
            Err(Trouble::Failed(error)) => Err(chain(&error)),
        }
    }

    /// Why the snapshot in the directory `path` was set aside.
    pub(crate) fn reason(path: &Path) -> String {
        let mut why = String::new();
        let read = File::open(path.join(REASON)).and_then(|file| file.take(MAX_REASON_BYTES).read_to_string(&mut why));
        if read.is_ok() { why } else { "nobody says why".into() }
    }

    /// Where it is.
    #[cfg(test)]
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The directory in which a QEMU finds a [memory](Template::memory_name) and [translations](Template::translations_name) by their
    /// names, made if it is missing.
    pub(crate) fn memories(&self) -> io::Result<File> {
        private_dir::create(&self.dir)?;
        let dir = self.memories_dir();
        memories::create(&dir)?;
        memories::open(&dir)
    }

    fn is_there(&self) -> Result<bool, StoreError> {
        match private_dir::check(&self.dir) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(StoreError::io("use", &self.dir)(error)),
        }
    }

    fn open(&self, key: Key) -> Result<Option<Template>, Trouble> {
        let path = self.template_dir(key);
        let Some(claimed) = Claimed::open(&path, key)? else { return Ok(None) };
        self.prove(&claimed, key, &path.join(VERIFIED))?;
        note_use(&path.join(USED));
        Ok(Some(claimed.into_template()))
    }

    /// Reads the files, unless they have been and were not touched since.
    fn prove(&self, claimed: &Claimed, key: Key, place: &Path) -> Result<(), Trouble> {
        let stamp = claimed.stamp()?;
        if self.stamped(stamp.clone()).is_some_and(|stamp| stamp.is_at(place)) {
            return Ok(());
        }
        // One at a time: what the second would read, the first has read.
        let mut proven = self.known.proven.lock().unwrap_or_else(PoisonError::into_inner);
        if proven.get(&key) == Some(&stamp) {
            return Ok(());
        }
        claimed.verify()?;
        // A file that was written to while it was read proves nothing about what it holds now.
        if claimed.stamp()? == stamp {
            proven.insert(key, stamp.clone());
            // Without it the next process reads again: slower, and just as right.
            let _ = self.stamped(stamp).map(|stamp| stamp.leave_at(place));
        }
        Ok(())
    }

    /// A proof as it is written down, if it can be said for which boot of the machine it holds.
    fn stamped(&self, stamp: Stamp) -> Option<Stamp> {
        self.known.boot_id.as_deref().map(|boot_id| stamp.during_boot(boot_id))
    }

    fn set_aside(&self, key: Key, damage: &Damage) {
        self.quarantine(&key, &chain(damage));
    }

    fn refused(&self) -> MutexGuard<'_, HashSet<Key>> {
        self.known.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn template_dir(&self, key: Key) -> PathBuf {
        self.dir.join(key.to_string())
    }

    fn drafts_dir(&self) -> PathBuf {
        self.dir.join("drafts")
    }

    fn locks_dir(&self) -> PathBuf {
        self.dir.join("locks")
    }

    fn quarantine_dir(&self) -> PathBuf {
        self.dir.join("quarantine")
    }

    fn memories_dir(&self) -> PathBuf {
        self.dir.join("memories")
    }

    /// What goes, goes through here.
    pub(crate) fn trash_dir(&self) -> PathBuf {
        self.dir.join("trash")
    }
}

#[cfg(test)]
pub(crate) mod tests;
