//! The page of a bench: medians, 95th percentiles, and a bar for each phase.
//!
//! A phase that was not measured in every run is left out rather than shown as nothing.

use std::{fmt::Write as _, time::Duration};

use super::{
    figures::{Figures, figures},
    memory::Resident,
    plot::{Bar, Panel, Plot},
    runs::{Run, Series},
};
use crate::{
    json::ms,
    print::{FAINT, HEADER},
};

/// Width of the bar of a phase that takes all the time there is.
const BAR_WIDTH: u32 = 40;

/// The line, and the bar, of what no run gets below.
const FLOOR: &str = "QEMU alone";

/// What holds for all series.
pub(super) struct Facts {
    pub(super) title: String,
    pub(super) start_ms: f64,
    /// QEMU's own start, beside each run.
    pub(super) floor_ms: Vec<f64>,
    pub(super) memory: Resident,
}

/// What is read off one run, if it was measured.
type Reading = fn(&Run) -> Option<f64>;

/// Phases in the order in which they take place; together they are the whole call.
const PHASES: [(&str, Reading); 8] = [
    ("admission", |run| Some(ms(run.timing.admission))),
    ("prepare", |run| Some(ms(run.timing.prepare))),
    ("spawn", |run| Some(ms(run.timing.spawn))),
    ("guest wait", |run| Some(ms(run.timing.guest_wait))),
    ("saving a snapshot", |run| run.timing.snapshot.map(ms)),
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
    let _ = writeln!(page);
    if let Some(floor) = figures(facts.floor_ms.clone()) {
        let _ = writeln!(page, "{FLOOR:<18} {:>9.1} ms {:>9.1} ms", floor.median, floor.p95);
    }
    let _ = writeln!(page, "{:<18} {:>9.1} ms", "scheduler start", facts.start_ms);
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
            let line = format!("{name:<18} {:>9.1} ms {:>9.1} ms  {bar}", phase.median, phase.p95);
            let _ = writeln!(page, "{}", line.trim_end());
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

/// The phases of each language side by side, and the floor.
pub(super) fn plot(facts: &Facts, all: &[Series]) -> Plot {
    let mut bars: Vec<Bar> = all.iter().map(stack).collect();
    if let Some(floor) = figures(facts.floor_ms.clone()) {
        bars.push(Bar::plain(FLOOR, FLOOR, floor.median, Some(floor.p95)));
    }
    let panel =
        Panel { title: "where a run's time goes, ms: medians of phases, and 95th percentile of all".into(), bars };
    Plot { title: facts.title.clone(), panels: vec![panel] }
}

fn stack(series: &Series) -> Bar {
    let part = |(name, read): (&'static str, Reading)| Some((name, reading(series, read)?.median));
    let reach = reading(series, |run| Some(ms(run.timing.total))).map(|total| total.p95);
    Bar { label: series.language.name().into(), parts: PHASES.into_iter().filter_map(part).collect(), reach }
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
    use exec_sandbox::{Language, Timing, Usage};

    use super::*;

    #[test]
    fn a_bar_is_as_long_as_its_share() {
        assert_eq!(bar(50.0, 100.0).chars().count(), 20);
        assert_eq!(bar(100.0, 100.0).chars().count(), 40);
        assert_eq!(bar(3.75, 100.0), "█▌");
        assert_eq!(bar(0.001, 100.0), "▏", "what took place is seen");
        assert_eq!(bar(0.0, 100.0), "");
    }

    fn restored(total_ms: u64) -> Run {
        let of = Duration::from_millis;
        let (mut timing, mut usage) = (Timing::default(), Usage::default());
        (timing.spawn, timing.guest_wait, timing.execute) = (of(12), of(60), of(20));
        (timing.teardown, timing.total) = (of(8), of(total_ms));
        usage.qemu_memory_peak_bytes = Some(70 << 20);
        Run { timing, usage }
    }

    fn measured() -> (Facts, [Series; 1]) {
        let memory = Resident { now_bytes: Some(5 << 20), peak_bytes: None };
        let facts = Facts { title: "tcg".into(), start_ms: 1.25, floor_ms: vec![17.0, 16.0, 30.0], memory };
        (facts, [Series { language: Language::Python, samples: vec![restored(100), restored(104), restored(140)] }])
    }

    #[test]
    fn a_page_has_the_phases_that_were_measured_and_the_floor() {
        let (facts, series) = measured();
        insta::assert_snapshot!(anstream::adapter::strip_str(&page(&facts, &series)).to_string());
    }

    #[test]
    fn a_stack_has_the_phases_as_parts_and_reaches_as_far_as_the_slow_runs() {
        let (facts, series) = measured();
        let plot = plot(&facts, &series);
        let [python, floor] = &plot.panels[0].bars[..] else { panic!("there are two bars") };
        let named: Vec<(&str, f64)> = python.parts.iter().copied().filter(|(_, value)| *value > 0.0).collect();
        assert_eq!(named, [("spawn", 12.0), ("guest wait", 60.0), ("run", 20.0), ("teardown", 8.0)]);
        assert_eq!((python.reach, floor.reach), (Some(140.0), Some(30.0)));
    }

    #[test]
    fn memory_is_rounded_to_the_nearest_mebibyte() {
        assert_eq!((mib((1 << 20) + (1 << 19)), mib((1 << 20) + 1)), (2, 1));
    }
}
