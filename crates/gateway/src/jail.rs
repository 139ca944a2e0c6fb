//! What the gateway may still do once it has everything it needs: use its sockets, open new ones to the network, and end.
//!
//! Layers, each for itself: what one misses, another may stop. A machine that lacks one says so by [`Missing`]; whether that matters is
//! decided by who starts the gateway. Its user, its group and its namespaces are given to it before it starts.

#[cfg(target_os = "linux")]
mod linux;

use rustix::process::{DumpableBehavior, Resource, Rlimit};

#[cfg(target_os = "linux")]
use self::linux as platform;
use crate::config::{Config, Limits};

/// Memory beside the buffers of flows: the program, its libraries, the allocator's slack. Seen are 10 MiB.
const BASE_BYTES: u64 = 96 * 1024 * 1024;

/// Descriptors beside those of flows: the parent's, epoll's, and one for each question.
const BASE_DESCRIPTORS: u64 = 128;

/// A layer that this machine lacks, and why.
#[derive(Debug, thiserror::Error)]
#[error("the jail lacks {layer}")]
pub struct Missing {
    /// Which layer.
    pub layer: Layer,
    /// Why.
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

/// One layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layer {
    /// Nothing it could execute has more rights than it has.
    NoNewPrivileges,
    /// No other process of its user reads its memory, and it leaves no core.
    NotDumpable,
    /// Memory and descriptors have a bound.
    ResourceLimits,
    /// No file, and no abstract socket.
    Landlock,
    /// No system call that a gateway does not make.
    Seccomp,
}

impl std::fmt::Display for Layer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::NoNewPrivileges => "no_new_privileges",
            Self::NotDumpable => "not_dumpable",
            Self::ResourceLimits => "resource_limits",
            Self::Landlock => "landlock",
            Self::Seccomp => "seccomp",
        })
    }
}

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Enters the jail. There is no way out. What is needed of files has been opened before.
#[must_use]
pub fn enter(config: &Config) -> Vec<Missing> {
    let layers: [(Layer, &dyn Fn() -> Result<()>); 5] = [
        (Layer::NoNewPrivileges, &|| no_new_privileges()),
        (Layer::NotDumpable, &|| Ok(rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?)),
        (Layer::ResourceLimits, &|| limit_resources(config)),
        (Layer::Landlock, &platform::no_files),
        // The last one: it would stop the making of the others.
        (Layer::Seccomp, &platform::no_other_calls),
    ];
    let missing =
        |(layer, enter): (Layer, &dyn Fn() -> Result<()>)| enter().err().map(|source| Missing { layer, source });
    layers.into_iter().filter_map(missing).collect()
}

fn no_new_privileges() -> Result<()> {
    Ok(rustix::thread::set_no_new_privs(true)?)
}

fn limit_resources(config: &Config) -> Result<()> {
    let Limits { tcp_flows, udp_flows, flow_buffer_bytes, wide_flows, wide_buffer_bytes } = config.limits;
    let flows = u64::from(tcp_flows);
    let ports = u64::try_from(config.ports.len())?;
    // Twice the buffers: the allocator may not give back at once what a flow held.
    let buffers = flows * u64::from(flow_buffer_bytes) + u64::from(wide_flows) * u64::from(wide_buffer_bytes);
    let bytes = BASE_BYTES + buffers * 2 * 2;
    let descriptors = BASE_DESCRIPTORS + flows + u64::from(udp_flows) + ports;
    for (resource, most) in [(Resource::As, bytes), (Resource::Nofile, descriptors), (Resource::Core, 0)] {
        let hard = rustix::process::getrlimit(resource).maximum.map_or(most, |maximum| maximum.min(most));
        rustix::process::setrlimit(resource, Rlimit { current: Some(hard), maximum: Some(hard) })?;
    }
    Ok(())
}

/// Why a layer is missing everywhere but on Linux.
#[cfg(not(target_os = "linux"))]
mod platform {
    use std::io;

    use super::Result;

    pub(super) fn no_files() -> Result<()> {
        Err(io::Error::from(io::ErrorKind::Unsupported).into())
    }

    pub(super) fn no_other_calls() -> Result<()> {
        Err(io::Error::from(io::ErrorKind::Unsupported).into())
    }
}
