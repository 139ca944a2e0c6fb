//! The life of a VM: one owner, confirmed death, and orphans that sleep. Figures are those of QEMU's own process.

use std::{
    fs,
    io::{BufRead, BufReader},
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use exec_sandbox::{
    Error, ErrorKind, ExecRequest, Exit, Language, Outcome, Output, Process, QemuVm, RunRequest, VmManager, VmSpec,
};
use rustix::process::{Signal, pidfd_send_signal};
use tokio::{sync::mpsc, task::JoinHandle, time::sleep};
use vmtests::{World, processes, stdout, wait_for};

/// How long an agent is left alone before it is measured: its waits have then grown to their longest.
const SETTLE: Duration = Duration::from_secs(2);
const SAMPLE: Duration = Duration::from_secs(1);

/// What an orphan may take of a core: the median of the samples, and the 95th percentile.
const MEDIAN_LIMIT: f64 = 0.02;
const P95_LIMIT: f64 = 0.10;

/// How often an orphan's threads may give the processor up in a second, on average, whatever the machine makes of the time between. It is 25;
/// of one whose agent looked each second and whose kernel had more to see to it was 80.
const SWITCHES_LIMIT: u64 = 50;

async fn manager(world: &World) -> VmManager {
    VmManager::start(world.config()).await.unwrap_or_else(|error| panic!("{error}: {:?}", error.remedy()))
}

async fn vm(manager: &VmManager, language: Language) -> QemuVm {
    manager.create_vm(VmSpec::new(language)).await.unwrap_or_else(|error| panic!("{error}: {:?}", error.remedy()))
}

/// The shortest program that says something.
fn hello(language: Language) -> &'static str {
    match language {
        Language::Python => "print('hello')",
        Language::JavaScript => "console.log('hello')",
        Language::Raw => "echo hello",
    }
}

async fn say_hello(vm: &QemuVm) {
    let outcome = vm.execute(ExecRequest::new(hello(vm.language()))).await.expect("it runs");
    assert_eq!((outcome.exit, stdout(&outcome).as_str()), (Exit::Code(0), "hello\n"));
}

/// An execution under way, once it has said its first word.
async fn executing(vm: &Arc<QemuVm>, code: &str) -> (JoinHandle<Result<Outcome, Error>>, mpsc::Receiver<Output>) {
    let (sender, mut output) = mpsc::channel(16);
    let (vm, request) = (Arc::clone(vm), ExecRequest::new(code));
    let execution = tokio::spawn(async move { vm.execute_streaming(request, sender).await });
    assert!(matches!(output.recv().await, Some(Output::Stdout(_))), "it runs");
    (execution, output)
}

/// Shares of a core that each process takes, `count` samples of a second.
async fn loads(of: &[&Process], count: usize) -> Vec<Vec<f64>> {
    let cpu = |process: &Process| process.usage().expect("it lives").cpu;
    let mut loads = vec![Vec::new(); of.len()];
    let mut before: Vec<_> = of.iter().map(|process| (cpu(process), Instant::now())).collect();
    for _ in 0..count {
        sleep(SAMPLE).await;
        for ((process, loads), before) in of.iter().zip(&mut loads).zip(&mut before) {
            let now = (cpu(process), Instant::now());
            loads.push((now.0 - before.0).as_secs_f64() / (now.1 - before.1).as_secs_f64());
            *before = now;
        }
    }
    loads
}

/// How often threads of the process have gone to sleep or been put off.
fn switches(process: &Process) -> u64 {
    let threads = fs::read_dir(format!("/proc/{}/task", process.pid())).expect("it lives").filter_map(Result::ok);
    let statuses = threads.filter_map(|thread| fs::read_to_string(thread.path().join("status")).ok());
    let counts = |status: String| -> u64 {
        let lines = status.lines().filter_map(|line| line.split_once("_ctxt_switches:"));
        lines.map(|(_, count)| count.trim().parse::<u64>().expect("a number")).sum()
    };
    statuses.map(counts).sum()
}

fn assert_asleep(mut loads: Vec<f64>) {
    loads.sort_by(f64::total_cmp);
    let (median, p95) = (loads[loads.len() / 2], loads[(loads.len() * 95).div_ceil(100) - 1]);
    assert!(median < MEDIAN_LIMIT && p95 < P95_LIMIT, "an orphan takes {loads:?} of a core");
}

#[tokio::test]
async fn an_orphan_sleeps() {
    let world = World::new();
    let manager = manager(&world).await;
    let fresh = vm(&manager, Language::Raw).await;
    fresh.channel().close().await.expect("it lives");
    sleep(SETTLE).await;
    let (before, seconds) = (switches(fresh.process()), 10);
    let loads = loads(&[fresh.process()], seconds).await;
    let switches = switches(fresh.process()) - before;
    assert!(switches > 0 && switches < SWITCHES_LIMIT * seconds as u64, "{switches} in {seconds} s");
    assert_asleep(loads.concat());
    fresh.destroy().await.expect("it dies");
    world.assert_empty([fresh.vm_id()]);
}

