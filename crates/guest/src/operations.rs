//! Operations: what the host has asked for, by number, and what follows from each thing it says.
//!
//! Knows no port, no process and no clock: a message goes in, effects come out. One execution at a time, and beside it operations on
//! files, which have a table of their own ([`Transfers`]) and share only the numbers with it.
//!
//! ```text
//!  EXEC_START ─▶ Collecting ─▶ Running ─▶ Over ─▶ (ACK) forgotten
//!      │             └── Abandoned ──────▶ Over
//!      └── refused ────────────────────▶ Over
//! ```
//!
//! An operation that is over is kept until the host acknowledges it: its terminal frame, and of its output what the host may lack.
//! The terminal frame follows all output, as far as the host grants for it. What may be said at all depends on the host:
//!
//! ```text
//!  Away ─▶ Greeted ─▶ (its HELLO) Present ─▶ Away
//!             ▲            └─ HELLO ─┐
//!             └──────────────────────┘
//! ```
//! A HELLO with a seed is told to a copy of a machine. It leads to Greeted from everywhere, once the copy is a machine of its own. The
//! executor hears of it after the greeting, which so waits for no interpreter, and before anything that the host asks for afterwards.
//! Only a host that is present is told anything about an operation. Its Hello says how far it has come with each that it waits for,
//! and there each goes on. One that it does not name is told again from what is kept: who does not wait for it acknowledges it.

use std::{collections::BTreeMap, rc::Rc, time::Instant};

use bytes::Bytes;
use exec_sandbox_wire::{
    CONNECTION_OP, Credit, ExecStart, FlowError, Frame, GENERATION, GuestMessage, Hello, HostMessage, Kind, Network,
    Refusal, Refused, ResumePoint, limits,
};

use crate::{
    exec::{Command, Finished, Terminal},
    files::{Job, TransferError, Transfers},
    output::{ResumeError, Streams},
    program::{Assembly, Terms},
    random::Seed,
};

/// What executions that are over may make the agent keep of their output, with one more that runs: four times what one may. A host
/// that lets it come to that is asked to acknowledge before it is served again; nothing that it may still want is thrown away.
const MAX_KEPT_BYTES: u64 = 4 * Streams::MAX_KEPT_BYTES;

/// What is to be done about something the host said.
#[derive(Debug)]
pub(crate) enum Effect {
    /// Say this.
    Send(Frame),
    /// Tell the executor.
    Tell(Command),
    /// Tell the worker of files.
    File(Job),
    /// Set the wall clock.
    Clock(u64),
    /// Become a machine of its own, with this seed, before anything else is done or said.
    Renew(Seed),
    /// Set up the network, and say what has become of it.
    Network(Network),
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
    /// More than a window.
    #[error("the host grants too much for operation {op}")]
    Credit {
        /// The operation.
        op: u32,
        source: FlowError,
    },
    /// What is not granted, or has no place, in a file operation.
    #[error("the host cannot say that of file operation {op}")]
    Transfer {
        /// The operation.
        op: u32,
        source: TransferError,
    },
    /// A host that has not come from where it says.
    #[error("the host cannot go on with operation {op}")]
    Resume {
        /// The operation.
        op: u32,
        source: ResumeError,
    },
    /// A seed of another length than seeds have.
    #[error("a seed of {0} bytes is none")]
    Seed(usize),
    /// More operations than can be under way, or one twice.
    #[error("the host goes on with {0} operations, which are too many or not all different")]
    Points(usize),
}

/// The operations that are not forgotten.
#[derive(Debug, Default)]
pub(crate) struct Operations {
    table: BTreeMap<u32, Operation>,
    /// The execution that the executor has not finished.
    executing: Option<u32>,
    transfers: Transfers,
    host: Host,
}

/// What is known of the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Host {
    /// There is none.
    #[default]
    Away,
    /// It has not answered our greeting yet.
    Greeted,
    /// It has said how far it has come.
    Present,
}

#[derive(Debug)]
struct Operation {
    state: State,
    /// Empty for one that was refused.
    streams: Rc<Streams>,
    /// The host has called it off, and wants nothing more of its output than what is sent by its end.
    cancelled: bool,
}

