//! Kernel settings. Each is worth having and none is worth failing for.

use std::fs;

use rustix::{
    fs::{Mode, OFlags},
    io,
};

use crate::kmsg;

const SETTINGS: [(&str, &str); 8] = [
    // Where the kernel lies is nobody's business, root's included.
    ("/proc/sys/kernel/kptr_restrict", "2"),
    // Links and files in /tmp cannot be used to lead another user's process astray.
    ("/proc/sys/fs/protected_symlinks", "1"),
    ("/proc/sys/fs/protected_hardlinks", "1"),
    ("/proc/sys/fs/protected_fifos", "2"),
    ("/proc/sys/fs/protected_regular", "2"),
    // ping without privileges.
    ("/proc/sys/net/ipv4/ping_group_range", "0 2147483647"),
    // Otherwise a thread of the kernel wakes twice a second to look for gaps between pages, also in a machine that does nothing.
    ("/proc/sys/vm/compaction_proactiveness", "0"),
    // Every five seconds it would be looked what is to be written to disks, of which none can be written to.
    ("/proc/sys/vm/dirty_writeback_centisecs", "0"),
];

/// IPv6 by network interfaces.
const IPV6: &str = "/proc/sys/net/ipv6/conf";
/// Names there that stand for no card.
const NO_CARDS: [&str; 2] = ["all", "lo"];

/// Applies them all, and turns IPv6 off on every card: programs would try it first, and nobody answers.
pub(super) fn apply() {
    SETTINGS.into_iter().for_each(apply_one);
    let Ok(entries) = fs::read_dir(IPV6) else { return };
    for name in entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()) {
        if !NO_CARDS.contains(&name.as_str()) {
            apply_one((&format!("{IPV6}/{name}/disable_ipv6"), "1"));
        }
    }
}

fn apply_one((path, value): (&str, &str)) {
    if let Err(error) = write(path, value) {
        kmsg::warn(&format!("cannot set {path} to {value}: {error}"));
    }
}

/// Writes one of the kernel's files.
pub(super) fn write(path: &str, value: &str) -> io::Result<()> {
    let file = rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    io::write(file, value.as_bytes()).map(|_| ())
}
