//! What processes hold of the host's memory, where the system says so.

use std::{fs, io};

/// Resident memory. What the system does not say is absent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Resident {
    pub(super) now_bytes: Option<u64>,
    pub(super) peak_bytes: Option<u64>,
}

/// A process's part of memory that it shares with others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Share {
    /// Its own pages, and of each that it shares as much as falls to one of those who do (PSS).
    pub(super) proportional_bytes: u64,
    /// Its own pages alone: what its end would give back (USS).
    pub(super) unique_bytes: u64,
}

/// Resident memory of this process, by Linux's `/proc`.
pub(super) fn of_this_process() -> Resident {
    fs::read_to_string("/proc/self/status").map(|status| resident(&status)).unwrap_or_default()
}

/// The share of another process, by Linux's `/proc`.
pub(super) fn share_of(pid: u32) -> io::Result<Share> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    share(&rollup).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "it has no memory"))
}

fn resident(status: &str) -> Resident {
    Resident { now_bytes: field(status, "VmRSS"), peak_bytes: field(status, "VmHWM") }
}

fn share(rollup: &str) -> Option<Share> {
    let unique_bytes = field(rollup, "Private_Clean")? + field(rollup, "Private_Dirty")?;
    Some(Share { proportional_bytes: field(rollup, "Pss")?, unique_bytes })
}

fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_kilobytes_become_bytes() {
        let resident = resident("Name:\tsbx\nVmHWM:\t   12 kB\nVmRSS:\t    8 kB\n");
        assert_eq!(resident, Resident { now_bytes: Some(8192), peak_bytes: Some(12288) });
    }

    #[test]
    fn what_is_not_said_is_absent() {
        assert_eq!(resident("VmRSS:\tlots\n"), Resident::default());
        assert_eq!(share("Rss: 8 kB\nPss: 4 kB\n"), None);
    }

    #[test]
    fn private_pages_are_clean_or_dirty_and_the_share_has_all_kinds() {
        let rollup = "5500-7ff7 ---p 0 00:00 0 [rollup]\nRss:  40 kB\nPss:  30 kB\nPss_Dirty:  9 kB\n\
                      Private_Clean:  4 kB\nPrivate_Dirty:  8 kB\n";
        assert_eq!(share(rollup), Some(Share { proportional_bytes: 30 * 1024, unique_bytes: 12 * 1024 }));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn what_this_process_has_alone_is_part_of_its_share() {
        let share = share_of(std::process::id()).expect("it may look at itself");
        assert!(share.unique_bytes > 0 && share.proportional_bytes >= share.unique_bytes, "{share:?}");
    }
}
