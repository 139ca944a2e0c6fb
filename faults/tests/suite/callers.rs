//! Callers who leave, and schedulers that are closed, at every moment of a run's life.

use std::{
    future::poll_fn,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
};

use exec_sandbox::{ErrorKind, ExecRequest, Language, Output, Scheduler, SessionRequest};
use tokio::{sync::mpsc, task::JoinSet};

use crate::{
    leftovers,
    world::{World, chain, faulty, of_memory, serves},
};

/// A future that is left after so many polls, unless it is ready by then.
struct Polls<'a, F> {
    future: Pin<&'a mut F>,
    left: usize,
}

impl<F: Future> Future for Polls<'_, F> {
    type Output = Option<F::Output>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.left = self.left.saturating_sub(1);
        match self.future.as_mut().poll(context) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending if self.left == 0 => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    }
}

/// Scenes that never come to an end by themselves, and at what they stand still.
const ENDLESS: [&[&str]; 7] = [
    &["hang"],
    &["greet", "accept", "hang"],
    &["greet", "accept", "half-hello"],
    &["greet", "accept", "pongs forever"],
    &["greet", "accept", "hello", "hang"],
    &["greet", "accept", "hello", "await-exec", "stdout-bytes 400000", "hang"],
    &["greet", "accept", "hello", "await-exec", "pongs forever"],
];

#[tokio::test]
async fn a_caller_who_leaves_after_any_number_of_polls_leaves_nothing() {
    let world = World::playing(&["greet", "accept", "hello", "await-exec", "stdout all", "done"]);
    let scheduler = world.scheduler().await;
    serves(&scheduler).await;
    let before = leftovers::descriptors();
    let mut polls = 1;
    loop {
        let mut run = Box::pin(scheduler.run(faulty()));
        let finished = Polls { future: run.as_mut(), left: polls }.await;
        drop(run);
        world.becomes_empty().await;
        if let Some(outcome) = finished {
            outcome.expect("nobody has left it");
            break;
        }
        polls += 1;
    }
    assert!(polls > 2, "a run waits more than once");
    world.end(&scheduler, &before).await;
}

/// The second call has been made before the first one's drop is known, and waits behind it.
#[tokio::test]
async fn a_call_behind_one_that_was_dropped_hears_that_the_session_is_over() {
    let world = World::playing(&["greet", "accept", "hello", "await-exec", "hang"]);
    let scheduler = world.scheduler().await;
    let mut request = SessionRequest::new(Language::Raw);
    request.vm.memory_mib = faulty().memory_mib;
    let session = scheduler.session(request).await.expect("it boots");
    let mut first = Box::pin(session.exec(ExecRequest::new("true")));
    assert!(Polls { future: first.as_mut(), left: 1 }.await.is_none(), "it hangs");
    let mut second = pin!(session.exec(ExecRequest::new("true")));
    assert!(Polls { future: second.as_mut(), left: 1 }.await.is_none(), "it waits for its turn");
    drop(first);
    let error = second.await.expect_err("the first one's drop has ended the session");
    assert_eq!(error.kind(), ErrorKind::SessionClosed, "{}", chain(&error));
    assert_eq!(session.ended_because(), Some("a call was dropped while it was at work"));
    scheduler.close().await.expect("all are dead");
}

#[tokio::test]
async fn a_scheduler_that_is_closed_after_any_number_of_polls_leaves_nothing() {
    let world = World::playing(&["greet", "accept", "hello", "await-exec", "stdout all", "done"]);
    serves(&world.scheduler().await).await;
    for polls in 1.. {
        let scheduler = world.scheduler().await;
        let before = leftovers::descriptors();
        let mut run = pin!(scheduler.run(faulty()));
        if let Some(outcome) = (Polls { future: run.as_mut(), left: polls }).await {
            outcome.expect("it was not closed before");
            world.end(&scheduler, &before).await;
            break;
        }
        let (closed, result) = tokio::join!(scheduler.close(), run);
        closed.expect("nothing is left");
        match result {
            Ok(outcome) => assert_eq!(&outcome.stdout[..], b"all", "the program had ended before"),
            Err(error) => assert_eq!(error.kind(), ErrorKind::Closed, "{}", chain(&error)),
        }
        world.end(&scheduler, &before).await;
    }
}

#[tokio::test]
async fn a_caller_who_leaves_a_vm_that_stands_still_ends_it() {
    for steps in ENDLESS {
        let world = World::playing(steps);
        let scheduler = world.scheduler().await;
        serves(&scheduler).await;
        let before = leftovers::descriptors();
        tokio::select! {
            result = scheduler.run(faulty()) => panic!("{steps:?} never ends: {result:?}"),
            _ = world.process(|_any| true) => {}
        }
        world.becomes_empty().await;
        serves(&scheduler).await;
        world.end(&scheduler, &before).await;
    }
}

#[tokio::test]
async fn a_scheduler_that_is_closed_ends_a_vm_that_stands_still() {
    for steps in ENDLESS {
        let world = World::playing(steps);
        let scheduler = world.scheduler().await;
        serves(&scheduler).await;
        let before = leftovers::descriptors();
        let close = async {
            world.process(|_any| true).await;
            scheduler.close().await
        };
        let (result, closed) = tokio::join!(scheduler.run(faulty()), close);
        closed.expect("nothing is left");
        let error = result.expect_err("it never ends");
        assert_eq!((error.kind(), error.kind().is_transient()), (ErrorKind::Closed, false), "{steps:?}");
        world.end(&scheduler, &before).await;
    }
}

