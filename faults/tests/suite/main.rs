//! The supervisor's state machine against a QEMU that fails, dies, hangs and babbles, through the library's public API.
//!
//! No VM is needed. Every test has a world of its own, makes one thing go wrong in it, and proves what the caller is told, that
//! nothing is left, and that the next run on the same scheduler works. Descriptors, threads and limits are a process's, and so
//! each test needs one of its own, which nextest gives it.

mod boot;
mod callers;
mod cycles;
mod execution;
mod fork;
mod host;
mod leftovers;
mod monitor;
mod network;
mod pool;
mod snapshots;
mod spawn;
mod teardown;
mod world;

/// The program as it was built, without scenes.
const FAKE_QEMU: &str = env!("CARGO_BIN_EXE_fake-qemu");
