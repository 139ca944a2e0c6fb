//! Where tests keep entries: a bucket behind a proxy or a directory, and what is put there.

use std::{
    fs::{self, File},
    io::Write as _,
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use exec_sandbox_remote::{
    Bounds, Bucket, Config, EntryName, Fetch, FetchError, Offer, Offered, Place, Remote, Wanted,
};
use tempfile::TempDir;

use crate::{
    proxy::Proxy,
    server::{ACCESS_KEY, BUCKET, SECRET, Server},
};

/// What the files of an entry may have together in these tests.
pub(crate) const MOST_BYTES: u64 = 1 << 30;

/// A place for entries.
pub(crate) struct Shelf {
    /// Where the store keeps `kind/key.json` and `blobs/…`.
    pub(crate) objects: PathBuf,
    pub(crate) config: Config,
    pub(crate) access_key: &'static str,
    pub(crate) secret: &'static str,
    /// The server and the way to it, if there is one.
    pub(crate) bucket: Option<(Server, Proxy)>,
    _directory: TempDir,
}

impl Shelf {
    pub(crate) async fn bucket() -> Self {
        let server = Server::start().await;
        let proxy = Proxy::start(server.address).await;
        let mut bucket = Bucket::new(BUCKET);
        bucket.endpoint = Some(format!("http://{}", proxy.address));
        Self {
            objects: server.objects("snapshots"),
            config: Config::new(Place::Bucket(bucket)),
            access_key: ACCESS_KEY,
            secret: SECRET,
            bucket: Some((server, proxy)),
            _directory: tempfile::tempdir().unwrap(),
        }
    }

    pub(crate) fn directory() -> Self {
        let directory = tempfile::tempdir().unwrap();
        Self {
            objects: directory.path().to_owned(),
            config: Config::new(Place::Directory(directory.path().to_owned())),
            access_key: ACCESS_KEY,
            secret: SECRET,
            bucket: None,
            _directory: directory,
        }
    }

    /// One of each.
    pub(crate) async fn both() -> [Self; 2] {
        [Self::bucket().await, Self::directory()]
    }

    pub(crate) fn with(mut self, change: impl FnOnce(&mut Bounds)) -> Self {
        change(&mut self.config.bounds);
        self
    }

    pub(crate) fn open(&self) -> Remote {
        let variables = |name: &str| match name {
            "AWS_ACCESS_KEY_ID" => Some(self.access_key.to_owned()),
            "AWS_SECRET_ACCESS_KEY" => Some(self.secret.to_owned()),
            _ => None,
        };
        Remote::open_with(&self.config, &variables).unwrap()
    }

    pub(crate) fn proxy(&self) -> &Proxy {
        &self.bucket.as_ref().expect("it is a bucket").1
    }

    /// The bucket of the configuration.
    pub(crate) fn bucket_mut(&mut self) -> &mut Bucket {
        let Place::Bucket(bucket) = &mut self.config.place else { panic!("it is a directory") };
        bucket
    }

    /// Where the store keeps the manifest of an entry.
    pub(crate) fn manifest(&self, name: &EntryName) -> PathBuf {
        self.objects.join(format!("{name}.json"))
    }

    /// Where the store keeps its blobs, in no order.
    pub(crate) fn blobs(&self) -> Vec<PathBuf> {
        let Ok(listed) = fs::read_dir(self.objects.join("blobs")) else { return Vec::new() };
        listed
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|it| it == "zst"))
            .collect()
    }

    /// Puts an entry there with a cache of its own.
    pub(crate) async fn fill(&self, name: &EntryName, files: &[(&str, &[u8])]) {
        let remote = self.open();
        assert_eq!(remote.offer(offer(name, files)), Offered::Queued);
        assert_eq!(remote.drain(Duration::from_secs(30)).await.given_up, []);
        assert_eq!(remote.report().uploads, 1, "{:?}", remote.report());
    }
}

/// The entry with this number.
pub(crate) fn entry(number: u8) -> EntryName {
    EntryName::new("snapshot", &format!("{number:064x}")).unwrap()
}

/// What is said of every entry here.
pub(crate) const FACTS: &str = r#"{"image":"python","memory_mib":192}"#;

pub(crate) fn offer(name: &EntryName, files: &[(&str, &[u8])]) -> Offer {
    let files = files.iter().map(|(name, bytes)| ((*name).to_owned(), file(bytes))).collect();
    Offer::new(name.clone(), FACTS.into(), files).unwrap()
}

pub(crate) fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

/// A file of `length` bytes with these in it and holes elsewhere.
pub(crate) fn sparse(length: u64, writes: &[(u64, &[u8])]) -> File {
    let file = tempfile::tempfile().unwrap();
    file.set_len(length).unwrap();
    for (at, bytes) in writes {
        file.write_all_at(bytes, *at).unwrap();
    }
    file
}

/// Bytes that no encoder makes shorter; other ones for each seed.
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// Fetches an entry with these files.
pub(crate) async fn fetch(remote: &Remote, name: &EntryName, files: &[&str], into: &Path) -> Result<Fetch, FetchError> {
    remote.fetch(&Wanted { name, files, most_plain_bytes: MOST_BYTES }, into).await
}

/// Fetches until the store is asked again: a rest is over when its time is.
pub(crate) async fn fetch_after_rest(
    remote: &Remote,
    name: &EntryName,
    files: &[&str],
    into: &Path,
) -> Result<Fetch, FetchError> {
    loop {
        match fetch(remote, name, files, into).await {
            Ok(Fetch::Resting) => tokio::time::sleep(Duration::from_millis(10)).await,
            done => return done,
        }
    }
}

/// Whether it is a hit, with the facts that were offered.
pub(crate) fn is_hit(fetched: &Result<Fetch, FetchError>) -> bool {
    matches!(fetched, Ok(Fetch::Hit(fetched)) if fetched.facts == FACTS)
}

/// Names of what is in a directory, sorted.
pub(crate) fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Bytes that a file takes on the disk.
pub(crate) fn taken(path: &Path) -> u64 {
    fs::metadata(path).unwrap().blocks() * 512
}
