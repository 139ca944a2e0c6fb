//! Where downloads go on this host: directories that are held open, and files that appear whole.
//!
//! The names come from a guest, which is hostile. Every name is one step below a directory that is held open, and no step follows
//! a link, so whatever a guest says, and whatever is renamed meanwhile, nothing is written outside the directory the user chose.

use std::{
    fs::File,
    io,
    os::fd::OwnedFd,
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
};

use rustix::{
    fs::{AtFlags, FileType, Mode, OFlags},
    io::Errno,
};

/// How many names may be taken by files that downloads of the same number of process have left behind.
const MOST_LEFT_BEHIND: u32 = 1000;

/// A directory that is written into.
#[derive(Debug)]
pub(super) struct Folder {
    directory: OwnedFd,
}

/// A file that has no name yet but a temporary one. Dropped, it is gone.
#[derive(Debug)]
pub(super) struct Draft<'a> {
    folder: &'a Folder,
    name: String,
    temporary: String,
}

impl Folder {
    /// The directory at `path`, which the user named: it may be reached through links.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let directory = rustix::fs::open(path, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Self { directory })
    }

    /// The directory called `name` in this one, which is made if it is not there.
    pub(super) fn enter(&self, name: &str) -> io::Result<Self> {
        one_step(name)?;
        match rustix::fs::mkdirat(&self.directory, name, Mode::from_raw_mode(0o777)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::openat(&self.directory, name, flags, Mode::empty()) {
            Ok(directory) => Ok(Self { directory }),
            Err(Errno::LOOP | Errno::NOTDIR) => Err(io::Error::other(format!("{name} is there and is no directory"))),
            Err(error) => Err(error.into()),
        }
    }

    /// A file that is to be called `name` here, in place of a file of that name, and what it is written through.
    pub(super) fn draft(&self, name: &str, is_executable: bool) -> io::Result<(Draft<'_>, File)> {
        one_step(name)?;
        self.check_replaceable(name)?;
        // What the user's mask leaves of it, as for any new file.
        let mode = Mode::from_raw_mode(if is_executable { 0o777 } else { 0o666 });
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        for _ in 0..MOST_LEFT_BEHIND {
            let number = NUMBER.fetch_add(1, Ordering::Relaxed);
            let temporary = format!(".sbx-{}-{number}.part", std::process::id());
            match rustix::fs::openat(&self.directory, &temporary, flags, mode) {
                Ok(file) => return Ok((Draft { folder: self, name: name.to_owned(), temporary }, file.into())),
                Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let why =
            format!("{MOST_LEFT_BEHIND} files .sbx-*.part lie there that downloads have left behind: remove them");
        Err(io::Error::new(io::ErrorKind::AlreadyExists, why))
    }

    /// A directory is never replaced by a file, and what is no file (a device, say) never at all.
    fn check_replaceable(&self, name: &str) -> io::Result<()> {
        let found = match rustix::fs::statat(&self.directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(found) => FileType::from_raw_mode(found.st_mode),
            Err(Errno::NOENT) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        match found {
            // The link is replaced, not what it points to.
            FileType::RegularFile | FileType::Symlink => Ok(()),
            FileType::Directory => Err(io::Error::other(format!("{name} is a directory here and a file in the guest"))),
            _ => Err(io::Error::other(format!("{name} is there and is no file"))),
        }
    }
}

impl Draft<'_> {
    /// Gives the file its name.
    pub(super) fn keep(self) -> io::Result<()> {
        let directory = &self.folder.directory;
        rustix::fs::renameat(directory, &self.temporary, directory, &self.name)?;
        // The temporary name is free again; nothing is removed by it.
        std::mem::forget(self);
        Ok(())
    }
}

impl Drop for Draft<'_> {
    fn drop(&mut self) {
        // Who cannot remove it has said so already, by not being able to write.
        let _ = rustix::fs::unlinkat(&self.folder.directory, &self.temporary, AtFlags::empty());
    }
}

/// A name that stays in its directory.
fn one_step(name: &str) -> io::Result<()> {
    if matches!(name, "" | "." | "..") || name.contains(['/', '\0']) {
        return Err(io::Error::other(format!("{name:?} is no name of a file")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        io::Write as _,
        os::unix::fs::{PermissionsExt as _, symlink},
    };

    use super::*;

    fn folder() -> (tempfile::TempDir, Folder) {
        let root = tempfile::tempdir().expect("a directory is made");
        let folder = Folder::open(root.path()).expect("it is there");
        (root, folder)
    }

    fn names(path: &Path) -> Vec<String> {
        let entries = fs::read_dir(path).expect("it is there").map(|entry| entry.expect("it can be read").file_name());
        entries.map(|name| name.into_string().expect("it is text")).collect()
    }

    #[test]
    fn a_file_appears_whole_or_not_at_all() {
        let (root, folder) = folder();
        fs::write(root.path().join("a"), "old").expect("it is written");
        let (draft, mut file) = folder.draft("a", true).expect("it may be replaced");
        file.write_all(b"new").expect("there is room");
        assert_eq!(fs::read(root.path().join("a")).expect("it is there"), b"old");
        draft.keep().expect("it is named");
        assert_eq!(fs::read(root.path().join("a")).expect("it is there"), b"new");
        assert_eq!(fs::metadata(root.path().join("a")).expect("it is there").permissions().mode() & 0o100, 0o100);
        drop(folder.draft("b", false).expect("it is free"));
        assert_eq!(names(root.path()), ["a"]);
    }

    #[test]
    fn what_an_earlier_download_has_left_behind_is_in_nobodys_way() {
        let (root, folder) = folder();
        let left: Vec<String> = (0..3).map(|number| format!(".sbx-{}-{number}.part", std::process::id())).collect();
        for name in &left {
            fs::write(root.path().join(name), "half").expect("it is written");
        }
        folder.draft("a", false).expect("another name is free").0.keep().expect("it is named");
        let mut found = names(root.path());
        found.sort();
        assert_eq!(found, [&left[..], &["a".into()]].concat());
        assert!(left.iter().all(|name| fs::read(root.path().join(name)).expect("it is there") == b"half"));
    }

    #[test]
    fn a_name_that_leads_anywhere_else_is_none() {
        let (root, folder) = folder();
        for name in ["", ".", "..", "a/b", "/etc", "a\0"] {
            assert!(folder.draft(name, false).is_err(), "{name:?}");
            assert!(folder.enter(name).is_err(), "{name:?}");
        }
        assert_eq!(names(root.path()), Vec::<String>::new());
    }

    #[test]
    fn no_step_follows_a_link() {
        let (root, folder) = folder();
        let elsewhere = tempfile::tempdir().expect("a directory is made");
        symlink(elsewhere.path(), root.path().join("out")).expect("it is made");
        fs::write(elsewhere.path().join("precious"), "kept").expect("it is written");
        assert!(folder.enter("out").expect_err("it is a link").to_string().contains("is no directory"));
        symlink(elsewhere.path().join("precious"), root.path().join("file")).expect("it is made");
        let (draft, mut file) = folder.draft("file", false).expect("a link is replaced");
        file.write_all(b"new").expect("there is room");
        draft.keep().expect("it is named");
        assert_eq!(fs::read(elsewhere.path().join("precious")).expect("it is there"), b"kept");
        assert_eq!(fs::read(root.path().join("file")).expect("it is there"), b"new");
    }

    #[test]
    fn a_directory_and_a_device_are_not_replaced_by_a_file() {
        let (root, folder) = folder();
        fs::create_dir(root.path().join("d")).expect("it is made");
        assert!(folder.draft("d", false).expect_err("a directory").to_string().contains("directory"));
        let devices = Folder::open(Path::new("/dev")).expect("it is there");
        assert!(devices.draft("null", false).expect_err("a device").to_string().contains("no file"));
    }
}
