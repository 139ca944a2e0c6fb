//! What a gateway reports: read by a task of its own, which keeps the newest report and asks for another when somebody wants one.

use std::{io, sync::Arc, time::Duration};

use exec_sandbox_gateway::{
    policy::Refusals,
    report::{MAX_LINE_BYTES, Report, ReportError, Reports},
};
use tokio::{
    io::AsyncReadExt as _,
    net::UnixStream,
    sync::{Notify, watch},
    time::{Instant, sleep, timeout},
};
use tracing::{info, warn};

/// How long a gateway may take to answer. It does so within a millisecond, unless it or the machine stands still, and nobody who has
/// an outcome waits longer for figures.
const ANSWER_PATIENCE: Duration = Duration::from_millis(100);

/// Between two looks at what has been reported. An honest gateway reports once a second and when it is asked; one that babbles is
/// kept from keeping this process busy.
const PACE: Duration = Duration::from_millis(5);

/// Between two lines of the log about refusals, which a guest can cause as it likes.
const BETWEEN_LINES: Duration = Duration::from_secs(1);

/// A way to what a gateway reports.
#[derive(Clone, Debug)]
pub(in crate::vm) struct Listener {
    newest: watch::Receiver<Option<Report>>,
    question: Arc<Notify>,
}

/// The other end of it.
#[derive(Debug)]
pub(super) struct Speaker {
    newest: watch::Sender<Option<Report>>,
    question: Arc<Notify>,
}

/// Why no more reports come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Silence {
    /// The gateway has closed its side, as it does when it ends.
    Ended,
    /// What came was no report.
    Babbled,
}

impl Listener {
    /// Both ends.
    pub(super) fn pair() -> (Self, Speaker) {
        let (sender, newest) = watch::channel(None);
        let question = Arc::<Notify>::default();
        (Self { newest, question: Arc::clone(&question) }, Speaker { newest: sender, question })
    }

    /// Waits for the first report. Pends for ever if none will come.
    pub(super) async fn heard(&mut self) {
        if self.newest.wait_for(Option::is_some).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// The newest report there is, and whether it answers this question. A gateway that is gone or that does not answer in time has
    /// said what it has said before.
    pub(in crate::vm) async fn ask(&self) -> (Report, bool) {
        let mut newest = self.newest.clone();
        newest.mark_unchanged();
        self.question.notify_one();
        let answered = timeout(ANSWER_PATIENCE, newest.changed()).await.is_ok_and(|changed| changed.is_ok());
        (newest.borrow().clone().unwrap_or_default(), answered)
    }
}

impl Speaker {
    /// Reads until the gateway has nothing more to say.
    pub(super) async fn listen(self, mut channel: UnixStream, vm_id: String) -> Silence {
        let (mut reports, mut chunk) = (Reports::default(), vec![0; MAX_LINE_BYTES]);
        let mut log = Log { told: Refusals::default(), at: None };
        loop {
            let read = tokio::select! {
                () = self.question.notified() => {
                    // One that does not read what it is asked has enough to answer.
                    let _ = channel.try_write(b"?");
                    continue;
                }
                read = channel.read(&mut chunk) => read,
            };
            match newest(&mut reports, read, &chunk) {
                Ok(Some(report)) => {
                    log.tell(&vm_id, &report.refusals);
                    self.newest.send_replace(Some(report));
                }
                Ok(None) => {}
                Err(None) => return Silence::Ended,
                Err(Some(error)) => {
                    warn!(vm_id, error = &error as &dyn std::error::Error, "the gateway does not report");
                    return Silence::Babbled;
                }
            }
            sleep(PACE).await;
        }
    }
}

/// The newest report that ended in what was read. `Err(None)`: the channel has ended.
fn newest(reports: &mut Reports, read: io::Result<usize>, chunk: &[u8]) -> Result<Option<Report>, Option<ReportError>> {
    let bytes = read.ok().filter(|bytes| *bytes > 0).and_then(|bytes| chunk.get(..bytes)).ok_or(None)?;
    reports.take(bytes).map_err(Some)
}

/// What the log has been told of refusals.
#[derive(Debug)]
struct Log {
    told: Refusals,
    at: Option<Instant>,
}

impl Log {
    fn tell(&mut self, vm_id: &str, refusals: &Refusals) {
        let now = Instant::now();
        if *refusals != self.told && self.at.is_none_or(|at| now - at >= BETWEEN_LINES) {
            info!(vm_id, refusals = listed(refusals), "the gateway has refused");
            (self.told, self.at) = (refusals.clone(), Some(now));
        }
    }
}

/// `name 3, other 1`.
fn listed(refusals: &Refusals) -> String {
    let met: Vec<String> =
        refusals.iter().filter(|(_, count)| *count > 0).map(|(name, count)| format!("{name} {count}")).collect();
    met.join(", ")
}