#[derive(Debug)]
enum State {
    Collecting(Assembly),
    Running,
    /// Refused, and not yet let go by the executor: were the host told now, its next request would find it busy.
    Abandoned(Refused),
    Over {
        terminal: GuestMessage,
        /// The host that is present has been told.
        told: bool,
    },
}

impl Operations {
    /// A host is being greeted: what the executor has to be told.
    pub(crate) fn greet(&mut self) -> Option<Command> {
        let command = self.lose();
        self.host = Host::Greeted;
        command
    }

    /// The host has gone: what the executor has to be told.
    pub(crate) fn lose(&mut self) -> Option<Command> {
        self.host = Host::Away;
        let mut command = None;
        for (op, Operation { state, streams, .. }) in &mut self.table {
            streams.suspend();
            match state {
                State::Over { told, .. } => *told = false,
                // What has not come will not come any more.
                State::Collecting(_) => {
                    let detail = "the connection was lost before the program was whole".to_owned();
                    *state = State::Abandoned(Refused { reason: Refusal::BadRequest.into(), detail });
                    command = Some(Command::Abandon(*op));
                }
                State::Running | State::Abandoned(_) => {}
            }
        }
        command
    }

    /// The host says something about an operation.
    pub(crate) fn hear(&mut self, op: u32, message: HostMessage, now: Instant) -> Result<Vec<Effect>, Violation> {
        if self.transfers.has(op) || Transfers::is_start(&message) {
            return self.file(op, message);
        }
        Ok(match message {
            HostMessage::Hello(hello) => self.hello(&hello)?,
            HostMessage::Ping(body) => vec![Effect::Send(GuestMessage::Pong(body).into_frame(op))],
            HostMessage::ExecStart(start) => self.begin(op, &start, now)?,
            HostMessage::ExecProgram(piece) => self.collect(op, &piece),
            HostMessage::ExecSignal(signal) => match u8::try_from(signal.number) {
                Ok(number @ 1..=64) if self.is_active(op) => vec![Effect::Tell(Command::Signal(op, number))],
                _ => Vec::new(),
            },
            HostMessage::Cancel => self.cancel(op),
            HostMessage::Credit(credit) => self.grant(op, credit)?,
            HostMessage::Ack => {
                self.forget(op);
                Vec::new()
            }
            // For one that is over: its end and this crossed on the way. Starts have been seen to.
            HostMessage::FileData(_)
            | HostMessage::FileEnd(_)
            | HostMessage::FileWrite(_)
            | HostMessage::FileRead(_)
            | HostMessage::FileList(_)
            | HostMessage::FileChange(_) => Vec::new(),
            HostMessage::Unknown(kind) => self.unknown(op, kind),
        })
    }

    /// The executor has finished one.
    pub(crate) fn finish(&mut self, finished: Finished) -> Vec<Effect> {
        let Finished { op, terminal } = finished;
        self.executing = None;
        let Some(Operation { state, streams, cancelled }) = self.table.get_mut(&op) else { return Vec::new() };
        // Asked here and not of the executor: the program may have ended before it heard of it.
        if *cancelled {
            streams.give_up();
        }
        let terminal = match (&*state, terminal) {
            (State::Abandoned(refused), _) => GuestMessage::Refused(refused.clone()),
            (_, Some(Terminal::Refused(refused))) => GuestMessage::Refused(refused),
            (_, Some(Terminal::Done(done))) => GuestMessage::Done(done),
            (_, None) => {
                self.table.remove(&op);
                return Vec::new();
            }
        };
        *state = State::Over { terminal, told: false };
        self.advance(op)
    }

    /// The worker of files has come to the end of one.
    pub(crate) fn finish_file(&mut self, op: u32, end: GuestMessage) -> Vec<Effect> {
        self.transfers.finish(op, end).map(|end| Effect::Send(end.into_frame(op))).into_iter().collect()
    }

    /// The connection of all file operations has ended, and they with it; whether there were any.
    pub(crate) fn drop_files(&mut self) -> bool {
        self.transfers.clear()
    }

