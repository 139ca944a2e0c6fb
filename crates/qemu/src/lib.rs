//! QEMU's language, spoken in pure functions: a [`Machine`] becomes arguments, QMP bytes become messages, the text of
//! `--version` becomes a [`Version`].
//!
//! It owns what QEMU understands and what its answers mean. It does not own a process, a socket, a clock or a policy: which
//! accelerator is used, and what is done with an answer, is decided elsewhere.

mod argv;
mod help;
mod kernel;
mod machine;
pub mod qmp;
mod version;

pub use argv::{argv, shape};
pub use help::{accelerators, has_machine};
pub use kernel::kernel_command_line;
pub use machine::{Accelerator, Arch, Boot, Console, LayerDisk, Machine, NetworkCard, RootDisk, Start, UnknownArch};
pub use version::{MINIMUM_VERSION, QemuVersion, Version, VersionError};

/// The name of the virtio-serial port that the agent opens in the guest.
pub const AGENT_PORT_NAME: &str = "org.exec-sandbox.agent";

/// The name of the guest's memory among QEMU's objects, where a host names it. It is part of a saved state.
const MEMORY_ID: &str = "memory";

/// The virtio serial by which the guest finds its root disk, whatever the order of the disks.
pub const ROOT_DISK_SERIAL: &str = "base";

/// The virtio serial by which the guest finds the disk with packages.
pub const LAYER_DISK_SERIAL: &str = "layer";
