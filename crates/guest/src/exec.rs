//! Executions: one program after another, each from its start to its last frame.
//!
//! ```text
//!  Begin ─▶ acquire an interpreter ─▶ Program whole ─▶ hand over ─▶ drive ─▶ settle ─▶ Done
//!              │ (started while the program still arrives)            │
//!              └──────────▶ Refused                                   └ deadline, cancel: see `ladder`
//! ```
//! The executor owns interpreters and their pipes; commands reach it in every state, so a cancel never waits behind anything. It
//! does not know whether there is a host: that is in the streams. A program that has ended occupies it no longer, wherever its output
//! has got to.

mod current;
mod drive;
mod executor;
mod interpreters;
mod ladder;
mod verdict;
mod workspace;

use std::{rc::Rc, time::Instant};

use exec_sandbox_wire::{Done, Program, Refused};

pub(crate) use executor::{Executor, Parts};

use crate::{output::Streams, program::Terms};

/// What the agent tells the executor. The number is the operation's; a command for an operation that is over is ignored.
#[derive(Debug)]
pub(crate) enum Command {
    /// An execution begins, with streams for its output; its program follows.
    Begin(u32, Terms, Rc<Streams>, Instant),
    /// Its program is whole.
    Program(u32, Program),
    /// Its program will not come, and its end has been reported.
    Abandon(u32),
    /// A signal for its processes.
    Signal(u32, u8),
    /// It shall end.
    Cancel(u32),
    /// This machine has become one of its own: so shall each interpreter, before a program runs in it.
    Reseed,
}

/// How an operation ended: its terminal frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Terminal {
    /// It ran.
    Done(Done),
    /// None of it ran.
    Refused(Refused),
}

/// An operation's end, for the agent.
#[derive(Debug)]
pub(crate) struct Finished {
    /// The operation.
    pub(crate) op: u32,
    /// Its end; nothing if it was abandoned.
    pub(crate) terminal: Option<Terminal>,
}
