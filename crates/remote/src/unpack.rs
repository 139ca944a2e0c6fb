//! Unpacking: a blob's bytes to a sparse file, with every promise of the manifest checked on the way.
//!
//! The blob is not believed. At most the announced length is written, whatever it decompresses to; the decoder's memory is bounded;
//! and the digest decides. Blocks of zeros become holes, whether they were holes where the file was made or not. It blocks: it is for
//! threads that may.

use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::FileExt,
};

use bytes::{Buf, Bytes};
use tokio::sync::mpsc;
use zstd::stream::read::Decoder;

use crate::{digest::Digest, manifest::ListedFile, refusal::Refusal};

/// What becomes a hole if it is zero: a page of memory, and the block of most file systems.
const BLOCK_BYTES: usize = 4096;

/// Bytes that are decompressed at a time.
const CHUNK_BYTES: usize = 64 * BLOCK_BYTES;

/// The decoder keeps at most `1 << 23` bytes of what it has said, 8 MiB. [`crate::pack`] asks for less; without a limit a blob could
/// ask for 128 MiB.
const MAX_WINDOW_LOG: u32 = 23;

static ZEROS: [u8; BLOCK_BYTES] = [0; BLOCK_BYTES];

/// Why a blob did not become a file.
#[derive(Debug)]
pub(crate) enum Unpacking {
    /// It is not what was announced.
    Refused(Refusal),
    /// The file could not be written.
    Local(io::Error),
    /// The bytes ended, because whoever brings them has given up and knows why.
    CutShort,
}

/// What comes of a blob.
#[derive(Debug)]
pub(crate) enum Piece {
    /// Its next bytes.
    Bytes(Bytes),
    /// Its end. A channel that closes without it was cut short.
    End,
}

/// The bytes of a blob, as the decoder wants them.
#[derive(Debug)]
pub(crate) struct Pieces {
    channel: mpsc::Receiver<Piece>,
    current: Bytes,
    /// Whether the end has come.
    ended: bool,
    /// Whether the channel closed before it.
    cut_short: bool,
}

impl Pieces {
    pub(crate) fn new(channel: mpsc::Receiver<Piece>) -> Self {
        Self { channel, current: Bytes::new(), ended: false, cut_short: false }
    }
}

impl Read for Pieces {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() && !self.ended {
            match self.channel.blocking_recv() {
                Some(Piece::Bytes(bytes)) => self.current = bytes,
                Some(Piece::End) => self.ended = true,
                None => {
                    self.cut_short = true;
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
        }
        let length = into.len().min(self.current.len());
        if let Some(into) = into.get_mut(..length) {
            self.current.copy_to_slice(into);
        }
        Ok(length)
    }
}

/// Writes what `pieces` decompress to into `file`, which is empty, if it is what `listed` says.
pub(crate) fn unpack(mut pieces: Pieces, file: &File, listed: &ListedFile) -> Result<(), Unpacking> {
    let done = decode(&mut pieces, file, listed);
    if pieces.cut_short { Err(Unpacking::CutShort) } else { done }
}

fn decode(pieces: &mut Pieces, file: &File, listed: &ListedFile) -> Result<(), Unpacking> {
    let undecodable = |cause| Unpacking::Refused(Refusal::Undecodable { file: listed.name.clone(), cause });
    let announced = listed.plain_bytes;
    let mut decoder = Decoder::new(pieces).map_err(undecodable)?.single_frame();
    decoder.window_log_max(MAX_WINDOW_LOG).map_err(undecodable)?;

    let mut hasher = blake3::Hasher::new();
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut at = 0_u64;
    loop {
        let filled = fill(&mut decoder, &mut chunk).map_err(undecodable)?;
        if filled.is_empty() {
            break;
        }
        let end = at.saturating_add(filled.len() as u64);
        if end > announced {
            return Err(Unpacking::Refused(Refusal::TooLong { file: listed.name.clone(), announced }));
        }
        hasher.update(filled);
        write_sparse(file, filled, at).map_err(Unpacking::Local)?;
        at = end;
    }
    // Bytes after the frame belong to nothing that was announced.
    let mut rest = decoder.finish();
    if !fill(&mut rest, &mut [0]).map_err(undecodable)?.is_empty() {
        return Err(Unpacking::Refused(Refusal::TooLong { file: listed.name.clone(), announced }));
    }
    if at < announced {
        return Err(Unpacking::Refused(Refusal::TooShort { file: listed.name.clone(), announced, found: at }));
    }
    let found = Digest::finish(&hasher);
    if found != listed.blake3 {
        return Err(Unpacking::Refused(Refusal::digest(&listed.name, &listed.blake3, &found)));
    }
    file.set_len(announced).map_err(Unpacking::Local)
}

/// Fills `chunk` as far as the reader goes, so that blocks keep their places.
fn fill<'a>(reader: &mut impl Read, chunk: &'a mut [u8]) -> io::Result<&'a [u8]> {
    let mut length = 0;
    while let Some(rest) = chunk.get_mut(length..).filter(|rest| !rest.is_empty()) {
        match reader.read(rest) {
            Ok(0) => break,
            Ok(read) => length += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(chunk.get(..length).unwrap_or_default())
}

/// Writes `bytes` at `at`, but for blocks of zeros. Neighbours are written together.
fn write_sparse(file: &File, bytes: &[u8], at: u64) -> io::Result<()> {
    let mut place = at;
    let is_zero = |block: &[u8]| ZEROS.get(..block.len()).is_some_and(|zeros| zeros == block);
    let blocks: Vec<&[u8]> = bytes.chunks(BLOCK_BYTES).collect();
    let mut start = 0;
    for run in blocks.chunk_by(|a, b| is_zero(a) == is_zero(b)) {
        let length: usize = run.iter().map(|block| block.len()).sum();
        if run.first().is_some_and(|block| !is_zero(block)) {
            file.write_all_at(bytes.get(start..start + length).unwrap_or_default(), place)?;
        }
        start += length;
        place += length as u64;
    }
    Ok(())
}
