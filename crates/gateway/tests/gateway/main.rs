//! The gateway beside a second TCP stack that plays the guest: in memory and virtual time, and as a process on socket pairs.

mod gate;
mod guest;
mod netsim;

mod datagrams;
mod hostile;
mod names;
mod process;
mod streams;
