//! The stream between QEMU and the gateway: `len: u32 BE | frame: len bytes`, both ways.
//!
//! Owns the two buffers of it, of fixed size, and nothing of what frames mean. QEMU is not believed: a length is checked before its
//! frame is waited for, and a stream that broke its framing once is over, for there is no way to find its next frame.

use crate::link::{HEADER_BYTES, IPV4_TO_GUEST, MAX_MTU};

/// The length before a frame.
pub const LENGTH_BYTES: usize = 4;

/// Longest frame: a packet of the largest MTU, its header, and a VLAN tag, which QEMU makes room for.
pub const MAX_FRAME_BYTES: usize = MAX_MTU as usize + HEADER_BYTES + 4;

const MAX_UNIT_BYTES: usize = LENGTH_BYTES + MAX_FRAME_BYTES;

/// What is read at once: several of the longest frames, so that a system call moves many.
const INCOMING_BYTES: usize = 4 * MAX_UNIT_BYTES;

/// What waits for QEMU at most. Four of the longest frames: more only waits longer.
const OUTGOING_BYTES: usize = 6 * MAX_UNIT_BYTES;

/// Room that answers to single frames may use and streams may not, so that a full buffer of data never costs an acknowledgement.
const RESERVED_BYTES: usize = 2 * MAX_UNIT_BYTES;

/// The stream's framing is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a frame of {announced} bytes is over the limit of {MAX_FRAME_BYTES}")]
pub struct FrameTooLong {
    /// The length that was announced.
    pub announced: u32,
}

/// Frames that come from QEMU, out of pieces of any size.
#[derive(Debug)]
pub struct Incoming {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Default for Incoming {
    fn default() -> Self {
        Self { buffer: vec![0; INCOMING_BYTES].into(), start: 0, end: 0 }
    }
}

impl Incoming {
    /// Room for bytes that are there to be read. Empty only while whole frames wait to be taken.
    pub fn room(&mut self) -> &mut [u8] {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.buffer.len() - self.end < MAX_UNIT_BYTES {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        &mut self.buffer[self.end..]
    }

    /// So many bytes of [`room`](Self::room) were read.
    pub fn filled(&mut self, bytes: usize) {
        self.end = self.buffer.len().min(self.end + bytes);
    }

    /// The next whole frame.
    ///
    /// # Errors
    /// [`FrameTooLong`] if the stream cannot be read any further.
    pub fn next_frame(&mut self) -> Result<Option<&[u8]>, FrameTooLong> {
        let Some((length, rest)) = self.buffer[self.start..self.end].split_first_chunk::<LENGTH_BYTES>() else {
            return Ok(None);
        };
        let announced = u32::from_be_bytes(*length);
        let length = usize::try_from(announced).unwrap_or(usize::MAX);
        if length > MAX_FRAME_BYTES {
            return Err(FrameTooLong { announced });
        }
        if rest.len() < length {
            return Ok(None);
        }
        let at = self.start + LENGTH_BYTES;
        self.start = at + length;
        Ok(Some(&self.buffer[at..at + length]))
    }
}

/// Frames on their way to QEMU.
#[derive(Debug)]
pub struct Outgoing {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Default for Outgoing {
    fn default() -> Self {
        Self { buffer: vec![0; OUTGOING_BYTES].into(), start: 0, end: 0 }
    }
}

impl Outgoing {
    /// What is to be written next.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    /// So many of [`bytes`](Self::bytes) were written.
    pub fn written(&mut self, bytes: usize) {
        self.start = self.end.min(self.start + bytes);
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Whether a stream may add its longest frame.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.free() >= RESERVED_BYTES + MAX_UNIT_BYTES
    }

    /// Whether an answer of any length may be added.
    #[must_use]
    pub fn has_room_to_answer(&self) -> bool {
        self.free() >= MAX_UNIT_BYTES
    }

    fn free(&self) -> usize {
        self.buffer.len() - (self.end - self.start)
    }

