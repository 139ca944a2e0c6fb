//! Files between the host and a guest: from bytes, a file of the host or a file-like object into the guest, and out of it into
//! a file of the host, which appears whole or not at all, or a file-like object.
//!
//! File-like objects are called off the threads that drive VMs, one piece at a time, so a large one takes little memory.

use std::{
    fs::Permissions,
    io,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::{Bytes, BytesMut};
use exec_sandbox::WriteOptions;
use pyo3::{
    exceptions::PyTypeError,
    prelude::*,
    pybacked::PyBackedBytes,
    types::{PyBytes, PyInt},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, DuplexStream},
    sync::mpsc,
};
use tokio_util::io::StreamReader;

use crate::{errors::Failure, guest::Guest, runtime::blocking};

/// How much is asked of a file-like object at once.
const PIECE_BYTES: usize = 256 * 1024;

/// Permissions of a file that may be executed.
const EXECUTABLE: u32 = 0o755;

/// The part of a file's mode that says who may do what. What runs as its owner whoever starts it is not for a guest to write.
const ACCESS: u32 = 0o777;

/// EISDIR of Linux and macOS.
const IS_A_DIRECTORY: i32 = 21;

/// What a file's content comes from. Whatever is neither bytes nor a path is read from.
#[derive(Debug, FromPyObject)]
pub(crate) enum Content {
    Bytes(PyBackedBytes),
    File(PathBuf),
    Reader(Py<PyAny>),
}

/// Where a file's content goes. Whatever is no path is written to.
#[derive(Debug, FromPyObject)]
pub(crate) enum Destination {
    File(PathBuf),
    Writer(Py<PyAny>),
}

/// Writes a file in the guest, and returns its size.
pub(crate) async fn write(guest: Guest, path: String, content: Content, is_executable: bool) -> Result<u64, Failure> {
    let mode = is_executable.then_some(EXECUTABLE);
    let path = Path::new(&path);
    let options = |size| WriteOptions { mode, size };
    Ok(match content {
        Content::Bytes(bytes) => {
            let size = u64::try_from(bytes.len()).ok();
            guest.write_file(path, &*bytes, options(size)).await?
        }
        Content::File(source) => {
            let (file, size) =
                open(&source).await.map_err(|error| Failure::File(error, source.display().to_string()))?;
            guest.write_file(path, file, options(size)).await?
        }
        Content::Reader(reader) => guest.write_file(path, read_from(reader), options(None)).await?,
    })
}

/// Reads a file of the guest, and returns its size.
pub(crate) async fn read(guest: Guest, path: String, destination: Destination) -> Result<u64, Failure> {
    let path = Path::new(&path);
    match destination {
        Destination::File(destination) => read_into_file(&guest, path, &destination).await,
        Destination::Writer(writer) => {
            let (pipe, other_end) = tokio::io::duplex(PIECE_BYTES);
            // Where the writer fails, its end of the pipe closes, and the guest is told; what the writer raised comes first.
            let (read, written) = tokio::join!(guest.read_file(path, pipe), write_into(other_end, writer));
            written?;
            Ok(read?)
        }
    }
}

async fn open(source: &Path) -> io::Result<(tokio::fs::File, Option<u64>)> {
    let file = tokio::fs::File::open(source).await?;
    let metadata = file.metadata().await?;
    if metadata.is_dir() {
        return Err(io::Error::from_raw_os_error(IS_A_DIRECTORY));
    }
    Ok((file, metadata.is_file().then_some(metadata.len())))
}

