//! One TCP flow: a connection with the guest, a socket outside, and the way there.
//!
//! ```text
//!  Allow       SYN ─▶ Dialing ──connected──────────────▶ Open ─▶ Over
//!  InspectTls  SYN ─▶ Inspecting ─hello─▶ Permitted ─▶─┘  ▲
//!  a question  SYN ─▶ Asking                              │
//!  from outside  accepted ────────────────────────────────┘      any ─▶ Resetting ─▶ Over
//! ```
//!
//! In `Dialing` the guest has no answer yet and the flow costs its SYN alone: buffers are made when somebody outside is there. In
//! `Inspecting` the guest has a connection and nobody outside knows: what it sends is looked at where it lies, and goes out unchanged
//! afterwards.

use std::{
    mem,
    time::{Duration, Instant},
};

use super::{
    End, Key, TcpFlow, Turn,
    connection::{Buffers, Connection, Guest, Movement, Stop},
    conversation::Conversation,
    gate::{Hello, Scan},
};
use crate::policy::Refusal;

/// How long a connection may take to be made, on either side. A guest's own patience is longer; a program's is often not.
const OPENING_LIMIT: Duration = Duration::from_secs(20);

/// How long a guest may take to say which name it wants.
const HELLO_LIMIT: Duration = Duration::from_secs(10);

/// How long a flow may move nothing. Longer than any keep-alive of a program, so that only forgotten flows end by it.
const IDLE_LIMIT: Duration = Duration::from_secs(3600);

/// One flow.
#[derive(Debug)]
pub(crate) struct Flow {
    pub(crate) key: Key,
    /// Which of the flows that had its place it is.
    pub(crate) serial: u64,
    stage: Stage,
    /// When it is given up if nothing happens.
    limit: Instant,
    host: Host,
    /// It waits to be served.
    pub(crate) is_listed: bool,
}

#[derive(Debug)]
enum Stage {
    Dialing { syn: Vec<u8> },
    Inspecting { connection: Connection, scan: Scan },
    Permitted { connection: Connection },
    Asking(Conversation),
    Open { connection: Connection, is_made: bool },
    Resetting { connection: Connection },
    Over,
}

/// What is known of the socket outside.
#[derive(Clone, Copy, Debug, Default)]
struct Host {
    is_readable: bool,
    is_writable: bool,
    /// It will send nothing more.
    has_ended: bool,
    /// It was told that the guest sends nothing more.
    is_shut: bool,
}

impl Flow {
    fn new(key: Key, serial: u64, stage: Stage, limit: Instant) -> Self {
        Self { key, serial, stage, limit, host: Host::default(), is_listed: false }
    }

    /// A flow whose other end is being dialed.
    pub(crate) fn dialing(key: Key, serial: u64, syn: &[u8], now: Instant) -> Self {
        Self::new(key, serial, Stage::Dialing { syn: syn.to_vec() }, now + OPENING_LIMIT)
    }

    /// A flow of which a name has to be heard first.
    pub(crate) fn inspecting(key: Key, serial: u64, connection: Connection, now: Instant) -> Self {
        Self::new(key, serial, Stage::Inspecting { connection, scan: Scan::default() }, now + HELLO_LIMIT)
    }

    /// A flow of questions.
    pub(crate) fn asking(key: Key, serial: u64, connection: Connection, now: Instant) -> Self {
        Self::new(key, serial, Stage::Asking(Conversation::new(connection)), now + HELLO_LIMIT)
    }

    /// A flow that somebody outside opened.
    pub(crate) fn accepted(key: Key, serial: u64, connection: Connection, now: Instant) -> Self {
        let mut flow = Self::new(key, serial, Stage::Open { connection, is_made: false }, now + OPENING_LIMIT);
        (flow.host.is_readable, flow.host.is_writable) = (true, true);
        flow
    }

    /// A segment of the guest that belongs to this flow.
    pub(crate) fn segment(&mut self, packet: &[u8], opens: bool, turn: &mut Turn<'_>) {
        match &mut self.stage {
            // A repeated SYN opens nothing. It may be of a newer attempt from the same port, so it is the one to answer.
            Stage::Dialing { syn } if opens => *syn = packet.to_vec(),
            Stage::Dialing { .. } | Stage::Over => {}
            stage => {
                if let Some(connection) = stage.connection() {
                    connection.feed(turn.medium, packet, turn.now);
                }
            }
        }
    }

