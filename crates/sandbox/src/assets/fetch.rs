//! The fetcher: one image, from a source into a store.
//!
//! Manifest first, to know what is to come; then each blob that the store has not got; then the manifest appears. A blob is hashed while
//! it arrives, never longer than the manifest says, and goes on where it stopped, at this try or the last. Owns what is tried again,
//! how often, and after what pause. Dropped at any point, it leaves the store as it was but for whole blobs and a partial one.

use std::{path::PathBuf, time::Duration};

use bytes::Bytes;
use exec_sandbox_image::{Arrival, Blob, BlobRole, ImageError, Manifest, PartialBlob};
use tokio::{sync::mpsc, task};
use tracing::debug;

use super::{
    Progress, PulledBlob,
    source::{PIECES_UNDER_WAY, Source, Terms},
    trouble::Trouble,
};

/// A hundred times what a manifest with every package of a large image has.
const MAX_MANIFEST_BYTES: usize = 1024 * 1024;

/// A try that brings less counts as one that brings nothing, so that a server cannot drip for ever.
const WORTH_A_TRY_BYTES: u64 = 1024 * 1024;

/// What is told of the way things go.
pub(super) type Tell<'a> = dyn FnMut(Progress) + Send + 'a;

/// Brings one image in.
#[derive(Debug)]
pub(super) struct Fetcher {
    pub(super) source: Source,
    pub(super) terms: Terms,
    pub(super) arrival: Arrival,
    /// The machine architecture that an image must be for.
    pub(super) arch: &'static str,
    /// Where the proof of what has arrived is kept.
    pub(super) stamp_dir: PathBuf,
}

/// What could not be had, and why.
#[derive(Debug)]
pub(super) struct Failed {
    /// The file, in words.
    pub(super) what: String,
    pub(super) trouble: Trouble,
}

/// How often something is still tried.
struct Tries {
    terms: Terms,
    failed: u32,
}

impl Fetcher {
    /// Brings the image `name` in, and says of each blob what came of it.
    pub(super) async fn fetch(&self, name: &str, tell: &mut Tell<'_>) -> Result<Vec<PulledBlob>, Failed> {
        let base = self.source.base();
        let at_manifest = |trouble| Failed { what: format!("the manifest {}", base.manifest(name)), trouble };
        let manifest = self.manifest(name).await.map_err(at_manifest)?;
        let mut pulled = Vec::new();
        for (role, blob) in manifest.blobs() {
            let arrival = self.arrival.clone();
            let is_there = blocking(move || Ok(arrival.has(role, blob))).await;
            let is_there = is_there.map_err(|trouble| Failed { what: format!("the {role}"), trouble })?;
            pulled.push((role, blob, is_there, PulledBlob::new(role, blob)));
        }
        let missing = pulled.iter().filter(|(.., is_there, _)| !is_there);
        let total_bytes = missing.map(|(.., blob)| blob.size_bytes).fold(0, u64::saturating_add);
        let mut before = 0;
        for (role, blob, _, told) in pulled.iter_mut().filter(|(.., is_there, _)| !*is_there) {
            let mut so_far = |bytes| tell(Progress { done_bytes: bytes + before, total_bytes });
            let fetched = self.blob(*role, *blob, &mut so_far).await;
            let at_blob = |trouble| Failed { what: format!("the {role} {}", base.blob(blob.blake3)), trouble };
            told.fetched_bytes = Some(fetched.map_err(at_blob)?);
            before += blob.size_bytes;
        }
        let (arrival, stamps) = (self.arrival.clone(), self.stamp_dir.clone());
        blocking(move || arrival.publish(&manifest, Some(&stamps)).map_err(Trouble::Store))
            .await
            .map_err(at_manifest)?;
        Ok(pulled.into_iter().map(|(.., blob)| blob).collect())
    }

    /// The manifest of `name`, checked but for what it says of its blobs.
    async fn manifest(&self, name: &str) -> Result<Manifest, Trouble> {
        let mut tries = Tries::new(self.terms);
        let json = loop {
            match self.small_file(name).await {
                Ok(json) => break json,
                Err(trouble) => tries.pause_after(trouble, 0).await?,
            }
        };
        let manifest = Manifest::from_json(&json).map_err(Trouble::BadManifest)?;
        if manifest.name != name {
            return Err(Trouble::WrongName(manifest.name));
        }
        if manifest.arch != self.arch {
            return Err(Trouble::WrongArch { found: manifest.arch, wanted: self.arch });
        }
        Ok(manifest)
    }

    async fn small_file(&self, name: &str) -> Result<Vec<u8>, Trouble> {
        let mut body = self.source.open(&self.source.base().manifest(name), 0).await?;
        let mut json = Vec::new();
        while let Some(piece) = body.next().await? {
            if json.len() + piece.len() > MAX_MANIFEST_BYTES {
                return Err(Trouble::ManifestTooLong { limit_bytes: MAX_MANIFEST_BYTES });
            }
            json.extend_from_slice(&piece);
        }
        Ok(json)
    }

