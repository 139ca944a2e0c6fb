//! `sbx image`: the images on this host.

mod pull;

use std::path::Path;

use exec_sandbox::{ImageInfo, SchedulerConfig};
use serde::Serialize;

use crate::{
    args::{ImageArgs, ImageCommand},
    cache::bytes,
    exit::Status,
    failure::Failure,
    print,
    table::table,
};

const TITLES: [&str; 6] = ["NAME", "ARCH", "KERNEL", "SIZE", "LANGUAGES", "PATH"];

/// An image as JSON.
#[derive(Serialize)]
struct Entry<'a> {
    name: &'a str,
    arch: &'a str,
    kernel_version: &'a str,
    languages: Vec<LanguageEntry<'a>>,
    size_bytes: u64,
    path: &'a Path,
}

#[derive(Serialize)]
struct LanguageEntry<'a> {
    name: &'a str,
    version: &'a str,
}

/// Does what was asked of images.
pub(crate) fn run(args: &ImageArgs) -> Result<Status, Failure> {
    match &args.command {
        ImageCommand::Ls { json } => list(*json),
        ImageCommand::Pull(args) => pull::run(args),
        ImageCommand::Prune { json } => prune(*json),
    }
}

fn list(json: bool) -> Result<Status, Failure> {
    let images = exec_sandbox::images(&SchedulerConfig::default())?;
    if json {
        print::json(&images.iter().map(entry).collect::<Vec<_>>())?;
    } else {
        print::page(&table(TITLES, &images.iter().map(row).collect::<Vec<_>>()))?;
    }
    Ok(Status::SUCCESS)
}

fn prune(json: bool) -> Result<Status, Failure> {
    let pruned = exec_sandbox::prune_images(&SchedulerConfig::default())?;
    if json {
        print::json(&pruned)?;
    } else {
        print::page(&format!("Removed {} files, {}.\n", pruned.files, bytes(pruned.size_bytes)))?;
    }
    Ok(Status::SUCCESS)
}

fn entry(image: &ImageInfo) -> Entry<'_> {
    Entry {
        name: &image.name,
        arch: &image.arch,
        kernel_version: &image.kernel_version,
        languages: image.languages.iter().map(|(name, version)| LanguageEntry { name, version }).collect(),
        size_bytes: image.size_bytes,
        path: &image.path,
    }
}

fn row(image: &ImageInfo) -> [String; 6] {
    let languages: Vec<String> = image.languages.iter().map(|(name, version)| format!("{name} {version}")).collect();
    [
        image.name.clone(),
        image.arch.clone(),
        image.kernel_version.clone(),
        format!("{} MiB", image.size_bytes >> 20),
        languages.join(", "),
        image.path.display().to_string(),
    ]
}
