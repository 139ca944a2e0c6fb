//! The virtio-serial port: the only way in and out.
//!
//! Opened once and never closed: closing it would throw away what the host has already sent. Reading and writing go on side by side
//! in the agent's loop, and wait for changes of the port ([`edges`]) and not for its being ready: a port whose host is away is readable,
//! with nothing to read, for ever ([`reader`]), and some kernels lose the wake-up for "writable" ([`writer`]).
//!
//! ```text
//!        Up ──────────────▶ Bytes … ──▶ Down ──▶ (waits, 50 ms → 4 s) ──▶ Up
//! ```
//! The port never blocks. A blocking write that began as the host left would moreover end when the next one comes, and put half a
//! frame before its Hello. So each write checks that the connection is still the one it was meant for,
//! and [`Connections`] counts them. Bytes that are already with the kernel when a host leaves are thrown away by QEMU.
//!
//! Either side may be the first to see that the host has gone. The reader may be waiting for the agent, which may be waiting for
//! the writer, which waits for a host: so the writer must not wait for the reader to tell it.
//!
//! Two things no guest can mend, and both end when the host stays away for a moment and comes again. One that is back before the
//! agent has run is not seen to have gone; it hears the rest of what was meant for the last one, and no Hello. And when a host
//! leaves while the port is full, QEMU may hold back what is written for the next one until that has gone too.

mod alarm;
mod edges;
mod reader;
mod watched;
mod writer;

use std::{cell::Cell, fs, io, path::PathBuf, thread, time::Duration};

use bytes::Bytes;
use exec_sandbox_wire::{Frame, PORT_NAME};
use rustix::{
    fd::OwnedFd,
    fs::{Mode, OFlags},
    io::Errno,
};
use tokio::sync::mpsc;

use alarm::Alarm;
use edges::Edges;

const PORTS: &str = "/sys/class/virtio-ports";

/// The kernel announces ports from a work queue, a moment after the device.
const FIND_STEP: Duration = Duration::from_millis(1);
/// Together two seconds and more.
const FIND_STEPS: u32 = 2000;

/// Pieces read and not yet taken. Few: the agent takes them at once, and what it does not take should stay with the host.
const EVENTS: usize = 8;

/// Frames on their way to the writer. Their bytes are bounded by the windows of their streams.
const FRAMES: usize = 64;

/// Frames of files among them. Few, so that what else is said does not wait behind a whole window of each transfer.
const BULK: usize = 4;

/// What happens at the port.
#[derive(Debug)]
pub(crate) enum Event {
    /// A host is there. It has heard nothing yet.
    Up(Connection),
    /// It said something.
    Bytes(Bytes),
    /// It has gone.
    Down,
}

/// What is written to the port.
#[derive(Debug)]
pub(crate) enum Outgoing {
    /// The first frame of a connection. Until it comes, frames are dropped: they were meant for an earlier host.
    Open(Connection, Frame),
    /// Any other frame.
    Frame(Frame),
    /// The next of the frames that wait in the other queue.
    Bulk,
}

/// Which connection. Only ever compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Connection(u64);

/// Counts connections that ended.
#[derive(Debug, Default)]
struct Connections(Cell<u64>);

/// The agent's side of the port.
#[derive(Debug)]
pub(crate) struct Port {
    /// What happens at it.
    pub(crate) events: mpsc::Receiver<Event>,
    /// What goes out.
    pub(crate) outgoing: mpsc::Sender<Outgoing>,
    /// The same for files.
    pub(crate) outbound: Outbound,
    /// What moves both.
    pub(crate) traffic: Traffic,
}

/// Reading and writing.
#[derive(Debug)]
pub(crate) struct Traffic {
    port: OwnedFd,
    edges: Edges,
    alarm: Alarm,
    tell: mpsc::Sender<Event>,
    queues: Queues,
}

/// The way out for a thread that has much to send and waits its turn. Large frames wait in a short queue of their own, and only their
/// places in the common one.
#[derive(Clone, Debug)]
pub(crate) struct Outbound {
    outgoing: mpsc::Sender<Outgoing>,
    bulk: mpsc::Sender<Frame>,
}

