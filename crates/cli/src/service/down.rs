//! `sbx down`: no service is up when this returns, and none of its VMs.

use std::time::Duration;

use exec_sandbox::SchedulerConfig;
use tokio::time::{Instant, sleep, timeout};

use super::{
    client::{Alone, Line},
    frame::Kind,
    places::Places,
};
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
        // Asked before the lock is looked at, whose file whoever cleans up may have removed under a service that lives.
        let alone = match Line::to(&places.socket()).await {
            Ok(line) => {
                ended = Some(line.greeting.pid);
                end(line).await?;
                continue;
            }
            Err(alone) => alone,
        };
        if matches!(alone, Alone::NotUp)
            && let Some(lock) = places.lock()?
        {
            // Held, no service is about to listen there.
            lock.clear().map_err(|error| Failure::host("removing the service's socket", error))?;
            return Ok(ended);
        }
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

#[cfg(test)]
mod tests {
    use tokio::net::{UnixListener, UnixStream};

    use super::{
        super::{
            frame::{self, Inlet, MAX_REQUEST_BYTES},
            identity::Identity,
            message::{self, Greeting},
        },
        *,
    };

    /// A run directory in which no lock is held, and a socket in it.
    fn stage() -> (tempfile::TempDir, Places, UnixListener) {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let config = SchedulerConfig { run_dir: Some(dir.path().join("run")), ..SchedulerConfig::default() };
        let places = Places::of(&config).expect("it can be made");
        let listener = UnixListener::bind(places.socket()).expect("it is new");
        (dir, places, listener)
    }

    /// Greets one client as process 7, and does what it asks for.
    async fn serve(mut client: UnixStream) -> Kind {
        let (identity, accelerator) = (Identity::pretend("here"), "tcg".into());
        let greeting = Greeting { identity, pid: 7, accelerator, pool: 1, memory_mib: 192 };
        let greeting = message::body(&greeting).expect("it is JSON");
        frame::send(&mut client, Kind::Greeting, &greeting).await.expect("the client reads");
        let asked = Inlet::new(MAX_REQUEST_BYTES).next(&mut client).await.expect("a client sends frames");
        frame::send(&mut client, Kind::Done, b"").await.expect("the client reads");
        asked.expect("it asks").kind
    }

    #[tokio::test]
    async fn a_service_whose_lock_was_removed_is_ended() {
        let (_dir, places, listener) = stage();
        let service = async {
            let (client, _) = listener.accept().await.expect("a client comes");
            drop(listener);
            serve(client).await
        };
        let ending = async { assert_eq!(gone(&places).await.expect("it ends"), Some(7)) };
        let ((), asked) = tokio::join!(ending, service);
        assert_eq!(asked, Kind::End);
        assert!(!places.socket().exists());
    }

    #[tokio::test]
    async fn a_socket_that_nobody_answers_is_removed() {
        let (_dir, places, listener) = stage();
        drop(listener);
        assert_eq!(gone(&places).await.expect("there is none"), None);
        assert!(!places.socket().exists());
    }

    #[tokio::test(start_paused = true)]
    async fn a_service_that_is_silent_keeps_its_socket() {
        let (_dir, places, _listener) = stage();
        let stuck = gone(&places).await.expect_err("it is there").explain();
        assert!(stuck.causes[0].contains("does not answer"), "{stuck:?}");
        assert!(places.socket().exists());
    }
}
