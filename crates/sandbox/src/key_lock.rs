//! The right to make what is kept under a key, a snapshot or a layer: one holder at a time, in whatever process.
//!
//! A lock file for each key is never removed: deleting it would let two holders have one each. On some file systems a lock of a file does
//! not exclude within one process, so keys are also held in memory. A forked process shares the lock of the one that it was forked from:
//! it gives nothing back, and a lock whose owner, by the name in the file, is gone is nobody's.

use std::{
    collections::HashSet,
    fs::{File, TryLockError},
    io::{self, Read as _, Seek as _, Write as _},
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use exec_sandbox_image::Digest;

use crate::{maker::Maker, run_dir::Owner};

/// An owner's name has a few hundred bytes.
const MAX_OWNER_BYTES: u64 = 4096;

/// The keys that are held by this process.
#[derive(Debug, Default)]
pub(crate) struct Held(Mutex<HashSet<Digest>>);

/// The lock of one key, held by this process for as long as this lives.
#[derive(Debug)]
pub(crate) struct KeyLock {
    file: File,
    held: Arc<Held>,
    key: Digest,
    maker: Maker,
}

impl KeyLock {
    /// Takes the lock of `key`, whose file is made in `dir` if it is missing. `None`: somebody has it.
    pub(crate) fn try_take(dir: &Path, key: Digest, held: &Arc<Held>) -> io::Result<Option<Self>> {
        let path = dir.join(key.to_string());
        let file = File::options().create(true).truncate(false).read(true).write(true).open(path)?;
        if !held.insert(key) {
            return Ok(None);
        }
        // From here on dropping it gives back what has been taken.
        let mut lock = Self { file, held: Arc::clone(held), key, maker: Maker::this_process() };
        match lock.file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) if lock.is_left_by_one_who_is_gone() => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(error),
        }
        lock.sign()?;
        Ok(Some(lock))
    }

    /// Whether this process took it. A forked one has inherited it.
    pub(crate) fn is_own(&self) -> bool {
        self.maker.is_this_process()
    }

    fn is_left_by_one_who_is_gone(&self) -> bool {
        let mut name = Vec::new();
        let read = (&self.file).take(MAX_OWNER_BYTES).read_to_end(&mut name);
        read.is_ok() && serde_json::from_slice::<Owner>(&name).is_ok_and(|owner| owner.is_known_to_be_gone())
    }

    fn sign(&mut self) -> io::Result<()> {
        let name = serde_json::to_vec(&Owner::this_process()?)?;
        self.file.rewind()?;
        self.file.set_len(0)?;
        self.file.write_all(&name)
    }
}

impl Drop for KeyLock {
    fn drop(&mut self) {
        if self.is_own() {
            let _ = self.file.unlock();
            self.held.remove(self.key);
        }
    }
}

impl Held {
    fn insert(&self, key: Digest) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(key)
    }

    fn remove(&self, key: Digest) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
    }
}
