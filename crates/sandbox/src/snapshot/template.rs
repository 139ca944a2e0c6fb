//! A snapshot that is whole, opened: what clones are made from.
//!
//! Opening goes through the snapshot's directory, not its path, so that one which is taken away meanwhile is found whole or is gone. No
//! step follows a link, and what is opened is a file.

use std::{
    fs::{self, File, Metadata},
    io::{self, Read as _},
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

use exec_sandbox_image::{Digest, Stamp};
use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
};

use super::{
    MANIFEST, RAM, STATE, TRANSLATIONS,
    error::{Damage, StoreError, Trouble},
    manifest::{Content, MAX_MANIFEST_BYTES, Manifest, ManifestError},
    parts::{Key, Parts},
};

/// A snapshot for use. Its files are open, so it stays whole when they are removed, and nobody writes to them.
#[derive(Debug)]
pub(crate) struct Template {
    key: Key,
    memory_mib: u32,
    files: Files,
}

/// What a snapshot consists of, open.
#[derive(Debug)]
pub(super) struct Files {
    pub(super) ram: File,
    pub(super) state: File,
    pub(super) translations: Option<File>,
}

/// A snapshot whose files are open and whose manifest fits them. Nothing has been read yet.
pub(super) struct Claimed {
    manifest: Manifest,
    dir: Directory,
    files: Files,
}

/// The directory of a snapshot, wherever it is now.
struct Directory {
    dir: File,
    path: PathBuf,
}

impl Template {
    pub(super) fn new(key: Key, memory_mib: u32, files: Files) -> Self {
        Self { key, memory_mib, files }
    }

    pub(crate) fn key(&self) -> Key {
        self.key
    }

    pub(crate) fn memory_mib(&self) -> u32 {
        self.memory_mib
    }

    /// Whether both are the same files, and not two of a kind.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        matches!((self.memory_name(), other.memory_name()), (Ok(name), Ok(others)) if name == others)
    }

    /// The name of its memory in the directory of [memories](super::Store::memories).
    pub(crate) fn memory_name(&self) -> io::Result<String> {
        super::memories::name(self.ram())
    }

    /// The name of its translations in the same directory; `None`: it has none.
    pub(crate) fn translations_name(&self) -> io::Result<Option<String>> {
        self.translations_file().map(super::memories::name).transpose()
    }

    /// The guest's memory, read-only.
    pub(super) fn ram(&self) -> &File {
        &self.files.ram
    }

    /// The device state.
    pub(crate) fn state(&self) -> io::Result<Vec<u8>> {
        let length = usize::try_from(self.state_file().metadata()?.len()).unwrap_or_default();
        let mut state = vec![0; length];
        self.state_file().read_exact_at(&mut state, 0)?;
        Ok(state)
    }

    pub(super) fn state_file(&self) -> &File {
        &self.files.state
    }

    pub(super) fn translations_file(&self) -> Option<&File> {
        self.files.translations.as_ref()
    }

    /// What its files take of the disk.
    #[cfg(test)]
    pub(crate) fn allocated_bytes(&self) -> io::Result<u64> {
        let files = [self.ram(), self.state_file()].into_iter().chain(self.translations_file());
        let blocks = files.map(|file| Ok(file.metadata()?.blocks())).sum::<io::Result<u64>>()?;
        Ok(blocks * crate::cache_dir::BLOCK_BYTES)
    }
}

impl Claimed {
    /// Opens what lies at `path` under the name `key`. `None`: nothing does.
    pub(super) fn open(path: &Path, key: Key) -> Result<Option<Self>, Trouble> {
        let Some(dir) = Directory::open(path)? else { return Ok(None) };
        match Self::open_in(dir, key) {
            // What somebody else has begun to remove is not damaged.
            Err((Trouble::Damaged(_), dir)) if !dir.is_in_place() => Ok(None),
            Err((trouble, _)) => Err(trouble),
            Ok(claimed) => Ok(Some(claimed)),
        }
    }

    fn open_in(dir: Directory, key: Key) -> Result<Self, (Trouble, Directory)> {
        match dir.open_all(key) {
            Ok((manifest, files)) => Ok(Self { manifest, dir, files }),
            Err(trouble) => Err((trouble, dir)),
        }
    }

    /// What would prove it, if its files were found to have the content that the manifest says.
    pub(super) fn stamp(&self) -> Result<Stamp, StoreError> {
        let examine = |file: &File, name| file.metadata().map_err(StoreError::io("examine", &self.dir.path.join(name)));
        let stamp = Stamp::of(&examine(&self.files.ram, RAM)?, self.manifest.ram.digest);
        let stamp = stamp.and(&examine(&self.files.state, STATE)?, self.manifest.state.digest);
        Ok(match self.translations() {
            Some((file, content)) => stamp.and(&examine(file, TRANSLATIONS)?, content.digest),
            None => stamp,
        })
    }

