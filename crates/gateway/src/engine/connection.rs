//! One TCP connection with the guest: smoltcp's socket in a set of its own, and the two movements of bytes.
//!
//! Bytes are moved between the socket's buffers and the outside directly; there is no third buffer. What the outside does not take
//! stays in the receive buffer and closes the guest's window; what the guest does not take fills the send buffer, and then the
//! outside is not read.

use std::time::Instant;

use smoltcp::{
    iface::{SocketHandle, SocketSet},
    socket::tcp::{RecvError, Socket, SocketBuffer, State},
    time::Duration,
    wire::IpListenEndpoint,
};

use super::{Key, Moved, medium::Medium};
use crate::link::GUEST;

/// How long an acknowledgement waits for bytes that go the same way, unless it is for a second segment: a frame less for a guest
/// that asks and is answered at once. Short, because a guest that sends small pieces may wait for it.
const ACK_DELAY: Duration = Duration::from_millis(1);

/// One connection.
pub(crate) struct Connection {
    sockets: SocketSet<'static>,
    handle: SocketHandle,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").field("state", &self.socket().state()).finish()
    }
}

/// Bytes that a connection may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Buffers {
    /// Of the guest: its window.
    pub(crate) from_guest: usize,
    pub(crate) to_guest: usize,
}

/// How far the guest is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Guest {
    /// The connection is not yet made.
    Opening,
    /// It may send.
    Sends,
    /// It sent its last byte, and all of them were taken.
    Finished,
    /// It reset the connection, or never made it.
    Gone,
}

/// What became of moving bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Movement {
    /// So many were moved.
    pub(crate) bytes: usize,
    /// Why no more were.
    pub(crate) stopped: Stop,
}

/// Why moving bytes stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// The guest's side had nothing, or no room.
    Guest,
    /// The outside had nothing, or no room.
    Outside,
    /// The outside has ended its side.
    End,
    /// The outside is gone.
    Gone,
}

impl Connection {
    /// The connection that the guest opens with `syn`.
    pub(crate) fn accepted(medium: &mut Medium, buffers: Buffers, key: Key, syn: &[u8], now: Instant) -> Self {
        let mut connection = Self::closed(buffers);
        let here = IpListenEndpoint { addr: Some((*key.other.ip()).into()), port: key.other.port() };
        // A fresh socket listens, and no port of a checked packet is zero.
        let _ = connection.socket_mut().listen(here);
        connection.feed(medium, syn, now);
        connection
    }

    /// A connection to the guest's port, from an address and port of the gateway.
    pub(crate) fn opened(medium: &mut Medium, buffers: Buffers, key: Key) -> Self {
        let mut connection = Self::closed(buffers);
        let (guest, here) = ((GUEST, key.guest_port), (*key.other.ip(), key.other.port()));
        // A fresh socket connects; a port of zero leaves it closed, which is found when it is first served.
        let _ = connection.sockets.get_mut::<Socket<'_>>(connection.handle).connect(medium.context(), guest, here);
        connection
    }

    fn closed(buffers: Buffers) -> Self {
        let buffer = |bytes| SocketBuffer::new(vec![0; bytes]);
        let mut socket = Socket::new(buffer(buffers.from_guest), buffer(buffers.to_guest));
        // Bytes come here in the pieces that somebody wanted to send.
        socket.set_nagle_enabled(false);
        socket.set_ack_delay(Some(ACK_DELAY));
        let mut sockets = SocketSet::new(Vec::with_capacity(1));
        let handle = sockets.add(socket);
        Self { sockets, handle }
    }

