//! What wakes whoever waits for the port: a change of it.
//!
//! The port is watched by a queue of events of its own, and the loop watches that. A port whose host has left hangs up; the loop would
//! take this for the end of it, and hear of nothing that comes afterwards.

use std::{future, io, time::Duration};

use rustix::{
    event::{Timespec, epoll},
    fd::{AsFd, OwnedFd},
};
use tokio::{io::unix::AsyncFd, time::timeout};

use super::watched::watched;

/// The queue of a port's events. Each change is told once, and to all who wait then: look first, then wait.
#[derive(Debug)]
pub(super) struct Edges(AsyncFd<OwnedFd>);

impl Edges {
    /// Begins to watch.
    pub(super) fn watch(port: impl AsFd) -> io::Result<Self> {
        let queue = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let flags = epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::ET;
        epoll::add(&queue, port, epoll::EventData::new_u64(0), flags)?;
        Ok(Self(watched(queue)?))
    }

    /// Waits for a change.
    pub(super) async fn next(&self) {
        // It ends with the loop, and then nobody is woken any more.
        let Ok(mut ready) = self.0.readable().await else { return future::pending().await };
        ready.clear_ready();
        self.take();
    }

    /// Waits for a change, but no longer than this; whether there was one.
    pub(super) async fn next_within(&self, wait: Duration) -> bool {
        timeout(wait, self.next()).await.is_ok()
    }

    /// Empties the queue, so that the next change makes it readable anew.
    fn take(&self) {
        let mut events = [epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) }];
        // A signal or an error leaves it as it is: the next change is told all the same, and this one a second time.
        let _ = epoll::wait(&self.0, &mut events[..], Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
    }
}
