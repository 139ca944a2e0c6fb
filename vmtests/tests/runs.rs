//! Runs: programs in fresh VMs, and what their callers are told.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use exec_sandbox::{ErrorKind, Exit, Language, Origin, Output, RunRequest, Scheduler, SchedulerConfig};
use tokio::sync::mpsc;
use vmtests::{World, processes, run, stderr, stdout};

#[tokio::test]
async fn every_language_runs_in_a_kernel_of_its_own() {
    let world = World::new();
    // Each is booted, whatever snapshots there are.
    let cold = SchedulerConfig { snapshots: false, ..world.config() };
    let scheduler = Scheduler::start(cold).await.unwrap_or_else(|error| panic!("{error}: {:?}", error.remedy()));
    let host_kernel = rustix::system::uname().release().to_string_lossy().into_owned();
    let programs = [
        (Language::Python, "import platform\nprint(platform.release())"),
        (Language::JavaScript, "const os = require('os'); const release: string = os.release(); console.log(release)"),
        (Language::Raw, "uname -r"),
    ];
    for (language, code) in programs {
        let outcome = run(&world, &scheduler, language, code).await;
        assert_eq!((outcome.exit, stderr(&outcome).as_str()), (Exit::Code(0), ""), "{language}");
        assert_eq!(stdout(&outcome).trim(), scheduler.facts().kernel_version, "{language}");
        assert_ne!(stdout(&outcome).trim(), host_kernel, "{language}");
        assert_eq!(outcome.timing.origin, Origin::Cold, "{language}");
    }
    scheduler.close().await.expect("nothing is left");
}

#[tokio::test]
async fn a_program_is_an_unprivileged_user_on_a_root_that_it_cannot_change() {
    let world = World::new();
    let scheduler = world.scheduler().await;
    let code = "id -u; id -g; id -un; pwd; echo $HOME; cat /dev/stdin | wc -c; touch /x 2>/dev/null || echo read-only; \
                echo data > file && cat file; grep -E '^(CapEff|NoNewPrivs)' /proc/self/status; ls /dev/vd* 2>/dev/null | wc -l";
    let outcome = run(&world, &scheduler, Language::Raw, code).await;
    let lines: Vec<_> = stdout(&outcome).lines().map(str::to_owned).collect();
    let expected = [
        "1000",
        "1000",
        "user",
        "/home/user",
        "/home/user",
        "0",
        "read-only",
        "data",
        "CapEff:\t0000000000000000",
        "NoNewPrivs:\t1",
        "0",
    ];
    assert_eq!(lines, expected, "{}", stderr(&outcome));
}

#[tokio::test]
async fn exit_codes_are_the_programs_own() {
    let world = World::new();
    let scheduler = world.scheduler().await;
    let programs = [
        (Language::Python, "import sys; sys.exit(7)", Exit::Code(7), ""),
        (Language::Python, "import os; os._exit(3)", Exit::Code(3), ""),
        (Language::Python, "1 / 0", Exit::Code(1), "ZeroDivisionError"),
        (Language::Python, "import os; os.kill(os.getpid(), 10)", Exit::Signal(10), ""),
        (Language::JavaScript, "process.exit(5)", Exit::Code(5), ""),
        (Language::JavaScript, "Promise.reject(new Error('lost'))", Exit::Code(1), "lost"),
        (Language::Raw, "exit 9", Exit::Code(9), ""),
        (Language::Raw, "no-such-command", Exit::Code(127), "no-such-command"),
    ];
    for (language, code, exit, said) in programs {
        let outcome = run(&world, &scheduler, language, code).await;
        assert_eq!(outcome.exit, exit, "{code}: {}", stderr(&outcome));
        assert!(stderr(&outcome).contains(said), "{code}: {}", stderr(&outcome));
    }
}

#[tokio::test]
async fn a_program_whose_time_is_up_is_ended_and_keeps_what_it_wrote() {
    let world = World::new();
    let scheduler = world.scheduler().await;
    let mut request = RunRequest::new(Language::Python, "print('before')\nwhile True: pass");
    request.timeout = Some(Duration::from_secs(2));
    let outcome = scheduler.run(request).await.expect("a timeout is an outcome");
    assert_eq!((outcome.exit, outcome.exit.code()), (Exit::TimedOut, -1));
    assert_eq!(stdout(&outcome), "before\n");
    assert!(stderr(&outcome).contains("timeout"), "{}", stderr(&outcome));
    assert!(outcome.timing.execute >= Duration::from_secs(2));
    world.assert_empty([&outcome.vm_id]);
}

