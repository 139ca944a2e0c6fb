//! The files of a guest, as far as transfers need them: a VM has them, and so has a test.

use exec_sandbox::{FileType, QemuVm, WriteOptions};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::failure::Failure;

/// Somewhere files are put and fetched. Paths are relative to the home directory.
pub(crate) trait Guest {
    async fn write(&self, path: &str, content: impl AsyncRead + Unpin, options: WriteOptions) -> Result<(), Failure>;

    async fn read(&self, path: &str, into: impl AsyncWrite + Unpin) -> Result<(), Failure>;

    async fn make_dir(&self, path: &str) -> Result<(), Failure>;

    async fn stat(&self, path: &str) -> Result<Entry, Failure>;

    /// All that is below `path`, at any depth.
    async fn tree(&self, path: &str) -> Result<Vec<Entry>, Failure>;
}

/// What a guest says is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Its path below what was asked for.
    pub(crate) name: String,
    pub(crate) kind: FileType,
    pub(crate) size: u64,
    pub(crate) mode: u32,
}

impl Guest for QemuVm {
    async fn write(&self, path: &str, content: impl AsyncRead + Unpin, options: WriteOptions) -> Result<(), Failure> {
        self.write_file(path, content, options).await?;
        Ok(())
    }

    async fn read(&self, path: &str, into: impl AsyncWrite + Unpin) -> Result<(), Failure> {
        self.read_file(path, into).await?;
        Ok(())
    }

    async fn make_dir(&self, path: &str) -> Result<(), Failure> {
        Ok(Self::make_dir(self, path).await?)
    }

    async fn stat(&self, path: &str) -> Result<Entry, Failure> {
        Ok(Self::stat(self, path).await?.into())
    }

    async fn tree(&self, path: &str) -> Result<Vec<Entry>, Failure> {
        Ok(self.list_files(path, u32::MAX).await?.into_iter().map(Entry::from).collect())
    }
}

impl From<exec_sandbox::FileInfo> for Entry {
    fn from(info: exec_sandbox::FileInfo) -> Self {
        Self { name: info.name, kind: info.kind, size: info.size, mode: info.mode }
    }
}

/// A guest of tests: a map from paths to entries and contents, which may lie.
#[cfg(test)]
pub(super) mod pretend {
    use std::{cell::RefCell, collections::BTreeMap, io};

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[derive(Debug, Default)]
    pub(crate) struct Pretend {
        pub(crate) files: RefCell<BTreeMap<String, (Vec<u8>, u32)>>,
        pub(crate) directories: RefCell<Vec<String>>,
        /// Said of every tree besides what is there.
        pub(crate) lies: Vec<Entry>,
    }

    impl Pretend {
        pub(crate) fn with(files: &[(&str, &[u8], u32)]) -> Self {
            let files = files.iter().map(|(path, content, mode)| ((*path).to_owned(), (content.to_vec(), *mode)));
            Self { files: RefCell::new(files.collect()), ..Self::default() }
        }
    }

    fn missing() -> Failure {
        Failure::host("working on files in the guest", io::ErrorKind::NotFound.into())
    }

    impl Guest for Pretend {
        async fn write(
            &self,
            path: &str,
            mut content: impl AsyncRead + Unpin,
            options: WriteOptions,
        ) -> Result<(), Failure> {
            let mut bytes = Vec::new();
            content.read_to_end(&mut bytes).await.map_err(|error| Failure::host("reading", error))?;
            assert_eq!(options.size, Some(bytes.len() as u64), "what is announced comes");
            self.files.borrow_mut().insert(path.to_owned(), (bytes, options.mode.unwrap_or(0)));
            Ok(())
        }

        async fn read(&self, path: &str, mut into: impl AsyncWrite + Unpin) -> Result<(), Failure> {
            let content = self.files.borrow().get(path).map(|(content, _)| content.clone()).ok_or_else(missing)?;
            into.write_all(&content).await.map_err(|error| Failure::host("writing", error))?;
            into.flush().await.map_err(|error| Failure::host("writing", error))
        }

        async fn make_dir(&self, path: &str) -> Result<(), Failure> {
            self.directories.borrow_mut().push(path.to_owned());
            Ok(())
        }

        async fn stat(&self, path: &str) -> Result<Entry, Failure> {
            let entry = |kind, size, mode| Entry { name: path.to_owned(), kind, size, mode };
            if let Some((content, mode)) = self.files.borrow().get(path) {
                return Ok(entry(FileType::File, content.len() as u64, *mode));
            }
            let is_there = path.is_empty()
                || self.directories.borrow().iter().any(|directory| directory == path)
                || self.files.borrow().keys().any(|file| file.starts_with(&format!("{path}/")));
            if is_there { Ok(entry(FileType::Directory, 0, 0o755)) } else { Err(missing()) }
        }

        async fn tree(&self, path: &str) -> Result<Vec<Entry>, Failure> {
            let start = if path.is_empty() { String::new() } else { format!("{path}/") };
            let mut entries = self.lies.clone();
            for directory in self.directories.borrow().iter().filter_map(|path| path.strip_prefix(&start)) {
                entries.push(Entry { name: directory.into(), kind: FileType::Directory, size: 0, mode: 0o755 });
            }
            for (path, (content, mode)) in &*self.files.borrow() {
                if let Some(name) = path.strip_prefix(&start) {
                    let size = content.len() as u64;
                    entries.push(Entry { name: name.into(), kind: FileType::File, size, mode: *mode });
                }
            }
            Ok(entries)
        }
    }
}
