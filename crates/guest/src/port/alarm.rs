//! Long waits, woken once.

use std::{io, time::Duration};

use rustix::{
    fd::OwnedFd,
    time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec},
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    time::sleep,
};

use super::watched::watched;

/// A timer of the kernel's. The loop keeps its own in wheels of ever finer steps and wakes to move one from wheel to wheel: two or three
/// times in a second's wait, and a guest whose host is away does nothing else.
#[derive(Debug)]
pub(super) struct Alarm(AsyncFd<OwnedFd>);

impl Alarm {
    pub(super) fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = rustix::time::timerfd_create(TimerfdClockId::Monotonic, flags)?;
        Ok(Self(watched(timer)?))
    }

    /// Waits as long as this. Whoever waits next puts an end to a wait that was given up.
    pub(super) async fn after(&self, wait: Duration) {
        if self.set(wait).is_err() || self.rung().await.is_err() {
            sleep(wait).await;
        }
    }

    fn set(&self, wait: Duration) -> io::Result<()> {
        let once = Itimerspec {
            it_interval: Timespec { tv_sec: 0, tv_nsec: 0 },
            it_value: Timespec::try_from(wait).map_err(io::Error::other)?,
        };
        rustix::time::timerfd_settime(&self.0, TimerfdTimerFlags::empty(), &once)?;
        Ok(())
    }

    async fn rung(&self) -> io::Result<()> {
        let mut times = [0; size_of::<u64>()];
        self.0.async_io(Interest::READABLE, |timer| Ok(rustix::io::read(timer, &mut times)?)).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use std::{thread, time::Instant};

    use tokio::{runtime::Handle, time::timeout};

    use super::*;

    /// Across the wheels' steps of 64 ms.
    const WAIT: Duration = Duration::from_millis(150);

    #[tokio::test]
    async fn a_wait_lasts_as_long_as_it_should_and_wakes_the_loop_once() {
        let alarm = Alarm::new().expect("a timer");
        let parked = || Handle::current().metrics().worker_park_count(0);
        alarm.after(Duration::from_millis(1)).await;
        for _ in 0..3 {
            let (before, begun) = (parked(), Instant::now());
            alarm.after(WAIT).await;
            assert!(begun.elapsed() >= WAIT, "{:?}", begun.elapsed());
            assert!(parked() - before <= 1, "woken {} times", parked() - before);
        }
    }

    #[tokio::test]
    async fn a_wait_that_was_given_up_does_not_end_the_next() {
        let alarm = Alarm::new().expect("a timer");
        let soon = Duration::from_millis(5);
        // Before it would have ended, and after: nobody has been told of that end.
        for rings in [false, true] {
            timeout(Duration::ZERO, alarm.after(soon)).await.expect_err("it lasts longer");
            if rings {
                thread::sleep(2 * soon);
            }
            let begun = Instant::now();
            alarm.after(WAIT).await;
            assert!(begun.elapsed() >= WAIT, "{:?}", begun.elapsed());
        }
    }
}
