//! Work that needs a scheduler: start it, do the work, and leave nothing behind, whatever comes in between.

use exec_sandbox::{Scheduler, SchedulerConfig};

use crate::{
    failure::Failure,
    interrupt::{Interrupts, Signal},
    print,
    progress::Progress,
};

/// Does `work` with a scheduler of its own, which is closed afterwards: every VM is confirmed dead when this returns.
///
/// A signal cancels the work; the teardown still takes place. A second signal does not wait for it.
pub(crate) async fn scheduled<T>(
    config: SchedulerConfig,
    progress: &Progress,
    wants_notes: bool,
    work: impl AsyncFnOnce(&Scheduler) -> Result<T, Failure>,
) -> Result<T, Failure> {
    scheduled_until(Interrupts::listen()?, config, progress, wants_notes, work).await
}

/// The same, until one of `interrupts` comes.
pub(crate) async fn scheduled_until<T>(
    mut interrupts: Interrupts,
    config: SchedulerConfig,
    progress: &Progress,
    wants_notes: bool,
    work: impl AsyncFnOnce(&Scheduler) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let scheduler = tokio::select! {
        started = Scheduler::start(config) => started,
        signal = interrupts.next() => return cancelled(signal, progress),
        never = progress.appear() => never,
    };
    let scheduler = scheduler.inspect_err(|_| progress.end())?;
    let done = tokio::select! {
        done = work(&scheduler) => done,
        signal = interrupts.next() => cancelled(signal, progress),
        never = progress.appear() => never,
    };
    progress.end();
    if wants_notes && matches!(done, Err(Failure::Interrupted(_))) {
        print::note("stopping the VM; once more leaves without waiting for it");
    }
    tokio::select! {
        closed = scheduler.close() => match closed {
            Ok(()) => done,
            // What came first is what the user has to know first.
            Err(error) => done.and(Err(error.into())),
        },
        signal = interrupts.next() => Err(Failure::Interrupted(signal)),
    }
}

pub(crate) fn cancelled<T>(signal: Signal, progress: &Progress) -> Result<T, Failure> {
    progress.end();
    Err(Failure::Interrupted(signal))
}
