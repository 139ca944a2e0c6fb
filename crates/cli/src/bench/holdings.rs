//! What this process holds of the host, so that a bench can say whether its runs have left anything behind.

use std::{fs, process};

use exec_sandbox::{SchedulerConfig, inventory};
use serde::Serialize;

use super::memory;
use crate::failure::Failure;

/// By so much resident memory may grow: allocators keep what they were given. A run that leaks a page is found after 2048 runs.
const GROWTH_BYTES: u64 = 8 << 20;

/// What is held. What the system does not say is absent.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(super) struct Holdings {
    /// Directories of VMs that this process has made.
    pub(super) directories: u64,
    /// Its children, those among them that nobody has reaped.
    pub(super) processes: Option<u64>,
    pub(super) descriptors: Option<u64>,
    pub(super) resident_bytes: Option<u64>,
}

impl Holdings {
    /// What is held now.
    pub(super) async fn now(config: SchedulerConfig) -> Result<Self, Failure> {
        let pid = process::id();
        let mine = |vm: &inventory::VmInfo| vm.owner.as_ref().is_some_and(|owner| owner.pid == pid);
        let directories = inventory::list(config).await?.iter().filter(|vm| mine(vm)).count();
        Ok(Self {
            directories: wide(directories),
            processes: children_of(pid),
            descriptors: fs::read_dir("/proc/self/fd").ok().map(|entries| wide(entries.count())),
            resident_bytes: memory::of_this_process().now_bytes,
        })
    }

    /// What has been added since `before`, in words.
    pub(super) fn left_since(&self, before: &Self) -> Vec<String> {
        let more = |now: Option<u64>, then: Option<u64>| Some(now?.saturating_sub(then?)).filter(|more| *more > 0);
        let counted = [
            ("VM directories", more(Some(self.directories), Some(before.directories))),
            ("processes", more(self.processes, before.processes)),
            ("descriptors", more(self.descriptors, before.descriptors)),
        ];
        let mut left: Vec<String> =
            counted.into_iter().filter_map(|(name, more)| Some(format!("{} {name}", more?))).collect();
        let grown = more(self.resident_bytes, before.resident_bytes).filter(|grown| *grown > GROWTH_BYTES);
        left.extend(grown.map(|grown| format!("{} MiB of memory", grown >> 20)));
        left
    }
}

fn children_of(pid: u32) -> Option<u64> {
    let stats = fs::read_dir("/proc").ok()?.filter_map(|entry| {
        // A process may end between the two calls, and then it is nobody's child.
        fs::read_to_string(entry.ok()?.path().join("stat")).ok()
    });
    Some(wide(stats.filter(|stat| parent(stat) == Some(pid)).count()))
}

/// The parent of a process. Its name stands in parentheses before it, and may contain anything.
fn parent(stat: &str) -> Option<u32> {
    stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
}

fn wide(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_added_is_left_behind_and_a_little_memory_is_the_allocators() {
        let before =
            Holdings { directories: 0, processes: Some(1), descriptors: Some(10), resident_bytes: Some(10 << 20) };
        let after = Holdings { resident_bytes: Some(18 << 20), ..before };
        assert!(after.left_since(&before).is_empty());
        let after =
            Holdings { directories: 1, processes: Some(3), descriptors: Some(14), resident_bytes: Some(19 << 20) };
        assert_eq!(after.left_since(&before), ["1 VM directories", "2 processes", "4 descriptors", "9 MiB of memory"]);
        assert!(before.left_since(&after).is_empty(), "less is no leak");
        assert!(after.left_since(&Holdings::default()).len() == 1, "what was not known has not grown");
    }

    #[test]
    fn a_name_that_looks_like_fields_has_no_parent() {
        assert_eq!(parent("7 (a) S 1 (b) Z 42 7 7 0 -1"), Some(42));
        assert_eq!(parent("7"), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_child_counts_until_it_has_been_reaped() {
        let mut child = process::Command::new("/bin/sleep").arg("1000").spawn().expect("sleep starts");
        let parents = |pid: u32| fs::read_to_string(format!("/proc/{pid}/stat")).ok().and_then(|stat| parent(&stat));
        assert_eq!(parents(child.id()), Some(process::id()));
        assert!(children_of(process::id()) >= Some(1));
        child.kill().expect("it is ours");
        assert_eq!(parents(child.id()), Some(process::id()), "a zombie is there");
        child.wait().expect("it is ours");
        assert_eq!(parents(child.id()), None);
    }
}
