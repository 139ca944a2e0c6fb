//! Verification: from an image that is claimed to one that is proven.
//!
//! Every blob is hashed against the manifest, unless a [`Stamp`] says that this very file has been.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use crate::digest::Digest;
use crate::error::ImageError;
use crate::manifest::{Blob, BlobRole, Manifest};
use crate::stamp::Stamp;
use crate::store::Image;

/// An image whose files had the manifest's content. Made by [`Image::verify`] and [`Image::verify_fully`] only.
#[derive(Clone, Debug)]
pub struct VerifiedImage(Image);

impl Image {
    /// Proves every file that a VM is made of, trusting stamps in `stamp_dir` and leaving new ones there. A QEMU that is not laid out,
    /// or not whole, is laid out anew.
    ///
    /// # Errors
    /// The first blob that is missing, unreadable or damaged.
    pub fn verify(&self, stamp_dir: Option<&Path>) -> Result<VerifiedImage, ImageError> {
        for (role, blob) in self.manifest().guests_blobs() {
            verify_blob(role, blob, &self.blob_path(blob), stamp_dir)?;
        }
        // Its blobs are read only to lay it out anew: what is run are the copies.
        if let Some(prefix) = self.prefix() {
            prefix.ensure(stamp_dir)?;
        }
        Ok(VerifiedImage(self.clone()))
    }

    /// Proves every blob by reading all of it, whatever stamps say.
    ///
    /// # Errors
    /// The first blob that is missing, unreadable or damaged.
    pub fn verify_fully(&self) -> Result<VerifiedImage, ImageError> {
        self.verify(None)
    }
}

impl VerifiedImage {
    /// What the image consists of.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        self.0.manifest()
    }

    /// The kernel's file.
    #[must_use]
    pub fn kernel(&self) -> std::path::PathBuf {
        self.0.blob_path(self.manifest().kernel)
    }

    /// The initramfs's file.
    #[must_use]
    pub fn initramfs(&self) -> std::path::PathBuf {
        self.0.blob_path(self.manifest().initramfs)
    }

    /// The program of the image's QEMU, if it has one. Its firmware lies where it looks for it.
    #[must_use]
    pub fn qemu(&self) -> Option<std::path::PathBuf> {
        self.0.prefix().map(|prefix| prefix.program())
    }

    /// The directory of that QEMU's firmware.
    #[must_use]
    pub fn firmware(&self) -> Option<std::path::PathBuf> {
        self.0.prefix().map(|prefix| prefix.firmware())
    }

    /// The root file system's file.
    #[must_use]
    pub fn root(&self) -> std::path::PathBuf {
        self.0.blob_path(self.manifest().root)
    }
}

