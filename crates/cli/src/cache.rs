//! `sbx cache`: what is kept of snapshots and packages, and its care.
//!
//! The keys of what something was done to are printed, one on a line.

use std::{
    borrow::Cow,
    fmt::Write as _,
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use exec_sandbox::{
    Error, Language, SchedulerConfig,
    cache::{self, Collected, Contents, Entry, Kind},
};
use serde::Serialize;

use crate::{
    args::{CacheArgs, CacheCommand, CacheGcArgs, KeysArgs},
    exit::Status,
    failure::Failure,
    print,
    table::{UNKNOWN, cell, rounded, table},
};

const TITLES: [&str; 6] = ["KIND", "KEY", "SIZE", "LAST USE", "PINNED", "WHAT"];

/// So much of a key is shown: two of a thousand that begin alike are less likely than a flipped bit.
const SHOWN_KEY_CHARS: usize = 12;

/// So many packages are named in a line.
const NAMED_PACKAGES: usize = 5;

/// Something in the cache as JSON. What does not apply is null.
#[derive(Serialize)]
struct Sheet<'a> {
    kind: Kind,
    key: &'a str,
    size_bytes: u64,
    last_use_unix_s: Option<u64>,
    pinned: bool,
    /// `whole`, `damaged` or `set_aside`.
    state: &'static str,
    why: Option<&'a str>,
    language: Option<Language>,
    memory_mib: Option<u32>,
    packages: Option<&'a [String]>,
    installed: Option<&'a [String]>,
    path: &'a Path,
}

#[derive(Serialize)]
struct CollectedSheet<'a> {
    dry_run: bool,
    removed: Vec<Sheet<'a>>,
    removed_bytes: u64,
    kept: usize,
    kept_bytes: u64,
}

/// Does what was asked of the cache.
pub(crate) fn run(args: &CacheArgs) -> Result<Status, Failure> {
    let config = SchedulerConfig::default();
    match &args.command {
        CacheCommand::Ls { json } => list(&config, *json),
        CacheCommand::Gc(args) => collect(&config, args),
        CacheCommand::Rm(args) => told(args, |keys| cache::remove(&config, keys)),
        CacheCommand::Pin(args) => told(args, |keys| cache::pin(&config, keys)),
        CacheCommand::Unpin(args) => told(args, |keys| cache::unpin(&config, keys)),
    }
}

fn list(config: &SchedulerConfig, json: bool) -> Result<Status, Failure> {
    let all = cache::list(config)?;
    if json {
        print::json(&all.iter().map(sheet).collect::<Vec<_>>())?;
    } else {
        let now = SystemTime::now();
        print::page(&table(TITLES, &all.iter().map(|entry| row(entry, now)).collect::<Vec<_>>()))?;
    }
    Ok(Status::SUCCESS)
}

fn collect(config: &SchedulerConfig, args: &CacheGcArgs) -> Result<Status, Failure> {
    let collected = cache::collect(config, &args.how())?;
    if args.json {
        print::json(&CollectedSheet {
            dry_run: args.dry_run,
            removed: collected.removed.iter().map(sheet).collect(),
            removed_bytes: collected.removed_bytes,
            kept: collected.kept,
            kept_bytes: collected.kept_bytes,
        })?;
    } else {
        print::page(&page(&collected, args.dry_run))?;
    }
    Ok(Status::SUCCESS)
}

fn told(args: &KeysArgs, work: impl FnOnce(&[String]) -> Result<Vec<Entry>, Error>) -> Result<Status, Failure> {
    let keys = work(&args.keys)?.into_iter().fold(String::new(), |keys, entry| keys + &entry.key + "\n");
    print::to_stdout(keys.as_bytes())?;
    Ok(Status::SUCCESS)
}

fn page(collected: &Collected, dry_run: bool) -> String {
    let (removed, freed) = if dry_run { ("would remove", "Would free") } else { ("removed", "Freed") };
    let mut page = String::new();
    for entry in &collected.removed {
        let (kind, key, what) = (entry.kind.name(), shown(entry), what(entry));
        let _ = writeln!(page, "{removed} {kind} {key}, {}: {}", bytes(entry.bytes), cell(Some(&what)));
    }
    let Collected { removed_bytes, kept, kept_bytes, .. } = collected;
    let _ = writeln!(page, "{freed} {}; {kept} are kept, {}.", bytes(*removed_bytes), bytes(*kept_bytes));
    page
}

