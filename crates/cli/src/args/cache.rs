//! The command line of the cache.

use std::time::Duration;

use clap::{Args, Subcommand};
use exec_sandbox::cache::Collect;

const CACHE_NOTES: &str = "\
What is in the cache is made again when it is needed, so nothing is lost but time. `sbx gc` is about another thing: VMs that \
were left by processes that are gone.";

const LS_NOTES: &str = "\
A key may be shortened wherever one is asked for. What is installed is what the machine that installed it has said. The last use \
is known to the hour.";

const GC_NOTES: &str = "\
Without a limit those of the configuration hold, as at every start of a sandbox. What was not used for longest goes first; what \
was used within the last minute stays, unless --all is given. What is pinned stays, and so do images. Whoever uses something now \
keeps it.

SIZE is a number of bytes or one with K, M, G or T, each 1024 of what is before it. AGE is a number with s, min, h, d or w.

Exit code: 0 done; 2 wrong usage; 125 the cache cannot be used.";

const RM_NOTES: &str = "\
Pinned or not. If one of the keys is none, nothing is removed. The keys of what is gone are printed.

Exit code: 0 done; 2 wrong usage or a key that stands for nothing; 125 something cannot be removed.";

#[derive(Debug, Args)]
#[command(arg_required_else_help = true, after_help = CACHE_NOTES)]
pub(crate) struct CacheArgs {
    #[command(subcommand)]
    pub(crate) command: CacheCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum CacheCommand {
    /// List what is kept: snapshots of memory, packages, images
    #[command(after_help = LS_NOTES)]
    Ls {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Keep snapshots and packages within limits
    #[command(after_help = GC_NOTES)]
    Gc(CacheGcArgs),
    /// Remove snapshots and packages
    #[command(after_help = RM_NOTES)]
    Rm(KeysArgs),
    /// Have snapshots and packages stay whatever the limits say
    Pin(KeysArgs),
    /// Have the limits hold again for what was pinned
    Unpin(KeysArgs),
}

#[derive(Debug, Args)]
pub(crate) struct CacheGcArgs {
    /// What all of it together may take of the disk [default: the configuration's, for each kind]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    max_size: Option<u64>,
    /// After so long without use something goes [default: the configuration's, for each kind]
    #[arg(long, value_name = "AGE", value_parser = age)]
    max_age: Option<Duration>,
    /// Remove everything that is not pinned
    #[arg(long, conflicts_with_all = ["max_size", "max_age"])]
    all: bool,
    /// Tell what would go, and do nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct KeysArgs {
    /// Keys, or what only one key begins with
    #[arg(value_name = "KEY", required = true)]
    pub(crate) keys: Vec<String>,
}

impl CacheGcArgs {
    pub(crate) fn how(&self) -> Collect {
        Collect { max_bytes: self.max_size, max_age: self.max_age, everything: self.all, dry_run: self.dry_run }
    }
}

fn size(typed: &str) -> Result<u64, String> {
    let wrong = || "it is no size: write a number with K, M, G or T, such as 2G".to_owned();
    let (number, unit) = split(typed);
    let shift = match unit.to_ascii_lowercase().trim_end_matches('b').trim_end_matches('i') {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => return Err(wrong()),
    };
    let number: u64 = number.parse().map_err(|_| wrong())?;
    number.checked_mul(1 << shift).ok_or_else(wrong)
}

fn age(typed: &str) -> Result<Duration, String> {
    let wrong = || "it is no length of time: write a number with s, min, h, d or w, such as 7d".to_owned();
    let (number, unit) = split(typed);
    let seconds = match unit {
        "s" => 1,
        "m" | "min" => 60,
        "h" => 60 * 60,
        "d" => 24 * 60 * 60,
        "w" => 7 * 24 * 60 * 60,
        _ => return Err(wrong()),
    };
    let number: u64 = number.parse().map_err(|_| wrong())?;
    number.checked_mul(seconds).map(Duration::from_secs).ok_or_else(wrong)
}

/// A number, and what comes after it.
fn split(typed: &str) -> (&str, &str) {
    typed.split_at(typed.find(|c: char| !c.is_ascii_digit()).unwrap_or(typed.len()))
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Command {
        #[command(flatten)]
        gc: CacheGcArgs,
    }

    #[test]
    fn a_size_is_read_in_each_of_its_forms() {
        let of = |text| size(text).ok();
        assert_eq!(of("0"), Some(0));
        assert_eq!(of("4096"), Some(4096));
        for text in ["2G", "2g", "2GB", "2GiB", "2gib", "2048M", "2097152K"] {
            assert_eq!(of(text), Some(2 << 30), "{text}");
        }
        for text in ["", "G", "-1", "1.5G", "2X", "2 G", "99999999999T"] {
            assert_eq!(of(text), None, "{text}");
        }
    }

    #[test]
    fn an_age_is_read_in_each_of_its_forms() {
        let of = |text| age(text).ok().map(|age| age.as_secs());
        assert_eq!([of("90s"), of("2min"), of("2m"), of("3h")], [Some(90), Some(120), Some(120), Some(10_800)]);
        assert_eq!([of("7d"), of("1w")], [Some(604_800), Some(604_800)]);
        for text in ["", "7", "d", "-1d", "1.5d", "7 d", "7y", "99999999999999999999d", "9999999999999999d"] {
            assert_eq!(of(text), None, "{text}");
        }
    }

    #[test]
    fn limits_reach_the_library_and_everything_has_none() {
        let read = |words: &[&str]| Command::try_parse_from([&["gc"], words].concat());
        let how = read(&["--max-size", "1K", "--max-age", "1h", "--dry-run"]).expect("it is a command line").gc.how();
        let max_age = Some(Duration::from_secs(3600));
        assert_eq!(how, Collect { max_bytes: Some(1024), max_age, everything: false, dry_run: true });
        assert!(read(&["--all"]).expect("it is a command line").gc.how().everything);
        assert!(read(&["--all", "--max-age", "1h"]).is_err());
    }
}
