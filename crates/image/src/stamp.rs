//! Stamps: the memory of a proof.
//!
//! Hashing a big file takes longer than booting a VM, so a success is remembered: the file's identity (device, inode, size, times) beside
//! the digest it was proven to have. Any write to the file changes its ctime, which no program can set back. A stamp is as trustworthy
//! as the directory it lies in, so that must belong to the user alone.

use std::fs::{self, Metadata};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::digest::Digest;

/// That files had some content when they were read, which holds for as long as nobody touches them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stamp(String);

impl Stamp {
    /// A proof of one file: what it was when it was read, and what its content was found to be.
    #[must_use]
    pub fn of(file: &Metadata, content: Digest) -> Self {
        let (dev, ino, size) = (file.dev(), file.ino(), file.size());
        let modified = format_args!("{}.{:09}", file.mtime(), file.mtime_nsec());
        let changed = format_args!("{}.{:09}", file.ctime(), file.ctime_nsec());
        Self(format!("dev {dev} ino {ino} size {size} mtime {modified} ctime {changed} blake3 {content}\n"))
    }

    /// The same proof and one of another file.
    #[must_use]
    pub fn and(mut self, file: &Metadata, content: Digest) -> Self {
        self.0.push_str(&Self::of(file, content).0);
        self
    }

    /// The same proof, for one boot of one machine. Files that were never synchronised may have another content after a crash, with
    /// the times that they had.
    #[must_use]
    pub fn during_boot(mut self, boot_id: &str) -> Self {
        self.0.push_str(&format!("boot {boot_id}\n"));
        self
    }

    /// Whether this very proof was left at `path`.
    #[must_use]
    pub fn is_at(&self, path: &Path) -> bool {
        fs::read_to_string(path).is_ok_and(|found| found == self.0)
    }

    /// Leaves it at `path`, in a directory that is there, all of it or nothing.
    ///
    /// # Errors
    /// Whatever the file system answers.
    pub fn leave_at(&self, path: &Path) -> io::Result<()> {
        let dir = path.parent().unwrap_or_else(|| Path::new("."));
        let mut temporary = tempfile::NamedTempFile::new_in(dir)?;
        temporary.write_all(self.0.as_bytes())?;
        temporary.persist(path)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use tempfile::TempDir;

    use super::*;

    fn file() -> (TempDir, PathBuf, Metadata) {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, "content").unwrap();
        let metadata = path.metadata().unwrap();
        (dir, path, metadata)
    }

    #[test]
    fn a_stamp_is_found_where_it_was_left_and_no_other_is() {
        let (dir, _, metadata) = file();
        let (stamp, other) = (Stamp::of(&metadata, Digest::of(b"a")), Stamp::of(&metadata, Digest::of(b"b")));
        let path = dir.path().join("stamps/a");
        assert!(!stamp.is_at(&path) && stamp.leave_at(&path).is_err());
        fs::create_dir(dir.path().join("stamps")).unwrap();
        stamp.leave_at(&path).unwrap();
        assert!(stamp.is_at(&path) && !other.is_at(&path));
    }

    #[test]
    fn a_stamp_of_another_boot_or_of_more_files_is_another() {
        let (_dir, _, metadata) = file();
        let stamp = Stamp::of(&metadata, Digest::of(b"a"));
        let all = [
            stamp.clone(),
            stamp.clone().and(&metadata, Digest::of(b"a")),
            stamp.clone().during_boot("1"),
            stamp.during_boot("2"),
        ];
        for (at, one) in all.iter().enumerate() {
            assert!(all[..at].iter().all(|other| other != one), "{one:?}");
        }
    }
}
