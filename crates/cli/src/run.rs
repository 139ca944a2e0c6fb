//! `sbx run`: every source in a VM of its own, all at once, shown one after the other. The VMs are this process's, or those of a service
//! that is up.

use std::io::{self, IsTerminal as _};

use exec_sandbox::{Outcome, Output, Scheduler, SchedulerConfig};
use futures_util::future;
use serde::Serialize;
use tokio::sync::mpsc;

use self::with_files::Files;
use crate::{
    args::RunArgs,
    exit::Status,
    failure::Failure,
    files::{self, Plan},
    json::{Failed, Ran},
    meter::Meter,
    network, print,
    printer::{Ending, Event, PIECES_IN_FLIGHT, Printer, View},
    progress::Progress,
    scheduled::scheduled,
    service::{self, Alone, HandedOver, Remote, served},
    source::{self, Source},
};

mod with_files;

/// A JSON array has one of these for each source.
#[derive(Serialize)]
#[serde(untagged)]
enum Entry<'a> {
    Ran(Box<Ran<'a>>),
    Failed(Failed<'a>),
}

/// Who has the VM of a source.
#[derive(Debug)]
enum Host<'a> {
    Own(&'a Scheduler),
    /// It has the request already.
    Service(&'a mut Remote),
}

impl<'a> Host<'a> {
    /// Who has `run`, or would have it.
    fn of(run: &'a mut Option<Remote>, scheduler: &'a Scheduler) -> Self {
        run.as_mut().map_or(Host::Own(scheduler), Host::Service)
    }
}

/// What came of one source.
#[derive(Debug)]
struct Done {
    result: Result<Outcome, Failure>,
    /// Downloads that failed after the program. They are tried whatever came of it.
    downloads: Vec<Failure>,
}

/// Runs what was typed.
pub(crate) fn run(args: RunArgs) -> Result<Status, Failure> {
    let wants_notes = io::stderr().is_terminal() && !args.quiet;
    let wants_progress = wants_notes && !args.json;
    if wants_notes && source::reads_stdin(&args.typed) && io::stdin().is_terminal() {
        print::note("reading code from standard input; Ctrl-D ends it");
    }
    files::check(&args.download, args.typed.len())?;
    let plan = Plan::of(&args.upload)?;
    if wants_notes && plan.left_out > 0 {
        print::note(&format!("{} links and devices are not uploaded", plan.left_out));
    }
    let sources = source::resolve(&args.typed, args.language, &mut io::stdin().lock())?;
    crate::block_on(async move {
        let progress = Progress::start("checking QEMU and the image", wants_progress);
        let config = args.config();
        let mut handed_over = hand_over(&args, &config, &sources, plan.is_empty()).await;
        let work = async |hosts: Vec<Host<'_>>, accelerator: &str| {
            progress.say(&format!("running in a VM ({accelerator})"));
            let total = plan.bytes.saturating_mul(sources.len() as u64);
            let uploads = Meter::new(progress.clone(), "uploading", total);
            let wants_ports = (wants_notes || args.verbose) && !args.json;
            let files = Files {
                plan: &plan,
                uploads: &uploads,
                downloads: &args.download,
                wants_ports,
                wants_progress,
                wants_notes,
            };
            let view = View { wants_notes, programs: !args.json, progress: progress.clone() };
            let done = run_all(hosts, &args, &sources, files, view).await?;
            if args.json {
                print_json(&sources, &done, accelerator)?;
            }
            Ok(Status::first_failure(done.iter().flat_map(Done::statuses)))
        };
        if let Some(HandedOver { runs, accelerator, .. }) = &mut handed_over
            && runs.iter().all(Option::is_some)
        {
            return served(runs, &progress, wants_notes, async |runs| {
                work(runs.iter_mut().flatten().map(Host::Service).collect(), accelerator).await
            })
            .await;
        }
        let mut runs = handed_over.map(|handed_over| handed_over.runs).unwrap_or_default();
        runs.resize_with(sources.len(), || None);
        scheduled(config, &progress, wants_notes, async |scheduler: &Scheduler| {
            let hosts = runs.iter_mut().map(|run| Host::of(run, scheduler)).collect();
            work(hosts, &scheduler.facts().accelerator).await
        })
        .await
    })
}

/// Hands the runs to a service, if there is one that would do the same. What holds its VM itself is no run of this kind.
async fn hand_over(
    args: &RunArgs,
    config: &SchedulerConfig,
    sources: &[Source],
    uploads_nothing: bool,
) -> Option<HandedOver> {
    let has_files = !uploads_nothing || !args.download.is_empty();
    if args.no_service || service::is_unwanted() || has_files || !args.network.expose.is_empty() {
        return None;
    }
    let requests = sources.iter().map(|source| args.request(source.language, &source.code)).collect();
    let handed_over = service::hand_over(config, requests).await;
    if args.verbose && !args.json {
        match &handed_over {
            Ok(HandedOver { pid, .. }) => print::note(&format!("run by the service, process {pid}")),
            Err(Alone::NotUp) => {}
            Err(alone) => print::note(&format!("run without a service: {}", alone.reason())),
        }
    }
    handed_over.ok()
}

async fn run_all(
    hosts: Vec<Host<'_>>,
    args: &RunArgs,
    sources: &[Source],
    files: Files<'_>,
    view: View,
) -> Result<Vec<Done>, Failure> {
    let (events, feed) = mpsc::channel(PIECES_IN_FLIGHT);
    let labels = sources.iter().map(|source| source.label.clone()).collect();
    let mut printer = Printer::start(feed, labels, view)?;
    let runs = sources.iter().zip(hosts).enumerate().map(|(number, (source, host))| {
        let feed = Feed { number, events: events.clone() };
        run_one(host, args, source, files, feed)
    });
    let runs = future::join_all(runs);
    drop(events);
    let done = tokio::select! {
        done = runs => done,
        // The printer outlives the runs unless it failed.
        ended = printer.ended() => return Err(ended.err().unwrap_or(Failure::BrokenPipe)),
    };
    printer.ended().await?;
    Ok(done)
}

async fn run_one(host: Host<'_>, args: &RunArgs, source: &Source, files: Files<'_>, feed: Feed) -> Done {
    let (pieces, arriving) = mpsc::channel(PIECES_IN_FLIGHT);
    let request = || args.request(source.language, &source.code);
    let done = match host {
        Host::Own(scheduler) if files.any() || !args.network.expose.is_empty() => {
            with_files::run(scheduler, request(), files, &feed).await
        }
        Host::Own(scheduler) => {
            let running = scheduler.run_streaming(request(), pieces);
            let (result, ()) = future::join(running, feed.forward(arriving)).await;
            Done { result: result.map_err(Failure::from), downloads: Vec::new() }
        }
        Host::Service(remote) => {
            let (result, ()) = future::join(remote.run(pieces), feed.forward(arriving)).await;
            Done { result, downloads: Vec::new() }
        }
    };
    let failures = done.result.as_ref().err().into_iter().chain(&done.downloads).map(Failure::explain).collect();
    let outcome = done.result.as_ref().ok();
    let exit = outcome.map(|outcome| outcome.exit);
    let notes = outcome.filter(|_| args.verbose).map(network::notes).unwrap_or_default();
    // A printer that is gone has said why; its failure ends the whole run.
    let _ = feed.events.send(Event::End(feed.number, Ending { exit, notes, failures })).await;
    done
}

/// The way of one source to the printer.
#[derive(Debug)]
struct Feed {
    number: usize,
    events: mpsc::Sender<Event>,
}

impl Feed {
    /// Passes on all that arrives.
    async fn forward(&self, mut arriving: mpsc::Receiver<Output>) {
        while let Some(piece) = arriving.recv().await {
            if self.events.send(Event::Piece(self.number, piece)).await.is_err() {
                break;
            }
        }
    }
}

impl Done {
    /// What decides the exit code: the program first, then its files.
    fn statuses(&self) -> impl Iterator<Item = Status> {
        let program = match &self.result {
            Ok(outcome) => outcome.exit.into(),
            Err(failure) => failure.status(),
        };
        // What the guest calls a wrong path was a path of the command line, which is beyond being wrong when the program has run.
        std::iter::once(program).chain(self.downloads.iter().map(|_| Status::SANDBOX))
    }
}

fn print_json(sources: &[Source], done: &[Done], accelerator: &str) -> Result<(), Failure> {
    let entries: Vec<Entry<'_>> = sources
        .iter()
        .zip(done)
        .map(|(source, done)| match &done.result {
            Ok(outcome) => {
                let mut ran = Ran::new(&source.label, source.language, outcome, accelerator);
                ran.download_errors = done.downloads.iter().map(Failure::explain).collect();
                Entry::Ran(Box::new(ran))
            }
            Err(failure) => Entry::Failed(Failed { source: Some(&source.label), error: failure.explain() }),
        })
        .collect();
    match entries.as_slice() {
        [one] => print::json(one),
        several => print::json(&several),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_did_not_run_decides_before_its_downloads() {
        let failed = || Failure::host("working on files in the guest", io::ErrorKind::NotFound.into());
        let usage = Failure::usage("wrong", "right");
        let done = Done { result: Err(usage), downloads: vec![failed()] };
        assert_eq!(Status::first_failure(done.statuses()), Status::USAGE);
        assert_eq!(done.statuses().last(), Some(Status::SANDBOX));
    }
}