    /// The socket outside is connected, or will never be.
    pub(crate) fn dialed(&mut self, id: TcpFlow, is_connected: bool, buffers: Buffers, turn: &mut Turn<'_>) {
        self.stage = match (mem::replace(&mut self.stage, Stage::Over), is_connected) {
            (Stage::Dialing { syn }, true) => {
                let connection = Connection::accepted(turn.medium, buffers, self.key, &syn, turn.now);
                self.opened(connection, turn)
            }
            (Stage::Permitted { connection }, true) => self.opened(connection, turn),
            (Stage::Dialing { syn }, false) => not_reached(id, &syn, turn),
            (Stage::Permitted { connection }, false) => {
                turn.counters.unreachable += 1;
                reset(id, connection, turn)
            }
            (stage, _) => stage,
        };
    }

    fn opened(&mut self, connection: Connection, turn: &mut Turn<'_>) -> Stage {
        turn.counters.connections += 1;
        self.limit = turn.now + OPENING_LIMIT;
        (self.host.is_readable, self.host.is_writable) = (true, true);
        Stage::Open { connection, is_made: false }
    }

    /// What the socket outside can do now, besides what it could before.
    pub(crate) fn ready(&mut self, is_readable: bool, is_writable: bool) {
        self.host.is_readable |= is_readable;
        self.host.is_writable |= is_writable;
    }

    /// An answer to the question that was asked on this flow.
    pub(crate) fn answer(&mut self, answer: &[u8]) {
        if let Stage::Asking(conversation) = &mut self.stage {
            conversation.answer(answer);
        }
    }

    /// Moves what can be moved. Returns when to be served again, or `None` if the flow is over.
    pub(crate) fn serve(&mut self, id: TcpFlow, turn: &mut Turn<'_>) -> Option<Instant> {
        let is_late = turn.now >= self.limit;
        self.stage = match mem::replace(&mut self.stage, Stage::Over) {
            Stage::Dialing { syn } if is_late => not_reached(id, &syn, turn),
            Stage::Inspecting { connection, .. } if is_late => refused(connection, Refusal::NotTls, turn),
            Stage::Permitted { connection } | Stage::Open { connection, .. } if is_late => {
                turn.counters.timed_out += 1;
                reset(id, connection, turn)
            }
            Stage::Asking(conversation) if is_late => aborted(conversation.into_connection()),
            Stage::Inspecting { connection, scan } => self.inspect(id, connection, scan, turn),
            Stage::Permitted { connection } => permitted(id, connection, turn),
            Stage::Asking(conversation) => self.converse(id, conversation, turn),
            Stage::Open { connection, is_made } => self.carry(id, connection, is_made, turn),
            stage => stage,
        };
        let resets = matches!(self.stage, Stage::Resetting { .. });
        let mut due = None;
        if let Some(connection) = self.stage.connection() {
            connection.emit(turn.medium, turn.now);
            due = connection.due(turn.medium, turn.now);
            if resets && connection.is_over() {
                self.stage = Stage::Over;
            }
        }
        match self.stage {
            Stage::Over => None,
            _ if resets => Some(turn.now + super::SOON),
            _ => Some(due.map_or(self.limit, |due| due.min(self.limit))),
        }
    }

    fn inspect(&mut self, id: TcpFlow, mut connection: Connection, mut scan: Scan, turn: &mut Turn<'_>) -> Stage {
        let guest = connection.guest();
        if guest == Guest::Gone {
            return Stage::Over;
        }
        match turn.gate.hello(&mut scan, (*self.key.other.ip()).into(), connection.received(), turn.now) {
            Hello::Permitted if turn.outside.dial(id, self.key.other) => {
                self.limit = turn.now + OPENING_LIMIT;
                Stage::Permitted { connection }
            }
            Hello::Permitted => {
                turn.counters.unreachable += 1;
                aborted(connection)
            }
            Hello::Refused(refusal) => refused(connection, refusal, turn),
            Hello::NeedMore if guest == Guest::Finished => refused(connection, Refusal::NotTls, turn),
            Hello::NeedMore => Stage::Inspecting { connection, scan },
        }
    }

