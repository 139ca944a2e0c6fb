//! The remote cache: one store, what it is asked, and when it is left alone.
//!
//! Fetches and uploads have a breaker each: a store that may be read only is a good one to fetch from. Each says once that the store is down and
//! once that it is back; what happens meanwhile is counted.

use std::{
    collections::BTreeSet,
    error::Error,
    iter,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use tokio_util::sync::CancellationToken;

use crate::{
    breaker::{Breaker, Change, Pass},
    config::{Bounds, Config, ConfigError},
    counters::{Counters, Report},
    entry::{EntryName, Offer},
    fetch::{Fault, Fetch, FetchError, Fetched, Fetcher, Wanted},
    queue::{Drained, Job, Offered, Queue},
    store::{CredentialsError, Store, StoreError, Variables},
    upload::{UploadError, Uploaded, Uploader},
};

/// Most entries that are remembered because they were refused. What is forgotten is not replaced by the next offer, which costs a
/// refusal more.
const MOST_SUSPECTS: usize = 256;

/// A remote cache. Dropping it abandons uploads; [`Remote::drain`] waits for them.
#[derive(Debug)]
pub struct Remote {
    shared: Arc<Shared>,
    queue: Queue,
}

/// Why a remote cache was not opened. No store was asked.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The configuration cannot be meant.
    #[error("the configuration of the remote cache")]
    Config(#[source] ConfigError),
    /// The bucket's credentials or client.
    #[error("the credentials of the remote cache")]
    Credentials(#[source] CredentialsError),
    /// Uploads need a runtime that drives them.
    #[error("a remote cache is opened within a tokio runtime")]
    NoRuntime,
}

#[derive(Debug)]
struct Shared {
    store: Store,
    description: String,
    bounds: Bounds,
    counters: Counters,
    reading: Breaker,
    writing: Breaker,
    suspects: Mutex<BTreeSet<EntryName>>,
    /// Whether it was said that a file could not be uploaded.
    said_local: AtomicBool,
}

impl Remote {
    /// Opens the cache with the process's environment. Nothing is asked yet, so a store that is down is no error.
    ///
    /// # Errors
    /// A configuration that cannot be meant, half of a pair of credentials, no runtime.
    pub fn open(config: &Config) -> Result<Self, OpenError> {
        Self::open_with(config, &|name| std::env::var(name).ok())
    }

    /// The same with other variables than the process's: each is asked for by its name.
    ///
    /// # Errors
    /// As [`Remote::open`].
    pub fn open_with(config: &Config, variables: Variables<'_>) -> Result<Self, OpenError> {
        config.check().map_err(OpenError::Config)?;
        tokio::runtime::Handle::try_current().map_err(|_| OpenError::NoRuntime)?;
        let store = Store::open(config, variables).map_err(OpenError::Credentials)?;
        let bounds = config.bounds;
        let [first, longest] = [bounds.rest_ms, bounds.longest_rest_ms].map(Duration::from_millis);
        let shared = Arc::new(Shared {
            description: store.describe(),
            store,
            bounds,
            counters: Counters::default(),
            reading: Breaker::new(first, longest),
            writing: Breaker::new(first, longest),
            suspects: Mutex::default(),
            said_local: AtomicBool::new(false),
        });
        let worker = Arc::clone(&shared);
        let queue = Queue::new(config.uploads, move |job, given_up| {
            let shared = Arc::clone(&worker);
            async move { shared.upload(job, &given_up).await }
        });
        Ok(Self { shared, queue })
    }

    /// What the store is called in messages.
    #[must_use]
    pub fn description(&self) -> &str {
        &self.shared.description
    }

    /// Fetches an entry into a directory that is the caller's alone. Only a hit leaves files there. A fetch that is dropped removes what it
    /// has made a moment later, on another thread.
    ///
    /// # Errors
    /// The store failed, its entry was refused, or a file could not be written. In each case the caller makes it itself.
    pub async fn fetch(&self, wanted: &Wanted<'_>, into: &Path) -> Result<Fetch, FetchError> {
        let shared = &*self.shared;
        let Some(pass) = shared.reading.enter(Instant::now()) else {
            shared.counters.rested.add(1);
            return Ok(Fetch::Resting);
        };
        let fetcher = Fetcher { store: &shared.store, bounds: &shared.bounds, counters: &shared.counters };
        match fetcher.fetch(wanted, into).await {
            Ok(found) => {
                shared.answered(pass, "fetches");
                Ok(shared.fetched(found))
            }
            Err(Fault::Store(cause)) => {
                shared.counters.failed.add(1);
                shared.silent(pass, "fetches", &cause);
                Err(FetchError::Store { store: shared.description.clone(), name: wanted.name.clone(), cause })
            }
            Err(Fault::Refused(cause)) => {
                shared.answered(pass, "fetches");
                shared.counters.refused(cause.label());
                shared.suspect(wanted.name);
                Err(FetchError::Refused { store: shared.description.clone(), name: wanted.name.clone(), cause })
            }
            Err(Fault::Local(path, cause)) => {
                shared.answered(pass, "fetches");
                Err(FetchError::Local { path, cause })
            }
        }
    }

    /// Offers an entry to the store. It is uploaded in the background, or not: nobody hears of it but the counters.
    pub fn offer(&self, offer: Offer) -> Offered {
        let name = offer.name.clone();
        let offered = self.queue.offer(offer);
        if matches!(offered, Offered::Full | Offered::Closed) {
            self.shared.counters.dropped.add(1);
            tracing::debug!(%name, ?offered, "the remote cache was offered more than it takes");
        }
        offered
    }

    /// Closes the queue and waits so long for what is in it. Fetching goes on.
    pub async fn drain(&self, patience: Duration) -> Drained {
        let drained = self.queue.drain(patience).await;
        self.shared.counters.given_up.add(drained.given_up.len() as u64);
        drained
    }

    /// What has happened since it was opened.
    #[must_use]
    pub fn report(&self) -> Report {
        let shared = &self.shared;
        Report {
            fetches_rest: shared.reading.is_down(),
            uploads_rest: shared.writing.is_down(),
            ..shared.counters.report()
        }
    }
}

impl Shared {
    fn fetched(&self, found: Option<Fetched>) -> Fetch {
        let Some(fetched) = found else {
            self.counters.misses.add(1);
            return Fetch::Absent;
        };
        self.counters.hits.add(1);
        Fetch::Hit(fetched)
    }

    async fn upload(&self, job: Job, given_up: &CancellationToken) {
        let name = &job.offer.name;
        let Some(pass) = self.writing.enter(Instant::now()) else {
            self.counters.dropped.add(1);
            tracing::debug!(%name, "not uploaded: the remote cache rests");
            return;
        };
        let replace = self.is_suspect(name);
        let (store, bounds, counters) = (&self.store, &self.bounds, &self.counters);
        match (Uploader { store, bounds, counters, given_up, replace }).upload(&job.offer).await {
            Ok(uploaded) => {
                self.answered(pass, "uploads");
                match uploaded {
                    Uploaded::Done => counters.uploads.add(1),
                    Uploaded::AlreadyThere => counters.already_there.add(1),
                }
                self.clear(name);
                tracing::debug!(%name, ?uploaded, "offered to the remote cache");
            }
            // Counted by who gave it up.
            Err(UploadError::GivenUp) => drop(pass),
            Err(UploadError::Store(error)) => {
                counters.uploads_failed.add(1);
                self.silent(pass, "uploads", &error);
            }
            Err(error) => {
                counters.uploads_failed.add(1);
                // The store is not at fault, and says nothing by it.
                drop(pass);
                if !self.said_local.swap(true, Relaxed) {
                    tracing::warn!(%name, error = chain(&error), "not uploaded; further ones are counted only");
                }
            }
        }
    }

    fn answered(&self, pass: Pass<'_>, what: &'static str) {
        if pass.succeeded() == Change::Back {
            tracing::info!(what, "the remote cache is back: {}", self.description);
        }
    }

    fn silent(&self, pass: Pass<'_>, what: &'static str, error: &StoreError) {
        match pass.failed(Instant::now()) {
            Change::Down(rest) => tracing::warn!(
                what,
                rest_ms = rest.as_millis(),
                error = chain(error),
                "the remote cache is down and left alone for a while: {}",
                self.description
            ),
            Change::StillDown(rest) => {
                tracing::debug!(what, rest_ms = rest.as_millis(), error = chain(error), "it is still down");
            }
            Change::None | Change::Back => tracing::debug!(what, error = chain(error), "the remote cache failed"),
        }
    }

    fn suspect(&self, name: &EntryName) {
        let mut suspects = self.suspects.lock().unwrap_or_else(PoisonError::into_inner);
        if suspects.len() < MOST_SUSPECTS {
            suspects.insert(name.clone());
        }
    }

    fn is_suspect(&self, name: &EntryName) -> bool {
        self.suspects.lock().unwrap_or_else(PoisonError::into_inner).contains(name)
    }

    fn clear(&self, name: &EntryName) {
        self.suspects.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
    }
}

/// An error and its causes in one line.
fn chain(error: &(dyn Error + 'static)) -> String {
    let texts =
        iter::successors(Some(error), |error: &&(dyn Error + 'static)| (*error).source()).map(ToString::to_string);
    texts.collect::<Vec<_>>().join(": ")
}