#[tokio::test]
async fn three_orphans_that_have_worked_in_three_languages_sleep_at_once_and_for_long() {
    let world = World::new();
    let manager = manager(&world).await;
    let mut orphans = Vec::new();
    for language in Language::ALL {
        let vm = vm(&manager, language).await;
        say_hello(&vm).await;
        vm.channel().close().await.expect("it lives");
        orphans.push(vm);
    }
    sleep(SETTLE).await;
    for loads in loads(&orphans.iter().map(QemuVm::process).collect::<Vec<_>>(), 20).await {
        assert_asleep(loads);
    }
    // Asleep, not dead: each goes on where it was.
    for vm in &orphans {
        say_hello(vm).await;
    }
    manager.close().await.expect("nothing is left");
    world.assert_empty(orphans.iter().map(QemuVm::vm_id));
}

#[tokio::test]
async fn a_program_goes_on_without_its_host_and_its_result_waits() {
    let world = World::new();
    let manager = manager(&world).await;
    let vm = Arc::new(vm(&manager, Language::Python).await);
    vm.execute(ExecRequest::new("state = 41")).await.expect("it runs");
    let code = "import sys, time\nprint('begun')\ntime.sleep(1)\nsys.stdout.write('x' * 900_000)\nsys.stdout.flush()\n\
                print('oops', file=sys.stderr)\nprint(state + 1)";
    let (execution, mut output) = executing(&vm, code).await;
    let listening = tokio::spawn(async move { while output.recv().await.is_some() {} });
    vm.channel().close().await.expect("it lives");
    sleep(Duration::from_secs(4)).await;
    assert!(!execution.is_finished(), "nobody can know how it ended");
    vm.channel().open().await.expect("the agent answers");
    let outcome = execution.await.expect("no panic").expect("it ran");
    assert_eq!(stdout(&outcome), format!("begun\n{}42\n", "x".repeat(900_000)));
    assert_eq!((&outcome.stderr[..], outcome.exit), (&b"oops\n"[..], Exit::Code(0)));
    listening.await.expect("no panic");
    vm.destroy().await.expect("it dies");
    world.assert_empty([vm.vm_id()]);
}

#[tokio::test]
async fn a_program_is_ended_in_time_although_its_host_is_away() {
    let world = World::new();
    let manager = manager(&world).await;
    let vm = Arc::new(vm(&manager, Language::Raw).await);
    let (sender, mut output) = mpsc::channel(16);
    let request = ExecRequest { timeout: Some(Duration::from_secs(1)), ..ExecRequest::new("echo begun; sleep 1000") };
    let asked = Arc::clone(&vm);
    let execution = tokio::spawn(async move { asked.execute_streaming(request, sender).await });
    output.recv().await.expect("it has begun");
    vm.channel().close().await.expect("it lives");
    sleep(Duration::from_secs(3)).await;
    vm.channel().open().await.expect("the agent answers");
    let outcome = execution.await.expect("no panic").expect("a timeout is an outcome");
    assert_eq!((outcome.exit, stdout(&outcome).as_str()), (Exit::TimedOut, "begun\n"));
    say_hello(&vm).await;
    manager.close().await.expect("nothing is left");
}

#[tokio::test]
async fn a_vm_that_is_destroyed_leaves_no_process_and_no_zombie() {
    let world = World::new();
    let manager = manager(&world).await;
    let vm = vm(&manager, Language::Raw).await;
    let (id, pid) = (vm.vm_id().to_owned(), vm.process().pid());
    assert_eq!(processes(&id), [pid], "the process is QEMU itself");
    assert!(vm.gateway().is_none(), "it has no network");
    let begun = Instant::now();
    vm.destroy().await.expect("it dies");
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    assert!(!vm.process().is_alive());
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists(), "it has been reaped");
    world.assert_empty([&id]);
    vm.destroy().await.expect("it is dead, which is no error");
    let late = vm.execute(ExecRequest::new("true")).await.expect_err("it is dead");
    assert!(late.kind().is_transient(), "{late}");
}

#[tokio::test]
async fn a_process_that_is_killed_takes_its_five_vms_with_it_and_the_next_start_clears_up() {
    let world = World::new();
    let mut keeper = Command::new(env!("CARGO_BIN_EXE_keeper"))
        .args([world.run_dir().as_os_str(), "5".as_ref()])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    let lines = BufReader::new(keeper.stdout.take().expect("it is piped")).lines();
    let ids: Vec<String> = lines.take(5).map(|line| line.expect("it is text")).collect();
    assert!(ids.iter().all(|id| processes(id).len() == 1), "five VMs run: {ids:?}");
    keeper.kill().expect("it is ours");
    let killed = Instant::now();
    wait_for("the death of orphans", || ids.iter().all(|id| processes(id).is_empty()).then_some(()));
    assert!(killed.elapsed() < Duration::from_secs(2), "{:?}", killed.elapsed());
    keeper.wait().expect("it is ours");
    assert_eq!(world.vms().len(), 5, "nobody has cleared up yet");
    let manager = manager(&world).await;
    world.assert_empty(ids);
    manager.close().await.expect("nothing is left");
}

