//! The frequency of the host's time-stamp counter, which a guest under software emulation reads as its own.
//!
//! The guest's kernel could measure it too, against an emulated timer on a busy host, and then fails at random. Here it is measured
//! against the kernel's own raw clock, twice, and only believed if both agree.

use std::num::NonZeroU32;

/// The counter and the clock at one moment.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(
    not(all(target_os = "linux", target_arch = "x86_64")),
    expect(dead_code, reason = "there is no counter to read")
)]
struct Moment {
    ticks: u64,
    nanoseconds: u64,
}

/// How far two measurements may lie apart, in parts per million. A kernel corrects less than 500 by itself.
const TOLERANCE_PPM: u64 = 100;

/// The frequency in kHz, if the counter runs at a constant one and can be measured.
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub(super) fn khz() -> Option<NonZeroU32> {
    use std::{thread, time::Duration};
    /// The reading of the clock is off by less than 0.1 µs, which is 5 ppm of this.
    const WINDOW: Duration = Duration::from_millis(20);
    /// A measurement fails if the thread lost its processor at the wrong moment, so it is tried again.
    const TRIES: usize = 3;
    if !x86::is_constant() {
        return None;
    }
    (0..TRIES).find_map(|_| {
        let start = x86::moment()?;
        thread::sleep(WINDOW);
        let middle = x86::moment()?;
        thread::sleep(WINDOW);
        agreed(start, middle, x86::moment()?)
    })
}

/// Other machines have no such counter, or no guests that need to know it.
#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
pub(super) fn khz() -> Option<NonZeroU32> {
    None
}

/// The frequency over the whole time, if both halves agree.
fn agreed(start: Moment, middle: Moment, end: Moment) -> Option<NonZeroU32> {
    let (first, second) = (millihertz(start, middle)?, millihertz(middle, end)?);
    if u128::from(TOLERANCE_PPM) * first < first.abs_diff(second) * 1_000_000 {
        return None;
    }
    // To the nearest kHz.
    let khz = millihertz(start, end)?.checked_add(500_000)? / 1_000_000;
    NonZeroU32::new(u32::try_from(khz).ok()?)
}

fn millihertz(from: Moment, to: Moment) -> Option<u128> {
    let ticks = to.ticks.checked_sub(from.ticks)?;
    let nanoseconds = to.nanoseconds.checked_sub(from.nanoseconds)?;
    (u128::from(ticks) * 1_000_000_000_000).checked_div(nanoseconds.into())
}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod x86 {
    #![expect(unsafe_code, reason = "the counter is read by an instruction")]

    use std::arch::x86_64::{__cpuid, _rdtsc};

    use rustix::time::{ClockId, clock_gettime};

    use super::Moment;

    /// Whether the counter runs at one frequency whatever the processor's power state.
    pub(super) fn is_constant() -> bool {
        const POWER_MANAGEMENT: u32 = 0x8000_0007;
        const INVARIANT_TSC: u32 = 1 << 8;
        __cpuid(0x8000_0000).eax >= POWER_MANAGEMENT && __cpuid(POWER_MANAGEMENT).edx & INVARIANT_TSC != 0
    }

    /// Both readings at as nearly the same time as can be had: the tightest of several.
    pub(super) fn moment() -> Option<Moment> {
        const READINGS: usize = 32;
        let reading = |_| {
            let before = counter();
            let clock = clock_gettime(ClockId::MonotonicRaw);
            let width = counter().checked_sub(before)?;
            let nanoseconds = u64::try_from(clock.tv_sec).ok()?.checked_mul(1_000_000_000)?;
            let nanoseconds = nanoseconds.checked_add(u64::try_from(clock.tv_nsec).ok()?)?;
            Some((width, Moment { ticks: before + width / 2, nanoseconds }))
        };
        (0..READINGS).filter_map(reading).min_by_key(|(width, _)| *width).map(|(_, moment)| moment)
    }

    fn counter() -> u64 {
        // SAFETY: every x86-64 processor has the instruction, and Linux lets programs use it.
        unsafe { _rdtsc() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ticks: u64, nanoseconds: u64) -> Moment {
        Moment { ticks, nanoseconds }
    }

    #[test]
    fn two_halves_that_agree_give_the_frequency_of_the_whole() {
        let khz = agreed(at(0, 0), at(46_000_000, 20_000_000), at(92_002_000, 40_000_000));
        assert_eq!(khz.map(NonZeroU32::get), Some(2_300_050));
    }

    #[test]
    fn halves_that_disagree_by_more_than_the_tolerance_give_nothing() {
        let with_second_half =
            |ticks: u64| agreed(at(0, 0), at(46_000_000, 20_000_000), at(46_000_000 + ticks, 40_000_000));
        assert!(with_second_half(46_004_600).is_some(), "100 ppm");
        assert!(with_second_half(46_004_700).is_none());
        assert!(with_second_half(45_995_300).is_none());
    }

    #[test]
    fn a_counter_or_clock_that_stands_or_goes_back_gives_nothing() {
        assert!(agreed(at(5, 0), at(5, 10), at(5, 20)).is_none());
        assert!(agreed(at(0, 10), at(5, 10), at(9, 10)).is_none());
        assert!(agreed(at(9, 0), at(5, 10), at(7, 20)).is_none());
    }
}
