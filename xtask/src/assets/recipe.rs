//! The recipe: `assets/assets.toml`, what the guest is made of by name.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Deserialize;

/// The whole file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Recipe {
    pub(crate) debian: Debian,
    pub(crate) npm: Npm,
    pub(crate) pypi: Pypi,
    pub(crate) image: Image,
}

/// What comes from Debian.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Debian {
    pub(crate) suites: Vec<String>,
    pub(crate) kernel: String,
    pub(crate) qemu: QemuPackages,
    pub(crate) tools: Vec<String>,
}

/// What QEMU is made of.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct QemuPackages {
    /// A source package.
    pub(crate) source: String,
    /// The binary package that has its firmware.
    pub(crate) firmware: String,
}

/// What comes from npm.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Npm {
    pub(crate) bun: String,
}

/// What comes from PyPI.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Pypi {
    pub(crate) platform: String,
    pub(crate) wheels: Vec<String>,
    /// What QEMU is built with, as requirements with a version each.
    pub(crate) qemu_wheels: Vec<String>,
}

/// The image that is built of it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Image {
    pub(crate) name: String,
    pub(crate) arch: String,
    pub(crate) packages: Vec<String>,
    pub(crate) languages: BTreeMap<String, Language>,
}

/// A language's interpreter.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Language {
    pub(crate) path: String,
    pub(crate) package: String,
}

impl Recipe {
    /// Reads `assets.toml` in `assets`.
    pub(crate) fn load(assets: &Path) -> Result<Self> {
        let path = assets.join("assets.toml");
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        toml::from_str(&text).with_context(|| format!("cannot use {}", path.display()))
    }
}
