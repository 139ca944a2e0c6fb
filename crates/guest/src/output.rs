//! Output: what a program writes, on its way to the host.
//!
//! While a program runs, each stream is read only as far as the host has granted, so a host that does not read, or is away, stops
//! the program. What was sent is kept until the host has granted for it, a window at most, because a connection may be lost with it.
//! When the program has ended, what waits in its pipes is taken over: its interpreter is free, whatever the host does.
//!
//! Past the cap a stream is read and counted, and neither sent nor kept: a program is never stopped by what nobody will see.

mod flow;
mod pipe;
mod streams;

pub(crate) use flow::ResumeError;
pub(crate) use pipe::{Outbox, Pipe};
pub(crate) use streams::Streams;
