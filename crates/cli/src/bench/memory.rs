//! What this process itself holds, where the system says so.

use std::fs;

/// Resident memory. What the system does not say is absent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Resident {
    pub(super) now_bytes: Option<u64>,
    pub(super) peak_bytes: Option<u64>,
}

/// Resident memory of this process, by Linux's `/proc`.
pub(super) fn of_this_process() -> Resident {
    fs::read_to_string("/proc/self/status").map(|status| parse(&status)).unwrap_or_default()
}

fn parse(status: &str) -> Resident {
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
        Some(kib * 1024)
    };
    Resident { now_bytes: field("VmRSS"), peak_bytes: field("VmHWM") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_kilobytes_become_bytes() {
        let resident = parse("Name:\tsbx\nVmHWM:\t   12 kB\nVmRSS:\t    8 kB\n");
        assert_eq!(resident, Resident { now_bytes: Some(8192), peak_bytes: Some(12288) });
    }

    #[test]
    fn what_is_not_said_is_absent() {
        assert_eq!(parse("VmRSS:\tlots\n"), Resident::default());
    }
}
