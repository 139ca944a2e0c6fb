//! Processes known again by somebody who did not start them, from what was written down about them.
//!
//! A process is the one that was meant if it has the same id, the same start time and, where it is to be ended, the VM's id in
//! its command line. Everything is looked at with a pidfd in hand, so what is signalled is what was looked at, and its death is
//! that pidfd becoming readable. Reaping a child is its parent's, not this module's.

use std::{
    fs, io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    process::{Pid, PidfdFlags, Signal},
};
use serde::{Deserialize, Serialize};

use crate::ids;

/// The kernel's flag of a process that is ending: it has given up its command line and may still have its memory.
const PF_EXITING: u64 = 0x4;

/// Enough to know a process again: its id may be another's by now, its start time with it cannot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProcessName {
    pub(crate) pid: u32,
    pub(crate) start_ticks: u64,
}

/// A process that was found again. It may end at any time, and its id is not given to another before it is reaped.
#[derive(Debug)]
pub(crate) struct Known {
    pub(crate) name: ProcessName,
    pub(crate) usage: ProcUsage,
    pidfd: OwnedFd,
}

/// What `/proc` tells of a process's consumption.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ProcUsage {
    /// User and system time.
    pub(crate) cpu: Duration,
    pub(crate) resident_bytes: u64,
}

/// The fields of `/proc/<pid>/stat` that matter here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stat {
    flags: u64,
    cpu_ticks: u64,
    start_ticks: u64,
    resident_pages: u64,
}

impl ProcessName {
    /// The name of the process that has `pid` now.
    pub(crate) fn of(pid: u32) -> io::Result<Self> {
        Ok(Self { pid, start_ticks: Stat::read(pid)?.start_ticks })
    }

    /// The process, if it is there. Whoever wants to end it names a `word` that must be in its command line. An error means
    /// that it could not be told.
    pub(crate) fn find(self, word: Option<&str>) -> io::Result<Option<Known>> {
        let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw) else { return Ok(None) };
        let pidfd = match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => pidfd,
            // EINVAL, or ENOENT since Linux 6.16: the id is a thread's now.
            Err(Errno::SRCH | Errno::INVAL | Errno::NOENT) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let is_named = word.is_none_or(|word| command_line_has(self.pid, word));
        // After the command line, because one that has been given up is explained by the flag.
        let stat = match Stat::read(self.pid) {
            Ok(stat) => stat,
            Err(error) if is_gone(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        let is_meant = stat.start_ticks == self.start_ticks && (is_named || stat.flags & PF_EXITING != 0);
        Ok(is_meant.then(|| Known { name: self, usage: stat.usage(), pidfd }))
    }
}

impl Known {
    /// Sends SIGKILL. A process that has ended already is no error.
    pub(crate) fn kill(&self) -> io::Result<()> {
        match rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether it has ended with all its threads. What cannot be asked is taken for alive.
    pub(crate) fn is_dead(&self) -> bool {
        poll(&mut [PollFd::new(&self.pidfd, PollFlags::IN)], Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
    }
}

impl AsFd for Known {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

impl Stat {
    fn read(pid: u32) -> io::Result<Self> {
        let text = fs::read(format!("/proc/{pid}/stat"))?;
        Self::parse(&String::from_utf8_lossy(&text)).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, "/proc/<pid>/stat has another form than expected")
        })
    }

    /// `None`: it is not the text of a `stat`.
    fn parse(text: &str) -> Option<Self> {
        // The second field is the name in parentheses, and may contain anything; the third follows its last one.
        let (_, after_name) = text.rsplit_once(')')?;
        let fields: Vec<&str> = after_name.split_ascii_whitespace().collect();
        // Numbered as in proc(5), from 1.
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        Some(Self {
            flags: field(9)?,
            cpu_ticks: field(14)?.saturating_add(field(15)?),
            start_ticks: field(22)?,
            resident_pages: field(24)?,
        })
    }

    fn usage(&self) -> ProcUsage {
        let ticks_per_second = rustix::param::clock_ticks_per_second().max(1);
        let page_bytes = u64::try_from(rustix::param::page_size()).unwrap_or(u64::MAX);
        ProcUsage {
            cpu: Duration::from_millis(self.cpu_ticks.saturating_mul(1000) / ticks_per_second),
            resident_bytes: self.resident_pages.saturating_mul(page_bytes),
        }
    }
}

/// Where processes are named from: the boot of the machine, and the namespaces that give numbers and start times to processes.
/// `None`: it cannot be told.
pub(crate) fn here() -> Option<String> {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let pids = fs::read_link("/proc/self/ns/pid").ok()?;
    // A kernel without namespaces of times has one time for all.
    let times = fs::read_link("/proc/self/ns/time").unwrap_or_default();
    Some(format!("{} {} {}", boot.trim(), pids.display(), times.display()))
}

/// The name that `pid` gives itself, for people.
pub(crate) fn program_name(pid: u32) -> Option<String> {
    let name = fs::read(format!("/proc/{pid}/comm")).ok()?;
    Some(String::from_utf8_lossy(&name).trim_end().to_owned())
}

/// Waits until all of `processes` are dead, and for some until `until` at most.
pub(crate) fn wait_for_death<'a>(processes: impl IntoIterator<Item = &'a Known>, until: Instant) -> io::Result<()> {
    let mut alive: Vec<&Known> = processes.into_iter().filter(|process| !process.is_dead()).collect();
    while !alive.is_empty() && wait_for_any(alive.iter().map(AsFd::as_fd), until)? {
        alive.retain(|process| !process.is_dead());
    }
    Ok(())
}

