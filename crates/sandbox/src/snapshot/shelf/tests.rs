//! What is offered, waited for, and taken away.

use std::{io, task::Poll, time::SystemTime};

use super::{
    super::{USED, tests},
    *,
};
use crate::cache_dir::set_modified;

const REST: Duration = Duration::from_secs(600);

fn shelf(dir: &tempfile::TempDir) -> Arc<Shelf> {
    let store = tests::store(dir);
    let memories = store.memories().expect("there is room");
    Arc::new(Shelf::new(store, memories, tests::parts("1"), REST))
}

/// A machine as the parts of the tests have it.
fn want() -> Want {
    let parts = tests::parts("1");
    Want {
        machine: parts.machine,
        memory_mib: parts.memory_mib,
        language: Language::Python,
        packages: Vec::new(),
        layer: None,
        is_preloaded: false,
    }
}

async fn donation(shelf: &Arc<Shelf>) -> (Draft, Coming) {
    match shelf.offer(&want()).await {
        Offer::Donation(donation) => donation.into_parts(),
        other => panic!("{other:?}"),
    }
}

/// Whether somebody who asks now has to wait.
async fn waits(shelf: &Arc<Shelf>) -> bool {
    let want = want();
    let mut offer = std::pin::pin!(shelf.offer(&want));
    std::future::poll_fn(|context| Poll::Ready(offer.as_mut().poll(context).is_pending())).await
}

#[tokio::test]
async fn whoever_wants_what_is_being_made_waits_and_is_given_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let shelf = shelf(&dir);
    let (draft, place) = donation(&shelf).await;
    assert!(waits(&shelf).await);
    tests::fill(&draft);
    place.publish(draft);
    assert!(matches!(shelf.offer(&want()).await, Offer::Template(_)), "it is there before it is written down");
    shelf.settle().await;
    let other = self::shelf(&dir);
    assert!(matches!(other.offer(&want()).await, Offer::Template(_)), "another process finds it");
}

#[tokio::test]
async fn a_donation_that_is_dropped_is_the_next_ones_and_one_that_failed_is_nobodys_for_a_while() {
    let dir = tempfile::tempdir().expect("a directory");
    let shelf = shelf(&dir);
    let donated = donation(&shelf).await;
    drop(donated);
    let (draft, place) = donation(&shelf).await;
    drop(draft);
    place.give_up();
    assert!(matches!(shelf.offer(&want()).await, Offer::Nothing));
}

#[tokio::test]
async fn who_waits_for_a_guest_that_does_not_boot_does_without_and_does_not_try_in_turn() {
    let dir = tempfile::tempdir().expect("a directory");
    let shelf = shelf(&dir);
    let (draft, place) = donation(&shelf).await;
    let want = want();
    let fails = async {
        assert!(waits(&shelf).await);
        drop(draft);
        place.step_back();
    };
    let (first, second, ()) = tokio::join!(shelf.offer(&want), shelf.offer(&want), fails);
    assert!(matches!((&first, &second), (Offer::Nothing, Offer::Nothing)), "{first:?} {second:?}");
    tokio::time::pause();
    tokio::time::advance(AFTER_A_FAILURE).await;
    tokio::time::resume();
    donation(&shelf).await;
}

#[tokio::test]
async fn a_snapshot_whose_copies_fail_is_made_anew_once() {
    let dir = tempfile::tempdir().expect("a directory");
    let shelf = shelf(&dir);
    for _ in 0..2 {
        let (draft, place) = donation(&shelf).await;
        tests::fill(&draft);
        place.publish(draft);
        let Offer::Template(template) = shelf.offer(&want()).await else { panic!("it is there") };
        shelf.condemn(&template, &io::Error::other("no answer")).await;
    }
    assert!(matches!(shelf.offer(&want()).await, Offer::Nothing));
    shelf.settle().await;
}

/// A snapshot that was made, and is offered.
async fn made(shelf: &Arc<Shelf>) -> Arc<Template> {
    let (draft, place) = donation(shelf).await;
    tests::fill(&draft);
    place.publish(draft);
    offered(shelf).await
}

async fn offered(shelf: &Arc<Shelf>) -> Arc<Template> {
    let Offer::Template(template) = shelf.offer(&want()).await else { panic!("it is there") };
    template
}

