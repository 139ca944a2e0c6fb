//! Descriptors that this process was started with and knows nothing of: a service must not keep them from whoever waits for their end.
#![expect(unsafe_code, reason = "a descriptor that was inherited is known by its number alone")]

use std::{fs, io, os::fd::BorrowedFd};

use rustix::io::{FdFlags, fcntl_getfd, fcntl_setfd};

/// Leaves to a program that is executed from here on nothing but the three standard streams.
///
/// # Errors
/// The system does not say what is open.
pub(super) fn keep_from_children() -> io::Result<()> {
    for entry in fs::read_dir("/dev/fd")? {
        let Some(number) = entry?.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        if number <= 2 {
            continue;
        }
        // SAFETY: the number is not -1, and the loan ends with this round. Whatever it is by now, it stays open and its owner's; should
        // it not be open any more, as the directory that is read here, `fcntl` says so and does nothing.
        let descriptor = unsafe { BorrowedFd::borrow_raw(number) };
        if let Ok(flags) = fcntl_getfd(descriptor) {
            fcntl_setfd(descriptor, flags | FdFlags::CLOEXEC)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{os::fd::AsRawFd as _, process::Command};

    use super::*;

    #[test]
    fn a_descriptor_that_children_would_inherit_is_kept_from_them() {
        let (reader, _writer) = io::pipe().expect("there are descriptors");
        fcntl_setfd(&reader, FdFlags::empty()).expect("it is open");
        let child_has_it = || {
            let number = reader.as_raw_fd();
            let script = format!("test -e /dev/fd/{number}");
            Command::new("sh").args(["-c", &script]).status().expect("sh starts").success()
        };
        assert!(child_has_it());
        keep_from_children().expect("it is known what is open");
        assert!(!child_has_it());
    }
}
