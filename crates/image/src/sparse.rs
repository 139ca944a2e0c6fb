//! Digests of sparse files, such as a guest's memory: what was never written to is not read.
//!
//! The file is cut into chunks of 64 KiB. Chunks of zeros are left out, whether they are holes or were written, so the digest is a
//! function of the content alone and not of how a file system stores it. It stands for the file's length, which chunks have another
//! content than zeros, and that content.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::SeekFrom;
use rustix::io::Errno;

use crate::digest::{Digest, Hashing, KeyBuilder};

/// What is left out if it is zero: as much as file systems keep in one piece, and enough for BLAKE3's wide lanes.
const CHUNK_BYTES: usize = 64 * 1024;

/// Read size: small enough to stay in a cache.
const READ_BYTES: usize = 4 * CHUNK_BYTES;

static ZEROS: [u8; CHUNK_BYTES] = [0; CHUNK_BYTES];

impl Digest {
    /// The digest of a file's length and content, and the length. Holes cost nothing. The file's position is moved.
    ///
    /// It is another digest than that of [`Digest::of_file`].
    ///
    /// # Errors
    /// Whatever reading answers. A file that becomes shorter meanwhile is one.
    pub fn of_sparse_file(file: &File) -> io::Result<(Self, u64)> {
        let length = file.metadata()?.len();
        let (mut places, mut content) = (Hashing::default(), Hashing::default());
        let mut buffer = vec![0; READ_BYTES];
        let mut at = 0;
        while let Some((start, end)) = next_data(file, at, length)? {
            at = start;
            while at < end {
                let piece = usize::try_from(end - at).unwrap_or(READ_BYTES).min(READ_BYTES);
                let piece = &mut buffer[..piece];
                file.read_exact_at(piece, at)?;
                for chunk in piece.chunks(CHUNK_BYTES) {
                    if *chunk != ZEROS[..chunk.len()] {
                        places.update(&at.to_le_bytes());
                        content.update(chunk);
                    }
                    at += chunk.len() as u64;
                }
            }
        }
        let digest = KeyBuilder::new("sparse file v1")
            .with("length", &length.to_le_bytes())
            .with("places", places.digest().to_string().as_bytes())
            .with("content", content.digest().to_string().as_bytes());
        Ok((digest.finish(), length))
    }
}

/// The next run of whole chunks in which there may be data, from the chunk at `at` on: its start and its end.
fn next_data(file: &File, at: u64, length: u64) -> io::Result<Option<(u64, u64)>> {
    if at >= length {
        return Ok(None);
    }
    let data = match rustix::fs::seek(file, SeekFrom::Data(at)) {
        Ok(data) => data,
        Err(Errno::NXIO) => return Ok(None),
        // A file system that does not tell: all of it is read.
        Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(Some((at, length))),
        Err(error) => return Err(error.into()),
    };
    let hole = rustix::fs::seek(file, SeekFrom::Hole(data))?;
    let chunk = CHUNK_BYTES as u64;
    Ok(Some((data - data % chunk, hole.next_multiple_of(chunk).min(length))))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// A file of `length` bytes in which only these places have been written.
    fn file(length: u64, writes: &[(u64, &[u8])]) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(length).unwrap();
        for (at, bytes) in writes {
            file.write_all_at(bytes, *at).unwrap();
        }
        file
    }

    fn digest(length: u64, writes: &[(u64, &[u8])]) -> Digest {
        let (digest, found) = Digest::of_sparse_file(&file(length, writes)).unwrap();
        assert_eq!(found, length);
        digest
    }

    const MIB: u64 = 1 << 20;

    #[test]
    fn zeros_that_were_written_are_as_good_as_holes() {
        let written = vec![0; 3 << 20];
        assert_eq!(digest(3 * MIB, &[(0, &written), (MIB, b"x")]), digest(3 * MIB, &[(MIB, b"x")]));
        assert_eq!(digest(3 * MIB, &[(0, &written)]), digest(3 * MIB, &[]));
    }

    #[test]
    fn another_length_place_or_content_is_another_digest() {
        let all = [
            digest(0, &[]),
            digest(MIB, &[]),
            digest(MIB + 1, &[]),
            digest(MIB + 1, &[(MIB, b"x")]),
            digest(MIB, &[(0, b"x")]),
            digest(MIB, &[(1, b"x")]),
            digest(MIB, &[(65536, b"x")]),
            digest(MIB, &[(0, b"x"), (65536, b"x")]),
            digest(MIB, &[(MIB - 1, b"x")]),
            digest(MIB, &[(MIB - 1, b"y")]),
        ];
        for (at, one) in all.iter().enumerate() {
            assert!(!all[..at].contains(one), "number {at}");
        }
    }

    #[test]
    fn the_digest_is_that_of_the_chunks_that_are_not_zero() {
        let (mut places, mut content) = (Hashing::default(), Hashing::default());
        let length = 5 * MIB + 7;
        let mut written = Vec::new();
        for at in [65536, 3 * MIB, 5 * MIB] {
            let size = usize::try_from(length - at).unwrap().min(CHUNK_BYTES);
            let mut chunk = vec![0; size];
            chunk[size - 1] = 7;
            places.update(&at.to_le_bytes());
            content.update(&chunk);
            written.push((at, chunk));
        }
        let writes: Vec<(u64, &[u8])> = written.iter().map(|(at, chunk)| (*at, &chunk[..])).collect();
        let expected = KeyBuilder::new("sparse file v1")
            .with("length", &length.to_le_bytes())
            .with("places", places.digest().to_string().as_bytes())
            .with("content", content.digest().to_string().as_bytes())
            .finish();
        assert_eq!(digest(length, &writes), expected);
    }

    #[test]
    fn holes_are_not_read() {
        let mut huge = file(1 << 40, &[(1 << 39, b"x")]);
        huge.write_all(b"y").unwrap();
        assert_eq!(Digest::of_sparse_file(&huge).unwrap().1, 1 << 40);
    }
}
