//! Run directories: one per VM, held by a lock for as long as the process that made it lives (`lock`).
//!
//! `<root>/<vm id>/` has the lock, the agent's socket, and what is written down about the VM (`record`). Whoever starts next
//! takes the locks that nobody holds any more, ends what those directories name, and removes them (`reap`); whoever wants one
//! VM gone ends that (`end`). The root's own lock is never removed and makes "create and lock" and "try to take" one step
//! each. A directory is cleared and removed without it: its own lock goes last, so one without a lock is as good as gone.

mod end;
#[cfg(fuzzing)]
pub(crate) mod fuzzing;
mod identity;
mod lock;
mod reap;
mod record;

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use tracing::{debug, warn};

pub(crate) use end::{EndError, end};
pub(crate) use identity::Known;
#[cfg(test)]
pub(crate) use identity::tests::waiting_shell;
pub(crate) use reap::{Ended, Resistance, reap};
pub(crate) use record::{ChildRecord, Details, GATEWAY, Owner, QEMU, Record};

use crate::{ids, private_dir};
use identity::ProcessName;
use lock::Lock;

/// Files of a run directory. QEMU removes the socket itself when it ends in good order.
const LOCK: &str = "lock";
const AGENT_SOCKET: &str = "agent";
const RECORD: &str = "record";
/// The record on its way to being one.
const UNFINISHED_RECORD: &str = "record.new";
const CHILDREN: &str = "children";
const UNDEAD: &str = "undead";

/// Why a run directory could not be made or cleared.
#[derive(Debug, thiserror::Error)]
#[error("{doing} {}", path.display())]
pub(crate) struct RunDirError {
    doing: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// The directory of one VM. Dropped by the process that made it, it is removed if [`remove`](Self::remove) was not called.
#[derive(Debug)]
pub(crate) struct RunDir {
    path: PathBuf,
    lock: Lock,
}

/// A directory as somebody finds it who does not own it.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) id: String,
    pub(crate) path: PathBuf,
    /// Somebody holds the lock, and is not known to be gone.
    pub(crate) is_held: bool,
    /// `None`: it cannot be read.
    pub(crate) record: Option<Record>,
    pub(crate) children: Vec<ChildRecord>,
    /// Somebody has tried to end its processes and could not confirm their death.
    pub(crate) is_marked_undead: bool,
}

impl RunDir {
    /// Makes the directory of VM `id` below `root`, which is made too if it is missing.
    pub(crate) fn create(root: &Path, id: &str, details: &Details) -> Result<Self, RunDirError> {
        let path = root.join(id);
        let at = |doing| RunDirError::at(doing, &path);
        if !ids::is_id(id) {
            return Err(at("making a VM's directory of")(io::ErrorKind::InvalidFilename.into()));
        }
        let _exclusive = lock_root(root)?;
        DirBuilder::new().mode(0o700).create(&path).map_err(at("creating the run directory"))?;
        // Until it has a lock it has no owner who would remove it.
        let lock = Lock::wait(&path, || ());
        let lock = lock.inspect_err(|_| drop(clear(&path))).map_err(at("locking the run directory"))?;
        let dir = Self { path: path.clone(), lock };
        Record::new(id, details)
            .and_then(|record| record.write(&path.join(RECORD)))
            .map_err(at("writing the record in"))?;
        Ok(dir)
    }

    /// Where the agent's channel listens.
    pub(crate) fn agent_socket(&self) -> PathBuf {
        self.path.join(AGENT_SOCKET)
    }

    /// Writes down what the VM is for, which was not known when the directory was made.
    pub(crate) fn describe(&self, details: &Details) -> Result<(), RunDirError> {
        let described =
            Record::new(&id_of(&self.path), details).and_then(|record| record.write(&self.path.join(RECORD)));
        described.map_err(RunDirError::at("writing the record in", &self.path))
    }

    /// Writes down a process of the VM and what it is to it, so that it can be ended if this process dies.
    pub(crate) fn record_child(&self, role: &str, pid: u32) -> Result<(), RunDirError> {
        let path = self.path.join(CHILDREN);
        ProcessName::of(pid)
            .and_then(|process| ChildRecord { role: role.into(), process }.append(&path))
            .map_err(RunDirError::at("recording a process in", &path))
    }

