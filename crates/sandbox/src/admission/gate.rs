//! The gate: whether the machine, as it is now, can bear one more VM.
//!
//! The ledger counts what VMs may come to; the gate looks at what is there, because the ledger overcommits and because others
//! use the machine too. It is pure: the look itself is a [`Sample`], taken by [`Live`].

use std::fmt;

use super::ledger::Need;

/// From this share of time on in which some task waited for memory, in percent over the last 10 s, no VM is added: what runs
/// already loses a fifth of its time to reclaim, and one more makes it worse for all.
const MOST_STALLED_PERCENT: f64 = 20.0;

/// Where samples come from.
pub(super) trait Live: fmt::Debug + Send + Sync {
    /// Looks at the machine. Reads a few files that the kernel makes up, so it does not block.
    fn sample(&self) -> Sample;
}

/// The machine at one moment. What the kernel does not tell keeps nobody out.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Sample {
    /// What can be had without swapping.
    pub(crate) available_mib: Option<u64>,
    /// What our control groups, or those around them, still allow; `None` also if none has a limit.
    pub(crate) container_room_mib: Option<u64>,
    /// Time in which some task waited for memory, over the last 10 s.
    pub(crate) stalled_percent: Option<f64>,
}

/// Which gate is shut, and why.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub(crate) enum Shut {
    /// The host has too little memory.
    #[error("the host has {available_mib} MiB of memory available and one more VM needs {needed_mib} MiB to be there")]
    Memory { available_mib: u64, needed_mib: u64 },
    /// The container has too little memory.
    #[error("the container may use {room_mib} MiB of memory more and one more VM needs {needed_mib} MiB to be there")]
    Container { room_mib: u64, needed_mib: u64 },
    /// Programs already wait for memory.
    #[error(
        "programs on the host wait for memory {stalled_percent} % of the time and {MOST_STALLED_PERCENT} % is the most"
    )]
    Pressure { stalled_percent: f64 },
}

/// Whether a machine in the state of `sample` can bear `need` and still keep `reserve_mib` free.
///
/// A VM that was granted and has not booted is not in the sample yet, so its memory is asked for again.
pub(super) fn check(sample: &Sample, need: Need, reserve_mib: u64) -> Result<(), Shut> {
    let needed_mib = need.wanted_mib.saturating_add(need.in_flight_mib).saturating_add(reserve_mib);
    if let Some(available_mib) = sample.available_mib.filter(|available| *available < needed_mib) {
        return Err(Shut::Memory { available_mib, needed_mib });
    }
    if let Some(room_mib) = sample.container_room_mib.filter(|room| *room < needed_mib) {
        return Err(Shut::Container { room_mib, needed_mib });
    }
    if let Some(stalled_percent) = sample.stalled_percent.filter(|percent| *percent >= MOST_STALLED_PERCENT) {
        return Err(Shut::Pressure { stalled_percent });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEED: Need = Need { wanted_mib: 300, in_flight_mib: 600 };

    #[test]
    fn memory_in_flight_and_the_reserve_count_as_gone() {
        let sample = Sample { available_mib: Some(1000), ..Sample::default() };
        assert_eq!(check(&sample, NEED, 100), Ok(()));
        let shut = Shut::Memory { available_mib: 1000, needed_mib: 1001 };
        assert_eq!(check(&sample, NEED, 101), Err(shut));
    }

    #[test]
    fn a_container_can_be_tighter_than_its_host() {
        let sample = Sample { available_mib: Some(9999), container_room_mib: Some(899), stalled_percent: None };
        assert_eq!(check(&sample, NEED, 0), Err(Shut::Container { room_mib: 899, needed_mib: 900 }));
    }

    #[test]
    fn programs_that_wait_for_memory_shut_the_gate() {
        let waiting = |percent| Sample { stalled_percent: Some(percent), ..Sample::default() };
        assert_eq!(check(&waiting(19.99), NEED, 0), Ok(()));
        assert_eq!(check(&waiting(20.0), NEED, 0), Err(Shut::Pressure { stalled_percent: 20.0 }));
    }

    #[test]
    fn what_the_kernel_does_not_tell_keeps_nobody_out() {
        assert_eq!(check(&Sample::default(), NEED, u64::MAX), Ok(()));
    }
}
