//! Memories: the directory in which a QEMU finds the memory of a guest that it is to copy.
//!
//! A QEMU that waits to be told of its guest has this directory as a descriptor since it was started, for it can be given none when it is
//! told. So each memory has a second name here from the beginning, which is the number of its inode: whoever has opened a memory and
//! proven it knows by that name that QEMU opens the same one, whatever is published, set aside or removed meanwhile. A memory whose only
//! name is the one here is nobody's. Translations have such a name, too, once they are whole.
//!
//! QEMU's user may go through the directory, and nobody else's gets as far: the one above it is this user's alone.

use std::{
    fs::{self, DirBuilder, File, Permissions},
    io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _},
    path::Path,
};

use rustix::fs::{Mode, OFlags};

/// Everybody may go through, and nobody sees what there is.
const MODE: u32 = 0o711;

/// Makes the directory, unless it is there.
pub(super) fn create(dir: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(MODE).create(dir) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        // Past the process's mask.
        created => created.and_then(|()| fs::set_permissions(dir, Permissions::from_mode(MODE))),
    }
}

/// The directory, to be passed on.
pub(super) fn open(dir: &Path) -> io::Result<File> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::open(dir, flags, Mode::empty())?.into())
}

/// Gives the memory, or the translations, at `path` its name in `dir`.
pub(super) fn add(dir: &Path, path: &Path, memory: &File) -> io::Result<()> {
    fs::hard_link(path, dir.join(name(memory)?))
}

/// The name of a memory or of translations.
pub(super) fn name(memory: &File) -> io::Result<String> {
    Ok(memory.metadata()?.ino().to_string())
}

/// Removes what has no other name any more; whoever has it open keeps it.
pub(super) fn sweep(dir: &Path) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        if entry.metadata().is_ok_and(|memory| memory.nlink() == 1) {
            let _ = fs::remove_file(entry.path());
        }
    }
}
