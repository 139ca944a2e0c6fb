//! The store's promises, with a few kilobytes instead of a layer.

use std::{os::unix::fs::FileExt as _, time::Duration};

use tempfile::TempDir;

use super::{super::parts::FORMAT, *};
use crate::{
    Language,
    cache_dir::{PINNED, set_modified},
    request::PackageSet,
};

const HOUR: Duration = Duration::from_secs(60 * 60);
const LIMITS: Limits = Limits { max_bytes: 1 << 20, max_age: Duration::from_secs(30 * 24 * 60 * 60) };

/// What a layer takes here: some blocks.
const LAYER_BYTES: usize = 64 << 10;

/// Parts of a layer with one package, such as `idna==3.10`.
pub(crate) fn parts(package: &str) -> LayerParts {
    let set = PackageSet::of(Language::Python, &[package.to_owned()], false).expect("its form is right");
    LayerParts { format: FORMAT, root: Digest::of(b"root"), set: set.expect("there is one"), index: None }
}

/// Makes the layer of `parts` and returns its key.
pub(crate) fn publish(store: &Store, parts: &LayerParts) -> LayerKey {
    let draft = store.begin(parts).expect("the store works").expect("nobody else makes it");
    fill(&draft);
    draft.publish(vec!["idna 3.10".into()]).expect("the store works");
    parts.key()
}

fn fill(draft: &Draft) {
    fs::write(draft.path(), vec![7; LAYER_BYTES]).expect("there is room");
    // Until then blocks are only promised.
    File::open(draft.path()).and_then(|file| file.sync_all()).expect("it is a file");
}

fn temporary() -> TempDir {
    tempfile::tempdir().expect("a temporary directory")
}

fn store(dir: &TempDir) -> Store {
    Store::at(dir.path().join("layers"), LIMITS)
}

fn find(store: &Store, parts: &LayerParts) -> Option<Arc<Layer>> {
    store.find(parts).expect("the store works")
}

