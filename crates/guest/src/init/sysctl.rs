//! Kernel settings. Each is worth having and none is worth failing for.

use rustix::{
    fs::{Mode, OFlags},
    io,
};

use crate::kmsg;

const SETTINGS: [(&str, &str); 6] = [
    // Links and files in /tmp cannot be used to lead another user's process astray.
    ("/proc/sys/fs/protected_symlinks", "1"),
    ("/proc/sys/fs/protected_hardlinks", "1"),
    ("/proc/sys/fs/protected_fifos", "2"),
    ("/proc/sys/fs/protected_regular", "2"),
    // ping without privileges.
    ("/proc/sys/net/ipv4/ping_group_range", "0 2147483647"),
    // Otherwise a thread of the kernel wakes twice a second to look for gaps between pages, also in a machine that does nothing.
    ("/proc/sys/vm/compaction_proactiveness", "0"),
];

/// Applies them all.
pub(super) fn apply() {
    SETTINGS.into_iter().for_each(apply_one);
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
