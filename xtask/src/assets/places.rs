//! Where things are: the project's files, the cache, the images.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use etcetera::BaseStrategy;

/// The directories that a build reads and writes.
#[derive(Debug)]
pub(crate) struct Places {
    /// The workspace.
    pub(crate) workspace: PathBuf,
    /// The recipe, the lock file, the kernel's configuration.
    pub(crate) assets: PathBuf,
    /// What the builds keep between runs.
    pub(crate) cache: PathBuf,
    /// Where images are published.
    pub(crate) images: PathBuf,
}

impl Places {
    /// Reads the environment.
    pub(crate) fn find() -> Result<Self> {
        let workspace =
            Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask lies in no workspace")?.to_owned();
        let root = cache_root()?;
        Ok(Self {
            assets: workspace.join("assets"),
            workspace,
            cache: root.join("assets"),
            images: directory_from("EXEC_SANDBOX_IMAGES_DIR").unwrap_or_else(|| root.join("images")),
        })
    }
}

fn cache_root() -> Result<PathBuf> {
    if let Some(dir) = directory_from("EXEC_SANDBOX_CACHE_DIR") {
        return Ok(dir);
    }
    let base =
        etcetera::base_strategy::Xdg::new().context("cannot find the home directory: set EXEC_SANDBOX_CACHE_DIR")?;
    Ok(base.cache_dir().join("exec-sandbox"))
}

/// An environment variable that names a directory. An empty one counts as none.
fn directory_from(variable: &str) -> Option<PathBuf> {
    let value = env::var_os(variable).filter(|value| !value.is_empty())?;
    // A build changes its directory, so a relative path would come to mean another place.
    std::path::absolute(value).ok()
}
