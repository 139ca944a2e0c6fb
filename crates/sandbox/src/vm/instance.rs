//! An instance: QEMU's process, its gateway's and all that belongs to them on the host, from their start to their confirmed death.
//!
//! It owns the processes, the run directory and the readers of what QEMU says. It does not know what runs in the guest. Teardown
//! is one way: kill, reap, join the readers, remove the directory.

use std::{io, os::unix::process::ExitStatusExt as _, path::PathBuf, time::Duration};

use bytes::Bytes;
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    net::{UnixStream, unix::pipe},
    sync::mpsc,
    task::JoinError,
    time::timeout,
};
use tokio_util::task::AbortOnDropHandle;

use tracing::{debug, warn};

use super::{
    gateway::{Gateway, GatewayObituary},
    monitor::{Monitor, MonitorError, Orders},
    printable,
};
use crate::{
    Output,
    process::{Child, ChildUsage, Ended, Process},
    run_dir::{RunDir, RunDirError},
};

/// How long a process may take to die of SIGKILL: it must give back its memory, and no more.
const KILL_PATIENCE: Duration = Duration::from_secs(5);

/// How long a gateway that nobody asks any more may take to tell its last report and end: a millisecond, unless it or the machine
/// stands still. What it counted is not worth a later death.
const PARTING_PATIENCE: Duration = Duration::from_millis(100);

/// How long a QEMU that has closed a channel may take to end: the kernel closes it on the way.
const END_PATIENCE: Duration = Duration::from_secs(2);

/// How long what QEMU said last may take to be read once it is dead. It is there at once, and then comes the end of the stream,
/// unless another process has the stream too or a caller does not take the boot log.
const LAST_WORDS_PATIENCE: Duration = Duration::from_secs(1);

/// What is kept of QEMU's standard error: its last lines say why it ended.
pub(super) const STDERR_TAIL_BYTES: usize = 4096;

/// Room for one read of the guest's console.
const CONSOLE_BYTES: usize = 4096;

/// Whose end was met.
#[derive(Debug)]
pub(super) enum Death {
    Qemu(io::Result<Ended>),
    /// The network's, after which the VM may go on.
    Gateway(GatewayObituary),
}

/// Why QEMU ended, as far as it can be known.
#[derive(Clone, Debug, thiserror::Error)]
#[error("QEMU {how}{}{}", self.monitor_text(), self.stderr_text())]
pub(super) struct Obituary {
    how: String,
    signal: Option<i32>,
    monitor: Option<String>,
    stderr: String,
}

