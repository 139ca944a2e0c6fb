//! One question to a resolver of the host: a socket of its own, so that only that resolver can answer and nobody guesses the port.

use std::{
    io::{self, ErrorKind, Read as _, Write as _},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
};

use mio::net::{TcpStream, UdpSocket};

/// The length before a message over TCP.
const LENGTH_BYTES: usize = 2;

/// What is read of a stream at once.
const PIECE_BYTES: usize = 4096;

/// A question that is out.
#[derive(Debug)]
pub(super) enum Asking {
    Datagram(UdpSocket),
    Stream {
        stream: TcpStream,
        /// What is left to be sent.
        message: Vec<u8>,
        /// What has come, at most a length and what it says.
        answer: Vec<u8>,
    },
}

/// What became of it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Heard {
    Nothing,
    Answer(Vec<u8>),
    /// No answer will come this way.
    Gone,
}

impl Asking {
    /// Asks over UDP.
    pub(super) fn datagram(resolver: SocketAddr, message: &[u8]) -> io::Result<Self> {
        let any: SocketAddr = match resolver {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let socket = UdpSocket::bind(any)?;
        socket.connect(resolver)?;
        socket.send(message)?;
        Ok(Self::Datagram(socket))
    }

    /// Asks over TCP.
    pub(super) fn stream(resolver: SocketAddr, message: &[u8]) -> io::Result<Self> {
        let length = u16::try_from(message.len()).map_err(|_| io::Error::from(ErrorKind::InvalidInput))?;
        let stream = TcpStream::connect(resolver)?;
        Ok(Self::Stream { stream, message: [&length.to_be_bytes(), message].concat(), answer: Vec::new() })
    }

    /// Something happened to its socket. `scratch` has room for any datagram.
    pub(super) fn event(&mut self, scratch: &mut [u8]) -> Heard {
        match self {
            Self::Datagram(socket) => loop {
                match socket.recv(scratch) {
                    Ok(bytes) => return Heard::Answer(scratch.get(..bytes).unwrap_or_default().to_vec()),
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(error) if error.kind() == ErrorKind::WouldBlock => return Heard::Nothing,
                    Err(_) => return Heard::Gone,
                }
            },
            Self::Stream { stream, message, answer } => match converse(stream, message, answer) {
                Ok(true) => Heard::Answer(answer.split_off(LENGTH_BYTES)),
                Ok(false) => Heard::Nothing,
                Err(_) => Heard::Gone,
            },
        }
    }
}

/// Sends what is left and reads what has come. Returns whether that is a whole answer.
fn converse(stream: &mut TcpStream, message: &mut Vec<u8>, answer: &mut Vec<u8>) -> io::Result<bool> {
    while !message.is_empty() {
        match stream.write(message) {
            Ok(written) => drop(message.drain(..written)),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            // Not connected yet, or no room: there will be an event.
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected) => return Ok(false),
            Err(error) => return Err(error),
        }
    }
    loop {
        let wanted = match answer.first_chunk::<LENGTH_BYTES>() {
            Some(length) => LENGTH_BYTES + usize::from(u16::from_be_bytes(*length)),
            None => LENGTH_BYTES,
        };
        if answer.len() == wanted && wanted > LENGTH_BYTES {
            return Ok(true);
        }
        let mut piece = [0; PIECE_BYTES];
        let room = piece.get_mut(..wanted.saturating_sub(answer.len()).min(PIECE_BYTES)).unwrap_or_default();
        match stream.read(room) {
            // Also where the length says that nothing follows.
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(bytes) => answer.extend_from_slice(room.get(..bytes).unwrap_or_default()),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error),
        }
    }
}
