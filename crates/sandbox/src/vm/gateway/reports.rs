//! What a gateway reports: read by a task of its own, which keeps the newest report and asks for another when somebody wants one.

use std::{io, sync::Arc, time::Duration};

use exec_sandbox_gateway::{
    policy::Refusals,
    report::{MAX_LINE_BYTES, Report, ReportError, Reports},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
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
    farewell: Arc<Notify>,
}

/// The other end of it.
#[derive(Debug)]
pub(super) struct Speaker {
    newest: watch::Sender<Option<Report>>,
    question: Arc<Notify>,
    farewell: Arc<Notify>,
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
        let (question, farewell) = (Arc::<Notify>::default(), Arc::<Notify>::default());
        let listener = Self { newest, question: Arc::clone(&question), farewell: Arc::clone(&farewell) };
        (listener, Speaker { newest: sender, question, farewell })
    }

    /// Asks nothing any more: the gateway sees that, tells its last report, and ends.
    pub(super) fn part(&self) {
        self.farewell.notify_one();
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
        let asking = async {
            // Twice, because the first report may have been on its way before the question: what comes second was made after it.
            for _ in 0..2 {
                newest.mark_unchanged();
                self.question.notify_one();
                newest.changed().await?;
            }
            Ok::<(), watch::error::RecvError>(())
        };
        let answered = timeout(ANSWER_PATIENCE, asking).await.is_ok_and(|asked| asked.is_ok());
        (newest.borrow().clone().unwrap_or_default(), answered)
    }
}

impl Speaker {
    /// Reads until the gateway has nothing more to say.
    pub(super) async fn listen(self, mut channel: UnixStream, vm_id: String) -> Silence {
        let (mut reports, mut chunk) = (Reports::default(), vec![0; MAX_LINE_BYTES]);
        let (mut owes_answer, mut is_parting) = (false, false);
        let mut log = Log { told: Refusals::default(), at: None };
        let silence = loop {
            let read = tokio::select! {
                () = self.question.notified() => {
                    // One that does not read what it is asked has enough to answer.
                    let _ = channel.try_write(b"?");
                    owes_answer = true;
                    continue;
                }
                () = self.farewell.notified() => {
                    // One that is gone has said its last.
                    let _ = channel.shutdown().await;
                    is_parting = true;
                    continue;
                }
                read = channel.read(&mut chunk) => read,
            };
            match newest(&mut reports, read, &chunk) {
                Ok(Some(report)) => {
                    log.tell(&vm_id, &report.refusals, false);
                    self.newest.send_replace(Some(report));
                }
                Ok(None) => {}
                Err(None) => break Silence::Ended,
                Err(Some(error)) => {
                    warn!(vm_id, error = &error as &dyn std::error::Error, "the gateway does not report");
                    break Silence::Babbled;
                }
            }
            // Whoever parts waits for the last report, and not for long.
            if !std::mem::take(&mut owes_answer) && !is_parting {
                sleep(PACE).await;
            }
        };
        if let Some(last) = &*self.newest.borrow() {
            log.tell(&vm_id, &last.refusals, true);
        }
        silence
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
    /// Tells of refusals that it has not been told of, if it is time or the end.
    fn tell(&mut self, vm_id: &str, refusals: &Refusals, is_end: bool) {
        let now = Instant::now();
        if *refusals != self.told && (is_end || self.at.is_none_or(|at| now - at >= BETWEEN_LINES)) {
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

#[cfg(test)]
mod tests {
    use std::io;

    use exec_sandbox_gateway::{policy::Refusal, report::VERSION};
    use tokio::task::JoinHandle;

    use super::*;

    fn reading() -> (Listener, UnixStream, JoinHandle<Silence>) {
        let (ours, gateways) = UnixStream::pair().expect("a socket pair");
        let (listener, speaker) = Listener::pair();
        (listener, gateways, tokio::spawn(speaker.listen(ours, "vm-1".into())))
    }

    async fn tell(gateway: &mut UnixStream, connections: u64) -> io::Result<()> {
        gateway.write_all(&Report { version: VERSION, connections, ..Report::default() }.line()).await
    }

    #[tokio::test]
    async fn a_report_that_was_on_its_way_is_not_taken_for_the_answer() {
        let (listener, mut gateway, _reader) = reading();
        let answering = async {
            gateway.read_u8().await.expect("it is asked");
            // The one that nobody asked for, and the answer.
            tell(&mut gateway, 1).await.expect("it is read");
            tell(&mut gateway, 2).await.expect("it is read");
            gateway.read_u8().await.expect("it is asked again");
            tell(&mut gateway, 3).await.expect("it is read");
        };
        let (asked, ()) = tokio::join!(listener.ask(), answering);
        assert!(asked.1 && asked.0.connections >= 2, "{asked:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_not_answer_is_not_waited_for_and_what_it_said_last_counts() {
        let (listener, mut gateway, _reader) = reading();
        tell(&mut gateway, 7).await.expect("it is read");
        listener.clone().heard().await;
        let (report, is_answer) = listener.ask().await;
        assert_eq!((report.connections, is_answer), (7, false));
    }

    #[tokio::test]
    async fn a_gateway_that_is_parted_from_sees_the_end_and_its_last_report_is_heard() {
        let (listener, mut gateway, reader) = reading();
        tell(&mut gateway, 1).await.expect("it is read");
        listener.part();
        assert_eq!(gateway.read(&mut [0]).await.expect("it is open"), 0, "nobody will ask any more");
        tell(&mut gateway, 2).await.expect("it is still read");
        drop(gateway);
        assert_eq!(reader.await.expect("no panic"), Silence::Ended);
        assert_eq!(listener.newest.borrow().as_ref().map(|report| report.connections), Some(2));
    }

    #[tokio::test(start_paused = true)]
    async fn the_log_is_told_at_its_pace_and_of_the_rest_at_the_end() {
        let (mut log, mut refusals) = (Log { told: Refusals::default(), at: None }, Refusals::default());
        let mut is_told = |refusals: &Refusals, is_end| {
            log.tell("vm-1", refusals, is_end);
            log.told == *refusals
        };
        refusals.count(Refusal::NotTls);
        assert!(is_told(&refusals, false));
        refusals.count(Refusal::NotTls);
        assert!(!is_told(&refusals, false), "a guest does not fill the log");
        assert!(is_told(&refusals, true));
    }

    #[tokio::test]
    async fn the_end_and_nonsense_are_told_apart() {
        let (listener, mut gateway, reader) = reading();
        gateway.write_all(b"nonsense\n").await.expect("it is read");
        assert_eq!(reader.await.expect("no panic"), Silence::Babbled);
        assert!(!listener.ask().await.1);
        let (_, gateway, reader) = reading();
        drop(gateway);
        assert_eq!(reader.await.expect("no panic"), Silence::Ended);
    }
}
