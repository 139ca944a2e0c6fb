//! `sbx image`: the images on this host.

use std::{fmt::Write as _, path::Path};

use exec_sandbox::{ImageInfo, SchedulerConfig};
use serde::Serialize;

use crate::{
    args::{ImageArgs, ImageCommand},
    exit::Status,
    failure::Failure,
    print::{self, HEADER},
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
    let ImageCommand::Ls { json } = args.command;
    let images = exec_sandbox::images(&SchedulerConfig::default())?;
    if json {
        print::json(&images.iter().map(entry).collect::<Vec<_>>())?;
    } else {
        print::page(&table(&images))?;
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

/// One line an image, columns as wide as they have to be.
fn table(images: &[ImageInfo]) -> String {
    let rows: Vec<[String; 6]> = images.iter().map(row).collect();
    let mut widths = TITLES.map(str::len);
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: [&str; 6]| {
        let padded: Vec<String> = cells.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        padded.join("  ").trim_end().to_owned()
    };
    let mut table = format!("{HEADER}{}{HEADER:#}\n", line(TITLES));
    for row in &rows {
        let _ = writeln!(table, "{}", line(row.each_ref().map(String::as_str)));
    }
    table
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