    /// Notes for whoever looks that the VM's processes were killed and their death could not be confirmed. It is forgotten with
    /// the directory.
    pub(crate) fn mark_undead(&self) -> Result<(), RunDirError> {
        mark_undead(&self.path)
    }

    /// Leaves it as a process does that is killed.
    #[cfg(test)]
    pub(crate) fn abandon(self) {
        self.lock.unlock();
        std::mem::forget(self);
    }

    /// Removes the directory and all in it.
    pub(crate) fn remove(self) -> Result<(), RunDirError> {
        clear(&self.path)
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        if self.lock.is_own() {
            let _ = clear(&self.path);
        }
    }
}

impl RunDirError {
    fn at<'a>(doing: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Self + use<'a> {
        move |source| Self { doing, path: path.into(), source }
    }
}

impl Found {
    /// `None`: it has gone meanwhile.
    fn read(path: &Path, is_held: bool) -> Option<Self> {
        let record = Record::read(&path.join(RECORD));
        if let Err(error) = &record {
            debug!(path = %path.display(), %error, "the record of a VM cannot be read");
        }
        let found = Self {
            id: id_of(path),
            path: path.into(),
            is_held,
            record: record.ok(),
            children: ChildRecord::read_all(&path.join(CHILDREN)).unwrap_or_default(),
            is_marked_undead: path.join(UNDEAD).exists(),
        };
        path.join(LOCK).exists().then_some(found)
    }
}

/// The directories below `root`, in no order.
pub(crate) fn list(root: &Path) -> Result<Vec<Found>, RunDirError> {
    let mut all = Vec::new();
    each_directory(root, |path, lock| all.extend(Found::read(path, lock.is_none())))?;
    Ok(all)
}

/// Visits each VM's directory with its lock, or without it if that is somebody else's.
fn each_directory(root: &Path, mut visit: impl FnMut(&Path, Option<Lock>)) -> Result<(), RunDirError> {
    if !root.exists() {
        return Ok(());
    }
    let _exclusive = lock_root(root)?;
    for entry in fs::read_dir(root).map_err(RunDirError::at("reading", root))? {
        let entry = entry.map_err(RunDirError::at("reading", root))?;
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        let path = entry.path();
        match Lock::take(&path) {
            Ok(lock) => visit(&path, lock),
            // On its way out, or left there by a process that ended on the way; one that has files in it is not ours.
            Err(error) if error.kind() == io::ErrorKind::NotFound => drop(fs::remove_dir(&path)),
            Err(error) => warn!(path = %path.display(), %error, "the lock of a run directory cannot be opened"),
        }
    }
    Ok(())
}

/// Removes a run directory, its lock last: as long as it is there, it tells whether the directory is in use. What another has
/// removed meanwhile is gone too.
fn clear(path: &Path) -> Result<(), RunDirError> {
    let gone = |result: io::Result<()>| match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    };
    let known = || -> io::Result<()> {
        // By name, which needs no descriptor: a process that clears up because it has run out of them has none.
        for file in [AGENT_SOCKET, CHILDREN, RECORD, UNFINISHED_RECORD, UNDEAD, LOCK] {
            gone(fs::remove_file(path.join(file)))?;
        }
        match fs::remove_dir(path) {
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => gone(fs::remove_dir_all(path)),
            removed => gone(removed),
        }
    };
    known().map_err(RunDirError::at("removing the run directory", path))
}

fn mark_undead(path: &Path) -> Result<(), RunDirError> {
    fs::write(path.join(UNDEAD), "").map_err(RunDirError::at("marking the run directory", path))
}

