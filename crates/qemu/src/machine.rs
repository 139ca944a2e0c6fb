//! The one typed value from which a VM's arguments are built.
//!
//! Equal machines have equal arguments, in the same order: a saved state can only be loaded into the same list of devices, so
//! a snapshot's key is made of [`shape`](crate::shape), which is those of the arguments that guests differ by.

use std::{fmt, num::NonZeroU32, os::fd::RawFd, path::PathBuf, str::FromStr};

use serde::{Deserialize, Serialize};

/// One VM as QEMU is asked to make it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Machine {
    /// The guest's name in process listings; QEMU shows it nowhere to the guest.
    pub name: String,
    /// The guest's instruction set.
    pub arch: Arch,
    /// What runs the guest's instructions.
    pub accelerator: Accelerator,
    /// The guest's memory.
    pub memory_mib: u32,
    /// The guest's processors. Under software emulation more than one makes the guest slower: they take turns on one
    /// thread. The kernel of the standard image uses one.
    pub vcpus: u8,
    /// How the guest comes to life.
    pub start: Start,
    /// The root file system's disk.
    pub root_disk: RootDisk,
    /// A second disk, with packages that are laid over the root file system; `None`: there is none.
    pub layer_disk: Option<LayerDisk>,
    /// A Unix socket that is bound and listens, inherited by QEMU under this number, which QEMU serves as the agent's port.
    ///
    /// The host can connect before QEMU has started: the connection waits in the socket's queue. When QEMU ends in good order it
    /// removes the socket's path, if it may.
    pub agent_fd: RawFd,
    /// One end of a connected socket pair, inherited by QEMU under this number, on which it speaks QMP.
    pub qmp_fd: RawFd,
    /// The guest's network card; `None` gives it none, and then it has no network at all.
    pub network: Option<NetworkCard>,
    /// Where the guest's serial port writes; `None` gives it none, which boots 150 to 300 ms sooner under emulation.
    pub console: Option<Console>,
    /// The directory of the board's firmware, inherited by QEMU under this number; `None`: QEMU finds it beside its program. Linux only.
    pub firmware_fd: Option<RawFd>,
    /// Whether QEMU confines itself by seccomp. Linux only.
    pub sandbox: bool,
}

/// How a guest comes to life.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Start {
    /// It boots a kernel.
    Boot(Boot),
    /// It is a copy of a guest that was saved. QEMU waits, before it has made the machine, until it is told of that guest's memory and
    /// state: see [`qmp::restore`](crate::qmp::restore).
    Blank,
}

/// What is booted.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Boot {
    /// The kernel: an uncompressed ELF with a PVH note on x86-64, an `Image` on aarch64.
    pub kernel: PathBuf,
    /// The initial file system, which holds the agent.
    pub initramfs: PathBuf,
    /// Words for the kernel's command line after those of [`kernel_command_line`](crate::kernel_command_line).
    pub kernel_args: Vec<String>,
    /// A file of [`Machine::memory_mib`] that is the guest's memory, inherited by QEMU under this number, so that the guest can be
    /// saved; `None`: memory that ends with QEMU.
    pub memory_fd: Option<RawFd>,
    /// Whether QEMU waits, before it has made the machine, until it is told what it needs not translate: see
    /// [`qmp::boot`](crate::qmp::boot).
    pub waits: bool,
}

/// A guest's instruction set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Arch {
    /// 64-bit x86, on QEMU's `microvm`.
    X86_64,
    /// 64-bit Arm, on QEMU's `virt`.
    ///
    /// Its arguments are accepted by QEMU, but no guest of ours has been booted with them yet.
    Aarch64,
}

/// What runs the guest's instructions.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Accelerator {
    /// Linux's hypervisor.
    Kvm {
        /// What `-cpu` is given, for example `host`.
        cpu_model: String,
    },
    /// Apple's hypervisor.
    Hvf,
    /// QEMU's own software emulation.
    Tcg {
        /// Frequency of the host's time-stamp counter, which the guest's follows; spares the guest a calibration that fails at
        /// random on a busy host. `None`: the guest measures it.
        tsc_khz: Option<NonZeroU32>,
    },
}

/// The disk that holds the guest's root file system, attached read-only.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RootDisk {
    /// The image: raw, immutable while VMs use it, shared by all of them.
    pub path: PathBuf,
}

/// A disk that holds packages, attached read-only beside the root file system's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LayerDisk {
    /// The layer, inherited by QEMU under this number and open for reading: raw, immutable while VMs use it, shared by all that have these
    /// packages. QEMU opens no file for it, so it needs no right to go where layers lie.
    pub fd: RawFd,
}

/// A network card, and the wire that it is plugged into.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NetworkCard {
    /// One end of a connected stream socket pair, inherited by QEMU under this number. Frames cross it as a length of four bytes, the
    /// highest first, and as many bytes of Ethernet.
    pub fd: RawFd,
    /// The card's address.
    pub mac: [u8; 6],
    /// Largest packet that the card announces to the guest, in bytes.
    pub mtu: u16,
}

/// Where the guest's serial port writes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Console {
    /// One end of a connected socket pair, inherited by QEMU under this number.
    Socket(RawFd),
    /// A file, created or overwritten by QEMU.
    File(PathBuf),
}

/// A name that is no [`Arch`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an architecture that guests can have; there are x86_64 and aarch64")]
pub struct UnknownArch(String);

impl Arch {
    /// The architecture that this program runs on, which is the only one a hypervisor can accelerate.
    #[must_use]
    pub const fn of_host() -> Option<Self> {
        if cfg!(target_arch = "x86_64") {
            Some(Self::X86_64)
        } else if cfg!(target_arch = "aarch64") {
            Some(Self::Aarch64)
        } else {
            None
        }
    }

    /// The name as QEMU and the kernel spell it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::Aarch64 => "aarch64",
        }
    }

    /// The file name of the QEMU program for it.
    #[must_use]
    pub const fn qemu_program(self) -> &'static str {
        match self {
            Self::X86_64 => "qemu-system-x86_64",
            Self::Aarch64 => "qemu-system-aarch64",
        }
    }

    /// The machine type that [`argv`](crate::argv()) asks for.
    #[must_use]
    pub const fn machine_type(self) -> &'static str {
        match self {
            Self::X86_64 => "microvm",
            Self::Aarch64 => "virt",
        }
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

impl FromStr for Arch {
    type Err = UnknownArch;

    fn from_str(text: &str) -> Result<Self, UnknownArch> {
        match text {
            "x86_64" | "amd64" => Ok(Self::X86_64),
            "aarch64" | "arm64" => Ok(Self::Aarch64),
            other => Err(UnknownArch(other.to_owned())),
        }
    }
}

impl Accelerator {
    /// The name as `-accel` takes it.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Kvm { .. } => "kvm",
            Self::Hvf => "hvf",
            Self::Tcg { .. } => "tcg",
        }
    }

    /// Whether a guest's code is translated into the host's before it runs.
    #[must_use]
    pub const fn translates(&self) -> bool {
        matches!(self, Self::Tcg { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_architecture_is_read_back_from_its_name() {
        for arch in [Arch::X86_64, Arch::Aarch64] {
            assert_eq!(arch.to_string().parse(), Ok(arch));
        }
        assert_eq!("arm64".parse(), Ok(Arch::Aarch64));
        assert_eq!("riscv64".parse::<Arch>(), Err(UnknownArch("riscv64".into())));
    }
}
