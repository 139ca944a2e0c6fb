//! Writing the port: frames in order, several to a write, never one for a host that has gone.

use std::time::Duration;

use bytes::{Buf as _, BytesMut};
use exec_sandbox_wire::{Frame, limits};
use rustix::{
    event::{PollFd, PollFlags, Timespec},
    fd::OwnedFd,
    io::Errno,
};

use super::{Connection, Connections, Outgoing, Queues};
use crate::kmsg;

/// What is gathered into one write. One chunk of output and its header fit, so a small frame beside it costs no write of its own.
const BATCH_BYTES: usize = limits::CHUNK_BYTES as usize + 1024;

/// The net under a wake-up that the kernel may lose.
const WRITABLE_WAIT: Duration = Duration::from_millis(20);

/// What is gathered for the port, and for whom.
#[derive(Debug, Default)]
struct Batch {
    connection: Option<Connection>,
    bytes: BytesMut,
}

/// Writes until nobody sends.
pub(super) fn run(port: &OwnedFd, connections: &Connections, mut queues: Queues) {
    let mut batch = Batch::default();
    while let Some(first) = queues.outgoing.blocking_recv() {
        batch.add(queues.resolve(first), connections.current());
        while batch.bytes.len() < BATCH_BYTES
            && let Ok(next) = queues.outgoing.try_recv()
        {
            batch.add(queues.resolve(next), connections.current());
        }
        write(port, connections, &mut batch);
    }
}

impl Batch {
    /// Adds a frame, unless its host has gone.
    fn add(&mut self, outgoing: Option<Outgoing>, current: Connection) {
        let frame = match outgoing {
            Some(Outgoing::Open(connection, hello)) => {
                self.connection = Some(connection);
                self.bytes.clear();
                hello
            }
            Some(Outgoing::Frame(frame)) => frame,
            Some(Outgoing::Bulk) | None => return,
        };
        if self.connection == Some(current) {
            self.encode(&frame);
        }
    }

    fn encode(&mut self, frame: &Frame) {
        if let Err(error) = frame.encode(&mut self.bytes) {
            kmsg::warn_about(&error);
        }
    }
}

fn write(port: &OwnedFd, connections: &Connections, batch: &mut Batch) {
    while !batch.bytes.is_empty() {
        let Some(connection) = batch.connection.filter(|connection| *connection == connections.current()) else {
            batch.bytes.clear();
            return;
        };
        match rustix::io::write(port, &batch.bytes) {
            Ok(written) => batch.bytes.advance(written.min(batch.bytes.len())),
            Err(Errno::AGAIN) => {
                if has_hung_up_while_full(port) {
                    connections.end(connection);
                }
            }
            Err(Errno::INTR) => {}
            // The reader meets the same error and reports it.
            Err(_) => batch.bytes.clear(),
        }
    }
}

/// Waits until more can be written; whether the host has gone meanwhile.
fn has_hung_up_while_full(port: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(port, PollFlags::OUT)];
    let timeout = Timespec::try_from(WRITABLE_WAIT).ok();
    let _ = rustix::event::poll(&mut fds, timeout.as_ref());
    fds.iter().any(|fd| fd.revents().contains(PollFlags::HUP))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use exec_sandbox_wire::{FrameDecoder, Kind};

    use super::*;

    fn frame(op: u32) -> Frame {
        Frame { op, kind: Kind::PONG, body: Bytes::new() }
    }

    fn ops(batch: &Batch) -> Vec<u32> {
        let mut decoder = FrameDecoder::default();
        decoder.buffer().extend_from_slice(&batch.bytes);
        std::iter::from_fn(|| decoder.next_frame().expect("it was encoded here")).map(|frame| frame.op).collect()
    }

    #[test]
    fn a_connection_begins_with_its_first_frame_whatever_was_under_way() {
        let (connections, mut batch) = (Connections::default(), Batch::default());
        batch.add(Some(Outgoing::Frame(frame(1))), connections.current());
        assert_eq!(ops(&batch), [], "nobody has been greeted");
        batch.add(Some(Outgoing::Open(connections.current(), frame(2))), connections.current());
        batch.add(Some(Outgoing::Frame(frame(3))), connections.current());
        assert_eq!(ops(&batch), [2, 3]);
        connections.end(connections.current());
        batch.add(Some(Outgoing::Frame(frame(4))), connections.current());
        assert_eq!(ops(&batch), [2, 3], "frame 4 is for a host that has gone");
        batch.add(Some(Outgoing::Open(connections.current(), frame(5))), connections.current());
        assert_eq!(ops(&batch), [5]);
    }

    #[test]
    fn a_large_frame_goes_out_at_its_place_in_the_common_queue() {
        let (connections, mut batch) = (Connections::default(), Batch::default());
        let (outbound, mut queues) = super::super::queues();
        batch.add(Some(Outgoing::Open(connections.current(), frame(1))), connections.current());
        outbound.small(frame(2));
        outbound.bulk(frame(3));
        outbound.small(frame(4));
        while let Ok(outgoing) = queues.outgoing.try_recv() {
            batch.add(queues.resolve(outgoing), connections.current());
        }
        assert_eq!(ops(&batch), [1, 2, 3, 4]);
    }
}
