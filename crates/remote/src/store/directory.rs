//! A directory that several machines see, such as one of a network file system.
//!
//! An object appears by rename, whole. The directory itself is never made: one that is not mounted would be made below where it belongs.
//! File systems answer when they want, so every question is asked on a thread that may block, and the asking ends in time; a thread that
//! a dead server holds stays where it is.

use std::{
    fs::{self, File, Permissions},
    io::{self, Read as _, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use tempfile::{Builder, NamedTempFile};
use tokio::task::spawn_blocking;

use super::StoreError;

/// Bytes that are read at a time.
const PIECE_BYTES: usize = 256 * 1024;

/// How a file in the making begins. An object's name never begins like this.
const UNFINISHED: &str = ".unfinished-";

/// Who may read a blob: the user's mask decides, as everywhere.
const MODE: u32 = 0o644;

#[derive(Debug)]
pub(crate) struct Directory(PathBuf);

pub(crate) struct Body(Option<File>);

pub(crate) struct Parts {
    /// Away while it is written to.
    file: Option<NamedTempFile>,
    path: PathBuf,
}

impl Directory {
    pub(crate) fn open(path: PathBuf) -> Self {
        Self(path)
    }

    pub(crate) fn describe(&self) -> String {
        format!("the directory {}", self.0.display())
    }

    pub(crate) async fn get(&self, name: &str) -> Result<Option<(u64, Body)>, StoreError> {
        let found = self.look(name, |path| {
            let file = File::open(path)?;
            Ok((file.metadata()?.len(), file))
        });
        Ok(found.await?.map(|(stored_bytes, file)| (stored_bytes, Body(Some(file)))))
    }

    pub(crate) async fn length(&self, name: &str) -> Result<Option<u64>, StoreError> {
        self.look(name, |path| Ok(fs::metadata(path)?.len())).await
    }

    pub(crate) async fn put(&self, name: &str, bytes: Bytes) -> Result<(), StoreError> {
        let mut parts = self.begin(name).await?;
        parts.add(bytes).await?;
        parts.finish().await
    }

    pub(crate) async fn begin(&self, name: &str) -> Result<Parts, StoreError> {
        let (root, path) = (self.0.clone(), self.0.join(name));
        blocking(move || {
            if !root.is_dir() {
                return Err(StoreError::NoDirectory);
            }
            let parent = path.parent().unwrap_or(&root);
            fs::create_dir_all(parent).map_err(StoreError::Io)?;
            let mut builder = Builder::new();
            let file = builder.prefix(UNFINISHED).permissions(Permissions::from_mode(MODE)).tempfile_in(parent);
            Ok(Parts { file: Some(file.map_err(StoreError::Io)?), path })
        })
        .await
    }

    /// What `look` says of a regular file, if there is one.
    async fn look<T: Send + 'static>(
        &self,
        name: &str,
        look: impl FnOnce(&Path) -> io::Result<T> + Send + 'static,
    ) -> Result<Option<T>, StoreError> {
        let (root, path) = (self.0.clone(), self.0.join(name));
        blocking(move || {
            // Opening a pipe would wait for its other end.
            let is_file = fs::symlink_metadata(&path).map(|metadata| metadata.is_file());
            let looked =
                is_file.and_then(|is_file| if is_file { look(&path) } else { Err(io::ErrorKind::NotFound.into()) });
            match looked {
                Ok(found) => Ok(Some(found)),
                Err(error) if error.kind() == io::ErrorKind::NotFound && root.is_dir() => Ok(None),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Err(StoreError::NoDirectory),
                Err(error) => Err(StoreError::Io(error)),
            }
        })
        .await
    }
}

impl Body {
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, StoreError> {
        let Some(mut file) = self.0.take() else { return Ok(None) };
        let (file, piece) = blocking(move || {
            let mut piece = Vec::with_capacity(PIECE_BYTES);
            (&mut file).take(PIECE_BYTES as u64).read_to_end(&mut piece).map_err(StoreError::Io)?;
            Ok((file, piece))
        })
        .await?;
        if piece.is_empty() {
            return Ok(None);
        }
        self.0 = Some(file);
        Ok(Some(piece.into()))
    }
}

impl Parts {
    pub(crate) async fn add(&mut self, bytes: Bytes) -> Result<(), StoreError> {
        let mut file = self.file.take().ok_or_else(interrupted)?;
        let written = blocking(move || {
            file.write_all(&bytes).map_err(StoreError::Io)?;
            Ok(file)
        });
        self.file = Some(written.await?);
        Ok(())
    }

    pub(crate) async fn finish(&mut self) -> Result<(), StoreError> {
        let (file, path) = (self.file.take().ok_or_else(interrupted)?, self.path.clone());
        blocking(move || {
            // A crash must not leave a name without its content: nobody would make that blob again.
            file.as_file().sync_all().map_err(StoreError::Io)?;
            file.persist(&path).map_err(|error| StoreError::Io(error.error))?;
            Ok(())
        })
        .await
    }
}

/// A part whose writing was given up has taken the file with it.
fn interrupted() -> StoreError {
    StoreError::Io(io::ErrorKind::Interrupted.into())
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    spawn_blocking(work).await.unwrap_or_else(|error| Err(StoreError::Failed(error.into())))
}
