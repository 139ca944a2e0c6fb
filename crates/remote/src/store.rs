//! The store: objects by name, in a bucket or a directory.
//!
//! Owns what a store is asked and for how long it is waited for. What the objects mean is not its business, and what it says of them is
//! not believed: a length only makes an object be refused earlier.

use std::{
    io,
    time::{Duration, Instant},
};

use bytes::Bytes;

use crate::config::{Config, Place};

mod bucket;
mod credentials;
mod directory;

pub use credentials::CredentialsError;

type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Where the values of environment variables come from.
pub type Variables<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Why a store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// It says that this is not for us.
    #[error("access is denied: check that {credentials} are right, and may get, put and list the bucket's objects")]
    Denied {
        /// Where the credentials came from.
        credentials: &'static str,
        /// What the store said.
        #[source]
        cause: Cause,
    },
    /// There is nothing to prove who we are with.
    #[error("there are no credentials to be had from {credentials}")]
    NoCredentials {
        /// Where they were to come from.
        credentials: &'static str,
        /// What was answered there, if anything.
        #[source]
        cause: Option<Cause>,
    },
    /// The bucket is not there.
    #[error("there is no such bucket: check its name, its region and the endpoint")]
    NoBucket(#[source] Cause),
    /// The directory is not there: perhaps it is not mounted.
    #[error("the directory is not there: check that it is mounted")]
    NoDirectory,
    /// It did not answer in time.
    #[error("it did not answer within {0:?}")]
    Silent(Duration),
    /// It stopped in the middle.
    #[error("nothing came for {0:?}")]
    Stalled(Duration),
    /// It brings so little that it is not worth the wait.
    #[error("it has brought {came} of {announced} bytes in {waited:?}, which is too slow")]
    TooSlow {
        /// Bytes that came.
        came: u64,
        /// Bytes that were to come.
        announced: u64,
        /// How long the store was waited for.
        waited: Duration,
    },
    /// It cannot be reached, breaks off, or has an error of its own.
    #[error("it failed")]
    Failed(#[source] Cause),
    /// A file in the directory could not be read or written.
    #[error("a file in it could not be read or written")]
    Io(#[source] io::Error),
}

/// A store.
#[derive(Debug)]
pub(crate) enum Store {
    Bucket(bucket::Bucket),
    Directory(directory::Directory),
}

/// An object that comes piece by piece.
pub(crate) struct Object {
    /// Its length, as the store says.
    pub(crate) stored_bytes: u64,
    body: Body,
}

enum Body {
    Bucket(bucket::Body),
    Directory(directory::Body),
}

/// An object in the making. It appears with [`Parts::finish`], whole.
pub(crate) enum Parts {
    Bucket(bucket::Parts),
    Directory(directory::Parts),
}

impl Store {
    pub(crate) fn open(config: &Config, variables: Variables<'_>) -> Result<Self, CredentialsError> {
        Ok(match &config.place {
            Place::Bucket(bucket) => Self::Bucket(bucket::Bucket::open(bucket, &config.bounds, variables)?),
            Place::Directory(path) => Self::Directory(directory::Directory::open(path.clone())),
        })
    }

    /// What it is called in messages.
    pub(crate) fn describe(&self) -> String {
        match self {
            Self::Bucket(bucket) => bucket.describe(),
            Self::Directory(directory) => directory.describe(),
        }
    }

    /// An object, if it is there. The answer comes within `patience`, the object's bytes later.
    pub(crate) async fn get(&self, name: &str, patience: Duration) -> Result<Option<Object>, StoreError> {
        Ok(match self {
            Self::Bucket(bucket) => bucket
                .get(name, patience)
                .await?
                .map(|(stored_bytes, body)| Object { stored_bytes, body: Body::Bucket(body) }),
            Self::Directory(directory) => within(patience, directory.get(name))
                .await?
                .map(|(stored_bytes, body)| Object { stored_bytes, body: Body::Directory(body) }),
        })
    }

    /// A small object whole, if it is there: its bytes, or its length if it has more than `most_bytes`.
    pub(crate) async fn read(
        &self,
        name: &str,
        most_bytes: usize,
        patience: Duration,
    ) -> Result<Option<Result<Vec<u8>, u64>>, StoreError> {
        let start = Instant::now();
        let Some(mut object) = self.get(name, patience).await? else { return Ok(None) };
        if object.stored_bytes > most_bytes as u64 {
            return Ok(Some(Err(object.stored_bytes)));
        }
        let mut whole = Vec::new();
        let read = async {
            while let Some(bytes) = object.next().await? {
                whole.extend_from_slice(&bytes);
                if whole.len() > most_bytes {
                    return Ok(Err(whole.len() as u64));
                }
            }
            Ok(Ok(()))
        };
        let left = patience.saturating_sub(start.elapsed());
        let read = tokio::time::timeout(left, read).await.map_err(|_| StoreError::Silent(patience))??;
        Ok(Some(read.map(|()| whole)))
    }

    /// How long an object is, if it is there.
    pub(crate) async fn length(&self, name: &str, patience: Duration) -> Result<Option<u64>, StoreError> {
        match self {
            Self::Bucket(bucket) => bucket.length(name, patience).await,
            Self::Directory(directory) => within(patience, directory.length(name)).await,
        }
    }

    /// Makes an object of `bytes`, or replaces it.
    pub(crate) async fn put(&self, name: &str, bytes: Bytes, patience: Duration) -> Result<(), StoreError> {
        match self {
            Self::Bucket(bucket) => bucket.put(name, bytes, patience).await,
            Self::Directory(directory) => within(patience, directory.put(name, bytes)).await,
        }
    }

    /// Begins an object that is too large for one piece.
    pub(crate) async fn begin(&self, name: &str, patience: Duration) -> Result<Parts, StoreError> {
        Ok(match self {
            Self::Bucket(bucket) => Parts::Bucket(bucket.begin(name, patience).await?),
            Self::Directory(directory) => Parts::Directory(within(patience, directory.begin(name)).await?),
        })
    }
}

impl Object {
    /// Its next bytes; `None` at the end, which may have come too early.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, StoreError> {
        match &mut self.body {
            Body::Bucket(body) => body.next().await,
            Body::Directory(body) => body.next().await,
        }
    }
}

impl Parts {
    pub(crate) async fn add(&mut self, bytes: Bytes, patience: Duration) -> Result<(), StoreError> {
        match self {
            Self::Bucket(parts) => parts.add(bytes, patience).await,
            Self::Directory(parts) => within(patience, parts.add(bytes)).await,
        }
    }

    pub(crate) async fn finish(&mut self, patience: Duration) -> Result<(), StoreError> {
        match self {
            Self::Bucket(parts) => parts.finish(patience).await,
            Self::Directory(parts) => within(patience, parts.finish()).await,
        }
    }

    /// Takes back what has been sent, as far as the store allows.
    pub(crate) async fn abort(&mut self, patience: Duration) {
        match self {
            Self::Bucket(parts) => parts.abort(patience).await,
            // Its temporary file goes with it.
            Self::Directory(_) => {}
        }
    }
}

/// What the future answers, unless it takes longer.
async fn within<T>(patience: Duration, asked: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
    tokio::time::timeout(patience, asked).await.map_err(|_| StoreError::Silent(patience))?
}
