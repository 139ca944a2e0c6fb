//! Refusals: everything for which an entry of the store is not taken, by name.
//!
//! A refusal is about what the store holds, never about whether it answers: a store that holds rubbish is up.

use crate::{digest::Digest, entry::EntryName, manifest::ManifestError};

/// Why an entry of the store was not taken.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The manifest is none, or a broken one.
    #[error("its manifest was refused")]
    Manifest(#[source] ManifestError),
    /// The manifest of another entry lies in its place.
    #[error("its manifest is that of {0}")]
    Foreign(EntryName),
    /// It has a file that was not asked for.
    #[error("it has a file {0:?} that was not asked for")]
    UnexpectedFile(String),
    /// It lacks a file that was asked for.
    #[error("it has no file {0:?}")]
    MissingFile(String),
    /// It would need more room than it may take.
    #[error("its files have {announced} bytes, {most} may come")]
    TooLarge {
        /// What the manifest says, or the largest number there is.
        announced: u64,
        /// What the caller allows.
        most: u64,
    },
    /// The manifest is there and a blob is not: somebody has removed it.
    #[error("the blob of {0:?} is not there")]
    MissingBlob(String),
    /// The store holds another number of bytes than was uploaded.
    #[error("the blob of {file:?} has {found} bytes and should have {announced}")]
    StoredSize {
        /// Which file's.
        file: String,
        /// What the manifest says.
        announced: u64,
        /// What the store has.
        found: u64,
    },
    /// A blob does not decompress: it is damaged, or none.
    #[error("the blob of {file:?} cannot be decompressed")]
    Undecodable {
        /// Which file's.
        file: String,
        /// What the decoder says.
        #[source]
        cause: std::io::Error,
    },
    /// A blob holds more than the manifest says. No more than that was written.
    #[error("the blob of {file:?} holds more than the announced {announced} bytes")]
    TooLong {
        /// Which file's.
        file: String,
        /// What the manifest says.
        announced: u64,
    },
    /// A blob holds less than the manifest says.
    #[error("the blob of {file:?} holds {found} bytes and should hold {announced}")]
    TooShort {
        /// Which file's.
        file: String,
        /// What the manifest says.
        announced: u64,
        /// What there was.
        found: u64,
    },
    /// A blob holds something else.
    #[error("the content of {file:?} has the digest {found} and should have {announced}")]
    Digest {
        /// Which file's.
        file: String,
        /// What the manifest says.
        announced: String,
        /// What it has.
        found: String,
    },
}

impl Refusal {
    pub(crate) fn digest(file: &str, announced: &Digest, found: &Digest) -> Self {
        Self::Digest { file: file.to_owned(), announced: announced.to_string(), found: found.to_string() }
    }

    /// Its name: a word for counters and logs.
    #[must_use]
    pub fn label(&self) -> &'static str {
        match self {
            Self::Manifest(ManifestError::TooLong(_)) => "manifest_too_long",
            Self::Manifest(ManifestError::Malformed(_)) => "manifest_malformed",
            Self::Manifest(ManifestError::UnknownFormat(_)) => "manifest_format",
            Self::Manifest(ManifestError::BrokenSeal) => "manifest_seal",
            Self::Manifest(ManifestError::Impossible(_)) => "manifest_impossible",
            Self::Foreign(_) => "foreign",
            Self::UnexpectedFile(_) => "unexpected_file",
            Self::MissingFile(_) => "missing_file",
            Self::TooLarge { .. } => "too_large",
            Self::MissingBlob(_) => "missing_blob",
            Self::StoredSize { .. } => "stored_size",
            Self::Undecodable { .. } => "undecodable",
            Self::TooLong { .. } => "too_long",
            Self::TooShort { .. } => "too_short",
            Self::Digest { .. } => "digest",
        }
    }
}
