//! The wall clock, which the host sets: a VM has none of its own, and one that was restored is late.

use rustix::{
    io,
    time::{ClockId, Timespec},
};

const NANOS_PER_SECOND: u64 = 1_000_000_000;

/// Sets the wall clock to `unix_time_ns` nanoseconds since 1970. Zero says nothing and changes nothing.
pub(crate) fn set(unix_time_ns: u64) -> io::Result<()> {
    let Some(time) = timespec(unix_time_ns) else { return Ok(()) };
    rustix::time::clock_settime(ClockId::Realtime, time)
}

fn timespec(unix_time_ns: u64) -> Option<Timespec> {
    if unix_time_ns == 0 {
        return None;
    }
    let seconds = i64::try_from(unix_time_ns / NANOS_PER_SECOND).ok()?;
    let nanos = i64::try_from(unix_time_ns % NANOS_PER_SECOND).ok()?;
    Some(Timespec { tv_sec: seconds, tv_nsec: nanos })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nanoseconds_are_split_into_seconds_and_the_rest() {
        assert_eq!(timespec(1_700_000_000_123_456_789), Some(Timespec { tv_sec: 1_700_000_000, tv_nsec: 123_456_789 }));
    }

    #[test]
    fn a_host_that_says_nothing_leaves_the_clock_alone() {
        assert_eq!(timespec(0), None);
    }
}
