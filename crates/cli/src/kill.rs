//! `sbx kill`: ends VMs, whoever owns them.
//!
//! The ids of those that are gone are printed, one on a line; of the others it is said why. The first of these decides how it
//! ends.

use exec_sandbox::{Error, SchedulerConfig, inventory};

use crate::{args::KillArgs, exit::Status, failure::Failure, print};

/// Ends the VMs that were named, or all.
pub(crate) fn run(args: &KillArgs) -> Result<Status, Failure> {
    crate::block_on(async {
        if args.all {
            let all = inventory::kill_all(SchedulerConfig::default()).await?;
            let told = all.into_iter().map(|(id, ended)| (id.clone(), ended.map(|()| id)));
            return statuses(told.collect());
        }
        let mut told = Vec::new();
        for id in &args.ids {
            told.push((id.clone(), inventory::kill(SchedulerConfig::default(), id).await));
        }
        statuses(told)
    })
}

fn statuses(told: Vec<(String, Result<String, Error>)>) -> Result<Status, Failure> {
    let mut statuses = Vec::new();
    for (typed, ended) in told {
        statuses.push(match ended {
            Ok(id) => {
                print::to_stdout(format!("{id}\n").as_bytes())?;
                Status::SUCCESS
            }
            Err(error) => print::failure_of(&typed, &error.into()),
        });
    }
    Ok(Status::first_failure(statuses))
}
