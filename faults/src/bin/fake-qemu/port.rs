//! The agent's port: frames over the host's connection, blocking.

use std::{
    io::{self, Read as _, Write as _},
    os::unix::net::UnixStream,
};

use bytes::{Bytes, BytesMut};
use exec_sandbox_wire::{Frame, FrameDecoder, GuestMessage, HostMessage, Kind, MessageError};

/// Room for one read.
const READ_BYTES: usize = 72 * 1024;

/// A connection to the host.
#[derive(Debug)]
pub(crate) struct Port {
    stream: UnixStream,
    incoming: FrameDecoder,
}

impl Port {
    pub(crate) fn new(stream: UnixStream) -> Self {
        Self { stream, incoming: FrameDecoder::default() }
    }

    pub(crate) fn say(&mut self, op: u32, message: GuestMessage) -> io::Result<()> {
        self.frame(&message.into_frame(op))
    }

    pub(crate) fn frame(&mut self, frame: &Frame) -> io::Result<()> {
        self.raw(&encoded(frame)?)
    }

    /// Bytes as they are.
    pub(crate) fn raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// The next message of the host that is no ping; pings are answered.
    pub(crate) fn next(&mut self) -> io::Result<(u32, HostMessage)> {
        loop {
            match self.hear()? {
                (_, HostMessage::Ping(_)) => {}
                message => return Ok(message),
            }
        }
    }

    /// The next message of the host. A ping has been answered.
    pub(crate) fn hear(&mut self) -> io::Result<(u32, HostMessage)> {
        loop {
            let Some(frame) = self.incoming.next_frame().map_err(io::Error::other)? else {
                self.read()?;
                continue;
            };
            let op = frame.op;
            let message = HostMessage::parse(frame).map_err(|error: MessageError| io::Error::other(error))?;
            if let HostMessage::Ping(body) = &message {
                self.say(op, GuestMessage::Pong(body.clone()))?;
            }
            return Ok((op, message));
        }
    }

    fn read(&mut self) -> io::Result<()> {
        let mut piece = vec![0; READ_BYTES];
        match self.stream.read(&mut piece)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            read => {
                self.incoming.buffer().extend_from_slice(piece.get(..read).unwrap_or_default());
                Ok(())
            }
        }
    }
}

/// A frame's bytes.
pub(crate) fn encoded(frame: &Frame) -> io::Result<BytesMut> {
    let mut bytes = BytesMut::new();
    frame.encode(&mut bytes).map_err(io::Error::other)?;
    Ok(bytes)
}

/// A header whose body would be over the limit, and no body.
pub(crate) fn huge_header(op: u32) -> [u8; exec_sandbox_wire::HEADER_BYTES] {
    let mut header = [0; exec_sandbox_wire::HEADER_BYTES];
    let announced = exec_sandbox_wire::limits::MAX_BODY_BYTES.saturating_add(1).to_be_bytes();
    for (to, from) in header.iter_mut().zip(announced.into_iter().chain(op.to_be_bytes()).chain([Kind::STDOUT.0])) {
        *to = from;
    }
    header
}

/// A hello that no protobuf reader reads: a field of two bytes of which one is there.
pub(crate) fn bad_body() -> Frame {
    Frame { op: exec_sandbox_wire::CONNECTION_OP, kind: Kind::HELLO, body: Bytes::from_static(&[0x12, 0x02, 0x00]) }
}

/// Bytes that look random and are the same each time: xorshift from a fixed seed.
pub(crate) fn garbage(bytes: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_be_bytes()
    };
    std::iter::repeat_with(&mut next).flatten().take(bytes).collect()
}
