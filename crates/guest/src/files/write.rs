//! Writing a file: its bytes gather under a name that nobody can guess, and take the file's name when all have arrived.
//!
//! A program sees the old file or the new one, never a part. A link that has the name is replaced like a file, and what it led to
//! stays as it is. Whatever ends a writing that is not whole, takes the gathered bytes away.

use std::fmt::Write as _;

use bytes::Bytes;
use exec_sandbox_wire::{Checksum, FileSum, FileWrite, limits};
use rustix::{
    fd::{BorrowedFd, OwnedFd},
    fs::{AtFlags, FileType, Mode, OFlags},
    io::Errno,
    rand::GetRandomFlags,
};

use super::{
    error::FileError,
    path::{Path, Place},
};

/// What a file may be asked to be: nothing that gives rights of its owner to others.
const MODE_BITS: u32 = 0o777;
const DEFAULT_MODE: u32 = 0o644;

/// Of a name that nobody can guess.
const RANDOM_BYTES: usize = 16;

/// A file that is being written.
#[derive(Debug)]
pub(super) struct Writing {
    path: Path,
    place: Place,
    mode: Mode,
    announced: Option<u64>,
    gathered: Gathered,
    size: u64,
    checksum: Checksum,
}

/// The bytes so far, in a file of their own. Dropping it removes it, unless it has got the file's name.
#[derive(Debug)]
struct Gathered {
    parent: OwnedFd,
    name: String,
    file: OwnedFd,
    kept: bool,
}

impl Writing {
    /// Begins: makes the directories on the way, and refuses what cannot come to anything.
    pub(super) fn begin(home: BorrowedFd<'_>, request: &FileWrite) -> Result<Self, FileError> {
        let path = Path::of_file(&request.path)?;
        let announced = request.size;
        if announced.is_some_and(|size| size > limits::MAX_FILE_BYTES) {
            return Err(FileError::TooLarge { path: path.shown() });
        }
        let place = path.place_made(home)?;
        check_target(&path, &place)?;
        if let Some(size) = announced {
            let free = rustix::fs::fstatvfs(home).map_err(FileError::kernel("measure the room for", path.bytes()))?;
            let free = free.f_bavail.saturating_mul(free.f_frsize);
            if size > free {
                return Err(FileError::NoRoom { path: path.shown(), size, free });
            }
        }
        let gathered = Gathered::create(&place.parent).map_err(FileError::kernel("begin to write", path.bytes()))?;
        let mode = match request.mode & MODE_BITS {
            0 => DEFAULT_MODE,
            mode => mode,
        };
        let mode = Mode::from_raw_mode(mode);
        Ok(Self { path, place, mode, announced, gathered, size: 0, checksum: Checksum::default() })
    }

    /// Adds bytes.
    pub(super) fn add(&mut self, bytes: &Bytes) -> Result<(), FileError> {
        self.size = self.size.saturating_add(bytes.len() as u64);
        if self.size > limits::MAX_FILE_BYTES {
            return Err(FileError::TooLarge { path: self.path.shown() });
        }
        self.checksum.add(bytes);
        if self.announced.is_some_and(|announced| self.size > announced) {
            return Err(self.damaged());
        }
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            match rustix::io::write(&self.gathered.file, rest) {
                Ok(written) => rest = rest.get(written..).unwrap_or_default(),
                Err(Errno::INTR) => {}
                Err(error) => return Err(FileError::kernel("write", self.path.bytes())(error)),
            }
        }
        Ok(())
    }

    /// All bytes were sent: gives the file its name if they are those.
    pub(super) fn finish(mut self, sent: FileSum) -> Result<FileSum, FileError> {
        let sum = FileSum { size: self.size, checksum: self.checksum.value() };
        if sum != sent || self.announced.is_some_and(|announced| announced != sum.size) {
            return Err(self.damaged());
        }
        check_target(&self.path, &self.place)?;
        if !self.gathered.is_in_place() {
            return Err(FileError::Taken { path: self.path.shown() });
        }
        let failed = |error| FileError::kernel("finish", self.path.bytes())(error);
        rustix::fs::fchmod(&self.gathered.file, self.mode).map_err(failed)?;
        let Place { parent, name } = &self.place;
        rustix::fs::renameat(parent, &self.gathered.name, parent, &name[..]).map_err(failed)?;
        self.gathered.kept = true;
        Ok(sum)
    }

    fn damaged(&self) -> FileError {
        FileError::Damaged { path: self.path.shown(), size: self.size, checksum: self.checksum.value() }
    }
}

impl Gathered {
    fn create(parent: &OwnedFd) -> Result<Self, Errno> {
        let mut random = [0; RANDOM_BYTES];
        rustix::rand::getrandom(&mut random[..], GetRandomFlags::empty())?;
        let mut name = ".sbx-".to_owned();
        for byte in random {
            let _ = write!(name, "{byte:02x}");
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(parent, &name, flags, Mode::RUSR | Mode::WUSR)?;
        Ok(Self { parent: parent.try_clone().map_err(|_| Errno::MFILE)?, name, file, kept: false })
    }

    /// Whether its name is still its own: who owns the directory can give it to something else.
    fn is_in_place(&self) -> bool {
        let named = rustix::fs::statat(&self.parent, &self.name, AtFlags::SYMLINK_NOFOLLOW);
        let held = rustix::fs::fstat(&self.file);
        matches!((named, held), (Ok(named), Ok(held)) if (named.st_dev, named.st_ino) == (held.st_dev, held.st_ino))
    }
}

impl Drop for Gathered {
    fn drop(&mut self) {
        if !self.kept && self.is_in_place() {
            let _ = rustix::fs::unlinkat(&self.parent, &self.name, AtFlags::empty());
        }
    }
}

/// What has the name can be replaced: nothing, a file, or a link.
fn check_target(path: &Path, place: &Place) -> Result<(), FileError> {
    let stat = match rustix::fs::statat(&place.parent, &place.name[..], AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => return Ok(()),
        other => other.map_err(FileError::kernel("look at", path.bytes()))?,
    };
    let what = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile | FileType::Symlink => return Ok(()),
        FileType::Directory => "a directory",
        _ => "no regular file",
    };
    Err(FileError::Kind { path: path.shown(), what })
}