    fn file(&mut self, op: u32, message: HostMessage) -> Result<Vec<Effect>, Violation> {
        let starts = Transfers::is_start(&message);
        let numbered = matches!(message, HostMessage::ExecStart(_)) || starts;
        if numbered && (op == CONNECTION_OP || self.table.contains_key(&op) || self.transfers.has(op)) {
            return Err(Violation::Number(op));
        }
        if starts && self.host != Host::Present {
            // It could not be told of its end.
            return Ok(Vec::new());
        }
        let job = if starts {
            match self.transfers.begin(op, message) {
                Ok(job) => job,
                Err(refused) => return Ok(vec![Effect::Send(GuestMessage::Refused(refused).into_frame(op))]),
            }
        } else {
            self.transfers.hear(op, message).map_err(|source| Violation::Transfer { op, source })?
        };
        Ok(job.map(Effect::File).into_iter().collect())
    }

    fn hello(&mut self, hello: &Hello) -> Result<Vec<Effect>, Violation> {
        if hello.generation != GENERATION {
            return Err(Violation::Generation(hello.generation));
        }
        let mut effects = vec![Effect::Clock(hello.unix_time_ns)];
        let is_copy = !hello.seed.is_empty();
        if is_copy {
            let seed = Seed::from_host(&hello.seed).ok_or(Violation::Seed(hello.seed.len()))?;
            effects.push(Effect::Renew(seed));
        }
        effects.extend(hello.network.map(Effect::Network));
        // A Hello that answers nothing comes from a host that took over an open port, as after a restore. How far that one has come
        // it says in its answer. So does one with a seed: a greeting before it was another machine's.
        if self.host == Host::Greeted && !is_copy {
            effects.extend(self.resume(&hello.resume)?);
        } else {
            effects.push(Effect::Greet);
        }
        effects.extend(is_copy.then_some(Effect::Tell(Command::Reseed)));
        Ok(effects)
    }

    /// The host is there, and has come so far. Points are checked before any is followed.
    fn resume(&mut self, points: &[ResumePoint]) -> Result<Vec<Effect>, Violation> {
        let by_op: BTreeMap<u32, &ResumePoint> = points.iter().map(|point| (point.op, point)).collect();
        if by_op.len() != points.len() || points.len() > limits::MAX_OPERATIONS {
            return Err(Violation::Points(points.len()));
        }
        for (&op, point) in &by_op {
            if let Some(operation) = self.table.get(&op) {
                operation.streams.check(point).map_err(|source| Violation::Resume { op, source })?;
            }
        }
        for (&op, operation) in &self.table {
            match by_op.get(&op) {
                Some(point) => operation.streams.resume(point).map_err(|source| Violation::Resume { op, source })?,
                None => operation.streams.restart(),
            }
        }
        self.host = Host::Present;
        let mut effects = Vec::new();
        for op in by_op.into_keys().filter(|op| *op != CONNECTION_OP) {
            // Its start was lost on the way, so none of it has run.
            if !self.table.contains_key(&op) {
                let detail = "no operation of this number has begun".to_owned();
                effects.extend(self.refuse(op, Refusal::UnknownOperation, detail));
            }
        }
        let known: Vec<u32> = self.table.keys().copied().collect();
        effects.extend(known.into_iter().flat_map(|op| self.advance(op)));
        Ok(effects)
    }

    fn begin(&mut self, op: u32, start: &ExecStart, now: Instant) -> Result<Vec<Effect>, Violation> {
        if op == CONNECTION_OP || self.table.contains_key(&op) {
            return Err(Violation::Number(op));
        }
        if let Some(other) = self.executing {
            return Ok(self.refuse(op, Refusal::Busy, format!("operation {other} is still executing")));
        }
        if self.table.len() >= limits::MAX_OPERATIONS {
            return Ok(self.refuse(op, Refusal::Busy, "too many operations are not acknowledged".to_owned()));
        }
        if self.kept_bytes() + Streams::MAX_KEPT_BYTES > MAX_KEPT_BYTES {
            return Ok(self.refuse(op, Refusal::Busy, "too much output is not acknowledged".to_owned()));
        }
        let (terms, assembly) =
            match Terms::of(start).and_then(|terms| Ok((terms, Assembly::begin(start.program_bytes)?))) {
                Ok(request) => request,
                Err(error) => return Ok(self.refuse(op, Refusal::BadRequest, error.to_string())),
            };
        let streams = Rc::new(Streams::new(op));
        if self.host == Host::Present {
            streams.restart();
        }
        self.executing = Some(op);
        let begin = Command::Begin(op, terms, Rc::clone(&streams), now);
        self.table.insert(op, Operation { state: State::Collecting(assembly), streams, cancelled: false });
        let clock = (start.unix_time_ns != 0).then_some(Effect::Clock(start.unix_time_ns));
        let mut effects: Vec<Effect> = clock.into_iter().chain([Effect::Tell(begin)]).collect();
        if start.program_bytes == 0 {
            effects.extend(self.collect(op, &Bytes::new()));
        }
        Ok(effects)
    }

