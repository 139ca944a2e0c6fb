//! Why a file operation comes to nothing, and how that is said to the host.

use exec_sandbox_wire::{GuestMessage, Refusal, Refused, limits};
use rustix::io::Errno;

use crate::kmsg;

/// What is shown of a path. A detail is for people, and has a limit.
const SHOWN_BYTES: usize = 1024;

/// Why a file operation comes to nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum FileError {
    /// The path is none that a request may have.
    #[error("{path} is not a path below the home directory: {why}")]
    Path {
        /// Which.
        path: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// It leads out of the home directory.
    #[error("{path} leads out of the home directory")]
    Outside {
        /// Which.
        path: String,
    },
    /// It is not of the kind that the operation is for.
    #[error("{path} is {what}")]
    Kind {
        /// Which.
        path: String,
        /// What it is.
        what: &'static str,
    },
    /// It has, or would have, more bytes than the limit.
    #[error("{path} has more than {max} bytes", max = limits::MAX_FILE_BYTES)]
    TooLarge {
        /// Which.
        path: String,
    },
    /// It would not fit.
    #[error("{path} would have {size} bytes, and {free} are free")]
    NoRoom {
        /// Which.
        path: String,
        /// What was announced.
        size: u64,
        /// What there is.
        free: u64,
    },
    /// Something is there.
    #[error("{path} exists and is no directory")]
    Exists {
        /// Which.
        path: String,
    },
    /// What arrived is not what was sent.
    #[error("{path} arrived with {size} bytes and checksum {checksum:016x}, which are not those that were sent")]
    Damaged {
        /// Which.
        path: String,
        /// What arrived.
        size: u64,
        /// Of what arrived.
        checksum: u64,
    },
    /// What was written is not there any more.
    #[error("{path} was taken away while it was written")]
    Taken {
        /// Which.
        path: String,
    },
    /// Directories in directories, beyond what is followed.
    #[error("{path} has directories more than {max} deep", max = super::list::MAX_LEVELS)]
    Deep {
        /// Which.
        path: String,
    },
    /// The kernel refuses a step.
    #[error("cannot {doing} {path}")]
    Kernel {
        /// The step.
        doing: &'static str,
        /// Of what.
        path: String,
        source: Errno,
    },
    /// The request asks for a change that this agent does not know.
    #[error("the change is none that this agent knows")]
    UnknownChange,
    /// The host called it off.
    #[error("the host called it off")]
    Cancelled,
}

impl FileError {
    /// The kernel's refusal of a step.
    pub(super) fn kernel(doing: &'static str, path: &[u8]) -> impl FnOnce(Errno) -> Self {
        move |source| match source {
            // What openat2 says of a path that leaves the directory it is beneath.
            Errno::XDEV => Self::Outside { path: shown(path) },
            source => Self::Kernel { doing, path: shown(path), source },
        }
    }

    /// The end to be said to the host.
    pub(super) fn refusal(&self) -> GuestMessage {
        let mut detail = kmsg::chain(self);
        detail.truncate(detail.floor_char_boundary(limits::MAX_DETAIL_BYTES));
        GuestMessage::Refused(Refused { reason: self.reason().into(), detail })
    }

    pub(super) fn reason(&self) -> Refusal {
        match self {
            Self::Path { .. } => Refusal::BadRequest,
            Self::Outside { .. } => Refusal::NotAllowed,
            Self::Kind { .. } => Refusal::WrongKind,
            Self::TooLarge { .. } => Refusal::TooLarge,
            Self::NoRoom { .. } => Refusal::NoSpace,
            Self::Exists { .. } => Refusal::Exists,
            Self::Damaged { .. } => Refusal::Damaged,
            Self::Taken { .. } => Refusal::NotFound,
            Self::Deep { .. } => Refusal::Failed,
            Self::Kernel { source, .. } => reason_of(*source),
            Self::UnknownChange => Refusal::UnknownOperation,
            Self::Cancelled => Refusal::Cancelled,
        }
    }
}

/// A path as people are shown it, whatever bytes it has.
pub(super) fn shown(path: &[u8]) -> String {
    let text = String::from_utf8_lossy(path.get(..SHOWN_BYTES).unwrap_or(path));
    let text: String = text.chars().map(|c| if c.is_control() { '?' } else { c }).collect();
    if text.is_empty() { "the home directory".to_owned() } else { text }
}

fn reason_of(errno: Errno) -> Refusal {
    match errno {
        Errno::NOENT => Refusal::NotFound,
        // A loop of links, or a link of the kernel's own, leads nowhere that is allowed.
        Errno::ACCESS | Errno::PERM | Errno::LOOP | Errno::ROFS => Refusal::NotAllowed,
        // A FIFO or socket that nobody holds is refused by open itself.
        Errno::NOTDIR | Errno::ISDIR | Errno::NXIO | Errno::NODEV => Refusal::WrongKind,
        Errno::FBIG => Refusal::TooLarge,
        Errno::NOSPC | Errno::DQUOT => Refusal::NoSpace,
        Errno::EXIST => Refusal::Exists,
        Errno::NOTEMPTY => Refusal::NotEmpty,
        Errno::INVAL | Errno::NAMETOOLONG => Refusal::BadRequest,
        _ => Refusal::Failed,
    }
}
