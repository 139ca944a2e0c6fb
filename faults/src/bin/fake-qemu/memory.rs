//! The guest's memory, as QEMU has it: a mapping of a file, for it may write to none.
#![expect(unsafe_code, reason = "a file is mapped by no safe function")]

use std::{fs::File, io, path::Path, ptr};

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// Writes `bytes` bytes that are not zero to the start of the memory at `path`.
pub(crate) fn write(path: &Path, bytes: usize) -> io::Result<()> {
    let file = File::options().read(true).write(true).open(path)?;
    if file.metadata()?.len() < bytes as u64 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let access = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: the kernel chooses a place that nothing else is in.
    let mapped = unsafe { mmap(ptr::null_mut(), bytes, access, MapFlags::SHARED, &file, 0) }?;
    // SAFETY: it is `bytes` long and may be written to, and nobody makes the file shorter.
    unsafe { ptr::write_bytes(mapped.cast::<u8>(), b'x', bytes) };
    // SAFETY: nothing refers to it any more.
    Ok(unsafe { munmap(mapped, bytes) }?)
}