    fn converse(&mut self, id: TcpFlow, mut conversation: Conversation, turn: &mut Turn<'_>) -> Stage {
        if conversation.serve(id, self.serial, turn) {
            self.limit = turn.now + HELLO_LIMIT;
        }
        if conversation.is_over() { Stage::Over } else { Stage::Asking(conversation) }
    }

    fn carry(&mut self, id: TcpFlow, mut connection: Connection, was_made: bool, turn: &mut Turn<'_>) -> Stage {
        let mut moved = 0;
        // What a hostile guest sends behind its end is nobody's.
        if self.host.is_writable && !self.host.is_shut {
            let Movement { bytes, stopped } = connection.move_out(|bytes| turn.outside.write(id, bytes));
            turn.counters.bytes_from_guest += u64::try_from(bytes).unwrap_or(0);
            moved += bytes;
            match stopped {
                Stop::Guest => {}
                Stop::Outside => self.host.is_writable = false,
                Stop::End | Stop::Gone => return reset(id, connection, turn),
            }
        }
        // Without an end of ours it is over by a reset alone, whatever the guest had sent before.
        let is_reset = connection.is_over() && !self.host.has_ended;
        let guest = if is_reset { Guest::Gone } else { connection.guest() };
        match guest {
            Guest::Finished if !self.host.is_shut => {
                turn.outside.shut(id);
                self.host.is_shut = true;
            }
            Guest::Gone => {
                turn.outside.close(id, End::Reset);
                return Stage::Over;
            }
            _ => {}
        }
        if self.host.is_readable && !self.host.has_ended {
            let Movement { bytes, stopped } = connection.move_in(|room| turn.outside.read(id, room));
            turn.counters.bytes_to_guest += u64::try_from(bytes).unwrap_or(0);
            moved += bytes;
            match stopped {
                Stop::Guest => {}
                Stop::Outside => self.host.is_readable = false,
                Stop::End => {
                    self.host.has_ended = true;
                    connection.end();
                }
                Stop::Gone => return reset(id, connection, turn),
            }
        }
        if self.host.has_ended && self.host.is_shut && connection.is_over() {
            turn.outside.close(id, End::Orderly);
            return Stage::Over;
        }
        let is_made = was_made || guest != Guest::Opening;
        if moved > 0 || is_made != was_made {
            self.limit = turn.now + IDLE_LIMIT;
        }
        Stage::Open { connection, is_made }
    }
}

impl Stage {
    fn connection(&mut self) -> Option<&mut Connection> {
        match self {
            Self::Dialing { .. } | Self::Over => None,
            Self::Inspecting { connection, .. }
            | Self::Permitted { connection }
            | Self::Open { connection, .. }
            | Self::Resetting { connection } => Some(connection),
            Self::Asking(conversation) => Some(conversation.connection()),
        }
    }
}

/// Nobody outside took the connection that the guest asked for.
fn not_reached(id: TcpFlow, syn: &[u8], turn: &mut Turn<'_>) -> Stage {
    turn.counters.unreachable += 1;
    turn.outside.close(id, End::Reset);
    turn.medium.reset(syn, turn.now);
    Stage::Over
}

/// While the socket outside is dialed, the guest may go away.
fn permitted(id: TcpFlow, mut connection: Connection, turn: &mut Turn<'_>) -> Stage {
    if connection.guest() == Guest::Gone {
        turn.outside.close(id, End::Reset);
        return Stage::Over;
    }
    Stage::Permitted { connection }
}

fn refused(connection: Connection, refusal: Refusal, turn: &mut Turn<'_>) -> Stage {
    turn.counters.refusals.count(refusal);
    aborted(connection)
}

fn reset(id: TcpFlow, connection: Connection, turn: &mut Turn<'_>) -> Stage {
    turn.outside.close(id, End::Reset);
    aborted(connection)
}

fn aborted(mut connection: Connection) -> Stage {
    connection.abort();
    Stage::Resetting { connection }
}
