//! Tests of fetching: whole, interrupted, wrong, and by several at once, from a server that misbehaves and from directories.

mod resumed;
mod server;

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::{Path, PathBuf},
};

use exec_sandbox_image::{Digest, ImageStore, Interpreter, Manifest, Qemu};
use tempfile::TempDir;

use super::*;
use server::{Answer, Server};

/// A blob of the sample that takes several pieces.
const ROOT_BYTES: usize = 300_000;

/// What is published, and a host without an image.
struct World {
    dir: TempDir,
    settings: Settings,
    manifest: Manifest,
    root: Vec<u8>,
}

fn terms() -> Terms {
    let first_pause = Duration::from_millis(1);
    Terms { first_pause, proxies: false, ..Terms::default() }
}

fn blob(content: &[u8]) -> Blob {
    Blob { blake3: Digest::of(content), size_bytes: content.len() as u64 }
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory is made");
        let root: Vec<u8> = (0..ROOT_BYTES).map(|n| n.to_le_bytes()[0] ^ n.to_le_bytes()[1]).collect();
        let bash = Interpreter { path: "/bin/bash".into(), version: "5.2".into() };
        let manifest = Manifest {
            format: Manifest::FORMAT,
            name: "standard".into(),
            arch: host::arch().expect("this machine runs guests").name().into(),
            kernel_version: "6.12.0".into(),
            kernel: blob(b"kernel"),
            initramfs: blob(b"agent"),
            root: blob(&root),
            languages: BTreeMap::from([("raw".into(), bash)]),
            packages: Vec::new(),
            registries: BTreeMap::new(),
            indexes: BTreeMap::new(),
            qemu: None,
        };
        let mut config = SchedulerConfig { run_dir: Some(dir.path().join("run")), ..SchedulerConfig::default() };
        config.cache_dir = Some(dir.path().join("cache"));
        let settings = config.resolve(&Environment::default()).expect("it is valid");
        Self { dir, settings, manifest, root }
    }

    /// The published files, by their paths below a base.
    fn files(&self) -> HashMap<String, Vec<u8>> {
        let json = self.manifest.to_json().expect("it is valid");
        let mut files = HashMap::from([("/images/standard.json".to_owned(), json)]);
        for content in [&b"kernel"[..], b"agent", &self.root, b"qemu", b"pvh"] {
            files.insert(format!("/images/blobs/{}", Digest::of(content)), content.to_vec());
        }
        files
    }

    /// The base as a server.
    async fn server(&mut self) -> Server {
        let server = Server::start(self.files()).await;
        self.settings.assets_url = Some(server.url());
        server
    }

    /// The base as a directory.
    fn directory(&mut self) -> PathBuf {
        for (path, content) in self.files() {
            let path = self.dir.path().join(path.trim_start_matches('/'));
            fs::create_dir_all(path.parent().expect("it has one")).expect("it can be made");
            fs::write(path, content).expect("it can be written");
        }
        let base = self.dir.path().join("images");
        self.settings.assets_url = Some(base.display().to_string());
        base
    }

    fn root_path(&self) -> String {
        Digest::of(&self.root).to_string()
    }

    fn store(&self) -> ImageStore {
        ImageStore::at(&self.settings.images_dir)
    }

    fn partial(&self) -> PathBuf {
        self.settings.images_dir.join(format!(".partial-{}", self.root_path()))
    }

    async fn pull(&self) -> Result<Pulled, Error> {
        self.pull_under(terms()).await
    }

    async fn pull_under(&self, terms: Terms) -> Result<Pulled, Error> {
        bring_in(&self.settings, terms, Wanted::Always, &mut |_| {}).await
    }

    /// The image is there, whole, and nothing else is.
    fn assert_whole(&self) {
        self.store().load("standard").and_then(|image| image.verify_fully()).expect("it is whole");
        assert!(!self.partial().exists(), "what was partial has become the blob");
    }

    /// No image is to be seen, and none of a wrong blob.
    fn assert_nothing(&self) {
        assert_eq!(self.store().list().expect("it can be listed"), Vec::<String>::new());
        assert!(!self.settings.images_dir.join("blobs").join(self.root_path()).exists());
    }
}

