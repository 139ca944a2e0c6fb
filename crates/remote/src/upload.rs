//! Uploading one entry: blobs first, the manifest last, so that an entry that is there is whole.
//!
//! A blob that is there already is not sent again, unless something of this entry was refused before: then all of it is.

use std::{fs::File, io, sync::Arc};

use bytes::Bytes;
use tokio::{sync::mpsc, task::spawn_blocking};
use tokio_util::sync::CancellationToken;

use crate::{
    config::Bounds,
    counters::Counters,
    entry::Offer,
    manifest::{self, ListedFile, MAX_MANIFEST_BYTES, Manifest, ManifestError},
    pack::{Content, Packing, content_of, pack},
    store::{Parts, Store, StoreError},
};

/// How an upload ended well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Uploaded {
    /// The entry is there now.
    Done,
    /// It was there.
    AlreadyThere,
}

/// Why an entry was not uploaded.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UploadError {
    #[error("the store did not take it")]
    Store(#[from] StoreError),
    #[error("the file {0:?} cannot be read or compressed")]
    Local(String, #[source] io::Error),
    #[error("the file {0:?} has changed while it was read")]
    Changed(String),
    #[error("its manifest cannot be written")]
    Manifest(#[from] ManifestError),
    #[error("it was given up")]
    GivenUp,
}

pub(crate) struct Uploader<'a> {
    pub(crate) store: &'a Store,
    pub(crate) bounds: &'a Bounds,
    pub(crate) counters: &'a Counters,
    /// Cancelled when uploads are to end.
    pub(crate) given_up: &'a CancellationToken,
    /// Whether what is there is replaced.
    pub(crate) replace: bool,
}

impl Uploader<'_> {
    pub(crate) async fn upload(&self, offer: &Offer) -> Result<Uploaded, UploadError> {
        let place = manifest::place(&offer.name);
        if !self.replace && self.unless_given_up(self.is_there(offer, &place)).await? {
            return Ok(Uploaded::AlreadyThere);
        }
        let mut files = Vec::new();
        for (name, file) in &offer.files {
            files.push(self.file(name, file).await?);
        }
        let manifest = Manifest { name: offer.name.clone(), facts: offer.facts.clone(), files };
        let json = Bytes::from(manifest.to_json()?);
        let put = self.store.put(&place, json, self.bounds.part());
        self.unless_given_up(async { Ok(put.await?) }).await?;
        Ok(Uploaded::Done)
    }

    /// Whether there is a manifest that says what this one would be about. A broken one is replaced.
    async fn is_there(&self, offer: &Offer, place: &str) -> Result<bool, UploadError> {
        let read = self.store.read(place, MAX_MANIFEST_BYTES, self.bounds.answer()).await?;
        let manifest = read.and_then(Result::ok).and_then(|json| Manifest::from_json(&json).ok());
        Ok(manifest.is_some_and(|manifest| manifest.name == offer.name))
    }

    async fn file(&self, name: &str, file: &Arc<File>) -> Result<ListedFile, UploadError> {
        let local = |error| UploadError::Local(name.to_owned(), error);
        let reading = Arc::clone(file);
        let content =
            spawn_blocking(move || content_of(&reading)).await.unwrap_or_else(|error| Err(io::Error::other(error)));
        let Content { blake3, plain_bytes } = content.map_err(local)?;
        let blob = manifest::blob(&blake3);
        let length = async { Ok(self.store.length(&blob, self.bounds.answer()).await?) };
        let there = if self.replace { None } else { self.unless_given_up(length).await? };
        let stored_bytes = match there {
            Some(stored_bytes) => stored_bytes,
            None => self.send(name, file, Content { blake3, plain_bytes }, &blob).await?,
        };
        Ok(ListedFile { name: name.to_owned(), plain_bytes, blake3, stored_bytes })
    }

    /// Compresses the file on a thread that may block and sends what comes of it; its length.
    async fn send(&self, name: &str, file: &Arc<File>, content: Content, blob: &str) -> Result<u64, UploadError> {
        let (parts, mut arriving) = mpsc::channel(1);
        let file = Arc::clone(file);
        let packing = spawn_blocking(move || pack(&file, &content, |part| parts.blocking_send(part).is_ok()));
        let packed = async {
            match packing.await {
                Ok(Ok(())) => Ok(()),
                Ok(Err(Packing::Changed)) => Err(UploadError::Changed(name.to_owned())),
                Ok(Err(Packing::Unwanted)) => Err(UploadError::GivenUp),
                Ok(Err(Packing::Local(error))) => Err(UploadError::Local(name.to_owned(), error)),
                Err(error) => Err(UploadError::Local(name.to_owned(), io::Error::other(error))),
            }
        };
        let mut begun = None;
        let sent = self.unless_given_up(self.parts(&mut arriving, packed, blob, &mut begun)).await;
        if let (Err(_), Some(parts)) = (&sent, &mut begun) {
            parts.abort(self.bounds.answer()).await;
        }
        sent
    }

    /// Sends parts as they come. Nothing appears before it is known that the file was packed to its end.
    async fn parts(
        &self,
        arriving: &mut mpsc::Receiver<Bytes>,
        packed: impl Future<Output = Result<(), UploadError>>,
        blob: &str,
        begun: &mut Option<Parts>,
    ) -> Result<u64, UploadError> {
        let patience = self.bounds.part();
        let Some(first) = arriving.recv().await else {
            packed.await?;
            return Err(UploadError::GivenUp);
        };
        let mut stored_bytes = first.len() as u64;
        let Some(second) = arriving.recv().await else {
            packed.await?;
            self.store.put(blob, first, patience).await?;
            self.counters.bytes_uploaded.add(stored_bytes);
            return Ok(stored_bytes);
        };
        let parts = begun.insert(self.store.begin(blob, self.bounds.answer()).await?);
        self.counters.bytes_uploaded.add(stored_bytes);
        parts.add(first, patience).await?;
        let mut next = Some(second);
        while let Some(part) = next {
            let length = part.len() as u64;
            parts.add(part, patience).await?;
            stored_bytes = stored_bytes.saturating_add(length);
            self.counters.bytes_uploaded.add(length);
            next = arriving.recv().await;
        }
        packed.await?;
        parts.finish(patience).await?;
        Ok(stored_bytes)
    }

    async fn unless_given_up<T>(&self, work: impl Future<Output = Result<T, UploadError>>) -> Result<T, UploadError> {
        tokio::select! {
            biased;
            () = self.given_up.cancelled() => Err(UploadError::GivenUp),
            done = work => done,
        }
    }
}