    fn collect(&mut self, op: u32, piece: &Bytes) -> Vec<Effect> {
        // Pieces of an operation that was refused, or is whole, may still be on their way.
        let Some(Operation { state, .. }) = self.table.get_mut(&op) else { return Vec::new() };
        let State::Collecting(assembly) = state else { return Vec::new() };
        match assembly.add(piece) {
            Ok(None) => Vec::new(),
            Ok(Some(program)) => {
                *state = State::Running;
                vec![Effect::Tell(Command::Program(op, program))]
            }
            Err(error) => {
                *state = State::Abandoned(Refused { reason: Refusal::BadRequest.into(), detail: error.to_string() });
                vec![Effect::Tell(Command::Abandon(op))]
            }
        }
    }

    fn cancel(&mut self, op: u32) -> Vec<Effect> {
        let Some(operation) = self.table.get_mut(&op) else { return Vec::new() };
        operation.cancelled = true;
        match operation.state {
            State::Collecting(_) | State::Running => vec![Effect::Tell(Command::Cancel(op))],
            State::Abandoned(_) => Vec::new(),
            State::Over { .. } => {
                operation.streams.give_up();
                self.advance(op)
            }
        }
    }

    fn grant(&mut self, op: u32, credit: Credit) -> Result<Vec<Effect>, Violation> {
        // For one that is forgotten: the two crossed on the way.
        let Some(operation) = self.table.get(&op) else { return Ok(Vec::new()) };
        operation.streams.grant(credit).map_err(|source| Violation::Credit { op, source })?;
        Ok(self.advance(op))
    }

    /// Goes on with what the host has to be told about an operation that is over: its output as far as is granted, then its end.
    fn advance(&mut self, op: u32) -> Vec<Effect> {
        let Some(Operation { state: State::Over { terminal, told: told @ false }, streams, .. }) =
            self.table.get_mut(&op)
        else {
            return Vec::new();
        };
        if self.host != Host::Present {
            return Vec::new();
        }
        let mut effects: Vec<Effect> = std::iter::from_fn(|| streams.next_frame()).map(Effect::Send).collect();
        if streams.are_sent() {
            *told = true;
            effects.push(Effect::Send(terminal.clone().into_frame(op)));
        }
        effects
    }

    fn refuse(&mut self, op: u32, reason: Refusal, detail: String) -> Vec<Effect> {
        let terminal = GuestMessage::Refused(Refused { reason: reason.into(), detail });
        if self.table.len() < limits::MAX_OPERATIONS {
            let state = State::Over { terminal, told: false };
            self.table.insert(op, Operation { state, streams: Rc::new(Streams::new(op)), cancelled: false });
            return self.advance(op);
        }
        // What is not kept is not said again after a reconnect: the price of asking for more than the table holds.
        let present = self.host == Host::Present;
        present.then(|| Effect::Send(terminal.into_frame(op))).into_iter().collect()
    }

    /// A newer host may begin operations that this agent has never heard of, and say more about them before it is refused.
    fn unknown(&mut self, op: u32, kind: Kind) -> Vec<Effect> {
        if op == CONNECTION_OP || self.table.contains_key(&op) {
            return Vec::new();
        }
        self.refuse(op, Refusal::UnknownOperation, format!("frames of kind {kind:?} mean nothing to this agent"))
    }

    fn forget(&mut self, op: u32) {
        if matches!(self.table.get(&op), Some(Operation { state: State::Over { .. }, .. })) {
            self.table.remove(&op);
        }
    }

    fn is_active(&self, op: u32) -> bool {
        let state = self.table.get(&op).map(|operation| &operation.state);
        matches!(state, Some(State::Collecting(_) | State::Running))
    }

    fn kept_bytes(&self) -> u64 {
        self.table.values().map(|operation| operation.streams.kept_bytes()).sum()
    }
}

#[cfg(test)]
mod tests;
