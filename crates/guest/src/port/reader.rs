//! Reading the port, and noticing that the host has gone or come.

use std::{mem, time::Duration};

use bytes::Bytes;
use exec_sandbox_wire::limits;
use rustix::{
    buffer::spare_capacity,
    event::{PollFd, PollFlags, Timespec, epoll},
    fd::OwnedFd,
    io::Errno,
};
use tokio::sync::mpsc;

use super::{Connection, Connections, Event};

/// First and last wait for a host that is away. Its return wakes the wait; these are the net under that.
const FIRST_WAIT: Duration = Duration::from_millis(50);
const LAST_WAIT: Duration = Duration::from_secs(1);

/// What is handed over at once, if so much is there: a chunk of a file.
const GATHER_BYTES: usize = limits::CHUNK_BYTES as usize;

/// Up to so much is copied out of the buffer; more takes the buffer along. To make one anew the allocator asks the kernel for memory, and
/// gives it back when it is dropped: as much work as all else that a message costs.
const COPY_BYTES: usize = 4096;

/// Reads until nobody wants to hear of it.
pub(super) fn run(port: &OwnedFd, connections: &Connections, tell: &mpsc::Sender<Event>) {
    let edges = match watch_edges(port) {
        Ok(edges) => edges,
        Err(error) => return drop(tell.blocking_send(Event::Broken(error))),
    };
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
                if tell.blocking_send(Event::Down).is_err() {
                    return;
                }
            }
        }
        if read == Ok(0) {
            wait_for_edge(&edges, wait);
            wait = next_wait(wait);
            continue;
        }
        if up.is_none() {
            let connection = connections.current();
            (up, wait) = (Some(connection), FIRST_WAIT);
            if tell.blocking_send(Event::Up(connection)).is_err() {
                return;
            }
        }
        let event = match read {
            Ok(_) if bytes.len() <= COPY_BYTES => Event::Bytes(Bytes::copy_from_slice(&bytes)),
            Ok(_) => Event::Bytes(mem::take(&mut bytes).into()),
            Err(Errno::AGAIN) => {
                let _ = rustix::event::poll(&mut [PollFd::new(port, PollFlags::IN)], None);
                continue;
            }
            Err(error) => Event::Broken(error),
        };
        let broken = matches!(event, Event::Broken(_));
        if tell.blocking_send(event).is_err() || broken {
            return;
        }
    }
}

/// Reads what is there, up to a buffer's worth: the port gives at most a page at once, and each handing over costs a switch of threads.
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

fn watch_edges(port: &OwnedFd) -> Result<OwnedFd, Errno> {
    let edges = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let flags = epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::ET;
    epoll::add(&edges, port, epoll::EventData::new_u64(0), flags)?;
    Ok(edges)
}

fn wait_for_edge(edges: &OwnedFd, wait: Duration) {
    let timeout = Timespec::try_from(wait).ok();
    let mut events = [epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) }];
    // A signal or an error ends the wait early, and the next read tells more.
    let _ = epoll::wait(edges, &mut events[..], timeout.as_ref());
}

fn next_wait(wait: Duration) -> Duration {
    (wait * 2).min(LAST_WAIT)
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Write as _, path::PathBuf, sync::Arc, thread};

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

    fn woken(edges: &OwnedFd, wait: Option<&Timespec>) -> bool {
        let mut events = [epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) }];
        epoll::wait(edges, &mut events[..], wait).expect("it can be waited for") > 0
    }

    #[test]
    fn waits_for_an_absent_host_grow_to_a_second_and_no_further() {
        let waits: Vec<u128> = std::iter::successors(Some(FIRST_WAIT), |wait| Some(next_wait(*wait)))
            .take(7)
            .map(|w| w.as_millis())
            .collect();
        assert_eq!(waits, [50, 100, 200, 400, 800, 1000, 1000]);
    }

    #[test]
    fn a_host_that_stays_away_wakes_nobody_and_one_that_comes_does() {
        let fifo = Fifo::new();
        let edges = watch_edges(&fifo.port).expect("it can be watched");
        drop(fifo.host(""));
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        woken(&edges, Some(&at_once));
        assert!(!woken(&edges, Some(&at_once)), "it has hung up for ever, and that is told once");
        let _host = fifo.host("hello");
        assert!(woken(&edges, None));
    }

    #[test]
    fn hosts_that_come_and_go_are_told_in_order_and_what_one_left_behind_is_not_the_next_ones() {
        let (fifo, connections) = (Fifo::new(), Arc::<Connections>::default());
        let (tell, mut events) = mpsc::channel(8);
        let port = fifo.port.try_clone().expect("a descriptor");
        let counted = Arc::clone(&connections);
        let reader = thread::spawn(move || run(&port, &counted, &tell));
        let mut next = || events.blocking_recv().map(|event| format!("{event:?}")).unwrap_or_default();

        let host = fifo.host("one");
        assert_eq!([next(), next()], ["Up(Connection(0))", "Bytes(b\"one\")"]);
        drop(host);
        assert_eq!(next(), "Down");
        let mut host = fifo.host("two");
        assert_eq!([next(), next()], ["Up(Connection(1))", "Bytes(b\"two\")"]);
        // The writer saw it go, and it or another was back before the reader looked.
        connections.end(Connection(1));
        host.write_all(b"left behind").expect("it is read");
        assert_eq!([next(), next()], ["Down", "Up(Connection(2))"]);
        host.write_all(b"three").expect("it is read");
        assert_eq!(next(), "Bytes(b\"three\")");
        // What takes the buffer along, and what follows it.
        let long = "x".repeat(COPY_BYTES + 1);
        host.write_all(long.as_bytes()).expect("it is read");
        assert_eq!(next(), format!("Bytes(b\"{long}\")"));
        host.write_all(b"four").expect("it is read");
        assert_eq!(next(), "Bytes(b\"four\")");

        drop(events);
        host.write_all(b"nobody listens").expect("it is read");
        reader.join().expect("it ends");
    }
}