#[tokio::test]
async fn output_arrives_while_the_program_sleeps() {
    let world = World::new();
    let scheduler = world.scheduler().await;
    let (sender, mut output) = mpsc::channel(16);
    let request = RunRequest::new(Language::Python, "import time\nprint('one')\ntime.sleep(3)\nprint('two')");
    let listen = async {
        let mut arrived = Vec::new();
        while let Some(piece) = output.recv().await {
            arrived.push((piece, Instant::now()));
        }
        arrived
    };
    let (outcome, arrived) = tokio::join!(scheduler.run_streaming(request, sender), listen);
    assert_eq!(outcome.expect("it runs").exit, Exit::Code(0));
    let pieces: Vec<_> = arrived.iter().map(|(piece, _)| piece.clone()).collect();
    assert_eq!(pieces, [Output::Stdout("one\n".into()), Output::Stdout("two\n".into())]);
    // The program sleeps for 3 s by the guest's clock; had the first line been held back, both would come together.
    assert!(arrived[1].1 - arrived[0].1 > Duration::from_secs(2));
}

#[tokio::test]
async fn a_megabyte_of_output_is_byte_exact_and_a_byte_more_is_an_error() {
    let world = World::new();
    let scheduler = world.scheduler().await;
    let code = |bytes: usize| {
        format!("import sys\nsys.stdout.buffer.write(bytes(i * 7 % 251 for i in range({bytes})))\nsys.stdout.flush()")
    };
    let outcome = run(&world, &scheduler, Language::Python, &code(1_000_000)).await;
    assert_eq!(outcome.stdout.len(), 1_000_000);
    assert!(outcome.stdout.iter().enumerate().all(|(i, byte)| usize::from(*byte) == i * 7 % 251));
    let error = scheduler.run(RunRequest::new(Language::Python, code(1_000_001))).await.expect_err("it is too much");
    assert_eq!(error.kind(), ErrorKind::OutputLimit);
    world.assert_empty(error.vm_id());
}

#[tokio::test]
async fn a_caller_who_is_slow_slows_the_program_and_loses_nothing() {
    let world = World::new();
    let scheduler = world.scheduler().await;
    let (sender, mut output) = mpsc::channel(1);
    let request = RunRequest::new(Language::Raw, "head -c 900000 /dev/zero; echo done >&2");
    let listen = async {
        let mut bytes = 0;
        while let Some(piece) = output.recv().await {
            tokio::time::sleep(Duration::from_millis(100)).await;
            if let Output::Stdout(piece) = piece {
                bytes += piece.len();
            }
        }
        bytes
    };
    let (outcome, bytes) = tokio::join!(scheduler.run_streaming(request, sender), listen);
    assert_eq!(outcome.expect("it runs").stdout.len(), 900_000);
    assert_eq!(bytes, 900_000);
}

#[tokio::test]
async fn variables_reach_the_program_and_large_programs_arrive_whole() {
    let world = World::new();
    let scheduler = world.scheduler().await;
    let padding = "# padding that makes the program larger than a frame\n".repeat(15_000);
    let mut request = RunRequest::new(Language::Python, format!("{padding}import os\nprint(os.environ['GREETING'])"));
    request.env = vec![("GREETING".into(), "héllo = wörld\t!".into())];
    let outcome = scheduler.run(request).await.expect("it runs");
    assert_eq!(
        (stdout(&outcome).as_str(), outcome.exit),
        ("héllo = wörld\t!\n", Exit::Code(0)),
        "{}",
        stderr(&outcome)
    );
}

#[tokio::test]
async fn using_up_the_memory_ends_the_program_and_says_so() {
    let world = World::new();
    let scheduler = world.scheduler().await;
    let code = "print('before')\nhoard = []\nwhile True: hoard.append(bytearray(8 << 20))";
    let outcome = run(&world, &scheduler, Language::Python, code).await;
    assert_eq!((outcome.exit, outcome.exit.code()), (Exit::OutOfMemory, 137), "{}", stderr(&outcome));
    assert_eq!(stdout(&outcome), "before\n");
    assert!(stderr(&outcome).contains("out of memory"), "{}", stderr(&outcome));
}

