//! Processes that tests fork, as a host program may do that embeds this crate.
#![expect(unsafe_code, reason = "fork has no safe interface")]

use std::{
    io::{PipeReader, PipeWriter, Read as _},
    panic::{AssertUnwindSafe, catch_unwind},
};

use rustix::process::{Pid, Resource, Rlimit, WaitOptions, setrlimit, waitpid};

use super::*;

/// Forks this process and runs `work` there, on the only thread that it has then.
pub(crate) fn fork(work: impl FnOnce() -> bool) -> Pid {
    // SAFETY: what the child runs makes no use of threads that it lacks, which is what is tested, and it leaves below.
    match unsafe { libc::fork() } {
        0 => {
            let is_well = catch_unwind(AssertUnwindSafe(work)).unwrap_or(false);
            // SAFETY: it ends this process at once and runs nothing of the test's.
            unsafe { libc::_exit(i32::from(!is_well)) }
        }
        pid => Pid::from_raw(pid).filter(|pid| pid.as_raw_nonzero().get() > 0).expect("there is room for a process"),
    }
}

/// Waits for a forked process; whether what it did was `true`.
pub(crate) fn is_well(forked: Pid) -> bool {
    let (_, status) = waitpid(Some(forked), WaitOptions::empty()).expect("it is ours").expect("it was waited for");
    status.exit_status() == Some(0)
}

/// Forks a process that does nothing until the other end of `(life, _)` is dropped or its holder ends.
pub(crate) fn fork_idler(life: &mut (PipeReader, Option<PipeWriter>)) -> Pid {
    fork(|| {
        life.1 = None;
        life.0.read(&mut [0]).is_ok_and(|read| read == 0)
    })
}

/// Lets no file of this process grow beyond `bytes`: as on a disk that is full, a write is an error. For a forked process.
pub(crate) fn limit_files(bytes: u64) {
    // SAFETY: to ignore a signal needs no handler.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    setrlimit(Resource::Fsize, Rlimit { current: Some(bytes), maximum: Some(bytes) }).expect("it becomes less");
}

#[test]
fn a_forked_process_has_not_made_what_it_inherits() {
    let maker = Maker::this_process();
    assert!(maker.is_this_process());
    assert!(is_well(fork(|| !maker.is_this_process() && Maker::this_process().is_this_process())));
}
