//! Filling a draft with what was saved.

use std::{fs::File, io, os::unix::fs::FileExt as _};

use rustix::fs::SeekFrom;
use tracing::warn;

use super::draft::{Draft, RoomForTranslations, WrittenTranslations};

/// Read and written at once.
const CHUNK_BYTES: usize = 256 * 1024;

/// What is left out if it is all zeros: a page.
const PAGE_BYTES: usize = 4096;

/// Most bytes of translations: as many as the buffer has in which QEMU makes them.
pub(crate) const MAX_TRANSLATIONS_BYTES: u64 = 256 << 20;

impl Draft {
    /// Writes down the device state and a copy of the memory of a guest that stands still. Pages of zeros take no room.
    pub(crate) fn fill(self, memory: &File, state: &[u8]) -> io::Result<Self> {
        self.state().write_all_at(state, 0)?;
        copy_sparse(memory, self.ram(), memory.metadata()?.len())?;
        Ok(self)
    }
}

impl RoomForTranslations {
    /// Copies what QEMU has translated of a guest, the first `length` bytes of a file. `None`: there is nothing, or it cannot be copied,
    /// and the draft is whole without. More than [`MAX_TRANSLATIONS_BYTES`] are refused before anything is written.
    pub(crate) fn copy(&self, translated: &File, length: u64) -> io::Result<Option<WrittenTranslations>> {
        if length > MAX_TRANSLATIONS_BYTES {
            let why = format!("translations of {length} bytes are over the limit of {MAX_TRANSLATIONS_BYTES}");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        if length == 0 {
            return Ok(None);
        }
        let written = self.write(length, |to| copy_beginning(translated, to, length));
        Ok(written
            .inspect_err(|error| {
                warn!(error = error as &dyn std::error::Error, "a snapshot is made without translations");
            })
            .ok())
    }
}

/// Copies the first `length` bytes to an empty file, which has as many afterwards.
fn copy_beginning(from: &File, to: &File, length: u64) -> io::Result<()> {
    let found = from.metadata()?.len();
    if found < length {
        let why = format!("of {length} bytes there are {found}");
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, why));
    }
    to.set_len(length)?;
    copy_sparse(from, to, length)
}

/// Copies what is not zero of the first `length` bytes to a file that is all zeros.
fn copy_sparse(from: &File, to: &File, length: u64) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut at = 0;
    while let Some(start) = seek(from, SeekFrom::Data(at))?.filter(|start| *start < length) {
        let end = seek(from, SeekFrom::Hole(start))?.map_or(length, |end| end.min(length));
        at = start;
        while at < end {
            let most = usize::try_from(end - at).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES);
            let piece = &mut chunk[..most];
            from.read_exact_at(piece, at)?;
            write_pages(to, piece, at)?;
            at += most as u64;
        }
    }
    Ok(())
}

/// Writes each run of pages that are not all zeros.
fn write_pages(to: &File, piece: &[u8], at: u64) -> io::Result<()> {
    let mut run = 0..0;
    for (index, page) in piece.chunks(PAGE_BYTES).enumerate() {
        let start = index * PAGE_BYTES;
        if page.iter().any(|byte| *byte != 0) {
            run = if run.is_empty() { start } else { run.start }..start + page.len();
            continue;
        }
        write_run(to, piece, &run, at)?;
        run = 0..0;
    }
    write_run(to, piece, &run, at)
}

fn write_run(to: &File, piece: &[u8], run: &std::ops::Range<usize>, at: u64) -> io::Result<()> {
    match piece.get(run.clone()) {
        Some(bytes) if !bytes.is_empty() => to.write_all_at(bytes, at + run.start as u64),
        _ => Ok(()),
    }
}

/// The next data or hole; `None`: there is none.
fn seek(file: &File, to: SeekFrom) -> io::Result<Option<u64>> {
    match rustix::fs::seek(file, to) {
        Ok(at) => Ok(Some(at)),
        Err(rustix::io::Errno::NXIO) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[test]
    fn a_copy_has_the_same_bytes_and_takes_room_for_no_zeros() {
        let (from, to) = (tempfile::tempfile().expect("a file"), tempfile::tempfile().expect("a file"));
        let length = 4 << 20;
        for file in [&from, &to] {
            file.set_len(length).expect("it can be sized");
        }
        // A page, half of one across a chunk's end, zeros that are data, and the last byte.
        from.write_all_at(&[1; PAGE_BYTES], 5 * PAGE_BYTES as u64).expect("it is written");
        from.write_all_at(&[2; PAGE_BYTES], CHUNK_BYTES as u64 - 100).expect("it is written");
        from.write_all_at(&[0; 1 << 20], 1 << 20).expect("it is written");
        from.write_all_at(&[3], length - 1).expect("it is written");
        copy_sparse(&from, &to, length).expect("it is copied");
        let read = |file: &File| {
            let mut bytes = vec![0; 4 << 20];
            file.read_exact_at(&mut bytes, 0).expect("it is read");
            bytes
        };
        assert!(read(&from) == read(&to));
        let taken = |file: &File| file.metadata().expect("it is there").blocks() * 512;
        assert!(taken(&to) <= 8 * PAGE_BYTES as u64, "{} of {}", taken(&to), taken(&from));
    }
}
