//! The store's promises, with files of a megabyte instead of a VM's memory.

mod cost;
mod damage;
mod limits;
mod making;
mod relatives;
mod translations;

use std::{
    fs,
    os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _},
    time::Duration,
};

use exec_sandbox_image::Digest;
use exec_sandbox_qemu::Accelerator;
use tempfile::TempDir;

use super::{
    parts::{FORMAT, QemuBuild},
    *,
};
use crate::{Language, cache_dir::set_modified};

const LIMITS: Limits = Limits { max_bytes: 1 << 30, max_age: Duration::from_secs(14 * 24 * 60 * 60) };

/// What the guest has in its memory: two pieces, one of them at the end.
const PIECES: [(u64, &[u8]); 2] = [(4096, b"interpreter"), ((1 << 20) - 4, b"last")];

/// What QEMU has translated for it: two pieces, one of them at the end of what counts.
const TRANSLATED: [(u64, &[u8]); 2] = [(0, b"code"), (TRANSLATED_BYTES - 4, b"last")];
const TRANSLATED_BYTES: u64 = 300_001;

/// Parts of a VM with a megabyte, of which `version` makes another one.
pub(crate) fn parts(version: &str) -> Parts {
    Parts {
        format: FORMAT,
        generation: 1,
        kernel: Digest::of(b"kernel"),
        initramfs: Digest::of(b"initramfs"),
        root: Digest::of(b"root"),
        qemu: QemuBuild { version: version.into(), content: None, size_bytes: 1, modified_s: 2, modified_ns: 3 },
        accelerator: Accelerator::Tcg { tsc_khz: None },
        host_cpu: None,
        machine: vec!["-M".into(), "microvm".into()],
        memory_mib: 1,
        language: Some(Language::Python),
        packages: vec!["b==2".into(), "a==1".into()],
        layer: None,
        is_preloaded: false,
    }
}

/// The store in `dir` as a process finds it that has just started.
pub(super) fn store(dir: &TempDir) -> Store {
    Store::at(dir.path().join("snapshots"), LIMITS)
}

fn temporary() -> TempDir {
    tempfile::tempdir().expect("a temporary directory")
}

/// Does what a VM does that is saved.
pub(crate) fn fill(draft: &Draft) {
    for (at, piece) in PIECES {
        draft.ram().write_all_at(piece, at).expect("there is room");
    }
    draft.state().write_all_at(b"devices", 0).expect("there is room");
}

pub(crate) fn publish(store: &Store, parts: &Parts) -> Arc<Template> {
    let draft = store.begin(parts).expect("the store works").expect("nobody else makes it");
    fill(&draft);
    draft.publish().expect("the store works")
}

/// The file that QEMU has translated to. It goes on beyond what counts.
fn translated() -> File {
    let file = tempfile::tempfile().expect("a file");
    for (at, piece) in TRANSLATED.into_iter().chain([(TRANSLATED_BYTES, &b"begun"[..]), (1 << 20, b"begun")]) {
        file.write_all_at(piece, at).expect("there is room");
    }
    file
}

/// Fills it as [`fill`] does, from files and with these translations.
fn save(draft: Draft, translations: Option<(&File, u64)>) -> io::Result<Draft> {
    let memory = tempfile::tempfile().expect("a file");
    for (at, piece) in PIECES {
        memory.write_all_at(piece, at).expect("there is room");
    }
    let room = draft.room_for_translations();
    let mut filled = draft.fill(&memory, b"devices")?;
    if let Some((file, length)) = translations
        && let Some(written) = room.copy(file, length)?
    {
        filled.add_translations(written);
    }
    Ok(filled)
}

fn save_translated(draft: Draft) -> Draft {
    save(draft, Some((&translated(), TRANSLATED_BYTES))).expect("there is room")
}

fn publish_translated(store: &Store, parts: &Parts) -> Arc<Template> {
    let draft = store.begin(parts).expect("the store works").expect("nobody else makes it");
    save_translated(draft).publish().expect("the store works")
}

fn find(store: &Store, parts: &Parts) -> Option<Arc<Template>> {
    store.find(parts).expect("the store works")
}

/// Panics unless it has what [`fill`] wrote.
fn check(template: &Template) {
    let mut ram = vec![0; 1 << 20];
    template.ram().read_exact_at(&mut ram, 0).expect("it is a megabyte");
    for (at, piece) in PIECES {
        let at = usize::try_from(at).expect("it is small");
        assert_eq!(&ram[at..at + piece.len()], piece);
        ram[at..at + piece.len()].fill(0);
    }
    assert!(ram.iter().all(|byte| *byte == 0));
    for _ in 0..2 {
        assert_eq!(template.state().expect("it is read"), b"devices");
    }
}

/// Panics unless it has what [`save_translated`] wrote, under the names that QEMU is told.
fn check_translated(store: &Store, template: &Template) {
    check(template);
    let name = template.translations_name().expect("it is open").expect("it has some");
    let found = fs::read(store.memories_dir().join(name)).expect("it is there");
    let mut expected = vec![0; usize::try_from(TRANSLATED_BYTES).expect("it is small")];
    for (at, piece) in TRANSLATED {
        let at = usize::try_from(at).expect("it is small");
        expected[at..at + piece.len()].copy_from_slice(piece);
    }
    assert!(found == expected, "{} bytes", found.len());
}

