//! Reading the port, and noticing that the host has gone or come.

use std::time::Duration;

use bytes::Bytes;
use exec_sandbox_wire::limits;
use rustix::{
    event::{PollFd, PollFlags, Timespec, epoll},
    fd::OwnedFd,
    io::Errno,
};
use tokio::sync::mpsc;

use super::{Connections, Event};

/// First and last wait for a host that is away. Its return wakes the wait; these are the net under that.
const FIRST_WAIT: Duration = Duration::from_millis(50);
const LAST_WAIT: Duration = Duration::from_secs(1);

/// Reads until nobody wants to hear of it.
pub(super) fn run(port: &OwnedFd, connections: &Connections, tell: &mpsc::Sender<Event>) {
    let edges = match watch_edges(port) {
        Ok(edges) => edges,
        Err(error) => return drop(tell.blocking_send(Event::Broken(error))),
    };
    let mut buffer = vec![0; limits::CHUNK_BYTES as usize];
    let (mut up, mut wait) = (false, FIRST_WAIT);
    loop {
        let read = rustix::io::read(port, &mut buffer[..]);
        if !up && !matches!(read, Ok(0) | Err(Errno::INTR)) {
            (up, wait) = (true, FIRST_WAIT);
            if tell.blocking_send(Event::Up(connections.current())).is_err() {
                return;
            }
        }
        let event = match read {
            Ok(0) if up => {
                up = false;
                connections.end();
                Event::Down
            }
            Ok(0) => {
                wait_for_edge(&edges, wait);
                wait = next_wait(wait);
                continue;
            }
            Ok(length) => Event::Bytes(Bytes::copy_from_slice(buffer.get(..length).unwrap_or_default())),
            Err(Errno::AGAIN) => {
                let _ = rustix::event::poll(&mut [PollFd::new(port, PollFlags::IN)], None);
                continue;
            }
            Err(Errno::INTR) => continue,
            Err(error) => Event::Broken(error),
        };
        let broken = matches!(event, Event::Broken(_));
        if tell.blocking_send(event).is_err() || broken {
            return;
        }
    }
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
    use super::*;

    #[test]
    fn waits_for_an_absent_host_grow_to_a_second_and_no_further() {
        let waits: Vec<u128> = std::iter::successors(Some(FIRST_WAIT), |wait| Some(next_wait(*wait)))
            .take(7)
            .map(|w| w.as_millis())
            .collect();
        assert_eq!(waits, [50, 100, 200, 400, 800, 1000, 1000]);
    }
}
