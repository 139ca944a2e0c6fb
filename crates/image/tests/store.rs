//! The store through its public face: what is published can be found, proven, replaced and pruned.

#![expect(clippy::unwrap_used, reason = "a panic is how a test's fixture fails")]

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::thread;

use exec_sandbox_image::{
    Blob, BlobSources, Digest, Image, ImageError, ImageStore, Interpreter, Manifest, Package, Pruned,
};
use tempfile::TempDir;

/// A store, and a place for the files that are published into it.
struct Fixture {
    dir: TempDir,
    store: ImageStore,
}

impl Fixture {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let store = ImageStore::at(dir.path().join("images"));
        Self { dir, store }
    }

    fn source(&self, content: &str) -> PathBuf {
        let path = self.dir.path().join(Digest::of(content.as_bytes()).to_string());
        fs::write(&path, content).unwrap();
        path
    }

    fn publish(&self, name: &str, root: &str) -> Result<Image, ImageError> {
        let (kernel, initramfs, root_path) = (self.source("kernel"), self.source("agent"), self.source(root));
        let sources = BlobSources { kernel: &kernel, initramfs: &initramfs, root: &root_path, qemu: None };
        self.store.publish(&manifest(name, root), sources)
    }

    fn blob(&self, content: &str) -> PathBuf {
        self.dir.path().join("images/blobs").join(Digest::of(content.as_bytes()).to_string())
    }

    fn blobs(&self) -> usize {
        fs::read_dir(self.dir.path().join("images/blobs")).unwrap().count()
    }
}

fn manifest(name: &str, root: &str) -> Manifest {
    let blob = |content: &str| Blob { blake3: Digest::of(content.as_bytes()), size_bytes: content.len() as u64 };
    Manifest {
        format: Manifest::FORMAT,
        name: name.into(),
        arch: "x86_64".into(),
        kernel_version: "6.12.0".into(),
        kernel: blob("kernel"),
        initramfs: blob("agent"),
        root: blob(root),
        languages: BTreeMap::from([("raw".into(), Interpreter { path: "/bin/bash".into(), version: "5.2".into() })]),
        packages: vec![Package { name: "bash".into(), version: "5.2-1".into() }],
        registries: BTreeMap::new(),
        indexes: BTreeMap::new(),
        qemu: None,
    }
}

#[test]
fn a_published_image_is_listed_loaded_and_proven() {
    let fixture = Fixture::new();
    fixture.publish("standard", "root").unwrap();
    assert_eq!(fixture.store.list().unwrap(), ["standard"]);
    let image = fixture.store.load("standard").unwrap().verify_fully().unwrap();
    assert_eq!(image.manifest(), &manifest("standard", "root"));
    assert_eq!(fs::read_to_string(image.kernel()).unwrap(), "kernel");
    assert_eq!(fs::read_to_string(image.initramfs()).unwrap(), "agent");
    assert_eq!(fs::read_to_string(image.root()).unwrap(), "root");
}

#[test]
fn a_store_that_does_not_exist_yet_is_empty() {
    let store = ImageStore::at("/nonexistent/images");
    assert_eq!(store.list().unwrap(), Vec::<String>::new());
    let missing = store.load("standard").unwrap_err();
    assert!(matches!(missing, ImageError::NotFound { .. }), "{missing:?}");
    assert!(missing.is_mended_by_rebuilding());
}

#[test]
fn a_name_that_is_a_path_is_refused_before_any_file_is_opened() {
    let refused = Fixture::new().store.load("../standard").unwrap_err();
    assert!(matches!(refused, ImageError::BadName(_)), "{refused:?}");
    assert!(!refused.is_mended_by_rebuilding());
}

#[test]
fn a_manifest_under_the_name_of_another_image_is_refused() {
    let fixture = Fixture::new();
    fixture.publish("standard", "root").unwrap();
    let images = fixture.dir.path().join("images");
    fs::copy(images.join("standard.json"), images.join("other.json")).unwrap();
    let refused = fixture.store.load("other").unwrap_err();
    assert!(matches!(&refused, ImageError::WrongName { found, .. } if found == "standard"), "{refused:?}");
}

