//! Bring-up: from a bare initramfs to a machine that can run programs.
//!
//! Runs once, before any thread or runtime exists, and is plain system calls in order: device and system trees, the root image, the
//! layer of packages and the memory file systems over it, the move onto it, then identity, loopback and limits, and last what programs
//! shall not see. A step without which no program could run is an error that ends the machine; one that a program may miss is a warning.
//! The port is opened after all of it, and then the devices are closed.

mod disk;
mod links;
mod loopback;
mod mounts;
mod seal;
mod sizes;
mod stdio;
mod sysctl;

use std::{fs, path::PathBuf};

use exec_sandbox_wire::boot::BootWords;
use rustix::io::Errno;

use crate::{cgroup::UserGroup, kmsg};

pub(crate) use seal::devices as seal_devices;

/// What programs see as the machine's name.
const HOSTNAME: &[u8] = b"sandbox";

/// What the kernel was started with.
const COMMAND_LINE: &str = "/proc/cmdline";

/// What the bring-up leaves to the agent.
#[derive(Debug)]
pub(crate) struct Ground {
    /// Where programs run.
    pub(crate) user_group: UserGroup,
}

/// Why the machine cannot be brought up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InitError {
    /// A file system could not be mounted.
    #[error("cannot mount {what} on {target}")]
    Mount {
        /// The file system's kind.
        what: &'static str,
        /// Where.
        target: &'static str,
        source: Errno,
    },
    /// A directory or link could not be made.
    #[error("cannot make {path}")]
    Make {
        /// Which.
        path: &'static str,
        source: Errno,
    },
    /// No disk has the serial of one that has to be there.
    #[error("no disk has the serial {serial:?} (disks: {disks})")]
    NoDisk {
        /// The serial.
        serial: &'static str,
        /// What there is instead, for people.
        disks: String,
    },
    /// The root image could not be mounted.
    #[error("cannot mount {} as the root image", device.display())]
    Root {
        /// The disk.
        device: PathBuf,
        source: Errno,
    },
    /// The disk with packages could not be mounted.
    #[error("cannot mount {} as the layer of packages", device.display())]
    Layer {
        /// The disk.
        device: PathBuf,
        source: Errno,
    },
    /// The image has no place for packages.
    #[error("the root image has no {path}, where the layer of packages is mounted")]
    NoLayerPlace {
        /// The place.
        path: &'static str,
    },
    /// The host's words could not be read.
    #[error("cannot read the kernel's command line")]
    Words { source: std::io::Error },
    /// The move onto the root image failed.
    #[error("cannot move onto the root image: {step}")]
    Move {
        /// The step.
        step: &'static str,
        source: Errno,
    },
    /// The programs' control group could not be made.
    #[error("cannot make the control group of programs")]
    UserGroup { source: std::io::Error },
}

/// Brings the machine up.
pub(crate) fn bring_up() -> Result<Ground, InitError> {
    mounts::early()?;
    stdio::open();
    let total = total_memory_bytes();
    let words = host_words()?;
    mounts::root(&disk::find_root()?)?;
    if words.has_layer {
        mounts::layer(&disk::find_layer()?)?;
    }
    mounts::over_root(total, words.files)?;
    links::make()?;
    mounts::move_onto_root()?;
    disk::unlink_nodes();
    for (what, result) in [
        ("name the machine", rustix::system::sethostname(HOSTNAME)),
        ("bring up the loopback interface", loopback::up()),
        ("protect the agent from the memory killer", sysctl::write("/proc/self/oom_score_adj", "-1000")),
    ] {
        if let Err(error) = result {
            kmsg::warn(&format!("cannot {what}: {error}"));
        }
    }
    sysctl::apply();
    let user_group = UserGroup::create(total).map_err(|source| InitError::UserGroup { source })?;
    seal::trees();
    Ok(Ground { user_group })
}

/// What the host has said on the kernel's command line.
fn host_words() -> Result<BootWords, InitError> {
    let line = fs::read(COMMAND_LINE).map_err(|source| InitError::Words { source })?;
    let line = String::from_utf8_lossy(&line);
    let (words, meaningless) = BootWords::read(&line);
    for word in meaningless {
        kmsg::warn(&format!("the host's word {word} means nothing, and is passed over"));
    }
    Ok(words)
}

fn total_memory_bytes() -> u64 {
    let info = rustix::system::sysinfo();
    #[expect(clippy::useless_conversion, reason = "the field's type differs between architectures")]
    let pages = u64::from(info.totalram);
    pages.saturating_mul(u64::from(info.mem_unit))
}
