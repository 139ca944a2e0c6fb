//! A process as its observers see it: whether it lives and what it uses. They cannot end it; its owner can.

use std::{
    fs, io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    param,
};

/// A process that belongs to a VM. It stays known when it has ended: the descriptor means this process and no other.
#[derive(Debug)]
pub struct Process {
    pid: u32,
    pidfd: OwnedFd,
}

/// What a living process uses, as the kernel tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ProcessUsage {
    /// User and system time of all its threads since it started. The kernel counts it in hundredths of a second.
    pub cpu: Duration,
    /// Its resident memory in bytes, what it shares with others included.
    pub resident_bytes: u64,
    /// The most memory that was resident at once, in bytes.
    pub resident_peak_bytes: u64,
}

impl Process {
    pub(crate) fn new(pid: u32, pidfd: OwnedFd) -> Self {
        Self { pid, pidfd }
    }

    /// Its number, which may be another process's once this one has been reaped.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Its pidfd: readable once it has ended.
    #[must_use]
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Whether it has not ended. A zombie has.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        let mut fds = [PollFd::new(&self.pidfd, PollFlags::IN)];
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        matches!(poll(&mut fds, Some(&at_once)), Ok(0))
    }

    /// What it uses now.
    ///
    /// # Errors
    /// It has ended, or `/proc` cannot be read.
    pub fn usage(&self) -> io::Result<ProcessUsage> {
        let read = |file: &str| fs::read_to_string(format!("/proc/{}/{file}", self.pid));
        let usage = parse(&read("stat")?, &read("status")?);
        // What was read is this process's if it lives even now: until then nobody else had its number.
        if !self.is_alive() {
            return Err(io::Error::new(io::ErrorKind::NotFound, "the process has ended"));
        }
        usage.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "/proc says nothing about the process"))
    }
}

impl AsFd for Process {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd()
    }
}

fn parse(stat: &str, status: &str) -> Option<ProcessUsage> {
    // The second field is the name in parentheses, and may contain anything; the third follows its last one.
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut fields = after_name.split_ascii_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<u64>().ok();
    let (user, system) = (ticks()?, ticks()?);
    let kib = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.trim().strip_suffix(" kB")?.parse::<u64>().ok()
    };
    Some(ProcessUsage {
        cpu: Duration::from_nanos((user + system).saturating_mul(1_000_000_000 / param::clock_ticks_per_second())),
        resident_bytes: kib("VmRSS")? * 1024,
        resident_peak_bytes: kib("VmHWM")? * 1024,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::{Child, Command};

    #[tokio::test]
    async fn a_process_is_observed_until_it_has_ended() {
        let command = Command::new("/bin/sh".into(), vec!["-c".into(), "exec sleep 1000".into()]);
        let mut child = Child::spawn(command).await.expect("sh starts");
        let process = child.handle().expect("there are descriptors");
        assert_eq!(process.pid(), child.pid());
        assert!(process.is_alive());
        let usage = process.usage().expect("it lives");
        assert!(usage.resident_bytes > 0 && usage.resident_peak_bytes >= usage.resident_bytes, "{usage:?}");
        child.kill_and_reap(Duration::from_secs(5)).await.expect("it can be killed").expect("it dies");
        assert!(!process.is_alive());
        assert!(process.usage().is_err());
    }

    #[test]
    fn a_name_that_looks_like_fields_changes_no_figure() {
        let stat = "7 (a) 1 (b) S 1 7 7 0 -1 4194304 1 0 0 0 250 50 0 0 20 0 3 0 100 1 1";
        let usage = parse(stat, "VmHWM:\t   12 kB\nVmRSS:\t    8 kB\n").expect("it is complete");
        assert_eq!((usage.resident_bytes, usage.resident_peak_bytes), (8192, 12288));
        let ticks = usage.cpu.as_secs_f64() * param::clock_ticks_per_second() as f64;
        assert!((ticks - 300.0).abs() < 0.001, "{usage:?}");
        assert_eq!(parse(stat, "VmRSS: 8 kB"), None);
    }
}
