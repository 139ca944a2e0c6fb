//! A QEMU that does not start, or ends before it has said a word.

use exec_sandbox::{ErrorKind, Scheduler};

use crate::{
    leftovers,
    world::{Failure, World, chain, failure_of, faulty, serves},
};

/// Another file in the program's place after the scheduler has found the program there.
async fn failure_with_program(replace: impl FnOnce(&World)) -> Failure {
    let world = World::in_good_order();
    let scheduler = world.scheduler().await;
    serves(&scheduler).await;
    let before = leftovers::descriptors();
    replace(&world);
    let error = scheduler.run(faulty()).await.expect_err("there is no program to run");
    world.assert_empty();
    world.install(&[]);
    serves(&scheduler).await;
    world.end(&scheduler, &before).await;
    Failure::from(error)
}

#[tokio::test]
async fn a_program_that_goes_missing_is_a_dependency_and_is_named() {
    let failure = failure_with_program(|world| std::fs::remove_file(world.program()).expect("it is there")).await;
    failure.is_final(ErrorKind::Dependency, &["starting QEMU", "executing the program for /tmp/fq-", "No such file"]);
}

#[tokio::test]
async fn a_program_that_may_not_be_executed_says_so() {
    let failure = failure_with_program(|world| world.replace_program(b"\x7fELF", 0o644)).await;
    failure.is_final(ErrorKind::Dependency, &["executing the program for /tmp/fq-", "Permission denied"]);
}

#[tokio::test]
async fn a_program_that_is_a_text_says_so() {
    let failure = failure_with_program(|world| world.replace_program(b"Not a program.\n", 0o755)).await;
    failure.is_final(ErrorKind::Dependency, &["executing the program for /tmp/fq-", "Exec format error"]);
}

#[tokio::test]
async fn a_scheduler_does_not_start_without_a_program_that_answers() {
    let world = World::in_good_order();
    for (content, mode, said) in [
        (&b"\x7fELF"[..], 0o644, "is not an executable file"),
        (b"Not a program.\n", 0o755, "Exec format error"),
        (b"#!/bin/sh\necho QEMU emulator version 9.2.4\n", 0o755, "version 9.2.4 is older than"),
        (b"#!/bin/sh\necho bash\n", 0o755, "does not name a QEMU version: `bash`"),
    ] {
        world.replace_program(content, mode);
        let error = Scheduler::start(world.config()).await.expect_err(said);
        assert_eq!(error.kind(), ErrorKind::Dependency, "{said}");
        assert!(chain(&error).contains(said), "{said} is not said in: {}", chain(&error));
        assert!(error.remedy().is_some());
    }
    world.install(&[]);
    serves(&world.scheduler().await).await;
}

#[tokio::test]
async fn a_qemu_that_ends_at_once_is_quoted() {
    let failure = failure_of(&["say cannot set up guest memory", "say Cannot allocate memory", "exit 1"]).await;
    let words = "QEMU ended with code 1, saying: cannot set up guest memory\nCannot allocate memory";
    failure.is_transient(ErrorKind::Vm, &["booting a VM", words]);
}

#[tokio::test]
async fn a_qemu_that_ends_well_before_the_hello_is_a_crash_all_the_same() {
    for steps in [&["exit 0"][..], &["greet", "accept", "exit 0"]] {
        let failure = failure_of(steps).await;
        failure.is_transient(ErrorKind::Vm, &["ended although nobody asked it to (the guest reset or panicked)"]);
    }
}

#[tokio::test]
async fn a_qemu_that_a_signal_ends_is_told_by_the_signal() {
    for signal in [6, 9] {
        let failure = failure_of(&[&format!("signal {signal}")]).await;
        failure.is_transient(ErrorKind::Vm, &[&format!("QEMU was ended by signal {signal}")]);
    }
}

#[tokio::test]
async fn what_a_qemu_says_is_bounded_and_steers_no_terminal() {
    let long = format!("say {}\u{1b}[2J the end", "x".repeat(20_000));
    let failure = failure_of(&[&long, "exit 1"]).await;
    failure.is_transient(ErrorKind::Vm, &["ended with code 1, saying: xxx", "x\u{fffd}[2J the end"]);
}
