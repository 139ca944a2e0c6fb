//! Rungs: where the guest of a measured run comes from, and how a run is brought to stand there.

use std::time::{Duration, Instant};

use exec_sandbox::{Language, Origin, Outcome, RunRequest, Scheduler, SchedulerConfig};

use super::{hello, said_hello};
use crate::failure::Failure;

/// A rung of the library's ladder.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rung {
    /// As on the command line.
    pub(super) name: &'static str,
    /// What the library says of a run that stood on it.
    origin: Origin,
    /// Makes it the highest rung that there is.
    configure: fn(&mut SchedulerConfig),
    /// Whether there has to be a snapshot, which runs make that are not measured.
    is_copy: bool,
}

/// Every VM is booted.
pub(super) const COLD: Rung =
    Rung { name: "cold", origin: Origin::Cold, configure: |config| config.snapshots = false, is_copy: false };

/// Every VM is a copy of one that was saved.
pub(super) const RESTORE: Rung =
    Rung { name: "restore", origin: Origin::Snapshot, configure: |config| config.snapshots = true, is_copy: true };

/// Every VM is such a copy, in a QEMU that waited for its guest.
pub(super) const BLANK: Rung = Rung {
    name: "blank",
    origin: Origin::Blank,
    configure: |config| (config.snapshots, config.blank_pool_size) = (true, Some(1)),
    is_copy: true,
};

/// Every VM was up before it was asked for.
pub(super) const READY: Rung = Rung {
    name: "ready",
    origin: Origin::Ready,
    configure: |config| (config.snapshots, config.warm_pool_size, config.blank_pool_size) = (true, 1, Some(0)),
    is_copy: false,
};

/// How long a pool may take to have what the next run needs.
const POOL_PATIENCE: Duration = Duration::from_secs(120);

/// How long another process may take to save what is to be copied.
const SAVING_PATIENCE: Duration = Duration::from_secs(60);

impl Rung {
    /// `config` with this as the highest rung.
    pub(super) fn config(self, mut config: SchedulerConfig) -> SchedulerConfig {
        (self.configure)(&mut config);
        config
    }

    /// Makes what runs of `language` need to stand on it.
    pub(super) async fn rehearse(self, scheduler: &Scheduler, language: Language) -> Result<(), Failure> {
        let begun = Instant::now();
        // The first may boot and save its guest. While another process saves one like it, runs boot and save nothing.
        while self.is_copy
            && say_hello(scheduler, language).await?.timing.origin == Origin::Cold
            && begun.elapsed() < SAVING_PATIENCE
        {}
        Ok(())
    }

    /// One run of a hello. One that stood elsewhere would be a figure of something else, so it is an error.
    pub(super) async fn sample(self, scheduler: &Scheduler, language: Language) -> Result<Outcome, Failure> {
        scheduler.wait_pool_ready(POOL_PATIENCE).await?;
        let outcome = say_hello(scheduler, language).await?;
        self.check(language, outcome.timing.origin)?;
        Ok(outcome)
    }

    /// Whether a guest of this origin stands on it.
    pub(super) fn check(self, language: Language, origin: Origin) -> Result<(), Failure> {
        if origin == self.origin {
            return Ok(());
        }
        let (wanted, name) = (self.origin, self.name);
        let message = format!("a run of {language} for `{name}` was to be {wanted:?} and was {origin:?}");
        Err(Failure::Bench(message))
    }
}

async fn say_hello(scheduler: &Scheduler, language: Language) -> Result<Outcome, Failure> {
    said_hello(language, scheduler.run(RunRequest::new(language, hello(language))).await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_that_stood_elsewhere_is_no_figure_of_this_rung() {
        assert!(RESTORE.check(Language::Raw, Origin::Snapshot).is_ok());
        let failure = RESTORE.check(Language::Raw, Origin::Cold).expect_err("it was booted");
        assert_eq!(failure.explain().message, "a run of raw for `restore` was to be Snapshot and was Cold");
    }

    #[test]
    fn a_cold_run_needs_a_build_without_snapshots_whatever_the_default_is() {
        let with = |snapshots| SchedulerConfig { snapshots, ..SchedulerConfig::default() };
        assert!(!COLD.config(with(true)).snapshots);
        assert!(RESTORE.config(with(false)).snapshots);
    }
}
