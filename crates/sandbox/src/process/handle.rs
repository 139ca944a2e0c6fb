//! A process as its observers see it: whether it lives, what it uses and how it ended. Its end is its owner's business, who reaps
//! it; an observer may send it a signal, as any process of the user's may.

use std::{
    fs, io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    process::ExitStatus,
    sync::Arc,
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    param,
    process::Signal,
};
use tokio::{sync::watch, time::timeout};

use super::pidfd::{self, Ended};

/// How long the owner of a process that has ended may take to reap it. It does so at once, unless the runtime that it lives in
/// stands still.
const REAPER_PATIENCE: Duration = Duration::from_secs(5);

/// A process that belongs to a VM. It stays known when it has ended, and when the VM's handle is gone: the descriptor means this
/// process and no other.
#[derive(Clone, Debug)]
pub struct Process {
    pid: u32,
    pidfd: Arc<OwnedFd>,
    /// The owner's. Without its sender nobody of ours will reap any more.
    ended: watch::Receiver<Option<Ended>>,
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
    pub(super) fn new(pid: u32, pidfd: OwnedFd, ended: watch::Receiver<Option<Ended>>) -> Self {
        Self { pid, pidfd: Arc::new(pidfd), ended }
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
        let mut fds = [PollFd::new(&*self.pidfd, PollFlags::IN)];
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        matches!(poll(&mut fds, Some(&at_once)), Ok(0))
    }

    /// How it ended. `None`: its owner has not reaped it yet, or somebody else has and knows alone.
    #[must_use]
    pub fn exit(&self) -> Option<ExitStatus> {
        self.ended.borrow().and_then(|ended| ended.status)
    }

    /// Waits for its end and until its owner has reaped it; then says how it ended, if that is known. An owner that is gone or
    /// that stands still is waited for 5 s at most. May be dropped and called again.
    ///
    /// # Errors
    /// There is no descriptor left to wait with.
    pub async fn ended(&self) -> io::Result<Option<ExitStatus>> {
        let mut ended = self.ended.clone();
        if ended.borrow().is_none() {
            pidfd::readable(self.pidfd.try_clone()?).await?;
            // Whether the owner has reaped, is gone or does not come to it: what is known then is the answer.
            let _ = timeout(REAPER_PATIENCE, ended.wait_for(Option::is_some)).await;
        }
        Ok(self.exit())
    }

    /// Sends it the signal with this number, for operators: whoever uses the VM is told that it was lost. A process that has ended
    /// already is no error.
    ///
    /// # Errors
    /// There is no such signal, or it is not allowed: QEMU may run as a user of its own.
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        let named = Signal::from_named_raw(signal)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, format!("there is no signal {signal}")))?;
        pidfd::send(self.pidfd(), named)
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
    use std::os::unix::process::ExitStatusExt as _;

    use super::*;
    use crate::process::{Child, Command};

    async fn shell(script: &str) -> Child {
        let command = Command::new("/bin/sh".into(), vec!["-c".into(), script.into()]);
        Child::spawn(command).await.expect("sh starts")
    }

    #[tokio::test]
    async fn a_process_is_observed_until_it_has_ended() {
        let mut child = shell("exec sleep 1000").await;
        let process = child.handle().expect("there are descriptors");
        assert_eq!(process.pid(), child.pid());
        assert!(process.is_alive());
        let usage = process.usage().expect("it lives");
        assert!(usage.resident_bytes > 0 && usage.resident_peak_bytes >= usage.resident_bytes, "{usage:?}");
        child.kill_and_reap(Duration::from_secs(5)).await.expect("it can be killed").expect("it dies");
        assert!(!process.is_alive());
        assert!(process.usage().is_err());
    }

    #[tokio::test]
    async fn how_it_ended_is_known_to_every_observer_once_its_owner_has_reaped_it() {
        let mut child = shell("exec sleep 1000").await;
        let process = child.handle().expect("there are descriptors");
        let other = process.clone();
        assert_eq!(process.exit(), None);
        let waiting = tokio::spawn(async move { other.ended().await });
        process.signal(libc::SIGTERM).expect("it lives");
        let ended = child.ended().await.expect("it can be waited for");
        assert_eq!(ended.status.and_then(|status| status.signal()), Some(libc::SIGTERM));
        drop(child);
        let told = waiting.await.expect("no panic").expect("there are descriptors");
        assert_eq!((told, process.exit()), (ended.status, ended.status));
        assert_eq!(process.ended().await.expect("it is known"), ended.status);
        process.signal(libc::SIGTERM).expect("it has ended already");
    }

    #[tokio::test]
    async fn a_process_that_dies_with_its_owner_is_known_to_have_been_killed() {
        let child = shell("exec sleep 1000").await;
        let process = child.handle().expect("there are descriptors");
        drop(child);
        let status = process.ended().await.expect("it can be waited for").expect("the drop has reaped it");
        assert_eq!(status.signal(), Some(libc::SIGKILL));
    }

    #[tokio::test]
    async fn an_end_that_somebody_else_has_seen_is_an_end() {
        let mut child = shell("exit 7").await;
        let process = child.handle().expect("there are descriptors");
        rustix::process::waitpid(Some(child.pidfd.pid()), rustix::process::WaitOptions::empty()).expect("it is ours");
        let (told, ended) = tokio::join!(process.ended(), child.ended());
        assert_eq!(told.expect("it can be waited for"), None);
        assert_eq!(ended.expect("it can be waited for").status, None);
    }

    #[tokio::test(start_paused = true)]
    async fn an_owner_that_does_not_reap_is_not_waited_for_without_end() {
        let child = shell("exit 7").await;
        let process = child.handle().expect("there are descriptors");
        assert_eq!(process.ended().await.expect("it can be waited for"), None);
        assert!(!process.is_alive());
    }

    #[tokio::test]
    async fn a_signal_that_does_not_exist_is_refused() {
        let child = shell("exec sleep 1000").await;
        let process = child.handle().expect("there are descriptors");
        for signal in [0, -1, 4096] {
            let error = process.signal(signal).expect_err("it is none");
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        }
        assert!(process.is_alive());
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
