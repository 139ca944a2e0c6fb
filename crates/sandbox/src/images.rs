//! The images that are there, for people who choose one, and what is left of those that were.

use std::path::PathBuf;

use exec_sandbox_image::{ImageError, ImageStore, Pruned};

use crate::{Error, ErrorKind, SchedulerConfig, assets, paths::Environment};

/// An image as its manifest describes it. It is verified when it is used.
#[derive(Clone, Debug, serde::Serialize)]
#[non_exhaustive]
pub struct ImageInfo {
    /// The name by which it is chosen.
    pub name: String,
    /// The machine architecture that it is for.
    pub arch: String,
    /// The guest kernel's release.
    pub kernel_version: String,
    /// Each language that it runs, with its interpreter's version.
    pub languages: Vec<(String, String)>,
    /// Kernel, initramfs and root file system together, and its QEMU if it has one, in bytes.
    pub size_bytes: u64,
    /// The directory of the store.
    pub path: PathBuf,
}

/// What [`prune_images`] has removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct PrunedImages {
    /// Number of files.
    pub files: u64,
    /// Their length.
    pub size_bytes: u64,
}

/// The images in the configured directory, by name.
///
/// # Errors
/// The directory or a manifest in it cannot be read.
pub fn images(config: &SchedulerConfig) -> Result<Vec<ImageInfo>, Error> {
    let settings = config.clone().resolve(&Environment::read())?;
    let store = ImageStore::at(&settings.images_dir);
    let read = |name: String| {
        let image = store.load(&name)?;
        let manifest = image.manifest();
        Ok(ImageInfo {
            name,
            arch: manifest.arch.clone(),
            kernel_version: manifest.kernel_version.clone(),
            languages: manifest.languages.iter().map(|(name, it)| (name.clone(), it.version.clone())).collect(),
            size_bytes: manifest.blobs().iter().map(|(_, blob)| blob.size_bytes).sum(),
            path: settings.images_dir.clone(),
        })
    };
    store.list().and_then(|names| names.into_iter().map(read).collect()).map_err(|error| {
        Error::new(ErrorKind::AssetDamaged, format!("listing the images in {}", settings.images_dir.display()))
            .because(error)
            .remedied_by(assets::remedy(&settings, false))
    })
}

/// Removes from the configured directory what no image there consists of: what images were that have been replaced, and what was left by
/// fetches that were interrupted. Nothing while an image is fetched. It is never done by itself, for a process that has started with an
/// image makes its VMs with that image's QEMU, and no more without. Blocks.
///
/// # Errors
/// A manifest cannot be read, and nothing is removed; or a file cannot be removed.
pub fn prune_images(config: &SchedulerConfig) -> Result<PrunedImages, Error> {
    let settings = config.clone().resolve(&Environment::read())?;
    // To look for what could go makes the directory, whose name may be a mistake.
    let is_there = settings.images_dir.is_dir();
    let pruned = if is_there { ImageStore::at(&settings.images_dir).prune() } else { Ok(Pruned::default()) };
    pruned.map(|Pruned { files, size_bytes }| PrunedImages { files, size_bytes }).map_err(|error| {
        let failed = |kind| Error::new(kind, format!("pruning the images in {}", settings.images_dir.display()));
        match error {
            ImageError::Io { .. } => failed(ErrorKind::Host).because(error),
            _ => failed(ErrorKind::AssetDamaged).because(error).remedied_by(assets::remedy(&settings, false)),
        }
    })
}
