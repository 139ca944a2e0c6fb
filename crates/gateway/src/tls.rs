//! ClientHello: the first that a client of TLS says, read as it comes, for the name in it.
//!
//! The guest is hostile. What it sends is held in order, over segments and records however it is cut, up to a bound; the first byte
//! that no ClientHello has ends it. Reading is strict where a server could read otherwise: a hello fills its records, lengths add up,
//! a name stands once and is one. What is not known (GREASE, new extensions) is skipped by its length.
//!
//! Only the first hello is read. That a later one of the same connection says another name, a server sees and refuses.

mod hello;

use crate::policy::{Name, Refusal};

/// Largest ClientHello, its header included. One with keys of post-quantum exchange and a sealed inner hello has about 4 KiB, and
/// servers refuse more than this; each connection that is being looked at may hold so much.
pub const MAX_HELLO_BYTES: usize = 16 * 1024;

/// `type: u8 | version: u16 | length: u16`
const RECORD_HEADER_BYTES: usize = 5;

/// `type: u8 | length: u24`
const HANDSHAKE_HEADER_BYTES: usize = 4;

/// Longest record before there are keys.
const MAX_RECORD_BYTES: usize = 16 * 1024;

/// The type of a record with a piece of a handshake.
const RECORD_HANDSHAKE: u8 = 22;

/// The high byte of every version, from SSL 3 on.
const VERSION_MAJOR: u8 = 3;

/// The type of a ClientHello.
const HANDSHAKE_CLIENT_HELLO: u8 = 1;

/// What a ClientHello says of whom it is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The name of the server.
    pub server_name: Option<Name>,
    /// There is an encrypted hello inside, or something that is to look like one. The name is the one outside.
    pub has_ech: bool,
}

/// How far reading has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scan {
    /// Nothing is wrong, and it is not all there.
    NeedMore,
    /// It is all there.
    Hello(Hello),
    /// It is none, or none that is carried.
    Refused(Refusal),
}

/// A reader of what a client says first. It holds at most [`MAX_HELLO_BYTES`].
#[derive(Debug, Default)]
pub struct Scanner {
    /// The header of the record that comes, as far as it is there.
    header: Vec<u8>,
    /// Bytes of the record that are to come.
    record_left: usize,
    /// The handshake message, as far as it is there.
    message: Vec<u8>,
    outcome: Option<Scan>,
}

impl Scanner {
    /// Reads on. After an end it says the same again and reads nothing.
    pub fn push(&mut self, bytes: &[u8]) -> Scan {
        let mut rest = bytes;
        while self.outcome.is_none() && !rest.is_empty() {
            rest = if self.record_left == 0 { self.push_header(rest) } else { self.push_body(rest) };
        }
        self.outcome.clone().unwrap_or(Scan::NeedMore)
    }

    /// Takes a byte of a record's header.
    fn push_header<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let Some((byte, rest)) = bytes.split_first() else { return bytes };
        let is_good = match self.header.len() {
            0 => *byte == RECORD_HANDSHAKE,
            1 => *byte == VERSION_MAJOR,
            _ => true,
        };
        if !is_good {
            // After a piece of a hello, something else in between is a contradiction.
            let why = if self.message.is_empty() { Refusal::NotTls } else { Refusal::HelloMalformed };
            self.outcome = Some(Scan::Refused(why));
            return rest;
        }
        self.header.push(*byte);
        if self.header.len() == RECORD_HEADER_BYTES {
            let length = self.header.last_chunk().map_or(0, |length| usize::from(u16::from_be_bytes(*length)));
            self.header.clear();
            self.record_left = length;
            if length == 0 || length > MAX_RECORD_BYTES {
                self.outcome = Some(Scan::Refused(Refusal::HelloMalformed));
            }
        }
        rest
    }

    /// Takes what there is of a record's body, and reads the message if it is whole.
    fn push_body<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let (piece, rest) = bytes.split_at(bytes.len().min(self.record_left));
        let room = MAX_HELLO_BYTES - self.message.len().min(MAX_HELLO_BYTES);
        self.record_left -= piece.len();
        self.message.extend_from_slice(piece.get(..room).unwrap_or(piece));
        self.outcome = self.read_message(piece.len() > room);
        rest
    }

    /// What the message is, as soon as that can be said.
    fn read_message(&self, is_cut: bool) -> Option<Scan> {
        if self.message.first().is_some_and(|kind| *kind != HANDSHAKE_CLIENT_HELLO) {
            return Some(Scan::Refused(Refusal::NotTls));
        }
        let ([_, length @ ..], body) = self.message.split_first_chunk::<HANDSHAKE_HEADER_BYTES>()?;
        let [high, middle, low] = length.map(usize::from);
        let length = high << 16 | middle << 8 | low;
        if length > MAX_HELLO_BYTES - HANDSHAKE_HEADER_BYTES {
            return Some(Scan::Refused(Refusal::HelloTooLarge));
        }
        if body.len() < length {
            return None;
        }
        // A second message in the same record would be read by some servers and not by others.
        if is_cut || body.len() > length || self.record_left > 0 {
            return Some(Scan::Refused(Refusal::HelloMalformed));
        }
        Some(hello::parse(body).map_or_else(Scan::Refused, Scan::Hello))
    }
}

#[cfg(test)]
mod tests;