#[tokio::test]
async fn a_caller_who_leaves_a_program_that_runs_ends_it() {
    for steps in [&["stdout begun", "hang"][..], &["stdout begun", "pongs forever"]] {
        let world = World::playing(&[&["greet", "accept", "hello", "await-exec"], steps].concat());
        let scheduler = world.scheduler().await;
        serves(&scheduler).await;
        let before = leftovers::descriptors();
        let (output, mut pieces) = mpsc::channel(1);
        tokio::select! {
            result = scheduler.run_streaming(faulty(), output) => panic!("{steps:?} never ends: {result:?}"),
            piece = pieces.recv() => assert_eq!(piece, Some(Output::Stdout("begun".into()))),
        }
        world.becomes_empty().await;
        serves(&scheduler).await;
        world.end(&scheduler, &before).await;
    }
}

/// The same for one who waits for the end: when he is told, nothing is left to wait for.
#[tokio::test]
async fn a_run_that_is_called_off_after_any_number_of_polls_is_over_when_it_returns() {
    let world = World::playing(&["greet", "accept", "hello", "await-exec", "stdout all", "done"]);
    let scheduler = world.scheduler().await;
    serves(&scheduler).await;
    let before = leftovers::descriptors();
    let mut polls = 1;
    loop {
        let mut left = polls;
        let called_off = poll_fn(|_| {
            left -= 1;
            if left == 0 { Poll::Ready(()) } else { Poll::Pending }
        });
        let result = scheduler.run_until(faulty(), mpsc::channel(16).0, called_off).await;
        world.assert_empty();
        match result {
            Ok(_) => break,
            Err(error) => assert_eq!(error.kind(), ErrorKind::Closed, "{error}"),
        }
        polls += 1;
    }
    assert!(polls > 2, "a run waits more than once");
    world.end(&scheduler, &before).await;
}

#[tokio::test]
async fn a_caller_who_takes_no_output_can_still_leave() {
    let world = World::playing(&["greet", "accept", "hello", "await-exec", "stdout-bytes 1000000 by 1000", "done"]);
    let scheduler = world.scheduler().await;
    serves(&scheduler).await;
    let before = leftovers::descriptors();
    let (output, mut pieces) = mpsc::channel(1);
    let mut run = Box::pin(scheduler.run_streaming(faulty(), output));
    // One piece is taken, and then no more: sooner or later the window closes and everything stands still.
    tokio::select! {
        result = &mut run => panic!("nobody takes its output: {result:?}"),
        piece = pieces.recv() => assert!(matches!(piece, Some(Output::Stdout(_))), "{piece:?}"),
    }
    drop(run);
    world.becomes_empty().await;
    while pieces.recv().await.is_some() {}
    world.end(&scheduler, &before).await;
}

/// What a run that plays the scene for its memory comes to; `None`: an outcome.
fn comes_to(memory_mib: u32) -> Option<ErrorKind> {
    match memory_mib {
        200 => Some(ErrorKind::Vm),
        201 | 202 => Some(ErrorKind::OutcomeUnknown),
        203 => Some(ErrorKind::Guest),
        204 => Some(ErrorKind::OutputLimit),
        _ => None,
    }
}

#[tokio::test]
async fn many_at_once_are_each_told_their_own() {
    let world = World::with_scenes(&[
        (200, &["say no luck", "exit 1"]),
        (201, &["greet", "accept", "hello", "await-exec", "signal 9"]),
        (202, &["greet", "accept", "hello", "await-exec", "stdout x", "done stdout=2"]),
        (203, &["greet", "accept", "hello", "await-exec", "refuse not today"]),
        (204, &["greet", "accept", "hello", "await-exec", "stderr-bytes 100000", "done stderr=100001"]),
        (205, &["greet", "accept", "hello", "await-exec", "stdout-bytes 500000 by 1000", "done"]),
    ]);
    let scheduler = Arc::new(world.scheduler().await);
    serves(&scheduler).await;
    let before = leftovers::descriptors();
    let mut runs = JoinSet::new();
    for number in 0..20 {
        let (scheduler, memory_mib) = (Arc::clone(&scheduler), 200 + number % 7);
        runs.spawn(async move { (memory_mib, scheduler.run(of_memory(memory_mib)).await) });
    }
    while let Some(run) = runs.join_next().await {
        let (memory_mib, result) = run.expect("no panic");
        let kind = result.as_ref().err().map(exec_sandbox::Error::kind);
        assert_eq!(kind, comes_to(memory_mib), "{memory_mib}: {:?}", result.as_ref().map_err(chain));
    }
    serves(&scheduler).await;
    world.end(&scheduler, &before).await;
}

#[tokio::test]
async fn many_at_once_are_all_ended_by_a_close() {
    let scenes: Vec<_> = (200..).zip(ENDLESS).collect();
    let world = World::with_scenes(&scenes);
    let scheduler = Arc::new(world.scheduler().await);
    serves(&scheduler).await;
    let before = leftovers::descriptors();
    let mut runs = JoinSet::new();
    for number in 0..20 {
        let (scheduler, memory_mib) = (Arc::clone(&scheduler), 200 + number % 7);
        runs.spawn(async move { Scheduler::run(&scheduler, of_memory(memory_mib)).await });
    }
    crate::world::eventually("some processes", || (world.processes().len() > 5).then_some(())).await;
    scheduler.close().await.expect("nothing is left");
    while let Some(run) = runs.join_next().await {
        assert_eq!(run.expect("no panic").expect_err("it never ends").kind(), ErrorKind::Closed);
    }
    world.end(&scheduler, &before).await;
}