fn sheet(entry: &Entry) -> Sheet<'_> {
    let seconds = |time: SystemTime| time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let mut sheet = Sheet {
        kind: entry.kind,
        key: &entry.key,
        size_bytes: entry.bytes,
        last_use_unix_s: entry.last_use.map(seconds),
        pinned: entry.is_pinned,
        state: "whole",
        why: None,
        language: None,
        memory_mib: None,
        packages: None,
        installed: None,
        path: &entry.path,
    };
    match &entry.contents {
        Contents::Snapshot { language, memory_mib, packages } => {
            (sheet.language, sheet.memory_mib, sheet.packages) = (*language, Some(*memory_mib), Some(&packages[..]));
        }
        Contents::Packages { language, requested, installed } => {
            (sheet.language, sheet.packages, sheet.installed) =
                (Some(*language), Some(&requested[..]), Some(&installed[..]));
        }
        Contents::Damaged { why } => (sheet.state, sheet.why) = ("damaged", Some(&why[..])),
        Contents::SetAside { why } => (sheet.state, sheet.why) = ("set_aside", Some(&why[..])),
        _ => {}
    }
    sheet
}

fn row(entry: &Entry, now: SystemTime) -> [String; 6] {
    let last_use = entry.last_use.map(|time| format!("{} ago", rounded(now.duration_since(time).unwrap_or_default())));
    let pinned = match (entry.kind, entry.is_pinned) {
        (Kind::Image, _) => UNKNOWN,
        (_, true) => "yes",
        (_, false) => "no",
    };
    [
        entry.kind.name().to_owned(),
        shown(entry).into_owned(),
        bytes(entry.bytes),
        last_use.unwrap_or_else(|| UNKNOWN.to_owned()),
        pinned.to_owned(),
        cell(Some(&what(entry))),
    ]
}

/// A key as it is shown; an image's name in full.
fn shown(entry: &Entry) -> Cow<'_, str> {
    match entry.kind {
        Kind::Image => Cow::Borrowed(&*entry.key),
        _ => entry.key.chars().take(SHOWN_KEY_CHARS).collect(),
    }
}

fn what(entry: &Entry) -> String {
    match &entry.contents {
        Contents::Snapshot { language, memory_mib, packages } => {
            let language = language.map_or("no language", Language::name);
            let with = if packages.is_empty() { String::new() } else { format!(", {}", named(packages)) };
            format!("{language}, {memory_mib} MiB{with}")
        }
        Contents::Packages { language, requested, installed } => {
            format!("{language}, {}; {} installed", named(requested), installed.len())
        }
        Contents::Image { kernel_version, languages } => {
            let languages: Vec<_> = languages.iter().map(|(name, version)| format!("{name} {version}")).collect();
            format!("kernel {kernel_version}, {}", languages.join(", "))
        }
        Contents::Damaged { why } => format!("damaged: {why}"),
        Contents::SetAside { why } => format!("set aside: {why}"),
        _ => UNKNOWN.to_owned(),
    }
}

fn named(packages: &[String]) -> String {
    let shown = packages.iter().take(NAMED_PACKAGES).map(String::as_str).collect::<Vec<_>>().join(" ");
    match packages.len().saturating_sub(NAMED_PACKAGES) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

/// A size in a unit in which it is a number.
pub(crate) fn bytes(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..0x10_0000 => format!("{} KiB", bytes >> 10),
        _ => format!("{} MiB", bytes >> 20),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_told_in_a_unit_in_which_it_is_a_number() {
        let of = [0, 1023, 1024, (1 << 20) - 1, 1 << 20, 5 << 30].map(bytes);
        assert_eq!(of, ["0 B", "1023 B", "1 KiB", "1023 KiB", "1 MiB", "5120 MiB"]);
    }

    #[test]
    fn a_line_names_no_more_packages_than_somebody_reads() {
        let of = |count: usize| named(&vec!["a==1".to_owned(); count]);
        assert_eq!(of(2), "a==1 a==1");
        assert_eq!(of(7), "a==1 a==1 a==1 a==1 a==1 and 2 more");
    }
}
