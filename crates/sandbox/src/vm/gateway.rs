//! The gateway of a VM: the process that is its whole network, and what that process reports.
//!
//! It owns the process from its start to its confirmed death. Its end while the VM lives is the end of the network and not of the VM.
//! The gateway parses what a hostile guest sends, so it is not believed either: a report is bounded before it is read, is read at a
//! pace of ours, and is information.

mod plan;
mod reports;

use std::{io, os::unix::process::ExitStatusExt as _, time::Duration};

use tokio::time::{Instant, sleep_until, timeout};
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

    /// Asks it to end. A signal would keep it from telling what it has counted.
    pub(super) fn part(&self) {
        self.listener.part();
    }

    /// Lets it end within `parting`, or else kills it, and waits for its end and its last report. `None`: it is not confirmed dead
    /// after `dying`.
    pub(super) async fn end(&mut self, parting: Duration, dying: Duration) -> io::Result<Option<Ended>> {
        self.part();
        let _ = timeout(parting, self.child.ended()).await;
        let ended = self.child.kill_and_reap(dying).await?;
        if ended.is_some() {
            last_words(self.reader.take()).await;
        }
        Ok(ended)
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

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream as StdUnixStream;

    use exec_sandbox_gateway::report::{Report, VERSION};
    use tokio::net::UnixStream;

    use super::*;
    use crate::process::Command;

    /// Longer than anything here takes.
    const LONG: Duration = Duration::from_secs(20);

    /// A shell in a gateway's place, whose report channel is its standard input and output.
    async fn gateway(script: &str) -> Gateway {
        let (ours, gateways) = StdUnixStream::pair().expect("a socket pair");
        ours.set_nonblocking(true).expect("it is a socket");
        let mut command = Command::new("/bin/sh".into(), vec!["-c".into(), script.into()]);
        command.pass(gateways.try_clone().expect("there are descriptors").into(), 0);
        command.pass(gateways.into(), 1);
        let child = Child::spawn(command).await.expect("sh starts");
        let (listener, speaker) = Listener::pair();
        let reports = UnixStream::from_std(ours).expect("it is a socket");
        let reader = Some(AbortOnDropHandle::new(tokio::spawn(speaker.listen(reports, "vm-1".into()))));
        Gateway { child, stderr: None, reader, listener, ends_by: None, has_babbled: false, is_told: false }
    }

    fn report(connections: u64, is_last: bool) -> String {
        let report = Report { version: VERSION, connections, is_last, ..Report::default() };
        String::from_utf8(report.line()).expect("it is text").trim_end().to_owned()
    }

    #[tokio::test]
    async fn a_gateway_that_ends_when_it_is_not_asked_any_more_tells_its_last_report() {
        let (first, last) = (report(1, false), report(2, true));
        let mut gateway = gateway(&format!("echo '{first}'; read -r line; echo '{last}'; exit 7")).await;
        gateway.started().await.expect("it reports");
        let ended = gateway.end(LONG, LONG).await.expect("it can be waited for").expect("it is dead");
        let (told, _) = gateway.listener().ask().await;
        assert_eq!((ended.status.and_then(|status| status.code()), told.connections, told.is_last), (Some(7), 2, true));
    }

    #[tokio::test]
    async fn a_gateway_that_does_not_end_is_killed_and_what_it_told_before_counts() {
        let mut gateway = gateway(&format!("echo '{}'; exec sleep 1000", report(1, false))).await;
        gateway.started().await.expect("it reports");
        let ended = gateway.end(Duration::ZERO, LONG).await.expect("it can be waited for").expect("it is dead");
        let (told, _) = gateway.listener().ask().await;
        assert_eq!((ended.status.and_then(|status| status.signal()), told.connections), (Some(9), 1));
    }
}
