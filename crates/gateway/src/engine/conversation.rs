//! Questions over TCP: `len: u16 BE | message`, both ways, one question at a time.
//!
//! A guest that asks faster than it is answered waits in its own send buffer. What a message says is the business of
//! [`dns`](crate::dns).

use super::{
    TcpFlow, Turn,
    connection::{Buffers, Connection, Guest},
    questions::Asker,
};
use crate::{
    dns::{Action, Transport},
    policy::Refusal,
};

/// The length before a message.
const LENGTH_BYTES: usize = 2;

/// Longest question. A name has 255 bytes; the rest is room for options that nobody here reads.
const MAX_QUESTION_BYTES: usize = 4096;

/// Bytes that such a connection may hold.
pub(crate) const BUFFERS: Buffers = Buffers { from_guest: BUFFER_BYTES, to_guest: BUFFER_BYTES };

/// The longest answer and its length.
const BUFFER_BYTES: usize = 64 * 1024 + LENGTH_BYTES;

/// One connection with questions.
#[derive(Debug)]
pub(crate) struct Conversation {
    connection: Connection,
    /// A question is out.
    waits: bool,
    /// The answer that the guest has not yet room for, with its length.
    answer: Option<Vec<u8>>,
}

impl Conversation {
    pub(crate) fn new(connection: Connection) -> Self {
        Self { connection, waits: false, answer: None }
    }

    pub(crate) fn connection(&mut self) -> &mut Connection {
        &mut self.connection
    }

    pub(crate) fn into_connection(self) -> Connection {
        self.connection
    }

    /// The answer to the question that is out. Empty if there is none.
    pub(crate) fn answer(&mut self, answer: &[u8]) {
        self.waits = false;
        match u16::try_from(answer.len()) {
            Ok(length) if length > 0 => self.answer = Some([&length.to_be_bytes(), answer].concat()),
            _ => self.connection.end(),
        }
    }

    /// Takes the next question and sends the answer. Returns whether something happened.
    pub(crate) fn serve(&mut self, id: TcpFlow, serial: u64, turn: &mut Turn<'_>) -> bool {
        let mut happened = false;
        loop {
            if let Some(answer) = &self.answer {
                if !self.connection.send(answer) {
                    return happened;
                }
                self.answer = None;
                happened = true;
            }
            if self.waits {
                return happened;
            }
            let Some(question) = self.question(turn) else { return happened };
            happened = true;
            match turn.query(&question, Transport::Tcp) {
                Action::Answer(answer) => self.answer(&answer),
                Action::Forward { key, message } => {
                    self.waits = true;
                    if !turn.ask(key, message, Asker::Stream { flow: id, serial }) {
                        let answer = turn.gate.give_up(key).unwrap_or_default();
                        self.answer(&answer);
                    }
                }
                Action::Ignore => self.connection.end(),
            }
        }
    }

    /// The next whole question, taken from what the guest sent.
    fn question(&mut self, turn: &mut Turn<'_>) -> Option<Vec<u8>> {
        if self.connection.guest() == Guest::Finished {
            self.connection.end();
            return None;
        }
        let mut length = [0; LENGTH_BYTES];
        if self.connection.copy_received(&mut length) < LENGTH_BYTES {
            return None;
        }
        let length = usize::from(u16::from_be_bytes(length));
        if length > MAX_QUESTION_BYTES {
            turn.counters.refusals.count(Refusal::QueryTooLarge);
            self.connection.abort();
            return None;
        }
        let mut unit = vec![0; LENGTH_BYTES + length];
        if self.connection.copy_received(&mut unit) < unit.len() {
            return None;
        }
        self.connection.take(unit.len());
        Some(unit.split_off(LENGTH_BYTES))
    }

    /// Whether nothing is left to be said.
    pub(crate) fn is_over(&self) -> bool {
        self.connection.is_over()
    }
}
