//! The build cache: downloads by digest, results by key, one writer at a time.
//!
//! ```text
//! lock             held for the whole of a build
//! downloads/SHA    what was fetched; hashed again at each use
//! built/STEP-KEY/  what a step made, with record.json; hashed again at each use
//! work/            scratch, emptied at the beginning and the end
//! apt/  logs/      apt's own state; what the programs of each step printed
//! ```
//! A result is made in `work/` and renamed into place whole, so an interrupted build leaves nothing that could be mistaken for one.

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, Result, anyhow};
use exec_sandbox_image::{Blob, Digest};
use serde::{Deserialize, Serialize};

use super::progress;

/// Results of a step that are kept, so that going back and forth between two branches does not build a kernel each time.
const KEPT_RESULTS: usize = 3;

const RECORD: &str = "record.json";

/// The cache, locked for this process.
#[derive(Debug)]
pub(crate) struct Cache {
    root: PathBuf,
    _lock: File,
}

/// What a step made.
#[derive(Debug)]
pub(crate) struct Artefact {
    dir: PathBuf,
    record: Record,
}

/// What is known of a result: its files by name, and facts that later steps need.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    files: BTreeMap<String, Blob>,
    facts: BTreeMap<String, String>,
}

impl Cache {
    /// Opens the cache, waiting for another build that uses it.
    pub(crate) fn open(root: &Path) -> Result<Self> {
        for dir in ["downloads", "built", "logs"] {
            let dir = root.join(dir);
            fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        }
        let path = root.join("lock");
        let lock = File::options().create(true).truncate(false).write(true).open(&path);
        let lock = lock.with_context(|| format!("cannot open {}", path.display()))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                progress::warn(&[format!("another build uses {}: waiting for it", root.display())]);
                lock.lock().with_context(|| format!("cannot lock {}", path.display()))?;
            }
            Err(TryLockError::Error(e)) => return Err(e).with_context(|| format!("cannot lock {}", path.display())),
        }
        let cache = Self { root: root.to_owned(), _lock: lock };
        cache.clear_work()?;
        Ok(cache)
    }

    /// Where the programs' output goes.
    pub(crate) fn logs(&self) -> PathBuf {
        self.root.join("logs")
    }

    /// Where apt keeps the state of this project's own sources.
    pub(crate) fn apt(&self) -> PathBuf {
        self.root.join("apt")
    }

    /// Where the download with this name belongs.
    pub(crate) fn download(&self, name: &str) -> PathBuf {
        self.root.join("downloads").join(name)
    }

    /// A new empty directory, which vanishes with the build.
    pub(crate) fn scratch(&self, name: &str) -> Result<PathBuf> {
        let dir = self.root.join("work").join(name);
        remove_dir(&dir)?;
        fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        Ok(dir)
    }

    /// What `step` made for `key`, if it is there and whole. A damaged result is removed.
    pub(crate) fn artefact(&self, step: &str, key: Digest) -> Result<Option<Artefact>> {
        let dir = self.built(step, key);
        if !dir.exists() {
            return Ok(None);
        }
        match Artefact::open(&dir) {
            Ok(artefact) => Ok(Some(artefact)),
            Err(e) => {
                progress::warn(&[format!("{} is damaged and is built again: {e:#}", dir.display())]);
                remove_dir(&dir)?;
                Ok(None)
            }
        }
    }

    /// Keeps the files of `dir`, which must lie in the scratch directory, as what `step` made for `key`.
    pub(crate) fn keep(&self, step: &str, key: Digest, dir: &Path, facts: &[(&str, &str)]) -> Result<Artefact> {
        let files = hash_files(dir)?;
        let facts = facts.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let record = serde_json::to_vec_pretty(&Record { files, facts }).context("cannot write a record")?;
        let write = || -> io::Result<()> {
            fs::write(dir.join(RECORD), record)?;
            for entry in fs::read_dir(dir)? {
                File::open(entry?.path())?.sync_all()?;
            }
            File::open(dir)?.sync_all()
        };
        write().with_context(|| format!("cannot complete {}", dir.display()))?;
        let target = self.built(step, key);
        remove_dir(&target)?;
        fs::rename(dir, &target).with_context(|| format!("cannot create {}", target.display()))?;
        Artefact::open(&target)
    }

    /// Ends a build: removes scratch, downloads that nothing names and results that fell out of use.
    pub(crate) fn trim(&self, pinned: &[String]) -> Result<()> {
        self.clear_work()?;
        for (path, _) in listing(&self.root.join("downloads"))? {
            if !path.file_name().is_some_and(|name| pinned.iter().any(|pin| *pin == name.to_string_lossy())) {
                fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
            }
        }
        let mut by_step: BTreeMap<String, Vec<(SystemTime, PathBuf)>> = BTreeMap::new();
        for (path, used) in listing(&self.root.join("built"))? {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let step = name.split_once('-').map_or_else(|| name.clone(), |(step, _)| step.to_owned());
            by_step.entry(step).or_default().push((used, path));
        }
        for mut results in by_step.into_values() {
            results.sort_by(|a, b| b.cmp(a));
            results.iter().skip(KEPT_RESULTS).try_for_each(|(_, path)| remove_dir(path))?;
        }
        Ok(())
    }

    fn built(&self, step: &str, key: Digest) -> PathBuf {
        self.root.join("built").join(format!("{step}-{key}"))
    }

    fn clear_work(&self) -> Result<()> {
        remove_dir(&self.root.join("work"))
    }
}

