//! The cache, for people who care for it: what is kept of snapshots of memory and of installed packages, for what, and how it goes.
//!
//! Everything here can be made again, and everything is safe beside processes that use the cache or do the same to it. What goes is
//! renamed away first, so nobody finds half of it, and who has it open keeps it. Images are listed with the rest and are not touched:
//! they come and go as images do. Each function reads directories and small files, and blocks for so long.

mod entry;
mod stores;

use std::{
    fs::{self, File},
    io,
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    time::{Duration, SystemTime},
};

use rustix::fs::OFlags;

pub use entry::{Contents, Entry, Kind};

use crate::{
    Error, ErrorKind, SchedulerConfig,
    cache_dir::{self, Candidate, PINNED, Rule, evict},
    ids,
    inventory::listed,
};
use stores::Stores;

/// So many characters of a key are told in a message.
const SHOWN_KEY_CHARS: usize = 12;

/// What [`collect`] is to do beside what the configuration's limits say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Collect {
    /// What snapshots and packages together may take of the disk, instead of what the configuration says of each.
    pub max_bytes: Option<u64>,
    /// After so long without use something goes, instead of what the configuration says of each. A use is noted once in an hour.
    pub max_age: Option<Duration>,
    /// Everything goes that is not pinned, also what was made just now.
    pub everything: bool,
    /// Nothing is done, only told.
    pub dry_run: bool,
}

/// What [`collect`] did, or would do.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Collected {
    /// What is gone.
    pub removed: Vec<Entry>,
    /// What that took of the disk.
    pub removed_bytes: u64,
    /// How many are still there, images not counted.
    pub kept: usize,
    /// What those take of the disk.
    pub kept_bytes: u64,
}

/// Why a key is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
enum Unresolved {
    #[error("nothing in the cache has it")]
    Unknown,
    #[error("it stands for {}", listed(.0))]
    Ambiguous(Vec<String>),
    #[error("it is an image")]
    Image,
    #[error("it is of no use and was set aside")]
    SetAside,
}

/// What is kept under `config`: snapshots, packages, images, and of each kind what was used last before the rest. What is damaged is
/// among it, and says so.
///
/// # Errors
/// A directory cannot be read or is not this user's alone, or a field of `config` is invalid.
pub fn list(config: &SchedulerConfig) -> Result<Vec<Entry>, Error> {
    let stores = Stores::of(config)?;
    let mut all = stores.entries(SystemTime::now())?;
    all.extend(stores.images()?);
    all.sort_by(|one, other| (one.kind, other.last_use, &one.key).cmp(&(other.kind, one.last_use, &other.key)));
    Ok(all)
}

/// Keeps the cache within its limits, as every start of a scheduler does, or within those of `how`. What was used within the last minute
/// stays, unless everything is to go; what is pinned stays in any case.
///
/// # Errors
/// As of [`list`]. What cannot be removed is no error, and is kept.
pub fn collect(config: &SchedulerConfig, how: &Collect) -> Result<Collected, Error> {
    let (stores, now) = (Stores::of(config)?, SystemTime::now());
    if !how.dry_run {
        stores.clear_up();
    }
    let mut entries = stores.entries(now)?;
    let [snapshots, layers] = stores.candidates(now)?.map(|all| aged(all, how.max_age));
    let [max_snapshot_bytes, max_layer_bytes] = stores.max_bytes();
    let groups = match (how.everything, how.max_bytes) {
        (true, _) => vec![([snapshots, layers].concat(), Rule::Everything)],
        (false, Some(max_bytes)) => vec![([snapshots, layers].concat(), Rule::Within { max_bytes })],
        (false, None) => vec![
            (snapshots, Rule::Within { max_bytes: max_snapshot_bytes }),
            (layers, Rule::Within { max_bytes: max_layer_bytes }),
        ],
    };
    let mut collected = Collected::default();
    for (candidates, rule) in groups {
        let evicted = evict(candidates, rule, now, |candidate| how.dry_run || discard(candidate));
        let is_gone = |entry: &mut Entry| evicted.gone.iter().any(|gone| gone.path == entry.path);
        collected.removed.extend(entries.extract_if(.., is_gone));
        collected.removed_bytes += evicted.gone.iter().map(|gone| gone.bytes).sum::<u64>();
        collected.kept += evicted.kept.len();
        collected.kept_bytes += evicted.kept_bytes;
    }
    if !how.dry_run {
        stores.clear_up();
    }
    Ok(collected)
}

/// Removes what has these keys, pinned or not, and returns it. A key may be shortened to what no other begins with. If one of them is
/// none, nothing is removed.
///
/// # Errors
/// [`ErrorKind::InvalidArgument`]: a key stands for nothing, for several, or for an image. [`ErrorKind::Host`]: something cannot be
/// removed.
pub fn remove(config: &SchedulerConfig, keys: &[impl AsRef<str>]) -> Result<Vec<Entry>, Error> {
    let stores = Stores::of(config)?;
    let removed = chosen(&stores, keys, "removing from the cache what has the key", |_| true)?;
    for entry in &removed {
        if !cache_dir::discard(&stores.trash_of(entry), &entry.path) {
            let message = format!("removing {} from the cache", entry.path.display());
            return Err(Error::new(ErrorKind::Host, message).remedied_by("look at whose its directory is"));
        }
    }
    stores.clear_up();
    Ok(removed)
}

