//! The monitor: QEMU's own events, of which the last one may say why it ended.
//!
//! QEMU is not believed, so what it says is bounded and only shown. Nothing here decides anything.

use exec_sandbox_qemu::qmp;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    task::JoinHandle,
};

/// Room for one read: an event has a few hundred bytes.
const CHUNK_BYTES: usize = 4096;

/// Longest reason that is shown; QEMU's own have under thirty characters.
const MAX_REASON_CHARS: usize = 60;

/// The reader of one QEMU's events. It ends when QEMU does.
#[derive(Debug)]
pub(super) struct Monitor {
    reader: JoinHandle<Option<String>>,
}

impl Monitor {
    /// Begins to read.
    pub(super) fn watch(stream: UnixStream) -> Self {
        Self { reader: tokio::spawn(read_events(stream)) }
    }

    /// The last event that tells why QEMU ended, if there was one. Waits for QEMU's end.
    pub(super) async fn last_word(&mut self) -> Option<String> {
        (&mut self.reader).await.ok().flatten()
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

/// Reads to the end; keeps the event that tells most about it.
async fn read_events(mut stream: UnixStream) -> Option<String> {
    let (mut decoder, mut correlator) = (qmp::Decoder::default(), qmp::Correlator::default());
    // Events come once capabilities are agreed. QEMU reads the command when it is ready, so there is nothing to wait for.
    let (_id, command) = correlator.issue(qmp::Command::Capabilities).ok()?;
    stream.write_all(&command).await.ok()?;
    let (mut last_word, mut chunk) = (None, vec![0; CHUNK_BYTES]);
    while let Ok(read @ 1..) = stream.read(&mut chunk).await {
        decoder.push(chunk.get(..read)?);
        while let Ok(Some(message)) = decoder.next_message() {
            if let qmp::Settled::Event(event) = correlator.settle(message) {
                last_word = describe(&event).or(last_word);
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
            let reason: String = event.data.get("reason")?.as_str()?.chars().take(MAX_REASON_CHARS).collect();
            Some(format!("a shutdown ({reason})"))
        }
        _ => None,
    }
}
