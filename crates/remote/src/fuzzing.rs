//! What the fuzz target drives of this crate, whose types are its own. Built for it alone, with `--cfg fuzzing`.
//!
//! It takes what a store may hold, and panics where a promise about that is not kept.

use crate::{
    digest::{Digest, is_digest},
    entry::{EntryName, MAX_FACTS_BYTES, MAX_FILES},
    manifest::{ListedFile, MAX_MANIFEST_BYTES, Manifest},
};

/// A manifest. One that is accepted reads the same when it is written again, is found where it says that it belongs, and has files that lie
/// in one directory, with blobs among the blobs.
///
/// # Panics
/// If a promise is not kept.
pub fn manifest(json: &[u8]) {
    let Ok(manifest) = Manifest::from_json(json) else { return };
    let again = manifest.to_json().expect("what was read can be written");
    assert!(again.len() <= MAX_MANIFEST_BYTES, "what was written can be read");
    assert_eq!(Manifest::from_json(&again).expect("what was written can be read"), manifest);
    assert!(manifest.facts.len() <= MAX_FACTS_BYTES && (1..=MAX_FILES).contains(&manifest.files.len()));
    let place = crate::manifest::place(&manifest.name);
    assert_eq!(place.split('/').count(), 2, "{place}");
    assert!(is_digest(manifest.name.key()) && manifest.name.kind() != "blobs", "{place}");
    for (number, file) in manifest.files.iter().enumerate() {
        assert!(!file.name.contains('/') && !file.name.starts_with('.'), "{}", file.name);
        assert!(manifest.files.iter().skip(number + 1).all(|other| other.name != file.name), "{}", file.name);
        assert!(file.blob().starts_with("blobs/") && file.blob().split('/').count() == 2, "{}", file.blob());
    }
}

/// Seals what it is given, so that inputs come behind the seal: facts, and a name of a file.
///
/// # Panics
/// If a manifest can be written and not read.
pub fn sealed(facts: &str, file: &str) {
    let Ok(json) = example(facts, &[file]).to_json() else { return };
    let read = Manifest::from_json(&json).expect("what was written can be read");
    assert_eq!(read, example(facts, &[file]));
    manifest(&json);
}

/// Manifests to begin with.
///
/// # Panics
/// If one of them cannot be written.
#[must_use]
pub fn manifests() -> Vec<Vec<u8>> {
    let all = [example("", &["layer"]), example("{\"image\":\"python\"}", &["ram", "state"])];
    all.iter().map(|manifest| manifest.to_json().expect("it is a manifest")).collect()
}

fn example(facts: &str, files: &[&str]) -> Manifest {
    let file = |name: &&str| ListedFile {
        name: (*name).to_owned(),
        plain_bytes: 3,
        blake3: Digest::of(b"abc"),
        stored_bytes: 12,
    };
    Manifest {
        name: EntryName::new("snapshot", &Digest::of(b"key").to_string()).expect("it is a name"),
        facts: facts.to_owned(),
        files: files.iter().map(file).collect(),
    }
}
