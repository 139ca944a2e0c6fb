//! Reading a file: chunks of it, as far as the host has granted.
//!
//! A program may write to it meanwhile. It ends where the kernel says so, and what was sent is what the closing sum tells.

use bytes::Bytes;
use exec_sandbox_wire::{Checksum, FileRead, FileSum, limits};
use rustix::{
    buffer::spare_capacity,
    fd::{BorrowedFd, OwnedFd},
    fs::{FileType, OFlags},
    io::Errno,
};

use super::{Gate, error::FileError, path::Path};

const CHUNK_BYTES: usize = limits::CHUNK_BYTES as usize;

/// A file that is being read.
#[derive(Debug)]
pub(super) struct Reading {
    path: Path,
    file: OwnedFd,
    size: u64,
    checksum: Checksum,
}

/// What came of a step.
#[derive(Debug)]
pub(super) enum Step {
    /// Bytes to send.
    Send(Bytes),
    /// The host has not granted for more.
    Wait,
    /// That was all.
    Done(FileSum),
}

impl Reading {
    /// Opens it, and refuses what is no file of a size that can be read.
    pub(super) fn begin(home: BorrowedFd<'_>, request: &FileRead) -> Result<Self, FileError> {
        let path = Path::of(&request.path)?;
        let file = path.open(home, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY, "open")?;
        let stat = rustix::fs::fstat(&file).map_err(FileError::kernel("look at", path.bytes()))?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => {}
            FileType::Directory => return Err(FileError::Kind { path: path.shown(), what: "a directory" }),
            _ => return Err(FileError::Kind { path: path.shown(), what: "no regular file" }),
        }
        if u64::try_from(stat.st_size).map_or(true, |size| size > limits::MAX_FILE_BYTES) {
            return Err(FileError::TooLarge { path: path.shown() });
        }
        Ok(Self { path, file, size: 0, checksum: Checksum::default() })
    }

    /// Reads the next chunk.
    pub(super) fn step(&mut self, gate: &Gate) -> Result<Step, FileError> {
        let allowed = gate.available().min(CHUNK_BYTES);
        if allowed == 0 {
            return Ok(Step::Wait);
        }
        let mut chunk = Vec::with_capacity(allowed);
        loop {
            match rustix::io::read(&self.file, spare_capacity(&mut chunk)) {
                Ok(_) => break,
                Err(Errno::INTR) => {}
                Err(error) => return Err(FileError::kernel("read", self.path.bytes())(error)),
            }
        }
        if chunk.is_empty() {
            return Ok(Step::Done(FileSum { size: self.size, checksum: self.checksum.value() }));
        }
        self.size = self.size.saturating_add(chunk.len() as u64);
        if self.size > limits::MAX_FILE_BYTES {
            return Err(FileError::TooLarge { path: self.path.shown() });
        }
        gate.take(chunk.len());
        self.checksum.add(&chunk);
        Ok(Step::Send(chunk.into()))
    }
}