#[tokio::test]
async fn a_qemu_that_is_killed_while_it_executes_is_reported_at_once_as_an_unknown_outcome() {
    let world = World::new();
    let manager = manager(&world).await;
    let vm = Arc::new(vm(&manager, Language::Raw).await);
    let (execution, _output) = executing(&vm, "echo running; sleep 1000").await;
    pidfd_send_signal(vm.process(), Signal::KILL).expect("it is ours");
    let killed = Instant::now();
    let lost = execution.await.expect("no panic").expect_err("it is dead");
    assert!(killed.elapsed() < Duration::from_secs(1), "{:?}", killed.elapsed());
    assert_eq!(lost.kind(), ErrorKind::OutcomeUnknown);
    assert!(!lost.kind().is_transient());
    vm.destroy().await.expect("it is dead");
    world.assert_empty([vm.vm_id()]);
}

#[tokio::test]
async fn a_qemu_that_is_stopped_is_destroyed_like_any_other() {
    let world = World::new();
    let manager = manager(&world).await;
    let vm = Arc::new(vm(&manager, Language::Raw).await);
    let (execution, _output) = executing(&vm, "echo running; sleep 1000").await;
    pidfd_send_signal(vm.process(), Signal::STOP).expect("it is ours");
    vm.destroy().await.expect("SIGKILL ends what is stopped");
    assert_eq!(execution.await.expect("no panic").expect_err("it is dead").kind(), ErrorKind::OutcomeUnknown);
    world.assert_empty([vm.vm_id()]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_is_cancelled_at_any_moment_of_its_life_leaves_nothing() {
    const MOMENTS: u32 = 100;
    let world = World::new();
    let scheduler = Arc::new(world.scheduler().await);
    let request = || RunRequest::new(Language::Raw, "echo hi; sleep 0.05; echo bye >&2");
    let begun = Instant::now();
    scheduler.run(request()).await.expect("it runs");
    let life = begun.elapsed();
    // Two at a time, as the machine would have them. Each moment is drawn from its own hundredth of a life.
    let lives = [0, 1].map(|half| {
        let scheduler = Arc::clone(&scheduler);
        tokio::spawn(async move {
            for moment in (half..MOMENTS).step_by(2) {
                let jitter = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic).tv_nsec % 1000;
                let at = life * (moment * 1000 + u32::try_from(jitter).expect("it is small")) / (MOMENTS * 1000);
                let _ = tokio::time::timeout(at, scheduler.run(request())).await;
            }
        })
    });
    for half in lives {
        half.await.expect("no panic");
    }
    scheduler.close().await.expect("nothing is left");
    world.assert_empty(Vec::<String>::new());
    assert_eq!(vmtests::children(), Vec::<u32>::new(), "processes are left");
}

/// One cycle after the other: what is left of each is counted.
async fn cycles(count: usize) {
    let world = World::new();
    // The snapshot that all may be copies of is written down when this ends, and not while others are counted.
    let first = manager(&world).await;
    vm(&first, Language::Raw).await.destroy().await.expect("it dies");
    first.close().await.expect("nothing is left");
    drop(first);
    let manager = manager(&world).await;
    let entries = |dir: &str| fs::read_dir(dir).expect("/proc can be read").count();
    // The first VMs make what stays: the spawner's thread, the allocator's pools.
    for _ in 0..3 {
        vm(&manager, Language::Raw).await.destroy().await.expect("it dies");
    }
    let (descriptors, resident) = (entries("/proc/self/fd"), vmtests::resident_bytes());
    for _ in 0..count {
        let vm = vm(&manager, Language::Raw).await;
        vm.destroy().await.expect("it dies");
        world.assert_empty([vm.vm_id()]);
    }
    assert_eq!(entries("/proc/self/fd"), descriptors, "descriptors are left");
    assert_eq!(vmtests::children(), Vec::<u32>::new(), "processes are left");
    let grown = vmtests::resident_bytes().saturating_sub(resident);
    assert!(grown < 10_000_000, "{grown} bytes of memory are left after {count} VMs");
    manager.close().await.expect("nothing is left");
}

#[tokio::test]
async fn cycles_of_creating_and_destroying_leave_nothing() {
    cycles(10).await;
}

#[tokio::test]
#[ignore = "takes minutes: cargo nextest run -p vmtests --run-ignored only"]
async fn two_hundred_cycles_of_creating_and_destroying_leave_nothing() {
    cycles(200).await;
}
