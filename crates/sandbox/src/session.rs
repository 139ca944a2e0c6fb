//! Sessions: one VM kept for many executions, which share what the interpreter holds, and for files.
//!
//! A session ends with its VM and says why. What ends it: its owner, an execution that ended with 137 (the machine it leaves behind is
//! not to be trusted), a call that was dropped, idleness, or the loss of the VM.

use std::{
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::mpsc,
};

use crate::{
    Error, ErrorKind, ExecRequest, Execution, Exit, ExposedPort, FileInfo, Language, Outcome, Output, QemuVm,
    SchedulerConfig, VmSpec, WriteOptions,
};

/// How long a session may be idle at least, and at most.
const IDLE_SECONDS: std::ops::RangeInclusive<u64> = 10..=3600;

/// What kills a process for good, or a whole machine's memory.
const KILLED: i32 = 137;

/// A session, as the caller wants it.
#[derive(Clone, Debug)]
pub struct SessionRequest {
    /// Its VM.
    pub vm: VmSpec,
    /// After so long without an operation it ends: 10 to 3600 s. `None`: the default of the configuration.
    pub idle_timeout: Option<Duration>,
}

/// A VM that is kept. Dropped, it is torn down in the background; [`close`](Self::close) waits for that.
///
/// Executions follow each other; files go in and out beside them. Every method fails with [`ErrorKind::SessionClosed`] once the
/// session is over.
#[derive(Debug)]
pub struct Session {
    vm: QemuVm,
    executions: AtomicU64,
}

impl SessionRequest {
    /// A session of `language` with the defaults for all else.
    #[must_use]
    pub fn new(language: Language) -> Self {
        Self { vm: VmSpec::new(language), idle_timeout: None }
    }

    pub(crate) fn idle_timeout(&self, config: &SchedulerConfig) -> Result<Duration, Error> {
        let timeout = self.idle_timeout.unwrap_or(config.session_idle_timeout);
        check_idle_timeout(timeout)?;
        Ok(timeout)
    }
}

pub(crate) fn check_idle_timeout(timeout: Duration) -> Result<(), Error> {
    let (least, most) = (Duration::from_secs(*IDLE_SECONDS.start()), Duration::from_secs(*IDLE_SECONDS.end()));
    if (least..=most).contains(&timeout) {
        return Ok(());
    }
    let message = format!(
        "session_idle_timeout_seconds must be between {} and {}, not {}",
        IDLE_SECONDS.start(),
        IDLE_SECONDS.end(),
        timeout.as_secs_f64()
    );
    Err(Error::new(ErrorKind::InvalidArgument, message))
}

impl Session {
    pub(crate) fn of(vm: QemuVm) -> Self {
        Self { vm, executions: AtomicU64::new(0) }
    }

    /// Runs one program. Dropping the future ends the session.
    ///
    /// # Errors
    /// The sandbox failed, not the program: see [`ErrorKind`]. [`ErrorKind::SessionClosed`] once it is over. An invalid request
    /// leaves it as it was.
    pub async fn exec(&self, request: ExecRequest) -> Result<Outcome, Error> {
        self.settle(self.begin(request).await?, None).await
    }

    /// Like [`exec`](Self::exec), and sends what the program writes as it arrives. A slow receiver slows the program down; one that
    /// is dropped does not stop it.
    ///
    /// # Errors
    /// As for [`exec`](Self::exec).
    pub async fn exec_streaming(&self, request: ExecRequest, output: mpsc::Sender<Output>) -> Result<Outcome, Error> {
        self.settle(self.begin(request).await?, Some(output)).await
    }

