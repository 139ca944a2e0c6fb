//! The channel to the agent: frames over QEMU's socket.
//!
//! One value reads and writes, and all its state is in it, so a wait on it may be dropped at any time and nothing is lost. What
//! comes is checked as a frame and as a message here; whether it is honest is the execution's to judge.

use std::{io, path::Path};

use bytes::{Buf, BytesMut};
use exec_sandbox_wire::{Frame, FrameDecoder, FrameError, GuestMessage, MessageError};
use tokio::{io::Interest, net::UnixStream};

/// Room for one read: a chunk and its header.
const READ_BYTES: usize = 72 * 1024;

/// Why the channel cannot be used any more.
#[derive(Debug, thiserror::Error)]
pub(super) enum ChannelError {
    #[error("QEMU closed the agent's channel")]
    Closed,
    #[error("using the agent's channel")]
    Io(#[from] io::Error),
    #[error("reading the agent's frames")]
    Frame(#[from] FrameError),
    #[error("reading the agent's messages")]
    Message(#[from] MessageError),
}

/// A connection to the agent's port.
#[derive(Debug)]
pub(super) struct Channel {
    stream: UnixStream,
    incoming: FrameDecoder,
    outgoing: BytesMut,
}

impl Channel {
    /// Connects to the listening socket that QEMU, process `qemu`, was handed. It says nothing about the guest: only a hello does.
    ///
    /// The peer's credentials are those of whoever made the socket listen: this process before QEMU has started, QEMU afterwards.
    /// Any other one has put a socket of its own in the place.
    pub(super) async fn connect(socket: &Path, qemu: u32) -> io::Result<Self> {
        let stream = UnixStream::connect(socket).await?;
        let peer = stream.peer_cred()?.pid().and_then(|pid| u32::try_from(pid).ok());
        if peer.is_none_or(|peer| peer != qemu && peer != std::process::id()) {
            let message = format!("process {peer:?} listens there, and not QEMU");
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, message));
        }
        Ok(Self { stream, incoming: FrameDecoder::default(), outgoing: BytesMut::new() })
    }

    /// Queues a frame. It leaves while [`next`](Self::next) is waited for.
    pub(super) fn send(&mut self, frame: &Frame) -> Result<(), ChannelError> {
        Ok(frame.encode(&mut self.outgoing)?)
    }

    /// The next message and its operation; writes what is queued meanwhile. May be dropped and called again.
    pub(super) async fn next(&mut self) -> Result<(u32, GuestMessage), ChannelError> {
        loop {
            // One read may hold thousands of frames: a guest that sends them without end must not keep the thread.
            tokio::task::coop::consume_budget().await;
            if let Some(frame) = self.incoming.next_frame()? {
                return Ok((frame.op, GuestMessage::parse(frame)?));
            }
            let interest =
                if self.outgoing.is_empty() { Interest::READABLE } else { Interest::READABLE | Interest::WRITABLE };
            let ready = self.stream.ready(interest).await?;
            if ready.is_writable() && self.write_some().is_err() {
                // Nobody reads any more. Reading tells why, after what QEMU said last.
                self.outgoing.clear();
            }
            if ready.is_readable() {
                self.read_some()?;
            }
        }
    }

    fn write_some(&mut self) -> io::Result<()> {
        while !self.outgoing.is_empty() {
            match self.stream.try_write(&self.outgoing) {
                Ok(written) => self.outgoing.advance(written),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn read_some(&mut self) -> Result<(), ChannelError> {
        let buffer = self.incoming.buffer();
        buffer.reserve(READ_BYTES);
        match self.stream.try_read_buf(buffer) {
            Ok(0) => Err(ChannelError::Closed),
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use exec_sandbox_wire::{CONNECTION_OP, HostMessage};

    use super::*;
    use crate::vm::pretend::{channel, chatter};

    #[tokio::test]
    async fn what_was_said_before_the_end_is_heard_although_nothing_can_be_sent_any_more() {
        let (mut channel, mut qemus) = channel().await;
        qemus.write_all(&chatter(1)).expect("there is room");
        drop(qemus);
        channel.send(&HostMessage::Ack.into_frame(CONNECTION_OP)).expect("it is short");
        let (_, message) = channel.next().await.expect("it was said");
        assert_eq!(message, GuestMessage::Pong("pong".into()));
        assert!(matches!(channel.next().await, Err(ChannelError::Closed | ChannelError::Io(_))));
    }

    #[tokio::test]
    async fn a_socket_that_another_process_has_put_there_is_refused() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let socket = dir.path().join("agent");
        let listen = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen(); \
                      print(flush=True); sys.stdin.read()";
        let mut foreign = std::process::Command::new("python3")
            .args(["-c", listen])
            .arg(&socket)
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .expect("python3 is there");
        let mut line = [0];
        io::Read::read_exact(foreign.stdout.as_mut().expect("it is piped"), &mut line).expect("it listens");
        let refused = Channel::connect(&socket, 1).await.expect_err("it is not ours");
        assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied);
        drop(foreign.stdin.take());
        foreign.wait().expect("it ends");
    }

    #[tokio::test]
    async fn a_read_of_many_frames_leaves_other_tasks_their_turn() {
        let (mut channel, mut qemus) = channel().await;
        qemus.write_all(&chatter(1000)).expect("there is room");
        channel.next().await.expect("it was said");
        let other = tokio::spawn(async {});
        for _ in 1..1000 {
            channel.next().await.expect("it was said");
        }
        assert!(other.is_finished(), "the one thread was this task's all the time");
    }
}