/// Has what has these keys stay whatever the limits say, and returns it. Keys are as in [`remove`].
///
/// # Errors
/// As of [`remove`], and [`ErrorKind::InvalidArgument`] for what is of no use.
pub fn pin(config: &SchedulerConfig, keys: &[impl AsRef<str>]) -> Result<Vec<Entry>, Error> {
    set_pinned(config, keys, true)
}

/// Has the limits hold again for what has these keys, and returns it. Keys are as in [`remove`].
///
/// # Errors
/// As of [`pin`].
pub fn unpin(config: &SchedulerConfig, keys: &[impl AsRef<str>]) -> Result<Vec<Entry>, Error> {
    set_pinned(config, keys, false)
}

fn set_pinned(config: &SchedulerConfig, keys: &[impl AsRef<str>], is_pinned: bool) -> Result<Vec<Entry>, Error> {
    let doing = if is_pinned { "pinning what has the key" } else { "unpinning what has the key" };
    let of_use = |entry: &Entry| !matches!(entry.contents, Contents::SetAside { .. });
    let mut entries = chosen(&Stores::of(config)?, keys, doing, of_use)?;
    for entry in &mut entries {
        let set = if is_pinned { put_pin(&entry.path) } else { take_pin(&entry.path) };
        set.map_err(|error| {
            let failed = Error::new(ErrorKind::Host, format!("{doing} {}", shown(&entry.key)));
            failed.because(error).remedied_by("it may be gone by now: `sbx cache ls` lists what is there")
        })?;
        entry.is_pinned = is_pinned;
    }
    Ok(entries)
}

fn put_pin(path: &Path) -> io::Result<()> {
    let no_links = i32::try_from(OFlags::NOFOLLOW.bits()).unwrap_or_default();
    let pin = File::options().create(true).truncate(false).write(true).custom_flags(no_links).open(path.join(PINNED));
    pin.map(drop)
}

fn take_pin(path: &Path) -> io::Result<()> {
    match fs::remove_file(path.join(PINNED)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && path.is_dir() => Ok(()),
        removed => removed,
    }
}

fn discard(candidate: &Candidate) -> bool {
    cache_dir::discard(&candidate.trash, &candidate.path)
}

fn aged(mut candidates: Vec<Candidate>, max_age: Option<Duration>) -> Vec<Candidate> {
    if let Some(max_age) = max_age {
        candidates.iter_mut().for_each(|candidate| candidate.max_age = max_age);
    }
    candidates
}

/// What `keys` stand for, each once, of what is `suitable`.
fn chosen(
    stores: &Stores,
    keys: &[impl AsRef<str>],
    doing: &str,
    suitable: impl Fn(&Entry) -> bool,
) -> Result<Vec<Entry>, Error> {
    let mut entries = stores.entries(SystemTime::now())?;
    let images = stores.images()?;
    let mut names: Vec<String> = entries.iter().map(|entry| entry.key.clone()).collect();
    names.sort_unstable();
    names.dedup();
    let mut chosen = Vec::new();
    for typed in keys.iter().map(AsRef::as_ref) {
        let key = resolve(typed, &names, &images).and_then(|key| {
            let is_suitable = entries.iter().chain(&chosen).any(|entry| entry.key == key && suitable(entry));
            if is_suitable { Ok(key) } else { Err(Unresolved::SetAside) }
        });
        let key = key.map_err(|error| unresolved(doing, typed, error, &names))?;
        chosen.extend(entries.extract_if(.., |entry| entry.key == key && suitable(entry)));
    }
    Ok(chosen)
}

fn resolve<'a>(typed: &str, keys: &'a [String], images: &[Entry]) -> Result<&'a str, Unresolved> {
    match ids::resolve(typed, keys) {
        Ok(key) if !typed.is_empty() => Ok(key),
        Err(several) if !several.is_empty() => {
            Err(Unresolved::Ambiguous(several.iter().map(|key| shown(key)).collect()))
        }
        _ if images.iter().any(|image| image.key == typed) => Err(Unresolved::Image),
        _ => Err(Unresolved::Unknown),
    }
}

fn unresolved(doing: &str, typed: &str, error: Unresolved, keys: &[String]) -> Error {
    let there: Vec<String> = keys.iter().map(|key| shown(key)).collect();
    let remedy = match error {
        Unresolved::Image => "images are not the cache's: `sbx image` knows of them".to_owned(),
        Unresolved::SetAside => "remove it: what is made in its place can be pinned".to_owned(),
        Unresolved::Unknown | Unresolved::Ambiguous(_) => {
            format!("`sbx cache ls` lists what is there: {}", listed(&there))
        }
    };
    Error::new(ErrorKind::InvalidArgument, format!("{doing} {typed:?}")).because(error).remedied_by(remedy)
}

/// A key as people read it.
fn shown(key: &str) -> String {
    key.chars().take(SHOWN_KEY_CHARS).collect()
}

#[cfg(test)]
mod tests;