async fn read_into_file(guest: &Guest, path: &Path, destination: &Path) -> Result<u64, Failure> {
    let failed = |error| Failure::File(error, destination.display().to_string());
    // Through links, to what they lead to: a link stays a link.
    let place = tokio::fs::canonicalize(destination).await.unwrap_or_else(|_new| destination.to_owned());
    let kept = match tokio::fs::metadata(&place).await {
        Ok(there) if there.is_dir() => return Err(failed(io::Error::from_raw_os_error(IS_A_DIRECTORY))),
        // A device or a pipe is written to, never replaced.
        Ok(there) if !there.is_file() => {
            let device = tokio::fs::OpenOptions::new().write(true).open(&place).await.map_err(failed)?;
            return Ok(guest.read_file(path, device).await?);
        }
        there => there.ok().map(|there| there.mode() & ACCESS),
    };
    let directory = match place.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    let made = blocking(move || new_file_in(&directory, kept)).await.and_then(|made| made).map_err(failed)?;
    let (file, temporary) = made.into_parts();
    let size = guest.read_file(path, tokio::fs::File::from_std(file)).await?;
    let persist = move || temporary.persist(&place).map_err(|error| error.error);
    blocking(persist).await.and_then(|done| done).map_err(failed)?;
    Ok(size)
}

/// A file that takes another's place with the permissions that one had, if there is one.
fn new_file_in(directory: &Path, kept: Option<u32>) -> io::Result<tempfile::NamedTempFile> {
    // What a temporary file says of a directory that is not there has no number.
    std::fs::metadata(directory)?;
    // The permissions that `open` would give: the process's mask takes away what it does not want.
    let permissions = Permissions::from_mode(kept.unwrap_or(0o666));
    let made = tempfile::Builder::new().prefix(".exec-sandbox-").permissions(permissions).tempfile_in(directory)?;
    if let Some(kept) = kept {
        // The mask had its say when the other was made.
        made.as_file().set_permissions(Permissions::from_mode(kept))?;
    }
    Ok(made)
}

/// A stream of what `reader.read` returns. What it raises is the stream's error.
fn read_from(reader: Py<PyAny>) -> impl AsyncRead + Unpin {
    let (pieces, mut arrived) = mpsc::channel::<io::Result<Bytes>>(1);
    tokio::task::spawn_blocking(move || {
        loop {
            let piece = Python::attach(|py| read_piece(reader.bind(py)));
            let is_last = !matches!(&piece, Ok(bytes) if !bytes.is_empty());
            // Whoever called off the transfer wants no more of it.
            if pieces.blocking_send(piece.map_err(io::Error::other)).is_err() || is_last {
                break;
            }
        }
    });
    StreamReader::new(futures_util::stream::poll_fn(move |context| arrived.poll_recv(context)))
}

fn read_piece(reader: &Bound<'_, PyAny>) -> PyResult<Bytes> {
    let piece = reader.call_method1("read", (PIECE_BYTES,))?;
    let Ok(bytes) = piece.extract::<PyBackedBytes>() else {
        let message = format!("read() returned {}, not bytes: open the file in binary mode", piece.get_type().name()?);
        return Err(PyTypeError::new_err(message));
    };
    Ok(Bytes::copy_from_slice(&bytes))
}

async fn write_into(mut pipe: DuplexStream, writer: Py<PyAny>) -> Result<(), Failure> {
    let writer = Arc::new(writer);
    loop {
        let mut piece = BytesMut::with_capacity(PIECE_BYTES);
        let lost = |error| Failure::File(error, "destination".into());
        if pipe.read_buf(&mut piece).await.map_err(lost)? == 0 {
            return Ok(());
        }
        let writer = Arc::clone(&writer);
        blocking(move || Python::attach(|py| write_piece(writer.bind(py), &piece))).await.map_err(lost)??;
    }
}

/// Writes all of `piece`: a raw file may take only a part at once.
fn write_piece(writer: &Bound<'_, PyAny>, mut piece: &[u8]) -> PyResult<()> {
    while !piece.is_empty() {
        let taken = writer.call_method1("write", (PyBytes::new(writer.py(), piece),))?;
        // Objects that are no files often return nothing, and mean that they took it all.
        let Ok(taken) = taken.cast::<PyInt>() else { return Ok(()) };
        let taken: usize = taken.extract()?;
        if taken == 0 {
            return Err(io::Error::from(io::ErrorKind::WriteZero).into());
        }
        piece = piece.get(taken..).unwrap_or_default();
    }
    Ok(())
}
