//! The command line of `sbx bench`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use exec_sandbox::Language;

use super::{HostArgs, language};

#[derive(Debug, Args)]
#[command(arg_required_else_help = true)]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    pub(crate) command: BenchCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum BenchCommand {
    /// Cold runs: fresh VMs one after the other, and where their time goes
    Cold(RunsArgs),
    /// Restored runs: the same in copies of a snapshot, which is made first
    Restore(RunsArgs),
    /// The same in QEMUs that waited for their guests
    Blank(RunsArgs),
    /// The same in VMs that were up before
    Ready(RunsArgs),
    /// Concurrency: restored runs per second with several in flight, and whether they leave anything behind
    Concurrency(ConcurrencyArgs),
    /// Density: memory of idle sessions, and what one more takes
    Density(DensityArgs),
    /// Idle VMs: what they take of the host that have nothing to do, connected and orphaned
    Idle(IdleArgs),
    /// Sessions: the shortest execution in each language, and files on their way in and out
    Session(SessionBenchArgs),
}

#[derive(Debug, Args)]
pub(crate) struct RunsArgs {
    /// Runs of each language
    #[arg(short, long, value_name = "COUNT", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) number: u32,
    #[command(flatten)]
    pub(crate) what: MeasuredArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ConcurrencyArgs {
    /// Runs in flight at once, each number for a while
    #[arg(short, long, value_name = "COUNT", num_args = 1.., default_values_t = [1, 2, 4, 8], value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) number: Vec<u32>,
    /// Seconds that each number is measured
    #[arg(short, long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=3600))]
    pub(crate) seconds: u32,
    #[command(flatten)]
    pub(crate) what: MeasuredArgs,
}

#[derive(Debug, Args)]
pub(crate) struct DensityArgs {
    /// Sessions that are there at once
    #[arg(short, long, value_name = "COUNT", num_args = 1.., default_values_t = [1, 4, 8, 16], value_parser = clap::value_parser!(u32).range(1..=1000))]
    number: Vec<u32>,
    #[command(flatten)]
    pub(crate) what: MeasuredArgs,
}

impl DensityArgs {
    /// The numbers of sessions, each once and the smallest first, so that each begins with those of the one before.
    pub(crate) fn numbers(&self) -> Vec<u32> {
        let mut numbers = self.number.clone();
        numbers.sort_unstable();
        numbers.dedup();
        numbers
    }
}

#[derive(Debug, Args)]
pub(crate) struct IdleArgs {
    /// VMs that are idle at once
    #[arg(short, long, value_name = "COUNT", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) number: u32,
    /// Seconds that each state is measured
    #[arg(short, long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=3600))]
    pub(crate) seconds: u32,
    #[command(flatten)]
    pub(crate) what: MeasuredArgs,
}

#[derive(Debug, Args)]
pub(crate) struct SessionBenchArgs {
    /// Executions in each language
    #[arg(short, long, value_name = "COUNT", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) number: u32,
    /// MiB of each file; what a guest of 512 MiB keeps in memory
    #[arg(long, value_name = "MIB", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=150))]
    pub(crate) mib: u32,
    #[command(flatten)]
    pub(crate) what: MeasuredArgs,
}

/// What every bench asks.
#[derive(Debug, Args)]
pub(crate) struct MeasuredArgs {
    /// Languages to measure [default: all]
    #[arg(short, long, value_name = "NAME", num_args = 1.., value_parser = language())]
    pub(crate) language: Vec<Language>,
    /// Print every sample as JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// Draw the figures into this file, as SVG
    #[arg(long, value_name = "FILE")]
    pub(crate) plot: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) host: HostArgs,
}

impl MeasuredArgs {
    /// The languages to measure.
    pub(crate) fn languages(&self) -> Vec<Language> {
        if self.language.is_empty() { Language::ALL.to_vec() } else { self.language.clone() }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        density: DensityArgs,
    }

    #[test]
    fn sessions_are_added_to_those_that_are_there() {
        let numbers = |words: &[&str]| Line::try_parse_from(words).map(|line| line.density.numbers());
        assert_eq!(numbers(&["sbx"]).ok(), Some(vec![1, 4, 8, 16]));
        assert_eq!(numbers(&["sbx", "-n", "5", "1", "5"]).ok(), Some(vec![1, 5]));
        assert!(numbers(&["sbx", "-n", "0"]).is_err(), "no session has no memory");
    }
}
