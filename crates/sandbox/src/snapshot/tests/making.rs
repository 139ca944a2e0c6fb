//! Several who make the same snapshot, makers that die, and disks that are full.

use std::thread;

use super::*;
use crate::maker::tests::{fork, fork_idler, is_well, limit_files};

fn begin(store: &Store, parts: &Parts) -> Option<Draft> {
    store.begin(parts).expect("the store works")
}

#[test]
fn one_makes_a_snapshot_at_a_time_in_whatever_process() {
    let dir = temporary();
    let store = store(&dir);
    let draft = begin(&store, &parts("1")).expect("it is new");
    assert!(begin(&store, &parts("1")).is_none(), "another task");
    assert!(begin(&super::store(&dir), &parts("1")).is_none(), "another scheduler of this process");
    assert!(is_well(fork(|| begin(&super::store(&dir), &parts("1")).is_none())), "another process");
    assert_eq!(
        begin(&store, &parts("2")).expect("it is another snapshot").template().expect("it is there").key(),
        parts("2").key()
    );
    drop(draft);
    assert_eq!(names(&store.drafts_dir()), [""; 0]);
    assert!(begin(&super::store(&dir), &parts("1")).is_some());
}

#[test]
fn what_has_just_been_published_is_not_begun_again() {
    let dir = temporary();
    publish(&store(&dir), &parts("1"));
    assert!(begin(&store(&dir), &parts("1")).is_none());
}

#[test]
fn of_many_who_want_a_snapshot_at_once_all_get_the_same() {
    let dir = temporary();
    let shared = store(&dir);
    let want = |store: Store| {
        loop {
            if let Some(template) = find(&store, &parts("1")) {
                break template.ram().metadata().expect("it is open").ino();
            }
            if let Some(draft) = begin(&store, &parts("1")) {
                fill(&draft);
                draft.publish().expect("the store works");
            }
            thread::yield_now();
        }
    };
    let found: HashSet<u64> = thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|number| if number % 2 == 0 { shared.clone() } else { store(&dir) })
            .map(|store| scope.spawn(|| want(store)))
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("nobody panicked")).collect()
    });
    assert_eq!(found.len(), 1);
    assert_eq!(names(&shared.drafts_dir()), [""; 0]);
    assert_eq!(names(&shared.quarantine_dir()), [""; 0]);
}

#[test]
fn of_two_that_are_published_the_first_stays() {
    let (dir, elsewhere) = (temporary(), temporary());
    let (ours, theirs) = (store(&dir), store(&elsewhere));
    let draft = begin(&ours, &parts("1")).expect("it is new");
    fill(&draft);
    let first = publish(&theirs, &parts("1"));
    let key = parts("1").key();
    fs::rename(theirs.template_dir(key), ours.template_dir(key)).expect("the name is free");
    let second = draft.publish().expect("there is one");
    let ino = |template: &Template| template.ram().metadata().expect("it is open").ino();
    assert_eq!(ino(&first), ino(&second));
    assert_eq!(names(&ours.drafts_dir()), [""; 0]);
}

#[test]
fn what_is_damaged_makes_room_for_what_is_published() {
    let dir = temporary();
    let store = store(&dir);
    let draft = begin(&store, &parts("1")).expect("it is new");
    fill(&draft);
    let place = store.template_dir(parts("1").key());
    fs::create_dir(&place).expect("the name is free");
    fs::write(place.join(MANIFEST), "{}").expect("it is ours");
    check(&draft.publish().expect("the store works"));
    check(&find(&store, &parts("1")).expect("it is there"));
    assert_eq!(names(&store.quarantine_dir()).len(), 1);
}

