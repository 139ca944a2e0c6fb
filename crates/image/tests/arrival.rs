//! Arrivals through the public face of the store: pieces become blobs and an image, or nothing that can be seen.

#![expect(clippy::unwrap_used, reason = "a panic is how a test's fixture fails")]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use exec_sandbox_image::{Arrival, Blob, BlobRole, Digest, ImageError, ImageStore, Interpreter, Manifest, Pruned};
use tempfile::TempDir;

struct Fixture {
    dir: TempDir,
    store: ImageStore,
}

impl Fixture {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let store = ImageStore::at(dir.path());
        Self { dir, store }
    }

    fn arrival(&self) -> Arrival {
        self.store.try_arrival().unwrap().unwrap()
    }

    fn partial(&self, content: &[u8]) -> PathBuf {
        self.dir.path().join(format!(".partial-{}", Digest::of(content)))
    }

    fn blob(&self, content: &[u8]) -> PathBuf {
        self.dir.path().join("blobs").join(Digest::of(content).to_string())
    }
}

fn blob(content: &[u8]) -> Blob {
    Blob { blake3: Digest::of(content), size_bytes: content.len() as u64 }
}

fn manifest() -> Manifest {
    Manifest {
        format: Manifest::FORMAT,
        name: "standard".into(),
        arch: "x86_64".into(),
        kernel_version: "6.12.0".into(),
        kernel: blob(b"kernel"),
        initramfs: blob(b"agent"),
        root: blob(b"root"),
        languages: BTreeMap::from([("raw".into(), Interpreter { path: "/bin/bash".into(), version: "5.2".into() })]),
        packages: Vec::new(),
        registries: BTreeMap::new(),
        indexes: BTreeMap::new(),
        qemu: None,
    }
}

fn bring(arrival: &Arrival, role: BlobRole, content: &[u8]) {
    let mut partial = arrival.receive(role, blob(content)).unwrap();
    partial.append(content).unwrap();
    partial.commit().unwrap();
}

#[test]
fn pieces_become_blobs_and_blobs_an_image() {
    let fixture = Fixture::new();
    let arrival = fixture.arrival();
    assert!(!arrival.has(BlobRole::Root, blob(b"root")));
    let mut partial = arrival.receive(BlobRole::Root, blob(b"root")).unwrap();
    partial.append(b"ro").unwrap();
    assert!(!fixture.blob(b"root").exists(), "half of it is there");
    partial.append(b"ot").unwrap();
    partial.commit().unwrap();
    assert!(arrival.has(BlobRole::Root, blob(b"root")) && !fixture.partial(b"root").exists());
    assert_eq!(fixture.blob(b"root").metadata().unwrap().permissions().mode() & 0o777, 0o444);

    let early = arrival.publish(&manifest(), None).unwrap_err();
    assert!(matches!(early, ImageError::BlobMissing { role: BlobRole::Kernel, .. }), "{early:?}");
    assert_eq!(fixture.store.list().unwrap(), Vec::<String>::new());
    bring(&arrival, BlobRole::Kernel, b"kernel");
    bring(&arrival, BlobRole::Initramfs, b"agent");
    arrival.publish(&manifest(), None).unwrap();
    fixture.store.load("standard").unwrap().verify_fully().unwrap();
}

#[test]
fn what_was_interrupted_goes_on_with_what_is_there() {
    let fixture = Fixture::new();
    fixture.arrival().receive(BlobRole::Root, blob(b"root")).unwrap().append(b"ro").unwrap();
    let mut partial = fixture.arrival().receive(BlobRole::Root, blob(b"root")).unwrap();
    assert_eq!(partial.received_bytes(), 2);
    partial.append(b"ot").unwrap();
    partial.commit().unwrap();
    assert_eq!(fs::read(fixture.blob(b"root")).unwrap(), b"root");
}

#[test]
fn what_begins_again_forgets_what_there_was() {
    let fixture = Fixture::new();
    let mut partial = fixture.arrival().receive(BlobRole::Root, blob(b"root")).unwrap();
    partial.append(b"xxx").unwrap();
    partial.restart().unwrap();
    assert_eq!(partial.received_bytes(), 0);
    partial.append(b"root").unwrap();
    partial.commit().unwrap();
    assert_eq!(fs::read(fixture.blob(b"root")).unwrap(), b"root");
}

#[test]
fn other_content_of_the_same_length_is_refused_and_removed() {
    let fixture = Fixture::new();
    let mut partial = fixture.arrival().receive(BlobRole::Root, blob(b"root")).unwrap();
    partial.append(b"rOOt").unwrap();
    let refused = partial.commit().unwrap_err();
    assert!(matches!(refused, ImageError::BlobContent { found, .. } if found == Digest::of(b"rOOt")), "{refused:?}");
    assert!(!fixture.partial(b"root").exists() && !fixture.blob(b"root").exists());
}

#[test]
fn a_byte_too_many_is_refused_before_it_is_written() {
    let fixture = Fixture::new();
    let mut partial = fixture.arrival().receive(BlobRole::Root, blob(b"root")).unwrap();
    partial.append(b"roo").unwrap();
    let refused = partial.append(b"ts").unwrap_err();
    assert!(matches!(refused, ImageError::BlobSize { expected_bytes: 4, found_bytes: 5, .. }), "{refused:?}");
    assert!(!fixture.partial(b"root").exists());
}

#[test]
fn a_blob_that_is_too_short_does_not_appear_and_what_there_is_of_it_stays() {
    let fixture = Fixture::new();
    let mut partial = fixture.arrival().receive(BlobRole::Root, blob(b"root")).unwrap();
    partial.append(b"ro").unwrap();
    let refused = partial.commit().unwrap_err();
    assert!(matches!(refused, ImageError::BlobSize { found_bytes: 2, .. }), "{refused:?}");
    assert!(fixture.partial(b"root").exists() && !fixture.blob(b"root").exists());
}

#[test]
fn a_partial_file_that_is_too_long_begins_again() {
    let fixture = Fixture::new();
    drop(fixture.arrival());
    fs::write(fixture.partial(b"root"), "root and more").unwrap();
    assert_eq!(fixture.arrival().receive(BlobRole::Root, blob(b"root")).unwrap().received_bytes(), 0);
}

#[test]
fn one_holder_at_a_time_brings_images_in_and_keeps_the_right_while_it_writes() {
    let fixture = Fixture::new();
    let arrival = fixture.arrival();
    let partial = arrival.receive(BlobRole::Root, blob(b"root")).unwrap();
    drop(arrival);
    assert!(fixture.store.try_arrival().unwrap().is_none(), "somebody still writes");
    drop(partial);
    assert!(fixture.store.try_arrival().unwrap().is_some());
}

#[test]
fn pruning_leaves_everything_while_an_image_arrives_and_removes_what_nobody_goes_on_with() {
    let fixture = Fixture::new();
    let arrival = fixture.arrival();
    bring(&arrival, BlobRole::Kernel, b"kernel");
    arrival.receive(BlobRole::Root, blob(b"root")).unwrap().append(b"ro").unwrap();
    assert_eq!(fixture.store.prune().unwrap(), Pruned::default());
    drop(arrival);
    assert_eq!(fixture.store.prune().unwrap(), Pruned { files: 2, size_bytes: 6 + 2 });
    assert!(!fixture.partial(b"root").exists() && !fixture.blob(b"kernel").exists());
}
