//! The gateway of a VM: the process that is its whole network, and what that process reports.
//!
//! It owns the process from its start to its confirmed death. Its end while the VM lives is the end of the network and not of the VM.
//! The gateway parses what a hostile guest sends, so it is not believed either: a report is bounded before it is read, is read at a
//! pace of ours, and is information.

mod plan;
mod reports;

use std::{io, os::unix::process::ExitStatusExt as _, time::Duration};

use tokio::time::{Instant, sleep_until};
use tokio_util::task::AbortOnDropHandle;
use tracing::warn;

pub(super) use plan::{LINK, Plan, PlanError};
pub(super) use reports::Listener;

use super::{
    instance::{STDERR_TAIL_BYTES, last_words},
    printable,
};
use crate::process::{Child, Ended, Process};
use reports::Silence;

/// How long a gateway that does not report any more may take to end: it is on its way to saying why.
const END_PATIENCE: Duration = Duration::from_secs(2);

/// A gateway's process. Dropped, it is killed, which blocks for a moment.
#[derive(Debug)]
pub(super) struct Gateway {
    child: Child,
    stderr: Option<AbortOnDropHandle<String>>,
    reader: Option<AbortOnDropHandle<Silence>>,
    listener: Listener,
    /// It does not report any more, and is killed if it has not ended by then.
    ends_by: Option<Instant>,
    /// What it told was no report.
    has_babbled: bool,
    /// Its end has been told.
    is_told: bool,
}

/// Why a gateway ended, as far as it can be known.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the gateway {how}{}", self.stderr_text())]
pub(super) struct GatewayObituary {
    how: String,
    stderr: String,
}

impl Gateway {
    pub(super) fn pid(&self) -> u32 {
        self.child.pid()
    }

    /// Its process, for observers.
    pub(super) fn process(&self) -> io::Result<Process> {
        self.child.handle()
    }

    /// A way to what it reports.
    pub(super) fn listener(&self) -> Listener {
        self.listener.clone()
    }

    /// Waits until it works. It says so by its first report, from within its jail.
    pub(super) async fn started(&mut self) -> Result<(), GatewayObituary> {
        let mut listener = self.listener.clone();
        tokio::select! {
            () = listener.heard() => Ok(()),
            obituary = self.death() => Err(obituary),
        }
    }

    /// Waits for its end, which is told once: afterwards this pends for ever. May be dropped and called again.
    pub(super) async fn death(&mut self) -> GatewayObituary {
        if self.is_told {
            std::future::pending::<()>().await;
        }
        let ended = self.ended().await;
        // What it told last may explain its end: whoever is not listened to any more dies of talking.
        if self.reader.is_some() {
            self.has_babbled = last_words(self.reader.as_mut()).await == Some(Silence::Babbled);
            self.reader = None;
        }
        let stderr = last_words(self.stderr.as_mut()).await.unwrap_or_default();
        (self.is_told, self.stderr) = (true, None);
        let how = match ended {
            Ok(_ended) if self.has_babbled => "was ended because it told what is no report".into(),
            Ok(ended) => describe(ended),
            Err(error) => format!("cannot be watched ({error})"),
        };
        GatewayObituary { how, stderr }
    }

    async fn ended(&mut self) -> io::Result<Ended> {
        while let Some(reader) = &mut self.reader {
            tokio::select! {
                biased;
                ended = self.child.ended() => return ended,
                silence = reader => {
                    self.reader = None;
                    self.has_babbled = matches!(silence, Ok(Silence::Babbled));
                    let patience = if self.has_babbled { Duration::ZERO } else { END_PATIENCE };
                    self.ends_by = Some(Instant::now() + patience);
                }
            }
        }
        if let Some(deadline) = self.ends_by {
            tokio::select! {
                biased;
                ended = self.child.ended() => return ended,
                () = sleep_until(deadline) => self.child.kill()?,
            }
            self.ends_by = None;
        }
        self.child.ended().await
    }

    /// Asks it to end.
    pub(super) fn terminate(&self) -> io::Result<()> {
        self.child.terminate()
    }

    /// Kills it and waits for its end. `None`: it is not confirmed dead.
    pub(super) async fn kill_and_reap(&mut self, patience: Duration) -> io::Result<Option<Ended>> {
        self.child.kill_and_reap(patience).await
    }
}

impl GatewayObituary {
    fn stderr_text(&self) -> String {
        let said = printable(self.stderr.trim(), STDERR_TAIL_BYTES);
        if said.is_empty() { String::new() } else { format!(", saying: {said}") }
    }
}

/// Logs that a VM has lost its network and lives on.
pub(super) fn mourn(vm_id: &str, obituary: &GatewayObituary) {
    warn!(vm_id, error = obituary as &dyn std::error::Error, "the VM has lost its network");
}

fn describe(ended: Ended) -> String {
    match ended.status.map_or((None, None), |status| (status.code(), status.signal())) {
        (Some(0), _) => "ended although nobody asked it to".into(),
        (Some(code), _) => format!("ended with code {code}"),
        (None, Some(signal)) => format!("was ended by signal {signal}"),
        (None, None) => "ended".into(),
    }
}
