//! What processes take: time of all their threads to the nanosecond, and resident memory.

use std::{fs, io, time::Duration};

use anyhow::{Context as _, Result};

/// What a VM and its network have taken.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Used {
    pub(crate) qemu: Duration,
    /// `None`: the network is in QEMU.
    pub(crate) network: Option<Duration>,
    pub(crate) qemu_bytes: u64,
    pub(crate) network_bytes: Option<u64>,
}

impl Used {
    /// What QEMU takes, and the network's process if it has one.
    pub(crate) fn of(qemu: u32, network: Option<u32>) -> Result<Self> {
        let cpu = |pid| cpu(pid).with_context(|| format!("reading what process {pid} takes"));
        let resident = |pid| resident_bytes(pid).with_context(|| format!("reading what process {pid} holds"));
        Ok(Self {
            qemu: cpu(qemu)?,
            network: network.map(cpu).transpose()?,
            qemu_bytes: resident(qemu)?,
            network_bytes: network.map(resident).transpose()?,
        })
    }

    /// The time that was taken since. Memory is what it is now.
    pub(crate) fn since(&self, before: &Self) -> Self {
        let network = self.network.zip(before.network).map(|(now, before)| now.saturating_sub(before));
        Self { qemu: self.qemu.saturating_sub(before.qemu), network, ..*self }
    }

    /// Of both.
    pub(crate) fn all(&self) -> Duration {
        self.qemu + self.network.unwrap_or_default()
    }
}

/// The only child of a process, if it has one by now.
pub(crate) fn child_of(pid: u32) -> Option<u32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    children.split_ascii_whitespace().next()?.parse().ok()
}

/// Time of all threads. The scheduler's account is exact; the other one counts in hundredths of a second.
fn cpu(pid: u32) -> io::Result<Duration> {
    let mut all = Duration::ZERO;
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread may end meanwhile.
        let account = fs::read_to_string(thread?.path().join("schedstat")).unwrap_or_default();
        let ran = account.split_ascii_whitespace().next().and_then(|ran| ran.parse().ok());
        all += Duration::from_nanos(ran.unwrap_or(0));
    }
    Ok(all)
}

fn resident_bytes(pid: u32) -> io::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse().ok());
    kib.map(|kib: u64| kib * 1024).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "/proc does not say it"))
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn what_this_process_takes_is_counted() {
        let pid = std::process::id();
        let before = Used::of(pid, None).expect("it lives");
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_millis(20) {}
        let used = Used::of(pid, None).expect("it lives").since(&before);
        assert!(used.qemu > Duration::ZERO && used.all() == used.qemu && used.qemu_bytes > 100_000, "{used:?}");
    }
}
