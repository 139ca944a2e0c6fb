//! What is offered is uploaded whole, once, in the background, or not at all.

use std::{fs, time::Duration};

use exec_sandbox_remote::{Drained, EntryName, Fetch, MOST_WAITING, Offer, Offered};

use crate::{
    proxy::Mode,
    shelf::{FACTS, Shelf, entry, fetch, is_hit, names, noise, offer, sparse},
};

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(30);

#[tokio::test]
async fn two_caches_that_upload_the_same_at_once_leave_one_whole_entry() {
    for shelf in Shelf::both().await {
        // Two parts.
        let ram = noise(1, 6 << 20);
        let caches = [shelf.open(), shelf.open()];
        for cache in &caches {
            assert_eq!(cache.offer(offer(&entry(1), &[("ram", &ram)])), Offered::Queued);
        }
        let drained = tokio::join!(caches[0].drain(PATIENCE), caches[1].drain(PATIENCE));
        assert_eq!(drained, (Drained::default(), Drained::default()));
        let reports = caches.each_ref().map(exec_sandbox_remote::Remote::report);
        for report in &reports {
            assert_eq!((report.uploads + report.already_there, report.uploads_failed), (1, 0), "{reports:?}");
        }
        let into = tempfile::tempdir().unwrap();
        assert!(is_hit(&fetch(&shelf.open(), &entry(1), &["ram"], into.path()).await));
        assert!(fs::read(into.path().join("ram")).unwrap() == ram);
        assert_eq!(shelf.blobs().len(), 1);
    }
}

#[tokio::test]
async fn an_upload_that_is_interrupted_leaves_no_entry_and_succeeds_later() {
    let shelf = Shelf::bucket().await;
    let ram = noise(1, 12 << 20);
    // In the only part of a small blob, in the first, second and last part of a large one.
    for (length, cut) in [(3 << 20, 1 << 20), (12 << 20, 2 << 20), (12 << 20, 8 << 20), (12 << 20, 12 << 20)] {
        shelf.proxy().set(Mode::CutUploadAfter(cut));
        let remote = shelf.open();
        assert_eq!(remote.offer(offer(&entry(1), &[("ram", &ram[..length])])), Offered::Queued);
        assert_eq!(remote.drain(PATIENCE).await.given_up, []);
        let report = remote.report();
        assert_eq!((report.uploads, report.uploads_failed, report.uploads_rest), (0, 1, true), "cut after {cut}");

        shelf.proxy().set(Mode::Pass);
        let (reader, into) = (shelf.open(), tempfile::tempdir().unwrap());
        assert!(matches!(fetch(&reader, &entry(1), &["ram"], into.path()).await, Ok(Fetch::Absent)));
        assert!(shelf.blobs().is_empty(), "cut after {cut}");
    }
    shelf.fill(&entry(1), &[("ram", &ram)]).await;
    let into = tempfile::tempdir().unwrap();
    assert!(is_hit(&fetch(&shelf.open(), &entry(1), &["ram"], into.path()).await));
}

#[tokio::test]
async fn an_upload_that_is_interrupted_between_blobs_and_manifest_leaves_blobs_that_are_used() {
    for shelf in Shelf::both().await {
        let ram = noise(1, 100_000);
        shelf.fill(&entry(1), &[("ram", &ram)]).await;
        fs::remove_file(shelf.manifest(&entry(1))).unwrap();
        let (remote, into) = (shelf.open(), tempfile::tempdir().unwrap());
        assert!(matches!(fetch(&remote, &entry(1), &["ram"], into.path()).await, Ok(Fetch::Absent)));
        assert_eq!(remote.offer(offer(&entry(1), &[("ram", &ram)])), Offered::Queued);
        assert_eq!(remote.drain(PATIENCE).await.given_up, []);
        assert_eq!((remote.report().uploads, remote.report().bytes_uploaded), (1, 0));
        assert!(
            is_hit(&fetch(&remote, &entry(1), &["ram"], into.path()).await),
            "and fetching goes on when it is closed"
        );
    }
}

#[tokio::test]
async fn a_full_queue_drops_what_is_offered_and_a_drain_names_what_it_gives_up() {
    let shelf = Shelf::bucket().await;
    shelf.proxy().set(Mode::Silent);
    let remote = shelf.open();
    // No task runs in between, so that nothing leaves the queue meanwhile.
    let offered: Vec<Offered> = (0..70).map(|number| remote.offer(offer(&entry(number), &[("state", b"s")]))).collect();
    let (queued, dropped) = offered.split_at(MOST_WAITING);
    assert!(queued.iter().all(|offered| *offered == Offered::Queued));
    assert!(dropped.iter().all(|offered| *offered == Offered::Full));
    assert_eq!(remote.report().dropped, 6);

    let drained = remote.drain(Duration::ZERO).await;
    let expected: Vec<EntryName> = (0..64).map(entry).collect();
    assert_eq!(drained.given_up, expected);
    assert_eq!(remote.report().given_up, 64);
    assert_eq!(remote.offer(offer(&entry(99), &[("state", b"s")])), Offered::Closed);
}

