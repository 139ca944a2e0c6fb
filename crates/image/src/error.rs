//! What can go wrong with an image, named so that a caller can tell a missing image from a damaged one.

use std::io;
use std::path::{Path, PathBuf};

use crate::digest::Digest;
use crate::manifest::{BlobRole, ManifestError};

/// Why an image cannot be used or stored.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The store has no such image.
    #[error("there is no image {name:?} ({} does not exist)", path.display())]
    NotFound {
        /// The name that was asked for.
        name: String,
        /// Where its manifest would be.
        path: PathBuf,
    },
    /// The asked name cannot be an image's.
    #[error("cannot look up an image")]
    BadName(#[source] ManifestError),
    /// The manifest is there and breaks a rule.
    #[error("cannot use the manifest {}", path.display())]
    BadManifest {
        /// The manifest.
        path: PathBuf,
        /// The rule.
        #[source]
        source: ManifestError,
    },
    /// The manifest of one image lies under the name of another.
    #[error("the manifest {} is of image {found:?}", path.display())]
    WrongName {
        /// The manifest.
        path: PathBuf,
        /// The name in it.
        found: String,
    },
    /// A blob is not there.
    #[error("the {role} is missing: {}", path.display())]
    BlobMissing {
        /// What it is for.
        role: BlobRole,
        /// Where it should be.
        path: PathBuf,
    },
    /// A blob has another length than the manifest says.
    #[error("the {role} is damaged: {} has {found_bytes} bytes instead of {expected_bytes}", path.display())]
    BlobSize {
        /// What it is for.
        role: BlobRole,
        /// Where it is.
        path: PathBuf,
        /// The manifest's length.
        expected_bytes: u64,
        /// The file's length.
        found_bytes: u64,
    },
    /// A blob has the right length and other content.
    #[error("the {role} is damaged: the content of {} is {found} instead of {expected}", path.display())]
    BlobContent {
        /// What it is for.
        role: BlobRole,
        /// Where it is.
        path: PathBuf,
        /// The manifest's digest.
        expected: Digest,
        /// The file's digest.
        found: Digest,
    },
    /// The operating system said no.
    #[error("cannot {doing} {}", path.display())]
    Io {
        /// What was being done, as a verb.
        doing: &'static str,
        /// To what.
        path: PathBuf,
        /// The answer.
        #[source]
        source: io::Error,
    },
}

impl ImageError {
    /// Whether building the image again would mend it: something is missing or damaged, rather than forbidden or asked wrongly.
    #[must_use]
    pub fn is_mended_by_rebuilding(&self) -> bool {
        match self {
            Self::NotFound { .. }
            | Self::BadManifest { .. }
            | Self::WrongName { .. }
            | Self::BlobMissing { .. }
            | Self::BlobSize { .. }
            | Self::BlobContent { .. } => true,
            Self::BadName(_) | Self::Io { .. } => false,
        }
    }

    /// Wraps an I/O error with what was being done to which path.
    pub(crate) fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { doing, path, source }
    }
}
