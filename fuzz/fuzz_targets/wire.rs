//! The wire, from a hostile peer: bytes in pieces become frames, and frames become messages.
//!
//! The oracle is stronger than "no panic": the frames encode to the bytes that they came from, however those were cut; nothing that is
//! refused was within the limit; and a message that could be read says the same when it is written and read again.
#![no_main]

use bytes::BytesMut;
use exec_sandbox_wire::{FrameDecoder, FrameError, GuestMessage, HostMessage, limits::MAX_BODY_BYTES};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u8, &[u8])| {
    let (piece_bytes, bytes) = (usize::from(input.0) + 1, input.1);
    let (mut decoder, mut encoded) = (FrameDecoder::default(), BytesMut::new());
    for piece in bytes.chunks(piece_bytes) {
        decoder.buffer().extend_from_slice(piece);
        loop {
            match decoder.next_frame() {
                Ok(Some(frame)) => {
                    frame.encode(&mut encoded).expect("what was decoded is within the limit");
                    check_messages(frame);
                }
                Ok(None) => break,
                Err(FrameError::BodyTooLong { announced }) => {
                    assert!(announced > MAX_BODY_BYTES as usize);
                    assert_eq!(&encoded[..], &bytes[..encoded.len()]);
                    return;
                }
            }
        }
    }
    encoded.extend_from_slice(decoder.buffer());
    assert_eq!(&encoded[..], bytes, "no byte is lost or added");
});

fn check_messages(frame: exec_sandbox_wire::Frame) {
    let op = frame.op;
    if let Ok(message) = HostMessage::parse(frame.clone()) {
        assert_eq!(HostMessage::parse(message.clone().into_frame(op)).expect("it was written by us"), message);
    }
    if let Ok(message) = GuestMessage::parse(frame) {
        assert_eq!(GuestMessage::parse(message.clone().into_frame(op)).expect("it was written by us"), message);
    }
}
