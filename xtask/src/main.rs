//! `cargo xtask`: what the project does to itself. This file reads the command line and hands over.

#![expect(clippy::print_stderr, reason = "a program for people at a terminal: its errors go to stderr")]

mod assets;
mod bench;
mod bench_compare;
mod fuzz;

use std::{ffi::OsString, process::ExitCode};

use clap::{Parser, Subcommand};

/// Builds the guest's parts, fuzzes and compares.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", version, max_term_width = 100)]
struct CommandLine {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Builds and publishes the guest's kernel, agent and standard image
    Assets(assets::Options),
    /// Builds the guest agent and publishes the image with it, keeping kernel and root file system
    Agent,
    /// Measures
    #[command(subcommand)]
    Bench(Bench),
    /// Fuzzes every decoder that reads a peer's bytes
    Fuzz {
        /// Time for each target
        #[arg(long, default_value_t = 30, value_name = "N")]
        seconds: u32,
        /// Targets to run, all if none is named
        #[arg(value_name = "TARGET")]
        targets: Vec<String>,
    },
    /// Runs commands in turns and compares how long they take, and the figures of those that print JSON
    BenchCompare {
        /// Times that each command runs
        #[arg(short, long, default_value_t = 5, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=10_000))]
        number: u32,
        /// Show figures whose names contain this; all if none is named
        #[arg(long, value_name = "WORD")]
        only: Vec<String>,
        /// The commands, with `--` before each
        #[arg(last = true, required = true, value_name = "COMMAND")]
        commands: Vec<OsString>,
    },
}

#[derive(Debug, Subcommand)]
enum Bench {
    /// The gateway beside passt and slirp, behind the same VM; --help has the options
    #[command(disable_help_flag = true)]
    Network {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "OPTIONS")]
        options: Vec<OsString>,
    },
}

fn main() -> ExitCode {
    let done = match CommandLine::parse().task {
        Task::Assets(options) => assets::run(&options),
        Task::Agent => assets::run_agent(),
        Task::Bench(Bench::Network { options }) => bench::network(&options),
        Task::Fuzz { seconds, targets } => fuzz::run(seconds, &targets),
        Task::BenchCompare { number, only, commands } => bench_compare::run(number, &only, &commands),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e}");
            e.chain().skip(1).for_each(|cause| eprintln!("  because: {cause}"));
            ExitCode::FAILURE
        }
    }
}
