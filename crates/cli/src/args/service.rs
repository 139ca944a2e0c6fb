//! The options of the service.

use clap::Args;
use exec_sandbox::SchedulerConfig;

use super::{HostArgs, packages::PackageArgs};

pub(super) const UP_NOTES: &str = "\
Returns when the VMs are ready. Where the service is up, `sbx run` hands its runs over if they would be the same there; runs with \
files or exposed ports, sessions, and runs with another configuration are done without it, as everything is where it is not up. \
It is this user's alone and ends with `sbx down` or the machine.

Exit code: 0 it is up, also if it was before; 2 wrong usage; 124 its VMs are not ready within 120 s; 125 it does not come up, or \
another one is up.";

pub(super) const DOWN_NOTES: &str = "\
Runs that it has are ended. Returns when its VMs are confirmed dead.

Exit code: 0 it is down, also if it was before; 125 its end cannot be confirmed.";

/// VMs of each language that are ready where nobody says how many: one serves whoever works alone.
const DEFAULT_POOL: usize = 1;

#[derive(Debug, Args)]
pub(crate) struct UpArgs {
    /// VMs of each language to keep ready, at most 64 [default: 1]
    #[arg(long, value_name = "COUNT")]
    pub(crate) pool: Option<usize>,
    /// Memory of each of them in MiB, at least 128; runs with another are served too, from snapshots [default: 192]
    #[arg(short, long, value_name = "MIB")]
    pub(crate) memory: Option<u32>,
    /// Stay in this process and log to standard error, for a supervisor such as systemd
    #[arg(long)]
    pub(crate) foreground: bool,
    /// Be the process in the background.
    #[arg(long, hide = true, conflicts_with = "foreground")]
    pub(crate) detached: bool,
    #[command(flatten)]
    packages: PackageArgs,
    #[command(flatten)]
    host: HostArgs,
}

#[derive(Debug, Args)]
pub(crate) struct DownArgs {}

impl UpArgs {
    /// The configuration of the service's scheduler.
    pub(crate) fn config(&self) -> SchedulerConfig {
        let mut config = self.packages.over(self.host.config());
        config.warm_pool_size = self.pool.unwrap_or(DEFAULT_POOL);
        if let Some(memory_mib) = self.memory {
            config.default_memory_mib = memory_mib;
        }
        config
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Command {
        #[command(flatten)]
        up: UpArgs,
    }

    #[test]
    fn what_is_typed_reaches_the_configuration() {
        let config = |words: &[&str]| Command::parse_from([&["up"], words].concat()).up.config();
        let by_default = config(&[]);
        assert_eq!(by_default.warm_pool_size, DEFAULT_POOL);
        assert_eq!(by_default.default_memory_mib, SchedulerConfig::default().default_memory_mib);
        let typed = config(&["--pool", "3", "-m", "256", "--accel", "tcg", "--image", "other"]);
        assert_eq!((typed.warm_pool_size, typed.default_memory_mib), (3, 256));
        assert_eq!((typed.accel, typed.image.as_str()), (exec_sandbox::AccelRequest::Tcg, "other"));
    }
}
