//! VMs that are ready and QEMUs that wait, of which some go wrong before anybody asks for them.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use exec_sandbox::{ErrorKind, Origin, Scheduler, SchedulerConfig};
use rustix::process::{Pid, Signal, kill_process};

use crate::{
    leftovers,
    world::{World, chain, closes_down_to, eventually, faulty, serves},
};

/// Long enough for a fake in good order on a busy machine; what hangs is waited for as long.
const BOOT_TIMEOUT: Duration = Duration::from_secs(3);

/// How long a pool of fakes may take to be full.
const PATIENCE: Duration = Duration::from_secs(30);

/// A world with one VM that is ready and one QEMU that waits, both of which play scenes.
struct Pooled {
    world: World,
    scheduler: Scheduler,
    before: BTreeMap<String, usize>,
}

impl Pooled {
    /// A pool that is full.
    async fn start() -> Self {
        let pooled = Self::begin(World::in_good_order()).await;
        pooled.fills().await;
        pooled
    }

    /// One that is about to be filled.
    async fn begin(world: World) -> Self {
        // What stays with the process is made by this one.
        let first = world.scheduler().await;
        serves(&first).await;
        first.close().await.expect("nothing is left");
        drop(first);
        let before = leftovers::descriptors();
        let config = SchedulerConfig {
            snapshots: true,
            snapshot_dir: Some(world.run_dir().with_file_name("snapshots")),
            warm_pool_size: 1,
            default_memory_mib: faulty().memory_mib.expect("it has a size"),
            boot_timeout: BOOT_TIMEOUT,
            ..world.config()
        };
        let scheduler = Scheduler::start(config).await.unwrap_or_else(|error| panic!("{}", chain(&error)));
        Self { world, scheduler, before }
    }

    async fn fills(&self) {
        self.scheduler.wait_pool_ready(PATIENCE).await.unwrap_or_else(|error| panic!("{}", chain(&error)));
    }

    /// Runs a program, and says where its VM came from.
    async fn run(&self) -> Origin {
        let outcome = self.scheduler.run(faulty()).await.unwrap_or_else(|error| panic!("{}", chain(&error)));
        assert_eq!(&outcome.stdout[..], b"echo $((6 * 7))");
        outcome.timing.origin
    }

    /// Signals each of its processes.
    fn signal(&self, signal: Signal) {
        let processes = self.world.processes();
        assert_eq!(processes.len(), 2, "one is ready and one waits");
        for process in processes {
            kill_process(Pid::from_raw(process.pid).expect("it is an id"), signal).expect("it is ours");
        }
    }

    async fn end(self) {
        self.scheduler.close().await.unwrap_or_else(|error| panic!("{}", chain(&error)));
        self.world.assert_empty();
        drop(self.scheduler);
        closes_down_to(&self.before).await;
    }
}

#[tokio::test]
async fn a_pool_serves_from_its_highest_rung_and_is_filled_again_and_ends_with_its_scheduler() {
    let pooled = Pooled::start().await;
    assert_eq!(pooled.run().await, Origin::Ready);
    pooled.fills().await;
    let (one, other) = tokio::join!(pooled.run(), pooled.run());
    assert_eq!((one, other), (Origin::Ready, Origin::Blank));
    pooled.fills().await;
    pooled.end().await;
}

#[tokio::test]
async fn what_has_died_in_a_pool_is_replaced_and_never_handed_out() {
    let pooled = Pooled::start().await;
    pooled.signal(Signal::KILL);
    assert!(matches!(pooled.run().await, Origin::Ready | Origin::Snapshot));
    pooled.fills().await;
    assert_eq!(pooled.run().await, Origin::Ready);
    pooled.end().await;
}

#[tokio::test]
async fn what_does_not_answer_is_given_up_in_time() {
    let pooled = Pooled::start().await;
    pooled.signal(Signal::STOP);
    let begun = Instant::now();
    // The ready one is asked first, then the one that waits, and then there is neither.
    assert_eq!(pooled.run().await, Origin::Snapshot);
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    pooled.fills().await;
    assert_eq!(pooled.run().await, Origin::Ready);
    pooled.end().await;
}

#[tokio::test]
async fn a_pool_that_cannot_be_filled_says_so_rests_and_stands_in_nobodys_way() {
    let world = World::in_good_order();
    world.install_for_each(&["", "donor"], &["say no kernel", "exit 1"]);
    let pooled = Pooled::begin(world).await;
    let error = pooled.scheduler.wait_pool_ready(Duration::from_secs(2)).await.expect_err("nothing boots");
    assert_eq!(error.kind(), ErrorKind::BootTimeout, "{}", chain(&error));
    assert!(error.remedy().is_some_and(|remedy| remedy.contains("warm_pool_size")), "{error:?}");
    let error = pooled.scheduler.run(faulty()).await.expect_err("nothing boots");
    assert!(chain(&error).contains("saying: no kernel"), "{}", chain(&error));
    // Another size is no matter of this pool.
    serves_another(&pooled).await;
    pooled.world.install(&[]);
    pooled.fills().await;
    assert_eq!(pooled.run().await, Origin::Ready);
    pooled.end().await;
}

#[tokio::test]
async fn a_pool_whose_guests_do_not_boot_to_be_saved_has_vms_that_boot_without() {
    let world = World::in_good_order();
    world.install_for("donor", &["say no kernel", "exit 1"]);
    let pooled = Pooled::begin(world).await;
    pooled.fills().await;
    assert_eq!(pooled.run().await, Origin::Ready);
    assert_eq!(pooled.scheduler.run(faulty()).await.map(|outcome| outcome.timing.snapshot).expect("it boots"), None);
    pooled.end().await;
}

#[tokio::test]
async fn copies_that_refuse_leave_a_pool_of_vms_that_boot() {
    let world = World::in_good_order();
    world.install_for("copy", &["greet", "accept", "decline not like this", "hang"]);
    let pooled = Pooled::begin(world).await;
    pooled.fills().await;
    // The one that is ready has booted. The one that waits refuses, and so does whatever is started in its place.
    let (one, other) = tokio::join!(pooled.run(), pooled.run());
    assert_eq!((one, other), (Origin::Ready, Origin::Cold));
    pooled.fills().await;
    assert_eq!(pooled.run().await, Origin::Ready);
    pooled.end().await;
}

async fn serves_another(pooled: &Pooled) {
    let request = exec_sandbox::RunRequest { memory_mib: Some(128), ..faulty() };
    let outcome = pooled.scheduler.run(request).await.unwrap_or_else(|error| panic!("{}", chain(&error)));
    assert_eq!(&outcome.stdout[..], b"echo $((6 * 7))");
    eventually("its end", || (pooled.world.vms().len() <= 2).then_some(())).await;
}
