//! Run directories: one per VM, held by a lock for as long as the process that made it lives.
//!
//! `<root>/<vm id>/` has the lock, the agent's socket, and `child`, which names QEMU's process. Whoever starts next takes the
//! locks that nobody holds any more, ends what those directories name, and removes them. The root's own lock is never removed
//! and makes "create and lock" and "try to take" one step each. A directory is removed without it: its own lock goes last, so
//! one without a lock is as good as gone.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use rustix::process::{Pid, PidfdFlags, Signal};
use tracing::{debug, warn};

/// Files of a run directory. QEMU removes the socket itself when it ends in good order.
const LOCK: &str = "lock";
const AGENT_SOCKET: &str = "agent";
const CHILD: &str = "child";

/// Why a run directory could not be made or cleared.
#[derive(Debug, thiserror::Error)]
#[error("{doing} {}", path.display())]
pub(crate) struct RunDirError {
    doing: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// The directory of one VM. Dropped, it is removed if [`remove`](Self::remove) was not called.
#[derive(Debug)]
pub(crate) struct RunDir {
    path: PathBuf,
    _lock: File,
}

/// What a dead process had left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Reaped {
    pub(crate) directories: usize,
    pub(crate) processes: usize,
}

/// The directories below a root.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Survey {
    /// Their processes live.
    pub(crate) held: usize,
    /// Their processes are gone.
    pub(crate) abandoned: usize,
}

/// Enough to know a process again: its id may be another's by now, its start time with it cannot.
#[derive(Clone, Debug, PartialEq, Eq)]
struct ProcessName {
    pid: i32,
    start_ticks: u64,
}

impl RunDir {
    /// Makes the directory of VM `id` below `root`, which is made too if it is missing.
    pub(crate) fn create(root: &Path, id: &str) -> Result<Self, RunDirError> {
        let _exclusive = lock_root(root)?;
        let path = root.join(id);
        let at = |doing| RunDirError::at(doing, &path);
        DirBuilder::new().mode(0o700).create(&path).map_err(at("creating the run directory"))?;
        match create_lock(&path.join(LOCK)).and_then(|lock| lock.lock().map(|()| lock)) {
            Ok(lock) => Ok(Self { path, _lock: lock }),
            Err(error) => {
                // Without a lock it has no owner who would remove it.
                let _ = clear(&path);
                Err(at("locking the run directory")(error))
            }
        }
    }

    /// Where the agent's channel listens.
    pub(crate) fn agent_socket(&self) -> PathBuf {
        self.path.join(AGENT_SOCKET)
    }

    /// Writes down QEMU's process, so that it can be ended if this one dies.
    pub(crate) fn record_child(&self, pid: u32) -> Result<(), RunDirError> {
        let path = self.path.join(CHILD);
        let at = |doing| RunDirError::at(doing, &path);
        let pid = i32::try_from(pid).map_err(io::Error::other).map_err(at("recording a process in"))?;
        let start_ticks = start_ticks(pid).map_err(at("recording a process in"))?;
        fs::write(&path, ProcessName { pid, start_ticks }.to_text()).map_err(at("recording a process in"))
    }

    /// Removes the directory and all in it.
    pub(crate) fn remove(self) -> Result<(), RunDirError> {
        clear(&self.path).map_err(RunDirError::at("removing the run directory", &self.path))
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        let _ = clear(&self.path);
    }
}

impl RunDirError {
    fn at<'a>(doing: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Self + use<'a> {
        move |source| Self { doing, path: path.into(), source }
    }
}

impl ProcessName {
    fn to_text(&self) -> String {
        format!("{} {}\n", self.pid, self.start_ticks)
    }

    fn parse(text: &str) -> Option<Self> {
        let (pid, start_ticks) = text.trim().split_once(' ')?;
        Some(Self { pid: pid.parse().ok()?, start_ticks: start_ticks.parse().ok()? })
    }
}

/// Ends and removes what processes that are gone have left below `root`. A directory that resists is left to the next start:
/// it is no reason to refuse this one.
pub(crate) fn reap(root: &Path) -> Result<Reaped, RunDirError> {
    let mut reaped = Reaped::default();
    each_directory(root, |path, held| {
        if held {
            return;
        }
        reaped.processes += usize::from(end_child(path));
        match clear(path) {
            Ok(()) => reaped.directories += 1,
            Err(error) => warn!(path = %path.display(), %error, "what a process has left cannot be removed"),
        }
    })?;
    Ok(reaped)
}

