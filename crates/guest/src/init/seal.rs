//! Closing what programs have no business with: the kernel's settings, the tables that describe the machine, and the devices.
//!
//! The agent writes to the kernel's trees before this and never after it; what it still needs it holds open. Only `/proc/sys`, `/sys` and
//! `/dev` become read-only: `/proc` has files of each process's own that it may write to. Modes are enough for the tables, because the
//! one who may change or pass over them, root, is the agent alone. Nothing here is worth failing for, and all of it is proven from
//! inside (`posture` in the library).

use std::fs;

use rustix::{
    fs::Mode,
    io,
    mount::{MountFlags, UnmountFlags},
};

use super::mounts::KERNEL_TREE;
use crate::kmsg;

const SETTINGS: &str = "/proc/sys";
const SYSTEM: &str = "/sys";
const DEVICES: &str = "/dev";
const CONTROL_GROUPS: &str = "/sys/fs/cgroup";

/// What tells how the machine is built, where the kernel lies and what it is doing, and is read by nothing that programs need.
const TABLES: [&str; 32] = [
    "/proc/buddyinfo",
    "/proc/bus",
    "/proc/consoles",
    "/proc/driver",
    "/proc/execdomains",
    "/proc/fs",
    "/proc/interrupts",
    "/proc/iomem",
    "/proc/ioports",
    "/proc/irq",
    "/proc/kmsg",
    "/proc/kpagecgroup",
    "/proc/kpagecount",
    "/proc/kpageflags",
    "/proc/misc",
    "/proc/mtrr",
    "/proc/pagetypeinfo",
    "/proc/softirqs",
    "/proc/timer_list",
    "/proc/tty",
    "/proc/vmallocinfo",
    "/proc/zoneinfo",
    "/sys/bus",
    "/sys/class/virtio-ports",
    "/sys/firmware",
    "/sys/kernel/boot_params",
    "/sys/kernel/irq",
    "/sys/kernel/notes",
    "/sys/kernel/reboot",
    "/sys/kernel/slab",
    "/sys/kernel/software_nodes",
    "/sys/module",
];

/// The devices that stay, and who may open them how.
const HARMLESS: [(&str, u32); 8] = [
    ("full", 0o666),
    // The agent's own voice.
    ("kmsg", 0o600),
    ("null", 0o666),
    ("ptmx", 0o666),
    // What is written to these goes into the kernel's random numbers, which is the host's to do.
    ("random", 0o444),
    ("urandom", 0o444),
    ("tty", 0o666),
    ("zero", 0o666),
];

/// Closes the kernel's trees, once the agent has set what is to be set there.
pub(super) fn trees() {
    for path in TABLES {
        match rustix::fs::chmod(path, Mode::empty()) {
            // Not every kernel has every table.
            Ok(()) | Err(io::Errno::NOENT) => {}
            Err(error) => kmsg::warn(&format!("cannot hide {path}: {error}")),
        }
    }
    for (what, result) in [
        ("make the kernel's settings read-only", rustix::mount::mount_bind(SETTINGS, SETTINGS)),
        ("make the kernel's settings read-only", read_only(SETTINGS, KERNEL_TREE)),
        ("make the system's tree read-only", read_only(SYSTEM, KERNEL_TREE)),
        // Whoever has a file of them open keeps it.
        ("hide the control groups", rustix::mount::unmount(CONTROL_GROUPS, UnmountFlags::DETACH)),
    ] {
        warn(what, result);
    }
}

/// Removes every device that is not harmless, once the agent has opened its own.
pub(crate) fn devices() {
    let Ok(entries) = fs::read_dir(DEVICES) else { return };
    for entry in entries.flatten() {
        // Directories and links are no devices.
        if !entry.file_type().is_ok_and(|kind| !kind.is_dir() && !kind.is_symlink()) {
            continue;
        }
        let path = entry.path();
        match HARMLESS.iter().find(|(name, _)| entry.file_name() == *name) {
            Some(&(_, mode)) => {
                warn("restrict a device", rustix::fs::chmod(&path, Mode::from_raw_mode(mode)));
            }
            None => warn("remove a device", rustix::fs::unlink(&path)),
        }
    }
    warn("make the devices' tree read-only", read_only(DEVICES, MountFlags::NOSUID | MountFlags::NOEXEC));
}

/// Makes what is mounted at `path` read-only.
fn read_only(path: &str, others: MountFlags) -> io::Result<()> {
    rustix::mount::mount_remount(path, MountFlags::BIND | MountFlags::RDONLY | others, c"")
}

fn warn(what: &str, result: io::Result<()>) {
    if let Err(error) = result {
        kmsg::warn(&format!("cannot {what}: {error}"));
    }
}
