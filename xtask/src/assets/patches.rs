//! The project's patches of a source, in the order of their names.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use exec_sandbox_image::KeyBuilder;

use super::progress::Ui;
use super::tools;

/// Patches that have been read.
#[derive(Debug, Default)]
pub(super) struct Patches(Vec<(PathBuf, Vec<u8>)>);

impl Patches {
    /// Those in `dir`.
    pub(super) fn load(dir: &Path) -> Result<Self> {
        let listing: std::io::Result<Vec<_>> = fs::read_dir(dir).and_then(Iterator::collect);
        let listing = listing.with_context(|| format!("cannot list {}", dir.display()))?;
        let mut paths: Vec<PathBuf> = listing.iter().map(fs::DirEntry::path).collect();
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "patch"));
        paths.sort();
        let load = |path: PathBuf| {
            let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            Ok((path, bytes))
        };
        Ok(Self(paths.into_iter().map(load).collect::<Result<_>>()?))
    }

    /// A key that they shape.
    pub(super) fn add_to(&self, mut key: KeyBuilder) -> KeyBuilder {
        for (path, bytes) in &self.0 {
            key = key.with("patch", path.file_name().unwrap_or_default().as_encoded_bytes()).with("content", bytes);
        }
        key
    }

    /// Changes the source in `tree`.
    pub(super) fn apply(&self, tree: &Path, logs: &Path, ui: &mut Ui) -> Result<()> {
        for (path, _) in &self.0 {
            let mut patch = Command::new("patch");
            patch.args(["--strip=1", "--forward", "--batch", "--input"]).arg(path).current_dir(tree);
            tools::run(&mut patch, logs, ui).with_context(|| format!("cannot apply {}", path.display()))?;
        }
        Ok(())
    }
}