    /// Brings one blob into the store, and says how many bytes came for it.
    async fn blob(&self, role: BlobRole, blob: Blob, so_far: &mut (dyn FnMut(u64) + Send)) -> Result<u64, Trouble> {
        let receive = || {
            let arrival = self.arrival.clone();
            blocking(move || arrival.receive(role, blob).map_err(Trouble::Store))
        };
        let mut tries = Tries::new(self.terms);
        let (mut partial, mut fetched_bytes, mut began_anew) = (receive().await?, 0, false);
        // Whether it was put together from several answers, which may have been about different files.
        let mut is_pieced = false;
        loop {
            is_pieced |= partial.received_bytes() > 0;
            let came_before = fetched_bytes;
            let (returned, ended) = self.one_try(partial, blob, &mut fetched_bytes, so_far).await?;
            partial = match ended {
                Ok(()) => match blocking(move || returned.commit().map_err(Trouble::Store)).await {
                    Err(Trouble::Store(ImageError::BlobContent { found, .. })) if is_pieced && !began_anew => {
                        debug!(%role, %found, "what was put together is wrong: it is fetched anew");
                        (is_pieced, began_anew) = (false, true);
                        receive().await?
                    }
                    committed => return committed.map(|()| fetched_bytes),
                },
                Err(trouble) => {
                    tries.pause_after(trouble, fetched_bytes - came_before).await?;
                    returned
                }
            };
        }
    }

    /// Takes what one answer of the source has of a blob. What is there of it is given back also when the answer ends early; it is
    /// lost only if it could not be written.
    async fn one_try(
        &self,
        partial: PartialBlob,
        blob: Blob,
        fetched_bytes: &mut u64,
        so_far: &mut (dyn FnMut(u64) + Send),
    ) -> Result<(PartialBlob, Result<(), Trouble>), Trouble> {
        let expected_bytes = blob.size_bytes;
        let from = partial.received_bytes();
        so_far(from);
        if from == expected_bytes {
            return Ok((partial, Ok(())));
        }
        let mut body = match self.source.open(&self.source.base().blob(blob.blake3), from).await {
            Ok(body) => body,
            Err(trouble) => return Ok((partial, Err(trouble))),
        };
        if let Some(announced_bytes) = body.announced_bytes.filter(|announced| *announced != expected_bytes) {
            return Ok((partial, Err(Trouble::WrongLength { announced_bytes, expected_bytes })));
        }
        let (pieces, to_write) = mpsc::channel(PIECES_UNDER_WAY);
        // It ends once `pieces` is gone, also with this future; it holds the store's arrival until then.
        let writer = task::spawn_blocking(move || write(partial, body.start == 0, to_write));
        let mut received_bytes = body.start;
        let ended = loop {
            match body.next().await {
                Ok(Some(piece)) => {
                    let length = piece.len() as u64;
                    if pieces.send(piece).await.is_err() {
                        break Ok(());
                    }
                    received_bytes += length;
                    *fetched_bytes += length;
                    so_far(received_bytes.min(expected_bytes));
                }
                Ok(None) if received_bytes < expected_bytes => {
                    break Err(Trouble::Cut { received_bytes, expected_bytes });
                }
                Ok(None) => break Ok(()),
                Err(trouble) => break Err(trouble),
            }
        };
        drop(pieces);
        // Why nothing more was written comes before why nothing more was read.
        let partial = writer.await.map_err(|_ending| Trouble::Interrupted)??;
        Ok((partial, ended))
    }
}

impl Tries {
    fn new(terms: Terms) -> Self {
        Self { terms, failed: 0 }
    }

    /// Waits until it is time for the next try, or gives the trouble back if there is none.
    async fn pause_after(&mut self, trouble: Trouble, brought_bytes: u64) -> Result<(), Trouble> {
        if brought_bytes >= WORTH_A_TRY_BYTES {
            self.failed = 0;
        }
        self.failed += 1;
        if !trouble.is_transient() || self.failed >= self.terms.tries {
            return Err(trouble);
        }
        let pause: Duration = self.terms.first_pause * (1 << (self.failed - 1).min(6));
        debug!(%trouble, ?pause, "trying again");
        tokio::time::sleep(pause).await;
        Ok(())
    }
}

/// Writes what comes until nothing more does.
fn write(
    mut partial: PartialBlob,
    from_start: bool,
    mut pieces: mpsc::Receiver<Bytes>,
) -> Result<PartialBlob, ImageError> {
    if from_start && partial.received_bytes() > 0 {
        partial.restart()?;
    }
    while let Some(piece) = pieces.blocking_recv() {
        partial.append(&piece)?;
    }
    Ok(partial)
}

/// Runs what blocks beside the runtime's threads.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Trouble> + Send + 'static) -> Result<T, Trouble> {
    task::spawn_blocking(work).await.map_err(|_ending| Trouble::Interrupted)?
}
