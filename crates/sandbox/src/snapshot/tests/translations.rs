//! Translations, which a snapshot may have and may lack.

use super::*;
use crate::{
    maker::tests::{fork, is_well, limit_files},
    snapshot::fill::MAX_TRANSLATIONS_BYTES,
};

fn begin(store: &Store) -> Draft {
    store.begin(&parts("1")).expect("the store works").expect("it is new")
}

/// Panics unless a process that has just started finds the snapshot, which has no translations.
fn check_untranslated(dir: &TempDir) {
    let found = find(&store(dir), &parts("1")).expect("it is there");
    check(&found);
    assert_eq!(found.translations_name().expect("it is open"), None);
    assert_eq!(names(&store(dir).quarantine_dir()), [""; 0]);
}

#[test]
fn translations_are_found_by_another_store_with_the_bytes_that_count() {
    let dir = temporary();
    let made = publish_translated(&store(&dir), &parts("1"));
    let found = find(&store(&dir), &parts("1")).expect("it is there");
    check_translated(&store(&dir), &found);
    let name = |template: &Template| template.translations_name().expect("it is open");
    assert_eq!(name(&found), name(&made));
    assert_ne!(name(&found), found.memory_name().ok(), "memory has a name of its own");
    fs::remove_file(store(&dir).template_dir(parts("1").key()).join(VERIFIED)).expect("it is there");
    check_translated(&store(&dir), &find(&store(&dir), &parts("1")).expect("it is read again"));
}

#[test]
fn a_snapshot_without_translations_is_whole_whatever_lies_there_under_their_name() {
    let dir = temporary();
    let draft = save(begin(&store(&dir)), None).expect("there is room");
    draft.publish().expect("the store works");
    check_untranslated(&dir);
    let snapshot = store(&dir).template_dir(parts("1").key());
    assert!(!snapshot.join(TRANSLATIONS).exists());
    fs::write(snapshot.join(TRANSLATIONS), "code of nobody knows whom").expect("the name is free");
    check_untranslated(&dir);
}

#[test]
fn translations_that_cannot_be_copied_or_are_none_are_left_out_and_the_snapshot_is_whole() {
    let unreadable = tempfile::NamedTempFile::new().expect("a file");
    unreadable.as_file().write_all_at(&[1; 4096], 0).expect("there is room");
    let unreadable = File::options().write(true).open(unreadable.path()).expect("it is there");
    let short = tempfile::tempfile().expect("a file");
    short.write_all_at(&[1; 4095], 0).expect("there is room");
    let (_reader, pipe) = io::pipe().expect("there are descriptors");
    let pipe = File::from(std::os::fd::OwnedFd::from(pipe));
    for (file, length) in [(&unreadable, 4096), (&short, 4096), (&short, 0), (&pipe, 4096)] {
        let dir = temporary();
        let store = store(&dir);
        let draft = save(begin(&store), Some((file, length))).expect("it is whole");
        assert_eq!(draft.template().expect("it is there").translations_name().expect("it is open"), None);
        draft.publish().expect("the store works");
        check_untranslated(&dir);
        assert!(!store.template_dir(parts("1").key()).join(TRANSLATIONS).exists());
        assert_eq!(names(&store.memories_dir()).len(), 1);
    }
}

#[test]
fn translations_for_which_there_is_no_room_are_left_out() {
    let dir = temporary();
    let made = fork(|| {
        let file = tempfile::tempfile().expect("a file");
        file.set_len(2 << 20).expect("there is room");
        limit_files(1 << 20);
        let saved = save(begin(&store(&dir)), Some((&file, 2 << 20)));
        saved.expect("it is whole").publish().is_ok()
    });
    assert!(is_well(made));
    check_untranslated(&dir);
    assert!(!store(&dir).template_dir(parts("1").key()).join(TRANSLATIONS).exists());
}

#[test]
fn more_translations_than_a_snapshot_may_have_are_refused() {
    let dir = temporary();
    let file = tempfile::tempfile().expect("a file");
    file.set_len(MAX_TRANSLATIONS_BYTES + 1).expect("it has holes");
    let save = |length| save(begin(&store(&dir)), Some((&file, length)));
    let refused = save(MAX_TRANSLATIONS_BYTES + 1).expect_err("it is one too many");
    assert_eq!(refused.kind(), io::ErrorKind::InvalidInput);
    assert!(refused.to_string().contains("268435457 bytes are over the limit of 268435456"), "{refused}");
    let template = save(MAX_TRANSLATIONS_BYTES).expect("they are as many as may be").template().expect("it is there");
    let length = template.translations_file().map(|file| file.metadata().expect("it is open").len());
    assert_eq!(length, Some(MAX_TRANSLATIONS_BYTES));
    assert!(template.allocated_bytes().expect("it is open") < 1 << 20, "zeros take no room");
}

