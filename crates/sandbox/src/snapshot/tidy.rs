//! Keeping the store within its limits: what is too much, too old, or left by those who are gone.
//!
//! Whatever goes is renamed into `trash` first, so that nobody finds it half removed; whoever has it open keeps it. Nothing here is an
//! error: what cannot be removed now is tried again the next time.

use std::{
    collections::BTreeSet,
    fs::DirEntry,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use tracing::debug;

use super::{Key, Store, USED, draft, memories};
use crate::{
    cache_dir::{allocated_bytes, discard, empty, entries, last_use, remove},
    key_lock::KeyLock,
};

/// What is kept of what was set aside, to be looked at.
const KEPT_IN_QUARANTINE: usize = 2;

/// A snapshot that was used more recently is never removed: whoever made it has not had the time to use it.
const NEVER_BEFORE: Duration = Duration::from_secs(60);

/// What [`Store::tidy`] found and did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Report {
    /// Snapshots that are there afterwards.
    pub(crate) kept: u64,
    /// What everything that is kept takes of the disk.
    pub(crate) kept_bytes: u64,
    /// Snapshots that were removed because of a limit.
    pub(crate) evicted: u64,
    /// Drafts of those who are gone.
    pub(crate) drafts: u64,
    /// What has been in quarantine for long enough.
    pub(crate) quarantined: u64,
}

/// A snapshot that could be removed.
struct Candidate {
    path: PathBuf,
    bytes: u64,
    used: SystemTime,
    /// It is in quarantine.
    is_set_aside: bool,
}

pub(super) fn tidy(store: &Store, now: SystemTime) -> Report {
    let mut report = Report::default();
    if !store.is_there().unwrap_or(false) {
        return report;
    }
    empty(&store.trash_dir());
    report.drafts = remove_drafts(store);
    report.quarantined = thin_out(&store.quarantine_dir());
    let mut candidates = candidates(store, now);
    let mut total: u64 = candidates.iter().map(|candidate| candidate.bytes).sum();
    // What is of no use goes first, then what was not used for longest.
    candidates.sort_by_key(|candidate| (!candidate.is_set_aside, candidate.used));
    for candidate in candidates {
        let age = now.duration_since(candidate.used).unwrap_or_default();
        let is_over = total > store.limits.max_bytes || age > store.limits.max_age;
        let is_protected = !candidate.is_set_aside && age < NEVER_BEFORE;
        if is_over && !is_protected && discard(&store.trash_dir(), &candidate.path) {
            total -= candidate.bytes;
            *(if candidate.is_set_aside { &mut report.quarantined } else { &mut report.evicted }) += 1;
        } else if !candidate.is_set_aside {
            report.kept += 1;
        }
    }
    memories::sweep(&store.memories_dir());
    report.kept_bytes = total;
    debug!(dir = %store.dir.display(), ?report, "memory snapshots were tidied");
    report
}

/// Leaves the newest of what is in quarantine.
pub(super) fn thin_out(quarantine: &Path) -> u64 {
    let mut entries = entries(quarantine);
    // Their names begin with the time.
    entries.sort_by_key(|entry| std::cmp::Reverse(entry.file_name()));
    entries.iter().skip(KEPT_IN_QUARANTINE).filter(|entry| remove(&entry.path())).count() as u64
}

fn candidates(store: &Store, now: SystemTime) -> Vec<Candidate> {
    let is_snapshot = |entry: &DirEntry| entry.file_name().to_str().is_some_and(|name| name.parse::<Key>().is_ok());
    let of = |entry: &DirEntry, is_set_aside| {
        let path = entry.path();
        Candidate { bytes: allocated_bytes(&path), used: last_use(&path, USED, now), path, is_set_aside }
    };
    let snapshots = entries(&store.dir).into_iter().filter(is_snapshot).map(|entry| of(&entry, false));
    snapshots.chain(entries(&store.quarantine_dir()).iter().map(|entry| of(entry, true))).collect()
}

/// Removes drafts whose makers are gone: nobody holds their lock.
fn remove_drafts(store: &Store) -> u64 {
    let (drafts, locks) = (store.drafts_dir(), store.locks_dir());
    let keys: BTreeSet<Key> = entries(&drafts).iter().filter_map(|entry| draft::key_of(&entry.file_name())).collect();
    let remove = |key: Key| match KeyLock::try_take(&locks, key.digest(), &store.held) {
        Ok(Some(_lock)) => draft::clear(&drafts, key),
        Ok(None) | Err(_) => 0,
    };
    keys.into_iter().map(remove).sum()
}
