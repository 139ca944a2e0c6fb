//! Run directories: one per VM, held by a lock for as long as the process that made it lives.
//!
//! `<root>/<vm id>/` has the lock, the agent's socket, and `child`, which names QEMU's process. Whoever starts next takes the
//! locks that nobody holds any more, ends what those directories name, and removes them. The root's own lock is never removed
//! and makes "create and lock" and "try to take" one step each.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use rustix::process::{Pid, PidfdFlags, Signal};

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
        let lock = open_lock(&path.join("lock")).map_err(at("locking the run directory"))?;
        lock.lock().map_err(at("locking the run directory"))?;
        Ok(Self { path, _lock: lock })
    }

    /// Where the agent's channel listens.
    pub(crate) fn agent_socket(&self) -> PathBuf {
        self.path.join("agent")
    }

    /// Writes down QEMU's process, so that it can be ended if this one dies.
    pub(crate) fn record_child(&self, pid: u32) -> Result<(), RunDirError> {
        let path = self.path.join("child");
        let at = |doing| RunDirError::at(doing, &path);
        let pid = i32::try_from(pid).map_err(io::Error::other).map_err(at("recording a process in"))?;
        let start_ticks = start_ticks(pid).map_err(at("recording a process in"))?;
        fs::write(&path, ProcessName { pid, start_ticks }.to_text()).map_err(at("recording a process in"))
    }

    /// Removes the directory and all in it.
    pub(crate) fn remove(self) -> Result<(), RunDirError> {
        fs::remove_dir_all(&self.path).map_err(RunDirError::at("removing the run directory", &self.path))
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
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

/// Ends and removes what processes that are gone have left below `root`.
pub(crate) fn reap(root: &Path) -> Result<Reaped, RunDirError> {
    let mut reaped = Reaped::default();
    each_directory(root, |path, held| {
        if held {
            return Ok(());
        }
        reaped.processes += usize::from(end_child(path));
        reaped.directories += 1;
        fs::remove_dir_all(path).map_err(RunDirError::at("removing", path))
    })?;
    Ok(reaped)
}

/// Counts the directories below `root` and changes nothing.
pub(crate) fn survey(root: &Path) -> Result<Survey, RunDirError> {
    let mut survey = Survey::default();
    each_directory(root, |_path, held| {
        *(if held { &mut survey.held } else { &mut survey.abandoned }) += 1;
        Ok(())
    })?;
    Ok(survey)
}

/// Visits each VM's directory with whether somebody holds it. Its lock is held meanwhile if nobody else does.
fn each_directory(
    root: &Path,
    mut visit: impl FnMut(&Path, bool) -> Result<(), RunDirError>,
) -> Result<(), RunDirError> {
    if !root.exists() {
        return Ok(());
    }
    let _exclusive = lock_root(root)?;
    for entry in fs::read_dir(root).map_err(RunDirError::at("reading", root))? {
        let path = entry.map_err(RunDirError::at("reading", root))?.path();
        if path.is_dir() {
            let lock = open_lock(&path.join("lock")).map_err(RunDirError::at("locking", &path))?;
            visit(&path, lock.try_lock().is_err())?;
        }
    }
    Ok(())
}

/// Ends the process that the directory names, if it is still that process. QEMU's command line has the VM's id in it.
fn end_child(dir: &Path) -> bool {
    let Ok(text) = fs::read_to_string(dir.join("child")) else { return false };
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
    let lock = open_lock(&root.join("lock")).map_err(at("locking"))?;
    lock.lock().map_err(at("locking"))?;
    Ok(lock)
}

fn open_lock(path: &Path) -> io::Result<File> {
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
        fs::write(root.join(id).join("lock"), "").expect("it can be written");
        if let Some(name) = child {
            fs::write(root.join(id).join("child"), name.to_text()).expect("it can be written");
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
    fn a_root_that_others_may_write_to_is_refused() {
        let root = root();
        fs::set_permissions(root.path(), fs::Permissions::from_mode(0o777)).expect("it is ours");
        assert!(RunDir::create(root.path(), "vm-1").is_err());
    }
}
