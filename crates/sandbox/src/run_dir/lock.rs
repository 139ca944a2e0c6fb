//! Locks on files: whose a directory is.
//!
//! A lock belongs to an open file, which a forked process shares with the one that it was forked from. So a lock is given back with
//! a word, for both, and only by the process that took it; and a lock that is held does not prove that its taker lives. If the
//! directory's record names an owner who is gone, the lock is nobody's, whoever has the file open. Two who find that at the same time
//! both clear up: they kill and remove the same, which may be done twice.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use super::{LOCK, RECORD, Record};
use crate::maker::Maker;

/// A lock that is held for as long as this lives, by this process.
#[derive(Debug)]
pub(super) struct Lock {
    file: File,
    maker: Maker,
}

impl Lock {
    /// Takes the lock of the directory at `dir`, whose file is made if it is missing. Waits for it, after `waiting` was called.
    pub(super) fn wait(dir: &Path, waiting: impl FnOnce()) -> io::Result<Self> {
        let path = dir.join(LOCK);
        let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path)?;
        if file.try_lock().is_err() {
            waiting();
            file.lock()?;
        }
        Ok(Self::of(file))
    }

    /// Takes the lock of the VM's directory at `dir` if its owner is gone. The root's lock is to be held.
    pub(super) fn take(dir: &Path) -> io::Result<Option<Self>> {
        let file = OpenOptions::new().write(true).open(dir.join(LOCK))?;
        let is_free = file.try_lock().is_ok()
            || Record::read(&dir.join(RECORD)).is_ok_and(|record| record.owner.is_known_to_be_gone());
        Ok(is_free.then(|| Self::of(file)))
    }

    /// Whether this process took it. A forked one has inherited it.
    pub(super) fn is_own(&self) -> bool {
        self.maker.is_this_process()
    }

    /// Gives it back ahead of its drop.
    #[cfg(test)]
    pub(super) fn unlock(&self) {
        self.file.unlock().expect("it is ours");
    }

    pub(super) fn of(file: File) -> Self {
        Self { file, maker: Maker::this_process() }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        if self.is_own() {
            let _ = self.file.unlock();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, io::pipe};

    use super::{
        super::{Details, RunDir, list, lock_root, reap},
        *,
    };
    use crate::maker::tests::{fork, fork_idler, is_well};

    fn is_locked(dir: &Path) -> bool {
        File::open(dir.join(LOCK)).expect("it is there").try_lock().is_err()
    }

    #[test]
    fn what_a_process_leaves_is_removed_though_one_that_it_forked_has_its_lock() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let (life, end) = pipe().expect("there are descriptors");
        let mut life = (life, Some(end));
        let owner = fork(|| {
            let dir = RunDir::create(root.path(), "vm-1", &Details::default()).expect("it is new");
            fork_idler(&mut life);
            std::mem::forget(dir);
            true
        });
        assert!(is_well(owner));
        assert!(is_locked(&root.path().join("vm-1")), "the forked one has inherited it");
        assert!(list(root.path()).expect("it can be read").iter().all(|found| !found.is_held));
        assert_eq!(reap(root.path()).expect("it can be read").removed, ["vm-1"]);
        drop(life);
    }

    #[test]
    fn an_owner_of_whom_it_cannot_be_told_from_here_is_not_gone() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let dir = root.path().join("vm-1");
        fs::create_dir(&dir).expect("it is new");
        let held = Lock::wait(&dir, || ()).expect("it is new");
        let mut record = Record::new("vm-1", &Details::default()).expect("this process can be named");
        record.owner.process.start_ticks += 1;
        for (seen_from, is_gone) in
            [(None, false), (Some("elsewhere".to_owned()), false), (record.owner.seen_from.clone(), true)]
        {
            record.owner.seen_from = seen_from;
            record.write(&dir.join(RECORD)).expect("it can be written");
            assert_eq!(Lock::take(&dir).expect("it is there").is_some(), is_gone, "{:?}", record.owner);
        }
        drop(held);
    }

    #[test]
    fn a_forked_process_leaves_the_directory_and_its_lock_to_the_owner() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let mut dir = Some(RunDir::create(root.path(), "vm-1", &Details::default()).expect("it is new"));
        let forked = fork(|| {
            drop(dir.take());
            reap(root.path()).is_ok_and(|reaped| reaped.removed.is_empty())
        });
        assert!(is_well(forked));
        assert!(is_locked(&root.path().join("vm-1")));
        drop(dir);
        assert!(!root.path().join("vm-1").exists());
    }

    #[test]
    fn the_roots_lock_is_given_back_for_a_process_too_that_was_forked_meanwhile() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let (life, end) = pipe().expect("there are descriptors");
        let mut life = (life, Some(end));
        let lock = lock_root(root.path()).expect("it is free");
        let forked = fork_idler(&mut life);
        drop(lock);
        assert!(!is_locked(root.path()));
        drop(life);
        assert!(is_well(forked));
    }
}
