//! The loopback interface, which a kernel starts with down.
#![expect(unsafe_code, reason = "setting an interface's flags is an ioctl on a C struct")]

use rustix::{
    fd::AsRawFd as _,
    io,
    net::{AddressFamily, SocketFlags, SocketType},
};

/// Brings `lo` up; the kernel gives it its addresses then.
pub(super) fn up() -> io::Result<()> {
    let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    let mut name = [0; libc::IFNAMSIZ];
    for (to, from) in name.iter_mut().zip(b"lo") {
        *to = from.cast_signed();
    }
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the flags are 16 bits wide in this struct, and both lie below"
    )]
    let ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    let request = libc::ifreq { ifr_name: name, ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags } };
    // SAFETY: SIOCSIFFLAGS reads an ifreq with a name that ends in NUL (two letters in sixteen zeros) and flags, both set above; the
    // struct lives until the call returns, and the descriptor is an open socket.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(io::Errno::IO))
    }
}
