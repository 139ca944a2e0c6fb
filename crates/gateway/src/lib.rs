//! The whole network of one VM: what its guest may reach, and by which name.
//!
//! Every byte that comes in is hostile. It owns the policy, the names and the protocols; it does not own a clock: bytes, addresses
//! and time are arguments, and decisions come out. It knows nothing of VMs, languages or sessions.

mod bucket;
pub mod config;
pub mod descriptors;
pub mod dns;
pub mod engine;
pub mod ip;
pub mod jail;
pub mod link;
pub mod memory;
pub mod names;
pub mod policy;
pub mod report;
pub mod shell;
pub mod stream;
pub mod tls;
