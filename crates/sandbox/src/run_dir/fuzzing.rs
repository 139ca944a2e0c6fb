//! What another process has written down in a run directory, for the fuzz targets.

use std::{
    fs, io,
    os::fd::{AsRawFd as _, OwnedFd},
    path::PathBuf,
};

use rustix::fs::MemfdFlags;

use super::{ChildRecord, Record};

/// Reads a record and a list of children. Panics if what is read of either is another when it is written and read again.
///
/// # Panics
/// See above.
pub fn run_directory(record: &[u8], children: &[u8]) {
    let (_file, path) = file(record).expect("memory is free");
    if let Ok(record) = Record::read(&path) {
        let (_file, path) = file(&serde_json::to_vec(&record).expect("it is data")).expect("memory is free");
        assert_eq!(Record::read(&path).expect("it was written by us"), record);
    }
    let (_file, path) = file(children).expect("memory is free");
    let Ok(children) = ChildRecord::read_all(&path) else { return };
    for child in children {
        let (_file, path) = file(b"").expect("memory is free");
        child.append(&path).expect("it can be written");
        child.append(&path).expect("it can be written");
        let again = ChildRecord::read_all(&path).expect("it was written by us");
        assert_eq!(again, [child.clone(), child]);
    }
}

/// A file that is nowhere but in memory, and a path to it.
fn file(content: &[u8]) -> io::Result<(OwnedFd, PathBuf)> {
    let file = rustix::fs::memfd_create("fuzzing", MemfdFlags::CLOEXEC)?;
    let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    fs::write(&path, content)?;
    Ok((file, path))
}
