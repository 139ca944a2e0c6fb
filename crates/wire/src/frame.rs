//! Frames: the length-prefixed unit that crosses the channel.
//!
//! `len: u32 BE | op: u32 BE | kind: u8 | body: len bytes`
//!
//! The peer is hostile. A length is checked before its body is waited for, an unknown kind is carried rather than refused (so
//! that an old host can skip what a new guest says), and nothing here panics on input.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::{Kind, limits::MAX_BODY_BYTES};

/// Bytes before a frame's body.
pub const HEADER_BYTES: usize = 9;

/// One unit of the channel: a body, what it means, and the operation it belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The operation, numbered by the host; [`CONNECTION_OP`](crate::CONNECTION_OP) for the connection itself.
    pub op: u32,
    /// What the body means.
    pub kind: Kind,
    /// At most [`MAX_BODY_BYTES`].
    pub body: Bytes,
}

/// Why a peer's bytes, or a body to send, were refused. A decoder cannot be used after it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The length is over [`MAX_BODY_BYTES`].
    #[error("a body of {announced} bytes is over the limit of {MAX_BODY_BYTES}")]
    BodyTooLong {
        /// The length in the header, or of the body to send.
        announced: usize,
    },
}

impl Frame {
    /// Appends the frame's bytes to `out`.
    ///
    /// # Errors
    /// [`FrameError::BodyTooLong`] if the body is over [`MAX_BODY_BYTES`]; `out` is then unchanged.
    pub fn encode(&self, out: &mut BytesMut) -> Result<(), FrameError> {
        let len = checked_len(self.body.len())?;
        out.reserve(HEADER_BYTES + self.body.len());
        out.put_u32(len);
        out.put_u32(self.op);
        out.put_u8(self.kind.0);
        out.put_slice(&self.body);
        Ok(())
    }
}

/// Turns the channel's bytes into frames, whatever pieces they arrive in.
#[derive(Debug, Default)]
pub struct FrameDecoder {
    buffer: BytesMut,
}

impl FrameDecoder {
    /// Where the next bytes from the channel go. At most one frame and one read beyond it is ever held if the caller takes
    /// every frame between reads.
    pub fn buffer(&mut self) -> &mut BytesMut {
        &mut self.buffer
    }

    /// The next whole frame, or `None` until more bytes arrive.
    ///
    /// # Errors
    /// [`FrameError::BodyTooLong`] as soon as a header announces too much, before any of that body is waited for.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        let Some(mut header) = self.buffer.get(..HEADER_BYTES) else { return Ok(None) };
        let announced = header.get_u32() as usize;
        let (op, kind) = (header.get_u32(), Kind(header.get_u8()));
        checked_len(announced)?;
        if self.buffer.len() - HEADER_BYTES < announced {
            self.buffer.reserve(HEADER_BYTES + announced - self.buffer.len());
            return Ok(None);
        }
        self.buffer.advance(HEADER_BYTES);
        Ok(Some(Frame { op, kind, body: self.buffer.split_to(announced).freeze() }))
    }
}

fn checked_len(len: usize) -> Result<u32, FrameError> {
    u32::try_from(len).ok().filter(|len| *len <= MAX_BODY_BYTES).ok_or(FrameError::BodyTooLong { announced: len })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frames() -> impl Strategy<Value = Vec<Frame>> {
        let frame = (any::<u32>(), any::<u8>(), prop::collection::vec(any::<u8>(), 0..300))
            .prop_map(|(op, kind, body)| Frame { op, kind: Kind(kind), body: body.into() });
        prop::collection::vec(frame, 0..12)
    }

    proptest! {
        #[test]
        fn frames_survive_any_cut_of_their_bytes(frames in frames(), cuts in prop::collection::vec(1_usize..40, 1..200)) {
            let mut bytes = BytesMut::new();
            for frame in &frames {
                frame.encode(&mut bytes).expect("bodies are short");
            }
            let (mut decoder, mut decoded, mut cuts) = (FrameDecoder::default(), Vec::new(), cuts.into_iter().cycle());
            while !bytes.is_empty() {
                let cut = cuts.next().unwrap_or(1).min(bytes.len());
                decoder.buffer().extend_from_slice(&bytes.split_to(cut));
                while let Some(frame) = decoder.next_frame().expect("bodies are short") {
                    decoded.push(frame);
                }
            }
            prop_assert_eq!(decoded, frames);
        }

        #[test]
        fn garbage_never_panics_and_never_makes_the_decoder_wait_for_too_much(garbage in prop::collection::vec(any::<u8>(), 0..600)) {
            let mut decoder = FrameDecoder::default();
            decoder.buffer().extend_from_slice(&garbage);
            while let Ok(Some(frame)) = decoder.next_frame() {
                prop_assert!(frame.body.len() <= MAX_BODY_BYTES as usize);
            }
            prop_assert!(decoder.buffer().capacity() <= garbage.len().max(64) + HEADER_BYTES + MAX_BODY_BYTES as usize);
        }
    }

    #[test]
    fn a_header_that_announces_too_much_is_refused_before_its_body_arrives() {
        let mut decoder = FrameDecoder::default();
        decoder.buffer().put_u32(MAX_BODY_BYTES + 1);
        decoder.buffer().put_u32(7);
        assert_eq!(decoder.next_frame(), Ok(None), "the header is not whole yet");
        decoder.buffer().put_u8(Kind::STDOUT.0);
        assert_eq!(decoder.next_frame(), Err(FrameError::BodyTooLong { announced: MAX_BODY_BYTES as usize + 1 }));
    }

    #[test]
    fn the_largest_body_crosses_and_one_byte_more_does_not() {
        let mut out = BytesMut::new();
        let largest = Frame { op: 1, kind: Kind::STDOUT, body: vec![0; MAX_BODY_BYTES as usize].into() };
        assert_eq!(largest.encode(&mut out), Ok(()));
        let length = out.len();
        let over = Frame { body: vec![0; MAX_BODY_BYTES as usize + 1].into(), ..largest };
        assert!(over.encode(&mut out).is_err());
        assert_eq!(out.len(), length, "a refused frame leaves no bytes behind");
    }
}