/// Why a teardown is not complete.
#[derive(Debug, thiserror::Error)]
pub(super) enum TeardownError {
    #[error("process {pid} has not died of SIGKILL")]
    Undead { pid: u32 },
    #[error("waiting for a process")]
    Wait(#[from] io::Error),
    #[error("clearing up after QEMU")]
    RunDir(#[from] RunDirError),
}

/// QEMU's process and its files. Dropped, the process is killed and the files are removed, which blocks for a moment.
#[derive(Debug)]
pub(super) struct Instance {
    child: Child,
    run_dir: Option<RunDir>,
    stderr: Option<AbortOnDropHandle<String>>,
    monitor: Option<Monitor>,
    console: Option<AbortOnDropHandle<()>>,
    gateway: Option<Gateway>,
}

impl Instance {
    pub(super) fn new(child: Child, run_dir: RunDir, stderr: pipe::Receiver, monitor: Monitor) -> Self {
        let stderr = AbortOnDropHandle::new(tokio::spawn(tail(stderr)));
        Self {
            child,
            run_dir: Some(run_dir),
            stderr: Some(stderr),
            monitor: Some(monitor),
            console: None,
            gateway: None,
        }
    }

    /// Makes `gateway` its network.
    pub(super) fn attach(&mut self, gateway: Gateway) {
        self.gateway = Some(gateway);
    }

    /// Its network's process, if it has a network.
    pub(super) fn gateway(&self) -> Option<&Gateway> {
        self.gateway.as_ref()
    }

    /// Waits until the network works, if there is to be one.
    pub(super) async fn gateway_started(&mut self) -> Result<(), GatewayObituary> {
        match &mut self.gateway {
            Some(gateway) => gateway.started().await,
            None => Ok(()),
        }
    }

    /// Waits for the end of QEMU, or of the network, which is told once. May be dropped and called again.
    pub(super) async fn death(&mut self) -> Death {
        let gateway = async {
            match &mut self.gateway {
                Some(gateway) => gateway.death().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            ended = self.child.ended() => Death::Qemu(ended),
            obituary = gateway => Death::Gateway(obituary),
        }
    }

    /// Streams the guest's console to `output`. A slow caller slows the guest; one who stops listening does not stop it.
    pub(super) fn stream_console(&mut self, mut console: UnixStream, output: mpsc::Sender<Output>) {
        self.console = Some(AbortOnDropHandle::new(tokio::spawn(async move {
            let mut chunk = vec![0; CONSOLE_BYTES];
            while let Ok(read @ 1..) = console.read(&mut chunk).await {
                let _ = output.send(Output::BootLog(Bytes::copy_from_slice(&chunk[..read]))).await;
            }
        })));
    }

    /// Where QEMU is told what to do.
    pub(super) fn orders(&self) -> Result<Orders, MonitorError> {
        self.monitor.as_ref().map(Monitor::orders).ok_or(MonitorError::Closed)
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.pid()
    }

    pub(super) fn run_dir(&self) -> Option<&RunDir> {
        self.run_dir.as_ref()
    }

    /// Where the agent's channel listens.
    pub(super) fn agent_socket(&self) -> PathBuf {
        self.run_dir().map(RunDir::agent_socket).unwrap_or_default()
    }

    /// QEMU's process, for observers.
    pub(super) fn process(&self) -> io::Result<Process> {
        self.child.handle()
    }

    /// Asks QEMU to end, and its gateway, which has no use without it.
    pub(super) fn terminate(&self) -> io::Result<()> {
        if let Some(gateway) = &self.gateway {
            gateway.part();
        }
        self.child.terminate()
    }

    /// Waits for QEMU's end. May be dropped and called again.
    pub(super) async fn ended(&mut self) -> io::Result<Ended> {
        self.child.ended().await
    }

    /// The end of a QEMU that has closed a channel, if it comes soon. QEMU is not believed: it may have closed just that.
    pub(super) async fn ended_soon(&mut self) -> Option<io::Result<Ended>> {
        timeout(END_PATIENCE, self.ended()).await.ok()
    }

    /// Leaves a mark for operators: QEMU does not die.
    pub(super) fn mark_undead(&self) {
        if let Some(Err(error)) = self.run_dir().map(RunDir::mark_undead) {
            warn!(error = &error as &dyn std::error::Error, "that QEMU does not die cannot be noted for others");
        }
    }

    /// Confirms that QEMU and its gateway are dead and clears what they leave. After an error it may be called again. `None`: it is dead, and
    /// what it used is not known.
    pub(super) async fn tear_down(&mut self) -> Result<Option<ChildUsage>, TeardownError> {
        let (ended, gateway) = tokio::join!(self.child.kill_and_reap(KILL_PATIENCE), end_gateway(&mut self.gateway));
        let Some(ended) = ended? else {
            return Err(TeardownError::Undead { pid: self.child.pid() });
        };
        gateway?;
        debug!(pid = self.child.pid(), status = ?ended.status, "QEMU is dead");
        // The last lines of a boot that failed are those that matter.
        let _ = last_words(self.console.take()).await;
        (self.stderr, self.monitor) = (None, None);
        if let Some(run_dir) = self.run_dir.take() {
            run_dir.remove()?;
        }
        Ok(ended.usage)
    }

    /// What is known of a QEMU that has ended by itself.
    pub(super) async fn obituary(&mut self, ended: Ended) -> Obituary {
        let (stderr, monitor) =
            tokio::join!(last_words(self.stderr.take()), last_words(self.monitor.take().map(Monitor::into_reader)));
        Obituary {
            how: describe(ended),
            signal: ended.status.and_then(|status| status.signal()),
            monitor: monitor.flatten(),
            stderr: stderr.unwrap_or_default(),
        }
    }
}

/// Confirms that a gateway is dead.
async fn end_gateway(gateway: &mut Option<Gateway>) -> Result<(), TeardownError> {
    let Some(gateway) = gateway else { return Ok(()) };
    match gateway.end(PARTING_PATIENCE, KILL_PATIENCE).await? {
        Some(_ended) => Ok(()),
        None => Err(TeardownError::Undead { pid: gateway.pid() }),
    }
}

/// What a reader has read of a process that is dead. One that does not come to its end is ended.
pub(super) async fn last_words<T>(reader: Option<impl Future<Output = Result<T, JoinError>>>) -> Option<T> {
    timeout(LAST_WORDS_PATIENCE, reader?).await.ok()?.ok()
}

impl TeardownError {
    /// Whether a process may still be alive, as opposed to having left something behind.
    pub(super) fn leaves_a_process(&self) -> bool {
        match self {
            Self::Undead { .. } | Self::Wait(_) => true,
            Self::RunDir(_) => false,
        }
    }
}

impl Obituary {
    /// Whether somebody killed it, for want of memory or at an operator's wish: that says nothing about its guest.
    pub(super) fn is_a_kill(&self) -> bool {
        self.signal == Some(libc::SIGKILL)
    }

    fn monitor_text(&self) -> String {
        self.monitor.as_ref().map(|event| format!(" after {event}")).unwrap_or_default()
    }

    fn stderr_text(&self) -> String {
        let said = printable(self.stderr.trim(), STDERR_TAIL_BYTES);
        if said.is_empty() { String::new() } else { format!(", saying: {said}") }
    }
}

fn describe(ended: Ended) -> String {
    match ended.status.map_or((None, None), |status| (status.code(), status.signal())) {
        // With -no-reboot a reset is the end, and a kernel that panics resets.
        (Some(0), _) => "ended although nobody asked it to (the guest reset or panicked)".into(),
        (Some(code), _) => format!("ended with code {code}"),
        (None, Some(signal)) => format!("was ended by signal {signal}"),
        (None, None) => "ended".into(),
    }
}

/// Reads to the end and keeps the last bytes.
pub(super) async fn tail(mut from: impl AsyncRead + Unpin) -> String {
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
    use std::process::ExitStatus;

    use tokio::io::AsyncWriteExt as _;

    use super::*;
    use crate::vm::pretend::instance;

    #[tokio::test]
    async fn an_obituary_waits_for_nobody_who_keeps_the_streams_open() {
        let root = tempfile::tempdir().expect("a temporary directory");
        // The child of the shell keeps its standard error, and this test the monitor's other end.
        let (mut instance, _qemus) = instance(&root, "sleep 20 & exit 3").await;
        let ended = instance.ended().await.expect("it can be waited for");
        let obituary = timeout(10 * LAST_WORDS_PATIENCE, instance.obituary(ended)).await.expect("it is bounded");
        assert_eq!(obituary.to_string(), "QEMU ended with code 3");
        assert_eq!(instance.obituary(ended).await.to_string(), "QEMU ended with code 3", "it may be asked for again");
        instance.tear_down().await.expect("it is dead");
    }

    #[tokio::test]
    async fn a_caller_who_does_not_take_the_boot_log_does_not_hold_up_the_teardown() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let (mut instance, _qemus) = instance(&root, "exec sleep 1000").await;
        let (console, mut guests) = UnixStream::pair().expect("a socket pair");
        let (output, mut boot_log) = mpsc::channel(1);
        instance.stream_console(console, output);
        for _ in 0..3 {
            guests.write_all(&[b'x'; CONSOLE_BYTES]).await.expect("there is room");
        }
        timeout(10 * LAST_WORDS_PATIENCE, instance.tear_down()).await.expect("it is bounded").expect("it dies");
        assert!(!root.path().join("vm-1").exists());
        boot_log.recv().await.expect("what was sent is there");
        assert_eq!(boot_log.recv().await, None, "nobody sends any more");
    }

    #[tokio::test]
    async fn the_last_lines_of_the_boot_log_arrive_although_the_vm_is_torn_down() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let (mut instance, _qemus) = instance(&root, "exec sleep 1000").await;
        let (console, mut guests) = UnixStream::pair().expect("a socket pair");
        let (output, mut boot_log) = mpsc::channel(1);
        instance.stream_console(console, output);
        guests.write_all(&[b'x'; 4 * CONSOLE_BYTES]).await.expect("there is room");
        drop(guests);
        let listen = async {
            let mut bytes = 0;
            while let Some(Output::BootLog(piece)) = boot_log.recv().await {
                bytes += piece.len();
                tokio::task::yield_now().await;
            }
            bytes
        };
        let (torn_down, bytes) = tokio::join!(instance.tear_down(), listen);
        torn_down.expect("it dies");
        assert_eq!(bytes, 4 * CONSOLE_BYTES);
    }

    #[tokio::test]
    async fn the_tail_is_the_last_of_what_was_said() {
        let said = [vec![b'a'; 10_000], b"the end".to_vec()].concat();
        let kept = tail(&said[..]).await;
        assert_eq!(kept.len(), STDERR_TAIL_BYTES);
        assert!(kept.ends_with("the end"));
    }

    #[test]
    fn an_obituary_says_how_it_ended_and_what_was_said() {
        let ended = Ended { status: Some(ExitStatus::from_raw(1 << 8)), usage: None };
        let signal = ended.status.and_then(|status| status.signal());
        let stderr = "cannot set up guest memory\n".to_owned();
        let obituary = Obituary { how: describe(ended), signal, monitor: None, stderr };
        assert_eq!(obituary.to_string(), "QEMU ended with code 1, saying: cannot set up guest memory");
        assert!(!obituary.is_a_kill());
        assert!(Obituary { signal: Some(9), ..obituary }.is_a_kill());
    }
}
