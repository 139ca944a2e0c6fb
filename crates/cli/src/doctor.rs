//! `sbx doctor`: the library's examination of this host, or of a guest, on a page.

mod guest;

use std::{
    fmt::Write as _,
    io::{self, IsTerminal as _},
};

use exec_sandbox::doctor::{self, Check, Report, Status as Health};

use crate::{
    args::DoctorArgs,
    exit::Status,
    failure::Failure,
    print::{self, ERROR, HELP, OK, WARNING},
    progress::Progress,
    service,
};

/// Examines the host. Fails like a run would if a run would.
pub(crate) fn run(args: &DoctorArgs) -> Result<Status, Failure> {
    if args.guest {
        return guest::run(args);
    }
    let report = crate::block_on(examine(args))?;
    if args.json {
        print::json(&report)?;
    } else {
        print::page(&page(&report))?;
    }
    Ok(match report.worst() {
        Health::Ok | Health::Warning => Status::SUCCESS,
        Health::Failure => Status::SANDBOX,
    })
}

async fn examine(args: &DoctorArgs) -> Result<Report, Failure> {
    let progress = Progress::start("examining this host", io::stderr().is_terminal());
    let config = args.config();
    let examined = async {
        let mut report = doctor::examine(config.clone()).await?;
        report.checks.push(service::check(&config).await);
        Ok(report)
    };
    let report = tokio::select! {
        report = examined => report,
        never = progress.appear() => never,
    };
    progress.end();
    report
}

fn page(report: &Report) -> String {
    let width = report.checks.iter().map(|check| check.name.len()).max().unwrap_or(0);
    let mut page = String::new();
    for check in &report.checks {
        line(&mut page, check, width);
    }
    let problems = |health: Health| report.checks.iter().filter(|check| check.status == health).count();
    let _ = match (problems(Health::Failure), problems(Health::Warning)) {
        (0, 0) => writeln!(page, "\nEverything is in order."),
        (0, warnings) => writeln!(page, "\nVMs run here; {warnings} of the above could be better."),
        (failures, _) => writeln!(page, "\nVMs do not run here: {failures} of the above must be mended first."),
    };
    page
}

fn line(page: &mut String, check: &Check, width: usize) {
    let (style, sign) = match check.status {
        Health::Ok => (OK, "ok  "),
        Health::Warning => (WARNING, "warn"),
        Health::Failure => (ERROR, "FAIL"),
    };
    let _ = writeln!(page, "{style}{sign}{style:#}  {:width$}  {}", check.name, check.detail);
    if let Some(remedy) = &check.remedy {
        let _ = writeln!(page, "      {:width$}  {HELP}help:{HELP:#} {remedy}", "");
    }
}
