//! An instance: QEMU's process and all that belongs to it on the host, from its start to its confirmed death.
//!
//! It owns the process, the run directory and the readers of what QEMU says. It does not know what runs in the guest. Teardown
//! is one way: kill, reap, join the readers, remove the directory.

use std::{io, time::Duration};

use bytes::Bytes;
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    net::{UnixStream, unix::pipe},
    sync::mpsc,
    task::JoinHandle,
};

use super::monitor::Monitor;
use crate::{
    Output,
    process::{Child, ChildUsage, Ended},
    run_dir::{RunDir, RunDirError},
};

/// How long a process may take to die of SIGKILL: it must give back its memory, and no more.
const KILL_PATIENCE: Duration = Duration::from_secs(5);

/// What is kept of QEMU's standard error: its last lines say why it ended.
const STDERR_TAIL_BYTES: usize = 4096;

/// Why QEMU ended, as far as it can be known.
#[derive(Clone, Debug, thiserror::Error)]
#[error("QEMU {how}{}{}", self.monitor_text(), self.stderr_text())]
pub(super) struct Obituary {
    how: String,
    monitor: Option<String>,
    stderr: String,
}

/// Why a teardown is not complete.
#[derive(Debug, thiserror::Error)]
pub(super) enum TeardownError {
    #[error("process {pid} has not died of SIGKILL")]
    Undead { pid: u32 },
    #[error("waiting for QEMU's process")]
    Wait(#[from] io::Error),
    #[error("clearing up after QEMU")]
    RunDir(#[from] RunDirError),
}

/// QEMU's process and its files.
#[derive(Debug)]
pub(super) struct Instance {
    child: Child,
    run_dir: Option<RunDir>,
    stderr: JoinHandle<String>,
    monitor: Monitor,
    console: Option<JoinHandle<()>>,
}

impl Instance {
    pub(super) fn new(child: Child, run_dir: RunDir, stderr: pipe::Receiver, monitor: Monitor) -> Self {
        Self { child, run_dir: Some(run_dir), stderr: tokio::spawn(tail(stderr)), monitor, console: None }
    }

    /// Streams the guest's console to `output`. A caller who stops listening does not stop the guest.
    pub(super) fn stream_console(&mut self, mut console: UnixStream, output: mpsc::Sender<Output>) {
        self.console = Some(tokio::spawn(async move {
            let mut chunk = vec![0; STDERR_TAIL_BYTES];
            while let Ok(read @ 1..) = console.read(&mut chunk).await {
                let _ = output.send(Output::BootLog(Bytes::copy_from_slice(&chunk[..read]))).await;
            }
        }));
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.pid()
    }

    pub(super) fn run_dir(&self) -> Option<&RunDir> {
        self.run_dir.as_ref()
    }

    /// Waits for QEMU's end. May be dropped and called again.
    pub(super) async fn ended(&mut self) -> io::Result<Ended> {
        self.child.ended().await
    }

    /// Confirms that QEMU is dead and clears what it leaves. After an error it may be called again.
    pub(super) async fn tear_down(&mut self) -> Result<ChildUsage, TeardownError> {
        let Some(ended) = self.child.kill_and_reap(KILL_PATIENCE).await? else {
            return Err(TeardownError::Undead { pid: self.child.pid() });
        };
        if let Some(console) = self.console.take() {
            console.abort();
        }
        if let Some(run_dir) = self.run_dir.take() {
            run_dir.remove()?;
        }
        Ok(ended.usage)
    }

    /// What is known of a QEMU that has ended by itself.
    pub(super) async fn obituary(&mut self, ended: Ended) -> Obituary {
        // Both readers end with the process that they read from.
        let stderr = (&mut self.stderr).await.unwrap_or_default();
        Obituary { how: describe(ended), monitor: self.monitor.last_word().await, stderr }
    }
}

impl Obituary {
    fn monitor_text(&self) -> String {
        self.monitor.as_ref().map(|event| format!(" after {event}")).unwrap_or_default()
    }

    fn stderr_text(&self) -> String {
        let said = self.stderr.trim();
        if said.is_empty() { String::new() } else { format!(", saying: {said}") }
    }
}

fn describe(ended: Ended) -> String {
    match (ended.code, ended.signal) {
        // With -no-reboot a reset is the end, and a kernel that panics resets.
        (Some(0), _) => "ended although nobody asked it to (the guest reset or panicked)".into(),
        (Some(code), _) => format!("ended with code {code}"),
        (None, Some(signal)) => format!("was ended by signal {signal}"),
        (None, None) => "ended".into(),
    }
}

/// Reads to the end and keeps the last bytes.
async fn tail(mut from: impl AsyncRead + Unpin) -> String {
    let (mut kept, mut chunk) = (Vec::new(), vec![0; STDERR_TAIL_BYTES]);
    while let Ok(read @ 1..) = from.read(&mut chunk).await {
        kept.extend_from_slice(&chunk[..read]);
        let surplus = kept.len().saturating_sub(STDERR_TAIL_BYTES);
        kept.drain(..surplus);
    }
    String::from_utf8_lossy(&kept).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_tail_is_the_last_of_what_was_said() {
        let said = [vec![b'a'; 10_000], b"the end".to_vec()].concat();
        let kept = tail(&said[..]).await;
        assert_eq!(kept.len(), STDERR_TAIL_BYTES);
        assert!(kept.ends_with("the end"));
    }

    #[test]
    fn an_obituary_says_how_it_ended_and_what_was_said() {
        let ended = Ended { code: Some(1), signal: None, usage: ChildUsage::default() };
        let obituary = Obituary { how: describe(ended), monitor: None, stderr: "cannot set up guest memory\n".into() };
        assert_eq!(obituary.to_string(), "QEMU ended with code 1, saying: cannot set up guest memory");
    }
}