#[test]
fn a_draft_of_a_maker_that_was_killed_is_removed_and_another_may_begin() {
    for tidied in [true, false] {
        let dir = temporary();
        let store = store(&dir);
        let maker = fork(|| {
            std::mem::forget(begin(&super::store(&dir), &parts("1")));
            true
        });
        assert!(is_well(maker));
        assert_eq!(names(&store.drafts_dir()).len(), 1);
        if tidied {
            assert_eq!(store.tidy().drafts, 1);
            assert_eq!(names(&store.drafts_dir()), [""; 0]);
        }
        publish(&store, &parts("1"));
        assert_eq!(names(&store.drafts_dir()), [""; 0]);
        check(&find(&store, &parts("1")).expect("it is there"));
    }
}

#[test]
fn a_draft_that_is_being_made_is_not_tidied_away() {
    let dir = temporary();
    let store = store(&dir);
    let draft = begin(&store, &parts("1")).expect("it is new");
    fill(&draft);
    assert_eq!((store.tidy().drafts, super::store(&dir).tidy().drafts), (0, 0));
    assert!(is_well(fork(|| super::store(&dir).tidy().drafts == 0)));
    check(&draft.publish().expect("it is whole"));
}

#[test]
fn the_lock_of_a_maker_that_is_gone_is_free_though_one_that_it_forked_lives() {
    let dir = temporary();
    let (life, end) = io::pipe().expect("there are descriptors");
    let mut life = (life, Some(end));
    let maker = fork(|| {
        let draft = begin(&store(&dir), &parts("1"));
        fork_idler(&mut life);
        std::mem::forget(draft);
        true
    });
    assert!(is_well(maker));
    publish(&store(&dir), &parts("1"));
    check(&find(&store(&dir), &parts("1")).expect("it is there"));
    drop(life);
}

#[test]
fn a_forked_process_leaves_the_draft_to_its_maker() {
    let dir = temporary();
    let store = store(&dir);
    let mut draft = begin(&store, &parts("1"));
    fill(draft.as_ref().expect("it is new"));
    assert!(is_well(fork(|| {
        drop(draft.take());
        true
    })));
    assert!(begin(&super::store(&dir), &parts("1")).is_none());
    check(&draft.expect("it is this process's").publish().expect("it is whole"));
}

#[test]
fn a_snapshot_for_which_there_is_no_room_is_not_begun() {
    let dir = temporary();
    let error = store(&dir).begin(&Parts { memory_mib: u32::MAX, ..parts("1") }).expect_err("it has petabytes");
    assert!(matches!(error, StoreError::NoRoom { .. }), "{error}");
    assert!(error.to_string().contains("there is no room"), "{error}");
    assert!(begin(&store(&dir), &parts("1")).is_some(), "the lock is free");
}

#[test]
fn a_disk_that_is_full_leaves_nothing_half_made() {
    let dir = temporary();
    let begun = fork(|| {
        let draft = begin(&store(&dir), &parts("1")).expect("it is new");
        fill(&draft);
        limit_files(512);
        let failed = draft.publish().expect_err("the manifest has more bytes");
        let is_said = failed.to_string().starts_with("cannot write") && failed.to_string().contains(MANIFEST);
        let again = store(&dir).begin(&parts("1")).expect_err("the memory has more bytes");
        is_said && again.to_string().starts_with("cannot size")
    });
    assert!(is_well(begun));
    assert!(find(&store(&dir), &parts("1")).is_none());
    assert_eq!(names(&store(&dir).drafts_dir()), [""; 0]);
    publish(&store(&dir), &parts("1"));
}

#[test]
fn a_draft_without_state_or_with_less_memory_is_not_published() {
    let dir = temporary();
    let draft = begin(&store(&dir), &parts("1")).expect("it is new");
    let error = draft.publish().expect_err("no state was written");
    assert!(matches!(error, StoreError::NoState { .. }), "{error}");
    let draft = begin(&store(&dir), &parts("1")).expect("it is new");
    fill(&draft);
    draft.ram().set_len(4096).expect("it is ours");
    let error = draft.publish().expect_err("it became shorter");
    assert!(matches!(error, StoreError::WrongLength { found_bytes: 4096, .. }), "{error}");
    assert_eq!(names(&store(&dir).drafts_dir()), [""; 0]);
}