/// Where the writer finds what is to be written.
#[derive(Debug)]
pub(crate) struct Queues {
    pub(crate) outgoing: mpsc::Receiver<Outgoing>,
    pub(crate) bulk: mpsc::Receiver<Frame>,
}

/// Why there is no port.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PortError {
    /// The machine has none of that name.
    #[error("no virtio-serial port is named {PORT_NAME}")]
    Missing,
    /// It cannot be opened.
    #[error("cannot open {}", path.display())]
    Open {
        /// Its node.
        path: PathBuf,
        source: Errno,
    },
    /// Its changes cannot be learnt of.
    #[error("cannot watch the virtio-serial port")]
    Watch { source: io::Error },
    /// It failed while in use.
    #[error("the virtio-serial port failed")]
    Broken { source: Errno },
}

impl Connections {
    fn current(&self) -> Connection {
        Connection(self.0.get())
    }

    /// The host of this connection has gone. Both sides may say so, and it counts once.
    fn end(&self, connection: Connection) {
        if connection == self.current() {
            self.0.set(self.0.get().wrapping_add(1));
        }
    }
}

impl Outbound {
    /// Sends a small frame, and waits while the queue is full.
    pub(crate) fn small(&self, frame: Frame) {
        let _ = self.outgoing.blocking_send(Outgoing::Frame(frame));
    }

    /// Sends a large one, and waits while there are others enough.
    pub(crate) fn bulk(&self, frame: Frame) {
        if self.bulk.blocking_send(frame).is_ok() {
            let _ = self.outgoing.blocking_send(Outgoing::Bulk);
        }
    }
}

impl Queues {
    /// A place in the queue, replaced by the frame whose place it is: it was put in before its place.
    pub(crate) fn resolve(&mut self, outgoing: Outgoing) -> Option<Outgoing> {
        match outgoing {
            Outgoing::Bulk => self.bulk.try_recv().ok().map(Outgoing::Frame),
            other => Some(other),
        }
    }
}

impl Traffic {
    /// Reads and writes until the port fails, or nobody wants to hear of it (`Ok`).
    pub(crate) async fn run(self) -> Result<(), Errno> {
        let Self { port, edges, alarm, tell, queues } = self;
        let connections = Connections::default();
        tokio::select! {
            ended = reader::run(&port, &edges, &alarm, &connections, &tell) => ended,
            () = writer::run(&port, &edges, &connections, queues) => Ok(()),
        }
    }
}

/// Both queues, and their ends.
pub(crate) fn queues() -> (Outbound, Queues) {
    let (outgoing, from_all) = mpsc::channel(FRAMES);
    let (bulk, from_files) = mpsc::channel(BULK);
    (Outbound { outgoing, bulk }, Queues { outgoing: from_all, bulk: from_files })
}

/// Finds the port and opens it.
pub(crate) fn open() -> Result<Port, PortError> {
    let path = find().ok_or(PortError::Missing)?;
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let port = rustix::fs::open(&path, flags, Mode::empty()).map_err(|source| PortError::Open { path, source })?;
    let edges = Edges::watch(&port).map_err(|source| PortError::Watch { source })?;
    let alarm = Alarm::new().map_err(|source| PortError::Watch { source })?;
    let (tell, events) = mpsc::channel(EVENTS);
    let (outbound, queues) = queues();
    let traffic = Traffic { port, edges, alarm, tell, queues };
    Ok(Port { events, outgoing: outbound.outgoing.clone(), outbound, traffic })
}

fn find() -> Option<PathBuf> {
    for _ in 0..FIND_STEPS {
        for entry in fs::read_dir(PORTS).into_iter().flatten().flatten() {
            let named = fs::read_to_string(entry.path().join("name")).is_ok_and(|name| name.trim() == PORT_NAME);
            if named {
                return Some(PathBuf::from("/dev").join(entry.file_name()));
            }
        }
        thread::sleep(FIND_STEP);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_ends_once_whoever_says_so_and_no_later_one_with_it() {
        let connections = Connections::default();
        let first = connections.current();
        connections.end(first);
        let second = connections.current();
        connections.end(first);
        assert_ne!(first, second);
        assert_eq!(connections.current(), second, "the other side has seen it too");
    }
}
