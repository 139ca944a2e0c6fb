//! Fetching: an entry of the store to files in a directory, or a refusal by name.
//!
//! The store is not believed. The manifest is bounded, has to be that of the entry that was asked for, and has to list exactly the files that the
//! caller expects; their lengths are within the caller's limit before a blob is asked for. Then each blob has the length that
//! the manifest says, decompresses to no more than announced, and has its digest. Whatever goes wrong, and if the fetch is dropped,
//! the files that were made are removed.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use tokio::{sync::mpsc, task::spawn_blocking, time::timeout};

use crate::{
    config::Bounds,
    counters::Counters,
    entry::EntryName,
    manifest::{self, ListedFile, MAX_MANIFEST_BYTES, Manifest, ManifestError},
    refusal::Refusal,
    store::{Object, Store, StoreError},
    unpack::{Piece, Pieces, Unpacking, unpack},
};

/// Pieces of a blob, of some KiB each, that wait for the disk: enough that reading and writing overlap.
const PIECES_UNDER_WAY: usize = 32;

/// What is asked for, and what may come.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// The entry.
    pub name: &'a EntryName,
    /// The names of its files. It has to have these and no others.
    pub files: &'a [&'a str],
    /// Most bytes that its files may have together, holes and all.
    pub most_plain_bytes: u64,
}

/// How a fetch ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fetch {
    /// The files are in the directory.
    Hit(Fetched),
    /// The store has no such entry.
    Absent,
    /// The store was not asked, because it has failed a while ago.
    Resting,
}

/// An entry that was fetched. Its files are as they were when they were offered; nothing was synchronised.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetched {
    /// What its maker says of it. It is as believable as whoever may write to the store.
    pub facts: String,
    /// Its files.
    pub files: Vec<FetchedFile>,
}

/// A file that was fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FetchedFile {
    /// Its name in the directory.
    pub name: String,
    /// Its length.
    pub plain_bytes: u64,
    /// The length of its blob.
    pub stored_bytes: u64,
}

/// Why an entry was not fetched.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The store failed. It is left alone now.
    #[error("asking {store} for {name}")]
    Store {
        /// Which store.
        store: String,
        /// Which entry.
        name: EntryName,
        /// What went wrong.
        #[source]
        cause: StoreError,
    },
    /// The store has something else than what was offered.
    #[error("{name} of {store} was refused")]
    Refused {
        /// Which store.
        store: String,
        /// Which entry.
        name: EntryName,
        /// What is wrong with it.
        #[source]
        cause: Box<Refusal>,
    },
    /// A file could not be made or written.
    #[error("writing {path}")]
    Local {
        /// Which file.
        path: PathBuf,
        /// What went wrong.
        #[source]
        cause: io::Error,
    },
}

/// The same, before it is known what was asked of whom.
#[derive(Debug)]
pub(crate) enum Fault {
    Store(StoreError),
    Refused(Box<Refusal>),
    Local(PathBuf, io::Error),
}

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<Refusal> for Fault {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(Box::new(refusal))
    }
}

/// A file that goes unless it is kept.
#[derive(Debug)]
struct Unfinished(Option<PathBuf>);

impl Unfinished {
    fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(path) = &self.0
            && let Err(error) = fs::remove_file(path)
        {
            tracing::debug!(path = %path.display(), %error, "an unfinished file could not be removed");
        }
    }
}

pub(crate) struct Fetcher<'a> {
    pub(crate) store: &'a Store,
    pub(crate) bounds: &'a Bounds,
    pub(crate) counters: &'a Counters,
}

