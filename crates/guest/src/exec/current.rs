//! The execution under way, as far as commands change it.

use std::rc::Rc;

use exec_sandbox_wire::Program;

use super::Command;
use crate::{output::Streams, program::Terms};

/// An execution from its start to its last frame.
#[derive(Debug)]
pub(super) struct Current {
    pub(super) op: u32,
    pub(super) terms: Terms,
    pub(super) program: Option<Program>,
    pub(super) streams: Rc<Streams>,
    /// It shall not run, or no longer.
    pub(super) stopped: Option<Stopped>,
    /// The machine has become one of its own meanwhile: no interpreter is to be used after this.
    pub(super) outdates: bool,
}

/// Why an execution shall not run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stopped {
    /// Called off: it ends with a frame.
    Cancelled,
    /// Its end has been reported.
    Abandoned,
}

/// What a command asks for beyond what is noted here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Demand {
    /// A signal for the program.
    Signal(u8),
    /// The program's end.
    Cancel,
}

impl Current {
    pub(super) fn new(op: u32, terms: Terms, streams: Rc<Streams>) -> Self {
        Self { op, terms, program: None, streams, stopped: None, outdates: false }
    }

    /// Takes a command in.
    pub(super) fn absorb(&mut self, command: Command) -> Option<Demand> {
        match command {
            Command::Program(op, program) if op == self.op => self.program = Some(program),
            Command::Signal(op, number) if op == self.op => return Some(Demand::Signal(number)),
            Command::Cancel(op) if op == self.op => {
                self.stopped = self.stopped.or(Some(Stopped::Cancelled));
                return Some(Demand::Cancel);
            }
            Command::Abandon(op) if op == self.op => self.stopped = Some(Stopped::Abandoned),
            // What runs cannot be reseeded. Nobody copies a machine where something runs, so nothing that is worth keeping is lost.
            Command::Reseed => self.outdates = true,
            // For an operation that is over; the agent begins no second one.
            _ => {}
        }
        None
    }
}