/// What another machine has made, in the draft's directory for it.
fn incoming(draft: &Draft) -> TempDir {
    let incoming = draft.incoming().expect("there is room");
    let write = |name, all: &[(u64, &[u8])]| {
        let file = File::create_new(incoming.path().join(name)).expect("it is new");
        all.iter().for_each(|(at, piece)| file.write_all_at(piece, *at).expect("there is room"));
    };
    write(RAM, &PIECES);
    write(STATE, &[(0, b"devices")]);
    write(TRANSLATIONS, &TRANSLATED);
    incoming
}

#[test]
fn a_draft_that_has_a_part_of_what_another_machine_has_made_is_of_no_use() {
    let dir = temporary();
    let store = store(&dir);
    let mut draft = begin(&store);
    let incoming = incoming(&draft);
    let other_facts = serde_json::to_string(&parts("2")).expect("it is data");
    draft.adopt(incoming.path(), other_facts.as_bytes()).expect_err("it is another snapshot");
    assert!(!draft.is_taken(), "it is as it was");
    let state = store.drafts_dir().join(&names(&store.drafts_dir())[0]).join(STATE);
    fs::remove_file(&state).expect("it is there");
    fs::create_dir(&state).expect("the name is free");
    let facts = draft.facts().expect("it is data");
    draft.adopt(incoming.path(), facts.as_bytes()).expect_err("a file does not replace a directory");
    assert!(draft.is_taken());
}

#[test]
fn a_draft_is_in_hand_until_nobody_writes_there_any_more() {
    let dir = temporary();
    let store = store(&dir);
    let draft = begin(&store);
    let room = draft.room_for_translations();
    drop(draft);
    assert!(store.begin(&parts("1")).expect("the store works").is_none());
    assert!(room.copy(&translated(), TRANSLATED_BYTES).expect("they are few").is_some());
    drop(room);
    assert_eq!((names(&store.drafts_dir()), names(&store.memories_dir())), (Vec::new(), Vec::new()));
    begin(&store);
}

#[test]
fn what_another_machine_has_made_has_no_translations() {
    for had_some in [false, true] {
        let dir = temporary();
        let store = store(&dir);
        let mut draft = begin(&store);
        if had_some {
            draft = save_translated(draft);
        }
        let incoming = incoming(&draft);
        let facts = draft.facts().expect("it is data");
        let adopted = draft.adopt(incoming.path(), facts.as_bytes()).expect("it is what is wanted");
        drop(incoming);
        check(&adopted);
        assert_eq!(adopted.translations_name().expect("it is open"), None);
        assert!(draft.is_taken());
        draft.publish().expect("the store works");
        check_untranslated(&dir);
        assert!(!store.template_dir(parts("1").key()).join(TRANSLATIONS).exists());
        store.tidy();
        assert_eq!(names(&store.memories_dir()), [adopted.memory_name().expect("it is open")]);
    }
}

#[test]
fn translations_take_of_the_disk_what_they_are_counted_with_and_go_with_their_snapshot() {
    let dir = temporary();
    let store = Store { limits: Limits { max_bytes: 0, ..LIMITS }, ..store(&dir) };
    drop(save_translated(begin(&store)));
    assert_eq!(names(&store.memories_dir()), [""; 0], "it was not published");
    let file = tempfile::tempfile().expect("a file");
    file.write_all_at(&vec![7; 3 << 20], 0).expect("there is room");
    let draft = save(begin(&store), Some((&file, 3 << 20))).expect("there is room");
    let template = draft.publish().expect("the store works");
    // Until then blocks are only promised.
    template.translations_file().expect("it has some").sync_all().expect("it is a file");
    let candidates = store.candidates(SystemTime::now()).expect("the store works");
    assert!((3 << 20..4 << 20).contains(&candidates[0].bytes), "{candidates:?}");
    assert_eq!(names(&store.memories_dir()).len(), 2);
    assert_eq!(tidy::tidy(&store, SystemTime::now() + Duration::from_secs(3600)).evicted, 1);
    assert_eq!(names(&store.memories_dir()), [""; 0]);
}
