//! What one cache has been offered, another fetches.

use std::{fs, io::Read as _, time::Duration};

use exec_sandbox_remote::{EntryName, Fetch, MAX_FACTS_BYTES, Offer, Offered, Wanted};

use crate::{
    server::READER,
    shelf::{FACTS, Shelf, entry, fetch, file, is_hit, names, noise, offer, sparse, taken},
};

const MIB: u64 = 1 << 20;

#[tokio::test]
async fn a_layer_comes_back_as_it_was_offered() {
    for shelf in Shelf::both().await {
        // Three parts, of which the last is short.
        let layer = noise(1, 11 * 1024 * 1024 + 7);
        let name = EntryName::new("layer", &"a".repeat(64)).unwrap();
        shelf.fill(&name, &[("0.erofs", &layer)]).await;

        let (remote, into) = (shelf.open(), tempfile::tempdir().unwrap());
        let Ok(Fetch::Hit(fetched)) = fetch(&remote, &name, &["0.erofs"], into.path()).await else { panic!("a hit") };
        assert_eq!(fetched.facts, FACTS);
        assert_eq!((fetched.files[0].name.as_str(), fetched.files[0].plain_bytes), ("0.erofs", layer.len() as u64));
        assert!(fs::read(into.path().join("0.erofs")).unwrap() == layer);
        assert_eq!(names(into.path()), ["0.erofs"]);
        let report = remote.report();
        assert_eq!((report.hits, report.misses, report.bytes_fetched), (1, 0, fetched.files[0].stored_bytes));
    }
}

#[tokio::test]
async fn holes_stay_holes_and_zeros_become_some() {
    for shelf in Shelf::both().await {
        let length = 64 * MIB + 5;
        let (head, middle) = (noise(1, 4096), noise(2, 9000));
        let zeros = vec![0; 3 << 20];
        let writes = [(0, &head[..]), (5 * MIB + 100, &middle), (20 * MIB, &zeros), (length - 1, b"x")];
        let mut ram = sparse(length, &writes);
        let name = entry(1);
        let files = vec![("ram".to_owned(), ram.try_clone().unwrap()), ("state".to_owned(), file(b"the state"))];
        let remote = shelf.open();
        assert_eq!(remote.offer(Offer::new(name.clone(), FACTS.into(), files).unwrap()), Offered::Queued);
        assert_eq!(remote.drain(Duration::from_secs(30)).await.given_up, []);
        assert!(remote.report().bytes_uploaded < MIB, "{:?}", remote.report());

        let (remote, into) = (shelf.open(), tempfile::tempdir().unwrap());
        assert!(is_hit(&fetch(&remote, &name, &["ram", "state"], into.path()).await));
        let mut plain = Vec::new();
        ram.read_to_end(&mut plain).unwrap();
        assert!(fs::read(into.path().join("ram")).unwrap() == plain);
        assert!(taken(&into.path().join("ram")) < MIB, "{} bytes on the disk", taken(&into.path().join("ram")));
        assert_eq!(fs::read(into.path().join("state")).unwrap(), b"the state");
    }
}

#[tokio::test]
async fn empty_files_files_of_zeros_and_equal_files_come_back() {
    for shelf in Shelf::both().await {
        let zeros = vec![0; 10_000];
        let files: [(&str, &[u8]); 4] = [("empty", b""), ("zeros", &zeros), ("one", b"same"), ("other", b"same")];
        shelf.fill(&entry(1), &files).await;
        let (remote, into) = (shelf.open(), tempfile::tempdir().unwrap());
        assert!(is_hit(&fetch(&remote, &entry(1), &["empty", "zeros", "one", "other"], into.path()).await));
        for (name, bytes) in files {
            assert!(fs::read(into.path().join(name)).unwrap() == bytes, "{name}");
        }
        assert_eq!(shelf.blobs().len(), 3, "what is equal is stored once");
    }
}

#[tokio::test]
async fn the_longest_facts_come_back_byte_for_byte() {
    for shelf in Shelf::both().await {
        let facts: String = "\u{1}\"\\é\n".chars().cycle().take(MAX_FACTS_BYTES / 2).collect();
        let remote = shelf.open();
        let offered = Offer::new(entry(1), facts.clone(), vec![("state".into(), file(b"s"))]).unwrap();
        assert_eq!(remote.offer(offered), Offered::Queued);
        assert_eq!(remote.drain(Duration::from_secs(30)).await.given_up, []);
        let into = tempfile::tempdir().unwrap();
        let fetched = fetch(&shelf.open(), &entry(1), &["state"], into.path()).await;
        assert!(matches!(fetched, Ok(Fetch::Hit(fetched)) if fetched.facts == facts));
    }
}

