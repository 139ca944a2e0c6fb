//! The service's process: one scheduler with its pool, a lock, a socket, and nothing of whoever started it.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write as _},
    sync::Arc,
};

use exec_sandbox::{Scheduler, SchedulerConfig};
use serde::{Deserialize, Serialize};

use super::{
    identity::Identity,
    message::{Greeting, Told},
    places::{Lock, Places},
    server::{self, Desk},
    trouble,
};
use crate::{args::UpArgs, exit::Status, failure::Failure, interrupt::Interrupts, log, print};

/// What whoever started the service hears of it, once, on its standard output.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Report {
    /// It listens.
    Up,
    /// Another one is there, or on its way in or out.
    Taken,
    /// It is not, and why.
    Failed(Told),
}

/// Serves in this process, on whose terminal the user watches it.
pub(super) fn in_foreground(args: &UpArgs) -> Result<Status, Failure> {
    let config = args.config();
    let places = Places::of(&config)?;
    let Some(lock) = places.lock()? else {
        let cause = format!("{} is locked", places.lock_file().display());
        return Err(trouble("a service is up already, or starts or ends".into(), vec![cause]));
    };
    serve(&config, &lock, || {
        print::note("the service is up; Ctrl-C or `sbx down` ends it");
        Ok(())
    })?;
    Ok(Status::SUCCESS)
}

/// Serves as the process that `sbx up` has started, and tells that how it went.
pub(super) fn detached(args: &UpArgs) -> Result<Status, Failure> {
    log::start_bounded()?;
    let served = leave_the_starter().and_then(|()| {
        let config = args.config();
        let Some(lock) = Places::of(&config)?.lock()? else { return report(&Report::Taken) };
        serve(&config, &lock, || report(&Report::Up))?;
        // Given back by the end of the process, so that whoever gets it knows that this one is gone.
        std::mem::forget(lock);
        Ok(())
    });
    // Nobody hears it twice: once it is up, standard output is nobody's.
    served.inspect_err(|failure| drop(report(&Report::Failed(failure.into()))))?;
    Ok(Status::SUCCESS)
}

/// Runs the service until it is to end. `up` is called when clients find it.
fn serve(config: &SchedulerConfig, lock: &Lock, up: impl FnOnce() -> Result<(), Failure>) -> Result<(), Failure> {
    crate::block_on(async {
        let mut interrupts = Interrupts::listen()?;
        // Before anything is opened, so that an image which is replaced meanwhile is not taken for the one in use.
        let identity = Identity::of(config).ok();
        let scheduler = tokio::select! {
            started = Scheduler::start(config.clone()) => started?,
            signal = interrupts.next() => return Err(Failure::Interrupted(signal)),
        };
        // There was no image yet; now it has been fetched.
        let identity = identity.map_or_else(|| Identity::of(config), Ok)?;
        let greeting = Greeting {
            identity,
            pid: std::process::id(),
            accelerator: scheduler.facts().accelerator.clone(),
            pool: config.warm_pool_size,
            memory_mib: config.default_memory_mib,
        };
        let desk = Arc::new(Desk::new(scheduler, greeting));
        let begun = lock.listen().map_err(|error| Failure::host("listening on the service's socket", error));
        match begun.and_then(|listener| up().map(|()| listener)) {
            Ok(listener) => server::serve(listener, lock, desk, interrupts).await,
            Err(failure) => desk.scheduler.close().await.map_err(Failure::from).and(Err(failure)),
        }
    })
}

/// Becomes the first process of a session of its own, so that neither a terminal nor its end concerns it.
fn leave_the_starter() -> Result<(), Failure> {
    rustix::process::setsid().map_err(|error| Failure::host("leaving the session", error.into()))?;
    // A directory that somebody works in can be unmounted.
    std::env::set_current_dir("/").map_err(|error| Failure::host("leaving the directory", error))
}

/// Tells the starter, who reads to the end of this output, and lets go of it.
fn report(report: &Report) -> Result<(), Failure> {
    let doing = "reporting to whoever started the service";
    let mut stdout = io::stdout().lock();
    let told = serde_json::to_writer(&mut stdout, report).map_err(io::Error::from).and_then(|()| stdout.flush());
    let nowhere = OpenOptions::new().write(true).open("/dev/null");
    let let_go = nowhere.and_then(|nowhere: File| Ok(rustix::stdio::dup2_stdout(nowhere)?));
    // A starter that was interrupted wants no answer, and a service that it has asked for.
    match told {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Failure::host(doing, error)),
        _told => let_go.map_err(|error| Failure::host(doing, error)),
    }
}
