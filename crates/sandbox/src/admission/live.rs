//! The live state of this machine, as the kernel's files tell it.
//!
//! Everything here is advice: a file that is missing or that is not understood says nothing, and is no failure.

use std::fs;

use super::{
    cgroup::Cgroups,
    gate::{Live, Sample},
};

/// The kernel of this machine, and where this process is in its control groups.
#[derive(Debug)]
pub(crate) struct Kernel {
    cgroups: Cgroups,
}

impl Kernel {
    /// Finds the control groups of this process. They are found once: a process that is moved later keeps to the old limits.
    pub(crate) fn of_this_machine() -> Self {
        Self { cgroups: Cgroups::of_this_process() }
    }
}

impl Live for Kernel {
    fn sample(&self) -> Sample {
        let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let pressure = fs::read_to_string("/proc/pressure/memory").unwrap_or_default();
        Sample {
            available_mib: meminfo_mib(&meminfo, "MemAvailable:"),
            container_room_mib: self.cgroups.memory_room_mib(),
            stalled_percent: some_avg10(&pressure),
        }
    }
}

/// The memory of the host.
pub(super) fn total_mib() -> Option<u64> {
    meminfo_mib(&fs::read_to_string("/proc/meminfo").ok()?, "MemTotal:")
}

fn meminfo_mib(meminfo: &str, field: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(field))?;
    let kib: u64 = line.split_ascii_whitespace().next()?.parse().ok()?;
    Some(kib / 1024)
}

fn some_avg10(pressure: &str) -> Option<f64> {
    let line = pressure.lines().find_map(|line| line.strip_prefix("some "))?;
    line.split_ascii_whitespace().find_map(|field| field.strip_prefix("avg10="))?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_from_what_the_kernel_says() {
        let meminfo = "MemTotal:       24684092 kB\nMemFree:        21053984 kB\nMemAvailable:   23947416 kB\n";
        assert_eq!(meminfo_mib(meminfo, "MemTotal:"), Some(24105));
        assert_eq!(meminfo_mib(meminfo, "MemAvailable:"), Some(23386));
        assert_eq!(meminfo_mib("nonsense", "MemTotal:"), None);
    }

    #[test]
    fn pressure_is_that_of_some_task_over_ten_seconds() {
        let pressure =
            "some avg10=1.25 avg60=0.50 avg300=0.10 total=99\nfull avg10=0.75 avg60=0.00 avg300=0.00 total=1\n";
        assert_eq!(some_avg10(pressure), Some(1.25));
        assert_eq!(some_avg10(""), None);
    }

    #[test]
    fn this_machine_says_what_it_has() {
        let sample = Kernel::of_this_machine().sample();
        let available = sample.available_mib.expect("every Linux since 3.14 says it");
        assert!(available <= total_mib().expect("every Linux says it"));
    }
}
