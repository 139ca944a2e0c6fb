//! The images that are there, for people who choose one.

use std::path::PathBuf;

use exec_sandbox_image::ImageStore;

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
