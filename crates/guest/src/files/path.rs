//! Paths: what a request may name, and how it is reached without leaving the home directory.
//!
//! The bytes are the host's, and the tree is a hostile program's, which may change it at any moment. So the kernel walks each path from the
//! home's descriptor and refuses one that leaves it, and what is found is used through its descriptor. What acts on a name acts on
//! one name in a directory that was reached so.

use exec_sandbox_wire::limits;
use rustix::{
    fd::{BorrowedFd, OwnedFd},
    fs::{Mode, OFlags, ResolveFlags},
    io::Errno,
};

use super::error::{FileError, shown};

/// How directories on the way are made.
const DIRECTORY_MODE: Mode = Mode::from_raw_mode(0o755);

/// The kernel asks to try again when something is moved while it walks over `..`; a program that always does so is given up on.
const TRIES: usize = 16;

/// A path whose bytes were checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Path(Vec<u8>);

/// One name in a directory.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) parent: OwnedFd,
    pub(super) name: Vec<u8>,
}

impl Path {
    /// Checks what a request names. Slashes at its end say nothing, and are taken off.
    pub(super) fn of(bytes: &[u8]) -> Result<Self, FileError> {
        let wrong = |why| FileError::Path { path: shown(bytes), why };
        if bytes.is_empty() {
            return Err(wrong("it is empty"));
        }
        if bytes.len() > limits::MAX_PATH_BYTES {
            return Err(wrong("it is too long"));
        }
        if bytes.starts_with(b"/") {
            return Err(wrong("it is absolute"));
        }
        if bytes.iter().any(u8::is_ascii_control) {
            return Err(wrong("it has a control character"));
        }
        if bytes.split(|byte| *byte == b'/').any(|name| name.len() > limits::MAX_NAME_BYTES) {
            return Err(wrong("a name in it is too long"));
        }
        let end = bytes.iter().rposition(|byte| *byte != b'/').map_or(0, |last| last + 1);
        Ok(Self(bytes.get(..end).unwrap_or_default().to_vec()))
    }

    /// The same for a file to be written, whose path does not end as a directory's.
    pub(super) fn of_file(bytes: &[u8]) -> Result<Self, FileError> {
        let path = Self::of(bytes)?;
        if bytes.ends_with(b"/") {
            return Err(FileError::Kind { path: shown(bytes), what: "the path of a directory" });
        }
        Ok(path)
    }

    /// The home directory itself, or a path as any other.
    pub(super) fn of_list(bytes: &[u8]) -> Result<Self, FileError> {
        if bytes.is_empty() { Ok(Self(b".".to_vec())) } else { Self::of(bytes) }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// As people are shown it.
    pub(super) fn shown(&self) -> String {
        shown(&self.0)
    }

    /// Opens what is there. `doing` is for people.
    pub(super) fn open(&self, home: BorrowedFd<'_>, flags: OFlags, doing: &'static str) -> Result<OwnedFd, FileError> {
        beneath(home, &self.0, flags).map_err(FileError::kernel(doing, &self.0))
    }

    /// The name that the path ends with, in its directory.
    pub(super) fn place(&self, home: BorrowedFd<'_>) -> Result<Place, FileError> {
        let (parent, name) = self.split()?;
        let parent = beneath(home, parent, DIRECTORY).map_err(FileError::kernel("reach the directory of", &self.0))?;
        Ok(Place { parent, name: name.to_vec() })
    }

    /// The same, making the directories on the way.
    pub(super) fn place_made(&self, home: BorrowedFd<'_>) -> Result<Place, FileError> {
        let (parent, name) = self.split()?;
        let parent = match beneath(home, parent, DIRECTORY) {
            Err(Errno::NOENT) => make_all(home, parent),
            other => other,
        };
        let parent = parent.map_err(FileError::kernel("make the directory of", &self.0))?;
        Ok(Place { parent, name: name.to_vec() })
    }

    fn split(&self) -> Result<(&[u8], &[u8]), FileError> {
        let (parent, name) = match self.0.iter().rposition(|byte| *byte == b'/') {
            Some(at) => (self.0.get(..at).unwrap_or_default(), self.0.get(at + 1..).unwrap_or_default()),
            None => (&b"."[..], &self.0[..]),
        };
        if matches!(name, b"." | b"..") {
            return Err(FileError::Path { path: self.shown(), why: "it ends with no name" });
        }
        Ok((parent, name))
    }
}

/// How a directory is opened that is only passed through.
const DIRECTORY: OFlags = OFlags::PATH.union(OFlags::DIRECTORY);

fn beneath(home: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    for _ in 0..TRIES {
        match rustix::fs::openat2(home, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            other => return other,
        }
    }
    Err(Errno::BUSY)
}

/// Makes each directory of `path` that is missing.
fn make_all(home: BorrowedFd<'_>, path: &[u8]) -> Result<OwnedFd, Errno> {
    let mut parent = beneath(home, b".", DIRECTORY)?;
    let ends = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at).chain([path.len()]);
    let mut begin = 0;
    for end in ends {
        let name = path.get(begin..end).unwrap_or_default();
        begin = end + 1;
        if name.is_empty() {
            continue;
        }
        let so_far = path.get(..end).unwrap_or_default();
        parent = match beneath(home, so_far, DIRECTORY) {
            Err(Errno::NOENT) => {
                match rustix::fs::mkdirat(&parent, name, DIRECTORY_MODE) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(error) => return Err(error),
                }
                beneath(home, so_far, DIRECTORY)?
            }
            other => other?,
        };
    }
    Ok(parent)
}

/// Makes the directory that the path names, and those on the way.
pub(super) fn make_directory(home: BorrowedFd<'_>, path: &Path) -> Result<(), FileError> {
    let is_directory = || beneath(home, &path.0, DIRECTORY);
    if is_directory().is_ok() {
        return Ok(());
    }
    let Place { parent, name } = path.place_made(home)?;
    match rustix::fs::mkdirat(&parent, &name[..], DIRECTORY_MODE) {
        // Another may have made it meanwhile.
        Err(Errno::EXIST) if is_directory().is_ok() => Ok(()),
        Err(Errno::EXIST) => Err(FileError::Exists { path: path.shown() }),
        other => other.map_err(FileError::kernel("make", &path.0)),
    }
}
