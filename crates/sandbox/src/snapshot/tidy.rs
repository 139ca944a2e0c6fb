//! Keeping the store within its limits: what is too much, too old, or left by those who are gone.
//!
//! Whatever goes is renamed into `trash` first, so that nobody finds it half removed; whoever has it open keeps it. Nothing here is an
//! error: what cannot be removed now is tried again the next time.

use std::{fs::DirEntry, path::Path, time::SystemTime};

use tracing::debug;

use super::{Key, Store, USED, memories};
use crate::cache_dir::{self, Candidate, Rule, Standing, discard, entries, evict, remove};

/// What is kept of what was set aside, to be looked at.
const KEPT_IN_QUARANTINE: usize = 2;

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

pub(super) fn tidy(store: &Store, now: SystemTime) -> Report {
    let mut report = Report::default();
    if !store.is_there().unwrap_or(false) {
        return report;
    }
    (report.drafts, report.quarantined) = clear_up(store);
    let rule = Rule::Within { max_bytes: store.limits.max_bytes };
    let evicted = evict(candidates(store, now), rule, now, |candidate| discard(&candidate.trash, &candidate.path));
    let count = |all: &[Candidate], is_set_aside: bool| {
        all.iter().filter(|candidate| (candidate.standing == Standing::SetAside) == is_set_aside).count() as u64
    };
    report.kept = count(&evicted.kept, false);
    report.evicted = count(&evicted.gone, false);
    report.quarantined += count(&evicted.gone, true);
    report.kept_bytes = evicted.kept_bytes;
    memories::sweep(&store.memories_dir());
    debug!(dir = %store.dir.display(), ?report, "memory snapshots were tidied");
    report
}

/// Removes what is of no use to anybody, whatever the limits are, and tells how many drafts and how much of what was set aside that was.
pub(super) fn clear_up(store: &Store) -> (u64, u64) {
    cache_dir::empty(&store.trash_dir());
    let drafts = cache_dir::clear_abandoned_drafts(&store.drafts_dir(), &store.locks_dir(), &store.held);
    let quarantined = thin_out(&store.quarantine_dir());
    memories::sweep(&store.memories_dir());
    (drafts, quarantined)
}

/// Leaves the newest of what is in quarantine.
pub(super) fn thin_out(quarantine: &Path) -> u64 {
    let mut entries = entries(quarantine);
    // Their names begin with the time.
    entries.sort_by_key(|entry| std::cmp::Reverse(entry.file_name()));
    entries.iter().skip(KEPT_IN_QUARANTINE).filter(|entry| remove(&entry.path())).count() as u64
}

/// What could go: snapshots, and what was set aside.
pub(super) fn candidates(store: &Store, now: SystemTime) -> Vec<Candidate> {
    let is_snapshot = |entry: &DirEntry| entry.file_name().to_str().is_some_and(|name| name.parse::<Key>().is_ok());
    let of = |entry: &DirEntry| Candidate::at(entry.path(), &store.trash_dir(), USED, store.limits.max_age, now);
    let snapshots = entries(&store.dir).into_iter().filter(is_snapshot).map(|entry| of(&entry));
    snapshots.chain(entries(&store.quarantine_dir()).iter().map(|entry| of(entry).set_aside())).collect()
}
