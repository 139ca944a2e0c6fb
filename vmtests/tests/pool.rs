//! The pool: VMs that are up before anybody asks.

use std::time::{Duration, Instant};

use exec_sandbox::{ExecRequest, Language, Origin, Outcome, RunRequest, Scheduler, SchedulerConfig, SessionRequest};
use futures_util::future::join_all;
use rustix::process::{Pid, Signal, kill_process};
use vmtests::{World, processes, stdout, wait_for};

/// Long enough for a busy machine to boot and save one VM of each language.
const PATIENCE: Duration = Duration::from_secs(120);

async fn scheduler(world: &World, warm_pool_size: usize) -> Scheduler {
    let config = SchedulerConfig { warm_pool_size, ..world.config() };
    let scheduler = Scheduler::start(config).await.unwrap_or_else(|error| panic!("{error}: {:?}", error.remedy()));
    scheduler.wait_pool_ready(PATIENCE).await.expect("it is filled");
    scheduler
}

async fn hello(scheduler: &Scheduler, language: Language) -> Outcome {
    let code = if language == Language::JavaScript { "console.log('hello')" } else { "print('hello')" };
    let code = if language == Language::Raw { "echo hello" } else { code };
    let outcome = scheduler.run(RunRequest::new(language, code)).await.unwrap_or_else(|error| panic!("{error:?}"));
    assert_eq!(stdout(&outcome), "hello\n");
    outcome
}

#[tokio::test]
async fn whoever_asks_is_given_a_vm_that_is_up_and_the_pool_is_filled_again() {
    let world = World::new();
    let scheduler = scheduler(&world, 1).await;
    for language in Language::ALL {
        let timing = hello(&scheduler, language).await.timing;
        assert_eq!(timing.origin, Origin::Ready, "{language}: {timing:?}");
        assert_eq!(timing.boot(), timing.guest_wait, "nothing was started");
    }
    scheduler.wait_pool_ready(PATIENCE).await.expect("it is filled again");
    // A session is one of them too, and its program is the first: nothing of what exercised the VM is left.
    let session = scheduler.session(SessionRequest::new(Language::Python)).await.expect("it starts");
    assert_eq!(session.vm().boot_timing().origin, Origin::Ready);
    let request = ExecRequest::new("print(sorted(name for name in globals() if not name.startswith('__')))\n1/0");
    let outcome = session.exec(request).await.expect("it runs");
    assert_eq!(stdout(&outcome), "[]\n");
    assert!(String::from_utf8_lossy(&outcome.stderr).contains("\"main.py\", line 2"), "{outcome:?}");
    // Of another size there are none, and what was asked for is given.
    let request = RunRequest { memory_mib: Some(256), ..RunRequest::new(Language::Raw, "grep MemTotal /proc/meminfo") };
    let outcome = scheduler.run(request).await.expect("it runs");
    assert_ne!(outcome.timing.origin, Origin::Ready);
    let total_kib: u64 = stdout(&outcome).split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("a number");
    assert!(total_kib > 200 << 10, "{total_kib} KiB");
    session.close().await.expect("it ends");
    let ids = world.vms();
    scheduler.close().await.expect("all end");
    world.assert_empty(ids);
}

#[tokio::test]
async fn a_vm_that_is_dead_or_stopped_is_never_handed_out() {
    let world = World::new();
    let scheduler = scheduler(&world, 1).await;
    for signal in [Signal::KILL, Signal::STOP] {
        scheduler.wait_pool_ready(PATIENCE).await.expect("it is filled");
        // One of each language, and one that waits for its guest. A process that has just been started may have no name yet.
        let all = || world.vms().iter().flat_map(|id| processes(id)).collect::<Vec<u32>>();
        for pid in wait_for("all of them", || Some(all()).filter(|all| all.len() > Language::ALL.len())) {
            let pid = Pid::from_raw(pid.cast_signed()).expect("it is a process");
            kill_process(pid, signal).expect("it lives");
        }
        hello(&scheduler, Language::Raw).await;
    }
    let ids = world.vms();
    scheduler.close().await.expect("all end");
    world.assert_empty(ids);
}

#[tokio::test]
async fn a_burst_is_served_by_whatever_rung_there_is() {
    let world = World::new();
    let scheduler = scheduler(&world, 1).await;
    let begun = Instant::now();
    let outcomes = join_all((0..4).map(|_| hello(&scheduler, Language::Python))).await;
    let origins: Vec<Origin> = outcomes.iter().map(|outcome| outcome.timing.origin).collect();
    assert!(origins.contains(&Origin::Ready), "{origins:?}");
    assert!(origins.contains(&Origin::Blank), "{origins:?}");
    assert!(!origins.contains(&Origin::Cold), "{origins:?} in {:?}", begun.elapsed());
    scheduler.close().await.expect("all end");
}