    fn socket(&self) -> &Socket<'static> {
        self.sockets.get(self.handle)
    }

    fn socket_mut(&mut self) -> &mut Socket<'static> {
        self.sockets.get_mut(self.handle)
    }

    pub(crate) fn feed(&mut self, medium: &mut Medium, packet: &[u8], now: Instant) {
        medium.feed(&mut self.sockets, packet, now);
    }

    pub(crate) fn emit(&mut self, medium: &mut Medium, now: Instant) {
        medium.emit(&mut self.sockets, now);
    }

    pub(crate) fn due(&self, medium: &mut Medium, now: Instant) -> Option<Instant> {
        medium.due(&self.sockets, now)
    }

    pub(crate) fn guest(&mut self) -> Guest {
        match self.socket().state() {
            State::SynSent | State::SynReceived => Guest::Opening,
            // A reset of a connection that was not yet made leads back here.
            State::Listen => Guest::Gone,
            _ => match self.socket_mut().recv(|_| (0, ())) {
                Ok(()) => Guest::Sends,
                Err(RecvError::Finished) => Guest::Finished,
                Err(RecvError::InvalidState) => Guest::Gone,
            },
        }
    }

    /// Nothing is left to be sent: both sides have ended and everything was acknowledged, or there was a reset and it is sent.
    /// Waiting for stray segments is left out: what answers one is a reset, which harms nobody who has everything.
    pub(crate) fn is_over(&self) -> bool {
        match self.socket().state() {
            State::TimeWait => true,
            State::Closed | State::Listen => self.socket().remote_endpoint().is_none(),
            _ => false,
        }
    }

    /// Bytes that the guest sent and nobody took, as many as stand in one piece. Until the first is taken, that is all of them.
    pub(crate) fn received(&mut self) -> &[u8] {
        self.socket_mut().peek(usize::MAX).unwrap_or_default()
    }

    /// Copies the first bytes that the guest sent and nobody took, wherever they stand; returns how many there were.
    pub(crate) fn copy_received(&mut self, to: &mut [u8]) -> usize {
        self.socket_mut().peek_slice(to).unwrap_or(0)
    }

    /// Takes the first bytes that the guest sent.
    pub(crate) fn take(&mut self, bytes: usize) {
        // One call takes what stands in one piece.
        let mut left = bytes;
        while left > 0 {
            match self.socket_mut().recv(|received| (left.min(received.len()), left.min(received.len()))) {
                Ok(taken) if taken > 0 => left -= taken,
                _ => break,
            }
        }
    }

    /// Sends all of `bytes` to the guest, or nothing if there is no room.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> bool {
        let socket = self.socket_mut();
        socket.may_send()
            && socket.send_capacity() - socket.send_queue() >= bytes.len()
            && socket.send_slice(bytes).is_ok()
    }

    /// Moves bytes of the guest to the outside.
    pub(crate) fn move_out(&mut self, mut write: impl FnMut(&[u8]) -> Moved) -> Movement {
        let mut bytes = 0;
        let socket = self.socket_mut();
        while socket.can_recv() {
            let moved = socket.recv(|received| {
                let moved = write(received);
                (moved.bytes().min(received.len()), moved)
            });
            match moved {
                Ok(Moved::Bytes(0) | Moved::Later) => return Movement { bytes, stopped: Stop::Outside },
                Ok(Moved::Bytes(some)) => bytes += some,
                Ok(Moved::End | Moved::Gone) => return Movement { bytes, stopped: Stop::Gone },
                Err(_) => break,
            }
        }
        Movement { bytes, stopped: Stop::Guest }
    }

    /// Moves bytes of the outside to the guest.
    pub(crate) fn move_in(&mut self, mut read: impl FnMut(&mut [u8]) -> Moved) -> Movement {
        let mut bytes = 0;
        let socket = self.socket_mut();
        while socket.can_send() {
            let moved = socket.send(|room| {
                let moved = read(room);
                (moved.bytes().min(room.len()), moved)
            });
            match moved {
                Ok(Moved::Bytes(0) | Moved::Later) => return Movement { bytes, stopped: Stop::Outside },
                Ok(Moved::Bytes(some)) => bytes += some,
                Ok(Moved::End) => return Movement { bytes, stopped: Stop::End },
                Ok(Moved::Gone) => return Movement { bytes, stopped: Stop::Gone },
                Err(_) => break,
            }
        }
        Movement { bytes, stopped: Stop::Guest }
    }

    /// No more bytes go to the guest.
    pub(crate) fn end(&mut self) {
        self.socket_mut().close();
    }

    /// The connection is reset.
    pub(crate) fn abort(&mut self) {
        self.socket_mut().abort();
    }
}
