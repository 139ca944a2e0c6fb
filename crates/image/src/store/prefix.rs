//! Prefixes: the QEMU of an image, laid out as it looks for its parts.
//!
//! `<dir>/qemu/<digest>/bin/qemu` and `share/qemu/<firmware>` are copies of blobs, read-only and for everybody: the user
//! that a QEMU becomes has no right in the store. `<dir>/.prefixes` is the lock of whoever makes or removes one. It is made whole in a
//! directory of its own and appears by rename, when its image does, and again when a proof finds that it is missing or damaged.

use std::collections::HashSet;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::{Image, ImageStore, Pruned, TEMPORARY_PREFIX, entries};
use crate::error::ImageError;
use crate::manifest::{Blob, BlobRole, Qemu};
use crate::verify::verify_blob;

/// What the program is called, also where it is published from.
pub(super) const PROGRAM: &str = "qemu";

/// Where in a prefix the program is, and its firmware.
const PROGRAM_DIR: &str = "bin";
const FIRMWARE_DIR: &str = "share/qemu";

/// A QEMU's place to run from.
#[derive(Debug)]
pub(crate) struct Prefix<'a> {
    store: &'a ImageStore,
    dir: PathBuf,
    files: Vec<PrefixFile>,
}

/// A file of it, by its path in the prefix. The first is the program.
#[derive(Debug)]
struct PrefixFile {
    role: BlobRole,
    blob: Blob,
    path: PathBuf,
    mode: u32,
}

impl Image {
    /// Where the image's QEMU runs from, if it has one.
    pub(crate) fn prefix(&self) -> Option<Prefix<'_>> {
        let Qemu { program, firmware, .. } = self.manifest.qemu.as_ref()?;
        let path = Path::new(PROGRAM_DIR).join(PROGRAM);
        let program = PrefixFile { role: BlobRole::Qemu, blob: *program, path, mode: 0o555 };
        let firmware = firmware.iter().map(|(name, blob)| {
            let path = Path::new(FIRMWARE_DIR).join(name);
            PrefixFile { role: BlobRole::Firmware, blob: *blob, path, mode: 0o444 }
        });
        let digest = self.manifest.qemu.as_ref()?.digest().to_string();
        let files = [program].into_iter().chain(firmware).collect();
        Some(Prefix { store: &self.store, dir: self.store.prefixes_dir().join(digest), files })
    }
}

impl ImageStore {
    fn prefixes_dir(&self) -> PathBuf {
        self.dir.join("qemu")
    }

    /// The lock of whoever makes or removes prefixes: another than the writers', for a reader makes what is missing.
    fn lock_prefixes(&self) -> Result<File, ImageError> {
        let (path, file) = self.lock_file(".prefixes")?;
        file.lock().map_err(ImageError::io("lock", &path))?;
        Ok(file)
    }
}

impl Prefix<'_> {
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn program(&self) -> PathBuf {
        self.files.first().map(|file| self.dir.join(&file.path)).unwrap_or_default()
    }

    pub(crate) fn firmware(&self) -> PathBuf {
        self.dir.join(FIRMWARE_DIR)
    }

    /// Proves it, trusting stamps, and lays it out if it is not there or not whole.
    pub(crate) fn ensure(&self, stamps: Option<&Path>) -> Result<(), ImageError> {
        if self.verify(stamps).is_ok() {
            return Ok(());
        }
        let _lock = self.store.lock_prefixes()?;
        // Somebody else may have been first.
        if self.verify(stamps).is_err() {
            self.lay_out()?;
        }
        self.verify(stamps)
    }

    fn verify(&self, stamps: Option<&Path>) -> Result<(), ImageError> {
        self.files.iter().try_for_each(|file| verify_blob(file.role, file.blob, &self.dir.join(&file.path), stamps))
    }

    /// Puts a whole one in the place of what is there.
    fn lay_out(&self) -> Result<(), ImageError> {
        let parent = self.store.prefixes_dir();
        make_dir(&parent)?;
        let temporary = tempfile::Builder::new().prefix(TEMPORARY_PREFIX).tempdir_in(&parent);
        let temporary = temporary.map_err(ImageError::io("create a directory in", &parent))?;
        let whole = temporary.path().join("whole");
        for dir in [&whole, &whole.join(PROGRAM_DIR), &whole.join(FIRMWARE_DIR)] {
            make_dir(dir)?;
        }
        for file in &self.files {
            let (blob, target) = (self.store.blob_path(file.blob.blake3), whole.join(&file.path));
            verify_blob(file.role, file.blob, &blob, None)?;
            copy(&blob, &target, file.mode).map_err(ImageError::io("write", &target))?;
        }
        let place = || {
            match fs::rename(&self.dir, temporary.path().join("damaged")) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            fs::rename(&whole, &self.dir)?;
            File::open(&parent)?.sync_all()
        };
        place().map_err(ImageError::io("create", &self.dir))
    }
}

/// Removes prefixes but these, and what a maker that died left.
pub(super) fn prune(store: &ImageStore, keep: &HashSet<PathBuf>, pruned: &mut Pruned) -> Result<(), ImageError> {
    let _lock = store.lock_prefixes()?;
    for path in entries(&store.prefixes_dir())?.iter().filter(|path| !keep.contains(*path)) {
        remove_tree(path, pruned)?;
    }
    Ok(())
}

fn remove_tree(path: &Path, pruned: &mut Pruned) -> Result<(), ImageError> {
    if !path.is_dir() || path.is_symlink() {
        return pruned.remove(path);
    }
    entries(path)?.iter().try_for_each(|entry| remove_tree(entry, pruned))?;
    fs::remove_dir(path).map_err(ImageError::io("remove", path))
}

/// A directory that everybody may read, whatever this process's umask is.
fn make_dir(path: &Path) -> Result<(), ImageError> {
    let make = || {
        DirBuilder::new().recursive(true).mode(0o755).create(path)?;
        fs::set_permissions(path, Permissions::from_mode(0o755))
    };
    make().map_err(ImageError::io("create", path))
}

fn copy(from: &Path, to: &Path, mode: u32) -> io::Result<()> {
    fs::copy(from, to)?;
    fs::set_permissions(to, Permissions::from_mode(mode))?;
    File::open(to)?.sync_all()
}