/// Counts the directories below `root`.
pub(crate) fn survey(root: &Path) -> Result<Survey, RunDirError> {
    let mut survey = Survey::default();
    each_directory(root, |_path, held| *(if held { &mut survey.held } else { &mut survey.abandoned }) += 1)?;
    Ok(survey)
}

/// Visits each VM's directory with whether somebody holds it. Its lock is held meanwhile if nobody else does.
fn each_directory(root: &Path, mut visit: impl FnMut(&Path, bool)) -> Result<(), RunDirError> {
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
        match OpenOptions::new().write(true).open(path.join(LOCK)) {
            Ok(lock) => visit(&path, lock.try_lock().is_err()),
            // On its way out, or left there by a process that ended on the way; one that has files in it is not ours.
            Err(error) if error.kind() == io::ErrorKind::NotFound => drop(fs::remove_dir(&path)),
            Err(error) => warn!(path = %path.display(), %error, "the lock of a run directory cannot be opened"),
        }
    }
    Ok(())
}

/// Removes a run directory, its lock last: as long as it is there, it tells whether the directory is in use. What another has
/// removed meanwhile is gone too.
fn clear(path: &Path) -> io::Result<()> {
    let gone = |result: io::Result<()>| match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    };
    for file in [AGENT_SOCKET, CHILD, LOCK] {
        gone(fs::remove_file(path.join(file)))?;
    }
    // So far no descriptor was needed, and a process that clears up because it has run out of them has none.
    match fs::remove_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => gone(fs::remove_dir_all(path)),
        removed => gone(removed),
    }
}

/// Ends the process that the directory names, if it is still that process. QEMU's command line has the VM's id in it.
fn end_child(dir: &Path) -> bool {
    let Ok(text) = fs::read_to_string(dir.join(CHILD)) else { return false };
    let (Some(name), Some(id)) = (ProcessName::parse(&text), dir.file_name()) else { return false };
    let Some(pid) = Pid::from_raw(name.pid) else { return false };
    // The descriptor is taken before the process is looked at, so that what is killed is what was looked at.
    let Ok(pidfd) = rustix::process::pidfd_open(pid, PidfdFlags::empty()) else { return false };
    let cmdline = fs::read(format!("/proc/{}/cmdline", name.pid)).unwrap_or_default();
    let is_ours = start_ticks(name.pid).is_ok_and(|ticks| ticks == name.start_ticks)
        && String::from_utf8_lossy(&cmdline).contains(&*id.to_string_lossy());
    is_ours && rustix::process::pidfd_send_signal(&pidfd, Signal::KILL).is_ok()
}

/// When a process started, in clock ticks since boot: field 22 of `/proc/<pid>/stat`.
fn start_ticks(pid: i32) -> io::Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The second field is the name in parentheses, and may contain anything; the third follows its last one.
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let field = after_name.split_ascii_whitespace().nth(19).and_then(|field| field.parse().ok());
    field.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "/proc/<pid>/stat has no start time"))
}

fn lock_root(root: &Path) -> Result<File, RunDirError> {
    let at = |doing| RunDirError::at(doing, root);
    DirBuilder::new().recursive(true).mode(0o700).create(root).map_err(at("creating"))?;
    let metadata = fs::symlink_metadata(root).map_err(at("examining"))?;
    if !metadata.is_dir() || metadata.uid() != rustix::process::geteuid().as_raw() || metadata.mode() & 0o022 != 0 {
        let refused =
            io::Error::new(io::ErrorKind::PermissionDenied, "it must be a directory that only this user may write to");
        return Err(at("using")(refused));
    }
    let lock = create_lock(&root.join(LOCK)).map_err(at("locking"))?;
    if lock.try_lock().is_err() {
        debug!(root = %root.display(), "waiting for another process that starts or prepares a VM");
        lock.lock().map_err(at("locking"))?;
    }
    Ok(lock)
}

fn create_lock(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path)
}

#[cfg(test)]
mod tests {
    use std::{
        os::unix::fs::PermissionsExt,
        process::{Child, Command, Stdio},
    };

    use super::*;

    fn root() -> tempfile::TempDir {
        tempfile::tempdir().expect("a temporary directory")
    }