#[test]
fn a_source_with_other_content_than_the_manifest_says_is_not_published() {
    let fixture = Fixture::new();
    let (kernel, initramfs, root) = (fixture.source("kernel"), fixture.source("agent"), fixture.source("rooT"));
    let sources = BlobSources { kernel: &kernel, initramfs: &initramfs, root: &root, qemu: None };
    let refused = fixture.store.publish(&manifest("standard", "root"), sources).unwrap_err();
    assert!(matches!(&refused, ImageError::BlobContent { path, .. } if *path == root), "{refused:?}");
    assert_eq!(fixture.store.list().unwrap(), Vec::<String>::new());
}

#[test]
fn damage_in_the_store_is_found_and_mended_by_publishing_again() {
    let fixture = Fixture::new();
    let image = fixture.publish("standard", "root").unwrap();
    let root = fixture.blob("root");
    fs::set_permissions(&root, Permissions::from_mode(0o644)).unwrap();
    fs::write(&root, "rOOt").unwrap();
    let damaged = image.verify_fully().unwrap_err();
    assert!(damaged.to_string().contains(&root.display().to_string()), "{damaged}");
    fixture.publish("standard", "root").unwrap().verify_fully().unwrap();
}

#[test]
fn a_damaged_blob_does_not_reach_back_to_where_it_came_from() {
    let fixture = Fixture::new();
    fixture.publish("standard", "root").unwrap();
    let blob = fixture.blob("root");
    fs::set_permissions(&blob, Permissions::from_mode(0o644)).unwrap();
    fs::write(&blob, "").unwrap();
    let source = fixture.dir.path().join(Digest::of(b"root").to_string());
    assert_eq!(fs::read_to_string(source).unwrap(), "root");
}

#[test]
fn blobs_cannot_be_written_to_by_accident() {
    let fixture = Fixture::new();
    fixture.publish("standard", "root").unwrap();
    assert_eq!(fixture.blob("root").metadata().unwrap().permissions().mode() & 0o777, 0o444);
}

#[test]
fn pruning_removes_what_no_image_names_and_keeps_what_one_does() {
    let fixture = Fixture::new();
    fixture.publish("standard", "first root").unwrap();
    fixture.publish("other", "other root").unwrap();
    fixture.publish("standard", "second root").unwrap();
    fs::write(fixture.blob("second root").with_file_name(".new-left"), "1234").unwrap();
    let expected = Pruned { files: 2, size_bytes: "first root".len() as u64 + 4 };
    assert_eq!(fixture.store.prune().unwrap(), expected);
    for name in ["standard", "other"] {
        fixture.store.load(name).unwrap().verify_fully().unwrap();
    }
    assert_eq!(fixture.store.prune().unwrap(), Pruned::default());
}

#[test]
fn pruning_removes_nothing_while_a_manifest_cannot_be_read() {
    let fixture = Fixture::new();
    fixture.publish("standard", "root").unwrap();
    fs::write(fixture.dir.path().join("images/broken.json"), "{").unwrap();
    let before = fixture.blobs();
    let refused = fixture.store.prune().unwrap_err();
    assert!(matches!(refused, ImageError::BadManifest { .. }), "{refused:?}");
    assert_eq!(fixture.blobs(), before);
}

#[test]
fn publishing_and_pruning_at_once_never_lose_a_blob() {
    let fixture = Fixture::new();
    let sources: Vec<(String, PathBuf)> =
        (0..40).map(|n| format!("root {n}")).map(|r| (r.clone(), fixture.source(&r))).collect();
    let (kernel, initramfs) = (fixture.source("kernel"), fixture.source("agent"));
    thread::scope(|scope| {
        for half in sources.chunks(20) {
            let (store, kernel, initramfs) = (&fixture.store, &kernel, &initramfs);
            scope.spawn(move || {
                for (index, (root, path)) in half.iter().enumerate() {
                    let name = format!("image{}", index % 3);
                    store
                        .publish(&manifest(&name, root), BlobSources { kernel, initramfs, root: path, qemu: None })
                        .unwrap();
                    store.prune().unwrap();
                }
            });
        }
    });
    for name in fixture.store.list().unwrap() {
        fixture.store.load(&name).unwrap().verify_fully().unwrap();
    }
}

#[test]
fn stamps_of_one_process_serve_the_next() {
    let fixture = Fixture::new();
    let image = fixture.publish("standard", "root").unwrap();
    let stamps = fixture.dir.path().join("stamps");
    image.verify(Some(&stamps)).unwrap();
    assert_eq!(fs::read_dir(&stamps).unwrap().count(), 3);
    fixture.store.load("standard").unwrap().verify(Some(&stamps)).unwrap();
}
