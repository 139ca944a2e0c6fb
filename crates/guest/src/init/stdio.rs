//! Descriptors 0 to 2. PID 1 may start without them, and then the first file that is opened would be taken for one of them.

use std::mem;

use rustix::{
    fd::AsRawFd as _,
    fs::{Mode, OFlags},
};

/// Opens `/dev/null` until descriptors 0 to 2 are taken. Whatever already has them (a console) keeps them.
pub(super) fn open() {
    while let Ok(null) = rustix::fs::open("/dev/null", OFlags::RDWR, Mode::empty()) {
        if null.as_raw_fd() > 2 {
            return;
        }
        mem::forget(null);
    }
}
