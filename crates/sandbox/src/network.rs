//! The network of a VM, as far as it is there before any of the VM's processes: whose hosts, which resolvers, which ports of the host,
//! and the program that carries it.
//!
//! What a guest may reach is decided by that program, the gateway; its process belongs to the VM.

mod ports;
mod program;
mod registries;
mod resolvers;

pub(crate) use ports::{PortError, bind};
pub(crate) use program::{GatewayProgram, find};
pub(crate) use registries::Registries;
pub(crate) use resolvers::of_this_host as resolvers_of_this_host;
pub use resolvers::{NotAResolver, parse_resolver};