#[tokio::test]
async fn what_nobody_has_offered_is_absent_and_leaves_nothing() {
    for shelf in Shelf::both().await {
        let (remote, into) = (shelf.open(), tempfile::tempdir().unwrap());
        assert!(matches!(fetch(&remote, &entry(1), &["state"], into.path()).await, Ok(Fetch::Absent)));
        shelf.fill(&entry(2), &[("state", b"s")]).await;
        assert!(matches!(fetch(&remote, &entry(1), &["state"], into.path()).await, Ok(Fetch::Absent)));
        assert!(names(into.path()).is_empty());
        assert_eq!((remote.report().misses, remote.report().hits), (2, 0));
    }
}

#[tokio::test]
async fn what_is_there_is_not_sent_again() {
    for shelf in Shelf::both().await {
        let state = noise(1, 100_000);
        shelf.fill(&entry(1), &[("state", &state)]).await;
        let remote = shelf.open();
        assert_eq!(remote.offer(offer(&entry(1), &[("state", &state)])), Offered::Queued);
        // The same content under another name: the blob is there, the manifest is not.
        assert_eq!(remote.offer(offer(&entry(2), &[("state", &state)])), Offered::Queued);
        assert_eq!(remote.drain(Duration::from_secs(30)).await.given_up, []);
        let report = remote.report();
        assert_eq!((report.already_there, report.uploads, report.bytes_uploaded), (1, 1, 0));
        let into = tempfile::tempdir().unwrap();
        assert!(is_hit(&fetch(&shelf.open(), &entry(2), &["state"], into.path()).await));
    }
}

#[tokio::test]
async fn a_file_that_is_in_the_way_is_left_alone() {
    for shelf in Shelf::both().await {
        shelf.fill(&entry(1), &[("a", b"new"), ("b", b"new")]).await;
        let (remote, into) = (shelf.open(), tempfile::tempdir().unwrap());
        fs::write(into.path().join("b"), "mine").unwrap();
        let error = fetch(&remote, &entry(1), &["a", "b"], into.path()).await.unwrap_err();
        assert!(matches!(error, exec_sandbox_remote::FetchError::Local { .. }), "{error:?}");
        assert_eq!(names(into.path()), ["b"], "what was made before is gone");
        assert_eq!(fs::read(into.path().join("b")).unwrap(), b"mine");
        assert!(!remote.report().fetches_rest, "the store is not at fault");
    }
}

#[tokio::test]
async fn who_may_only_read_reads_though_uploads_are_denied() {
    let mut shelf = Shelf::bucket().await;
    shelf.fill(&entry(1), &[("state", b"s")]).await;
    shelf.access_key = READER;
    let (remote, into) = (shelf.open(), tempfile::tempdir().unwrap());
    assert_eq!(remote.offer(offer(&entry(2), &[("state", b"t")])), Offered::Queued);
    assert_eq!(remote.drain(Duration::from_secs(30)).await.given_up, []);
    let report = remote.report();
    assert_eq!((report.uploads, report.uploads_failed, report.uploads_rest), (0, 1, true));
    assert!(is_hit(&fetch(&remote, &entry(1), &["state"], into.path()).await));
    assert!(!remote.report().fetches_rest);
}

#[tokio::test]
async fn a_bucket_without_a_prefix_works_too() {
    let mut shelf = Shelf::bucket().await;
    shelf.bucket_mut().prefix = String::new();
    shelf.fill(&entry(1), &[("state", b"s")]).await;
    let (server, _) = shelf.bucket.as_ref().unwrap();
    assert!(server.objects("").join(format!("{}.json", entry(1))).is_file());
    let (remote, into) = (shelf.open(), tempfile::tempdir().unwrap());
    assert!(is_hit(&fetch(&remote, &entry(1), &["state"], into.path()).await));
}

#[tokio::test]
async fn the_limit_of_a_fetch_counts_all_files_and_is_exact() {
    for shelf in Shelf::both().await {
        shelf.fill(&entry(1), &[("a", b"12345"), ("b", b"678")]).await;
        let (remote, into) = (shelf.open(), tempfile::tempdir().unwrap());
        let name = entry(1);
        let wanted = |most_plain_bytes| Wanted { name: &name, files: &["a", "b"], most_plain_bytes };
        assert!(remote.fetch(&wanted(7), into.path()).await.is_err());
        assert!(names(into.path()).is_empty());
        assert_eq!(remote.report().bytes_fetched, 0, "nothing was downloaded");
        assert!(is_hit(&remote.fetch(&wanted(8), into.path()).await));
    }
}
