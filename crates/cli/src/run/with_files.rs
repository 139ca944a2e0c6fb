//! A run with files or ports: a VM of its own, like any run's, but held here, so that files go in before the program and come out after
//! it, and that a user knows the ports while the program runs.
//!
//! ```text
//! boot ─▶ upload ─▶ program ─▶ download ─▶ destroy
//!            └───────────────────────────────▲  what fails is kept for the end; the VM dies in any case
//! ```

use std::time::{Duration, Instant};

use exec_sandbox::{ErrorKind, ExecRequest, Outcome, Output, QemuVm, RunRequest, Scheduler, VmSpec};
use futures_util::future;
use tokio::sync::{mpsc, oneshot};

use super::{Done, Feed};
use crate::{
    failure::Failure,
    files::{self, DownloadSpec, Plan},
    meter::Meter,
    print,
    printer::{Event, PIECES_IN_FLIGHT},
    progress::Progress,
};

/// The files of every source.
#[derive(Clone, Copy, Debug)]
pub(super) struct Files<'a> {
    pub(super) plan: &'a Plan,
    /// Of all sources, which upload at the same time.
    pub(super) uploads: &'a Meter,
    pub(super) downloads: &'a [DownloadSpec],
    /// Say where each VM is reached.
    pub(super) wants_ports: bool,
    pub(super) wants_progress: bool,
    pub(super) wants_notes: bool,
}

impl Files<'_> {
    pub(super) fn any(&self) -> bool {
        !self.plan.is_empty() || !self.downloads.is_empty()
    }
}

/// Runs `request` in a fresh VM, with its files, and returns once the VM is confirmed dead.
pub(super) async fn run(scheduler: &Scheduler, request: RunRequest, files: Files<'_>, feed: &Feed) -> Done {
    let (log, arriving) = mpsc::channel(PIECES_IN_FLIGHT);
    // The boot's log ends with the VM.
    future::join(in_vm(scheduler, request, files, feed, log), feed.forward(arriving)).await.0
}

async fn in_vm(
    scheduler: &Scheduler,
    request: RunRequest,
    files: Files<'_>,
    feed: &Feed,
    log: mpsc::Sender<Output>,
) -> Done {
    let called = Instant::now();
    let RunRequest { code, language, timeout, memory_mib, env, packages, network, expose, boot_log } = request;
    let (boot_log, progress) = (boot_log.then(|| log.clone()), Some(log));
    let spec = VmSpec { memory_mib, packages, network, expose, boot_log, progress, ..VmSpec::new(language) };
    let vm = match scheduler.manager().create_vm(spec).await {
        Ok(vm) => vm,
        Err(error) => return Done { result: Err(error.into()), downloads: Vec::new() },
    };
    if files.wants_ports {
        for port in vm.exposed_ports() {
            // A printer that failed ends the whole run.
            let _ = feed.events.send(Event::Note(feed.number, crate::network::address(port))).await;
        }
    }
    let mut done = match files::upload(&vm, files.plan, files.uploads).await {
        Ok(()) => execute(&vm, ExecRequest { code, timeout, env }, files, feed, called).await,
        Err(failure) => Done { result: Err(failure), downloads: Vec::new() },
    };
    let used = vm.process().usage().ok();
    let dying = Instant::now();
    let destroyed = vm.destroy().await;
    if let Ok(Outcome { timing, usage, .. }) = &mut done.result {
        let booted = vm.boot_timing();
        timing.admission += booted.admission;
        (timing.prepare, timing.gateway_start) = (booted.prepare, booted.gateway_start);
        (timing.spawn, timing.guest_wait) = (booted.spawn, booted.guest_wait);
        (timing.origin, timing.packages, timing.snapshot) = (booted.origin, booted.packages, booted.snapshot);
        (timing.teardown, timing.total) = (dying.elapsed(), called.elapsed());
        if let Some(used) = used {
            usage.qemu_cpu = Some(used.cpu);
            usage.qemu_memory_peak_bytes = Some(used.resident_peak_bytes);
        }
    }
    if let Err(error) = destroyed {
        // What came first is what the user has to know first.
        done.result = done.result.and(Err(error.into()));
    }
    done
}

async fn execute(vm: &QemuVm, request: ExecRequest, files: Files<'_>, feed: &Feed, called: Instant) -> Done {
    let before = called.elapsed();
    let (pieces, arriving) = mpsc::channel(PIECES_IN_FLIGHT);
    let (result, ()) = future::join(vm.execute_streaming(request, pieces), feed.forward(arriving)).await;
    let is_there = match &result {
        Ok(_) => true,
        // The program ran and was well; only too much of what it wrote is gone.
        Err(error) => error.kind() == ErrorKind::OutputLimit,
    };
    let downloads = if is_there && !files.downloads.is_empty() { fetch(vm, files, feed).await } else { Vec::new() };
    Done { result: result.map(|outcome| counted_from(before, outcome)).map_err(Failure::from), downloads }
}

/// Of a run, the first output is counted from the run's call.
fn counted_from(before: Duration, mut outcome: Outcome) -> Outcome {
    outcome.timing.first_output = outcome.timing.first_output.map(|after| before + after);
    outcome
}

/// Fetches everything that can be fetched; what cannot is returned.
async fn fetch(vm: &QemuVm, files: Files<'_>, feed: &Feed) -> Vec<Failure> {
    if files.wants_notes {
        // What the program wrote stands above what is said now.
        let (paused, pause) = oneshot::channel();
        if feed.events.send(Event::Pause(feed.number, paused)).await.is_ok() {
            // A printer that failed ends the whole run.
            let _ = pause.await;
        }
    }
    let progress = Progress::start("downloading", files.wants_progress);
    let meter = Meter::new(progress.clone(), "downloading", 0);
    let fetching = async {
        let (mut failures, mut left_out) = (Vec::new(), 0);
        for spec in files.downloads {
            match files::download(vm, spec, &meter).await {
                Ok(more) => left_out += more,
                Err(failure) => failures.push(failure),
            }
        }
        (failures, left_out)
    };
    let (failures, left_out) = tokio::select! {
        fetched = fetching => fetched,
        never = progress.appear() => never,
    };
    progress.end();
    if files.wants_notes && left_out > 0 {
        print::note(&format!("{left_out} links and devices are not downloaded"));
    }
    failures
}
