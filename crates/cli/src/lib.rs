//! `sbx`: the command line of exec-sandbox.
//!
//! It turns what was typed into requests of the library and what comes back into bytes on two streams and an exit code. It
//! decides nothing about VMs, has no defaults of its own, and holds no logic that another face of the library would need.

mod args;
mod bench;
mod cache;
mod doctor;
mod exit;
mod failure;
mod files;
mod gc;
mod image;
mod interrupt;
mod json;
mod kill;
mod log;
mod meter;
mod network;
mod print;
mod printer;
mod progress;
mod ps;
mod run;
mod scheduled;
mod sequence;
mod service;
mod shell;
mod source;
mod table;

use std::{ffi::OsString, process::ExitCode};

use crate::{
    args::{Cli, Command},
    exit::Status,
    failure::Failure,
};

/// Runs the program with the process's arguments.
#[must_use]
pub fn main() -> ExitCode {
    let words: Vec<OsString> = std::env::args_os().collect();
    let json = args::wants_json(&words);
    let status = Cli::read(words).and_then(|cli| execute(cli.command));
    status.unwrap_or_else(|failure| print::failure(&failure, json)).into()
}

fn execute(command: Command) -> Result<Status, Failure> {
    // A service in the background begins a log of another kind.
    if !matches!(&command, Command::Up(args) if args.detached) {
        log::start()?;
    }
    match command {
        Command::Run(args) => run::run(args),
        Command::Shell(args) => shell::run(args),
        Command::Up(args) => service::up(&args),
        Command::Down(_) => service::down(),
        Command::Ps(args) => ps::run(&args),
        Command::Kill(args) => kill::run(&args),
        Command::Gc(args) => gc::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Cache(args) => cache::run(&args),
        Command::Image(args) => image::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Completions(args) => args::completions(args.shell),
    }
}

/// Drives `work` to its end on this thread. What it left in the background is let go: the process ends after it.
fn block_on<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    // One thread is enough: bytes are carried between a socket and a pipe, and the pipe has a thread of its own.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::host("starting the runtime", error))?;
    let done = runtime.block_on(work);
    runtime.shutdown_background();
    done
}
