//! Many VMs, one after the other.

use crate::{
    leftovers,
    world::{World, faulty, serves},
};

const CYCLES: usize = 300;

/// What memory may grow by: an allocator's arenas, not 30 KiB for each of the VMs.
const GROWTH_BYTES: usize = 10 * 1000 * 1000;

#[test]
fn hundreds_of_vms_leave_no_descriptor_no_thread_no_process_and_no_memory() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(1)
        .build()
        .expect("a runtime can be built");
    runtime.block_on(async {
        let world = World::playing(&["greet", "accept", "hello", "await-exec", "stdout-bytes 300000", "exit 1"]);
        let scheduler = world.scheduler().await;
        let mut before = None;
        for cycle in 0..CYCLES {
            serves(&scheduler).await;
            if cycle % 3 == 0 {
                scheduler.run(faulty()).await.expect_err("it dies");
            }
            world.assert_empty();
            if cycle == CYCLES / 10 {
                before = Some((leftovers::descriptors(), leftovers::threads(), leftovers::resident_bytes()));
            }
        }
        let (descriptors, threads, resident) = before.expect("it is noted on the way");
        assert_eq!(leftovers::threads(), threads, "threads are left");
        let grown = leftovers::resident_bytes().saturating_sub(resident);
        assert!(grown < GROWTH_BYTES, "{CYCLES} VMs have left {grown} bytes");
        world.end(&scheduler, &descriptors).await;
    });
}
