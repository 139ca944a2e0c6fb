//! A VM's control group: what the host lets one VM have, and proof that nothing of it lives.
//!
//! Groups of version 2 are made where this process may make them, and nowhere else: it is never moved itself, and a group of
//! systemd's is only touched when it was delegated. A group belongs to whoever has its directory locked, so that the next start
//! can tell those that a dead process has left.
//!
//! How much of the host's own memory a VM's group may have is the caller's to say. There is no limit of swap: an idle VM's pages
//! are what a host with many VMs wants to swap out, and whether it has swap at all is its owner's choice.

use std::{
    fs::{self, File},
    io::{self, Read, Seek},
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};
use tokio::io::Interest;
use tracing::{debug, warn};

use super::pidfd;
use crate::maker::Maker;

/// How the names of groups begin.
const PREFIX: &str = "exec-sandbox.";

/// Processes and threads of one VM. QEMU has about ten, and a burst of reads adds a few; a hundred have been too few.
const PIDS: u32 = 256;

/// How often a group is made anew that another process, which clears up, has removed in the moment before it was locked.
const ATTEMPTS: usize = 8;

/// How long a drop, which cannot await, waits for a group to be empty.
const DROP_PATIENCE: Timespec = Timespec { tv_sec: 2, tv_nsec: 0 };

/// A group in which groups for VMs may be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Delegated {
    dir: PathBuf,
}

/// The group of one VM. Dropped, all in it is killed and it is removed.
#[derive(Debug)]
pub(crate) struct VmCgroup {
    dir: PathBuf,
    /// The directory, locked. A process that is forked has the lock too, and a group whose maker is gone stays, empty, until that one
    /// is gone as well.
    _held: File,
    maker: Maker,
    removed: bool,
}

/// Why there are no groups for VMs.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoGroups {
    #[error("this process is in no group of version 2")]
    NotMounted,
    #[error("{} has no controllers of memory and pids", dir.display())]
    NoControllers { dir: PathBuf },
    #[error("{} is systemd's and was not delegated", dir.display())]
    NotDelegated { dir: PathBuf },
    #[error("{doing} {}", dir.display())]
    Refused { doing: &'static str, dir: PathBuf, source: io::Error },
}

impl Delegated {
    /// The group `named`, else that of this process or the one around it. Removes what dead processes have left there.
    pub(crate) fn find(named: Option<&Path>) -> Result<Self, NoGroups> {
        let found = match named {
            Some(dir) => Self::examine(dir),
            None => {
                let read = |file| fs::read_to_string(file).unwrap_or_default();
                Self::around_this_process(&read("/proc/self/cgroup"), &read("/proc/self/mountinfo"))
            }
        }?;
        found.sweep();
        Ok(found)
    }

    /// Makes the group of VM `id`, with at most `memory_bytes` of the host's memory.
    pub(crate) fn create(&self, id: &str, memory_bytes: u64) -> io::Result<VmCgroup> {
        let group = VmCgroup::create(self.dir.join(format!("{PREFIX}{id}")))?;
        limit(&group.dir, memory_bytes)?;
        Ok(group)
    }

    fn around_this_process(memberships: &str, mounts: &str) -> Result<Self, NoGroups> {
        let (point, own) = own_group(memberships, mounts).ok_or(NoGroups::NotMounted)?;
        let examine = |dir: &Path| match is_systemds(dir) {
            true => Err(NoGroups::NotDelegated { dir: dir.into() }),
            false => Self::examine(dir),
        };
        // Below a group that has processes none can have controllers, but for the root: often only the one around is of use.
        examine(&own).or_else(|error| match own.parent().filter(|around| around.starts_with(&point)) {
            Some(around) => examine(around),
            None => Err(error),
        })
    }

    /// Whether groups below `dir` have the controllers, which are turned on there if they are not.
    fn examine(dir: &Path) -> Result<Self, NoGroups> {
        let refused = |doing| move |source| NoGroups::Refused { doing, dir: dir.into(), source };
        let lacks_one = |file: &str| {
            let text = fs::read_to_string(dir.join(file)).map_err(refused("examining"))?;
            let has = |controller| text.split_ascii_whitespace().any(|word| word == controller);
            Ok(!has("memory") || !has("pids"))
        };
        if lacks_one("cgroup.controllers")? {
            return Err(NoGroups::NoControllers { dir: dir.into() });
        }
        if lacks_one("cgroup.subtree_control")? {
            write(&dir.join("cgroup.subtree_control"), "+memory +pids")
                .map_err(refused("turning on controllers in"))?;
        }
        Ok(Self { dir: dir.into() })
    }

    /// Removes the groups that nobody holds. Their processes have died with those that made them.
    fn sweep(&self) {
        let entries = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        for entry in entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(PREFIX)) {
            let Ok(group) = File::open(entry.path()) else { continue };
            if group.try_lock().is_ok() {
                let removed = fs::remove_dir(entry.path());
                debug!(group = %entry.path().display(), ?removed, "a process that is gone had left it");
            }
        }
    }
}

