//! What is damaged, swapped or made up in the store is refused by name, leaves nothing behind, and is replaced by the next offer.

use std::{
    fs,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use exec_sandbox_remote::{EntryName, Fetch, FetchError, Offered, Remote};
use serde::{Deserialize, Serialize};

use crate::shelf::{FACTS, Shelf, entry, fetch, is_hit, names, noise, offer};

/// The manifest as docs/remote-cache.md describes it: the order of its fields is that of the seal.
#[derive(Serialize, Deserialize)]
struct Written {
    format: u32,
    kind: String,
    key: String,
    facts: String,
    files: Vec<Listed>,
    #[serde(skip_serializing_if = "Option::is_none")]
    seal: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct Listed {
    name: String,
    plain_bytes: u64,
    blake3: String,
    stored_bytes: u64,
}

/// An entry that is there, and its parts in the store.
struct Victim<'a> {
    shelf: &'a Shelf,
    manifest: PathBuf,
    /// The blob of `ram`, which is the larger one.
    ram: PathBuf,
    /// The blob of `state`.
    state: PathBuf,
}

impl Victim<'_> {
    fn written(&self) -> Written {
        serde_json::from_slice(&fs::read(&self.manifest).unwrap()).unwrap()
    }

    /// Changes the manifest and seals it again, as somebody can who may write to the store.
    fn lie(&self, change: impl FnOnce(&mut Written)) {
        let mut written = self.written();
        written.seal = None;
        change(&mut written);
        written.seal = Some(blake3::hash(&serde_json::to_vec(&written).unwrap()).to_hex().to_string());
        fs::write(&self.manifest, serde_json::to_vec(&written).unwrap()).unwrap();
    }

    /// Puts another blob in the place of `ram`'s, with its length in the manifest.
    fn replace_ram(&self, blob: &[u8]) {
        fs::write(&self.ram, blob).unwrap();
        self.lie(|written| ram_of(written).stored_bytes = blob.len() as u64);
    }
}

fn ram_of(written: &mut Written) -> &mut Listed {
    written.files.iter_mut().find(|file| file.name == "ram").unwrap()
}

/// Flips the lowest bit of one byte.
fn flip(path: &Path, at: u64) {
    let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
}

fn flip_word(path: &Path, word: &str) {
    let text = fs::read_to_string(path).unwrap();
    flip(path, text.find(word).unwrap() as u64);
}

/// What is done to an entry, and by which labels it may be refused.
type Case = (&'static str, fn(&Victim<'_>), &'static [&'static str]);

