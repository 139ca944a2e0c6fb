//! Reading the port, and noticing that the host has gone or come.

use std::{mem, time::Duration};

use bytes::Bytes;
use exec_sandbox_wire::limits;
use rustix::{buffer::spare_capacity, fd::OwnedFd, io::Errno};
use tokio::sync::mpsc;

use super::{Alarm, Connection, Connections, Edges, Event};

/// First and last wait for a host that is away. Its return wakes the wait; these are the net under that, and a host that is not heard
/// comes again. A guest that does nothing wakes for hardly anything else.
const FIRST_WAIT: Duration = Duration::from_millis(50);
const LAST_WAIT: Duration = Duration::from_secs(4);

/// What is handed over at once, if so much is there: a chunk of a file.
const GATHER_BYTES: usize = limits::CHUNK_BYTES as usize;

/// Up to so much is copied out of the buffer; more takes the buffer along. To make one anew the allocator asks the kernel for memory, and
/// gives it back when it is dropped: as much work as all else that a message costs.
const COPY_BYTES: usize = 4096;

/// Reads until the port fails, or nobody wants to hear of it (`Ok`).
pub(super) async fn run(
    port: &OwnedFd,
    edges: &Edges,
    alarm: &Alarm,
    connections: &Connections,
    tell: &mpsc::Sender<Event>,
) -> Result<(), Errno> {
    let (mut up, mut wait): (Option<Connection>, _) = (None, FIRST_WAIT);
    let mut bytes = Vec::new();
    loop {
        bytes.clear();
        let read = gather(port, &mut bytes);
        if matches!(read, Err(Errno::INTR)) {
            continue;
        }
        if let Some(connection) = up {
            let ended = connection != connections.current();
            // What a host left behind that has gone is nothing that the next one says.
            if ended && matches!(read, Ok(1..)) {
                continue;
            }
            if ended || read == Ok(0) {
                connections.end(connection);
                up = None;
                if tell.send(Event::Down).await.is_err() {
                    return Ok(());
                }
            }
        }
        if read == Ok(0) {
            tokio::select! {
                () = edges.next() => {}
                () = alarm.after(wait) => {}
            }
            wait = next_wait(wait);
            continue;
        }
        if up.is_none() {
            let connection = connections.current();
            (up, wait) = (Some(connection), FIRST_WAIT);
            if tell.send(Event::Up(connection)).await.is_err() {
                return Ok(());
            }
        }
        let event = match read {
            Ok(_) if bytes.len() <= COPY_BYTES => Event::Bytes(Bytes::copy_from_slice(&bytes)),
            Ok(_) => Event::Bytes(mem::take(&mut bytes).into()),
            Err(Errno::AGAIN) => {
                edges.next().await;
                continue;
            }
            Err(error) => return Err(error),
        };
        if tell.send(event).await.is_err() {
            return Ok(());
        }
    }
}

/// Reads what is there, up to a buffer's worth: the port gives at most a page at once, and each handing over costs a turn of the loop.
/// What ends it early is met again by the next call.
fn gather(port: &OwnedFd, bytes: &mut Vec<u8>) -> Result<usize, Errno> {
    bytes.reserve_exact(GATHER_BYTES);
    let first = rustix::io::read(port, spare_capacity(bytes))?;
    while !bytes.is_empty()
        && bytes.len() < bytes.capacity()
        && let Ok(1..) = rustix::io::read(port, spare_capacity(bytes))
    {}
    Ok(first)
}

fn next_wait(wait: Duration) -> Duration {
    (wait * 2).min(LAST_WAIT)
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Write as _, path::PathBuf, pin::pin};

    use rustix::fs::{Mode, OFlags};

    use super::*;

    /// A pipe with a name is as a port: its reader reads nothing, for ever, while nobody has opened it to write.
    struct Fifo {
        _dir: tempfile::TempDir,
        path: PathBuf,
        port: OwnedFd,
    }

    impl Fifo {
        fn new() -> Self {
            let dir = tempfile::tempdir().expect("a directory");
            let path = dir.path().join("port");
            rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, Mode::RWXU, 0).expect("a pipe");
            let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let port = rustix::fs::open(&path, flags, Mode::empty()).expect("it is there");
            Self { _dir: dir, path, port }
        }

        /// A host comes and says something.
        fn host(&self, says: &str) -> fs::File {
            let mut host = fs::File::options().write(true).open(&self.path).expect("it is there");
            host.write_all(says.as_bytes()).expect("it is read");
            host
        }
    }

    #[test]
    fn waits_for_an_absent_host_grow_to_four_seconds_and_no_further() {
        let waits: Vec<u128> = std::iter::successors(Some(FIRST_WAIT), |wait| Some(next_wait(*wait)))
            .take(9)
            .map(|w| w.as_millis())
            .collect();
        assert_eq!(waits, [50, 100, 200, 400, 800, 1600, 3200, 4000, 4000]);
    }

    #[tokio::test]
    async fn a_host_that_stays_away_wakes_nobody_and_one_that_comes_wakes_all_who_wait() {
        let fifo = Fifo::new();
        let edges = Edges::watch(&fifo.port).expect("it can be watched");
        drop(fifo.host(""));
        let moment = Duration::from_millis(20);
        edges.next_within(moment).await;
        assert!(!edges.next_within(moment).await, "it has hung up for ever, and that is told once");
        for says in ["hello", "again"] {
            let said = async { fifo.host(says) };
            let ((), (), host) = tokio::join!(edges.next(), edges.next(), said);
            drop(host);
            edges.next_within(moment).await;
        }
    }

    #[tokio::test]
    async fn hosts_that_come_and_go_are_told_in_order_and_what_one_left_behind_is_not_the_next_ones() {
        let (fifo, connections) = (Fifo::new(), Connections::default());
        let edges = Edges::watch(&fifo.port).expect("it can be watched");
        let alarm = Alarm::new().expect("a timer");
        let (tell, mut events) = mpsc::channel(8);
        let mut reader = pin!(run(&fifo.port, &edges, &alarm, &connections, &tell));
        let mut next = async || {
            tokio::select! {
                event = events.recv() => event.map(|event| format!("{event:?}")).unwrap_or_default(),
                ended = &mut reader => format!("{ended:?}"),
            }
        };

        let host = fifo.host("one");
        assert_eq!([next().await, next().await], ["Up(Connection(0))", "Bytes(b\"one\")"]);
        drop(host);
        assert_eq!(next().await, "Down");
        let mut host = fifo.host("two");
        assert_eq!([next().await, next().await], ["Up(Connection(1))", "Bytes(b\"two\")"]);
        // The writer saw it go, and it or another was back before the reader looked.
        connections.end(Connection(1));
        host.write_all(b"left behind").expect("it is read");
        assert_eq!([next().await, next().await], ["Down", "Up(Connection(2))"]);
        host.write_all(b"three").expect("it is read");
        assert_eq!(next().await, "Bytes(b\"three\")");
        // What takes the buffer along, and what follows it.
        let long = "x".repeat(COPY_BYTES + 1);
        host.write_all(long.as_bytes()).expect("it is read");
        assert_eq!(next().await, format!("Bytes(b\"{long}\")"));
        host.write_all(b"four").expect("it is read");
        assert_eq!(next().await, "Bytes(b\"four\")");

        drop(events);
        host.write_all(b"nobody listens").expect("it is read");
        assert_eq!(reader.await, Ok(()));
    }
}
