//! The manager and its pool, with scripts in QEMU's place.

use std::fs;

use tokio::time::timeout;

use super::*;
use crate::{
    Language, SchedulerConfig,
    admission::tests::{one_busy_core, one_core},
    host::Host,
    vm::Fixture,
};

/// Long enough for a busy machine to start or end a script.
const PATIENCE: Duration = Duration::from_secs(30);

/// A QEMU that waits to be killed, of which the guest says nothing.
const SILENT: &str = "exec sleep 1000";

/// A manager, and where its VMs are.
struct World {
    manager: VmManager,
    root: tempfile::TempDir,
}

impl World {
    /// With a pool of one blank.
    fn new(admission: Admission) -> Self {
        let root = tempfile::tempdir().expect("a temporary directory");
        let common = Common {
            config: Arc::new(SchedulerConfig::default()),
            host: Arc::new(Host::pretend(root.path(), 1)),
            alive: TaskTracker::new(),
            closing: CancellationToken::new(),
        };
        Self { manager: VmManager::of(common, admission), root }
    }

    async fn full(admission: Admission) -> Self {
        let world = Self::new(admission);
        world.manager.wait_pool_ready(PATIENCE).await.expect("it is filled");
        world
    }

    fn pool(&self) -> &Pool {
        self.manager.pool.as_ref().expect("it is to keep a blank")
    }

    fn keep(&self, vm: Arc<QemuVm>) {
        self.pool().put(Arc::into_inner(vm).expect("nobody else has it"));
    }
}

fn spec() -> ValidVm {
    ValidVm::plain(Language::Raw, SchedulerConfig::default().default_memory_mib)
}

/// VMs that have a directory, blanks included.
fn vms(root: &tempfile::TempDir) -> usize {
    let entries = fs::read_dir(root.path().join("run")).expect("it is there").flatten();
    entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("vm-")).count()
}

async fn in_time<T>(future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.expect("it is over long before")
}

#[tokio::test]
async fn a_manager_that_is_dropped_ends_what_its_pool_keeps_and_nothing_else() {
    let world = World::full(one_core()).await;
    let idle = Fixture::new(SILENT).await;
    world.keep(idle.vm);
    let Common { alive, closing, .. } = world.manager.common.clone();
    assert_eq!(vms(&world.root), 1, "a blank waits");
    drop(world.manager);
    in_time(idle.owner).await.expect("no panic");
    alive.close();
    in_time(alive.wait()).await;
    assert_eq!(vms(&world.root), 0);
    assert!(!closing.is_cancelled(), "whoever holds a VM keeps it");
}

#[tokio::test]
async fn whoever_finds_one_vm_of_the_pool_too_slow_leaves_the_others_alone() {
    let world = World::full(one_core()).await;
    let [dead, slow, other] = [Fixture::new(SILENT).await, Fixture::new(SILENT).await, Fixture::new(SILENT).await];
    dead.vm.destroy().await.expect("it dies");
    for vm in [dead.vm, slow.vm, other.vm] {
        world.keep(vm);
    }
    let (never, asked) = (CancellationToken::new(), Instant::now());
    tokio::time::pause();
    let taken = world.pool().take(&spec(), &never).await.expect("nothing failed");
    let waited = asked.elapsed();
    tokio::time::resume();
    assert!(taken.is_none(), "its guest says nothing");
    assert_eq!(waited.as_secs(), 1, "the patience for one of them");
    in_time(slow.owner).await.expect("no panic");
    assert!(!other.owner.is_finished());
}

#[tokio::test]
async fn whoever_does_not_want_a_vm_of_the_pool_any_more_does_not_wait_for_its_answer() {
    let world = World::full(one_core()).await;
    let [one, other] = [Fixture::new(SILENT).await, Fixture::new(SILENT).await];
    let process = one.vm.process().clone();
    world.keep(one.vm);
    world.keep(other.vm);
    let off = CancellationToken::new();
    off.cancel();
    let refused = world.pool().take(&spec(), &off).await.expect_err("it is called off");
    assert_eq!(refused.kind(), ErrorKind::Closed);
    assert!(!process.is_alive());
    let never = CancellationToken::new();
    timeout(Duration::ZERO, world.pool().take(&spec(), &never)).await.expect_err("its guest says nothing");
    in_time(other.owner).await.expect("no panic");
}

#[tokio::test]
async fn a_blank_makes_room_on_a_machine_that_is_busy_with_other_things() {
    let world = World::full(one_busy_core()).await;
    let _permit = in_time(world.manager.admit(192.into())).await.expect("no VM runs");
    assert_eq!(vms(&world.root), 0);
}

#[tokio::test]
async fn a_vm_that_was_still_being_made_makes_room_when_it_is_in_the_pool() {
    let admission = one_busy_core();
    let coming = Fixture::admitted_by(&admission, SILENT).await;
    let world = World::new(admission);
    let (permit, ()) = in_time(async {
        tokio::join!(world.manager.admit(192.into()), async {
            sleep(4 * PRESSURE_LOOK).await;
            world.keep(coming.vm);
        })
    })
    .await;
    permit.expect("no VM runs any more");
}