    /// Reads its files.
    pub(super) fn verify(&self) -> Result<(), Trouble> {
        let Files { ram, state, .. } = &self.files;
        let always = [(STATE, state, self.manifest.state), (RAM, ram, self.manifest.ram)];
        let translations = self.translations().map(|(file, content)| (TRANSLATIONS, file, content));
        for (name, file, content) in always.into_iter().chain(translations) {
            let path = self.dir.path.join(name);
            let (found, _) = Digest::of_sparse_file(file).map_err(StoreError::io("read", &path))?;
            if found != content.digest {
                return Err(Damage::Content { file: name }.into());
            }
        }
        Ok(())
    }

    /// The length of its translations, if it has some.
    pub(super) fn translations_bytes(&self) -> Option<u64> {
        self.manifest.translations.map(|content| content.size_bytes)
    }

    /// What it was made of, as it says.
    pub(super) fn parts(&self) -> &Parts {
        self.manifest.parts()
    }

    pub(super) fn into_template(self) -> Template {
        Template::new(self.manifest.key(), self.manifest.parts().memory_mib, self.files)
    }

    fn translations(&self) -> Option<(&File, Content)> {
        self.files.translations.as_ref().zip(self.manifest.translations)
    }
}

impl Directory {
    fn open(path: &Path) -> Result<Option<Self>, Trouble> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::open(path, flags, Mode::empty()) {
            Ok(dir) => Ok(Some(Self { dir: dir.into(), path: path.to_owned() })),
            Err(Errno::NOENT) => Ok(None),
            Err(Errno::NOTDIR | Errno::LOOP) => Err(Damage::NotADirectory.into()),
            Err(error) => Err(StoreError::io("open", path)(error.into()).into()),
        }
    }

    /// Whether the path still leads here.
    fn is_in_place(&self) -> bool {
        let identity = |file: Metadata| (file.dev(), file.ino());
        let (opened, there) = (self.dir.metadata(), fs::symlink_metadata(&self.path));
        opened.is_ok_and(|opened| there.is_ok_and(|there| identity(there) == identity(opened)))
    }

    fn open_all(&self, key: Key) -> Result<(Manifest, Files), Trouble> {
        let manifest = self.manifest()?;
        if manifest.key() != key {
            return Err(Damage::WrongKey.into());
        }
        let (ram, state) = (self.file_of(RAM, manifest.ram)?, self.file_of(STATE, manifest.state)?);
        // A file of which the manifest says nothing is not looked at: nobody knows what is in it.
        let translations = manifest.translations.map(|content| self.file_of(TRANSLATIONS, content)).transpose()?;
        Ok((manifest, Files { ram, state, translations }))
    }

    fn manifest(&self) -> Result<Manifest, Trouble> {
        let file = self.file(MANIFEST)?;
        let mut json = Vec::new();
        let read = file.take(MAX_MANIFEST_BYTES + 1).read_to_end(&mut json);
        let read = read.map_err(StoreError::io("read", &self.path.join(MANIFEST)))?;
        if read as u64 > MAX_MANIFEST_BYTES {
            return Err(Damage::from(ManifestError::TooLong).into());
        }
        Ok(Manifest::from_json(&json).map_err(Damage::from)?)
    }

    fn file_of(&self, name: &'static str, content: Content) -> Result<File, Trouble> {
        let file = self.file(name)?;
        let metadata = file.metadata().map_err(StoreError::io("examine", &self.path.join(name)))?;
        let (found_bytes, expected_bytes) = (metadata.len(), content.size_bytes);
        if found_bytes != expected_bytes {
            return Err(Damage::Length { file: name, found_bytes, expected_bytes }.into());
        }
        Ok(file)
    }

    fn file(&self, name: &'static str) -> Result<File, Trouble> {
        // Without waiting for what writes to a pipe of that name.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match rustix::fs::openat(&self.dir, name, flags, Mode::empty()) {
            Ok(file) => File::from(file),
            Err(Errno::NOENT) => return Err(Damage::Missing { file: name }.into()),
            Err(Errno::LOOP | Errno::NXIO) => return Err(Damage::NotAFile { file: name }.into()),
            Err(error) => return Err(StoreError::io("open", &self.path.join(name))(error.into()).into()),
        };
        if !file.metadata().map_err(StoreError::io("examine", &self.path.join(name)))?.is_file() {
            return Err(Damage::NotAFile { file: name }.into());
        }
        Ok(file)
    }
}
