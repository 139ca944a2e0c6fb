//! Writing the port: frames in order, several to a write, never one for a host that has gone.

use std::time::Duration;

use bytes::{Buf as _, BytesMut};
use exec_sandbox_wire::{Frame, limits};
use rustix::{
    event::{PollFd, PollFlags, Timespec},
    fd::OwnedFd,
    io::Errno,
};

use super::{Connection, Connections, Edges, Outgoing, Queues};
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
pub(super) async fn run(port: &OwnedFd, edges: &Edges, connections: &Connections, mut queues: Queues) {
    let mut batch = Batch::default();
    while let Some(first) = queues.outgoing.recv().await {
        batch.add(queues.resolve(first), connections.current());
        while batch.bytes.len() < BATCH_BYTES
            && let Ok(next) = queues.outgoing.try_recv()
        {
            batch.add(queues.resolve(next), connections.current());
        }
        write(port, edges, connections, &mut batch).await;
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

async fn write(port: &OwnedFd, edges: &Edges, connections: &Connections, batch: &mut Batch) {
    while !batch.bytes.is_empty() {
        let Some(connection) = batch.connection.filter(|connection| *connection == connections.current()) else {
            batch.bytes.clear();
            return;
        };
        match rustix::io::write(port, &batch.bytes) {
            Ok(written) => batch.bytes.advance(written.min(batch.bytes.len())),
            Err(Errno::AGAIN) => {
                edges.next_within(WRITABLE_WAIT).await;
                if has_hung_up(port) {
                    connections.end(connection);
                }
            }
            Err(Errno::INTR) => {}
            // The reader meets the same error and reports it.
            Err(_) => batch.bytes.clear(),
        }
    }
}

/// Whether the host has gone.
fn has_hung_up(port: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(port, PollFlags::OUT)];
    let _ = rustix::event::poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
    fds.iter().any(|fd| fd.revents().contains(PollFlags::HUP))
}

#[cfg(test)]
mod tests {
    use std::{os::unix::net::UnixStream as StdStream, pin::pin};

    use bytes::Bytes;
    use exec_sandbox_wire::{FrameDecoder, Kind};
    use tokio::{io::AsyncReadExt as _, net::UnixStream};

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
    #[tokio::test]
    async fn what_finds_the_port_full_goes_out_when_there_is_room_and_to_nobody_once_the_host_has_gone() {
        const CHUNK: usize = limits::CHUNK_BYTES as usize;
        let chunk = |op| Frame { op, kind: Kind::STDOUT, body: vec![0; CHUNK].into() };
        let (port, host) = StdStream::pair().expect("a socket");
        port.set_nonblocking(true).expect("a flag");
        host.set_nonblocking(true).expect("a flag");
        let (port, mut host) = (OwnedFd::from(port), UnixStream::from_std(host).expect("it can be watched"));
        let (connections, edges) = (Connections::default(), Edges::watch(&port).expect("it can be watched"));
        let (outbound, queues) = super::super::queues();
        let mut writer = pin!(run(&port, &edges, &connections, queues));
        let first = connections.current();
        let send = async |outgoing| drop(outbound.outgoing.send(outgoing).await);

        send(Outgoing::Open(first, frame(0))).await;
        let sent: Vec<u32> = (1..40).collect();
        for op in &sent {
            send(Outgoing::Frame(chunk(*op))).await;
        }
        let full = tokio::time::timeout(5 * WRITABLE_WAIT, &mut writer).await;
        assert!(full.is_err() && connections.current() == first, "it waits for the host, who is there");
        let mut decoder = FrameDecoder::default();
        let mut received = Vec::new();
        while received.last() != sent.last() {
            tokio::select! {
                read = host.read_buf(decoder.buffer()) => assert_ne!(read.expect("it is open"), 0),
                () = &mut writer => panic!("somebody may still send"),
            }
            received.extend(std::iter::from_fn(|| decoder.next_frame().expect("it is whole")).map(|frame| frame.op));
        }
        assert_eq!(received, (0..40).collect::<Vec<u32>>());

        for op in &sent {
            send(Outgoing::Frame(chunk(*op))).await;
        }
        assert!(tokio::time::timeout(5 * WRITABLE_WAIT, &mut writer).await.is_err(), "the port is full again");
        drop(host);
        // It takes what is left for nobody, and ends when nobody can send any more.
        drop(outbound);
        writer.await;
        assert_ne!(connections.current(), first);
    }
}
