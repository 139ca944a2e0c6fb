//! A process by its pidfd: death is the descriptor becoming readable, and the reaping tells what was used.
#![expect(unsafe_code, reason = "registering a descriptor with tokio and wait4 for the usage of the reaped process")]

use std::{
    fs::File,
    io,
    mem::MaybeUninit,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::process::ExitStatusExt as _,
    },
    process::ExitStatus,
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    process::{Pid, Signal, WaitId, WaitIdOptions, waitid},
};
use tokio::io::{Interest, unix::AsyncFd};

use super::spawn::Spawned;

/// How long a drop, which cannot await, waits for a killed process: QEMU needs milliseconds to give back its memory.
const DROP_PATIENCE: Timespec = Timespec { tv_sec: 2, tv_nsec: 0 };

/// How a process ended. Neither that nor the usage is known if somebody else has reaped it: a program that embeds this one and
/// ignores SIGCHLD, or waits for any child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ended {
    pub(crate) status: Option<ExitStatus>,
    pub(crate) usage: Option<ChildUsage>,
}

/// What the kernel counted for a process over its life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ChildUsage {
    /// User and system time.
    pub(crate) cpu: Duration,
    /// The most memory that was resident at once, in bytes.
    pub(crate) max_resident_bytes: u64,
}

/// A child of this process that has not been reaped.
#[derive(Debug)]
pub(super) struct PidFd {
    pid: Pid,
    fd: AsyncFd<OwnedFd>,
}

impl PidFd {
    pub(super) fn register(spawned: Spawned) -> io::Result<Self> {
        let (pid, fd) = spawned.into_parts();
        // SAFETY: `register` wants a descriptor that stays open and the same while it is registered; an `OwnedFd` does both.
        let registered = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) };
        match registered {
            Ok(fd) => Ok(Self { pid, fd }),
            Err(error) => {
                let (fd, error) = error.into_parts();
                drop(Spawned::from_parts(pid, fd));
                Err(error)
            }
        }
    }

    pub(super) fn pid(&self) -> Pid {
        self.pid
    }

    pub(super) async fn readable(&self) -> io::Result<()> {
        // The readiness is not cleared: a dead process stays dead, and a dropped waiter may be followed by another.
        self.fd.readable().await.map(|_guard| ())
    }

    /// Waits for the end, which has come or is about to, and reaps.
    pub(super) fn reap(&self) -> io::Result<Ended> {
        reap(self.pid)
    }
}

impl AsFd for PidFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.get_ref().as_fd()
    }
}

/// Registers a file of which the kernel tells that it has changed.
pub(super) fn watch(file: File) -> io::Result<AsyncFd<File>> {
    // SAFETY: as in `PidFd::register`: a `File` keeps its descriptor open and the same.
    let registered = unsafe { AsyncFd::register_with_interest(file, Interest::PRIORITY) };
    registered.map_err(|error| error.into_parts().1)
}

/// Waits until the process of a pidfd that nobody else registers has ended.
pub(super) async fn readable(pidfd: OwnedFd) -> io::Result<()> {
    // SAFETY: as in `PidFd::register`.
    let registered = unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) };
    registered.map_err(|error| error.into_parts().1)?.readable().await.map(|_guard| ())
}

/// Sends `signal`. A process that has ended already is no error.
pub(super) fn send(pidfd: BorrowedFd<'_>, signal: Signal) -> io::Result<()> {
    match rustix::process::pidfd_send_signal(pidfd, signal) {
        Ok(()) | Err(Errno::SRCH) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Kills a child whose owner is gone and reaps it. One that does not die is left as a zombie to be, so that this returns.
pub(super) fn kill_and_reap(pid: Pid, fd: BorrowedFd<'_>) -> Option<Ended> {
    // One that is no child of this process was reaped, or is another's: this one was forked from its parent.
    waitid(WaitId::PidFd(fd), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG).ok()?;
    send(fd, Signal::KILL).ok()?;
    let ended = poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)], Some(&DROP_PATIENCE));
    if ended.is_ok_and(|ready| ready > 0) { reap(pid).ok() } else { None }
}

/// Waits for the child `pid` and reaps it.
fn reap(pid: Pid) -> io::Result<Ended> {
    let (mut status, mut usage) = (0, MaybeUninit::<libc::rusage>::zeroed());
    loop {
        // SAFETY: `wait4` writes through two pointers, both to live locals of the types it wants.
        let waited = unsafe { libc::wait4(pid.as_raw_nonzero().get(), &raw mut status, 0, usage.as_mut_ptr()) };
        if waited > 0 {
            break;
        }
        let error = io::Error::last_os_error();
        match Errno::from_io_error(&error) {
            Some(Errno::INTR) => {}
            // No such child any more. Its id has not been given up by us, so it has ended, and somebody else has seen how.
            Some(Errno::CHILD) => return Ok(Ended { status: None, usage: None }),
            _ => return Err(error),
        }
    }
    // SAFETY: it was zeroed, which is a valid `rusage`, and `wait4` succeeded, so it is filled.
    let usage = unsafe { usage.assume_init() };
    Ok(Ended {
        status: Some(ExitStatus::from_raw(status)),
        usage: Some(ChildUsage {
            cpu: duration(usage.ru_utime) + duration(usage.ru_stime),
            // Linux counts it in KiB.
            max_resident_bytes: u64::try_from(usage.ru_maxrss).unwrap_or(0).saturating_mul(1024),
        }),
    })
}

fn duration(time: libc::timeval) -> Duration {
    let (seconds, micros) = (u64::try_from(time.tv_sec), u64::try_from(time.tv_usec));
    Duration::from_secs(seconds.unwrap_or(0)) + Duration::from_micros(micros.unwrap_or(0))
}
