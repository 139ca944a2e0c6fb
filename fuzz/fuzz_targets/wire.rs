//! The wire, from a hostile peer: bytes in pieces become frames, and frames become messages.
//!
//! The oracle is stronger than "no panic": the frames encode to the bytes that they came from, however those were cut; nothing that is
//! refused was within the limit; a message that could be read says the same when it is written and read again; and a checksum does
//! not depend on the cuts.
#![no_main]

use bytes::{Bytes, BytesMut};
use exec_sandbox_wire::{
    Change, Checksum, Credit, Done, ExecStart, FileChange, FileEntries, FileEntry, FileSum, FileWrite, Frame,
    FrameDecoder, FrameError, GuestMessage, Hello, HostMessage, Kind, Move, Network, NetworkState, ResumePoint, Usage,
    limits::MAX_BODY_BYTES,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(init: fuzz::sow(seeds()), |input: &[u8]| {
    let Some((cut, bytes)) = input.split_first() else { return };
    let piece_bytes = usize::from(*cut) + 1;
    check_checksum(bytes, piece_bytes);
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

fn check_messages(frame: Frame) {
    let op = frame.op;
    if let Ok(message) = HostMessage::parse(frame.clone()) {
        let written = message.clone().into_frame(op);
        assert_eq!((written.op, written.kind), (op, frame.kind));
        assert_eq!(HostMessage::parse(written).expect("it was written by us"), message);
    }
    if let Ok(message) = GuestMessage::parse(frame.clone()) {
        let written = message.clone().into_frame(op);
        assert_eq!((written.op, written.kind), (op, frame.kind));
        assert_eq!(GuestMessage::parse(written).expect("it was written by us"), message);
    }
}

fn check_checksum(bytes: &[u8], piece_bytes: usize) {
    let (mut whole, mut pieces) = (Checksum::default(), Checksum::default());
    whole.add(bytes);
    bytes.chunks(piece_bytes).for_each(|piece| pieces.add(piece));
    assert_eq!(whole.value(), pieces.value());
}

/// A frame of every kind, and the bodies that have the most in them, in pieces of 16 bytes.
fn seeds() -> Vec<Vec<u8>> {
    let empty = Kind::KNOWN.iter().map(|(kind, _)| Frame { op: 1, kind: *kind, body: Bytes::new() });
    let point = ResumePoint { op: 1, stdout_bytes: 300, stderr_bytes: 2, stdout_credit: 4096, stderr_credit: 1 };
    let hello = Hello {
        generation: 1,
        boot_id: vec![7; 16],
        agent_version: "1".into(),
        unix_time_ns: 1,
        resume: vec![point; 2],
        network: Some(Network {
            address: u32::MAX,
            prefix_bits: 24,
            gateway: 1,
            resolver: 1,
            mtu: 65_520,
            card: 2,
            gateway_card: u64::MAX,
        }),
        seed: vec![9; 32],
    };
    let start =
        ExecStart { language: 1, timeout_ms: 1000, program_bytes: 2, is_last: true, rehearsal: true, unix_time_ns: 1 };
    let write = FileWrite { path: "a/ü".into(), mode: 0o644, size: Some(1 << 30) };
    let from_to = Change::Move(Move { from: "a".into(), to: "b".into() });
    let host = [
        HostMessage::Hello(hello.clone()),
        HostMessage::ExecStart(start),
        HostMessage::Credit(Credit { stdout_bytes: 1, stderr_bytes: 300, data_bytes: 70_000 }),
        HostMessage::FileWrite(write),
        HostMessage::FileChange(FileChange { change: Some(from_to) }),
    ];
    let usage = Usage { spawn_us: 1, run_us: 2, cpu_us: Some(3), memory_peak_bytes: Some(4) };
    let done = Done { end: 1, exit_code: -1, stdout_bytes: 5, usage: Some(usage), ..Done::default() };
    let entry = FileEntry { name: "n".into(), kind: 1, size: 9, mode: 0o600, modified_unix_ns: -1 };
    let guest = [
        GuestMessage::Hello(hello),
        GuestMessage::Network(NetworkState { failure: "no card".into() }),
        GuestMessage::Done(done),
        GuestMessage::FileEntries(FileEntries { entries: vec![entry; 2] }),
        GuestMessage::FileDone(FileSum { size: 1, checksum: u64::MAX }),
    ];
    let host = host.into_iter().map(|message| message.into_frame(1));
    let guest = guest.into_iter().map(|message| message.into_frame(2));
    let mut all = BytesMut::from(&[15][..]);
    let mut seeds = Vec::new();
    for frame in empty.chain(host).chain(guest) {
        let mut seed = BytesMut::from(&[255][..]);
        frame.encode(&mut seed).expect("it is short");
        all.extend_from_slice(&seed[1..]);
        seeds.push(seed.to_vec());
    }
    seeds.push(all.to_vec());
    seeds
}
