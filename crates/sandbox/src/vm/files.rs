//! Files of a guest, as callers use them: written from and read into whatever the caller has, listed, moved, removed.
//!
//! Here is the caller's half of each operation: it runs in the caller's own future and holds one piece at a time, so a file of any
//! size takes little memory. What is claimed of a file is checked on both sides.

use std::{os::unix::ffi::OsStrExt as _, path::Path, sync::Arc, time::SystemTime};

use bytes::BytesMut;
use exec_sandbox_wire::{
    Change, Checksum, FileChange, FileEntry, FileKind, FileList, FileRead, FileSum, FileWrite, HostMessage, Move,
    Remove,
    limits::{self, CHUNK_BYTES, MAX_NAME_BYTES, MAX_PATH_BYTES},
};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::{
    QemuVm, Request,
    inbox::{self, Inbox, Next, Piece},
    transfers::FileEnd,
};
use crate::{Error, ErrorKind};

/// Longest file that goes in or out.
pub const MAX_FILE_BYTES: u64 = limits::MAX_FILE_BYTES;

/// Entries that a list may have: some hundred megabytes of a guest's names are nobody's wish.
pub const MAX_LISTED_ENTRIES: usize = 100_000;

/// Bytes on the wire that a list may have: over 300 for each of so many entries. A hostile guest's names are as long as it likes.
const MAX_LISTED_BYTES: usize = 32 << 20;

/// How a file is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WriteOptions {
    /// Permission bits; `None`: 0644.
    pub mode: Option<u32>,
    /// How many bytes will come, if that is known: what cannot fit is then refused before anything is sent.
    pub size: Option<u64>,
}

/// What is at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct FileInfo {
    /// Its name, or its path below the directory that was listed. Bytes that are no UTF-8 are replaced.
    pub name: String,
    /// What it is.
    pub kind: FileType,
    /// Bytes of a regular file that take room: of one with holes those that are no hole. 0 for everything else.
    pub size: u64,
    /// Permission bits.
    pub mode: u32,
    /// When it was last changed, by the guest's clock.
    pub modified: SystemTime,
}

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FileType {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link, which is not followed.
    Link,
    /// A FIFO, a socket or a device.
    Other,
}

impl FileInfo {
    /// Whether it is a directory.
    #[must_use]
    pub fn is_dir(&self) -> bool {
        self.kind == FileType::Directory
    }
}

/// Paths are relative to the home directory, `/home/user`, and cannot lead out of it. Dropping the future of a file operation ends
/// the VM, like that of an execution.
impl QemuVm {
    /// Writes all of `content` to `path`, as the guest's user. The file appears whole, in place of what had its name, when all of it
    /// has arrived; directories on the way are made. Returns its size.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidPath`]; [`ErrorKind::InvalidArgument`] over 500 MiB; [`ErrorKind::Host`] if `content` cannot be read;
    /// [`ErrorKind::File`] with the guest's reason.
    pub async fn write_file(
        &self,
        path: impl AsRef<Path>,
        content: impl AsyncRead + Unpin,
        options: WriteOptions,
    ) -> Result<u64, Error> {
        let WriteOptions { mode, size } = options;
        check_size(size.unwrap_or(0))?;
        let request = FileWrite { path: checked(path.as_ref())?, mode: mode.unwrap_or(0) & 0o777, size };
        let mut inbox = self.begin_file(HostMessage::FileWrite(request)).await?;
        match send(&mut inbox, content).await {
            Ok(Some(sum)) => inbox.finish(sum),
            Ok(None) => {}
            Err(error) => {
                inbox.call_off();
                return Err(error);
            }
        }
        self.file_end(&mut inbox).await
    }

    /// Reads the file at `path` into `destination`, and returns its size. What was read of a file that then fails has been written
    /// to `destination`.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidPath`]; [`ErrorKind::FileNotFound`]; [`ErrorKind::Host`] if `destination` cannot be written;
    /// [`ErrorKind::File`] with the guest's reason.
    pub async fn read_file(
        &self,
        path: impl AsRef<Path>,
        mut destination: impl AsyncWrite + Unpin,
    ) -> Result<u64, Error> {
        let request = FileRead { path: checked(path.as_ref())? };
        let mut inbox = self.begin_file(HostMessage::FileRead(request)).await?;
        let writing = |error| Error::new(ErrorKind::Host, "writing what was read in the guest").because(error);
        loop {
            match inbox.next().await {
                Next::Piece(Piece::Bytes(_, bytes)) => {
                    if let Err(error) = destination.write_all(&bytes).await {
                        inbox.call_off();
                        return Err(writing(error));
                    }
                }
                Next::Piece(Piece::Entries(..)) => {}
                Next::End(end) => {
                    let size = end?;
                    destination.flush().await.map_err(writing)?;
                    return Ok(size);
                }
                Next::Gone => return Err(self.gone()),
            }
        }
    }

