//! The store: images by name, blobs by content, in one directory.
//!
//! `<dir>/<name>.json` is a manifest, `<dir>/blobs/<blake3>` a blob, `<dir>/.lock` what writers hold. Blobs are in place before the
//! manifest that names them appears, and both appear by rename, so a reader needs no lock and sees an image whole or not at all.
//! Images are published from files that are there, or arrive piece by piece: see [`Arrival`]. A QEMU has a place to run from besides:
//! see [`prefix`].

mod arrival;
mod prefix;

use std::collections::HashSet;
use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

pub use arrival::{Arrival, PartialBlob};

use crate::digest::Digest;
use crate::error::ImageError;
use crate::manifest::{Blob, BlobRole, Manifest, check_name};
use crate::verify::verify_blob;

/// Prefix of files that are being written. Under the lock, any that is there was left by a writer that died.
const TEMPORARY_PREFIX: &str = ".new-";

/// A directory of images.
#[derive(Clone, Debug)]
pub struct ImageStore {
    dir: PathBuf,
}

/// An image as its manifest claims it. It is not proven: see [`Image::verify`].
#[derive(Clone, Debug)]
pub struct Image {
    manifest: Manifest,
    store: ImageStore,
}

/// Where the content of an image that is being published lies.
#[derive(Clone, Copy, Debug)]
pub struct BlobSources<'a> {
    /// The kernel.
    pub kernel: &'a Path,
    /// The initramfs.
    pub initramfs: &'a Path,
    /// The root file system.
    pub root: &'a Path,
    /// The directory that holds `qemu` and its firmware. `None`: there is none, or the store has its blobs.
    pub qemu: Option<&'a Path>,
}

/// What [`ImageStore::prune`] removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Number of files.
    pub files: u64,
    /// Their length.
    pub size_bytes: u64,
}

impl ImageStore {
    /// The store in `dir`, which need not exist yet.
    #[must_use]
    pub fn at(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// Names of the images, sorted. A directory that does not exist holds none.
    ///
    /// # Errors
    /// Whatever reading the directory answers.
    pub fn list(&self) -> Result<Vec<String>, ImageError> {
        let mut names: Vec<String> = entries(&self.dir)?
            .iter()
            .filter_map(|path| path.file_name()?.to_str()?.strip_suffix(".json"))
            .filter(|name| check_name("name", name).is_ok())
            .map(str::to_owned)
            .collect();
        names.sort_unstable();
        Ok(names)
    }

    /// Reads and checks the manifest of one image.
    ///
    /// # Errors
    /// There is none of that name, or its manifest breaks a rule.
    pub fn load(&self, name: &str) -> Result<Image, ImageError> {
        check_name("name", name).map_err(ImageError::BadName)?;
        let path = self.manifest_path(name);
        let json = fs::read(&path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => ImageError::NotFound { name: name.to_owned(), path: path.clone() },
            _ => ImageError::io("read", &path)(source),
        })?;
        let manifest =
            Manifest::from_json(&json).map_err(|source| ImageError::BadManifest { path: path.clone(), source })?;
        if manifest.name != name {
            return Err(ImageError::WrongName { path, found: manifest.name });
        }
        Ok(self.image(manifest))
    }

    /// Stores an image under the manifest's name, replacing the one that has it. Blobs are copied rather than hard-linked, so that
    /// damage to one in the store does not reach the file it came from; the file system may share the blocks.
    ///
    /// # Errors
    /// The manifest breaks a rule, a source is not what the manifest says, or a write fails.
    pub fn publish(&self, manifest: &Manifest, sources: BlobSources<'_>) -> Result<Image, ImageError> {
        let path = self.manifest_path(&manifest.name);
        let json = manifest.to_json().map_err(|source| ImageError::BadManifest { path: path.clone(), source })?;
        let image = self.image(manifest.clone());
        let _lock = self.lock()?;
        for ((role, blob), source) in manifest.blobs().into_iter().zip(sources.paths(manifest)) {
            add_blob(&image, role, blob, source.as_deref())?;
        }
        if let Some(prefix) = image.prefix() {
            prefix.ensure(None)?;
        }
        write_atomically(&path, |file| file.write_all(&json))?;
        Ok(image)
    }

