//! The page of a bench: medians, 95th percentiles, and a bar for each phase.
//!
//! A phase that was not measured in every run is left out rather than shown as nothing.

use std::{fmt::Write as _, time::Duration};

use exec_sandbox::Outcome;

use super::{
    cold::Series,
    figures::{Figures, figures},
    memory::Resident,
};
use crate::{
    json::ms,
    print::{FAINT, HEADER},
};

/// Width of the bar of a phase that takes all the time there is.
const BAR_WIDTH: u32 = 40;

/// What holds for all series.
pub(super) struct Facts {
    pub(super) title: String,
    pub(super) start_ms: f64,
    pub(super) memory: Resident,
}

/// What is read off one outcome, if it was measured.
type Reading = fn(&Outcome) -> Option<f64>;

/// Phases in the order in which they take place; together they are the whole call.
const PHASES: [(&str, Reading); 7] = [
    ("admission", |run| Some(ms(run.timing.admission))),
    ("prepare", |run| Some(ms(run.timing.prepare))),
    ("spawn", |run| Some(ms(run.timing.spawn))),
    ("guest wait", |run| Some(ms(run.timing.guest_wait))),
    ("interpreter start", |run| run.usage.interpreter_start.map(ms)),
    ("run", |run| Some(ms(run.timing.execute.saturating_sub(run.usage.interpreter_start.unwrap_or(Duration::ZERO))))),
    ("teardown", |run| Some(ms(run.timing.teardown))),
];

const TOTALS: [(&str, Reading); 2] =
    [("to first output", |run| run.timing.first_output.map(ms)), ("to exit", |run| Some(ms(run.timing.total)))];

/// The whole page.
pub(super) fn page(facts: &Facts, all: &[Series]) -> String {
    let mut page = format!("{}\n", facts.title);
    for series in all {
        language(&mut page, series);
    }
    let _ = write!(page, "\n{:<18} {:>9.1} ms\n", "scheduler start", facts.start_ms);
    for (name, bytes) in [("sbx resident", facts.memory.now_bytes), ("sbx resident peak", facts.memory.peak_bytes)] {
        if let Some(bytes) = bytes {
            let _ = writeln!(page, "{name:<18} {:>9} MiB", mib(bytes));
        }
    }
    page
}

fn language(page: &mut String, series: &Series) {
    let total = reading(series, |run| Some(ms(run.timing.total))).map_or(0.0, |total| total.median);
    let _ = writeln!(page, "\n{HEADER}{:<18} {:>9}    {:>9}{HEADER:#}", series.language.name(), "median", "p95");
    for (name, read) in PHASES {
        if let Some(phase) = reading(series, read) {
            let bar = bar(phase.median, total);
            let _ = writeln!(page, "{name:<18} {:>9.1} ms {:>9.1} ms  {bar}", phase.median, phase.p95);
        }
    }
    for (name, read) in TOTALS {
        if let Some(total) = reading(series, read) {
            let _ = writeln!(page, "{HEADER}{name:<18} {:>9.1} ms {:>9.1} ms{HEADER:#}", total.median, total.p95);
        }
    }
    let peaks = series.samples.iter().filter_map(|run| run.usage.qemu_memory_peak_bytes).max();
    if let Some(peak) = peaks {
        let _ = writeln!(page, "{FAINT}QEMU resident peak {:>9} MiB{FAINT:#}", mib(peak));
    }
}

/// Bytes in MiB, to the nearest.
pub(super) fn mib(bytes: u64) -> u64 {
    (bytes + (1 << 19)) >> 20
}

fn reading(series: &Series, read: Reading) -> Option<Figures> {
    let values: Option<Vec<f64>> = series.samples.iter().map(read).collect();
    figures(values?)
}

/// A bar as long as `part` is of `whole`, to an eighth of a cell. What took place at all has one eighth.
fn bar(part: f64, whole: f64) -> String {
    const PARTS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    if part <= 0.0 {
        return String::new();
    }
    // An eighth is filled once half of it would be.
    let filled = |eighth: &u32| part * f64::from(BAR_WIDTH * 8) >= (f64::from(*eighth) - 0.5) * whole;
    let eighths = (1..=BAR_WIDTH * 8).filter(filled).count().max(1);
    "█".repeat(eighths / 8) + PARTS[eighths % 8]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_is_as_long_as_its_share() {
        assert_eq!(bar(50.0, 100.0).chars().count(), 20);
        assert_eq!(bar(100.0, 100.0).chars().count(), 40);
        assert_eq!(bar(3.75, 100.0), "█▌");
        assert_eq!(bar(0.001, 100.0), "▏", "what took place is seen");
        assert_eq!(bar(0.0, 100.0), "");
    }

    #[test]
    fn memory_is_rounded_to_the_nearest_mebibyte() {
        assert_eq!((mib((1 << 20) + (1 << 19)), mib((1 << 20) + 1)), (2, 1));
    }
}
