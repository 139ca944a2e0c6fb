//! Assets from elsewhere: an image from where images are published, brought into this host's store.
//!
//! A base is a URL or a directory that is laid out like a store: `<name>.json` and `blobs/<blake3>`. Owns what may be fetched when (asked
//! for, or because a start finds no image), who fetches (one at a time, in whatever process), and what to do about an image that cannot
//! be used. There is no base unless somebody configures one, and it is believed: whoever can write there chooses what VMs boot, and which QEMU
//! runs them.

mod fetch;
mod place;
mod source;
#[cfg(test)]
mod tests;
mod trouble;

use std::{path::PathBuf, time::Duration};

use exec_sandbox_image::{Arrival, Blob, BlobRole, ImageError, ImageStore};
use serde::Serialize;
use tracing::info;

use crate::{Error, ErrorKind, SchedulerConfig, config::Settings, host, paths::Environment};
use fetch::{Failed, Fetcher, Tell};
use place::Place;
use source::{Source, Terms};
use trouble::Trouble;

/// Between two looks whether whoever fetches into the store is done. A lock cannot be waited for by a future that may be dropped.
const BETWEEN_LOOKS: Duration = Duration::from_millis(100);

/// Of a fetch that nobody asked for, so many hundredths are one line of the log.
const PERCENT_PER_LINE: u64 = 10;

/// How far a fetch has come. It may fall back: a server that cannot go on in the middle of a file begins again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress {
    /// Bytes of what was missing that are there now.
    pub done_bytes: u64,
    /// Bytes of all that was missing.
    pub total_bytes: u64,
}

/// An image that has been brought in, and how.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Pulled {
    /// The name by which it is chosen.
    pub name: String,
    /// Where it came from, without what gives access there.
    pub from: String,
    /// The directory of the store that it is in.
    pub path: PathBuf,
    /// What it consists of.
    pub blobs: Vec<PulledBlob>,
}

/// A part of an image that has been brought in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct PulledBlob {
    /// What it is for: `kernel`, `initramfs`, `root file system`, `QEMU` or `firmware`.
    pub role: String,
    /// BLAKE3 of its content, in hexadecimal.
    pub blake3: String,
    /// Its length.
    pub size_bytes: u64,
    /// Bytes that came for it: fewer than it has where a fetch went on that had been interrupted. `None`: it was there, and whole.
    pub fetched_bytes: Option<u64>,
}

/// Brings the image `name` into the store of `config` from [`SchedulerConfig::assets_url`], and tells `progress` of the way. What is there
/// and whole is not fetched, so this also mends an image that is damaged. Every byte is checked before the image appears, in one
/// instant and in place of the one that has its name; VMs that are running keep theirs.
///
/// Waits for whoever else fetches into the same store. Dropped, it leaves the store whole, and the next call goes on where it stopped.
///
/// # Errors
/// - [`ErrorKind::InvalidArgument`], [`ErrorKind::InvalidConfig`]: no such place or name can be.
/// - [`ErrorKind::AssetNotFound`]: no place is configured, or it is a URL and the configuration says offline.
/// - [`ErrorKind::AssetDownload`]: it cannot be had; what is worth another try had some.
/// - [`ErrorKind::AssetDamaged`]: what is published there is not what it should be.
pub async fn pull(
    config: &SchedulerConfig,
    name: &str,
    progress: impl FnMut(Progress) + Send,
) -> Result<Pulled, Error> {
    let mut settings = config.clone().resolve(&Environment::read())?;
    name.clone_into(&mut settings.config.image);
    let mut progress = progress;
    bring_in(&settings, Terms::default(), Wanted::Always, &mut progress).await
}

/// Whether a start under these settings fetches the image, because it is not there and there is a place to have it from. An image that
/// is there in part is left to people: a start replaces nothing.
pub(crate) fn would_be_fetched(settings: &Settings) -> bool {
    let is_missing = || {
        let found = ImageStore::at(&settings.images_dir).load(&settings.config.image);
        matches!(found, Err(ImageError::NotFound { .. }))
    };
    settings.assets_url.is_some() && settings.config.auto_download_assets && !settings.offline && is_missing()
}

/// Fetches the image that a start found missing, and tells the log.
pub(crate) async fn fetch_missing(settings: &Settings) -> Result<(), Error> {
    let image = &settings.config.image;
    info!(%image, "fetching an image that is not there");
    let mut next_percent = PERCENT_PER_LINE;
    let mut log = |progress: Progress| {
        let percent = progress.percent();
        if percent >= next_percent {
            next_percent = (percent / PERCENT_PER_LINE + 1) * PERCENT_PER_LINE;
            info!(%image, percent, total_bytes = progress.total_bytes, "fetching");
        }
    };
    let pulled = bring_in(settings, Terms::default(), Wanted::IfMissing, &mut log).await?;
    info!(%image, from = pulled.from, path = %pulled.path.display(), "the image is there");
    Ok(())
}

