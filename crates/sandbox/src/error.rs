//! The one error of the public API.
//!
//! A program that fails is an outcome; only the sandbox failing is an error. [`ErrorKind`] is the retry contract: until the
//! first byte of an execution has left the host a failure is transient, after it the outcome is unknown.

use std::{borrow::Cow, fmt};

type Source = Box<dyn std::error::Error + Send + Sync + 'static>;

/// Why the sandbox could not do what was asked.
///
/// Its text says what was being done to what; the cause is the [`source`](std::error::Error::source), never pasted in.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    doing: Cow<'static, str>,
    remedy: Option<Cow<'static, str>>,
    vm_id: Option<String>,
    source: Option<Source>,
}

/// What sort of failure it was, for programs that decide what to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A number or list is out of its range.
    InvalidArgument,
    /// A setting of the VM is out of its range.
    InvalidConfig,
    /// The code cannot be run as it is.
    InvalidCode,
    /// An environment variable is not allowed.
    InvalidEnv,
    /// A package is not pinned, or the language has none.
    PackageNotAllowed,
    /// Packages cannot be installed, and trying again would not help: there is no such version, or they do not fit together. The code
    /// did not run.
    PackageInstall,
    /// Packages could not be installed now: their registry could not be reached, or the machine that installs them was lost. The code
    /// did not run.
    PackageInstallTransient,
    /// An id stands for no VM, or for more than one.
    UnknownVm,
    /// Something that must be installed is missing or too old.
    Dependency,
    /// The guest's image is not there.
    AssetNotFound,
    /// The guest's image is there, or was fetched, and is not what its manifest says.
    AssetDamaged,
    /// The guest's image could not be fetched. No code ran, so trying again is safe; it is no transient failure all the same, because
    /// what passes by itself has been tried several times already.
    AssetDownload,
    /// No memory or CPU became free, and nobody ahead in the line got any for 120 s; or there is less than was asked for. The code did
    /// not run.
    Capacity,
    /// The VM did not come up in time; the code did not run.
    BootTimeout,
    /// QEMU ended or could not be started; the code did not run.
    Vm,
    /// The process that is the VM's network ended before the VM was up; the code did not run.
    Gateway,
    /// The VM was lost after the code had been sent: it may have run.
    OutcomeUnknown,
    /// The program wrote more than is kept; what came before was streamed.
    OutputLimit,
    /// The guest refused the execution; the code did not run.
    Guest,
    /// The scheduler has been closed, or the run was called off; code that was running has been ended.
    Closed,
    /// The path of a file cannot be one in the guest's home directory.
    InvalidPath,
    /// There is no such file in the guest.
    FileNotFound,
    /// The guest could not do what was asked of its files; no file has changed, unless the VM was lost meanwhile.
    File,
    /// The session is over, and its VM with it.
    SessionClosed,
    /// The VM's process could not be confirmed dead.
    Teardown,
    /// The host refused something that the sandbox needs.
    Host,
}

impl ErrorKind {
    /// Whether the same request may be sent again without fear of running the code twice.
    #[must_use]
    pub fn is_transient(self) -> bool {
        matches!(self, Self::Capacity | Self::BootTimeout | Self::Vm | Self::Gateway | Self::PackageInstallTransient)
    }

    /// Whether the request itself is at fault, so that nothing was tried.
    #[must_use]
    pub fn is_invalid_input(self) -> bool {
        matches!(
            self,
            Self::InvalidArgument
                | Self::InvalidPath
                | Self::InvalidConfig
                | Self::InvalidCode
                | Self::InvalidEnv
                | Self::PackageNotAllowed
                | Self::UnknownVm
        )
    }

    /// The stable name in logs and JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::InvalidArgument => "invalid_argument",
            Self::InvalidConfig => "invalid_config",
            Self::InvalidCode => "invalid_code",
            Self::InvalidEnv => "invalid_env",
            Self::PackageNotAllowed => "package_not_allowed",
            Self::PackageInstall => "package_install",
            Self::PackageInstallTransient => "package_install_transient",
            Self::UnknownVm => "unknown_vm",
            Self::Dependency => "dependency",
            Self::AssetNotFound => "asset_not_found",
            Self::AssetDamaged => "asset_damaged",
            Self::AssetDownload => "asset_download",
            Self::Capacity => "capacity",
            Self::BootTimeout => "boot_timeout",
            Self::Vm => "vm",
            Self::Gateway => "gateway",
            Self::OutcomeUnknown => "outcome_unknown",
            Self::OutputLimit => "output_limit",
            Self::Guest => "guest",
            Self::Closed => "closed",
            Self::InvalidPath => "invalid_path",
            Self::FileNotFound => "file_not_found",
            Self::File => "file",
            Self::SessionClosed => "session_closed",
            Self::Teardown => "teardown",
            Self::Host => "host",
        }
    }
}

impl Error {
    /// What sort of failure it was.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// What to do about it, if there is something to do.
    #[must_use]
    pub fn remedy(&self) -> Option<&str> {
        self.remedy.as_deref()
    }

    /// The VM it happened to, if there was one.
    #[must_use]
    pub fn vm_id(&self) -> Option<&str> {
        self.vm_id.as_deref()
    }

    pub(crate) fn new(kind: ErrorKind, doing: impl Into<Cow<'static, str>>) -> Self {
        Self { kind, doing: doing.into(), remedy: None, vm_id: None, source: None }
    }

    pub(crate) fn because(mut self, source: impl Into<Source>) -> Self {
        self.source = Some(source.into());
        self
    }

    pub(crate) fn remedied_by(mut self, remedy: impl Into<Cow<'static, str>>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }

    pub(crate) fn on_vm(mut self, vm_id: &str) -> Self {
        self.vm_id.get_or_insert_with(|| vm_id.to_owned());
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.doing)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}
