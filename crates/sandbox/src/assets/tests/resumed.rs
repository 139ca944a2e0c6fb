//! Transfers that are cut, and go on where they were or begin again.

use super::*;

#[tokio::test]
async fn a_cut_connection_is_made_again_and_goes_on_where_it_was() {
    let mut world = World::new();
    let server = world.server().await;
    for answer in [Answer::CutAfter(100_000), Answer::Status(503), Answer::EndAfter(50_000)] {
        server.answer(&world.root_path(), answer);
    }
    let pulled = world.pull().await.expect("it is there in the end");
    world.assert_whole();
    let asked: Vec<_> = server.requests(&world.root_path()).iter().map(|request| request.from).collect();
    assert_eq!((asked.len(), asked[0]), (4, None), "{asked:?}");
    assert!(asked[3] > Some(0), "what came before the cut was kept: {asked:?}");
    assert!(server.sent_bytes(&world.root_path()) < 2 * ROOT_BYTES, "it did not begin again");
    assert_eq!(pulled.blobs[2].role, "root file system");
}

#[tokio::test]
async fn what_came_before_the_last_try_failed_serves_the_next_call() {
    let mut world = World::new();
    let server = world.server().await;
    server.answer(&world.root_path(), Answer::EndAfter(200_000)).answer(&world.root_path(), Answer::Status(404));
    let failed = world.pull().await.expect_err("it was cut, and then it was not there");
    assert_eq!(failed.kind(), ErrorKind::AssetDownload);
    world.assert_nothing();
    let kept = fs::metadata(world.partial()).expect("it was kept").len();
    assert_eq!(kept, 200_000);

    let pulled = world.pull().await.expect("it is there");
    world.assert_whole();
    assert_eq!(pulled.blobs[2].fetched_bytes, Some(ROOT_BYTES as u64 - kept), "the rest travelled, and no more");
    assert_eq!(server.requests(&world.root_path()).last().and_then(|request| request.from), Some(kept));
}

#[tokio::test]
async fn a_server_that_knows_no_ranges_begins_again_and_the_image_is_whole() {
    for answer in [Answer::Whole, Answer::OtherRange, Answer::Status(416)] {
        let mut world = World::new();
        let server = world.server().await;
        server.answer(&world.root_path(), Answer::EndAfter(1000)).answer(&world.root_path(), answer);
        world.pull().await.expect("it is there");
        world.assert_whole();
    }
}

#[tokio::test]
async fn a_partial_blob_that_is_wrong_is_thrown_away_and_fetched_anew_once() {
    for length in [1000, ROOT_BYTES, ROOT_BYTES + 1] {
        let mut world = World::new();
        let server = world.server().await;
        fs::create_dir_all(&world.settings.images_dir).expect("it can be made");
        fs::write(world.partial(), vec![0; length]).expect("it can be written");
        world.pull().await.expect("it is there");
        world.assert_whole();
        assert_eq!(server.requests(&world.root_path()).last().and_then(|request| request.from), None, "{length}");
    }
}