/// What to do about an image that is `missing`, or else damaged or there in part.
pub(crate) fn remedy(settings: &Settings, missing: bool) -> String {
    let is_by_hand = missing && !settings.config.auto_download_assets;
    let why = match (settings.offline, is_by_hand) {
        (true, _) => "offline mode is on (EXEC_SANDBOX_OFFLINE, or the configuration): ",
        (false, true) => "auto_download_assets is off in the configuration: ",
        (false, false) => "",
    };
    let pull = match settings.assets_url.as_deref().map(Place::parse) {
        None if settings.offline => "run `sbx image pull --from DIRECTORY`".into(),
        None => "run `sbx image pull --from URL_OR_DIR`, or set EXEC_SANDBOX_ASSETS_URL to where images are published"
            .into(),
        Some(Ok(base @ Place::Url(_))) if settings.offline => {
            format!("run `sbx image pull` without it, to fetch from {base}")
        }
        Some(Ok(base)) => format!("run `sbx image pull`, to fetch what is not whole from {base}"),
        Some(Err(_refused)) => "set EXEC_SANDBOX_ASSETS_URL to a URL or a directory, and run `sbx image pull`".into(),
    };
    format!(
        "{why}{pull}; in a source tree, build it with `cargo xtask assets`; or name another directory in \
         EXEC_SANDBOX_IMAGES_DIR"
    )
}

/// Which images are fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    /// What is published now.
    Always,
    /// Only one that is still missing when it is one's turn.
    IfMissing,
}

async fn bring_in(settings: &Settings, terms: Terms, wanted: Wanted, tell: &mut Tell<'_>) -> Result<Pulled, Error> {
    let name = &settings.config.image;
    let store = ImageStore::at(&settings.images_dir);
    let doing = |what: &str| format!("fetching image {name:?}: {what}");
    // Whether the name can be one is for the store to say.
    if let Err(error @ ImageError::BadName(_)) = store.load(name) {
        return Err(Error::new(ErrorKind::InvalidConfig, doing("naming it")).because(error));
    }
    let base = base(settings, name)?;
    let mut pulled =
        Pulled { name: name.clone(), from: base.to_string(), path: settings.images_dir.clone(), blobs: Vec::new() };
    let from = pulled.from.clone();
    let source = Source::new(base, &terms).map_err(|trouble| trouble.into_error(doing(&from)))?;
    let (arch, stamp_dir) = (host::arch()?.name(), settings.stamp_dir());
    let arrival = arrival(&store).await?;
    if wanted == Wanted::IfMissing && store.load(name).is_ok() {
        return Ok(pulled);
    }
    let fetcher = Fetcher { source, terms, arrival, arch, stamp_dir };
    pulled.blobs =
        fetcher.fetch(name, tell).await.map_err(|Failed { what, trouble }| trouble.into_error(doing(&what)))?;
    Ok(pulled)
}

/// Where images are fetched from, if they may be.
fn base(settings: &Settings, name: &str) -> Result<Place, Error> {
    let refuse = |remedy: String| {
        Error::new(ErrorKind::AssetNotFound, format!("fetching image {name:?}: there is nowhere to fetch it from"))
            .remedied_by(remedy)
    };
    let Some(base) = &settings.assets_url else { return Err(refuse(remedy(settings, true))) };
    match Place::parse(base)? {
        Place::Url(_) if settings.offline => Err(refuse(remedy(settings, true))),
        place => Ok(place),
    }
}

/// The right to bring images into the store, once nobody else has it.
async fn arrival(store: &ImageStore) -> Result<Arrival, Error> {
    let mut is_told = false;
    loop {
        let store = store.clone();
        let attempt = host::blocking("waiting for the image store", move || {
            store.try_arrival().map_err(|error| Trouble::Store(error).into_error("opening the image store".into()))
        });
        if let Some(arrival) = attempt.await? {
            return Ok(arrival);
        }
        if !is_told {
            info!("waiting for somebody else, who is fetching an image");
            is_told = true;
        }
        tokio::time::sleep(BETWEEN_LOOKS).await;
    }
}

impl Progress {
    /// Hundredths of what was missing that are there.
    fn percent(self) -> u64 {
        u64::try_from(u128::from(self.done_bytes) * 100 / u128::from(self.total_bytes.max(1))).unwrap_or(100)
    }
}

impl PulledBlob {
    fn new(role: BlobRole, blob: Blob) -> Self {
        Self {
            role: role.to_string(),
            blake3: blob.blake3.to_string(),
            size_bytes: blob.size_bytes,
            fetched_bytes: None,
        }
    }
}
