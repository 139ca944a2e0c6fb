//! Packing: a file to the parts of a blob, a few MiB at a time. It blocks: it is for threads that may.
//!
//! A file is read twice, once for its digest, which is the blob's name, and once for its content. If the two are not the same, the
//! blob is not finished: what changes meanwhile is nothing that can be kept.

use std::{
    fs::File,
    io::{self, Write},
    mem,
    os::unix::fs::FileExt,
};

use bytes::Bytes;
use zstd::stream::write::Encoder;

use crate::digest::Digest;

/// Bytes of a part, and the least that stores take of all but the last one. A blob may have 10 000 parts, which is 48 GiB.
pub(crate) const PART_BYTES: usize = 5 * 1024 * 1024;

/// How hard is tried. Who downloads a blob waits for it, who uploads it does not; but a level more takes half as long again for some
/// hundredths of the size.
const LEVEL: i32 = 3;

/// Bytes that are read at a time.
const CHUNK_BYTES: usize = 256 * 1024;

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Content {
    pub(crate) blake3: Digest,
    pub(crate) plain_bytes: u64,
}

/// Why a file did not become a blob.
#[derive(Debug)]
pub(crate) enum Packing {
    /// The file could not be read, or not compressed.
    Local(io::Error),
    /// It is not what it was when its digest was taken.
    Changed,
    /// Nobody wants the parts any more.
    Unwanted,
}

/// Cuts what the encoder writes into parts. Its only error is that nobody wants them.
struct Parts<F> {
    part: Vec<u8>,
    take: F,
}

/// The digest and the length of a file.
pub(crate) fn content_of(file: &File) -> io::Result<Content> {
    let mut hasher = blake3::Hasher::new();
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        match read_at(file, &mut chunk, hasher.count())? {
            [] => return Ok(Content { blake3: Digest::finish(&hasher), plain_bytes: hasher.count() }),
            read => hasher.update(read),
        };
    }
}

/// Gives the parts of the blob to `take`, which says whether it wants more. All but the last have [`PART_BYTES`].
pub(crate) fn pack(file: &File, content: &Content, take: impl FnMut(Bytes) -> bool) -> Result<(), Packing> {
    let parts = Parts { part: Vec::with_capacity(PART_BYTES), take };
    let mut encoder = Encoder::new(parts, LEVEL).map_err(Packing::Local)?;
    encoder.set_pledged_src_size(Some(content.plain_bytes)).map_err(Packing::Local)?;
    let mut hasher = blake3::Hasher::new();
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let read = read_at(file, &mut chunk, hasher.count()).map_err(Packing::Local)?;
        if read.is_empty() {
            break;
        }
        hasher.update(read);
        if hasher.count() > content.plain_bytes {
            return Err(Packing::Changed);
        }
        encoder.write_all(read).map_err(of_encoder)?;
    }
    if Digest::finish(&hasher) != content.blake3 {
        return Err(Packing::Changed);
    }
    let mut parts = encoder.finish().map_err(of_encoder)?;
    parts.pass().map_err(of_encoder)
}

fn of_encoder(error: io::Error) -> Packing {
    if error.kind() == io::ErrorKind::BrokenPipe { Packing::Unwanted } else { Packing::Local(error) }
}

impl<F: FnMut(Bytes) -> bool> Parts<F> {
    fn pass(&mut self) -> io::Result<()> {
        let part = mem::replace(&mut self.part, Vec::with_capacity(PART_BYTES));
        if (self.take)(part.into()) { Ok(()) } else { Err(io::ErrorKind::BrokenPipe.into()) }
    }
}

impl<F: FnMut(Bytes) -> bool> Write for Parts<F> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // A full part waits until it is known not to be the last.
        if self.part.len() >= PART_BYTES && !bytes.is_empty() {
            self.pass()?;
        }
        let length = bytes.len().min(PART_BYTES - self.part.len());
        self.part.extend(bytes.iter().take(length));
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What there is at `at`, at most a chunk; nothing at the end.
fn read_at<'a>(file: &File, chunk: &'a mut [u8], at: u64) -> io::Result<&'a [u8]> {
    loop {
        match file.read_at(chunk, at) {
            Ok(read) => return Ok(chunk.get(..read).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    /// Bytes that no encoder makes shorter.
    fn noise(length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        blake3::Hasher::new().finalize_xof().fill(&mut bytes);
        bytes
    }

    fn parts(file: &File, content: &Content) -> Result<Vec<Bytes>, Packing> {
        let mut parts = Vec::new();
        pack(file, content, |part| {
            parts.push(part);
            true
        })?;
        Ok(parts)
    }

    #[test]
    fn parts_are_full_but_for_the_last_and_decompress_to_the_file() {
        for length in [0, 1, 4096, PART_BYTES - 400, 2 * PART_BYTES + 1] {
            let plain = noise(length);
            let file = file(&plain);
            let content = content_of(&file).unwrap();
            assert_eq!(content, Content { blake3: Digest::of(&plain), plain_bytes: length as u64 });
            let parts = parts(&file, &content).unwrap();
            let (last, full) = parts.split_last().unwrap();
            assert!(full.iter().all(|part| part.len() == PART_BYTES));
            assert!(!last.is_empty() && last.len() <= PART_BYTES);
            assert!(zstd::decode_all(&parts.concat()[..]).unwrap() == plain, "{length}");
        }
    }

    #[test]
    fn a_file_that_changed_is_not_finished() {
        let before = content_of(&file(b"before")).unwrap();
        for now in [&b"befor3"[..], b"before and after", b"bef", b""] {
            assert!(matches!(parts(&file(now), &before), Err(Packing::Changed)), "{now:?}");
        }
    }

    #[test]
    fn nobody_is_given_what_nobody_wants() {
        let file = file(&noise(3 * PART_BYTES));
        let content = content_of(&file).unwrap();
        let mut given = 0;
        let packed = pack(&file, &content, |_| {
            given += 1;
            false
        });
        assert!(matches!(packed, Err(Packing::Unwanted)));
        assert_eq!(given, 1);
    }
}
