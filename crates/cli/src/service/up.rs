//! `sbx up`: a service is up and its pool full when this returns, whoever started it.

use std::{
    env,
    ffi::OsString,
    fs::OpenOptions,
    io::{self, IsTerminal as _, Read as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use tokio::time::{Instant, sleep};

use super::{
    client::Line,
    daemon::{self, Report},
    descriptors,
    frame::Kind,
    identity::Identity,
    message::{self, Greeting},
    places::Places,
    trouble,
};
use crate::{args::UpArgs, exit::Status, failure::Failure, print, progress::Progress};

/// How long another service, which starts or ends just now, is waited for. Ending takes 30 s at most.
const OTHERS_PATIENCE: Duration = Duration::from_secs(40);

/// Between two looks at it.
const LOOK: Duration = Duration::from_millis(50);

/// Longest report of a service that starts: a failure with its causes is a page of text.
const MAX_REPORT_BYTES: u64 = 256 * 1024;

/// Variables that name places. A service works elsewhere than where it was started, so it is told them in full.
const PLACES: [&str; 8] = [
    "EXEC_SANDBOX_CACHE_DIR",
    "EXEC_SANDBOX_IMAGES_DIR",
    "EXEC_SANDBOX_RUN_DIR",
    "EXEC_SANDBOX_QEMU",
    "EXEC_SANDBOX_CGROUP",
    "EXEC_SANDBOX_GATEWAY",
    "EXEC_SANDBOX_PACKAGE_CA",
    "SSL_CERT_FILE",
];

/// Sees to it that a service is up.
pub(crate) fn run(args: &UpArgs) -> Result<Status, Failure> {
    if args.detached {
        return daemon::detached(args);
    }
    if args.foreground {
        return daemon::in_foreground(args);
    }
    let places = Places::of(&args.config())?;
    let progress = Progress::start("starting VMs", io::stderr().is_terminal());
    let ready = crate::block_on(async {
        tokio::select! {
            ready = ready(args, &places) => ready,
            never = progress.appear() => never,
        }
    });
    progress.end();
    let (Greeting { pid, pool, memory_mib, .. }, was_there) = ready?;
    let state = if was_there { "was up already" } else { "is up" };
    let has = format!("process {pid}, {pool} ready VMs of each language, {memory_mib} MiB each");
    print::page(&format!("The service {state}: {has}.\nIts log is {}.\n", places.log().display()))?;
    Ok(Status::SUCCESS)
}

/// Returns when a service as it was asked for has a full pool, and whether it was there before.
async fn ready(args: &UpArgs, places: &Places) -> Result<(Greeting, bool), Failure> {
    let (mut line, was_there) = found_or_started(places).await?;
    check(args, &line.greeting)?;
    line.ask(Kind::AwaitPool).await?;
    Ok((line.greeting, was_there))
}

/// A line to the service, and whether it was there before.
async fn found_or_started(places: &Places) -> Result<(Line, bool), Failure> {
    let begun = Instant::now();
    let mut was_there = true;
    loop {
        let alone = match Line::to(&places.socket()).await {
            Ok(line) => return Ok((line, was_there)),
            Err(alone) => alone,
        };
        if begun.elapsed() > OTHERS_PATIENCE {
            let waited = OTHERS_PATIENCE.as_secs();
            return Err(trouble(format!("waiting {waited} s for a service that starts or ends"), vec![alone.reason()]));
        }
        if places.lock()?.is_none() {
            sleep(LOOK).await;
            continue;
        }
        match started(places)? {
            Report::Up => was_there = false,
            // Somebody was faster.
            Report::Taken => {}
            Report::Failed(told) => return Err(told.into()),
        }
    }
}

/// Starts a service, and hears how that went.
fn started(places: &Places) -> Result<Report, Failure> {
    let program = env::current_exe().map_err(|error| Failure::host("finding this program", error))?;
    let log = OpenOptions::new().create(true).append(true).mode(0o600).open(places.log());
    let log = log.map_err(|error| Failure::host("opening the service's log", error))?;
    descriptors::keep_from_children().map_err(|error| Failure::host("looking at open descriptors", error))?;
    let mut command = Command::new(program);
    command.args(env::args_os().skip(1)).arg("--detached").envs(in_full());
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log).spawn();
    let mut child = child.map_err(|error| Failure::host("starting the service", error))?;
    let mut report = Vec::new();
    let read = child.stdout.take().map(|stdout| stdout.take(MAX_REPORT_BYTES).read_to_end(&mut report));
    read.transpose().and_then(|_| message::read(&report)).map_err(|error| {
        let cause = io::Error::new(error.kind(), format!("it ended without a report: see {}", places.log().display()));
        Failure::host("starting the service", cause)
    })
}

/// A service that does other things than was asked for is not what was asked for.
fn check(args: &UpArgs, greeting: &Greeting) -> Result<(), Failure> {
    let pid = greeting.pid;
    if let Some(what) = Identity::of(&args.config())?.difference(&greeting.identity) {
        return Err(trouble(format!("the service that is up (process {pid}) does not fit"), vec![what.into()]));
    }
    let differs = |asked: Option<u64>, has: u64| asked.is_some_and(|asked| asked != has);
    if differs(args.pool.map(|pool| pool as u64), greeting.pool as u64)
        || differs(args.memory.map(u64::from), greeting.memory_mib.into())
    {
        let Greeting { pool, memory_mib, .. } = greeting;
        let has = format!("has {pool} ready VMs of each language, of {memory_mib} MiB");
        return Err(trouble(format!("the service that is up (process {pid}) {has}"), Vec::new()));
    }
    Ok(())
}

/// [`PLACES`] that are named from where this process is.
fn in_full() -> Vec<(&'static str, OsString)> {
    let full = |name: &'static str| {
        let value = env::var_os(name).filter(|value| !value.is_empty())?;
        Some((name, std::path::absolute(Path::new(&value)).ok()?.into_os_string()))
    };
    PLACES.into_iter().filter_map(full).collect()
}
