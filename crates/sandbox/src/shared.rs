//! The shared cache: an object store from which this machine takes what others have made, and to which it gives what it makes.
//!
//! ```text
//!   wanted ── here ─▶ used          not here ── there, and just what is wanted ─▶ kept here, used
//!                                       └─ not there, refused, or the store is down ─▶ made here ─▶ offered, in the background
//! ```
//! Owns the names and facts of entries; the store, its bounds and its checks are the remote cache's. Nothing here can fail a run: what
//! cannot be had is made.

use std::{fs::File, io, os::fd::AsRawFd as _, path::Path, time::Duration};

use exec_sandbox_remote::{Config, EntryName, Fetch, FetchError, Offer, Remote, Wanted};
use tracing::{debug, info, warn};

use crate::{Error, ErrorKind, cache_dir::chain};

/// Kinds of entries.
pub(crate) const LAYER: &str = "layer";
pub(crate) const SNAPSHOT: &str = "snapshot";

/// How long uploads are waited for at the end.
const DRAIN_PATIENCE: Duration = Duration::from_secs(20);

/// See the head of this file.
#[derive(Debug)]
pub(crate) struct SharedCache {
    remote: Remote,
}

impl SharedCache {
    /// # Errors
    /// [`ErrorKind::InvalidConfig`] if it cannot be meant. The store is not asked.
    pub(crate) fn open(config: &Config) -> Result<Self, Error> {
        let remote = Remote::open(config).map_err(|error| {
            Error::new(ErrorKind::InvalidConfig, "opening the remote cache").because(error).remedied_by(
                "look at remote_cache in the configuration, or EXEC_SANDBOX_REMOTE_CACHE (s3://bucket/prefix, or a directory), and \
                 at the variables of AWS",
            )
        })?;
        debug!(store = remote.description(), "a remote cache is used");
        Ok(Self { remote })
    }

    /// Takes the entry `key` into the directory `into`: just these files, of at most so many bytes. Returns what its maker says of it.
    /// `None`: it has to be made.
    pub(crate) async fn take(
        &self,
        (kind, key): (&str, String),
        (files, most_plain_bytes): (&[&str], u64),
        into: &Path,
    ) -> Option<String> {
        let name = EntryName::new(kind, &key).ok()?;
        match self.remote.fetch(&Wanted { name: &name, files, most_plain_bytes }, into).await {
            Ok(Fetch::Hit(fetched)) => {
                info!(kind, key, store = self.remote.description(), "taken from the remote cache");
                Some(fetched.facts)
            }
            Ok(Fetch::Absent | Fetch::Resting) => None,
            // Of that the remote cache has told, once.
            Err(FetchError::Store { .. }) => None,
            Err(error) => {
                warn!(error = chain(&error), "an entry of the remote cache is not used");
                None
            }
        }
    }

    /// Gives an entry: copies of these files, which must not change any more. What cannot be given is not missed.
    pub(crate) fn give(&self, (kind, key): (&str, String), facts: String, files: &[(&str, &File)]) {
        let open = |(name, file): &(&str, &File)| Ok(((*name).to_owned(), anew(file)?));
        let files: io::Result<Vec<(String, File)>> = files.iter().map(open).collect();
        let offer = files.map_err(|error| error.to_string()).and_then(|files| {
            let name = EntryName::new(kind, &key).map_err(|error| error.to_string())?;
            Offer::new(name, facts, files).map_err(|error| error.to_string())
        });
        match offer {
            Ok(offer) => drop(self.remote.offer(offer)),
            Err(error) => debug!(kind, key, error, "nothing is given to the remote cache"),
        }
    }

    /// Waits for uploads, for a while.
    pub(crate) async fn settle(&self) {
        let drained = self.remote.drain(DRAIN_PATIENCE).await;
        if !drained.given_up.is_empty() {
            warn!(
                entries = drained.given_up.len(),
                "uploads to the remote cache were given up: another machine makes the same anew"
            );
        }
    }
}

/// The same file with a position of its own.
fn anew(file: &File) -> io::Result<File> {
    File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))
}
