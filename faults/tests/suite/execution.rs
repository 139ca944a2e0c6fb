//! A guest that goes wrong after the program was sent. It may have run, so no error is transient.

use std::pin::pin;

use exec_sandbox::{ErrorKind, Exit, Output};
use tokio::sync::mpsc;

use crate::{
    leftovers,
    world::{World, chain, failure_of, faulty, outcome_of, serves},
};

/// Up to where a program has come to the guest.
const RUNNING: [&str; 4] = ["greet", "accept", "hello", "await-exec"];

fn running(then: &[&'static str]) -> Vec<&'static str> {
    [&RUNNING[..], then].concat()
}

/// The words of every outcome that is not known.
const MAY_HAVE_RUN: &str = "waiting for the program's end; it may have run";

#[tokio::test]
async fn a_qemu_that_dies_leaves_the_outcome_open() {
    let failure = failure_of(&running(&["say out of luck", "exit 3"])).await;
    failure.is_final(ErrorKind::OutcomeUnknown, &[MAY_HAVE_RUN, "QEMU ended with code 3, saying: out of luck"]);
    let failure = failure_of(&running(&["stdout half of it", "signal 9"])).await;
    failure.is_final(ErrorKind::OutcomeUnknown, &[MAY_HAVE_RUN, "QEMU was ended by signal 9"]);
}

#[tokio::test]
async fn a_qemu_that_hangs_up_and_lives_leaves_the_outcome_open() {
    let failure = failure_of(&running(&["close-channel"])).await;
    failure.is_final(ErrorKind::OutcomeUnknown, &[MAY_HAVE_RUN, "QEMU closed the agent's channel"]);
}

#[tokio::test]
async fn a_dishonest_guest_is_told_by_what_it_did() {
    for (steps, said) in [
        (&["over-window", "done"][..], "the agent sent more than it was granted"),
        (&["stderr-bytes 100001", "done"], "the agent sent more output than is kept"),
        (&["done stdout=5"], "the agent's totals disagree with what it sent"),
        (&["stdout four", "done stdout=3"], "the agent's totals disagree with what it sent"),
        (&["done end=77"], "the agent named no end that exists"),
        (&["done end=0"], "the agent named no end that exists"),
        (&["done end=5"], "the agent named no end that exists"),
        (&["huge-header"], "bytes is over the limit of 1048576"),
        (&["garbage 100000"], "bytes is over the limit of 1048576"),
        (&["bad-body"], "cannot read the body of a HELLO frame"),
    ] {
        failure_of(&running(steps)).await.is_final(ErrorKind::OutcomeUnknown, &[MAY_HAVE_RUN, said]);
    }
}

#[tokio::test]
async fn a_refusal_is_the_guests_and_is_not_tried_again() {
    let failure = failure_of(&running(&["refuse another execution is under way"])).await;
    failure.is_final(ErrorKind::Guest, &["starting the program in the guest", "another execution is under way"]);
}

#[tokio::test]
async fn what_is_said_of_other_operations_and_in_unknown_kinds_is_skipped() {
    let babble = ["other-operation", "pongs 5000", "unknown-kind", "hello", "hello 7"];
    let steps = running(&[&babble[..], &["stdout a", "other-operation", "stdout b", "done exit=3"]].concat());
    let outcome = outcome_of(&steps).await;
    assert_eq!((outcome.exit, &outcome.stdout[..]), (Exit::Code(3), &b"ab"[..]));
}

#[tokio::test]
async fn every_end_is_told_apart() {
    for (done, exit) in [
        ("done exit=255", Exit::Code(255)),
        ("done signal=11", Exit::Signal(11)),
        ("done end=3", Exit::TimedOut),
        ("done end=4", Exit::OutOfMemory),
    ] {
        assert_eq!(outcome_of(&running(&[done])).await.exit, exit, "{done}");
    }
}

#[tokio::test]
async fn output_in_frames_of_one_byte_is_whole() {
    let outcome = outcome_of(&running(&["stdout-bytes 30000 by 1", "stderr-bytes 3000 by 7", "done"])).await;
    assert_eq!((outcome.stdout.len(), outcome.stderr.len()), (30_000, 3000));
}

#[tokio::test]
async fn output_up_to_the_caps_is_an_outcome() {
    let outcome = outcome_of(&running(&["stdout-bytes 1000000", "stderr-bytes 100000", "done"])).await;
    assert_eq!((outcome.stdout.len(), outcome.stderr.len()), (1_000_000, 100_000));
}

#[tokio::test]
async fn output_over_a_cap_is_streamed_up_to_it_and_then_a_limit() {
    for (steps, said) in [
        (&["stdout-bytes 1000000", "stderr-bytes 100000", "done stdout=1000001"], "it wrote more to stdout"),
        (&["stdout-bytes 1000000", "stderr-bytes 100000", "done stderr=100001"], "it wrote more to stderr"),
    ] {
        let world = World::playing(&running(steps));
        let scheduler = world.scheduler().await;
        serves(&scheduler).await;
        let before = leftovers::descriptors();
        let (output, mut pieces) = mpsc::channel(1);
        let take = async {
            let (mut stdout, mut stderr) = (0, 0);
            while let Some(piece) = pieces.recv().await {
                match piece {
                    Output::Stdout(bytes) => stdout += bytes.len(),
                    Output::Stderr(bytes) => stderr += bytes.len(),
                    Output::BootLog(_) | Output::Progress(_) => {}
                }
            }
            (stdout, stderr)
        };
        let (run, taken) = tokio::join!(scheduler.run_streaming(faulty(), output), take);
        let error = run.expect_err("it is over a cap");
        assert_eq!((error.kind(), error.kind().is_transient()), (ErrorKind::OutputLimit, false));
        assert!(chain(&error).contains(said), "{}", chain(&error));
        assert_eq!(taken, (1_000_000, 100_000));
        world.end(&scheduler, &before).await;
    }
}

#[tokio::test]
async fn nothing_is_believed_after_the_end_whose_output_still_waits() {
    let world = World::playing(&running(&["stdout a", "stdout b", "stderr c", "done", "stdout d"]));
    let scheduler = world.scheduler().await;
    let (output, mut pieces) = mpsc::channel(1);
    let mut run = pin!(scheduler.run_streaming(faulty(), output));
    // A caller who is slow has his outcome once he has taken all that came before the end.
    let mut taken = Vec::new();
    let outcome = loop {
        tokio::select! {
            biased;
            outcome = &mut run => break outcome.expect("it has ended well"),
            Some(piece) = pieces.recv() => taken.push(piece),
        }
    };
    assert_eq!((&outcome.stdout[..], &outcome.stderr[..]), (&b"ab"[..], &b"c"[..]));
    assert_eq!(taken.last(), Some(&Output::Stderr("c".into())));
    world.assert_empty();
    serves(&scheduler).await;
    scheduler.close().await.expect("nothing is left");
}

#[tokio::test]
async fn what_comes_after_an_end_that_is_known_changes_nothing() {
    let outcome = outcome_of(&running(&["stdout all", "done exit=4", "stdout more", "garbage 1000", "exit 1"])).await;
    assert_eq!((outcome.exit, &outcome.stdout[..]), (Exit::Code(4), &b"all"[..]));
}
