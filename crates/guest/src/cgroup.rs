//! The control group in which every program runs: what it may take, what it took, and the one way to end all of it.
//!
//! The agent is not in it, so memory that programs use up, and the kill that ends them, never reach the agent. Only the guest has
//! such a group; what the host allows the VM is the host's matter.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::FileExt as _,
    path::Path,
};

use rustix::{
    fd::{AsFd as _, BorrowedFd},
    process::{Pid, Signal},
};

const ROOT: &str = "/sys/fs/cgroup";
const GROUP: &str = "/sys/fs/cgroup/user";

/// What kernel and agent keep for themselves at least: measured need is about 12 MiB, and as much again for network buffers.
const MIN_RESERVE_BYTES: u64 = 24 * 1024 * 1024;

/// Threads and processes of programs together: room for a build or a browser, and far below what would take the kernel's memory.
const MAX_PIDS: &str = "1024";

/// The group of all programs.
#[derive(Debug)]
pub(crate) struct UserGroup {
    procs: File,
    kill: File,
    cpu_stat: File,
    memory_events: File,
    events: File,
    /// Absent before Linux 5.19.
    memory_peak: Option<File>,
}

impl UserGroup {
    /// Makes the group on a machine with `total` bytes of memory.
    pub(crate) fn create(total: u64) -> io::Result<Self> {
        // The processor is shared between agent and programs, not between the agent and each of a thousand processes.
        write_new(Path::new(ROOT).join("cgroup.subtree_control").as_path(), "+cpu +memory +pids")?;
        let dir = Path::new(GROUP);
        fs::create_dir(dir)?;
        write_new(&dir.join("memory.max"), &memory_max(total).to_string())?;
        // Out of memory ends the whole program; half of one would only fail in stranger ways.
        write_new(&dir.join("memory.oom.group"), "1")?;
        write_new(&dir.join("pids.max"), MAX_PIDS)?;
        let open = |name: &str| OpenOptions::new().read(true).open(dir.join(name));
        let open_both = |name: &str| OpenOptions::new().read(true).write(true).open(dir.join(name));
        Ok(Self {
            procs: open_both("cgroup.procs")?,
            kill: OpenOptions::new().write(true).open(dir.join("cgroup.kill"))?,
            cpu_stat: open("cpu.stat")?,
            memory_events: open("memory.events")?,
            events: open("cgroup.events")?,
            memory_peak: open_both("memory.peak").ok(),
        })
    }

    /// The file by which a process joins the group: it writes `0`.
    pub(crate) fn procs(&self) -> BorrowedFd<'_> {
        self.procs.as_fd()
    }

    /// Sends a signal to every process in the group, `first` before the others.
    pub(crate) fn signal_all(&self, first: Pid, signal: Signal) {
        // The first may be gone by now; it is not reaped before the agent knows, so its number means nobody else.
        let _ = rustix::process::kill_process(first, signal);
        for pid in members(&read(&self.procs)) {
            if pid != first {
                let _ = rustix::process::kill_process(pid, signal);
            }
        }
    }

    /// Kills every process in the group, whatever it does meanwhile.
    pub(crate) fn kill(&self) -> io::Result<()> {
        (&self.kill).write_all(b"1")
    }

    /// Whether no process is left in the group.
    pub(crate) fn is_empty(&self) -> bool {
        keyed(&read(&self.events), "populated") == Some(0)
    }

    /// How many processes the kernel killed for memory so far.
    pub(crate) fn oom_kills(&self) -> u64 {
        keyed(&read(&self.memory_events), "oom_kill").unwrap_or(0)
    }

    /// CPU time that the group's processes took so far, in microseconds.
    pub(crate) fn cpu_us(&self) -> Option<u64> {
        keyed(&read(&self.cpu_stat), "usage_usec")
    }

    /// Begins a new peak of memory. Before Linux 6.12 a peak cannot be reset, and one that an earlier program may have left is not
    /// reported.
    pub(crate) fn reset_memory_peak(&mut self) {
        if let Some(peak) = &self.memory_peak
            && (&mut &*peak).write_all(b"reset\n").is_err()
        {
            self.memory_peak = None;
        }
    }

    /// The most memory the group held since the last reset, in bytes.
    pub(crate) fn memory_peak_bytes(&self) -> Option<u64> {
        read(self.memory_peak.as_ref()?).trim().parse().ok()
    }
}

/// What programs may take of a machine with `total` bytes.
fn memory_max(total: u64) -> u64 {
    total.saturating_sub(MIN_RESERVE_BYTES.max(total / 10))
}

/// The value of `key` in a file of `key value` lines.
fn keyed(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

fn members(procs: &str) -> impl Iterator<Item = Pid> {
    procs.lines().filter_map(|line| Pid::from_raw(line.parse().ok()?))
}

/// The kernel makes such a file's text anew for each read at its start. What cannot be read says nothing.
fn read(file: &File) -> String {
    // A pid is at most 7 digits: all of MAX_PIDS fit, and so does every other file.
    let mut bytes = vec![0; 16 * 1024];
    let length = file.read_at(&mut bytes, 0).unwrap_or(0);
    bytes.truncate(length);
    String::from_utf8(bytes).unwrap_or_default()
}

fn write_new(path: &Path, text: &str) -> io::Result<()> {
    OpenOptions::new().write(true).open(path)?.write_all(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_found_whole_and_not_as_the_start_of_another() {
        let events = "oom 3\noom_kill 2\noom_group_kill 1\n";
        assert_eq!(keyed(events, "oom_kill"), Some(2));
        assert_eq!(keyed(events, "oom"), Some(3));
        assert_eq!(keyed(events, "oom_"), None);
    }

    #[test]
    fn a_small_machine_keeps_24_mib_for_itself_and_a_large_one_a_tenth() {
        assert_eq!(memory_max(128 << 20), (128 - 24) << 20);
        assert_eq!(memory_max(1000 << 20), 900 << 20);
        assert_eq!(memory_max(1 << 20), 0, "absurd, and no underflow");
    }

    #[test]
    fn members_that_are_not_numbers_are_left_out() {
        let pids: Vec<i32> = members("12\nx\n0\n34\n").map(|pid| pid.as_raw_nonzero().get()).collect();
        assert_eq!(pids, [12, 34]);
    }
}
