//! A snapshot in the making: a directory that has no name yet, and the right to give it one.

use std::{
    error::Error,
    fs::{self, File, Metadata, Permissions},
    io::{self, Write as _},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use exec_sandbox_image::{Digest, Stamp};

use super::{
    MANIFEST, RAM, STATE, Store, TRANSLATIONS, USED, VERIFIED,
    error::StoreError,
    manifest::{Content, Manifest, memory_bytes},
    memories,
    parts::{Key, Parts},
    template::{Files, Template},
};
use crate::{
    cache_dir::{clear_drafts, draft_prefix, free_bytes, is_taken},
    key_lock::KeyLock,
    private_dir,
};

/// What QEMU writes, under whatever user it runs: it is given descriptors, and nobody else gets into the directory.
const WHILE_IT_IS_MADE: u32 = 0o666;
const FOR_EVER: u32 = 0o444;

/// What the host writes alone, until it is whole.
const WHILE_IT_IS_THE_HOSTS: u32 = 0o600;

/// What the device state and the manifest take at most, beside the memory.
const ROOM_BESIDE_MEMORY_BYTES: u64 = 4 << 20;

/// A snapshot that is being made. Dropped, it is removed, and the next one may begin.
#[derive(Debug)]
pub(crate) struct Draft {
    place: Arc<Workplace>,
    parts: Parts,
    key: Key,
    ram: File,
    state: File,
    translations: Option<File>,
    /// Another machine has made it, at least in part.
    is_taken: bool,
}

/// The directory that a draft is made in, which goes with the last who works there.
#[derive(Debug)]
struct Workplace {
    store: Store,
    dir: PathBuf,
    // Last, so that the directory is gone when it is given back.
    lock: KeyLock,
}

/// Room in a draft for translations.
#[derive(Debug)]
pub(crate) struct RoomForTranslations {
    place: Arc<Workplace>,
    /// What else may still be written.
    other_bytes: u64,
}

/// Translations in a file that nobody else writes to.
#[derive(Debug)]
pub(crate) struct WrittenTranslations(File);

impl RoomForTranslations {
    /// Makes a file for at most so many bytes, which `write` fills. On failure there is none.
    pub(super) fn write(
        &self,
        most_bytes: u64,
        write: impl FnOnce(&File) -> io::Result<()>,
    ) -> Result<WrittenTranslations, StoreError> {
        let Workplace { store, dir, .. } = &*self.place;
        check_room(dir, most_bytes + self.other_bytes)?;
        let (path, memories) = (dir.join(TRANSLATIONS), store.memories_dir());
        let mut options = File::options();
        options.read(true).write(true).create_new(true).mode(WHILE_IT_IS_THE_HOSTS);
        let file = options.open(&path).map_err(StoreError::io("create", &path))?;
        let named = write(&file).map_err(StoreError::io("write", &path)).and_then(|()| {
            memories::add(&memories, &path, &file).map_err(StoreError::io("name translations in", &memories))
        });
        match named {
            Ok(()) => Ok(WrittenTranslations(file)),
            Err(error) => {
                // It is in nobody's way if it stays, for no manifest speaks of it.
                drop(fs::remove_file(&path));
                Err(error)
            }
        }
    }
}

impl Draft {
    /// Begins in the store's directory of drafts, where what others have left of this key is removed first.
    pub(super) fn begin(store: &Store, parts: &Parts, lock: KeyLock) -> Result<Self, StoreError> {
        let (key, drafts) = (parts.key(), store.drafts_dir());
        private_dir::create(&drafts).map_err(StoreError::io("use", &drafts))?;
        clear_drafts(&drafts, key.digest());
        let length = memory_bytes(parts.memory_mib);
        check_room(&drafts, length + ROOM_BESIDE_MEMORY_BYTES)?;
        let made = tempfile::Builder::new()
            .prefix(&draft_prefix(key.digest()))
            .permissions(Permissions::from_mode(0o700))
            .tempdir_in(&drafts)
            .map_err(StoreError::io("make a directory in", &drafts))?;
        let create = |name| {
            let path = made.path().join(name);
            let file = File::options().read(true).write(true).create_new(true).mode(WHILE_IT_IS_MADE).open(&path);
            // Once more, past the process's mask.
            let opened = file.and_then(|file| {
                file.set_permissions(Permissions::from_mode(WHILE_IT_IS_MADE))?;
                Ok(file)
            });
            opened.map_err(StoreError::io("create", &path))
        };
        let (ram, state) = (create(RAM)?, create(STATE)?);
        let ram_path = made.path().join(RAM);
        ram.set_len(length).map_err(StoreError::io("size", &ram_path))?;
        let memories = store.memories_dir();
        memories::create(&memories).map_err(StoreError::io("create", &memories))?;
        memories::add(&memories, &ram_path, &ram).map_err(StoreError::io("name a memory in", &memories))?;
        let place = Arc::new(Workplace { store: store.clone(), dir: made.keep(), lock });
        Ok(Self { place, parts: parts.clone(), key, ram, state, translations: None, is_taken: false })
    }

    pub(crate) fn key(&self) -> Key {
        self.key
    }

    /// What is said of it to other machines, which believe it only if it is what they want.
    pub(crate) fn facts(&self) -> Option<String> {
        serde_json::to_string(&self.parts).ok()
    }

    /// Whether another machine has made it, at least in part: then it is of no use for anything else.
    pub(crate) fn is_taken(&self) -> bool {
        self.is_taken
    }

    /// Most bytes of memory and state, which is what machines give to each other.
    pub(crate) fn most_bytes(&self) -> u64 {
        memory_bytes(self.parts.memory_mib) + ROOM_BESIDE_MEMORY_BYTES
    }

    /// A directory for what another machine has made, gone when it is dropped.
    pub(crate) fn incoming(&self) -> io::Result<tempfile::TempDir> {
        tempfile::Builder::new().prefix("incoming").permissions(Permissions::from_mode(0o700)).tempdir_in(self.dir())
    }

    /// Puts the files in `from`, of which `facts` are said, in the place of those that were to be filled. On failure these are as they were
    /// unless it [is taken](Self::is_taken).
    ///
    /// Translations are never among them: they are code that the host runs, and only this machine's own is believed. If there are some of
    /// what was here before, they are of another memory and go.
    pub(crate) fn adopt(&mut self, from: &Path, facts: &[u8]) -> Result<Arc<Template>, Box<dyn Error + Send + Sync>> {
        if serde_json::from_slice::<Parts>(facts)? != self.parts {
            return Err("it is of another kind".into());
        }
        let open = |name| File::options().read(true).write(true).open(from.join(name));
        let (ram, state) = (open(RAM)?, open(STATE)?);
        if ram.metadata()?.len() != memory_bytes(self.parts.memory_mib) || state.metadata()?.len() == 0 {
            return Err("its files have other lengths".into());
        }
        memories::add(&self.place.store.memories_dir(), &from.join(RAM), &ram)?;
        self.is_taken = true;
        for name in [RAM, STATE] {
            fs::rename(from.join(name), self.dir().join(name))?;
        }
        (self.ram, self.state) = (ram, state);
        if self.translations.take().is_some() {
            // If it stays, no manifest speaks of it.
            let _ = fs::remove_file(self.dir().join(TRANSLATIONS));
        }
        Ok(self.template()?)
    }

    fn dir(&self) -> &Path {
        &self.place.dir
    }

    /// The memory's file: zeros, as long as the VM's memory.
    pub(crate) fn ram(&self) -> &File {
        &self.ram
    }

    /// Where the device state is written to.
    pub(crate) fn state(&self) -> &File {
        &self.state
    }

    /// Where its translations may be written while the rest of it is.
    pub(crate) fn room_for_translations(&self) -> RoomForTranslations {
        RoomForTranslations {
            place: Arc::clone(&self.place),
            other_bytes: memory_bytes(self.parts.memory_mib) + ROOM_BESIDE_MEMORY_BYTES,
        }
    }

    /// Takes over what was written there.
    pub(crate) fn add_translations(&mut self, written: WrittenTranslations) {
        self.translations = Some(written.0);
    }

    /// The snapshot as it will be, for use in this process at once. From here on its files are read-only.
    pub(crate) fn template(&self) -> io::Result<Arc<Template>> {
        self.seal()?;
        let open = |name| File::open(self.dir().join(name));
        let translations = self.translations.as_ref().map(|_| open(TRANSLATIONS)).transpose()?;
        let files = Files { ram: open(RAM)?, state: open(STATE)?, translations };
        Ok(Arc::new(Template::new(self.key, self.parts.memory_mib, files)))
    }

    /// Makes it a snapshot that others find: all of it or nothing. If another has been
    /// published meanwhile, that one stays. Reads its files, and blocks for so long.
    ///
    /// Nothing is synchronised with the disk: after a crash of the machine snapshots are read again before they are believed.
    pub(crate) fn publish(self) -> Result<Arc<Template>, StoreError> {
        let Workplace { store, dir, .. } = &*self.place;
        let template = self.template().map_err(StoreError::io("finish", dir))?;
        let stamp = self.write_manifest(&template)?;
        self.write(USED, 0o600, b"")?;
        // Without it the next process reads the files, and finds the same.
        let _ = store.stamped(stamp).map(|stamp| stamp.leave_at(&dir.join(VERIFIED)));
        let target = store.template_dir(self.key);
        match fs::rename(dir, &target) {
            Ok(()) => Ok(template),
            Err(error) if is_taken(&error) => match store.find(&self.parts)? {
                Some(other) => Ok(other),
                // What lay there was damaged, and has been set aside.
                None => fs::rename(dir, &target).map(|()| template).map_err(StoreError::io("create", &target)),
            },
            Err(error) => Err(StoreError::io("create", &target)(error)),
        }
    }

    /// Reads the files and writes down what is in them. What comes back is a proof of it.
    fn write_manifest(&self, template: &Template) -> Result<Stamp, StoreError> {
        let (state, state_file) = self.content(STATE, template.state_file())?;
        let (ram, ram_file) = self.content(RAM, template.ram())?;
        let (found_bytes, expected_bytes) = (ram.size_bytes, memory_bytes(self.parts.memory_mib));
        if found_bytes != expected_bytes {
            return Err(StoreError::WrongLength { path: self.dir().join(RAM), found_bytes, expected_bytes });
        }
        if state.size_bytes == 0 {
            return Err(StoreError::NoState { path: self.dir().join(STATE) });
        }
        let translations = template.translations_file().map(|file| self.content(TRANSLATIONS, file)).transpose()?;
        let of_translations = translations.as_ref().map(|(content, _)| *content);
        let json = Manifest::new(self.parts.clone(), ram, state, of_translations).to_json();
        let json = json.map_err(|error| StoreError::io("write", &self.dir().join(MANIFEST))(error.into()))?;
        self.write(MANIFEST, FOR_EVER, &json)?;
        let stamp = Stamp::of(&ram_file, ram.digest).and(&state_file, state.digest);
        Ok(translations.into_iter().fold(stamp, |stamp, (content, file)| stamp.and(&file, content.digest)))
    }

    fn content(&self, name: &str, file: &File) -> Result<(Content, Metadata), StoreError> {
        let path = self.dir().join(name);
        let examine = || file.metadata().map_err(StoreError::io("examine", &path));
        let before = examine()?;
        let (digest, size_bytes) = Digest::of_sparse_file(file).map_err(StoreError::io("read", &path))?;
        if Stamp::of(&examine()?, digest) != Stamp::of(&before, digest) {
            return Err(StoreError::Unsteady { path });
        }
        Ok((Content { digest, size_bytes }, before))
    }

    fn seal(&self) -> io::Result<()> {
        for file in [&self.ram, &self.state].into_iter().chain(&self.translations) {
            file.set_permissions(Permissions::from_mode(FOR_EVER))?;
        }
        Ok(())
    }

    fn write(&self, name: &str, mode: u32, content: &[u8]) -> Result<(), StoreError> {
        let path = self.dir().join(name);
        let file = File::options().write(true).create_new(true).mode(mode).open(&path);
        file.and_then(|mut file| file.write_all(content)).map_err(StoreError::io("write", &path))
    }
}

impl Drop for Workplace {
    fn drop(&mut self) {
        if self.lock.is_own() {
            // Gone already if it was published.
            if fs::remove_dir_all(&self.dir).is_ok() {
                memories::sweep(&self.store.memories_dir());
            }
        }
    }
}

/// Memory that has no room is a signal that ends QEMU, so it is asked for ahead.
fn check_room(dir: &Path, needed_bytes: u64) -> Result<(), StoreError> {
    let free_bytes = free_bytes(dir).map_err(StoreError::io("examine", dir))?;
    if free_bytes < needed_bytes {
        return Err(StoreError::NoRoom { path: dir.to_owned(), free_bytes, needed_bytes });
    }
    Ok(())
}
