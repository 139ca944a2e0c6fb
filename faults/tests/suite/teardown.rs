//! A QEMU that does not want to end.

use std::time::{Duration, Instant};

use crate::{
    leftovers,
    world::{World, eventually, faulty, serves},
};

/// Far more than a teardown that waits for nobody takes, and less than one that waits for ever.
const BOUNDED: Duration = Duration::from_secs(20);

/// Runs a scene that never ends, leaves it when `ready` says so, and proves that it is ended all the same.
async fn abandoned(steps: &[&str], ready: impl AsyncFn(&World)) {
    let world = World::playing(steps);
    let scheduler = world.scheduler().await;
    serves(&scheduler).await;
    let before = leftovers::descriptors();
    tokio::select! {
        result = scheduler.run(faulty()) => panic!("it never ends: {result:?}"),
        () = ready(&world) => {}
    }
    world.becomes_empty().await;
    serves(&scheduler).await;
    world.end(&scheduler, &before).await;
}

async fn stopped(world: &World) {
    world.process(|process| process.state == 'T').await;
}

#[tokio::test]
async fn a_qemu_that_ignores_sigterm_is_ended() {
    let steps = ["ignore-term", "greet", "accept", "hello", "await-exec", "signal 15", "signal 19"];
    // It stops after the signal that it is to ignore, so that one who stops has ignored it.
    abandoned(&steps, stopped).await;
}

#[tokio::test]
async fn a_qemu_that_is_stopped_is_ended() {
    for steps in [&["signal 19"][..], &["greet", "accept", "hello", "await-exec", "signal 19"]] {
        abandoned(steps, stopped).await;
    }
}

#[tokio::test]
async fn a_process_that_keeps_qemus_streams_does_not_hold_up_the_teardown() {
    for ending in ["done", "exit 3"] {
        let world = World::playing(&["greet", "accept", "hello", "await-exec", "grandchild", ending]);
        let scheduler = world.scheduler().await;
        serves(&scheduler).await;
        let before = leftovers::descriptors();
        let begun = Instant::now();
        let result = scheduler.run(faulty()).await;
        assert_eq!(result.is_ok(), ending == "done", "{result:?}");
        assert!(begun.elapsed() < BOUNDED, "{:?}", begun.elapsed());
        let own = i32::try_from(std::process::id()).expect("ids are small");
        for grandchild in world.processes() {
            assert_ne!(grandchild.parent, own, "QEMU is dead and reaped");
            grandchild.kill();
        }
        eventually("its end", || world.processes().is_empty().then_some(())).await;
        serves(&scheduler).await;
        world.end(&scheduler, &before).await;
    }
}