    /// A process with `id` in its command line that waits for input and has no children.
    fn waiting_shell(id: &str) -> Child {
        let shell =
            Command::new("/bin/sh").args(["-c", "read -r line", id]).stdin(Stdio::piped()).spawn().expect("sh starts");
        // For a moment after `execve` a process has no command line.
        while fs::read(format!("/proc/{}/cmdline", shell.id())).expect("it runs").is_empty() {
            std::thread::yield_now();
        }
        shell
    }

    /// What a process leaves that was killed: the directory is there and nobody holds the lock.
    fn abandon(root: &Path, id: &str, child: Option<&ProcessName>) {
        fs::create_dir(root.join(id)).expect("it is new");
        fs::write(root.join(id).join(LOCK), "").expect("it can be written");
        if let Some(name) = child {
            fs::write(root.join(id).join(CHILD), name.to_text()).expect("it can be written");
        }
    }

    #[test]
    fn a_directory_in_use_is_not_reaped_and_a_dropped_one_is_gone() {
        let root = root();
        let dir = RunDir::create(root.path(), "vm-1").expect("it can be made");
        assert_eq!(reap(root.path()).expect("it can be read"), Reaped::default());
        assert!(dir.path.exists());
        drop(dir);
        assert!(!root.path().join("vm-1").exists());
    }

    #[test]
    fn an_abandoned_directory_is_removed_and_its_process_ended() {
        let root = root();
        let mut sleeper = waiting_shell("vm-dead");
        let pid = i32::try_from(sleeper.id()).expect("pids are small");
        let name = ProcessName { pid, start_ticks: start_ticks(pid).expect("it runs") };
        abandon(root.path(), "vm-dead", Some(&name));
        assert_eq!(reap(root.path()).expect("it can be read"), Reaped { directories: 1, processes: 1 });
        assert!(!sleeper.wait().expect("it is ours").success());
        assert!(!root.path().join("vm-dead").exists());
    }

    #[test]
    fn a_process_that_only_shares_the_id_or_only_the_name_is_left_alone() {
        let root = root();
        let mut sleeper = waiting_shell("vm-a");
        let pid = i32::try_from(sleeper.id()).expect("pids are small");
        let ticks = start_ticks(pid).expect("it runs");
        abandon(root.path(), "vm-a", Some(&ProcessName { pid, start_ticks: ticks + 1 }));
        abandon(root.path(), "vm-b", Some(&ProcessName { pid, start_ticks: ticks }));
        assert_eq!(reap(root.path()).expect("it can be read"), Reaped { directories: 2, processes: 0 });
        assert!(sleeper.try_wait().expect("it is ours").is_none(), "it still runs");
        sleeper.kill().expect("it is ours");
        sleeper.wait().expect("it is ours");
    }

    #[test]
    fn one_directory_that_cannot_be_cleared_does_not_keep_a_start_from_the_others() {
        let root = root();
        abandon(root.path(), "vm-a", None);
        abandon(root.path(), "vm-c", None);
        // A lock that nobody can open, whoever runs this.
        fs::create_dir_all(root.path().join("vm-b").join(LOCK)).expect("it is new");
        assert_eq!(reap(root.path()).expect("it can be read"), Reaped { directories: 2, processes: 0 });
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
                        let dir = RunDir::create(root, &format!("vm-{owner}-{number}")).expect("it is new");
                        fs::write(dir.path.join(CHILD), "1 1").expect("it is ours");
                        dir.remove().expect("a start elsewhere is no reason to fail");
                    }
                });
                scope.spawn(move || {
                    begin.wait();
                    for _ in 0..500 {
                        reap(root).expect("a directory that goes is no reason to fail");
                        survey(root).expect("it can be read");
                    }
                });
            }
        });
        assert_eq!(survey(root.path()).expect("it can be read"), Survey::default());
    }

    #[test]
    fn a_directory_that_is_gone_already_is_as_good_as_removed() {
        let root = root();
        let dir = RunDir::create(root.path(), "vm-1").expect("it is new");
        fs::remove_dir_all(&dir.path).expect("it is ours");
        dir.remove().expect("there is nothing to do");
    }

    #[test]
    fn a_root_that_others_may_write_to_is_refused() {
        let root = root();
        fs::set_permissions(root.path(), fs::Permissions::from_mode(0o777)).expect("it is ours");
        assert!(RunDir::create(root.path(), "vm-1").is_err());
    }
}
