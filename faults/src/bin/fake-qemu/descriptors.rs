//! The descriptors that a QEMU is handed, by the numbers that are on its command line.
#![expect(unsafe_code, reason = "a descriptor that is handed over by its number has no other way into a type")]

use std::{
    fs::File,
    io,
    os::{
        fd::{FromRawFd as _, OwnedFd, RawFd},
        unix::net::{UnixListener, UnixStream},
    },
    sync::atomic::{AtomicBool, Ordering},
};

const AGENT: RawFd = 3;
const MONITOR: RawFd = 4;
const CONSOLE: RawFd = 5;

/// The host's other ends.
#[derive(Debug)]
pub(crate) struct Descriptors {
    pub(crate) listener: UnixListener,
    pub(crate) monitor: UnixStream,
    pub(crate) console: Option<File>,
}

/// Takes what was handed over, with the console if there is one. It can be taken once.
pub(crate) fn handed_over(console: bool) -> io::Result<Descriptors> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Ordering::Relaxed) {
        return Err(io::Error::other("the descriptors have been taken"));
    }
    Ok(Descriptors {
        listener: take(AGENT).into(),
        monitor: take(MONITOR).into(),
        console: console.then(|| take(CONSOLE).into()),
    })
}

fn take(number: RawFd) -> OwnedFd {
    // SAFETY: whoever starts a QEMU with this number on its command line has put an open descriptor there, which is nobody
    // else's; and each is taken once.
    unsafe { OwnedFd::from_raw_fd(number) }
}
