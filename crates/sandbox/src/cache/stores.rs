//! The stores under a configuration, read for people. Manifests are read as the stores read them: within limits, and not believed before
//! they are checked.

use std::{
    path::{Path, PathBuf},
    time::SystemTime,
};

use exec_sandbox_image::ImageStore;

use super::{Contents, Entry, Kind};
use crate::{
    Error, ErrorKind, SchedulerConfig, assets,
    cache_dir::{Candidate, Standing, chain},
    config::Settings,
    layers,
    paths::Environment,
    snapshot::{self, Parts},
};

pub(super) struct Stores {
    settings: Settings,
    snapshots: snapshot::Store,
    layers: layers::Store,
}

impl Stores {
    pub(super) fn of(config: &SchedulerConfig) -> Result<Self, Error> {
        let settings = config.clone().resolve(&Environment::read())?;
        Ok(Self { snapshots: settings.snapshots(), layers: settings.layers(), settings })
    }

    /// Snapshots and layers, what could go of each.
    pub(super) fn candidates(&self, now: SystemTime) -> Result<[Vec<Candidate>; 2], Error> {
        let snapshots = self.snapshots.candidates(now).map_err(|error| self.unreadable(error))?;
        Ok([snapshots, self.layers.candidates(now).map_err(|error| self.unreadable(error))?])
    }

    /// What each of them may take of the disk.
    pub(super) fn max_bytes(&self) -> [u64; 2] {
        [self.settings.config.snapshot_max_bytes, self.settings.config.layer_max_bytes]
    }

    /// Removes what is of no use to anybody.
    pub(super) fn clear_up(&self) {
        self.snapshots.clear_up();
        self.layers.clear_up();
    }

    /// Snapshots and layers, in no order.
    pub(super) fn entries(&self, now: SystemTime) -> Result<Vec<Entry>, Error> {
        let [snapshots, layers] = self.candidates(now)?;
        Ok(snapshots.iter().filter_map(snapshot).chain(layers.iter().filter_map(layer)).collect())
    }

    /// The images, in no order.
    pub(super) fn images(&self) -> Result<Vec<Entry>, Error> {
        let (store, dir) = (ImageStore::at(&self.settings.images_dir), &self.settings.images_dir);
        let names = store.list().map_err(|error| {
            Error::new(ErrorKind::AssetDamaged, format!("listing the images in {}", dir.display()))
                .because(error)
                .remedied_by(assets::remedy(&self.settings, false))
        })?;
        Ok(names.into_iter().map(|name| image(&store, name, dir)).collect())
    }

    /// Where `entry` goes through.
    pub(super) fn trash_of(&self, entry: &Entry) -> PathBuf {
        match entry.kind {
            Kind::Packages => self.layers.trash_dir(),
            Kind::Snapshot | Kind::Image => self.snapshots.trash_dir(),
        }
    }

    fn unreadable(&self, error: impl std::error::Error + Send + Sync + 'static) -> Error {
        Error::new(ErrorKind::Host, format!("examining the cache in {}", self.settings.cache_dir.display()))
            .because(error)
    }
}

fn snapshot(candidate: &Candidate) -> Option<Entry> {
    let name = candidate.path.file_name()?.to_str()?;
    let is_set_aside = candidate.standing == Standing::SetAside;
    // The time when it was set aside is before the key of what was.
    let key = if is_set_aside { name.split_once('-')?.1 } else { name };
    let key: snapshot::Key = key.parse().ok()?;
    let contents = if is_set_aside {
        Contents::SetAside { why: snapshot::Store::reason(&candidate.path) }
    } else {
        match snapshot::Store::describe(&candidate.path, key) {
            Ok(Parts { language, memory_mib, packages, .. }) => Contents::Snapshot { language, memory_mib, packages },
            Err(why) => Contents::Damaged { why },
        }
    };
    Some(entry(Kind::Snapshot, key.to_string(), candidate, contents))
}

fn layer(candidate: &Candidate) -> Option<Entry> {
    let key: layers::LayerKey = candidate.path.file_name()?.to_str()?.parse().ok()?;
    let contents = match layers::Store::describe(&candidate.path, key) {
        Ok(layers::LayerManifest { parts, installed, .. }) => {
            let requested = parts.set.requirements().to_vec();
            Contents::Packages { language: parts.set.language(), requested, installed }
        }
        Err(why) => Contents::Damaged { why },
    };
    Some(entry(Kind::Packages, key.to_string(), candidate, contents))
}

fn entry(kind: Kind, key: String, candidate: &Candidate, contents: Contents) -> Entry {
    let (bytes, path) = (candidate.bytes, candidate.path.clone());
    let is_pinned = candidate.standing == Standing::Pinned;
    Entry { kind, key, bytes, last_use: Some(candidate.used), is_pinned, contents, path }
}

fn image(store: &ImageStore, name: String, dir: &Path) -> Entry {
    let (bytes, contents) = match store.load(&name) {
        Ok(image) => {
            let manifest = image.manifest();
            let languages = manifest.languages.iter().map(|(name, it)| (name.clone(), it.version.clone())).collect();
            let bytes = manifest.blobs().iter().map(|(_, blob)| blob.size_bytes).sum();
            (bytes, Contents::Image { kernel_version: manifest.kernel_version.clone(), languages })
        }
        Err(error) => (0, Contents::Damaged { why: chain(&error) }),
    };
    Entry { kind: Kind::Image, key: name, bytes, last_use: None, is_pinned: false, contents, path: dir.to_owned() }
}