fn id_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn lock_root(root: &Path) -> Result<Lock, RunDirError> {
    let at = |doing| RunDirError::at(doing, root);
    private_dir::create(root).map_err(at("creating"))?;
    let waiting = || debug!(root = %root.display(), "waiting for another process that starts or prepares a VM");
    Lock::wait(root, waiting).map_err(at("locking"))
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::PermissionsExt, process::Child};

    use super::{identity::tests::waiting_shell, *};

    fn root() -> tempfile::TempDir {
        tempfile::tempdir().expect("a temporary directory")
    }

    /// What a process leaves that was killed: the directory is there and nobody holds the lock.
    fn abandon(root: &Path, id: &str, children: &[(&str, ProcessName)]) {
        fs::create_dir(root.join(id)).expect("it is new");
        fs::write(root.join(id).join(LOCK), "").expect("it can be written");
        for (role, process) in children {
            let child = ChildRecord { role: (*role).into(), process: *process };
            child.append(&root.join(id).join(CHILDREN)).expect("it can be written");
        }
    }

    fn create(root: &Path, id: &str) -> RunDir {
        RunDir::create(root, id, &Details::default()).expect("it is new")
    }

    fn name(process: &Child) -> ProcessName {
        ProcessName::of(process.id()).expect("it runs")
    }

    /// What a reaping removed and ended, in order.
    fn reaped(root: &Path) -> (Vec<String>, Vec<u32>) {
        let mut reaped = reap(root).expect("it can be read");
        assert!(reaped.resisted.is_empty(), "{:?}", reaped.resisted);
        reaped.removed.sort();
        (reaped.removed, reaped.ended.into_iter().map(|ended| ended.pid).collect())
    }

    #[test]
    fn a_directory_in_use_is_not_reaped_and_a_dropped_one_is_gone() {
        let root = root();
        let dir = create(root.path(), "vm-1");
        assert_eq!(reaped(root.path()), (vec![], vec![]));
        assert!(dir.path.exists());
        drop(dir);
        assert!(!root.path().join("vm-1").exists());
    }

    #[test]
    fn an_abandoned_directory_is_removed_once_all_its_processes_are_dead() {
        let root = root();
        let (mut qemu, mut gateway) = (waiting_shell("vm-dead"), waiting_shell("vm-dead"));
        abandon(root.path(), "vm-dead", &[(QEMU, name(&qemu)), ("gateway", name(&gateway))]);
        let known = [name(&qemu), name(&gateway)].map(|it| it.find(None).expect("it can be told").expect("it runs"));
        assert_eq!(reaped(root.path()), (vec!["vm-dead".into()], vec![qemu.id(), gateway.id()]));
        assert!(known.iter().all(Known::is_dead), "reaping has waited for them");
        assert!(!qemu.wait().expect("it is ours").success() && !gateway.wait().expect("it is ours").success());
        assert!(!root.path().join("vm-dead").exists());
    }

    #[test]
    fn a_process_that_only_shares_the_id_or_only_the_name_is_left_alone() {
        let root = root();
        let mut sleeper = waiting_shell("vm-a");
        let other = ProcessName { start_ticks: name(&sleeper).start_ticks + 1, ..name(&sleeper) };
        abandon(root.path(), "vm-a", &[(QEMU, other)]);
        abandon(root.path(), "vm-b", &[(QEMU, name(&sleeper))]);
        assert_eq!(reaped(root.path()), (vec!["vm-a".into(), "vm-b".into()], vec![]));
        assert!(sleeper.try_wait().expect("it is ours").is_none(), "it still runs");
        sleeper.kill().expect("it is ours");
        sleeper.wait().expect("it is ours");
    }

    #[test]
    fn one_directory_that_cannot_be_cleared_does_not_keep_a_start_from_the_others() {
        let root = root();
        abandon(root.path(), "vm-a", &[]);
        abandon(root.path(), "vm-c", &[]);
        // A lock that nobody can open, whoever runs this.
        fs::create_dir_all(root.path().join("vm-b").join(LOCK)).expect("it is new");
        assert_eq!(reaped(root.path()).0, ["vm-a", "vm-c"]);
    }

    #[test]
    fn what_cannot_be_told_about_processes_is_not_taken_for_their_death() {
        let root = root();
        abandon(root.path(), "vm-a", &[]);
        abandon(root.path(), "vm-b", &[]);
        fs::create_dir(root.path().join("vm-b").join(CHILDREN)).expect("it is new");
        let reaped = reap(root.path()).expect("it can be read");
        assert_eq!(reaped.removed, ["vm-a"]);
        assert!(matches!(&reaped.resisted[..], [(id, Resistance::Children(_))] if id == "vm-b"), "{reaped:?}");
        assert!(root.path().join("vm-b").exists());
    }

    #[test]
    fn more_directories_than_are_taken_at_once_are_all_reaped() {
        let root = root();
        for number in 0..200 {
            abandon(root.path(), &format!("vm-{number}"), &[]);
        }
        assert_eq!(reaped(root.path()).0.len(), 200);
    }

    #[test]
    fn a_directory_is_found_with_what_is_written_down_about_it() {
        let root = root();
        let dir = create(root.path(), "vm-1");
        dir.record_child(QEMU, std::process::id()).expect("it runs");
        dir.mark_undead().expect("it can be written");
        abandon(root.path(), "vm-2", &[]);
        fs::write(root.path().join("vm-2").join(RECORD), "{").expect("it can be written");
        let mut found = list(root.path()).expect("it can be read");
        found.sort_by(|a, b| a.id.cmp(&b.id));
        let [one, two] = &found[..] else { panic!("{found:?}") };
        assert!(one.is_held && one.is_marked_undead && !two.is_held && !two.is_marked_undead);
        assert_eq!(one.record.as_ref().map(|record| record.vm_id.as_str()), Some("vm-1"));
        assert_eq!(one.children.len(), 1);
        assert!(two.record.is_none() && two.children.is_empty(), "{two:?}");
        drop(dir);
        assert_eq!(list(root.path()).expect("it can be read").len(), 1);
    }

    #[test]
    fn a_name_that_would_lead_elsewhere_is_refused() {
        let root = root();
        for id in ["", "..", "a/b", "/tmp/a"] {
            assert!(RunDir::create(root.path(), id, &Details::default()).is_err(), "{id:?}");
        }
        assert!(list(root.path()).expect("it can be read").is_empty());
    }

    #[test]
    fn an_empty_directory_without_a_lock_is_removed_and_a_full_one_is_not_ours() {
        let root = root();
        fs::create_dir(root.path().join("vm-empty")).expect("it is new");
        fs::create_dir(root.path().join("full")).expect("it is new");
        fs::write(root.path().join("full").join("file"), "").expect("it can be written");
        reap(root.path()).expect("it can be read");
        assert!(!root.path().join("vm-empty").exists());
        assert!(root.path().join("full").join("file").exists());
    }

    #[test]
    fn directories_that_come_and_go_disturb_neither_their_owners_nor_a_start() {
        let root = root();
        let begin = std::sync::Barrier::new(4);
        std::thread::scope(|scope| {
            for owner in 0..2 {
                let (root, begin) = (root.path(), &begin);
                scope.spawn(move || {
                    begin.wait();
                    for number in 0..500 {
                        let dir = create(root, &format!("vm-{owner}-{number}"));
                        fs::write(dir.path.join(CHILDREN), "qemu 1 1\n").expect("it is ours");
                        dir.remove().expect("a start elsewhere is no reason to fail");
                    }
                });
                scope.spawn(move || {
                    begin.wait();
                    for _ in 0..500 {
                        reap(root).expect("a directory that goes is no reason to fail");
                        list(root).expect("it can be read");
                    }
                });
            }
        });
        assert!(list(root.path()).expect("it can be read").is_empty());
    }

    #[test]
    fn a_directory_that_is_gone_already_is_as_good_as_removed() {
        let root = root();
        let dir = create(root.path(), "vm-1");
        fs::remove_dir_all(&dir.path).expect("it is ours");
        dir.remove().expect("there is nothing to do");
    }

    #[test]
    fn a_root_that_others_may_write_to_is_refused() {
        let root = root();
        fs::set_permissions(root.path(), fs::Permissions::from_mode(0o777)).expect("it is ours");
        assert!(RunDir::create(root.path(), "vm-1", &Details::default()).is_err());
    }
}