const CASES: [Case; 21] = [
    ("a bit of the facts", |it| flip_word(&it.manifest, "python"), &["manifest_seal"]),
    ("a bit of a length", |it| flip_word(&it.manifest, "24,"), &["manifest_seal"]),
    (
        "a bit of the seal",
        |it| flip(&it.manifest, fs::metadata(&it.manifest).unwrap().len() - 3),
        &["manifest_seal", "manifest_malformed"],
    ),
    ("a bit of the first brace", |it| flip(&it.manifest, 0), &["manifest_malformed"]),
    ("a manifest of nothing", |it| fs::write(&it.manifest, "").unwrap(), &["manifest_malformed"]),
    ("a manifest of blanks", |it| fs::write(&it.manifest, vec![b' '; 1 << 20]).unwrap(), &["manifest_too_long"]),
    ("another format", |it| it.lie(|written| written.format = 2), &["manifest_format"]),
    (
        "a name that reaches out",
        |it| it.lie(|written| ram_of(written).name = "../ram".into()),
        &["manifest_impossible"],
    ),
    (
        "another entry's manifest",
        |it| {
            let other = it.shelf.manifest(&entry(OTHER));
            fs::copy(other, &it.manifest).unwrap();
        },
        &["foreign"],
    ),
    (
        "a file too many",
        |it| {
            it.lie(|written| {
                let blake3 = written.files[0].blake3.clone();
                written.files.push(Listed { name: "more".into(), plain_bytes: 1, blake3, stored_bytes: 1 });
            })
        },
        &["unexpected_file"],
    ),
    ("a file too few", |it| it.lie(|written| written.files.truncate(1)), &["missing_file"]),
    ("a length for every disk", |it| it.lie(|written| ram_of(written).plain_bytes = u64::MAX), &["too_large"]),
    (
        "a bit in the middle of a blob",
        |it| flip(&it.ram, fs::metadata(&it.ram).unwrap().len() / 2),
        &["undecodable", "digest"],
    ),
    ("a bit at the start of a blob", |it| flip(&it.ram, 0), &["undecodable"]),
    (
        "a blob cut short",
        |it| {
            let blob = fs::OpenOptions::new().write(true).open(&it.ram).unwrap();
            blob.set_len(blob.metadata().unwrap().len() - 1).unwrap();
        },
        &["stored_size"],
    ),
    (
        "a blob cut short with a manifest that fits",
        |it| {
            let blob = fs::read(&it.ram).unwrap();
            it.replace_ram(&blob[..blob.len() - 1000]);
        },
        &["undecodable"],
    ),
    ("another blob of the store", |it| it.replace_ram(&fs::read(&it.state).unwrap()), &["too_short"]),
    (
        "another content of the same length",
        |it| {
            it.replace_ram(&zstd::encode_all(&noise(99, RAM_BYTES)[..], 3).unwrap());
        },
        &["digest"],
    ),
    ("a blob that is gone", |it| fs::remove_file(&it.ram).unwrap(), &["missing_blob"]),
    // A GiB of zeros has 32 KiB: were it believed, the disk would be its.
    (
        "a bomb",
        |it| it.replace_ram(&zstd::encode_all(std::io::Read::take(std::io::repeat(0), 1 << 30), 3).unwrap()),
        &["too_long"],
    ),
    (
        "something behind the blob's end",
        |it| {
            let mut blob = fs::read(&it.ram).unwrap();
            blob.push(0);
            it.replace_ram(&blob);
        },
        &["too_long"],
    ),
];

/// An entry that nothing happens to.
const OTHER: u8 = 200;

/// Length of the file that suffers: more than one chunk.
const RAM_BYTES: usize = 600_024;

#[tokio::test]
async fn every_damage_in_a_bucket_is_refused_by_name_leaves_nothing_and_is_mended() {
    suffer_all(&Shelf::bucket().await).await;
}

#[tokio::test]
async fn every_damage_in_a_directory_is_refused_by_name_leaves_nothing_and_is_mended() {
    suffer_all(&Shelf::directory()).await;
}

async fn suffer_all(shelf: &Shelf) {
    shelf.fill(&entry(OTHER), &[("other", b"else")]).await;
    let remote = shelf.open();
    for (case, number) in CASES.iter().zip(1..) {
        suffer(shelf, &remote, number, case).await;
    }
    assert_eq!(remote.report().refused.values().sum::<u64>(), CASES.len() as u64);
}

/// One entry suffers, with content of its own so that no other does.
async fn suffer(shelf: &Shelf, remote: &Remote, number: u8, (what, harm, labels): &Case) {
    let (name, ram, state) = (entry(number), noise(number.into(), RAM_BYTES), [number; 9]);
    let files: [(&str, &[u8]); 2] = [("state", &state), ("ram", &ram)];
    upload(remote, &name, &files).await;
    let blob = |plain: &[u8]| shelf.objects.join(format!("blobs/{}.zst", blake3::hash(plain).to_hex()));
    harm(&Victim { shelf, manifest: shelf.manifest(&name), ram: blob(&ram), state: blob(&state) });

    let into = tempfile::tempdir().unwrap();
    let before = remote.report().refused;
    let error = fetch(remote, &name, &["state", "ram"], into.path()).await.unwrap_err();
    let FetchError::Refused { cause, .. } = &error else { panic!("{what}: {error:?}") };
    assert!(labels.contains(&cause.label()), "{what}: {cause:?}");
    assert!(names(into.path()).is_empty(), "{what} leaves {:?}", names(into.path()));
    let report = remote.report();
    assert_eq!(report.refused[cause.label()], before.get(cause.label()).unwrap_or(&0) + 1, "{what}");
    assert!(!report.fetches_rest, "{what}: the store answers");

    upload(remote, &name, &files).await;
    let fetched = fetch(remote, &name, &["state", "ram"], into.path()).await;
    assert!(is_hit(&fetched), "{what}: {fetched:?}");
}