impl VmCgroup {
    pub(super) fn create(dir: PathBuf) -> io::Result<Self> {
        for _ in 0..ATTEMPTS {
            fs::create_dir(&dir)?;
            let held = File::open(&dir).and_then(|held| held.lock().map(|()| held));
            // Locked, it stays. Before that it looked like one that a dead process has left.
            match held {
                Ok(held) if dir.exists() => {
                    return Ok(Self { dir, _held: held, maker: Maker::this_process(), removed: false });
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    let _ = fs::remove_dir(&dir);
                    return Err(error);
                }
            }
        }
        Err(io::Error::other("the control group is removed as soon as it is made"))
    }

    /// The file through which a process joins.
    pub(super) fn entrance(&self) -> io::Result<OwnedFd> {
        Ok(File::options().write(true).open(self.dir.join("cgroup.procs"))?.into())
    }

    /// Kills all that is in it. A kernel older than 5.14 cannot, and there the death of the one process has to be enough.
    pub(super) fn kill(&self) -> io::Result<()> {
        match write(&self.dir.join("cgroup.kill"), "1") {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Waits until nothing in it lives, and removes it. May be dropped and called again.
    pub(super) async fn remove(&mut self) -> io::Result<()> {
        if self.try_remove() {
            return Ok(());
        }
        let mut events = pidfd::watch(File::open(self.dir.join("cgroup.events"))?)?;
        while is_populated(events.get_mut())? {
            events.ready(Interest::PRIORITY).await?.clear_ready();
        }
        if !self.try_remove() {
            // Nothing lives in it, which is what counts. The next start tries again.
            warn!(group = %self.dir.display(), "an empty control group cannot be removed");
            self.removed = true;
        }
        Ok(())
    }

    fn try_remove(&mut self) -> bool {
        self.removed |= match fs::remove_dir(&self.dir) {
            Ok(()) => true,
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        };
        self.removed
    }
}

impl Drop for VmCgroup {
    fn drop(&mut self) {
        if !self.maker.is_this_process() || self.removed || self.try_remove() || self.kill().is_err() {
            return;
        }
        let Ok(mut events) = File::open(self.dir.join("cgroup.events")) else { return };
        while is_populated(&mut events).unwrap_or(false) {
            let changed = poll(&mut [PollFd::from_borrowed_fd(events.as_fd(), PollFlags::PRI)], Some(&DROP_PATIENCE));
            if !changed.is_ok_and(|changed| changed > 0) {
                return;
            }
        }
        self.try_remove();
    }
}

/// Writes a group's limits. Memory that cannot be had kills all of the group, never one process of two.
fn limit(dir: &Path, memory_bytes: u64) -> io::Result<()> {
    write(&dir.join("memory.max"), &memory_bytes.to_string())?;
    write(&dir.join("memory.oom.group"), "1")?;
    write(&dir.join("pids.max"), &PIDS.to_string())
}

/// Reading it also says that its state is known, so that the next change is told.
fn is_populated(events: &mut File) -> io::Result<bool> {
    let mut text = String::new();
    events.rewind()?;
    match events.read_to_string(&mut text) {
        Ok(_) => Ok(text.lines().any(|line| line == "populated 1")),
        // Somebody has removed it.
        Err(error) if Errno::from_io_error(&error) == Some(Errno::NODEV) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Writes a file of the kernel's, which is there already.
fn write(file: &Path, text: &str) -> io::Result<()> {
    let file = File::options().write(true).open(file)?;
    rustix::io::write(file, text.as_bytes()).map(drop).map_err(io::Error::from)
}

/// Whether systemd, the system's or a user's, manages `dir` itself: groups of others in there it would neither expect nor spare.
fn is_systemds(dir: &Path) -> bool {
    let marked = |name| {
        let mut value = [0; 1];
        rustix::fs::getxattr(dir, name, &mut value).is_ok_and(|length| value.get(..length) == Some(b"1"))
    };
    Path::new("/run/systemd/system").exists() && !marked("user.delegate") && !marked("trusted.delegate")
}

/// Where the hierarchy of version 2 is mounted, and the directory of this process's group in it.
fn own_group(memberships: &str, mounts: &str) -> Option<(PathBuf, PathBuf)> {
    let path = memberships.lines().find_map(|line| line.strip_prefix("0::"))?;
    mounts.lines().find_map(|line| {
        // `id parent dev root point options … - type source super-options`
        let (place, kind) = line.split_once(" - ")?;
        let mut place = place.split(' ').skip(3);
        let (root, point) = (place.next()?, PathBuf::from(place.next()?));
        let below = Path::new(path).strip_prefix(root).ok().filter(|_| kind.starts_with("cgroup2 "))?;
        // A path of nothing would end in a slash.
        let own = if below.as_os_str().is_empty() { point.clone() } else { point.join(below) };
        Some((point, own))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::maker::tests::{fork, is_well};

    /// A group's directory as its files look, in a directory of this test's.
    fn pretend(controllers: &str, enabled: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a temporary directory");
        for (file, text) in [("cgroup.controllers", controllers), ("cgroup.subtree_control", enabled)] {
            fs::write(dir.path().join(file), text).expect("it is ours");
        }
        dir
    }

    fn mounted(dir: &Path) -> String {
        format!("31 23 0:28 / {} rw,relatime shared:9 - cgroup2 cgroup2 rw\n", dir.display())
    }

    #[test]
    fn limits_are_written_as_the_kernel_reads_them() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        for file in ["memory.max", "memory.oom.group", "pids.max"] {
            fs::write(dir.path().join(file), "").expect("it is ours");
        }
        limit(dir.path(), 512 << 20).expect("they are there");
        let read = |file| fs::read_to_string(dir.path().join(file)).expect("it is there");
        assert_eq!([read("memory.max"), read("memory.oom.group"), read("pids.max")], ["536870912", "1", "256"]);
        fs::remove_file(dir.path().join("pids.max")).expect("it is ours");
        limit(dir.path(), 1).expect_err("a limit that the kernel does not have is not made up");
    }

    #[test]
    fn controllers_are_turned_on_where_they_can_be_had() {
        let dir = pretend("cpu memory pids", "cpu\n");
        let found = Delegated::find(Some(dir.path())).expect("it has the controllers");
        assert_eq!(found.dir, dir.path());
        let written = fs::read_to_string(dir.path().join("cgroup.subtree_control")).expect("it is there");
        assert_eq!(written, "+memory +pids");
    }

    #[test]
    fn a_group_without_controllers_is_refused_by_name() {
        let dir = pretend("hugetlb\n", "");
        let error = Delegated::find(Some(dir.path())).expect_err("it lacks both");
        assert!(matches!(error, NoGroups::NoControllers { .. }), "{error}");
        let error = Delegated::find(Some(Path::new("/no/such/group"))).expect_err("it is not there");
        assert!(matches!(error, NoGroups::Refused { .. }), "{error}");
    }

    #[test]
    fn the_group_around_this_process_is_taken_when_its_own_has_nothing_to_give() {
        let around = pretend("memory pids", "memory pids");
        let own = around.path().join("main");
        fs::create_dir(&own).expect("it is new");
        fs::write(own.join("cgroup.controllers"), "").expect("it is ours");
        let find = |memberships: &str| Delegated::around_this_process(memberships, &mounted(around.path()));
        // Where systemd runs this directory is refused, because it is not marked as delegated.
        if is_systemds(around.path()) {
            assert!(matches!(find("0::/main\n"), Err(NoGroups::NotDelegated { .. })));
            return;
        }
        assert_eq!(find("4:memory:/elsewhere\n0::/main\n").expect("it has them").dir, around.path());
        assert_eq!(find("0::/\n").expect("it has them").dir, around.path());
        assert!(matches!(find("4:memory:/elsewhere\n"), Err(NoGroups::NotMounted)));
    }

    #[test]
    fn nothing_above_the_mounted_hierarchy_is_looked_at() {
        let mount = pretend("", "");
        let error = Delegated::around_this_process("0::/\n", &mounted(mount.path())).expect_err("it has none");
        let told_of = |dir: &Path| dir == mount.path();
        assert!(
            matches!(&error, NoGroups::NoControllers { dir } | NoGroups::NotDelegated { dir } if told_of(dir)),
            "{error}"
        );
    }

    #[test]
    fn a_forked_process_leaves_the_group_to_its_maker() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("exec-sandbox.vm-1");
        let mut group = Some(VmCgroup::create(path.clone()).expect("it is new"));
        assert!(is_well(fork(|| {
            drop(group.take());
            path.exists()
        })));
        drop(group);
        assert!(!path.exists());
    }

    #[test]
    fn what_a_dead_process_has_left_is_removed_and_what_is_held_is_not() {
        let dir = pretend("memory pids", "memory pids");
        let held = VmCgroup::create(dir.path().join("exec-sandbox.vm-held")).expect("it is new");
        for left in ["exec-sandbox.vm-left", "another"] {
            fs::create_dir(dir.path().join(left)).expect("it is new");
        }
        Delegated::find(Some(dir.path())).expect("it has the controllers");
        assert!(held.dir.exists() && dir.path().join("another").exists());
        assert!(!dir.path().join("exec-sandbox.vm-left").exists());
        drop(held);
        assert!(!dir.path().join("exec-sandbox.vm-held").exists());
    }
}
