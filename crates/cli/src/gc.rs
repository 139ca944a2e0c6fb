//! `sbx gc`: ends and removes what processes that are gone have left, and tells what that was.

use std::fmt::Write as _;

use exec_sandbox::{
    SchedulerConfig,
    inventory::{self, EndedProcess, Garbage},
};
use serde::Serialize;

use crate::{
    args::GcArgs,
    exit::Status,
    failure::{Explanation, Failure},
    print,
};

/// What was done, as JSON.
#[derive(Serialize)]
struct Report<'a> {
    ended: &'a [EndedProcess],
    removed: &'a [String],
    resisted: Vec<Resisted<'a>>,
}

#[derive(Serialize)]
struct Resisted<'a> {
    id: &'a str,
    error: Explanation,
}

/// Clears up.
pub(crate) fn run(args: &GcArgs) -> Result<Status, Failure> {
    let garbage = crate::block_on(async { Ok(inventory::collect_garbage(SchedulerConfig::default()).await?) })?;
    let status = if garbage.resisted.is_empty() { Status::SUCCESS } else { Status::SANDBOX };
    if args.json {
        print::json(&report(&garbage))?;
        return Ok(status);
    }
    print::page(&page(&garbage))?;
    for (id, error) in garbage.resisted {
        print::failure_of(&id, &error.into());
    }
    Ok(status)
}

fn report(garbage: &Garbage) -> Report<'_> {
    let resisted = garbage.resisted.iter().map(|(id, error)| Resisted { id, error: error.into() });
    Report { ended: &garbage.ended, removed: &garbage.removed, resisted: resisted.collect() }
}

fn page(garbage: &Garbage) -> String {
    let mut page = String::new();
    for EndedProcess { vm_id, role, pid, .. } in &garbage.ended {
        let _ = writeln!(page, "ended process {pid} ({role}) of {vm_id}");
    }
    for id in &garbage.removed {
        let _ = writeln!(page, "removed {id}");
    }
    if garbage.removed.is_empty() && garbage.resisted.is_empty() {
        page.push_str("Nothing was left.\n");
    }
    page
}