    /// Adds a frame that carries an IPv4 packet of so many bytes, which the caller writes. `None`, and nothing was added, if there is
    /// no room for it.
    pub fn packet(&mut self, bytes: usize) -> Option<&mut [u8]> {
        let (header, packet) = self.add(HEADER_BYTES + bytes)?.split_at_mut(HEADER_BYTES);
        header.copy_from_slice(&IPV4_TO_GUEST);
        Some(packet)
    }

    /// Adds a whole frame. Not if there is no room for it.
    pub fn add_frame(&mut self, frame: &[u8]) -> Option<()> {
        self.add(frame.len())?.copy_from_slice(frame);
        Some(())
    }

    fn add(&mut self, bytes: usize) -> Option<&mut [u8]> {
        let unit = LENGTH_BYTES + bytes;
        if bytes > MAX_FRAME_BYTES || self.free() < unit {
            return None;
        }
        if self.buffer.len() - self.end < unit {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        let at = self.end + LENGTH_BYTES;
        self.buffer[self.end..at].copy_from_slice(&u32::try_from(bytes).ok()?.to_be_bytes());
        self.end = at + bytes;
        Some(&mut self.buffer[at..at + bytes])
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read_in(incoming: &mut Incoming, mut bytes: &[u8], piece: usize) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        while !bytes.is_empty() {
            let room = incoming.room();
            let taken = bytes.len().min(piece).min(room.len());
            room[..taken].copy_from_slice(&bytes[..taken]);
            incoming.filled(taken);
            bytes = &bytes[taken..];
            while let Some(frame) = incoming.next_frame().expect("it is framed") {
                frames.push(frame.to_vec());
            }
        }
        frames
    }

    #[test]
    fn a_frame_over_the_limit_is_refused_before_it_is_waited_for() {
        let over = u32::try_from(MAX_FRAME_BYTES).expect("it is small") + 1;
        let mut incoming = Incoming::default();
        incoming.room()[..4].copy_from_slice(&over.to_be_bytes());
        incoming.filled(4);
        assert_eq!(incoming.next_frame(), Err(FrameTooLong { announced: over }));
        assert_eq!(incoming.next_frame(), Err(FrameTooLong { announced: over }), "it stays refused");
    }

    #[test]
    fn answers_have_room_when_streams_have_none() {
        let mut outgoing = Outgoing::default();
        while outgoing.has_room() {
            outgoing.packet(MAX_MTU.into()).expect("there is room").fill(1);
        }
        assert!(outgoing.has_room_to_answer());
        while outgoing.packet(MAX_MTU.into()).is_some() {}
        assert!(outgoing.bytes().len() <= OUTGOING_BYTES && !outgoing.has_room_to_answer());
        outgoing.written(usize::MAX);
        assert!(outgoing.bytes().is_empty() && outgoing.has_room());
    }

    proptest! {
        #[test]
        fn frames_come_out_as_they_went_in_whatever_the_pieces(
            lengths in prop::collection::vec(0_usize..3000, 0..40),
            longest in any::<bool>(),
            piece in 1_usize..70_000,
            written in 1_usize..70_000,
        ) {
            let frames: Vec<Vec<u8>> = lengths
                .into_iter()
                .chain(longest.then_some(MAX_FRAME_BYTES))
                .enumerate()
                .map(|(number, length)| vec![number.to_le_bytes()[0]; length])
                .collect();
            let (mut outgoing, mut incoming, mut seen) = (Outgoing::default(), Incoming::default(), Vec::new());
            for frame in &frames {
                outgoing.add_frame(frame).expect("there is room");
                let some = outgoing.bytes()[..outgoing.bytes().len().min(written)].to_vec();
                outgoing.written(some.len());
                seen.extend(read_in(&mut incoming, &some, piece));
            }
            seen.extend(read_in(&mut incoming, outgoing.bytes(), piece));
            prop_assert_eq!(seen, frames);
        }
    }
}
