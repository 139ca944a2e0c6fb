//! `sbx bench concurrency`: restored runs per second with several in flight, and whether they leave anything behind.

use std::{
    fmt::Write as _,
    time::{Duration, Instant},
};

use exec_sandbox::{Language, Scheduler, SchedulerConfig, Timing};
use futures_util::future::try_join_all;
use serde::Serialize;

use super::{
    figures::figures,
    holdings::Holdings,
    measured,
    plot::{Bar, Panel, Plot},
    rung, show, title,
};
use crate::{
    args::ConcurrencyArgs,
    exit::Status,
    failure::Failure,
    json::ms,
    print::{ERROR, HEADER},
    progress::Progress,
    table::UNKNOWN,
};

/// The rung that runs stand on.
const RUNG: rung::Rung = rung::RESTORE;

#[derive(Serialize)]
struct Sheet {
    levels: Vec<Level>,
    /// What `sbx` held when everything had been done once, and after all runs.
    before: Holdings,
    after: Holdings,
    /// What was added in between, in words. Nothing, or something is wrong.
    left_behind: Vec<String>,
}

/// What was measured of one language with so many runs in flight.
#[derive(Serialize)]
struct Level {
    language: Language,
    in_flight: u32,
    runs_per_second: f64,
    /// From each call to its return.
    total_ms: Vec<f64>,
    /// The part of it that was waiting for memory and CPU.
    admission_ms: Vec<f64>,
}

/// Measures what was asked for. What is left behind makes it fail.
pub(super) fn run(args: &ConcurrencyArgs) -> Result<Status, Failure> {
    let config = RUNG.config(args.what.host.config());
    measured(config.clone(), async |scheduler: &Scheduler, progress: &Progress| {
        let sheet = measure(scheduler, config, args, progress).await?;
        progress.end();
        let title = title(scheduler, &format!("restored runs, {} s each", args.seconds));
        show(&args.what, &sheet, &page(&title, &sheet), &plot(title, &sheet))?;
        Ok(if sheet.left_behind.is_empty() { Status::SUCCESS } else { Status::SANDBOX })
    })
}

async fn measure(
    scheduler: &Scheduler,
    config: SchedulerConfig,
    args: &ConcurrencyArgs,
    progress: &Progress,
) -> Result<Sheet, Failure> {
    let languages = args.what.languages();
    let most = args.number.iter().copied().max().unwrap_or(1);
    for &language in &languages {
        progress.say(&format!("{language}: making what is measured"));
        RUNG.rehearse(scheduler, language).await?;
        // Once as it will be at the most, so that threads, tables and buffers are there before they are counted.
        level(scheduler, language, most, Duration::ZERO).await?;
    }
    let before = Holdings::now(config.clone()).await?;
    let mut levels = Vec::new();
    for &language in &languages {
        for &in_flight in &args.number {
            progress.say(&format!("{language}, {in_flight} in flight"));
            levels.push(level(scheduler, language, in_flight, Duration::from_secs(args.seconds.into())).await?);
        }
    }
    let after = Holdings::now(config).await?;
    let left_behind = after.left_since(&before);
    Ok(Sheet { levels, before, after, left_behind })
}

/// Keeps `in_flight` runs going for so long, and waits for the last of them.
async fn level(
    scheduler: &Scheduler,
    language: Language,
    in_flight: u32,
    duration: Duration,
) -> Result<Level, Failure> {
    let begun = Instant::now();
    let lane = async || {
        let mut timings: Vec<Timing> = Vec::new();
        while timings.is_empty() || begun.elapsed() < duration {
            timings.push(RUNG.sample(scheduler, language).await?.timing);
        }
        Ok::<_, Failure>(timings)
    };
    let timings = try_join_all((0..in_flight).map(|_| lane())).await?.concat();
    let seconds = begun.elapsed().as_secs_f64();
    Ok(Level {
        language,
        in_flight,
        runs_per_second: f64::from(u32::try_from(timings.len()).unwrap_or(u32::MAX)) / seconds,
        total_ms: timings.iter().map(|timing| ms(timing.total)).collect(),
        admission_ms: timings.iter().map(|timing| ms(timing.admission)).collect(),
    })
}