    /// What is in the directory at `path` (empty for the home directory), `depth` levels deep: 1 is what is in it. Ordered by name.
    ///
    /// # Errors
    /// As for [`read_file`](Self::read_file), and [`ErrorKind::File`] over [`MAX_LISTED_ENTRIES`] or 32 MiB of them.
    pub async fn list_files(&self, path: impl AsRef<Path>, depth: u32) -> Result<Vec<FileInfo>, Error> {
        let path = path.as_ref();
        let bytes = if path.as_os_str().is_empty() { Vec::new() } else { checked(path)? };
        let mut inbox = self.begin_file(HostMessage::FileList(FileList { path: bytes, depth })).await?;
        let (mut found, mut found_bytes) = (Vec::new(), 0);
        loop {
            match inbox.next().await {
                Next::Piece(Piece::Entries(entries, bytes)) => {
                    found_bytes += bytes;
                    if found.len() + entries.len() > MAX_LISTED_ENTRIES || found_bytes > MAX_LISTED_BYTES {
                        inbox.call_off();
                        return Err(too_many(path));
                    }
                    found.extend(entries.into_iter().map(FileInfo::from));
                }
                Next::Piece(Piece::Bytes(..)) => {}
                Next::End(end) => {
                    end?;
                    found.sort_by(|one, other| one.name.cmp(&other.name));
                    return Ok(found);
                }
                Next::Gone => return Err(self.gone()),
            }
        }
    }

    /// What is at `path`.
    ///
    /// # Errors
    /// As for [`read_file`](Self::read_file).
    pub async fn stat(&self, path: impl AsRef<Path>) -> Result<FileInfo, Error> {
        let found = self.list_files(path.as_ref(), 0).await?.pop();
        found.ok_or_else(|| {
            Error::new(ErrorKind::File, "examining a file in the guest: it said nothing").on_vm(&self.id)
        })
    }

    /// Makes the directory at `path`, and those on the way to it. One that is there is no error.
    ///
    /// # Errors
    /// As for [`write_file`](Self::write_file).
    pub async fn make_dir(&self, path: impl AsRef<Path>) -> Result<(), Error> {
        let path = checked(path.as_ref())?;
        self.change(Change::MakeDirectory(path)).await
    }

    /// Removes what is at `path`; of a directory with all that is in it if `recursive`.
    ///
    /// # Errors
    /// As for [`read_file`](Self::read_file).
    pub async fn remove_file(&self, path: impl AsRef<Path>, recursive: bool) -> Result<(), Error> {
        let path = checked(path.as_ref())?;
        self.change(Change::Remove(Remove { path, recursive })).await
    }

