//! A guest that does not come up, or comes up wrong. The program has not run, so every error is transient.

use std::time::Duration;

use exec_sandbox::{ErrorKind, Output, RunRequest, SchedulerConfig};
use tokio::sync::mpsc;

use crate::world::{World, failure_of, failure_under, faulty, serves};

/// Long enough for a fake in good order on a busy machine, and no longer than a test may take.
const BOOT_TIMEOUT: Duration = Duration::from_secs(3);

fn impatient(config: &mut SchedulerConfig) {
    config.boot_timeout = BOOT_TIMEOUT;
}

#[tokio::test]
async fn a_guest_that_never_answers_is_given_up_in_time() {
    for steps in [&["hang"][..], &["greet", "accept", "hang"], &["greet", "accept", "half-hello"]] {
        let failure = failure_under(impatient, steps).await;
        failure.is_transient(ErrorKind::BootTimeout, &["the agent did not answer within 3 s"]);
    }
}

#[tokio::test]
async fn a_guest_that_babbles_for_ever_and_never_answers_is_given_up_in_time() {
    let failure = failure_under(impatient, &["greet", "accept", "pongs forever"]).await;
    failure.is_transient(ErrorKind::BootTimeout, &["the agent did not answer within 3 s"]);
}

#[tokio::test]
async fn a_qemu_that_closes_the_agents_socket_and_lives_is_found_out() {
    // Whether the host had connected before it was closed is chance, and what it reads then depends on it.
    let failure = failure_of(&["greet", "close-listener", "hang"]).await;
    failure.is_transient(ErrorKind::Vm, &["booting a VM", "the agent's"]);
}

#[tokio::test]
async fn a_qemu_that_hangs_up_before_the_hello_and_lives_is_found_out() {
    for steps in [&["greet", "accept", "close-channel"][..], &["greet", "accept", "half-hello", "close-channel"]] {
        let failure = failure_of(steps).await;
        failure.is_transient(ErrorKind::Vm, &["waiting for the agent's hello", "QEMU closed the agent's channel"]);
    }
}

#[tokio::test]
async fn a_qemu_that_hangs_up_and_ends_is_told_by_its_end() {
    let failure = failure_of(&["greet", "accept", "close-channel", "say out of luck", "exit 3"]).await;
    failure.is_transient(ErrorKind::Vm, &["QEMU ended with code 3, saying: out of luck"]);
}

#[tokio::test]
async fn a_guest_of_another_generation_is_refused_with_both_numbers() {
    let failure = failure_of(&["greet", "accept", "hello 7"]).await;
    failure.is_final(ErrorKind::AssetDamaged, &["speaks generation 7 of the wire and this host speaks 1"]);
}

#[tokio::test]
async fn what_is_no_frame_ends_the_boot() {
    for step in ["garbage 4096", "huge-header"] {
        let failure = failure_of(&["greet", "accept", step]).await;
        failure.is_transient(ErrorKind::Vm, &["waiting for the agent's hello", "bytes is over the limit of 1048576"]);
    }
}

#[tokio::test]
async fn a_hello_that_cannot_be_read_ends_the_boot() {
    let failure = failure_of(&["greet", "accept", "bad-body"]).await;
    failure.is_transient(ErrorKind::Vm, &["reading the agent's messages", "cannot read the body of a HELLO frame"]);
}

#[tokio::test]
async fn a_guest_that_greets_and_dies_has_run_nothing_or_leaves_it_open() {
    let world = World::playing(&["greet", "accept", "hello", "exit 1"]);
    let scheduler = world.scheduler().await;
    for _ in 0..20 {
        let error = scheduler.run(faulty()).await.expect_err("it is dead");
        // Whether the program left the host before the end was seen is chance. What must not be: that it is said to have run.
        assert!(matches!(error.kind(), ErrorKind::Vm | ErrorKind::OutcomeUnknown), "{error:?}");
        world.assert_empty();
    }
    serves(&scheduler).await;
    scheduler.close().await.expect("nothing is left");
}

#[tokio::test]
async fn the_boot_log_of_a_guest_that_does_not_come_up_is_whole() {
    let world = World::playing(&["console Linux version 6.12", "console Kernel panic", "exit 0"]);
    let scheduler = world.scheduler().await;
    let (output, mut log) = mpsc::channel(1);
    let listen = async {
        let mut said = Vec::new();
        while let Some(Output::BootLog(piece)) = log.recv().await {
            said.extend_from_slice(&piece);
        }
        said
    };
    let (result, said) =
        tokio::join!(scheduler.run_streaming(RunRequest { boot_log: true, ..faulty() }, output), listen);
    assert_eq!(result.expect_err("it has panicked").kind(), ErrorKind::Vm);
    assert_eq!(String::from_utf8_lossy(&said), "Linux version 6.12\nKernel panic\n");
    world.assert_empty();
    serves(&scheduler).await;
    scheduler.close().await.expect("nothing is left");
}
