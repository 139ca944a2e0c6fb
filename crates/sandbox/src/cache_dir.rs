//! Directories of things that can be made again, snapshots and layers: when each was used, what it takes, and how it goes.
//!
//! What goes is renamed into a directory of trash first, so that nobody finds it half removed; whoever has it open keeps it. Little here
//! is an error: what cannot be removed now is tried again the next time.

mod evict;

use std::{
    collections::{BTreeSet, HashMap},
    ffi::OsStr,
    fs::{self, DirEntry, File},
    hash::Hash,
    io,
    os::unix::fs::MetadataExt as _,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use exec_sandbox_image::Digest;
use tracing::debug;

pub(crate) use evict::{Candidate, Limits, PINNED, Rule, Standing, evict};

use crate::{
    key_lock::{Held, KeyLock},
    private_dir,
};

/// What blocks are counted in, whatever the file system's are.
pub(crate) const BLOCK_BYTES: u64 = 512;

/// Things of a kind that a process has in hand at once, each some open files, which keep the disk's room also of one that was removed.
pub(crate) const MOST_IN_HAND: usize = 64;

/// How exact the time of the last use is: what is used all the time is not written to all the time.
const USE_IS_NOTED_EVERY: Duration = Duration::from_secs(60 * 60);

/// Notes at `path` that something was used now. It is only as good as a cache's.
pub(crate) fn note_use(path: &Path) {
    let now = SystemTime::now();
    let is_recent = |used| now.duration_since(used).is_ok_and(|age| age < USE_IS_NOTED_EVERY);
    if fs::metadata(path).and_then(|file| file.modified()).is_ok_and(is_recent) {
        return;
    }
    if let Err(error) = set_modified(path, now) {
        debug!(path = %path.display(), %error, "a use is not noted");
    }
}

/// When the entry at `dir` was used last, by its file `used`. A time from the future is one of before the clock was set: it is used now.
pub(crate) fn last_use(dir: &Path, used: &str, now: SystemTime) -> SystemTime {
    let modified = |path: &Path| fs::symlink_metadata(path).and_then(|found| found.modified());
    let used = dir.join(used);
    match modified(&used).or_else(|_missing| modified(dir)) {
        Ok(time) if time <= now => time,
        Ok(_future) => {
            let _ = set_modified(&used, now);
            now
        }
        Err(_gone) => now,
    }
}

/// Lets one go that `is_there`, in hand, if there are as many as there may be. It is found again in its store.
pub(crate) fn make_place<K: Copy + Eq + Hash, P>(places: &mut HashMap<K, P>, is_there: impl Fn(&P) -> bool) {
    let mut there = places.iter().filter(|(_, place)| is_there(place)).map(|(key, _)| *key);
    let any = there.next();
    if let Some(key) = any.filter(|_| there.count() + 1 >= MOST_IN_HAND) {
        places.remove(&key);
    }
}

/// What the files in `dir` take of the disk.
pub(crate) fn allocated_bytes(dir: &Path) -> u64 {
    entries(dir).iter().filter_map(|entry| entry.metadata().ok()).map(|file| file.blocks() * BLOCK_BYTES).sum()
}

/// What may still be written where `dir` is.
pub(crate) fn free_bytes(dir: &Path) -> io::Result<u64> {
    let found = rustix::fs::statvfs(dir)?;
    Ok(found.f_bavail.saturating_mul(found.f_frsize))
}

/// Takes an entry away through `trash`, or finds that somebody else has. `false`: it stays.
pub(crate) fn discard(trash: &Path, path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let place = trash.join(format!("{}-{}-{name}", unix_ns(SystemTime::now()), std::process::id()));
    let moved = private_dir::create(trash).and_then(|()| fs::rename(path, &place));
    remove(&place);
    moved.is_ok() || fs::symlink_metadata(path).is_err()
}

/// Removes what is in `trash`.
pub(crate) fn empty(trash: &Path) {
    for entry in entries(trash) {
        remove(&entry.path());
    }
}

/// Removes from `drafts` what those have left who made the thing `key`, whose lock is to be held; tells how much that was.
pub(crate) fn clear_drafts(drafts: &Path, key: Digest) -> u64 {
    entries(drafts)
        .iter()
        .filter(|entry| key_of_draft(&entry.file_name()) == Some(key) && remove(&entry.path()))
        .count() as u64
}

/// Removes from `drafts` what those have left who are gone: nobody holds their lock in `locks`. Tells how much that was.
pub(crate) fn clear_abandoned_drafts(drafts: &Path, locks: &Path, held: &Arc<Held>) -> u64 {
    let keys: BTreeSet<Digest> = entries(drafts).iter().filter_map(|entry| key_of_draft(&entry.file_name())).collect();
    let clear = |key: Digest| match KeyLock::try_take(locks, key, held) {
        Ok(Some(_lock)) => clear_drafts(drafts, key),
        Ok(None) | Err(_) => 0,
    };
    keys.into_iter().map(clear).sum()
}

/// What the name of a draft of the thing `key` begins with.
pub(crate) fn draft_prefix(key: Digest) -> String {
    format!("{key}.")
}

/// What the draft with this name is to become.
fn key_of_draft(name: &OsStr) -> Option<Digest> {
    name.to_str()?.split_once('.')?.0.parse().ok()
}

pub(crate) fn remove(path: &Path) -> bool {
    let is_dir = fs::symlink_metadata(path).is_ok_and(|found| found.is_dir());
    let removed = if is_dir { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    removed.is_ok()
}

/// The entries of a directory; none if it cannot be read.
pub(crate) fn entries(dir: &Path) -> Vec<DirEntry> {
    fs::read_dir(dir).map(|entries| entries.flatten().collect()).unwrap_or_default()
}

/// Whether something could not be given a name because another has it.
pub(crate) fn is_taken(error: &io::Error) -> bool {
    use io::ErrorKind::{AlreadyExists, DirectoryNotEmpty, NotADirectory};
    matches!(error.kind(), AlreadyExists | DirectoryNotEmpty | NotADirectory)
}

pub(crate) fn unix_ns(time: SystemTime) -> u128 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos()
}

/// An error with its causes, for a text that people read.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

pub(crate) fn set_modified(path: &Path, time: SystemTime) -> io::Result<()> {
    File::options().create(true).truncate(false).write(true).open(path)?.set_modified(time)
}
