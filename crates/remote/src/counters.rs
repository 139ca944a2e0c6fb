//! Counters: what the cache has been good for, for observers.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use serde::Serialize;

/// What has happened since the cache was opened.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Entries that were fetched.
    pub hits: u64,
    /// Entries that were not there.
    pub misses: u64,
    /// Fetches that were not tried, because the store rested.
    pub rested: u64,
    /// Fetches for which the store did not answer, or not to the end.
    pub failed: u64,
    /// Entries that were not taken, by the refusal's label.
    pub refused: BTreeMap<&'static str, u64>,
    /// Bytes of blobs that came, as they are stored.
    pub bytes_fetched: u64,
    /// Entries that were uploaded.
    pub uploads: u64,
    /// Offers of what the store had already.
    pub already_there: u64,
    /// Offers that found the queue full, or the store resting.
    pub dropped: u64,
    /// Uploads that failed, with a store that did not take them or a file that could not be read.
    pub uploads_failed: u64,
    /// Uploads that were given up when the cache was closed.
    pub given_up: u64,
    /// Bytes of blobs that went, as they are stored.
    pub bytes_uploaded: u64,
    /// Whether the store is left alone by fetches now.
    pub fetches_rest: bool,
    /// Whether the store is left alone by uploads now.
    pub uploads_rest: bool,
}

/// The report in the making.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) hits: Counter,
    pub(crate) misses: Counter,
    pub(crate) rested: Counter,
    pub(crate) failed: Counter,
    pub(crate) bytes_fetched: Counter,
    pub(crate) uploads: Counter,
    pub(crate) already_there: Counter,
    pub(crate) dropped: Counter,
    pub(crate) uploads_failed: Counter,
    pub(crate) given_up: Counter,
    pub(crate) bytes_uploaded: Counter,
    refused: Mutex<BTreeMap<&'static str, u64>>,
}

#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, number: u64) {
        self.0.fetch_add(number, Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

impl Counters {
    pub(crate) fn refused(&self, label: &'static str) {
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        *refused.entry(label).or_default() += 1;
    }

    pub(crate) fn report(&self) -> Report {
        Report {
            hits: self.hits.get(),
            misses: self.misses.get(),
            rested: self.rested.get(),
            failed: self.failed.get(),
            refused: self.refused.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            bytes_fetched: self.bytes_fetched.get(),
            uploads: self.uploads.get(),
            already_there: self.already_there.get(),
            dropped: self.dropped.get(),
            uploads_failed: self.uploads_failed.get(),
            given_up: self.given_up.get(),
            bytes_uploaded: self.bytes_uploaded.get(),
            fetches_rest: false,
            uploads_rest: false,
        }
    }
}
