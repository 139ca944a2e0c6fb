//! `sbx bench cold` and its siblings: fresh VMs one after the other, and where their time goes.

use std::time::Instant;

use exec_sandbox::{Language, Scheduler, Timing, Usage};
use serde::Serialize;

use super::{
    floor, measured, memory,
    page::{self, Facts},
    rung::Rung,
    show, title,
};
use crate::{
    args::RunsArgs,
    exit::Status,
    failure::Failure,
    json::{TimingMs, UsageFigures, ms},
    progress::Progress,
};

/// Every sample of one language.
pub(super) struct Series {
    pub(super) language: Language,
    pub(super) samples: Vec<Run>,
}

/// What is kept of one run.
pub(super) struct Run {
    pub(super) timing: Timing,
    pub(super) usage: Usage,
}

/// All that was measured.
struct Measured {
    series: Vec<Series>,
    /// QEMU alone, once beside each run, so that the same load has slowed down both.
    floor_ms: Vec<f64>,
}

/// What is printed with `--json`: facts, and every sample as it was measured.
#[derive(Serialize)]
struct Sheet<'a> {
    rung: &'static str,
    accelerator: &'a str,
    qemu_version: &'a str,
    image: &'a str,
    kernel_version: &'a str,
    /// Starting the scheduler: QEMU, accelerator and image found and verified.
    scheduler_start_ms: f64,
    /// Starting QEMU without a machine, until it greets.
    qemu_alone_ms: &'a [f64],
    sbx_resident_bytes: Option<u64>,
    sbx_resident_peak_bytes: Option<u64>,
    series: Vec<SeriesSheet>,
}

#[derive(Serialize)]
struct SeriesSheet {
    language: Language,
    samples: Vec<Sample>,
}

#[derive(Serialize)]
struct Sample {
    timing: TimingMs,
    usage: UsageFigures,
}

/// Measures runs that stand on `rung`.
pub(super) fn run(args: &RunsArgs, rung: Rung) -> Result<Status, Failure> {
    let called = Instant::now();
    measured(rung.config(args.what.host.config()), async |scheduler: &Scheduler, progress: &Progress| {
        let start_ms = ms(called.elapsed());
        let measured = measure(scheduler, rung, args, progress).await?;
        progress.end();
        let title = title(scheduler, &format!("{}, {} runs each", rung.name, args.number));
        let facts = Facts { title, start_ms, floor_ms: measured.floor_ms, memory: memory::of_this_process() };
        let sheet = sheet(scheduler, rung, &facts, &measured.series);
        let (page, plot) = (page::page(&facts, &measured.series), page::plot(&facts, &measured.series));
        show(&args.what, &sheet, &page, &plot)?;
        Ok(Status::SUCCESS)
    })
}

async fn measure(scheduler: &Scheduler, rung: Rung, args: &RunsArgs, progress: &Progress) -> Result<Measured, Failure> {
    let (mut series, mut floor_ms) = (Vec::new(), Vec::new());
    for language in args.what.languages() {
        progress.say(&format!("{language}: making what is measured"));
        rung.rehearse(scheduler, language).await?;
        let mut samples = Vec::new();
        for number in 1..=args.number {
            progress.say(&format!("{language} {number}/{}", args.number));
            floor_ms.push(floor::sample(&scheduler.facts().qemu).await?);
            let outcome = rung.sample(scheduler, language).await?;
            samples.push(Run { timing: outcome.timing, usage: outcome.usage });
        }
        series.push(Series { language, samples });
    }
    Ok(Measured { series, floor_ms })
}

fn sheet<'a>(scheduler: &'a Scheduler, rung: Rung, measured: &'a Facts, series: &[Series]) -> Sheet<'a> {
    let facts = scheduler.facts();
    Sheet {
        rung: rung.name,
        accelerator: &facts.accelerator,
        qemu_version: &facts.qemu_version,
        image: &facts.image,
        kernel_version: &facts.kernel_version,
        scheduler_start_ms: measured.start_ms,
        qemu_alone_ms: &measured.floor_ms,
        sbx_resident_bytes: measured.memory.now_bytes,
        sbx_resident_peak_bytes: measured.memory.peak_bytes,
        series: series.iter().map(series_sheet).collect(),
    }
}

fn series_sheet(series: &Series) -> SeriesSheet {
    let sample = |run: &Run| Sample { timing: (&run.timing).into(), usage: (&run.usage).into() };
    SeriesSheet { language: series.language, samples: series.samples.iter().map(sample).collect() }
}
