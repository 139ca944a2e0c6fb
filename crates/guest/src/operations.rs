//! Operations: what the host has asked for, by number, and what follows from each thing it says.
//!
//! Knows no port, no process and no clock: a message goes in, effects come out. One execution at a time; the table has room for
//! operations of other kinds beside it.
//!
//! ```text
//!  EXEC_START ─▶ Collecting ─▶ Running ─▶ Over ─▶ (ACK) forgotten
//!      │             └── Abandoned ──────▶ Over
//!      └── refused ────────────────────▶ Over
//! ```

use std::{collections::BTreeMap, time::Instant};

use bytes::Bytes;
use exec_sandbox_wire::{
    CONNECTION_OP, ExecStart, GENERATION, GuestMessage, Hello, HostMessage, Kind, Refusal, Refused, limits,
};

use crate::{
    exec::{Command, Finished, Terminal},
    program::{Assembly, Terms},
};

/// What is to be done about something the host said.
#[derive(Debug)]
pub(crate) enum Effect {
    /// Say this.
    Send(u32, GuestMessage),
    /// Tell the executor.
    Tell(Command),
    /// Set the wall clock.
    Clock(u64),
    /// A host is there that has not been greeted.
    Greet,
}

/// What no honest host says. The connection cannot be used after it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Violation {
    /// A number that is in use, or the connection's own.
    #[error("operation {0} cannot begin: its number is taken")]
    Number(u32),
    /// Another contract than ours.
    #[error("the host speaks generation {0}, and this agent {GENERATION}")]
    Generation(u32),
}

/// The operations that are not forgotten.
#[derive(Debug, Default)]
pub(crate) struct Operations {
    table: BTreeMap<u32, State>,
    /// The execution that the executor has not finished.
    executing: Option<u32>,
    /// The host has not answered our greeting yet.
    greeting: bool,
}

#[derive(Debug)]
enum State {
    Collecting(Assembly),
    Running,
    /// Refused, and not yet let go by the executor: were the host told now, its next request would find it busy.
    Abandoned(GuestMessage),
    Over(GuestMessage),
}

impl Operations {
    /// A host is being greeted: what it has to hear again.
    pub(crate) fn greet(&mut self) -> Vec<(u32, GuestMessage)> {
        self.greeting = true;
        let over = |(op, state): (&u32, &State)| match state {
            State::Over(message) => Some((*op, message.clone())),
            State::Collecting(_) | State::Running | State::Abandoned(_) => None,
        };
        self.table.iter().filter_map(over).collect()
    }

    /// The host says something about an operation.
    pub(crate) fn hear(&mut self, op: u32, message: HostMessage, now: Instant) -> Result<Vec<Effect>, Violation> {
        Ok(match message {
            HostMessage::Hello(hello) => self.hello(&hello)?,
            HostMessage::Ping(body) => vec![Effect::Send(op, GuestMessage::Pong(body))],
            HostMessage::ExecStart(start) => self.begin(op, &start, now)?,
            HostMessage::ExecProgram(piece) => self.collect(op, &piece),
            HostMessage::ExecSignal(signal) => match u8::try_from(signal.number) {
                Ok(number @ 1..=64) if self.is_active(op) => vec![Effect::Tell(Command::Signal(op, number))],
                _ => Vec::new(),
            },
            HostMessage::ExecCancel if self.is_active(op) => vec![Effect::Tell(Command::Cancel(op))],
            HostMessage::Credit(credit) if self.is_active(op) => vec![Effect::Tell(Command::Credit(op, credit))],
            HostMessage::Ack => {
                self.forget(op);
                Vec::new()
            }
            HostMessage::Unknown(kind) => self.unknown(op, kind),
            // For an operation that is over: the two crossed on the way.
            HostMessage::ExecCancel | HostMessage::Credit(_) => Vec::new(),
        })
    }

