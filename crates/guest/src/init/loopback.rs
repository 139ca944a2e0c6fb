//! The loopback interface, which a kernel starts with down.

use rustix::io;

use crate::network::Interface;

/// Brings `lo` up; the kernel gives it its addresses then.
pub(super) fn up() -> io::Result<()> {
    Interface::open("lo")?.up()
}