/// Has the layer of `parts` used so many `hours` ago.
pub(crate) fn used(store: &Store, parts: &LayerParts, hours: u32) {
    let file = store.layer_dir(parts.key()).join(USED);
    set_modified(&file, SystemTime::now() - hours * HOUR).expect("it is ours");
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        entries(dir).iter().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn what_is_published_is_found_by_its_parts_and_by_no_others() {
    let dir = temporary();
    assert!(find(&store(&dir), &parts("idna==3.10")).is_none());
    publish(&store(&dir), &parts("idna==3.10"));
    let found = find(&store(&dir), &parts("idna==3.10")).expect("it is there");
    assert_eq!(found.digest(), Digest::of(&[7; LAYER_BYTES]));
    assert!(find(&store(&dir), &parts("idna==3.9")).is_none());
    let elsewhere = LayerParts { index: Some("https://a.example".into()), ..parts("idna==3.10") };
    assert!(find(&store(&dir), &elsewhere).is_none());
}

#[test]
fn what_is_damaged_is_not_used_and_goes() {
    type Damaging = fn(&Path);
    let ways: [(&str, Damaging); 4] = [
        ("another content", |layer| {
            fs::set_permissions(layer.join(LAYER), Permissions::from_mode(0o600)).expect("it is ours");
            let file = File::options().write(true).open(layer.join(LAYER)).expect("it is ours");
            file.write_all_at(b"x", 0).expect("there is room");
        }),
        ("a shorter one", |layer| {
            fs::set_permissions(layer.join(LAYER), Permissions::from_mode(0o600)).expect("it is ours");
            File::options().write(true).open(layer.join(LAYER)).and_then(|file| file.set_len(1)).expect("it is ours");
        }),
        ("no manifest", |layer| fs::remove_file(layer.join(MANIFEST)).expect("it is there")),
        ("another manifest", |layer| {
            let text = fs::read_to_string(layer.join(MANIFEST)).expect("it is text").replace("3.10\"", "3.11\"");
            fs::remove_file(layer.join(MANIFEST)).expect("it is there");
            fs::write(layer.join(MANIFEST), text).expect("there is room");
        }),
    ];
    for (how, damage) in ways {
        let dir = temporary();
        let (store, parts) = (store(&dir), parts("idna==3.10"));
        publish(&store, &parts);
        let layer = store.layer_dir(parts.key());
        damage(&layer);
        assert!(find(&store, &parts).is_none(), "{how}");
        assert!(!layer.exists(), "{how}");
        publish(&store, &parts);
        assert!(find(&store, &parts).is_some(), "{how}: made anew");
    }
}

#[test]
fn one_makes_a_layer_and_one_who_gives_up_leaves_nothing() {
    let dir = temporary();
    let (store, parts) = (store(&dir), parts("idna==3.10"));
    let draft = store.begin(&parts).expect("the store works").expect("it is new");
    assert!(store.begin(&parts).expect("the store works").is_none(), "the same process");
    assert!(Store::at(store.dir.clone(), LIMITS).begin(&parts).expect("the store works").is_none(), "another one");
    drop(draft);
    assert_eq!(names(&store.drafts_dir()), [""; 0]);
    publish(&store, &parts);
}

#[test]
fn over_the_size_what_was_not_used_for_longest_goes_but_what_is_pinned_stays() {
    let dir = temporary();
    let store = Store { limits: Limits { max_bytes: 180 << 10, ..LIMITS }, ..store(&dir) };
    let all = ["a==1", "b==1", "c==1", "d==1"].map(parts);
    for (parts, hours) in all.iter().zip([5, 4, 3, 2]) {
        publish(&store, parts);
        used(&store, parts, hours);
    }
    fs::write(store.layer_dir(all[0].key()).join(PINNED), "").expect("there is room");
    store.tidy();
    let kept: Vec<bool> = all.iter().map(|parts| store.layer_dir(parts.key()).exists()).collect();
    assert_eq!(kept, [true, false, false, true]);
    assert_eq!(names(&store.trash_dir()), [""; 0]);
}

#[test]
fn what_was_not_used_for_too_long_goes_and_what_is_open_lives_on() {
    let dir = temporary();
    let (store, parts) = (store(&dir), parts("a==1"));
    publish(&store, &parts);
    let layer = find(&store, &parts).expect("it is there");
    used(&store, &parts, 31 * 24);
    store.tidy();
    assert!(find(&store, &parts).is_none());
    let (digest, _) = Digest::of_reader(File::from(layer.open().expect("it is open"))).expect("it can be read");
    assert_eq!(digest, layer.digest());
}

#[test]
fn drafts_of_those_who_are_gone_go_and_those_of_others_stay() {
    let dir = temporary();
    let store = store(&dir);
    let (own, left) = (parts("a==1"), parts("b==1"));
    let draft = store.begin(&own).expect("the store works").expect("it is new");
    fs::create_dir(store.drafts_dir().join(format!("{}.x", left.key()))).expect("it is new");
    fs::create_dir(store.drafts_dir().join("README")).expect("it is new");
    store.tidy();
    assert_eq!(names(&store.drafts_dir()).len(), 2, "its own, and what is no draft");
    assert!(draft.dir.exists());
}

#[test]
fn a_layer_tells_what_it_is_without_being_read() {
    let dir = temporary();
    let (store, other) = (store(&dir), parts("idna==3.9").key());
    let key = publish(&store, &parts("idna==3.10"));
    let path = store.layer_dir(key);
    let told = Store::describe(&path, key).expect("it is whole");
    assert_eq!((told.parts, told.installed), (parts("idna==3.10"), vec!["idna 3.10".to_owned()]));
    assert_eq!(Store::describe(&path, other), Err("its manifest is of another layer".into()));
    fs::remove_file(path.join(LAYER)).expect("it is there");
    assert_eq!(Store::describe(&path, key), Err("layer is missing".into()));
}
