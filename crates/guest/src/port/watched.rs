//! What the loop watches for something to read.
#![expect(unsafe_code, reason = "the loop does not check what it is to watch")]

use std::io;

use rustix::fd::OwnedFd;
use tokio::io::{Interest, unix::AsyncFd};

/// Has the loop watch it for as long as the result is there.
pub(super) fn watched(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: it is open, and `AsyncFd` owns it: nobody replaces or closes it before that does.
    Ok(unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?)
}