/// Checks one blob against what the manifest says of it.
pub(crate) fn verify_blob(role: BlobRole, blob: Blob, path: &Path, stamps: Option<&Path>) -> Result<(), ImageError> {
    let file = File::open(path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => ImageError::BlobMissing { role, path: path.to_owned() },
        _ => ImageError::io("open", path)(source),
    })?;
    let before = file.metadata().map_err(ImageError::io("inspect", path))?;
    if before.len() != blob.size_bytes {
        let (expected_bytes, found_bytes) = (blob.size_bytes, before.len());
        return Err(ImageError::BlobSize { role, path: path.to_owned(), expected_bytes, found_bytes });
    }
    let stamp = Stamp::of(&before, blob.blake3);
    let stamp_path = stamps.map(|dir| dir.join(blob.blake3.to_string()));
    if stamp_path.as_deref().is_some_and(|path| stamp.is_at(path)) {
        return Ok(());
    }
    let (found, _) = Digest::of_reader(&file).map_err(ImageError::io("read", path))?;
    if found != blob.blake3 {
        return Err(ImageError::BlobContent { role, path: path.to_owned(), expected: blob.blake3, found });
    }
    // A file that was written to while it was read proves nothing about what it holds now.
    let after = file.metadata().map_err(ImageError::io("inspect", path))?;
    if let Some(stamp_path) = stamp_path.filter(|_| Stamp::of(&after, blob.blake3) == stamp) {
        // Without a stamp the next process hashes again: slower, and just as right.
        let dir = stamp_path.parent().unwrap_or_else(|| Path::new("."));
        let _ = fs::create_dir_all(dir).and_then(|()| stamp.leave_at(&stamp_path));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use tempfile::TempDir;

    use super::*;

    /// A file with this content, where it is, and what a manifest says of it.
    fn blob(content: &[u8]) -> (TempDir, std::path::PathBuf, Blob) {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("blob");
        fs::write(&path, content).unwrap();
        (dir, path, Blob { blake3: Digest::of(content), size_bytes: content.len() as u64 })
    }

    #[test]
    fn a_whole_blob_passes_and_leaves_a_stamp() {
        let (dir, path, blob) = blob(b"content");
        let stamps = dir.path().join("stamps");
        verify_blob(BlobRole::Root, blob, &path, Some(&stamps)).unwrap();
        assert!(Stamp::of(&path.metadata().unwrap(), blob.blake3).is_at(&stamps.join(blob.blake3.to_string())));
    }

    #[test]
    fn a_stamp_of_this_very_file_is_believed_without_reading() {
        let (dir, path, blob) = blob(b"content");
        let other = Blob { blake3: Digest::of(b"another"), ..blob };
        let stamp = Stamp::of(&path.metadata().unwrap(), other.blake3);
        stamp.leave_at(&dir.path().join(other.blake3.to_string())).unwrap();
        verify_blob(BlobRole::Root, other, &path, Some(dir.path())).unwrap();
        let read = verify_blob(BlobRole::Root, other, &path, None);
        assert!(matches!(read, Err(ImageError::BlobContent { .. })), "{read:?}");
    }

    #[test]
    fn a_write_of_the_same_length_makes_the_stamp_worthless() {
        let (dir, path, blob) = blob(b"content");
        let stamps = dir.path().join("stamps");
        verify_blob(BlobRole::Root, blob, &path, Some(&stamps)).unwrap();
        let stamped = path.metadata().unwrap();
        // The clock that stamps files ticks in milliseconds: write until it has moved.
        while path.metadata().unwrap().ctime_nsec() == stamped.ctime_nsec() {
            fs::write(&path, b"CONTENT").unwrap();
        }
        File::options().write(true).open(&path).unwrap().set_modified(stamped.modified().unwrap()).unwrap();
        let refused = verify_blob(BlobRole::Root, blob, &path, Some(&stamps));
        assert!(matches!(refused, Err(ImageError::BlobContent { .. })), "{refused:?}");
    }

    #[test]
    fn another_file_in_the_same_place_is_read_again() {
        let (dir, path, blob) = blob(b"content");
        let stamps = dir.path().join("stamps");
        verify_blob(BlobRole::Root, blob, &path, Some(&stamps)).unwrap();
        let replacement = dir.path().join("replacement");
        fs::write(&replacement, b"CONTENT").unwrap();
        fs::rename(replacement, &path).unwrap();
        let refused = verify_blob(BlobRole::Root, blob, &path, Some(&stamps));
        assert!(matches!(refused, Err(ImageError::BlobContent { .. })), "{refused:?}");
    }

    #[test]
    fn damage_is_told_by_its_kind_with_the_path() {
        let (_dir, path, blob) = blob(b"content");
        fs::write(&path, b"conten").unwrap();
        let truncated = verify_blob(BlobRole::Root, blob, &path, None).unwrap_err();
        assert!(matches!(&truncated, ImageError::BlobSize { found_bytes: 6, expected_bytes: 7, .. }), "{truncated:?}");
        fs::remove_file(&path).unwrap();
        let missing = verify_blob(BlobRole::Root, blob, &path, None).unwrap_err();
        assert_eq!(missing.to_string(), format!("the root file system is missing: {}", path.display()));
        assert!(truncated.is_mended_by_rebuilding() && missing.is_mended_by_rebuilding());
    }

    #[test]
    fn a_stamp_directory_that_cannot_be_written_costs_only_time() {
        let (_dir, path, blob) = blob(b"content");
        verify_blob(BlobRole::Root, blob, &path, Some(Path::new("/proc/nowhere"))).unwrap();
    }
}
