//! Arrivals: an image that comes into the store piece by piece.
//!
//! `<dir>/.partial-<blake3>` is what there is of a blob so far, `<dir>/.arriving` the lock of whoever brings an image. Owns what is on
//! disk meanwhile: a blob appears in the store once all of it is there and has its digest, and a partial one stays for the next try.
//! Where the bytes come from, and when to give up, is the caller's business; that they are the right ones is believed of nobody.

use std::fs::{self, File, Permissions, TryLockError};
use std::io::{Seek, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{ImageStore, write_atomically};
use crate::digest::{Digest, Hashing};
use crate::error::ImageError;
use crate::manifest::{Blob, BlobRole, Manifest};
use crate::verify::{VerifiedImage, verify_blob};

/// Prefix of blobs that have not arrived completely. Without an [`Arrival`], nobody is writing to them.
pub(super) const PARTIAL_PREFIX: &str = ".partial-";

/// The right to bring images into a store, which one holder has at a time, in whatever process. Clones are the same holder.
#[derive(Clone, Debug)]
pub struct Arrival {
    store: ImageStore,
    _lock: Arc<File>,
}

/// A blob that is arriving. Dropped, what there is of it stays.
#[derive(Debug)]
pub struct PartialBlob {
    // Whoever still writes here holds the store's arrival, even if the one that asked for the blob is gone.
    arrival: Arrival,
    role: BlobRole,
    blob: Blob,
    path: PathBuf,
    file: File,
    hashing: Hashing,
}

impl ImageStore {
    /// The right to bring images in, or `None` while somebody else has it.
    ///
    /// # Errors
    /// The directory or its lock cannot be made.
    pub fn try_arrival(&self) -> Result<Option<Arrival>, ImageError> {
        // The file stays: deleting it would let two holders have one each.
        let (path, file) = self.lock_file(".arriving")?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Arrival { store: self.clone(), _lock: Arc::new(file) })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(source)) => Err(ImageError::io("lock", &path)(source)),
        }
    }
}

impl Arrival {
    /// Whether the store has this blob whole. All of it is read.
    #[must_use]
    pub fn has(&self, role: BlobRole, blob: Blob) -> bool {
        verify_blob(role, blob, &self.store.blob_path(blob.blake3), None).is_ok()
    }

    /// Begins with a blob, or goes on where an earlier holder stopped: what there is of it is read and hashed.
    ///
    /// # Errors
    /// Whatever the file system answers.
    pub fn receive(&self, role: BlobRole, blob: Blob) -> Result<PartialBlob, ImageError> {
        let path = self.store.dir.join(format!("{PARTIAL_PREFIX}{}", blob.blake3));
        let file = File::options().create(true).truncate(false).read(true).write(true).open(&path);
        let mut file = file.map_err(ImageError::io("open", &path))?;
        let length = file.metadata().map_err(ImageError::io("inspect", &path))?.len();
        if length > blob.size_bytes {
            file.set_len(0).map_err(ImageError::io("empty", &path))?;
        }
        let mut hashing = Hashing::default();
        hashing.read(&mut file).map_err(ImageError::io("read", &path))?;
        Ok(PartialBlob { arrival: self.clone(), role, blob, path, file, hashing })
    }

    /// Stores an image whose blobs are in the store, replacing the one that has its name. Each is proven first, trusting stamps in
    /// `stamp_dir` and leaving new ones there.
    ///
    /// # Errors
    /// The manifest breaks a rule, a blob is missing or damaged, or a write fails.
    pub fn publish(&self, manifest: &Manifest, stamp_dir: Option<&Path>) -> Result<VerifiedImage, ImageError> {
        let path = self.store.manifest_path(&manifest.name);
        let json = manifest.to_json().map_err(|source| ImageError::BadManifest { path: path.clone(), source })?;
        let _lock = self.store.lock()?;
        let image = self.store.image(manifest.clone()).verify(stamp_dir)?;
        write_atomically(&path, |file| file.write_all(&json))?;
        Ok(image)
    }
}

impl PartialBlob {
    /// How many bytes are there.
    #[must_use]
    pub fn received_bytes(&self) -> u64 {
        self.hashing.count()
    }

    /// Adds what comes next.
    ///
    /// # Errors
    /// It would be longer than the manifest says: all of it is given up. Or the write fails, and what is there stays.
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), ImageError> {
        let found_bytes = self.received_bytes().saturating_add(bytes.len() as u64);
        if found_bytes > self.blob.size_bytes {
            self.discard()?;
            return Err(self.wrong_size(found_bytes));
        }
        self.file.write_all(bytes).map_err(ImageError::io("write", &self.path))?;
        self.hashing.update(bytes);
        Ok(())
    }

    /// Forgets what is there: it comes again from the start.
    ///
    /// # Errors
    /// Whatever the file system answers.
    pub fn restart(&mut self) -> Result<(), ImageError> {
        self.file.set_len(0).and_then(|()| self.file.rewind()).map_err(ImageError::io("empty", &self.path))?;
        self.hashing = Hashing::default();
        Ok(())
    }

    /// Puts the blob into the store, on disk and read-only.
    ///
    /// # Errors
    /// It is too short, and stays; or it has another content than the manifest says, and is removed.
    pub fn commit(self) -> Result<(), ImageError> {
        if self.received_bytes() != self.blob.size_bytes {
            return Err(self.wrong_size(self.received_bytes()));
        }
        let found: Digest = self.hashing.digest();
        if found != self.blob.blake3 {
            self.discard()?;
            let (role, path, expected) = (self.role, self.path, self.blob.blake3);
            return Err(ImageError::BlobContent { role, path, expected, found });
        }
        let target = self.arrival.store.blob_path(found);
        let place = || {
            self.file.sync_all()?;
            fs::rename(&self.path, &target)?;
            // Not before: what cannot be written to could not go on, should this process be ended in between.
            self.file.set_permissions(Permissions::from_mode(0o444))?;
            File::open(self.arrival.store.blobs_dir())?.sync_all()
        };
        place().map_err(ImageError::io("write", &target))
    }

    fn discard(&self) -> Result<(), ImageError> {
        fs::remove_file(&self.path).map_err(ImageError::io("remove", &self.path))
    }

    fn wrong_size(&self, found_bytes: u64) -> ImageError {
        let (role, path, expected_bytes) = (self.role, self.path.clone(), self.blob.size_bytes);
        ImageError::BlobSize { role, path, expected_bytes, found_bytes }
    }
}