impl Fetcher<'_> {
    /// The entry's files, made in `into`; `None` if there is no such entry.
    pub(crate) async fn fetch(&self, wanted: &Wanted<'_>, into: &Path) -> Result<Option<Fetched>, Fault> {
        let Some(manifest) = self.manifest(wanted.name).await? else { return Ok(None) };
        check(&manifest, wanted)?;
        let mut made = Vec::new();
        for listed in &manifest.files {
            made.push(self.download(listed, into).await?);
        }
        made.into_iter().for_each(Unfinished::keep);
        let file = |listed: ListedFile| FetchedFile {
            name: listed.name,
            plain_bytes: listed.plain_bytes,
            stored_bytes: listed.stored_bytes,
        };
        Ok(Some(Fetched { facts: manifest.facts, files: manifest.files.into_iter().map(file).collect() }))
    }

    async fn manifest(&self, name: &EntryName) -> Result<Option<Manifest>, Fault> {
        let read = self.store.read(&manifest::place(name), MAX_MANIFEST_BYTES, self.bounds.answer()).await?;
        let Some(json) = read else { return Ok(None) };
        let json = json.map_err(|bytes| Refusal::Manifest(ManifestError::TooLong(bytes)))?;
        let manifest = Manifest::from_json(&json).map_err(Refusal::Manifest)?;
        if manifest.name == *name { Ok(Some(manifest)) } else { Err(Refusal::Foreign(manifest.name).into()) }
    }

    async fn download(&self, listed: &ListedFile, into: &Path) -> Result<Unfinished, Fault> {
        let object = self.store.get(&listed.blob(), self.bounds.answer()).await?;
        let object = object.ok_or_else(|| Refusal::MissingBlob(listed.name.clone()))?;
        if object.stored_bytes != listed.stored_bytes {
            return Err(stored_size(listed, object.stored_bytes).into());
        }
        let (pieces, arriving) = mpsc::channel(PIECES_UNDER_WAY);
        let (path, file) = (into.join(&listed.name), listed.clone());
        let writing = spawn_blocking(move || write(Pieces::new(arriving), path, &file));
        let brought = self.bring(object, listed, pieces).await;
        let written =
            writing.await.unwrap_or_else(|error| Err(Fault::Local(into.join(&listed.name), io::Error::other(error))));
        brought.and(written)
    }

    /// Brings the blob's bytes to whoever writes them, for as long as they are wanted.
    async fn bring(&self, mut object: Object, listed: &ListedFile, to: mpsc::Sender<Piece>) -> Result<(), Fault> {
        let announced = listed.stored_bytes;
        let most_waiting = self.bounds.download(announced);
        let (mut came, mut waited) = (0_u64, Duration::ZERO);
        loop {
            let start = Instant::now();
            let stall = self.bounds.stall();
            let patience = stall.min(most_waiting.saturating_sub(waited));
            let next = timeout(patience, object.next()).await;
            // Only the store's time counts: a slow disk is not its fault.
            waited += start.elapsed();
            let Ok(next) = next else {
                let is_stall = patience == stall;
                let too_slow = StoreError::TooSlow { came, announced, waited };
                return Err(if is_stall { StoreError::Stalled(stall) } else { too_slow }.into());
            };
            let Some(bytes) = next? else { break };
            came = came.saturating_add(bytes.len() as u64);
            self.counters.bytes_fetched.add(bytes.len() as u64);
            if came > announced {
                return Err(stored_size(listed, came).into());
            }
            // Who writes has ended already, and says why.
            if to.send(Piece::Bytes(bytes)).await.is_err() {
                return Ok(());
            }
        }
        if came < announced {
            return Err(stored_size(listed, came).into());
        }
        // If it is not wanted, that is said by who does not want it.
        to.send(Piece::End).await.unwrap_or_default();
        Ok(())
    }
}

/// Whether the manifest lists what was asked for, and no more than may come.
fn check(manifest: &Manifest, wanted: &Wanted<'_>) -> Result<(), Refusal> {
    if let Some(foreign) = manifest.files.iter().find(|file| !wanted.files.contains(&file.name.as_str())) {
        return Err(Refusal::UnexpectedFile(foreign.name.clone()));
    }
    let is_there = |name: &str| manifest.files.iter().any(|file| file.name == name);
    if let Some(missing) = wanted.files.iter().find(|name| !is_there(name)) {
        return Err(Refusal::MissingFile((*missing).to_owned()));
    }
    let announced = manifest.files.iter().fold(0_u64, |sum, file| sum.saturating_add(file.plain_bytes));
    let most = wanted.most_plain_bytes;
    if announced > most { Err(Refusal::TooLarge { announced, most }) } else { Ok(()) }
}

fn stored_size(listed: &ListedFile, found: u64) -> Refusal {
    Refusal::StoredSize { file: listed.name.clone(), announced: listed.stored_bytes, found }
}

/// Makes the file, on a thread that may block. The caller's directory is private, so nothing else can lie there.
fn write(pieces: Pieces, path: PathBuf, listed: &ListedFile) -> Result<Unfinished, Fault> {
    let file: File = match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path) {
        Ok(file) => file,
        Err(error) => return Err(Fault::Local(path, error)),
    };
    let unfinished = Unfinished(Some(path.clone()));
    match unpack(pieces, &file, listed) {
        Ok(()) => Ok(unfinished),
        Err(Unpacking::Refused(refusal)) => Err(refusal.into()),
        Err(Unpacking::Local(error)) => Err(Fault::Local(path, error)),
        // Whoever has brought too little says why; this is only heard if nobody does.
        Err(Unpacking::CutShort) => Err(Fault::Local(path, io::ErrorKind::Interrupted.into())),
    }
}
