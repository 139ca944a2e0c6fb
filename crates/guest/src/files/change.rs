//! Changes without data: making directories, moving, removing.
//!
//! All but the removal of a whole tree are one call. That one goes in steps, so that no tree keeps other transfers waiting.

use std::ffi::CString;

use exec_sandbox_wire::{Change, FileChange};
use rustix::{
    fd::{BorrowedFd, OwnedFd},
    fs::{AtFlags, Dir, FileType},
    io::Errno,
};

use super::{
    error::FileError,
    list::{MAX_LEVELS, open_directory},
    path::{self, Path, Place},
};

/// What one step removes.
const STEP_ENTRIES: usize = 256;

/// How often a directory is read again because something has come into it. A program that keeps filling it wins.
const TRIES: u8 = 8;

/// A tree that is being removed.
#[derive(Debug)]
pub(super) struct Removal {
    path: Path,
    parent: OwnedFd,
    name: CString,
    /// The directories that are open, the innermost last, each with its name in the one before it.
    levels: Vec<Level>,
}

#[derive(Debug)]
struct Level {
    dir: Dir,
    name: CString,
    tries: u8,
}

/// Makes a change; a removal, if it takes more than a moment.
pub(super) fn begin(home: BorrowedFd<'_>, request: &FileChange) -> Result<Option<Removal>, FileError> {
    match &request.change {
        None => Err(FileError::UnknownChange),
        Some(Change::MakeDirectory(path)) => path::make_directory(home, &Path::of(path)?).map(|()| None),
        Some(Change::Remove(remove)) => begin_removal(home, &Path::of(&remove.path)?, remove.recursive),
        Some(Change::Move(request)) => {
            let (from, to) = (Path::of(&request.from)?, Path::of(&request.to)?);
            let (source, target) = (from.place(home)?, to.place(home)?);
            rustix::fs::renameat(&source.parent, &source.name[..], &target.parent, &target.name[..])
                .map_err(FileError::kernel("move", from.bytes()))?;
            Ok(None)
        }
    }
}

fn begin_removal(home: BorrowedFd<'_>, path: &Path, recursive: bool) -> Result<Option<Removal>, FileError> {
    let Place { parent, name } = path.place(home)?;
    let failed = |error| FileError::kernel("remove", path.bytes())(error);
    let stat = rustix::fs::statat(&parent, &name[..], AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
    let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
    if is_directory && recursive {
        let name = CString::new(name).map_err(|_| failed(Errno::INVAL))?;
        let dir = open_directory(rustix::fd::AsFd::as_fd(&parent), &name).and_then(Dir::new).map_err(failed)?;
        let levels = vec![Level { dir, name: name.clone(), tries: 0 }];
        return Ok(Some(Removal { path: path.clone(), parent, name, levels }));
    }
    let flags = if is_directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
    rustix::fs::unlinkat(&parent, &name[..], flags).map_err(failed)?;
    Ok(None)
}

impl Removal {
    /// Removes some; whether that was all.
    pub(super) fn step(&mut self) -> Result<bool, FileError> {
        for _ in 0..STEP_ENTRIES {
            let Some(level) = self.levels.last_mut() else { return Ok(true) };
            let failed = |error| FileError::kernel("remove", self.path.bytes())(error);
            let Some(read) = level.dir.read() else {
                self.leave()?;
                continue;
            };
            let read = read.map_err(failed)?;
            let name = read.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            match rustix::fs::unlinkat(level.dir.fd().map_err(failed)?, name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(Errno::ISDIR | Errno::PERM) => self.enter(name.to_owned())?,
                Err(error) => return Err(failed(error)),
            }
        }
        Ok(self.levels.is_empty())
    }

    fn enter(&mut self, name: CString) -> Result<(), FileError> {
        let failed = |error| FileError::kernel("remove", self.path.bytes())(error);
        if self.levels.len() >= MAX_LEVELS {
            return Err(FileError::Deep { path: self.path.shown() });
        }
        let Some(level) = self.levels.last() else { return Ok(()) };
        let dir = open_directory(level.dir.fd().map_err(failed)?, &name).and_then(Dir::new).map_err(failed)?;
        self.levels.push(Level { dir, name, tries: 0 });
        Ok(())
    }

    /// Removes a directory whose entries are gone.
    fn leave(&mut self) -> Result<(), FileError> {
        let failed = |error| FileError::kernel("remove", self.path.bytes())(error);
        let Some(mut level) = self.levels.pop() else { return Ok(()) };
        let removed = match self.levels.last() {
            Some(outer) => rustix::fs::unlinkat(outer.dir.fd().map_err(failed)?, &level.name, AtFlags::REMOVEDIR),
            None => rustix::fs::unlinkat(&self.parent, &self.name, AtFlags::REMOVEDIR),
        };
        match removed {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(Errno::NOTEMPTY) if level.tries < TRIES => {
                level.tries += 1;
                level.dir.rewind();
                self.levels.push(level);
                Ok(())
            }
            Err(error) => Err(failed(error)),
        }
    }
}
