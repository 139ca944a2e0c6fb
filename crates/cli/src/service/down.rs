//! `sbx down`: no service is up when this returns, and none of its VMs.

use std::time::Duration;

use exec_sandbox::SchedulerConfig;
use tokio::time::{Instant, sleep, timeout};

use super::{client::Line, frame::Kind, places::Places};
use crate::{
    exit::Status,
    failure::{Explanation, Failure},
    print,
};

/// How long a service may take to end: its VMs have 30 s.
const PATIENCE: Duration = Duration::from_secs(40);

/// Between two looks at its lock.
const LOOK: Duration = Duration::from_millis(10);

/// Ends the service, if there is one.
pub(crate) fn run() -> Result<Status, Failure> {
    let places = Places::of(&SchedulerConfig::default())?;
    print::page(&match crate::block_on(gone(&places))? {
        Some(pid) => format!("The service is down: process {pid} has ended, and its VMs.\n"),
        None => "No service is up.\n".into(),
    })?;
    Ok(Status::SUCCESS)
}

/// Returns when there is no service, and which one there was.
async fn gone(places: &Places) -> Result<Option<u32>, Failure> {
    let begun = Instant::now();
    let mut ended = None;
    loop {
        if let Some(lock) = places.lock()? {
            // Held, nobody else's socket can be there.
            lock.clear().map_err(|error| Failure::host("removing the service's socket", error))?;
            return Ok(ended);
        }
        let alone = match Line::to(&places.socket()).await {
            Ok(line) => {
                ended = Some(line.greeting.pid);
                end(line).await?;
                continue;
            }
            Err(alone) => alone,
        };
        if begun.elapsed() > PATIENCE {
            return Err(stuck(&alone.reason()));
        }
        sleep(LOOK).await;
    }
}

async fn end(mut line: Line) -> Result<(), Failure> {
    timeout(PATIENCE, line.ask(Kind::End)).await.unwrap_or_else(|_elapsed| Err(stuck("it has not confirmed its end")))
}

fn stuck(why: &str) -> Failure {
    let explanation = Explanation {
        kind: "service".into(),
        message: format!("waiting {} s for the end of the service", PATIENCE.as_secs()),
        causes: vec![why.into()],
        remedy: Some("kill its process, which `sbx ps` names as the owner of its VMs; they end with it".into()),
    };
    Failure::Told { explanation, status: Status::SANDBOX }
}
