//! `sbx doctor --guest`: what programs in a guest can get at, tried in each language, on a page.

use std::{
    fmt::Write as _,
    io::{self, IsTerminal as _},
};

use exec_sandbox::{
    Language, Scheduler,
    posture::{self, Finding, Posture},
};

use crate::{
    args::DoctorArgs,
    exit::Status,
    failure::Failure,
    print::{self, ERROR, OK},
    progress::Progress,
    scheduled::scheduled,
};

/// Examines a guest of each language. Fails if anything is not as it should be.
pub(super) fn run(args: &DoctorArgs) -> Result<Status, Failure> {
    let config = args.config();
    let postures = crate::block_on(async move {
        let wants_notes = io::stderr().is_terminal();
        let progress = Progress::start("examining a guest", wants_notes);
        scheduled(config, &progress, wants_notes, examine).await
    })?;
    if args.json {
        print::json(&postures)?;
    } else {
        print::page(&page(&postures))?;
    }
    Ok(if postures.iter().all(Posture::holds) { Status::SUCCESS } else { Status::SANDBOX })
}

async fn examine(scheduler: &Scheduler) -> Result<Vec<Posture>, Failure> {
    let mut postures = Vec::new();
    for language in Language::ALL {
        postures.push(posture::examine(scheduler, language).await?);
    }
    Ok(postures)
}

fn page(postures: &[Posture]) -> String {
    let groups = || postures.iter().flat_map(|posture| &posture.groups);
    let width = groups().map(|group| group.name.len()).max().unwrap_or(0);
    let mut page = String::new();
    for posture in postures {
        let _ = writeln!(page, "{} ({})", posture.language, posture.origin);
        for group in &posture.groups {
            let (style, sign) = sign(group.failed.is_empty());
            let of = group.passed + group.failed.len();
            let _ = writeln!(page, "{style}{sign}{style:#}  {:width$}  {} of {of}", group.name, group.passed);
            for finding in &group.failed {
                describe(&mut page, finding);
            }
        }
        if let Some(how) = &posture.broken {
            let (style, sign) = sign(false);
            let _ = writeln!(page, "{style}{sign}{style:#}  the program that tries it did not end well: {how:?}");
        }
    }
    let failed: usize = postures.iter().map(Posture::failed).sum();
    let passed: usize = postures.iter().map(Posture::passed).sum();
    let _ = match (failed, postures.iter().all(Posture::holds)) {
        (0, true) => writeln!(page, "\nAll {passed} checks hold."),
        (0, false) => writeln!(page, "\nAll {passed} checks hold, and their program did not end well."),
        (failed, _) => writeln!(page, "\n{failed} of {} checks do not hold.", passed + failed),
    };
    page
}

fn sign(holds: bool) -> (anstyle::Style, &'static str) {
    if holds { (OK, "ok  ") } else { (ERROR, "FAIL") }
}

fn describe(page: &mut String, finding: &Finding) {
    let _ = writeln!(page, "      {}", finding.name);
    for (what, trial) in [("attempt", &finding.attempt), ("control", &finding.control)] {
        if !trial.holds {
            // A guest's words are shown quoted, so that they can move no cursor.
            let _ = writeln!(page, "        {what} `{}`: {:?}, not {}", trial.probe, trial.found, trial.expected);
        }
    }
}
