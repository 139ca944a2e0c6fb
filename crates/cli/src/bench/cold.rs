//! `sbx bench cold`: fresh VMs one after the other, and where their time goes.

use std::{
    io::{self, IsTerminal as _},
    time::Instant,
};

use exec_sandbox::{Exit, Language, Outcome, RunRequest, Scheduler};
use serde::Serialize;

use super::{
    hello, memory,
    page::{self, Facts},
};
use crate::{
    args::ColdArgs,
    exit::Status,
    failure::Failure,
    json::{TimingMs, UsageFigures, ms},
    print,
    progress::Progress,
    scheduled::scheduled,
};

/// Every sample of one language.
pub(super) struct Series {
    pub(super) language: Language,
    pub(super) samples: Vec<Outcome>,
}

/// What is printed with `--json`: facts, and every sample as it was measured.
#[derive(Serialize)]
struct Sheet<'a> {
    accelerator: &'a str,
    qemu_version: &'a str,
    image: &'a str,
    kernel_version: &'a str,
    /// Starting the scheduler: QEMU, accelerator and image found and verified.
    scheduler_start_ms: f64,
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

/// Measures what was asked for.
pub(super) fn run(args: ColdArgs) -> Result<Status, Failure> {
    crate::block_on(async move {
        let wants_notes = io::stderr().is_terminal();
        let progress = Progress::start("checking QEMU and the image", wants_notes);
        let called = Instant::now();
        scheduled(args.what.host.config(), &progress, wants_notes, async |scheduler: &Scheduler| {
            let start_ms = ms(called.elapsed());
            let series = measure(scheduler, &args, &progress).await?;
            progress.end();
            let memory = memory::of_this_process();
            if args.what.json {
                print::json(&sheet(scheduler, start_ms, memory, &series))?;
            } else {
                let facts = scheduler.facts();
                let title = format!(
                    "{} · QEMU {} · image {} · kernel {} · {} runs each",
                    facts.accelerator, facts.qemu_version, facts.image, facts.kernel_version, args.number
                );
                print::page(&page::page(&Facts { title, start_ms, memory }, &series))?;
            }
            Ok(Status::SUCCESS)
        })
        .await
    })
}

async fn measure(scheduler: &Scheduler, args: &ColdArgs, progress: &Progress) -> Result<Vec<Series>, Failure> {
    let languages = args.what.languages();
    let mut all = Vec::new();
    for language in languages {
        let mut samples = Vec::new();
        for number in 1..=args.number {
            progress.say(&format!("{language} {number}/{}", args.number));
            samples.push(sample(scheduler, language).await?);
        }
        all.push(Series { language, samples });
    }
    Ok(all)
}

async fn sample(scheduler: &Scheduler, language: Language) -> Result<Outcome, Failure> {
    let outcome = scheduler.run(RunRequest::new(language, hello(language))).await?;
    if outcome.exit == Exit::Code(0) && outcome.stdout.as_ref() == b"hello\n" {
        return Ok(outcome);
    }
    let stderr = String::from_utf8_lossy(&outcome.stderr);
    Err(Failure::Bench(format!("hello in {language} ended with {:?}: {}", outcome.exit, stderr.trim_end())))
}

fn sheet<'a>(scheduler: &'a Scheduler, start_ms: f64, memory: memory::Resident, series: &[Series]) -> Sheet<'a> {
    let facts = scheduler.facts();
    Sheet {
        accelerator: &facts.accelerator,
        qemu_version: &facts.qemu_version,
        image: &facts.image,
        kernel_version: &facts.kernel_version,
        scheduler_start_ms: start_ms,
        sbx_resident_bytes: memory.now_bytes,
        sbx_resident_peak_bytes: memory.peak_bytes,
        series: series.iter().map(series_sheet).collect(),
    }
}

fn series_sheet(series: &Series) -> SeriesSheet {
    let sample = |outcome: &Outcome| Sample { timing: (&outcome.timing).into(), usage: (&outcome.usage).into() };
    SeriesSheet { language: series.language, samples: series.samples.iter().map(sample).collect() }
}