#[tokio::test]
async fn the_same_entry_is_not_queued_twice() {
    for shelf in Shelf::both().await {
        let remote = shelf.open();
        assert_eq!(remote.offer(offer(&entry(1), &[("state", b"s")])), Offered::Queued);
        assert_eq!(remote.offer(offer(&entry(1), &[("state", b"s")])), Offered::AlreadyQueued);
        assert_eq!(remote.drain(PATIENCE).await, Drained::default());
        assert_eq!(remote.report().uploads, 1);
    }
}

#[tokio::test]
async fn a_store_that_is_down_is_not_asked_for_each_upload() {
    let mut shelf = Shelf::bucket().await.with(|bounds| bounds.rest_ms = 600_000);
    shelf.proxy().set(Mode::Dead);
    shelf.config.uploads = 1;
    let remote = shelf.open();
    for number in 0..10 {
        assert_eq!(remote.offer(offer(&entry(number), &[("state", b"s")])), Offered::Queued);
    }
    assert_eq!(remote.drain(PATIENCE).await, Drained::default());
    let report = remote.report();
    assert_eq!((report.uploads_failed, report.dropped, report.uploads_rest), (1, 9, true));
    assert!(!report.fetches_rest, "fetches find out for themselves");
}

#[tokio::test]
async fn a_drain_in_the_middle_of_a_large_upload_takes_it_back() {
    let shelf = Shelf::bucket().await;
    let remote = shelf.open();
    shelf.proxy().set(Mode::StallAfter(2_000));
    assert_eq!(remote.offer(offer(&entry(1), &[("ram", &noise(1, 30 << 20))])), Offered::Queued);
    let drained = remote.drain(Duration::from_millis(500)).await;
    assert_eq!(drained.given_up, [entry(1)]);
    assert!(shelf.blobs().is_empty());
    assert!(!remote.report().uploads_rest, "the store is not at fault");
}

#[tokio::test]
async fn parts_of_an_upload_that_was_given_up_do_not_stay() {
    let shelf = Shelf::bucket().await.with(|bounds| bounds.part_ms = 600_000);
    let remote = shelf.open();
    let large = sparse(2 << 30, &[(0, &noise(1, 24 << 20))]);
    let offered = Offer::new(entry(1), FACTS.into(), vec![("ram".into(), large)]).unwrap();
    assert_eq!(remote.offer(offered), Offered::Queued);
    let (server, _) = shelf.bucket.as_ref().unwrap();
    let parts = || names(server.root()).iter().filter(|name| name.contains(".part-")).count();
    // One that is on its way when the others are taken back may come after that. So this waits until what is sent is there, and the
    // rest, which is nothing but zeros, is still being packed.
    let mut seen = 0;
    while seen == 0 || parts() != seen {
        seen = parts();
        tokio::time::sleep(Duration::from_millis(60)).await;
    }
    assert_eq!(remote.drain(Duration::ZERO).await.given_up, [entry(1)]);
    assert_eq!(parts(), 0, "{:?}", names(server.root()));
    assert!(shelf.blobs().is_empty());
}

#[tokio::test]
async fn a_file_that_changes_meanwhile_is_not_kept() {
    for shelf in Shelf::both().await {
        let remote = shelf.open();
        let file = crate::shelf::file(&noise(1, 40 << 20));
        let writer = file.try_clone().unwrap();
        let offered = Offer::new(entry(1), FACTS.into(), vec![("ram".into(), file)]).unwrap();
        assert_eq!(remote.offer(offered), Offered::Queued);
        // It never stops changing while it is read twice.
        let writing = async {
            for number in 0_u64.. {
                std::os::unix::fs::FileExt::write_all_at(&writer, &number.to_le_bytes(), (39 << 20) + 5).unwrap();
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let drained = tokio::select! {
            drained = remote.drain(PATIENCE) => drained,
            () = writing => unreachable!("it never ends"),
        };
        assert_eq!(drained, Drained::default());
        assert_eq!((remote.report().uploads, remote.report().uploads_failed), (0, 1));
        assert!(!remote.report().uploads_rest, "the store is not at fault");
        let into = tempfile::tempdir().unwrap();
        assert!(matches!(fetch(&shelf.open(), &entry(1), &["ram"], into.path()).await, Ok(Fetch::Absent)));
        assert!(shelf.blobs().is_empty());
    }
}
