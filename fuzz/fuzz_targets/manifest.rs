//! Image manifests: bytes from a file become an image that a store may name.
//!
//! The oracle: what is accepted is written as a text that reads the same; the names and digests in it are single components of a path
//! and its interpreters' paths are absolute and go nowhere but down; the store finds the image under its own name and no other, and
//! looks for no name outside its directory.
#![no_main]

use std::{
    collections::BTreeMap,
    fs,
    path::{Component, Path},
};

use exec_sandbox_image::{Blob, Digest, ImageError, ImageStore, Interpreter, Manifest, Package, Qemu};
use libfuzzer_sys::fuzz_target;

fuzz_target!(init: fuzz::sow(seeds()), |json: &[u8]| {
    check_name(&String::from_utf8_lossy(json));
    let Ok(manifest) = Manifest::from_json(json) else { return };
    let text = manifest.to_json().expect("it was accepted");
    assert_eq!(Manifest::from_json(&text).expect("it was written by us"), manifest);
    let packages = manifest.packages.iter().map(|package| &package.name);
    let firmware = manifest.qemu.iter().flat_map(|qemu| qemu.firmware.keys());
    let names = [&manifest.name, &manifest.arch].into_iter().chain(manifest.languages.keys()).chain(packages);
    for name in names.chain(firmware) {
        assert!(is_one_component(name) && !name.starts_with(['-', '.']), "{name:?}");
    }
    for digest in manifest.blobs().iter().map(|(_, blob)| blob.blake3) {
        assert!(is_one_component(&digest.to_string()));
        assert_eq!(digest.to_string().parse(), Ok(digest));
    }
    for interpreter in manifest.languages.values() {
        let mut parts = Path::new(&interpreter.path).components();
        assert_eq!(parts.next(), Some(Component::RootDir));
        assert!(parts.all(|part| matches!(part, Component::Normal(_))), "{}", interpreter.path);
    }
    check_store(&manifest, json);
});

fn is_one_component(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    matches!(parts.next(), Some(Component::Normal(part)) if part == name) && parts.next().is_none()
}

/// A name that nobody has checked, in a store that is not there.
fn check_name(name: &str) {
    let dir = Path::new("/nowhere/store");
    match ImageStore::at(dir).load(name) {
        Err(ImageError::NotFound { path, .. }) => {
            assert_eq!((path.parent(), is_one_component(name)), (Some(dir), true))
        }
        Err(ImageError::BadName(_)) => {}
        other => panic!("{other:?}"),
    }
}

fn check_store(manifest: &Manifest, json: &[u8]) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let store = ImageStore::at(dir.path());
    fs::write(dir.path().join(format!("{}.json", manifest.name)), json).expect("its name is a file's");
    assert_eq!(store.load(&manifest.name).expect("it is there").manifest(), manifest);
    fs::write(dir.path().join("0another.json"), json).expect("it can be written");
    let is_its_name = manifest.name == "0another";
    assert!(is_its_name || matches!(store.load("0another"), Err(ImageError::WrongName { .. })));
}

fn seeds() -> [Vec<u8>; 2] {
    let blob = |content: &[u8]| Blob { blake3: Digest::of(content), size_bytes: content.len() as u64 };
    let python = Interpreter { path: "/usr/bin/python3".into(), version: "3.13.5".into() };
    let manifest = Manifest {
        format: Manifest::FORMAT,
        name: "standard".into(),
        arch: "x86_64".into(),
        kernel_version: "6.12.48".into(),
        kernel: blob(b"k"),
        initramfs: blob(b"i"),
        root: blob(b"r"),
        languages: BTreeMap::from([("python".into(), python)]),
        registries: BTreeMap::from([("python".into(), vec!["packages.example.com".into()])]),
        indexes: BTreeMap::from([("python".into(), "https://packages.example.com/simple/".into())]),
        packages: vec![Package { name: "libstdc++6".into(), version: "14.2.0-19".into() }],
        qemu: Some(Qemu {
            version: "10.0.13".into(),
            program: blob(b"q"),
            firmware: BTreeMap::from([("pvh.bin".into(), blob(b"p"))]),
        }),
    };
    let bare = Manifest { name: "b".into(), packages: Vec::new(), qemu: None, ..manifest.clone() };
    [manifest, bare].map(|manifest| manifest.to_json().expect("it is valid"))
}
