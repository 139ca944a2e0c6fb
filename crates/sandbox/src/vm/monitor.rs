//! The monitor: QEMU's own events, of which the last one may say why it ended.
//!
//! QEMU is not believed, so what it says is bounded and only shown. Nothing here decides anything.

use exec_sandbox_qemu::qmp;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
};
use tokio_util::task::AbortOnDropHandle;
use tracing::debug;

use super::printable;

/// Room for one read: an event has a few hundred bytes.
const CHUNK_BYTES: usize = 4096;

/// Longest reason that is shown; QEMU's own have under thirty characters.
const MAX_REASON_CHARS: usize = 60;

/// The reader of one QEMU's events, and what it returns: the last event that tells why QEMU ended, if there was one.
pub(super) type Monitor = AbortOnDropHandle<Option<String>>;

/// Begins to read.
pub(super) fn watch(stream: UnixStream) -> Monitor {
    AbortOnDropHandle::new(tokio::spawn(read_events(stream)))
}

/// Reads to the end, or until what is said is no QMP; keeps the event that tells most about the end.
async fn read_events(mut stream: UnixStream) -> Option<String> {
    let (mut decoder, mut correlator) = (qmp::Decoder::default(), qmp::Correlator::default());
    // Events come once capabilities are agreed. QEMU reads the command when it is ready, so there is nothing to wait for.
    let (_id, command) = correlator.issue(qmp::Command::Capabilities).ok()?;
    // One that does not read it any more may have said its last word before.
    let _ = stream.write_all(&command).await;
    let (mut last_word, mut chunk) = (None, vec![0; CHUNK_BYTES]);
    while let Ok(read @ 1..) = stream.read(&mut chunk).await {
        decoder.push(chunk.get(..read)?);
        loop {
            match decoder.next_message() {
                Ok(Some(message)) => {
                    if let qmp::Settled::Event(event) = correlator.settle(message) {
                        last_word = describe(&event).or(last_word);
                    }
                }
                Ok(None) => break,
                // Reading on would gather a line without end.
                Err(error @ qmp::DecodeError::LineTooLong) => {
                    debug!(%error, "QEMU's monitor is not listened to any more");
                    return last_word;
                }
                Err(_not_a_message) => {}
            }
        }
    }
    last_word
}

/// What an event says about the end, if it says anything.
fn describe(event: &qmp::Event) -> Option<String> {
    match event.name.as_str() {
        "GUEST_PANICKED" => Some("a panic of the guest".into()),
        "SHUTDOWN" => {
            let reason = event.data.get("reason")?.as_str()?;
            Some(format!("a shutdown ({})", printable(reason, MAX_REASON_CHARS)))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_event_that_tells_of_the_end_is_kept_whatever_is_said_around_it() {
        let (ours, mut qemus) = UnixStream::pair().expect("a socket pair");
        let monitor = watch(ours);
        let said = b"nonsense\n{\"event\": \"SHUTDOWN\", \"data\": {\"reason\": \"guest-reset\"}}\n[]\n{\"event\": \"STOP\"}\n";
        qemus.write_all(said).await.expect("it is read");
        // The command has to be taken, or closing is a reset.
        let _ = qemus.read(&mut [0; 256]).await.expect("it is written");
        drop(qemus);
        assert_eq!(monitor.await.expect("no panic").as_deref(), Some("a shutdown (guest-reset)"));
    }

    #[tokio::test]
    async fn a_line_without_end_is_not_gathered_for_ever() {
        let (ours, mut qemus) = UnixStream::pair().expect("a socket pair");
        let monitor = watch(ours);
        let endless = vec![b'x'; qmp::MAX_LINE_BYTES + 2 * CHUNK_BYTES];
        // The reader ends, though this end stays open.
        let _ = qemus.write_all(&endless).await;
        assert_eq!(monitor.await.expect("no panic"), None);
    }
}