    /// The executor has finished one.
    pub(crate) fn finish(&mut self, finished: Finished) -> Option<(u32, GuestMessage)> {
        self.executing = None;
        let message = match (finished.terminal, self.table.remove(&finished.op)) {
            (_, Some(State::Abandoned(refused))) => refused,
            (Some(Terminal::Done(done)), _) => GuestMessage::Done(done),
            (Some(Terminal::Refused(refused)), _) => GuestMessage::Refused(refused),
            (None, _) => return None,
        };
        self.table.insert(finished.op, State::Over(message.clone()));
        Some((finished.op, message))
    }

    fn hello(&mut self, hello: &Hello) -> Result<Vec<Effect>, Violation> {
        if hello.generation != GENERATION {
            return Err(Violation::Generation(hello.generation));
        }
        let mut effects = vec![Effect::Clock(hello.unix_time_ns)];
        // A Hello that answers nothing comes from a host that took over an open port, as after a restore.
        if !self.greeting {
            effects.push(Effect::Greet);
        }
        self.greeting = false;
        Ok(effects)
    }

    fn begin(&mut self, op: u32, start: &ExecStart, now: Instant) -> Result<Vec<Effect>, Violation> {
        if op == CONNECTION_OP || self.table.contains_key(&op) {
            return Err(Violation::Number(op));
        }
        if let Some(other) = self.executing {
            return Ok(vec![self.refuse(op, Refusal::Busy, format!("operation {other} is still executing"))]);
        }
        if self.table.len() >= limits::MAX_OPERATIONS {
            return Ok(vec![self.refuse(op, Refusal::Busy, "too many operations are not acknowledged".to_owned())]);
        }
        let (terms, assembly) =
            match Terms::of(start).and_then(|terms| Ok((terms, Assembly::begin(start.program_bytes)?))) {
                Ok(request) => request,
                Err(error) => return Ok(vec![self.refuse(op, Refusal::BadRequest, error.to_string())]),
            };
        self.executing = Some(op);
        self.table.insert(op, State::Collecting(assembly));
        let mut effects = vec![Effect::Tell(Command::Begin(op, terms, now))];
        if start.program_bytes == 0 {
            effects.extend(self.collect(op, &Bytes::new()));
        }
        Ok(effects)
    }

    fn collect(&mut self, op: u32, piece: &Bytes) -> Vec<Effect> {
        // Pieces of an operation that was refused, or is whole, may still be on their way.
        let Some(State::Collecting(assembly)) = self.table.get_mut(&op) else { return Vec::new() };
        match assembly.add(piece) {
            Ok(None) => Vec::new(),
            Ok(Some(program)) => {
                self.table.insert(op, State::Running);
                vec![Effect::Tell(Command::Program(op, program))]
            }
            Err(error) => {
                let refused = Refused { reason: Refusal::BadRequest.into(), detail: error.to_string() };
                self.table.insert(op, State::Abandoned(GuestMessage::Refused(refused)));
                vec![Effect::Tell(Command::Abandon(op))]
            }
        }
    }

    fn refuse(&mut self, op: u32, reason: Refusal, detail: String) -> Effect {
        let message = GuestMessage::Refused(Refused { reason: reason.into(), detail });
        // What is not kept is not said again after a reconnect: the price of asking for more than the table holds.
        if self.table.len() < limits::MAX_OPERATIONS || self.table.contains_key(&op) {
            self.table.insert(op, State::Over(message.clone()));
        }
        Effect::Send(op, message)
    }

    /// A newer host may begin operations that this agent has never heard of, and say more about them before it is refused.
    fn unknown(&mut self, op: u32, kind: Kind) -> Vec<Effect> {
        if op == CONNECTION_OP || self.table.contains_key(&op) {
            return Vec::new();
        }
        vec![self.refuse(op, Refusal::UnknownOperation, format!("frames of kind {kind:?} mean nothing to this agent"))]
    }

    fn forget(&mut self, op: u32) {
        if matches!(self.table.get(&op), Some(State::Over(_))) {
            self.table.remove(&op);
        }
    }

    fn is_active(&self, op: u32) -> bool {
        matches!(self.table.get(&op), Some(State::Collecting(_) | State::Running))
    }
}

#[cfg(test)]
mod tests;