    /// Begins an execution that can be signalled and called off while it runs; it waits for its turn behind those before it.
    ///
    /// # Errors
    /// As for [`exec`](Self::exec).
    pub async fn begin(&self, request: ExecRequest) -> Result<Execution<'_>, Error> {
        let execution = self.told(self.open()?.begin(request).await)?;
        self.executions.fetch_add(1, Ordering::Relaxed);
        Ok(execution)
    }

    /// The outcome of an execution of this session, whose end may be the session's.
    ///
    /// # Errors
    /// As for [`exec`](Self::exec).
    pub async fn settle(
        &self,
        execution: Execution<'_>,
        output: Option<mpsc::Sender<Output>>,
    ) -> Result<Outcome, Error> {
        let outcome = self.told(execution.outcome(output).await)?;
        if outcome.exit.code() == KILLED && outcome.exit != Exit::TimedOut {
            self.vm.end_because("an execution ended with 137").await?;
        }
        Ok(outcome)
    }

    /// Executions that were sent so far.
    #[must_use]
    pub fn exec_count(&self) -> u64 {
        self.executions.load(Ordering::Relaxed)
    }

    /// Whether it is over.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.vm.ended_because().is_some()
    }

    /// Ends it; returns when its VM is confirmed dead. May be called again.
    ///
    /// # Errors
    /// [`ErrorKind::Teardown`]: death is not confirmed yet. The owner keeps trying.
    pub async fn close(&self) -> Result<(), Error> {
        self.vm.end_because("it was closed").await
    }

    /// The VM, to look at: its id, its processes, its channel.
    #[must_use]
    pub fn vm(&self) -> &QemuVm {
        &self.vm
    }

    /// Its VM's name.
    #[must_use]
    pub fn vm_id(&self) -> &str {
        self.vm.vm_id()
    }

    /// Its ports that are reached from the host. They are open since before its VM was started.
    #[must_use]
    pub fn exposed_ports(&self) -> &[ExposedPort] {
        self.vm.exposed_ports()
    }

    /// The language of its executions.
    #[must_use]
    pub fn language(&self) -> Language {
        self.vm.language()
    }

    /// [`QemuVm::ping`].
    ///
    /// # Errors
    /// As there.
    pub async fn ping(&self) -> Result<Duration, Error> {
        self.told(self.open()?.ping().await)
    }

    /// [`QemuVm::write_file`].
    ///
    /// # Errors
    /// As there.
    pub async fn write_file(
        &self,
        path: impl AsRef<Path>,
        content: impl AsyncRead + Unpin,
        options: WriteOptions,
    ) -> Result<u64, Error> {
        self.told(self.open()?.write_file(path, content, options).await)
    }

    /// [`QemuVm::read_file`].
    ///
    /// # Errors
    /// As there.
    pub async fn read_file(&self, path: impl AsRef<Path>, destination: impl AsyncWrite + Unpin) -> Result<u64, Error> {
        self.told(self.open()?.read_file(path, destination).await)
    }

    /// [`QemuVm::list_files`].
    ///
    /// # Errors
    /// As there.
    pub async fn list_files(&self, path: impl AsRef<Path>, depth: u32) -> Result<Vec<FileInfo>, Error> {
        self.told(self.open()?.list_files(path, depth).await)
    }

    /// [`QemuVm::stat`].
    ///
    /// # Errors
    /// As there.
    pub async fn stat(&self, path: impl AsRef<Path>) -> Result<FileInfo, Error> {
        self.told(self.open()?.stat(path).await)
    }

    /// [`QemuVm::make_dir`].
    ///
    /// # Errors
    /// As there.
    pub async fn make_dir(&self, path: impl AsRef<Path>) -> Result<(), Error> {
        self.told(self.open()?.make_dir(path).await)
    }

    /// [`QemuVm::remove_file`].
    ///
    /// # Errors
    /// As there.
    pub async fn remove_file(&self, path: impl AsRef<Path>, recursive: bool) -> Result<(), Error> {
        self.told(self.open()?.remove_file(path, recursive).await)
    }

    /// [`QemuVm::rename`].
    ///
    /// # Errors
    /// As there.
    pub async fn rename(&self, from: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<(), Error> {
        self.told(self.open()?.rename(from, to).await)
    }

    /// Why the session is over, in words that follow "the session is closed: ". `None`: it is not.
    ///
    /// It is known as soon as the end has begun, and stays the first reason: later ones change nothing.
    #[must_use]
    pub fn ended_because(&self) -> Option<&'static str> {
        self.vm.ended_because()
    }

    /// The VM, if the session is not over.
    fn open(&self) -> Result<&QemuVm, Error> {
        match self.vm.ended_because() {
            None => Ok(&self.vm),
            Some(why) => Err(self.over(why)),
        }
    }

    /// What a call came to. If the session ended before the VM got to it, that is what its caller hears; the loss of a VM is told
    /// as what it is, for then the call may be tried again elsewhere.
    fn told<T>(&self, result: Result<T, Error>) -> Result<T, Error> {
        result.map_err(|error| match self.vm.ended_because() {
            Some(why) if error.kind() == ErrorKind::Vm && !self.vm.is_lost() => self.over(why),
            _ => error,
        })
    }

    fn over(&self, why: &str) -> Error {
        Error::new(ErrorKind::SessionClosed, format!("the session is closed: {why}")).on_vm(self.vm.vm_id())
    }
}
