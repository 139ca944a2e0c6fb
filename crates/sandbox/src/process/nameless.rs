//! Files without a name: what a child is handed that lies nowhere.

use std::{
    fs::File,
    io::{self, Seek as _, Write as _},
    os::fd::OwnedFd,
};

use rustix::fs::{MemfdFlags, memfd_create};

/// A file that holds `bytes`, to be read from its beginning. `called` is what lists of open files call it.
pub(crate) fn nameless_file(called: &str, bytes: &[u8]) -> io::Result<OwnedFd> {
    let mut file = File::from(memfd_create(called, MemfdFlags::CLOEXEC)?);
    file.write_all(bytes)?;
    file.rewind()?;
    Ok(file.into())
}
