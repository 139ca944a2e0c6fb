//! Listing: what is at a path, or below it, in frames of a bounded size.
//!
//! However large a tree is, a descriptor for each level and one frame's entries are all that is held of it. Links are named and not
//! followed, so there are no loops. What vanishes while it is listed, or may not be looked into, is left out.

use exec_sandbox_wire::{FileEntries, FileEntry, FileKind, FileList, GuestMessage, limits};
use prost::Message as _;
use rustix::{
    fd::{AsFd as _, BorrowedFd, OwnedFd},
    fs::{AtFlags, Dir, FileType, OFlags, Stat},
    io::Errno,
};

use super::{Gate, error::FileError, path::Path};

/// Directories in directories that are followed: each is an open descriptor, and all transfers together must leave the agent enough of its
/// 1024. Deeper trees are listed from further below.
pub(super) const MAX_LEVELS: usize = 48;

/// How a directory is opened to be read.
pub(super) const READ_DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::NONBLOCK).union(OFlags::CLOEXEC);

const NANOS_PER_SECOND: i64 = 1_000_000_000;

/// A listing under way.
#[derive(Debug)]
pub(super) struct Listing {
    path: Path,
    depth: usize,
    /// The directories that are open, the innermost last.
    levels: Vec<Dir>,
    /// The name of the innermost, relative to the path that is listed, and the length of each one's.
    prefix: Vec<u8>,
    lengths: Vec<usize>,
    /// Did not fit into the last frame.
    left_over: Option<FileEntry>,
}

/// What came of a step.
#[derive(Debug)]
pub(super) enum Step {
    /// Entries to send: the body of a frame.
    Send(GuestMessage),
    /// The host has not granted for more.
    Wait,
    /// That was all.
    Done,
}

impl Listing {
    /// Opens what is listed.
    pub(super) fn begin(home: BorrowedFd<'_>, request: &FileList) -> Result<Self, FileError> {
        let path = Path::of_list(&request.path)?;
        let depth = usize::try_from(request.depth).unwrap_or(usize::MAX);
        let (mut levels, mut left_over) = (Vec::new(), None);
        if depth == 0 {
            let itself = path.open(home, OFlags::PATH | OFlags::NOFOLLOW, "look at")?;
            let stat = rustix::fs::fstat(itself).map_err(FileError::kernel("look at", path.bytes()))?;
            left_over = Some(entry(Vec::new(), &stat));
        } else {
            // The path itself may be a link that stays inside.
            let directory = path.open(home, READ_DIRECTORY.difference(OFlags::NOFOLLOW), "list")?;
            levels.push(Dir::new(directory).map_err(FileError::kernel("list", path.bytes()))?);
        }
        Ok(Self { path, depth, levels, prefix: Vec::new(), lengths: vec![0], left_over })
    }

    /// Gathers the next entries.
    pub(super) fn step(&mut self, gate: &Gate) -> Result<Step, FileError> {
        let room = gate.available().min(limits::ENTRIES_BYTES as usize);
        let (mut entries, mut bytes) = (Vec::new(), 0);
        while let Some(entry) = self.next_entry()? {
            let length = encoded_len(&entry);
            if bytes + length > room {
                self.left_over = Some(entry);
                break;
            }
            bytes += length;
            entries.push(entry);
        }
        if entries.is_empty() {
            return Ok(if self.left_over.is_some() { Step::Wait } else { Step::Done });
        }
        gate.take(bytes);
        Ok(Step::Send(GuestMessage::FileEntries(FileEntries { entries })))
    }

    fn next_entry(&mut self) -> Result<Option<FileEntry>, FileError> {
        if let Some(entry) = self.left_over.take() {
            return Ok(Some(entry));
        }
        while let Some(dir) = self.levels.last_mut() {
            let Some(read) = dir.read() else {
                self.leave();
                continue;
            };
            let failed = |error| FileError::kernel("list", self.path.bytes())(error);
            let read = read.map_err(failed)?;
            let name = read.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let parent = dir.fd().map_err(failed)?;
            let stat = match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
                Err(Errno::NOENT | Errno::ACCESS) => continue,
                other => other.map_err(failed)?,
            };
            let full = [&self.prefix[..], name.to_bytes()].concat();
            let entry = entry(full, &stat);
            if entry.kind() == FileKind::Directory && self.levels.len() < self.depth {
                self.enter(&entry.name, name)?;
            }
            return Ok(Some(entry));
        }
        Ok(None)
    }

    fn enter(&mut self, full: &[u8], name: &std::ffi::CStr) -> Result<(), FileError> {
        let failed = |error| FileError::kernel("list", self.path.bytes())(error);
        let Some(parent) = self.levels.last() else { return Ok(()) };
        let directory = match open_directory(parent.fd().map_err(failed)?, name) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::ACCESS) => return Ok(()),
            other => other.map_err(failed)?,
        };
        // A name that long cannot be asked for.
        if self.levels.len() >= MAX_LEVELS || full.len() >= limits::MAX_PATH_BYTES {
            return Err(FileError::Deep { path: self.path.shown() });
        }
        self.levels.push(Dir::new(directory).map_err(failed)?);
        self.prefix = [full, b"/"].concat();
        self.lengths.push(self.prefix.len());
        Ok(())
    }

    fn leave(&mut self) {
        self.levels.pop();
        self.lengths.pop();
        self.prefix.truncate(self.lengths.last().copied().unwrap_or(0));
    }
}

/// Opens a directory of a directory, which is no link.
pub(super) fn open_directory(parent: BorrowedFd<'_>, name: &std::ffi::CStr) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(parent.as_fd(), name, READ_DIRECTORY, rustix::fs::Mode::empty())
}

/// What one entry adds to a frame's body.
fn encoded_len(entry: &FileEntry) -> usize {
    let length = entry.encoded_len();
    1 + prost::length_delimiter_len(length) + length
}

fn entry(name: Vec<u8>, stat: &Stat) -> FileEntry {
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => FileKind::File,
        FileType::Directory => FileKind::Directory,
        FileType::Symlink => FileKind::Link,
        _ => FileKind::Other,
    };
    let size = match kind {
        FileKind::File => taken(stat),
        _ => 0,
    };
    let modified_unix_ns =
        stat.st_mtime.saturating_mul(NANOS_PER_SECOND).saturating_add(i64::try_from(stat.st_mtime_nsec).unwrap_or(0));
    FileEntry { name, kind: kind.into(), size, mode: stat.st_mode & 0o7777, modified_unix_ns }
}

/// Bytes of a file that are no hole. A last block is counted as far as the file goes.
fn taken(stat: &Stat) -> u64 {
    let length = u64::try_from(stat.st_size).unwrap_or(0);
    let blocks = u64::try_from(stat.st_blocks).unwrap_or(0);
    length.min(blocks.saturating_mul(512))
}
