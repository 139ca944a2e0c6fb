//! `sbx run`: every source in a VM of its own, all at once, shown one after the other.

use std::io::{self, IsTerminal as _};

use exec_sandbox::{Error, Outcome, Output, Scheduler};
use futures_util::future;
use serde::Serialize;
use tokio::sync::mpsc;

use self::printer::{Ending, Event, Printer, View};
use crate::{
    args::RunArgs,
    exit::Status,
    failure::Failure,
    json::{Failed, Ran},
    print,
    progress::Progress,
    scheduled::scheduled,
    source::{self, Source},
};

mod printer;

/// Pieces of output that wait for the printer. A piece is at most a frame of the wire, so this bounds memory, and a slow
/// reader of our output slows the program down instead of filling it.
const PIECES_IN_FLIGHT: usize = 16;

/// A JSON array has one of these for each source.
#[derive(Serialize)]
#[serde(untagged)]
enum Entry<'a> {
    Ran(Box<Ran<'a>>),
    Failed(Failed<'a>),
}

/// Runs what was typed.
pub(crate) fn run(args: RunArgs) -> Result<Status, Failure> {
    let wants_notes = io::stderr().is_terminal() && !args.quiet;
    if wants_notes && source::reads_stdin(&args.typed) && io::stdin().is_terminal() {
        print::note("reading code from standard input; Ctrl-D ends it");
    }
    let sources = source::resolve(&args.typed, args.language, &mut io::stdin().lock())?;
    crate::block_on(async move {
        let progress = Progress::start("checking QEMU and the image", wants_notes);
        scheduled(args.host.config(), &progress, wants_notes, async |scheduler: &Scheduler| {
            progress.say(&format!("running in a VM ({})", scheduler.facts().accelerator));
            let view = View { wants_notes, programs: !args.json, progress: progress.clone() };
            let results = run_all(scheduler, &args, &sources, view).await?;
            if args.json {
                print_json(&sources, &results, &scheduler.facts().accelerator)?;
            }
            Ok(Status::first_failure(results.iter().map(status)))
        })
        .await
    })
}

async fn run_all(
    scheduler: &Scheduler,
    args: &RunArgs,
    sources: &[Source],
    view: View,
) -> Result<Vec<Result<Outcome, Error>>, Failure> {
    let (events, feed) = mpsc::channel(PIECES_IN_FLIGHT);
    let labels = sources.iter().map(|source| source.label.clone()).collect();
    let mut printer = Printer::start(feed, labels, view)?;
    let runs =
        sources.iter().enumerate().map(|(number, source)| run_one(scheduler, args, source, number, events.clone()));
    let runs = future::join_all(runs);
    drop(events);
    let results = tokio::select! {
        results = runs => results,
        // The printer outlives the runs unless it failed.
        ended = printer.ended() => return Err(ended.err().unwrap_or(Failure::BrokenPipe)),
    };
    printer.ended().await?;
    Ok(results)
}

async fn run_one(
    scheduler: &Scheduler,
    args: &RunArgs,
    source: &Source,
    number: usize,
    events: mpsc::Sender<Event>,
) -> Result<Outcome, Error> {
    let (pieces, mut arriving) = mpsc::channel::<Output>(PIECES_IN_FLIGHT);
    let forward = async {
        while let Some(piece) = arriving.recv().await {
            if events.send(Event::Piece(number, piece)).await.is_err() {
                break;
            }
        }
    };
    let run = scheduler.run_streaming(args.request(source.language, &source.code), pieces);
    let (result, ()) = future::join(run, forward).await;
    let ending = match &result {
        Ok(outcome) => Ending::Exit(outcome.exit),
        Err(error) => Ending::Failed(error.into()),
    };
    // A printer that is gone has said why; its failure ends the whole run.
    let _ = events.send(Event::End(number, ending)).await;
    result
}

fn status(result: &Result<Outcome, Error>) -> Status {
    match result {
        Ok(outcome) => outcome.exit.into(),
        Err(error) => error.kind().into(),
    }
}

fn print_json(sources: &[Source], results: &[Result<Outcome, Error>], accelerator: &str) -> Result<(), Failure> {
    let entries: Vec<Entry<'_>> = sources
        .iter()
        .zip(results)
        .map(|(source, result)| match result {
            Ok(outcome) => Entry::Ran(Box::new(Ran::new(&source.label, source.language, outcome, accelerator))),
            Err(error) => Entry::Failed(Failed { source: Some(&source.label), error: error.into() }),
        })
        .collect();
    match entries.as_slice() {
        [one] => print::json(one),
        several => print::json(&several),
    }
}
