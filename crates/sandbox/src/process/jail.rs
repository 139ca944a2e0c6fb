//! The jail: what confines a child, as plain data.
//!
//! Every child has a session of its own, an empty environment, no descriptor that it was not given, no capability and no way to
//! get one, and dies with its parent. A [`Jail`] adds layers to that, each of which may be absent: which of them a machine has
//! is found by `confinement`, and what a child does with them is in `child`.
//!
//! There is no mount namespace: Landlock hides the same files without the mounts of a C library and of QEMU's firmware for each
//! VM, and making one costs 0.3 to 2.7 ms a child, and 6 ms more until it is gone. There is no PID namespace either: a user of
//! its own and Landlock's scope keep a child's signals to itself, QEMU's seccomp filter lets it start nothing that could outlive
//! it, and as PID 1 it would lose the default actions of signals.

use std::{os::fd::OwnedFd, sync::Arc};

use rustix::{
    process::{Pid, Resource, Rlimit},
    thread::Gid,
};

use super::calls::Filter;

/// The first of the users that children are. Nobody else gives out numbers from here on: users of people and containers end at
/// 1,879,048,191 in systemd's table, those that sssd computes for a directory end at 2,000,200,000, and systemd's next begin at
/// 2,147,352,576.
const FIRST_USER: u32 = 0x7800_0000;

/// What confines one child. `None` is a layer that is absent.
#[derive(Clone, Debug, Default)]
pub(crate) struct Jail {
    pub(crate) limits: Option<Limits>,
    pub(crate) namespaces: Option<Namespaces>,
    pub(crate) own_user: Option<OwnUser>,
    pub(crate) landlock: Option<Ruleset>,
    pub(crate) calls: Option<Filter>,
}

/// Limits of the kernel for one process. There is none for processes, because the kernel counts those of a user, whichever
/// sandbox they belong to; the control group has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    pub(crate) open_files: u64,
    pub(crate) locked_memory_bytes: u64,
    /// The longest that a file may become by writing to it.
    pub(crate) file_bytes: u64,
}

/// A network namespace without interfaces, which children share; IPC and UTS namespaces they have of their own.
#[derive(Clone, Debug)]
pub(crate) struct Namespaces {
    pub(super) network: Arc<OwnedFd>,
}

/// A user and a group that no other process has.
///
/// The number is made of the child's process id, which no other child of any sandbox on this machine has at the same time: no
/// ledger, and nothing to give back. A sandbox in another PID namespace may use the same number, and cannot name this one's
/// processes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OwnUser {
    groups: Vec<Gid>,
}

/// What Landlock allows, as the kernel keeps it.
#[derive(Clone, Debug)]
pub(crate) struct Ruleset {
    pub(super) fd: Arc<OwnedFd>,
}

impl Limits {
    /// For a QEMU of one VM. It has 87 descriptors open, most of them an event for each queue that its serial device could have;
    /// KVM, a console and a network take a few more. It locks no memory, because nothing of a guest is told to stay resident, and
    /// it writes to sockets and pipes alone, never to a file.
    pub(crate) const QEMU: Self = Self { open_files: 256, locked_memory_bytes: 0, file_bytes: 0 };

    /// For a gateway, which has a socket for each connection of its guest and lowers these limits to what its configuration needs.
    /// It writes to sockets and a pipe alone.
    pub(crate) const GATEWAY: Self = Self { open_files: 8192, locked_memory_bytes: 0, file_bytes: 0 };

    /// As the kernel takes them. A limit that this process has already is not raised.
    pub(super) fn to_kernel(self) -> [(Resource, Rlimit); 3] {
        [
            (Resource::Nofile, self.open_files),
            (Resource::Memlock, self.locked_memory_bytes),
            (Resource::Fsize, self.file_bytes),
        ]
        .map(|(resource, wanted)| {
            let limit = rustix::process::getrlimit(resource).maximum.map_or(wanted, |maximum| maximum.min(wanted));
            (resource, Rlimit { current: Some(limit), maximum: Some(limit) })
        })
    }
}

impl OwnUser {
    /// A user who is in `groups` and in the group of its own number.
    pub(crate) fn new(groups: Vec<Gid>) -> Self {
        Self { groups }
    }

    pub(super) fn groups(&self) -> &[Gid] {
        &self.groups
    }

    /// The number of the child with this process id. Process ids have 22 bits.
    pub(super) fn number_for(&self, pid: Pid) -> u32 {
        FIRST_USER + pid.as_raw_nonzero().get().unsigned_abs()
    }
}

#[cfg(test)]
mod tests;