impl Artefact {
    /// Where its files are.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The file that the step made under this name.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Digest and size of one of its files.
    pub(crate) fn blob(&self, name: &str) -> Result<Blob> {
        self.record.files.get(name).copied().with_context(|| format!("{} has no {name}", self.dir.display()))
    }

    /// A fact that the step noted.
    pub(crate) fn fact(&self, name: &str) -> Result<&str> {
        let fact =
            self.record.facts.get(name).with_context(|| format!("{} does not say its {name}", self.dir.display()))?;
        Ok(fact)
    }

    /// Reads and proves a result, and marks it as used now.
    fn open(dir: &Path) -> Result<Self> {
        let record: Record = serde_json::from_slice(&fs::read(dir.join(RECORD))?)?;
        for (name, blob) in &record.files {
            let (blake3, size_bytes) =
                Digest::of_file(&dir.join(name)).with_context(|| format!("cannot read {name}"))?;
            if (Blob { blake3, size_bytes }) != *blob {
                return Err(anyhow!("the content of {name} has changed"));
            }
        }
        File::open(dir)?.set_modified(SystemTime::now())?;
        Ok(Self { dir: dir.to_owned(), record })
    }
}

fn hash_files(dir: &Path) -> Result<BTreeMap<String, Blob>> {
    let mut files = BTreeMap::new();
    for (path, _) in listing(dir)? {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let (blake3, size_bytes) = Digest::of_file(&path).with_context(|| format!("cannot read {}", path.display()))?;
        files.insert(name, Blob { blake3, size_bytes });
    }
    Ok(files)
}

fn listing(dir: &Path) -> Result<Vec<(PathBuf, SystemTime)>> {
    let read = || -> io::Result<Vec<(PathBuf, SystemTime)>> {
        fs::read_dir(dir)?
            .map(|entry| entry.and_then(|entry| Ok((entry.path(), entry.metadata()?.modified()?))))
            .collect()
    };
    read().with_context(|| format!("cannot list {}", dir.display()))
}

fn remove_dir(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(e).with_context(|| format!("cannot remove {}", dir.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache_with_result(root: &Path) -> (Cache, Artefact) {
        let cache = Cache::open(root).unwrap();
        let dir = cache.scratch("result").unwrap();
        fs::write(dir.join("thing"), "content").unwrap();
        let artefact = cache.keep("step", Digest::of(b"key"), &dir, &[("release", "6.12")]).unwrap();
        (cache, artefact)
    }

    #[test]
    fn a_kept_result_is_found_by_its_key_with_files_and_facts() {
        let root = tempfile::tempdir().unwrap();
        let (cache, kept) = cache_with_result(root.path());
        let found = cache.artefact("step", Digest::of(b"key")).unwrap().unwrap();
        assert_eq!(fs::read_to_string(found.path("thing")).unwrap(), "content");
        assert_eq!(found.blob("thing").unwrap(), kept.blob("thing").unwrap());
        assert_eq!(found.fact("release").unwrap(), "6.12");
        assert!(cache.artefact("step", Digest::of(b"other key")).unwrap().is_none());
    }

    #[test]
    fn a_damaged_result_is_removed_instead_of_used() {
        let root = tempfile::tempdir().unwrap();
        let (cache, kept) = cache_with_result(root.path());
        fs::write(kept.path("thing"), "Content").unwrap();
        assert!(cache.artefact("step", Digest::of(b"key")).unwrap().is_none());
        assert!(!kept.path("thing").exists());
    }

    #[test]
    fn a_result_without_a_record_is_no_result() {
        let root = tempfile::tempdir().unwrap();
        let (cache, kept) = cache_with_result(root.path());
        fs::remove_file(kept.path(RECORD)).unwrap();
        assert!(cache.artefact("step", Digest::of(b"key")).unwrap().is_none());
    }

    #[test]
    fn scratch_of_an_interrupted_build_is_gone_at_the_next_one() {
        let root = tempfile::tempdir().unwrap();
        let left = Cache::open(root.path()).unwrap().scratch("half").unwrap();
        assert!(left.exists());
        Cache::open(root.path()).unwrap();
        assert!(!left.exists());
    }

    #[test]
    fn trimming_keeps_pinned_downloads_and_the_latest_results() {
        let root = tempfile::tempdir().unwrap();
        let (cache, _) = cache_with_result(root.path());
        for name in ["pinned", "loose"] {
            fs::write(cache.download(name), name).unwrap();
        }
        for n in 0..KEPT_RESULTS {
            let dir = cache.scratch("result").unwrap();
            fs::write(dir.join("thing"), n.to_string()).unwrap();
            cache.keep("step", Digest::of(&[b'0' + u8::try_from(n).unwrap()]), &dir, &[]).unwrap();
        }
        cache.trim(&["pinned".to_owned()]).unwrap();
        assert!(cache.download("pinned").exists() && !cache.download("loose").exists());
        assert!(cache.artefact("step", Digest::of(b"key")).unwrap().is_none(), "the oldest result is still there");
        assert!(cache.artefact("step", Digest::of(b"0")).unwrap().is_some());
    }
}