    /// Removes blobs that no image names, and what writers that died left. It holds the writers' lock, so an image that is being
    /// published loses nothing. While one is arriving, nothing is removed: its blobs have no name yet.
    ///
    /// # Errors
    /// An image whose manifest cannot be read: its blobs are unknown, so nothing is removed.
    pub fn prune(&self) -> Result<Pruned, ImageError> {
        let Some(_arrival) = self.try_arrival()? else { return Ok(Pruned::default()) };
        let _lock = self.lock()?;
        let (mut named, mut prefixes) = (HashSet::new(), HashSet::new());
        for name in self.list()? {
            let image = self.load(&name)?;
            named.extend(image.manifest.blobs().iter().map(|(_, blob)| blob.blake3));
            prefixes.extend(image.prefix().map(|prefix| prefix.dir().to_owned()));
        }
        let is_blob_to_keep = |file: &str| file.parse().is_ok_and(|digest: Digest| named.contains(&digest));
        let mut pruned = Pruned::default();
        prefix::prune(self, &prefixes, &mut pruned)?;
        for path in entries(&self.blobs_dir())? {
            if !path.file_name().and_then(|file| file.to_str()).is_some_and(is_blob_to_keep) {
                pruned.remove(&path)?;
            }
        }
        for path in entries(&self.dir)? {
            let is_left = |file: &str| file.starts_with(TEMPORARY_PREFIX) || file.starts_with(arrival::PARTIAL_PREFIX);
            if path.file_name().is_some_and(|file| is_left(&file.to_string_lossy())) {
                pruned.remove(&path)?;
            }
        }
        Ok(pruned)
    }

    fn image(&self, manifest: Manifest) -> Image {
        Image { manifest, store: self.clone() }
    }

    fn blobs_dir(&self) -> PathBuf {
        self.dir.join("blobs")
    }

    fn manifest_path(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.json"))
    }

    fn blob_path(&self, digest: Digest) -> PathBuf {
        self.blobs_dir().join(digest.to_string())
    }

    /// The writers' lock, held until the file is dropped. The file stays: deleting it would let two writers hold one each.
    fn lock(&self) -> Result<File, ImageError> {
        let (path, file) = self.lock_file(".lock")?;
        file.lock().map_err(ImageError::io("lock", &path))?;
        Ok(file)
    }

    /// A file to lock, in a store that is there from now on.
    fn lock_file(&self, name: &str) -> Result<(PathBuf, File), ImageError> {
        let blobs = self.blobs_dir();
        fs::create_dir_all(&blobs).map_err(ImageError::io("create", &blobs))?;
        let path = self.dir.join(name);
        let file = File::options().create(true).truncate(false).write(true).open(&path);
        let file = file.map_err(ImageError::io("open", &path))?;
        Ok((path, file))
    }
}

impl Image {
    /// What the image claims to consist of.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    pub(crate) fn blob_path(&self, blob: Blob) -> PathBuf {
        self.store.blob_path(blob.blake3)
    }
}

impl BlobSources<'_> {
    /// Where each blob comes from, in the order of [`Manifest::blobs`].
    fn paths(&self, manifest: &Manifest) -> Vec<Option<PathBuf>> {
        let guests = [self.kernel, self.initramfs, self.root].map(|path| Some(path.to_owned()));
        let qemus = manifest.qemu.iter().flat_map(|qemu| {
            let names = [prefix::PROGRAM].into_iter().chain(qemu.firmware.keys().map(String::as_str));
            names.map(|name| self.qemu.map(|dir| dir.join(name)))
        });
        guests.into_iter().chain(qemus).collect()
    }
}

impl Pruned {
    fn remove(&mut self, path: &Path) -> Result<(), ImageError> {
        let size_bytes = fs::symlink_metadata(path).map_err(ImageError::io("inspect", path))?.len();
        fs::remove_file(path).map_err(ImageError::io("remove", path))?;
        self.files += 1;
        self.size_bytes += size_bytes;
        Ok(())
    }
}

/// Brings one blob into the store, unless it is there and whole.
fn add_blob(image: &Image, role: BlobRole, blob: Blob, source: Option<&Path>) -> Result<(), ImageError> {
    let target = image.blob_path(blob);
    let in_place = verify_blob(role, blob, &target, None);
    let Some(source) = source.filter(|_| in_place.is_err()) else { return in_place };
    verify_blob(role, blob, source, None)?;
    let mut from = File::open(source).map_err(ImageError::io("open", source))?;
    write_atomically(&target, |file| io::copy(&mut from, file).map(drop))
}

/// Writes a read-only file that appears at `path` complete and on disk, or not at all.
fn write_atomically(path: &Path, fill: impl FnOnce(&mut File) -> io::Result<()>) -> Result<(), ImageError> {
    let write = |dir: &Path| {
        let mut temporary = NamedTempFile::with_prefix_in(TEMPORARY_PREFIX, dir)?;
        fill(temporary.as_file_mut())?;
        temporary.as_file().set_permissions(Permissions::from_mode(0o444))?;
        temporary.as_file().sync_all()?;
        temporary.persist(path)?;
        File::open(dir)?.sync_all()
    };
    write(path.parent().unwrap_or_else(|| Path::new("."))).map_err(ImageError::io("write", path))
}

/// The entries of a directory; none if it does not exist.
fn entries(dir: &Path) -> Result<Vec<PathBuf>, ImageError> {
    let listing = match fs::read_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        listing => listing,
    };
    listing
        .and_then(|listing| listing.map(|entry| entry.map(|entry| entry.path())).collect())
        .map_err(ImageError::io("list", dir))
}
