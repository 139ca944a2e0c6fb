//! The remote cache: an object store that holds what one machine has made, so that another need not make it.
//!
//! ```text
//!   Remote::fetch ──▶ breaker ──▶ manifest ──▶ blobs ──▶ files in the caller's directory       hit
//!                        │            │          └─ not what was announced: refused by name, nothing left
//!                        │            └─ none                                                  absent
//!                        └─ failed a while ago                                                 resting, at once
//!   Remote::offer ──▶ queue (64) ──▶ breaker ──▶ is it there? ──▶ blobs ──▶ manifest           in the background
//! ```
//!
//! An entry is named by a kind and a digest of all that shapes it ([`EntryName`]); it has a few files and facts of its maker's. Its blobs
//! are named by their content and in place before the manifest that names them, so an entry that is there is whole. Nothing that comes is
//! believed, and nothing that is slow is waited for beyond [`Bounds`]: whoever asks makes the thing itself instead.
//!
//! What is proven is that an entry is what somebody put there. *Who* may put it there is the store's business: whoever can write to the
//! bucket or the directory chooses what runs in the VMs of everybody who reads it.
//!
//! Knows nothing of VMs, images and snapshots, and names no crate of the workspace.

mod breaker;
mod config;
mod counters;
mod digest;
mod entry;
mod fetch;
mod manifest;
mod pack;
mod queue;
mod refusal;
mod remote;
mod store;
mod unpack;
mod upload;

#[cfg(fuzzing)]
pub mod fuzzing;

pub use config::{Bounds, Bucket, Config, ConfigError, Place};
pub use counters::Report;
pub use entry::{EntryError, EntryName, MAX_FACTS_BYTES, MAX_FILES, Offer};
pub use fetch::{Fetch, FetchError, Fetched, FetchedFile, Wanted};
pub use manifest::ManifestError;
pub use queue::{Drained, MOST_WAITING, Offered};
pub use refusal::Refusal;
pub use remote::{OpenError, Remote};
pub use store::{CredentialsError, StoreError, Variables};
