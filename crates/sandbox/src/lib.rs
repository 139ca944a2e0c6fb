//! Runs untrusted Python, JavaScript and shell code, each execution in a QEMU microVM of its own.
//!
//! ```no_run
//! use exec_sandbox::{Language, RunRequest, Scheduler, SchedulerConfig};
//!
//! # async fn example() -> Result<(), exec_sandbox::Error> {
//! let scheduler = Scheduler::start(SchedulerConfig::default()).await?;
//! let outcome = scheduler.run(RunRequest::new(Language::Python, "print(6 * 7)")).await?;
//! assert_eq!(&outcome.stdout[..], b"42\n");
//! scheduler.close().await
//! # }
//! ```
//!
//! A program that fails is an [`Outcome`]; an [`Error`] means that the sandbox failed, and its [`ErrorKind`] says whether the
//! program may have run. The floors, from the door down: requests are checked (`request`), admitted (`admission`) and given to
//! a VM (`vm`), which one task owns until its processes (`process`) and files (`run_dir`) are gone.

mod accel;
mod admission;
pub mod assets;
pub mod cache;
mod cache_dir;
mod config;
pub mod doctor;
mod error;
mod fingerprint;
#[cfg(fuzzing)]
pub mod fuzzing;
mod host;
mod ids;
mod images;
pub mod inventory;
mod key_lock;
mod language;
mod layers;
mod maker;
mod manager;
mod network;
mod notes;
mod outcome;
mod paths;
mod pool;
pub mod posture;
mod private_dir;
mod process;
mod qemu_program;
mod request;
mod run_dir;
mod scheduler;
mod session;
mod shared;
mod snapshot;
mod vm;

pub use accel::{AccelRequest, UnknownAccelerator};
pub use config::SchedulerConfig;
pub use error::{Error, ErrorKind};
pub use exec_sandbox_gateway::policy::{Cidr, CidrError, Refusal, Refusals};
pub use exec_sandbox_remote as remote;
pub use images::{ImageInfo, PrunedImages, images, prune_images};
pub use language::{Language, UnknownLanguage};
pub use manager::VmManager;
pub use network::{NotAResolver, parse_resolver};
pub use outcome::{Exit, NetworkUsage, Origin, Outcome, Output, Timing, Usage};
pub use process::{Process, ProcessUsage};
pub use request::{
    ExecRequest, ExposedPort, MAX_CODE_CHARS, MAX_TIMEOUT, MIN_MEMORY_MIB, NetworkPolicy, PortMapping, Protocol,
    RunRequest, UnknownProtocol, VmSpec,
};
pub use scheduler::{Facts, Scheduler};
pub use session::{Session, SessionRequest};
pub use vm::{
    BootTiming, Channel, Control, Ending, Execution, FileInfo, FileType, MAX_FILE_BYTES, MAX_LISTED_ENTRIES, QemuVm,
    WriteOptions,
};