#[tokio::test]
async fn a_run_that_nobody_waits_for_any_more_leaves_nothing() {
    let world = World::new();
    let scheduler = world.scheduler().await;
    let forever = || RunRequest::new(Language::Raw, "echo running; sleep 1000");
    // Before its VM has a process: a future that was polled once.
    let none = Duration::ZERO;
    tokio::time::timeout(none, scheduler.run(forever())).await.expect_err("it does not end by itself");
    // While it boots.
    let booting = tokio::select! {
        outcome = scheduler.run(forever()) => panic!("it does not end by itself: {outcome:?}"),
        id = process_of(&world) => id,
    };
    // While it runs.
    let (sender, mut output) = mpsc::channel(1);
    tokio::select! {
        outcome = scheduler.run_streaming(forever(), sender) => panic!("it does not end by itself: {outcome:?}"),
        piece = output.recv() => assert_eq!(piece, Some(Output::Stdout("running\n".into()))),
    }
    let ids: Vec<_> = world.vms().into_iter().chain([booting]).collect();
    scheduler.close().await.expect("nothing is left");
    world.assert_empty(ids);
}

/// The first VM of this world that has a process.
async fn process_of(world: &World) -> String {
    loop {
        match world.vms().into_iter().find(|id| !processes(id).is_empty()) {
            Some(id) => return id,
            None => tokio::time::sleep(Duration::from_millis(1)).await,
        }
    }
}

#[tokio::test]
async fn closing_the_scheduler_ends_what_still_runs_and_what_still_waits() {
    let world = World::new();
    let config = SchedulerConfig { cpu_overcommit_ratio: 1.0, ..world.config() };
    let scheduler = Arc::new(Scheduler::start(config).await.expect("it starts"));
    let forever = |output| {
        let scheduler = Arc::clone(&scheduler);
        let request = RunRequest::new(Language::Raw, "echo running; sleep 1000");
        tokio::spawn(async move { scheduler.run_streaming(request, output).await })
    };
    let (sender, mut output) = mpsc::channel(1);
    // One more than there is room for.
    let more = std::thread::available_parallelism().map_or(1, usize::from) + 1;
    let runs: Vec<_> = (0..more).map(|_| forever(sender.clone())).collect();
    assert_eq!(output.recv().await, Some(Output::Stdout("running\n".into())));
    let ids = world.vms();
    assert!(!ids.is_empty());
    scheduler.close().await.expect("nothing is left");
    world.assert_empty(ids);
    for run in runs {
        let error = run.await.expect("no panic").expect_err("it was ended");
        assert_eq!(error.kind(), ErrorKind::Closed, "{error}");
    }
    let late = scheduler.run(RunRequest::new(Language::Raw, "true")).await.expect_err("it is closed");
    assert_eq!(late.kind(), ErrorKind::Closed);
}

#[tokio::test]
async fn runs_leave_no_descriptor_no_task_and_no_thread_behind() {
    let world = World::without_snapshots();
    // It ends when its snapshot is written down, so that nothing is written while others are counted.
    let first = world.scheduler().await;
    run(&world, &first, Language::Raw, "true").await;
    first.close().await.expect("nothing is left");
    drop(first);
    let scheduler = world.scheduler().await;
    let entries = |dir: &str| std::fs::read_dir(dir).expect("/proc can be read").count();
    let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let held = || (entries("/proc/self/fd"), tasks());
    let mut request = RunRequest::new(Language::Raw, "echo hi; echo oops >&2");
    // The first run makes what stays: the spawner's thread, the pool's.
    run(&world, &scheduler, Language::Raw, "true").await;
    let (before, threads) = (held(), entries("/proc/self/task"));
    for number in 0..10 {
        let (sender, mut output) = mpsc::channel(16);
        let listen = async { while output.recv().await.is_some() {} };
        // Every other with a boot log, which has a descriptor and a task more, and boots.
        request.boot_log = number % 2 == 0;
        let (outcome, ()) = tokio::join!(scheduler.run_streaming(request.clone(), sender), listen);
        world.assert_empty([&outcome.expect("it runs").vm_id]);
    }
    scheduler.close().await.expect("nothing is left");
    assert_eq!(held(), before);
    // Those of the pool for blocking work come and go; there are at most a few, and not one for each run.
    assert!(entries("/proc/self/task") <= threads + 2, "{threads} threads before");
}

#[tokio::test]
async fn measured_times_add_up_and_what_was_not_measured_is_absent() {
    let world = World::new();
    let scheduler = world.scheduler().await;
    let silent = run(&world, &scheduler, Language::Raw, "true").await;
    assert_eq!(silent.timing.first_output, None);
    let timing = run(&world, &scheduler, Language::Raw, "echo hi").await.timing;
    let phases = timing.admission
        + timing.prepare
        + timing.boot()
        + timing.snapshot.unwrap_or_default()
        + timing.execute
        + timing.teardown;
    assert!(phases <= timing.total, "{timing:?}");
    assert!(timing.total - phases < timing.total / 4, "the phases leave little out: {timing:?}");
    assert!(timing.first_output.expect("it wrote") < timing.total);
}
