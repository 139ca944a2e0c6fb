//! A host program that forks, as Python's multiprocessing does: both processes run VMs, and neither touches the other's.
#![expect(unsafe_code, reason = "fork has no safe interface")]

use std::panic::{AssertUnwindSafe, catch_unwind};

use exec_sandbox::{ExecRequest, Language, SessionRequest};
use rustix::process::{Pid, WaitOptions, waitpid};
use tokio::runtime::{Builder, Runtime};

use crate::world::{World, serves};

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().expect("there are descriptors")
}

/// Forks this process, has the other one do `work`, and tells whether it came to its end.
fn forked(work: impl FnOnce()) -> bool {
    // SAFETY: what the child runs makes no use of threads that it lacks, which is what is tested, and it leaves below.
    let pid = match unsafe { libc::fork() } {
        0 => {
            let failed = catch_unwind(AssertUnwindSafe(work)).is_err();
            // SAFETY: it ends this process at once and runs nothing of the test's.
            unsafe { libc::_exit(i32::from(failed)) }
        }
        pid => Pid::from_raw(pid).expect("there is room for a process"),
    };
    let (_, status) = waitpid(Some(pid), WaitOptions::empty()).expect("it is ours").expect("it was waited for");
    status.exit_status() == Some(0)
}

#[test]
fn a_forked_process_runs_vms_of_its_own_and_leaves_those_of_the_other_alone() {
    let (world, here) = (World::in_good_order(), runtime());
    let (scheduler, session) = here.block_on(async {
        let scheduler = world.scheduler().await;
        serves(&scheduler).await;
        let session = scheduler.session(SessionRequest::new(Language::Raw)).await.expect("it boots");
        (scheduler, session)
    });
    let vms = world.vms();
    assert_eq!(vms.len(), 1);
    assert!(forked(|| {
        runtime().block_on(async {
            let scheduler = world.scheduler().await;
            assert_eq!(world.vms(), vms, "the start has cleared up nothing that is used");
            serves(&scheduler).await;
            scheduler.close().await.expect("all are dead");
            assert_eq!(world.vms(), vms);
        });
    }));
    here.block_on(async {
        let outcome = session.exec(ExecRequest::new("still here")).await.expect("its VM lives");
        assert_eq!(&outcome.stdout[..], b"still here");
        serves(&scheduler).await;
        scheduler.close().await.expect("all are dead");
    });
    world.assert_empty();
}