/// Waits until one of the descriptors is readable. `false`: `until` has come first.
pub(crate) fn wait_for_any<'a>(
    descriptors: impl IntoIterator<Item = BorrowedFd<'a>>,
    until: Instant,
) -> io::Result<bool> {
    let mut polled: Vec<PollFd<'_>> =
        descriptors.into_iter().map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).unwrap_or_default();
        match poll(&mut polled, Some(&timeout)) {
            Ok(ready) => return Ok(ready > 0),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn command_line_has(pid: u32, word: &str) -> bool {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    line.split(|byte| !ids::is_id_byte(*byte)).any(|found| found == word.as_bytes())
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || Errno::from_io_error(error) == Some(Errno::SRCH)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::process::{Child, Command, Stdio};

    use super::*;

    /// A process with `id` in its command line that has no children and waits for input, for as long as this process lives.
    pub(crate) fn waiting_shell(id: &str) -> Child {
        let mut shell =
            Command::new("/bin/sh").args(["-c", "read -r line", id]).stdin(Stdio::piped()).spawn().expect("sh starts");
        // Whoever waits for a child closes its input first, and this one is not to end by itself.
        std::mem::forget(shell.stdin.take());
        // For a moment after `execve` a process has no command line.
        while fs::read(format!("/proc/{}/cmdline", shell.id())).expect("it runs").is_empty() {
            std::thread::yield_now();
        }
        shell
    }

    #[test]
    fn a_process_is_found_by_its_start_time_and_its_command_line_and_seen_to_die() {
        let mut shell = waiting_shell("vm-a");
        let name = ProcessName::of(shell.id()).expect("it runs");
        let other = ProcessName { start_ticks: name.start_ticks + 1, ..name };
        assert!(other.find(None).expect("it can be told").is_none(), "it has started at another time");
        for word in ["vm", "vm-", "vm-ab", "m-a"] {
            assert!(name.find(Some(word)).expect("it can be told").is_none(), "{word} is not its word");
        }
        let known = name.find(Some("vm-a")).expect("it can be told").expect("it is this one");
        assert!(!known.is_dead());
        known.kill().expect("it is ours");
        wait_for_death([&known], Instant::now() + Duration::from_secs(20)).expect("it can be waited for");
        assert!(known.is_dead(), "it is a zombie now");
        known.kill().expect("killing the dead is no error");
        shell.wait().expect("it is ours");
        assert!(name.find(None).expect("it can be told").is_none(), "it is gone");
    }

    #[test]
    fn a_process_that_stays_is_not_waited_for_beyond_the_time() {
        let mut shell = waiting_shell("vm-a");
        let known = ProcessName::of(shell.id()).expect("it runs").find(None).expect("it can be told");
        let known = known.expect("it is this one");
        wait_for_death([&known], Instant::now()).expect("it can be waited for");
        assert!(!known.is_dead());
        shell.kill().expect("it is ours");
        shell.wait().expect("it is ours");
    }

    #[test]
    fn a_name_that_no_process_can_have_is_nobodys() {
        for pid in [0, u32::MAX] {
            let name = ProcessName { pid, start_ticks: 0 };
            assert!(name.find(None).expect("it can be told").is_none());
        }
    }

    #[test]
    fn an_id_that_is_a_threads_by_now_is_no_processs() {
        let found = std::thread::spawn(|| {
            let tid = rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs();
            ProcessName::of(tid).expect("it runs").find(None).map(|known| known.is_some())
        });
        assert!(!found.join().expect("no panic").expect("it can be told"));
    }

    #[test]
    fn a_stat_is_read_past_a_name_that_looks_like_more_fields() {
        let text = "7 (a) b (c) S 1 7 7 0 -1 4194560 1 0 0 0 30 12 0 0 20 0 1 0 8765 4096 17 18446744073709551615 1";
        let stat = Stat { flags: 4_194_560, cpu_ticks: 42, start_ticks: 8765, resident_pages: 17 };
        assert_eq!(Stat::parse(text), Some(stat));
        assert_eq!(Stat::parse("7 (a) S 1 7"), None);
        assert_eq!(Stat::parse(""), None);
    }
}