/// Offers an entry and waits until it is there.
async fn upload(remote: &Remote, name: &EntryName, files: &[(&str, &[u8])]) {
    let before = remote.report();
    assert_eq!(remote.offer(offer(name, files)), Offered::Queued);
    while remote.report().uploads == before.uploads {
        let report = remote.report();
        assert_eq!((report.uploads_failed, report.already_there), (0, 0), "{name}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test]
async fn a_bomb_is_refused_before_it_has_gone_off() {
    let shelf = Shelf::directory();
    shelf.fill(&entry(1), &[("ram", b"small")]).await;
    let [ram] = <[PathBuf; 1]>::try_from(shelf.blobs()).unwrap();
    let victim = Victim { shelf: &shelf, manifest: shelf.manifest(&entry(1)), state: ram.clone(), ram };
    // Noise after zeros: nothing that a hole would hide.
    let bomb: Vec<u8> = noise(1, 1 << 20).repeat(64);
    victim.replace_ram(&zstd::encode_all(&bomb[..], 3).unwrap());
    let into = tempfile::tempdir().unwrap();
    let error = fetch(&shelf.open(), &entry(1), &["ram"], into.path()).await.unwrap_err();
    let FetchError::Refused { cause, .. } = error else { panic!("{error:?}") };
    assert_eq!(cause.to_string(), r#"the blob of "ram" holds more than the announced 5 bytes"#);
    assert!(names(into.path()).is_empty());
}

#[tokio::test]
async fn a_blob_that_asks_for_much_memory_is_refused() {
    let plain = noise(1, 100_000);
    for (window_log, is_taken) in [(23, true), (24, false)] {
        let shelf = Shelf::directory();
        shelf.fill(&entry(1), &[("ram", &plain)]).await;
        let [ram] = <[PathBuf; 1]>::try_from(shelf.blobs()).unwrap();
        let victim = Victim { shelf: &shelf, manifest: shelf.manifest(&entry(1)), state: ram.clone(), ram };
        let mut encoder = zstd::Encoder::new(Vec::new(), 3).unwrap();
        encoder.window_log(window_log).unwrap();
        std::io::Write::write_all(&mut encoder, &plain).unwrap();
        victim.replace_ram(&encoder.finish().unwrap());
        let into = tempfile::tempdir().unwrap();
        let fetched = fetch(&shelf.open(), &entry(1), &["ram"], into.path()).await;
        match fetched {
            Ok(Fetch::Hit(fetched)) => assert!(is_taken && fetched.facts == FACTS),
            Err(FetchError::Refused { cause, .. }) => assert!(!is_taken && cause.label() == "undecodable", "{cause:?}"),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_refusal_says_what_was_refused_and_its_cause_says_why() {
    let shelf = Shelf::directory();
    shelf.fill(&entry(1), &[("ram", b"small")]).await;
    fs::write(shelf.manifest(&entry(1)), "{}").unwrap();
    let into = tempfile::tempdir().unwrap();
    let error = fetch(&shelf.open(), &entry(1), &["ram"], into.path()).await.unwrap_err();
    let expected = format!("{} of the directory {} was refused", entry(1), shelf.objects.display());
    assert_eq!(error.to_string(), expected);
    let cause = std::error::Error::source(&error).unwrap();
    assert_eq!(cause.to_string(), "its manifest was refused");
}