fn page(title: &str, sheet: &Sheet) -> String {
    let mut page = format!("{title}\n");
    let mut language = None;
    for level in &sheet.levels {
        if language.replace(level.language) != Some(level.language) {
            let name = level.language.name();
            let (runs, rate) = ("runs", "per second");
            let _ = writeln!(
                page,
                "\n{HEADER}{name:<18} {runs:>6} {rate:>11} {:>9}    {:>9}    {:>9}{HEADER:#}",
                "median", "p95", "waiting"
            );
        }
        line(&mut page, level);
    }
    held(&mut page, sheet);
    page
}

fn line(page: &mut String, level: &Level) {
    let (Some(total), Some(waiting)) = (figures(level.total_ms.clone()), figures(level.admission_ms.clone())) else {
        return;
    };
    let name = format!("{} in flight", level.in_flight);
    let (runs, rate) = (level.total_ms.len(), level.runs_per_second);
    let _ = writeln!(
        page,
        "{name:<18} {runs:>6} {rate:>11.2} {:>9.1} ms {:>9.1} ms {:>9.1} ms",
        total.median, total.p95, waiting.median
    );
}

fn held(page: &mut String, sheet: &Sheet) {
    let Sheet { before, after, left_behind, .. } = sheet;
    let cell = |value: Option<u64>| value.map_or_else(|| UNKNOWN.into(), |value| value.to_string());
    let kib = |bytes: Option<u64>| bytes.map(|bytes| bytes >> 10);
    let rows = [
        ("VM directories", Some(before.directories), Some(after.directories)),
        ("processes", before.processes, after.processes),
        ("descriptors", before.descriptors, after.descriptors),
        ("resident, KiB", kib(before.resident_bytes), kib(after.resident_bytes)),
    ];
    let _ = writeln!(page, "\n{HEADER}{:<18} {:>9} {:>9}{HEADER:#}", "what sbx holds", "before", "after");
    for (name, before, after) in rows {
        let _ = writeln!(page, "{name:<18} {:>9} {:>9}", cell(before), cell(after));
    }
    if !left_behind.is_empty() {
        let _ = writeln!(page, "{ERROR}left behind:{ERROR:#} {}", left_behind.join(", "));
    }
}

fn plot(title: String, sheet: &Sheet) -> Plot {
    let label = |level: &Level| format!("{}, {} in flight", level.language, level.in_flight);
    let rate = |level| Bar::plain(label(level), "runs", level.runs_per_second, None);
    let latency = |level: &Level| {
        let total = figures(level.total_ms.clone())?;
        Some(Bar::plain(label(level), "run", total.median, Some(total.p95)))
    };
    let panels = vec![
        Panel { title: "runs per second".into(), bars: sheet.levels.iter().map(rate).collect() },
        Panel {
            title: "from a call to its return, ms: median and 95th percentile".into(),
            bars: sheet.levels.iter().filter_map(latency).collect(),
        },
    ];
    Plot { title, panels }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn level_of(in_flight: u32, total_ms: Vec<f64>) -> Level {
        let admission_ms = vec![0.25; total_ms.len()];
        Level { language: Language::Raw, in_flight, runs_per_second: 12.5, total_ms, admission_ms }
    }

    #[test]
    fn a_page_has_a_line_for_each_number_in_flight_and_says_what_is_left_behind() {
        let before =
            Holdings { directories: 0, processes: Some(0), descriptors: Some(12), resident_bytes: Some(8 << 20) };
        let after = Holdings { descriptors: Some(15), resident_bytes: None, ..before };
        let sheet = Sheet {
            levels: vec![level_of(1, vec![80.0, 90.0]), level_of(2, vec![160.0, 150.0, 170.0])],
            before,
            after,
            left_behind: after.left_since(&before),
        };
        let shown = anstream::adapter::strip_str(&page("tcg", &sheet)).to_string();
        insta::assert_snapshot!(shown);
    }

    #[test]
    fn both_panels_have_a_bar_for_each_number_in_flight() {
        let levels = vec![level_of(1, vec![80.0]), level_of(2, vec![160.0])];
        let sheet = Sheet { levels, before: Holdings::default(), after: Holdings::default(), left_behind: Vec::new() };
        let plot = plot(String::new(), &sheet);
        let bars: Vec<Vec<&str>> =
            plot.panels.iter().map(|panel| panel.bars.iter().map(|bar| bar.label.as_str()).collect()).collect();
        assert_eq!(bars, vec![vec!["raw, 1 in flight", "raw, 2 in flight"]; 2]);
    }
}