#[tokio::test]
async fn what_was_evicted_while_it_is_in_hand_is_made_anew_and_is_nobodys_fault() {
    let dir = tempfile::tempdir().expect("a directory");
    let shelf = shelf(&dir);
    let first = made(&shelf).await;
    shelf.settle().await;
    fs::remove_dir_all(shelf.store.template_dir(first.key())).expect("it is ours");
    assert!(offered(&shelf).await.is_same(&first), "its memory is there until somebody tidies");
    shelf.store.tidy();
    assert!(!made(&shelf).await.is_same(&first));
    assert!(!shelf.was_condemned(first.key()));
}

#[tokio::test]
async fn what_is_gone_is_let_go_when_another_is_looked_for() {
    let dir = tempfile::tempdir().expect("a directory");
    let shelf = shelf(&dir);
    let first = Arc::downgrade(&made(&shelf).await);
    shelf.settle().await;
    fs::remove_dir_all(shelf.store.template_dir(shelf.parts(&want()).key())).expect("it is ours");
    shelf.store.tidy();
    assert!(first.upgrade().is_some());
    shelf.offer(&Want { memory_mib: 2, ..want() }).await;
    assert!(first.upgrade().is_none());
}

#[tokio::test]
async fn two_copies_that_fail_at_once_are_one_failure() {
    let dir = tempfile::tempdir().expect("a directory");
    let shelf = shelf(&dir);
    let first = made(&shelf).await;
    for _ in 0..2 {
        shelf.condemn(&first, &io::Error::other("no answer")).await;
    }
    let second = made(&shelf).await;
    shelf.condemn(&first, &io::Error::other("no answer, late")).await;
    assert!(offered(&shelf).await.is_same(&second), "what came in its place stays");
    shelf.settle().await;
    let other = self::shelf(&dir);
    assert!(offered(&other).await.is_same(&second), "on the disk as well");
}

#[tokio::test]
async fn what_is_in_hand_is_used_whenever_it_is_offered() {
    let dir = tempfile::tempdir().expect("a directory");
    let shelf = shelf(&dir);
    let template = made(&shelf).await;
    shelf.settle().await;
    let used = shelf.store.template_dir(template.key()).join(USED);
    let long_ago = SystemTime::now() - Duration::from_secs(2 * 24 * 60 * 60);
    set_modified(&used, long_ago).expect("it is ours");
    offered(&shelf).await;
    let noted = fs::metadata(&used).and_then(|used| used.modified()).expect("it is there");
    assert!(noted > long_ago);
}

#[tokio::test]
async fn where_the_directories_were_removed_nothing_is_offered_nor_made() {
    let dir = tempfile::tempdir().expect("a directory");
    let shelf = shelf(&dir);
    made(&shelf).await;
    shelf.settle().await;
    fs::remove_dir_all(shelf.store.dir()).expect("it is ours");
    assert!(matches!(shelf.offer(&want()).await, Offer::Nothing));
    let again = self::shelf(&dir);
    assert!(matches!(shelf.offer(&want()).await, Offer::Nothing), "others have made them again");
    made(&again).await;
    again.settle().await;
}

#[tokio::test]
async fn what_cannot_be_looked_for_is_not_looked_for_by_every_vm() {
    let dir = tempfile::tempdir().expect("a directory");
    let shelf = shelf(&dir);
    let locks = shelf.store.locks_dir();
    fs::write(&locks, "").expect("there is room");
    assert!(matches!(shelf.offer(&want()).await, Offer::Nothing));
    fs::remove_file(&locks).expect("it is ours");
    assert!(matches!(shelf.offer(&want()).await, Offer::Nothing));
}

#[tokio::test]
async fn only_so_many_are_in_hand() {
    let dir = tempfile::tempdir().expect("a directory");
    let shelf = shelf(&dir);
    let template = made(&shelf).await;
    for number in 0..cache_dir::MOST_IN_HAND + 2 {
        let mut places = shelf.places();
        cache_dir::make_place(&mut places, |place| matches!(place, Place::There(_)));
        places.insert(tests::parts(&number.to_string()).key(), Place::There(Arc::clone(&template)));
    }
    assert_eq!(shelf.places().len(), cache_dir::MOST_IN_HAND);
    shelf.settle().await;
}
