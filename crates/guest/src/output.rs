//! Output: what a program writes, on its way to the host.
//!
//! Each stream is read only as far as the host has granted, so a host that does not read stops the program and nothing is held here.
//! Past the cap the stream is read and counted, and no longer sent: a program is never stopped by what nobody will see.

mod meter;
mod pipe;

pub(crate) use meter::Meter;
pub(crate) use pipe::{Outbox, Pipe};
