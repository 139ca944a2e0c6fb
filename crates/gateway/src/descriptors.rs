//! Descriptors that the parent handed over by their numbers.
//!
//! The one place where a number becomes a descriptor that is owned. Numbers are checked to be open, and to be named once; see
//! [`config`](crate::config).
#![expect(unsafe_code, reason = "the parent says by number which descriptors it handed over")]

use std::{
    io,
    os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd},
};

/// Takes a descriptor over. From here on it is closed on exec and does not block.
///
/// # Errors
/// If it is not open.
pub fn adopt(fd: RawFd) -> io::Result<OwnedFd> {
    let owned = adopt_blocking(fd)?;
    rustix::io::ioctl_fionbio(&owned, true)?;
    Ok(owned)
}

/// Takes a descriptor over that is read to its end before anything else. From here on it is closed on exec.
///
/// # Errors
/// If it is not open.
pub fn adopt_blocking(fd: RawFd) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: the number is not -1, and the loan ends with this block. Should it not be open, `fcntl` says so and does nothing.
    let flags = rustix::io::fcntl_getfd(unsafe { BorrowedFd::borrow_raw(fd) })?;
    // SAFETY: the descriptor is open, as was just seen. It is owned by nobody else in this process: the parent opened it for us, and
    // a configuration names each once.
    let owned = unsafe { OwnedFd::from_raw_fd(fd) };
    rustix::io::fcntl_setfd(&owned, flags | rustix::io::FdFlags::CLOEXEC)?;
    Ok(owned)
}

#[cfg(test)]
mod tests {
    use std::{io::Read as _, os::fd::IntoRawFd as _, os::unix::net::UnixStream};

    use super::*;

    #[test]
    fn a_descriptor_that_is_open_is_taken_over_and_does_not_block() {
        let (ours, _theirs) = UnixStream::pair().expect("there are descriptors");
        let mut adopted = UnixStream::from(adopt(ours.into_raw_fd()).expect("it is open"));
        let error = adopted.read(&mut [0]).expect_err("nothing is there");
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn a_number_that_is_not_open_is_an_error() {
        for fd in [-1, 1_000_000] {
            assert!(adopt(fd).is_err(), "{fd}");
        }
    }
}