/// Names in a directory of the store, sorted; none if it is not there.
fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).map(|entries| entries.map(|entry| entry.expect("it can be read")));
    let mut names: Vec<String> = entries
        .map(|entries| entries.map(|entry| entry.file_name().into_string().expect("it is text")).collect())
        .unwrap_or_default();
    names.sort();
    names
}

#[test]
fn what_is_published_is_found_by_its_parts_and_by_no_others() {
    let dir = temporary();
    assert!(find(&store(&dir), &parts("1")).is_none());
    let made = publish(&store(&dir), &parts("1"));
    check(&made);
    let found = find(&store(&dir), &parts("1")).expect("it is there");
    check(&found);
    assert_eq!((found.key(), found.memory_mib()), (parts("1").key(), 1));
    let ino = |template: &Template| template.ram().metadata().expect("it is open").ino();
    assert_eq!(ino(&found), ino(&made));
    assert!(find(&store(&dir), &parts("2")).is_none());
    let reordered = Parts { packages: vec!["a==1".into(), "b==2".into()], ..parts("1") };
    check(&find(&store(&dir), &reordered).expect("the order of packages means nothing"));
}

#[test]
fn a_snapshot_is_read_only_and_only_this_users() {
    let dir = temporary();
    let store = store(&dir);
    publish_translated(&store, &parts("1"));
    let snapshot = store.template_dir(parts("1").key());
    let mode = |path: &Path| path.metadata().expect("it is there").permissions().mode() & 0o777;
    for name in [RAM, STATE, TRANSLATIONS, MANIFEST] {
        assert_eq!(mode(&snapshot.join(name)) & !0o444, 0, "{name}");
    }
    for name in [RAM, TRANSLATIONS] {
        assert_eq!(mode(&snapshot.join(name)), 0o444, "{name} is for a QEMU of another user, too");
    }
    for dir in [&store.dir, &snapshot, &store.drafts_dir(), &store.locks_dir()] {
        assert_eq!(mode(dir), 0o700, "{}", dir.display());
    }
    assert_eq!(names(&store.drafts_dir()), [""; 0]);
}

#[test]
fn only_what_was_written_takes_room_and_says_how_much() {
    let dir = temporary();
    let template = publish(&store(&dir), &Parts { memory_mib: 64, ..parts("1") });
    assert_eq!(template.ram().metadata().expect("it is open").len(), 64 << 20);
    template.ram().sync_all().expect("it is a file");
    let allocated = template.allocated_bytes().expect("it is open");
    assert!((1..1 << 20).contains(&allocated), "{allocated}");
}

#[test]
fn a_draft_is_of_use_before_it_is_published_and_the_same_afterwards() {
    let dir = temporary();
    let store = store(&dir);
    let draft = store.begin(&parts("1")).expect("the store works").expect("it is new");
    let draft = save_translated(draft);
    let early = draft.template().expect("it is there");
    check_translated(&store, &early);
    assert!(find(&store, &parts("1")).is_none());
    for file in [early.ram(), early.translations_file().expect("it has some")] {
        assert_eq!(file.metadata().expect("it is open").permissions().mode() & 0o777, 0o444);
    }
    let published = draft.publish().expect("the store works");
    let inos = |template: &Template| {
        let all = [Some(template.ram()), template.translations_file()];
        all.map(|file| file.expect("it has it").metadata().expect("it is open").ino())
    };
    assert_eq!(inos(&early), inos(&published));
    let found = find(&store, &parts("1")).expect("it is there");
    check_translated(&store, &found);
    assert_eq!(inos(&early), inos(&found));
}

#[test]
fn a_template_stays_whole_when_its_files_are_removed() {
    let dir = temporary();
    let store = store(&dir);
    publish(&store, &parts("1"));
    let template = find(&store, &parts("1")).expect("it is there");
    fs::remove_dir_all(&store.dir).expect("it is ours");
    check(&template);
}

#[test]
fn a_store_that_others_may_write_to_is_not_used() {
    let dir = temporary();
    let store = store(&dir);
    publish(&store, &parts("1"));
    fs::set_permissions(&store.dir, fs::Permissions::from_mode(0o777)).expect("it is ours");
    for refused in [store.find(&parts("1")).err(), store.begin(&parts("2")).err()] {
        let refused = refused.expect("anybody could have put something there");
        assert!(chain(&refused).contains("only this user"), "{}", chain(&refused));
    }
}

#[test]
fn the_use_of_a_snapshot_is_noted_but_not_all_the_time() {
    let dir = temporary();
    let store = store(&dir);
    publish(&store, &parts("1"));
    let used = store.template_dir(parts("1").key()).join(USED);
    let hours_ago = |hours: u64| SystemTime::now() - Duration::from_secs(hours * 60 * 60);
    let noted = |at: SystemTime| {
        set_modified(&used, at).expect("it is ours");
        check(&find(&store, &parts("1")).expect("it is there"));
        used.metadata().expect("it is there").modified().expect("it has one")
    };
    assert!(noted(hours_ago(2)) > hours_ago(1));
    assert!(noted(SystemTime::now() + Duration::from_secs(60 * 60 * 24)) < SystemTime::now() + Duration::from_secs(60));
    let half_an_hour_ago = SystemTime::now() - Duration::from_secs(30 * 60);
    assert_eq!(noted(half_an_hour_ago), half_an_hour_ago);
    fs::remove_file(&used).expect("it is there");
    check(&find(&store, &parts("1")).expect("it is there"));
    assert!(used.exists());
}