    /// Gives what is at `from` the name `to`, in place of a file that has it.
    ///
    /// # Errors
    /// As for [`read_file`](Self::read_file).
    pub async fn rename(&self, from: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<(), Error> {
        let (from, to) = (checked(from.as_ref())?, checked(to.as_ref())?);
        self.change(Change::Move(Move { from, to })).await
    }

    async fn change(&self, change: Change) -> Result<(), Error> {
        let request = HostMessage::FileChange(FileChange { change: Some(change) });
        let mut inbox = self.begin_file(request).await?;
        self.file_end(&mut inbox).await.map(drop)
    }

    async fn begin_file(&self, request: HostMessage) -> Result<Inbox<FileEnd>, Error> {
        let (outlet, inbox) = inbox::pair(Arc::clone(&self.attention));
        self.ask(Request::File { request: Box::new(request), outlet }).await?;
        Ok(inbox)
    }

    async fn file_end(&self, inbox: &mut Inbox<FileEnd>) -> Result<u64, Error> {
        loop {
            match inbox.next().await {
                Next::Piece(_) => {}
                Next::End(end) => return end,
                Next::Gone => return Err(self.gone()),
            }
        }
    }
}

/// Gives all of `content` as it is granted. `None`: the operation ended before that, and its end says how.
async fn send(inbox: &mut Inbox<FileEnd>, mut content: impl AsyncRead + Unpin) -> Result<Option<FileSum>, Error> {
    let (mut size, mut checksum) = (0, Checksum::default());
    loop {
        let Some(credit) = inbox.credit().await else { return Ok(None) };
        let mut piece = BytesMut::with_capacity(credit.min(CHUNK_BYTES as usize));
        let read = (&mut content).take(piece.capacity() as u64).read_buf(&mut piece).await;
        let read = read.map_err(|error| Error::new(ErrorKind::Host, "reading what is to be written").because(error))?;
        if read == 0 {
            return Ok(Some(FileSum { size, checksum: checksum.value() }));
        }
        size += read as u64;
        check_size(size)?;
        checksum.add(&piece);
        inbox.give(piece.freeze());
    }
}

fn too_many(path: &Path) -> Error {
    let most = format!("{MAX_LISTED_ENTRIES} entries, or {} MiB of them", MAX_LISTED_BYTES >> 20);
    let message = format!("listing {}: it has over {most}", path.display());
    Error::new(ErrorKind::File, message).remedied_by("list a directory below it")
}

fn check_size(size: u64) -> Result<(), Error> {
    if size <= MAX_FILE_BYTES {
        return Ok(());
    }
    let message = format!("a file's size exceeds the limit of {} MiB", MAX_FILE_BYTES >> 20);
    Err(Error::new(ErrorKind::InvalidArgument, message))
}

/// The bytes of a path that can be one in the home directory. Whether a link on it leads out, the guest sees.
fn checked(path: &Path) -> Result<Vec<u8>, Error> {
    let bytes = path.as_os_str().as_bytes();
    let names = || bytes.split(|byte| *byte == b'/');
    let why = if bytes.is_empty() {
        "it is empty"
    } else if bytes.starts_with(b"/") {
        "it is not relative to the home directory"
    } else if bytes.len() > MAX_PATH_BYTES {
        "it is longer than 4096 bytes"
    } else if names().any(|name| name.len() > MAX_NAME_BYTES) {
        "a name in it is longer than 255 bytes"
    } else if names().any(|name| name == b"..") {
        "it may lead out of the home directory"
    } else if bytes.iter().any(u8::is_ascii_control) {
        "it has a control character"
    } else {
        return Ok(bytes.to_vec());
    };
    let shown: String =
        path.to_string_lossy().chars().take(200).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    Err(Error::new(ErrorKind::InvalidPath, format!("the path {shown:?} is not allowed: {why}")))
}

impl From<FileEntry> for FileInfo {
    fn from(entry: FileEntry) -> Self {
        let kind = match entry.kind() {
            FileKind::File => FileType::File,
            FileKind::Directory => FileType::Directory,
            FileKind::Link => FileType::Link,
            FileKind::Other | FileKind::Unspecified => FileType::Other,
        };
        let after = std::time::Duration::from_nanos(u64::try_from(entry.modified_unix_ns).unwrap_or(0));
        Self {
            name: String::from_utf8_lossy(&entry.name).into_owned(),
            kind,
            size: entry.size,
            mode: entry.mode,
            modified: SystemTime::UNIX_EPOCH + after,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_relative_short_and_stays_inside() {
        for good in ["a", "a/b c/é.txt", ".hidden", "a/./b", "..a", &format!("{}/x", "n".repeat(255))] {
            assert_eq!(checked(Path::new(good)).expect(good), good.as_bytes());
        }
        let (long, deep) = ("n".repeat(256), "a/".repeat(3000));
        for bad in ["", "/etc/passwd", "..", "a/../../b", "a\nb", "a\0b", "a\u{7f}", &long, &deep] {
            let error = checked(Path::new(bad)).expect_err(bad);
            assert_eq!(error.kind(), ErrorKind::InvalidPath, "{bad:?}");
        }
    }

    #[test]
    fn a_size_over_the_limit_is_refused_by_that_word() {
        assert!(check_size(MAX_FILE_BYTES).is_ok());
        let error = check_size(MAX_FILE_BYTES + 1).expect_err("it is too large");
        assert!(error.to_string().contains("exceeds"), "{error}");
    }
}