/// The text of an error with its causes.
fn told(error: &Error) -> String {
    let causes = std::iter::successors(std::error::Error::source(error), |cause| (*cause).source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

#[tokio::test]
async fn an_image_is_fetched_whole_and_the_second_time_nothing_is() {
    let mut world = World::new();
    let server = world.server().await;
    let mut progress = Vec::new();
    let tell = &mut |now| progress.push(now);
    let pulled = bring_in(&world.settings, terms(), Wanted::Always, tell).await.expect("it is there");
    world.assert_whole();
    assert_eq!((pulled.name.as_str(), &pulled.from), ("standard", &server.url()));
    assert!(pulled.blobs.iter().all(|blob| blob.fetched_bytes == Some(blob.size_bytes)), "{pulled:?}");
    let total_bytes = (ROOT_BYTES + b"kernel".len() + b"agent".len()) as u64;
    assert_eq!(progress.last(), Some(&Progress { done_bytes: total_bytes, total_bytes }));
    assert!(progress.is_sorted_by_key(|now| now.done_bytes), "{progress:?}");

    let again = world.pull().await.expect("it is there");
    assert!(again.blobs.iter().all(|blob| blob.fetched_bytes.is_none()), "{again:?}");
    assert_eq!(server.requests(&world.root_path()).len(), 1);
}

#[tokio::test]
async fn a_qemu_is_fetched_with_its_firmware_and_can_be_run() {
    let mut world = World::new();
    let firmware = BTreeMap::from([("pvh.bin".into(), blob(b"pvh"))]);
    world.manifest.qemu = Some(Qemu { version: "10.0.13".into(), program: blob(b"qemu"), firmware });
    let _server = world.server().await;
    let pulled = world.pull().await.expect("it is there");
    let roles: Vec<&str> = pulled.blobs.iter().map(|blob| blob.role.as_str()).collect();
    assert_eq!(roles, ["kernel", "initramfs", "root file system", "QEMU", "firmware"]);
    assert!(pulled.blobs.iter().all(|blob| blob.fetched_bytes == Some(blob.size_bytes)), "{pulled:?}");
    let image = world.store().load("standard").and_then(|image| image.verify_fully()).expect("it is whole");
    let (program, firmware) = image.qemu().zip(image.firmware()).expect("it has one");
    assert_eq!(fs::read(program).expect("it is there"), b"qemu");
    assert_eq!(fs::read(firmware.join("pvh.bin")).expect("it is there"), b"pvh");
}

#[tokio::test]
async fn the_proof_of_what_was_fetched_is_kept_for_the_start() {
    let mut world = World::new();
    let _server = world.server().await;
    world.pull().await.expect("it is there");
    assert_eq!(fs::read_dir(world.settings.stamp_dir()).expect("it is there").count(), 3);
}

#[tokio::test]
async fn wrong_bytes_are_refused_by_blob_and_url_and_nothing_is_to_be_seen() {
    let mut world = World::new();
    let server = world.server().await;
    server.answer(&world.root_path(), Answer::Wrong);
    let refused = world.pull().await.expect_err("it is wrong");
    assert_eq!(refused.kind(), ErrorKind::AssetDamaged);
    let url = format!("{}/blobs/{}", server.url(), world.root_path());
    assert!(told(&refused).contains(&format!("the root file system {url}")), "{}", told(&refused));
    world.assert_nothing();
    assert!(!world.partial().exists(), "what is wrong is of no use");
    assert_eq!(server.requests(&world.root_path()).len(), 1, "another try would bring the same");
}

#[tokio::test]
async fn more_bytes_than_the_manifest_says_are_not_taken() {
    let mut world = World::new();
    let server = world.server().await;
    server.answer(&world.root_path(), Answer::TooMany);
    let refused = world.pull().await.expect_err("it is too long");
    assert_eq!(refused.kind(), ErrorKind::AssetDamaged);
    world.assert_nothing();
    assert!(!world.partial().exists());
}

#[tokio::test]
async fn a_file_of_another_length_is_refused_before_a_byte_is_taken() {
    let mut world = World::new();
    let mut files = world.files();
    files.insert(format!("/images/blobs/{}", world.root_path()), b"<html>please log in</html>".to_vec());
    let server = Server::start(files).await;
    world.settings.assets_url = Some(server.url());
    let refused = world.pull().await.expect_err("it is another file");
    assert_eq!(refused.kind(), ErrorKind::AssetDamaged);
    assert!(told(&refused).contains("it has 26 bytes there instead of 300000"), "{}", told(&refused));
    assert_eq!(fs::metadata(world.partial()).expect("it was opened").len(), 0);
}

#[tokio::test]
async fn what_is_not_there_is_told_at_once() {
    let mut world = World::new();
    let server = world.server().await;
    for path in ["standard.json".to_owned(), world.root_path()] {
        let before = server.requests(&path).len();
        server.answer(&path, Answer::Status(404));
        let failed = world.pull().await.expect_err("it is not there");
        assert_eq!(failed.kind(), ErrorKind::AssetDownload);
        assert!(told(&failed).contains("404") && told(&failed).contains(&server.url()), "{}", told(&failed));
        assert_eq!(server.requests(&path).len(), before + 1);
    }
}

#[tokio::test]
async fn a_server_that_stays_broken_is_given_up_after_so_many_tries() {
    let mut world = World::new();
    let server = world.server().await;
    for _ in 0..terms().tries + 1 {
        server.answer("standard.json", Answer::Status(500));
    }
    let failed = world.pull().await.expect_err("it stays broken");
    assert_eq!(failed.kind(), ErrorKind::AssetDownload);
    assert_eq!(server.requests("standard.json").len(), terms().tries as usize);
}

#[tokio::test]
async fn a_server_that_falls_silent_is_given_up() {
    let mut world = World::new();
    let server = world.server().await;
    server.answer("standard.json", Answer::StallAfter(10));
    let impatient = Terms { silence: Duration::from_millis(50), tries: 1, ..terms() };
    let failed = world.pull_under(impatient).await.expect_err("it says nothing");
    assert_eq!(failed.kind(), ErrorKind::AssetDownload);
    assert!(told(&failed).contains("nothing came for too long"), "{}", told(&failed));
}

#[tokio::test]
async fn nobody_listening_is_a_failed_connection_and_shows_no_secret() {
    let mut world = World::new();
    let address = world.server().await.url().replace("http://", "http://user:secret@") + "?token=secret";
    world.settings.assets_url = Some(address);
    let failed = world.pull().await.expect_err("the server is gone");
    assert_eq!(failed.kind(), ErrorKind::AssetDownload);
    let text = format!("{failed:?} {}", told(&failed));
    assert!(text.contains("the connection failed") && !text.contains("secret"), "{text}");
}

#[tokio::test]
async fn a_redirection_is_followed() {
    let mut world = World::new();
    let server = world.server().await;
    let elsewhere = Server::start(world.files()).await;
    let to = format!("{}/blobs/{}", elsewhere.url(), world.root_path());
    server.answer(&world.root_path(), Answer::Redirect(to));
    world.pull().await.expect("it is there");
    world.assert_whole();
    assert_eq!(elsewhere.requests(&world.root_path()).len(), 1);
}

#[tokio::test]
async fn redirections_without_end_are_given_up_and_not_shown() {
    let mut world = World::new();
    let server = world.server().await;
    for _ in 0..11 {
        server.answer("standard.json", Answer::Redirect(format!("{}/standard.json?token=secret", server.url())));
    }
    let failed = world.pull().await.expect_err("it leads nowhere");
    assert_eq!(failed.kind(), ErrorKind::AssetDownload);
    assert!(told(&failed).contains("the server leads on"), "{}", told(&failed));
    assert!(!format!("{failed:?}").contains("secret"), "{failed:?}");
}

#[tokio::test]
async fn an_image_for_other_machines_or_under_another_name_is_refused_before_its_blobs() {
    type Change = fn(&mut Manifest);
    let changes: [(Change, ErrorKind, &str); 2] = [
        (|manifest| manifest.arch = "riscv64".into(), ErrorKind::AssetDownload, "for riscv64 and this machine is"),
        (|manifest| manifest.name = "other".into(), ErrorKind::AssetDamaged, "of image \"other\""),
    ];
    for (change, kind, says) in changes {
        let mut world = World::new();
        change(&mut world.manifest);
        let server = world.server().await;
        let refused = world.pull().await.expect_err(says);
        assert_eq!(refused.kind(), kind);
        assert!(told(&refused).contains(says), "{}", told(&refused));
        assert!(server.requests("").iter().all(|request| request.path.ends_with(".json")));
        world.assert_nothing();
    }
}

#[tokio::test]
async fn a_manifest_that_is_none_or_too_long_is_refused() {
    for (content, says) in [(b"<html>".to_vec(), "no manifest"), (vec![b' '; (1 << 20) + 1], "more than 1048576 bytes")]
    {
        let mut world = World::new();
        let server = Server::start(HashMap::from([("/images/standard.json".to_owned(), content)])).await;
        world.settings.assets_url = Some(server.url());
        let refused = world.pull().await.expect_err(says);
        assert_eq!(refused.kind(), ErrorKind::AssetDamaged);
        assert!(told(&refused).contains(says), "{}", told(&refused));
    }
}

#[tokio::test]
async fn two_at_once_fetch_once() {
    let mut world = World::new();
    let server = world.server().await;
    let (one, other) = tokio::join!(world.pull(), world.pull());
    let fetched = |pulled: &Pulled| pulled.blobs.iter().filter(|blob| blob.fetched_bytes.is_some()).count();
    let (one, other) = (one.expect("it is there"), other.expect("it is there"));
    assert_eq!(fetched(&one) + fetched(&other), 3);
    assert_eq!(server.requests(&world.root_path()).len(), 1);
    world.assert_whole();
}

#[tokio::test]
async fn two_starts_at_once_ask_once() {
    let mut world = World::new();
    let server = world.server().await;
    let start = async || bring_in(&world.settings, terms(), Wanted::IfMissing, &mut |_| {}).await.expect("it is there");
    tokio::join!(start(), start());
    assert_eq!(server.requests("standard.json").len(), 1);
    world.assert_whole();
}

#[tokio::test]
async fn a_call_that_is_dropped_leaves_what_came_for_the_next() {
    let mut world = World::new();
    let server = world.server().await;
    server.answer(&world.root_path(), Answer::StallAfter(150_000));
    let (came, mut has_come) = tokio::sync::mpsc::channel(64);
    let tell = &mut |now: Progress| _ = came.try_send(now.done_bytes);
    {
        let dropped = bring_in(&world.settings, terms(), Wanted::Always, tell);
        let much_has_come = async { while has_come.recv().await.is_some_and(|bytes| bytes < 150_000) {} };
        tokio::select! {
            never = dropped => panic!("the server is silent: {never:?}"),
            () = much_has_come => {}
        }
    }
    world.assert_nothing();
    let pulled = world.pull().await.expect("it is there");
    world.assert_whole();
    assert!(pulled.blobs[2].fetched_bytes < Some(ROOT_BYTES as u64), "{pulled:?}");
}

#[tokio::test]
async fn a_directory_is_a_place_like_any_other_also_offline() {
    let mut world = World::new();
    let base = world.directory();
    world.settings.offline = true;
    fs::create_dir_all(&world.settings.images_dir).expect("it can be made");
    fs::write(world.partial(), &world.root[..1000]).expect("it can be written");
    let pulled = world.pull().await.expect("it is there");
    world.assert_whole();
    assert_eq!(pulled.blobs[2].fetched_bytes, Some(ROOT_BYTES as u64 - 1000));

    let file_url = format!("file://{}", base.display());
    let mut other = World::new();
    other.settings.assets_url = Some(file_url);
    other.pull().await.expect("it is there");
    other.assert_whole();
}

#[tokio::test]
async fn a_directory_that_lacks_a_blob_or_has_it_wrong_is_told_by_its_path() {
    type Damage = fn(&Path);
    let damage: [(Damage, ErrorKind); 3] = [
        (|path| fs::remove_file(path).expect("it is there"), ErrorKind::AssetDownload),
        (|path| fs::write(path, vec![0; ROOT_BYTES]).expect("it can be written"), ErrorKind::AssetDamaged),
        (|path| fs::write(path, b"short").expect("it can be written"), ErrorKind::AssetDamaged),
    ];
    for (damage, kind) in damage {
        let mut world = World::new();
        let path = world.directory().join("blobs").join(world.root_path());
        damage(&path);
        let failed = world.pull().await.expect_err("it is not whole");
        assert_eq!(failed.kind(), kind, "{}", told(&failed));
        assert!(told(&failed).contains(&path.display().to_string()), "{}", told(&failed));
        world.assert_nothing();
    }
}

#[tokio::test]
async fn a_damaged_blob_is_mended_and_the_others_are_left_alone() {
    let mut world = World::new();
    let server = world.server().await;
    world.pull().await.expect("it is there");
    let path = world.settings.images_dir.join("blobs").join(world.root_path());
    fs::remove_file(&path).expect("it is there");
    fs::write(&path, vec![0; ROOT_BYTES]).expect("it can be written");
    let mended = world.pull().await.expect("it is there");
    world.assert_whole();
    assert_eq!(mended.blobs.iter().map(|blob| blob.fetched_bytes.is_some()).collect::<Vec<_>>(), [false, false, true]);
    assert_eq!(server.requests(&Digest::of(b"kernel").to_string()).len(), 1);
}

#[tokio::test]
async fn nothing_is_asked_for_offline_and_without_a_place() {
    let mut world = World::new();
    let nowhere = world.pull().await.expect_err("there is no place");
    let server = world.server().await;
    world.settings.offline = true;
    let offline = world.pull().await.expect_err("it is on a network");
    assert_eq!((nowhere.kind(), offline.kind()), (ErrorKind::AssetNotFound, ErrorKind::AssetNotFound));
    assert!(nowhere.remedy().is_some_and(|text| text.contains("--from") && text.contains("cargo xtask assets")));
    assert!(offline.remedy().is_some_and(|text| text.starts_with("offline mode is on")), "{offline:?}");
    assert_eq!(server.requests(""), []);
}

#[tokio::test]
async fn a_start_fetches_only_what_is_missing_and_only_if_it_may() {
    let mut world = World::new();
    assert!(!would_be_fetched(&world.settings), "there is no place");
    let _server = world.server().await;
    assert!(would_be_fetched(&world.settings));
    world.settings.offline = true;
    assert!(!would_be_fetched(&world.settings));
    world.settings.offline = false;
    world.settings.config.auto_download_assets = false;
    assert!(!would_be_fetched(&world.settings));
    assert!(remedy(&world.settings, true).starts_with("auto_download_assets is off"));
    world.settings.config.auto_download_assets = true;
    world.pull().await.expect("it is there");
    assert!(!would_be_fetched(&world.settings), "it is there");
    let kernel = world.settings.images_dir.join("blobs").join(Digest::of(b"kernel").to_string());
    fs::remove_file(kernel).expect("it is there");
    assert!(!would_be_fetched(&world.settings), "what is there in part is left to people");
}

#[tokio::test]
async fn a_name_that_is_none_is_refused_before_anything_is_asked_for() {
    let mut world = World::new();
    let server = world.server().await;
    world.settings.config.image = "../standard".into();
    assert_eq!(world.pull().await.expect_err("it is a path").kind(), ErrorKind::InvalidConfig);
    assert_eq!(server.requests(""), []);
}
