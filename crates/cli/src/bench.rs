//! `sbx bench`: what this host makes of VMs, measured.

use std::{
    fs,
    io::{self, IsTerminal as _},
};

use exec_sandbox::{Exit, Language, Outcome, Scheduler, SchedulerConfig};
use serde::Serialize;

use crate::{
    args::{BenchArgs, BenchCommand, MeasuredArgs},
    exit::Status,
    failure::Failure,
    print,
    progress::Progress,
    scheduled::scheduled,
};

mod concurrency;
mod density;
mod figures;
mod floor;
mod holdings;
mod idle;
mod memory;
mod page;
mod plot;
mod rung;
mod runs;
mod session;

/// Measures what was asked for.
pub(crate) fn run(args: &BenchArgs) -> Result<Status, Failure> {
    match &args.command {
        BenchCommand::Cold(args) => runs::run(args, rung::COLD),
        BenchCommand::Restore(args) => runs::run(args, rung::RESTORE),
        BenchCommand::Blank(args) => runs::run(args, rung::BLANK),
        BenchCommand::Ready(args) => runs::run(args, rung::READY),
        BenchCommand::Concurrency(args) => concurrency::run(args),
        BenchCommand::Density(args) => density::run(args),
        BenchCommand::Idle(args) => idle::run(args),
        BenchCommand::Session(args) => session::run(args),
    }
}

/// Measures with a scheduler of its own, which has ended every VM when this returns.
fn measured(
    config: SchedulerConfig,
    work: impl AsyncFnOnce(&Scheduler, &Progress) -> Result<Status, Failure>,
) -> Result<Status, Failure> {
    crate::block_on(async move {
        let wants_notes = io::stderr().is_terminal();
        let progress = Progress::start("checking QEMU and the image", wants_notes);
        scheduled(config, &progress, wants_notes, async |scheduler: &Scheduler| work(scheduler, &progress).await).await
    })
}

/// Shows what was measured in the ways that were asked for.
fn show(what: &MeasuredArgs, sheet: &impl Serialize, page: &str, plot: &plot::Plot) -> Result<(), Failure> {
    if what.json {
        print::json(sheet)?;
    } else {
        print::page(page)?;
    }
    // Last, so that figures that took minutes are not lost to a directory that is not there.
    let Some(path) = &what.plot else { return Ok(()) };
    fs::write(path, plot.svg())
        .map_err(|error| Failure::transfer(path.display().to_string(), Failure::host("writing the plot", error)))
}

/// Says on what it was measured, and what.
fn title(scheduler: &Scheduler, what: &str) -> String {
    let facts = scheduler.facts();
    format!(
        "{} · QEMU {} · image {} · kernel {} · {what}",
        facts.accelerator, facts.qemu_version, facts.image, facts.kernel_version
    )
}

/// The shortest program that says something.
fn hello(language: Language) -> &'static str {
    match language {
        Language::Python => "print('hello')",
        Language::JavaScript => "console.log('hello')",
        Language::Raw => "echo hello",
    }
}

/// A hello that said hello. Anything else is no measurement.
fn said_hello(language: Language, outcome: Outcome) -> Result<Outcome, Failure> {
    if outcome.exit == Exit::Code(0) && outcome.stdout.as_ref() == b"hello\n" {
        return Ok(outcome);
    }
    let stderr = String::from_utf8_lossy(&outcome.stderr);
    Err(Failure::Bench(format!("hello in {language} ended with {:?}: {}", outcome.exit, stderr.trim_end())))
}
