//! What can go wrong with snapshots: the store fails, or a snapshot is not what it should be.

use std::{
    io,
    path::{Path, PathBuf},
};

use super::manifest::ManifestError;

/// Why the store could not do what was asked. A VM boots all the same, only slower.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    #[error("cannot {doing} {}", path.display())]
    Io { doing: &'static str, path: PathBuf, source: io::Error },
    #[error(
        "there is no room for a snapshot in {}: {free_bytes} bytes are free, {needed_bytes} may be needed",
        path.display()
    )]
    NoRoom { path: PathBuf, free_bytes: u64, needed_bytes: u64 },
    #[error("{} was written to while it was read", path.display())]
    Unsteady { path: PathBuf },
    #[error("{} has {found_bytes} bytes instead of {expected_bytes}", path.display())]
    WrongLength { path: PathBuf, found_bytes: u64, expected_bytes: u64 },
    #[error("nothing was written to {}", path.display())]
    NoState { path: PathBuf },
}

/// Why a snapshot is not offered and never will be again.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Damage {
    #[error("it is not a directory")]
    NotADirectory,
    #[error("{file} is missing")]
    Missing { file: &'static str },
    #[error("{file} is not a file")]
    NotAFile { file: &'static str },
    #[error("its manifest cannot be used")]
    Manifest(#[from] ManifestError),
    #[error("its manifest is of another snapshot")]
    WrongKey,
    #[error("{file} has {found_bytes} bytes instead of {expected_bytes}")]
    Length { file: &'static str, found_bytes: u64, expected_bytes: u64 },
    #[error("{file} has another content")]
    Content { file: &'static str },
}

/// Why a snapshot could not be opened.
#[derive(Debug)]
pub(super) enum Trouble {
    Damaged(Damage),
    Failed(StoreError),
}

impl StoreError {
    pub(super) fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { doing, path: path.to_owned(), source }
    }
}

impl From<Damage> for Trouble {
    fn from(damage: Damage) -> Self {
        Self::Damaged(damage)
    }
}

impl From<StoreError> for Trouble {
    fn from(error: StoreError) -> Self {
        Self::Failed(error)
    }
}
