//! Ending one VM from outside, whoever owns it.
//!
//! Its processes are killed. If its owner lives, the owner sees that, clears up as after any death, and is waited for; if the
//! owner is gone, or goes meanwhile, the directory is taken and removed here. Nothing sleeps: what is waited for is watched.

use std::{
    fs, io,
    os::fd::{AsFd, OwnedFd},
    path::Path,
    time::{Duration, Instant},
};

use rustix::{
    fs::inotify::{self, CreateFlags, WatchFlags},
    io::Errno,
};

use super::{
    CHILDREN, ChildRecord, RECORD, Record, RunDirError,
    identity::{self, Known, ProcessName},
    lock::Lock,
    lock_root,
    reap::{Resistance, Taken},
};

/// How long a VM's processes may take to die and its owner to clear up after them: longer than the owner gives itself.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why a VM is not confirmed to be gone.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EndError {
    #[error("using the run directory")]
    RunDir(#[from] RunDirError),
    #[error("watching the VM")]
    Watch(#[source] io::Error),
    #[error(transparent)]
    Resists(#[from] Resistance),
    #[error("its processes are dead, and its owner{} has not cleared up within {} s", of(.owner.as_ref()), PATIENCE.as_secs())]
    OwnerIsSlow { owner: Option<ProcessName> },
}

/// Whose a directory is when it is looked at.
enum Holder {
    Nobody(Taken),
    Somebody,
    /// It is gone.
    Gone,
}

/// A VM whose owner lives, as somebody sees it who wants it gone.
struct Target<'a> {
    root: &'a Path,
    id: &'a str,
    watch: OwnedFd,
    killed: Vec<(String, Known)>,
    owner: Option<Known>,
}

/// Ends the VM `id` below `root` and returns once its processes are dead and its directory is gone.
pub(crate) fn end(root: &Path, id: &str) -> Result<(), EndError> {
    end_within(root, id, PATIENCE)
}

fn end_within(root: &Path, id: &str, patience: Duration) -> Result<(), EndError> {
    let until = Instant::now() + patience;
    let Some(mut target) = Target::watch(root, id)? else { return Ok(()) };
    loop {
        match target.take()? {
            Holder::Gone => return Ok(()),
            Holder::Nobody(taken) => return Ok(taken.end(until).map(drop)?),
            Holder::Somebody => target.kill()?,
        }
        if Instant::now() >= until {
            return Err(target.resists());
        }
        target.wait(until).map_err(EndError::Watch)?;
    }
}

impl<'a> Target<'a> {
    /// Begins to watch, before anything is looked at, so that nothing happens unseen. `None`: it is gone.
    fn watch(root: &'a Path, id: &'a str) -> Result<Option<Self>, EndError> {
        let path = root.join(id);
        let add = |watch: &OwnedFd| {
            inotify::add_watch(watch, root, WatchFlags::DELETE)?;
            // Processes that are written down, and the lock that goes.
            inotify::add_watch(watch, &path, WatchFlags::CREATE | WatchFlags::MODIFY | WatchFlags::DELETE)
        };
        let watching = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)
            .and_then(|watch| add(&watch).map(|_number| watch));
        let watch = match watching {
            Ok(watch) => watch,
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(EndError::Watch(error.into())),
        };
        let owner = Record::read(&path.join(RECORD)).ok().and_then(|it| it.owner.process.find(None).ok().flatten());
        Ok(Some(Self { root, id, watch, killed: Vec::new(), owner }))
    }

    fn take(&self) -> Result<Holder, EndError> {
        let path = self.root.join(self.id);
        let _exclusive = lock_root(self.root)?;
        match Lock::take(&path) {
            Ok(Some(lock)) => Ok(Holder::Nobody(Taken::new(&path, lock))),
            Ok(None) => Ok(Holder::Somebody),
            // On its way out, or left there by a process that ended on the way.
            Err(error) if error.kind() == io::ErrorKind::NotFound => match fs::remove_dir(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Ok(Holder::Somebody),
                _ => Ok(Holder::Gone),
            },
            Err(error) => Err(RunDirError::at("opening the lock in", &path)(error).into()),
        }
    }

    /// Sends SIGKILL to the processes that are there and have not got it yet.
    fn kill(&mut self) -> Result<(), EndError> {
        let children = ChildRecord::read_all(&self.root.join(self.id).join(CHILDREN)).map_err(Resistance::Children)?;
        for ChildRecord { role, process } in children {
            let pid = process.pid;
            if self.killed.iter().any(|(_, known)| known.name == process) {
                continue;
            }
            let found = process.find(Some(self.id));
            let found = found.map_err(|source| Resistance::Examine { role: role.clone(), pid, source })?;
            let Some(known) = found else { continue };
            known.kill().map_err(|source| Resistance::Kill { role: role.clone(), pid, source })?;
            self.killed.push((role, known));
        }
        Ok(())
    }

    /// Waits until something has changed: a process has died, or a file has come or gone.
    fn wait(&self, until: Instant) -> io::Result<()> {
        let processes = self.killed.iter().map(|(_, known)| known).chain(&self.owner);
        let alive = processes.filter(|process| !process.is_dead()).map(AsFd::as_fd);
        identity::wait_for_any(alive.chain([self.watch.as_fd()]), until)?;
        // What exactly has happened is looked up; here it is only taken note of.
        let mut events = [0; 4096];
        while rustix::io::read(&self.watch, &mut events).is_ok_and(|read| read > 0) {}
        Ok(())
    }

    fn resists(&self) -> EndError {
        match self.killed.iter().find(|(_, known)| !known.is_dead()) {
            Some((role, known)) => Resistance::Undead { role: role.clone(), pid: known.name.pid }.into(),
            None => EndError::OwnerIsSlow { owner: self.owner.as_ref().map(|known| known.name) },
        }
    }
}

fn of(owner: Option<&ProcessName>) -> String {
    owner.map(|owner| format!(", process {},", owner.pid)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::{fs::File, thread};

    use super::{
        super::{Details, LOCK, QEMU, RunDir, identity::tests::waiting_shell, list, reap},
        *,
    };

    fn owned(root: &Path, id: &str) -> RunDir {
        RunDir::create(root, id, &Details::default()).expect("it is new")
    }

    #[test]
    fn a_vm_whose_owner_lives_is_gone_when_its_owner_has_cleared_up() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let dir = owned(root.path(), "vm-1");
        let mut qemu = waiting_shell("vm-1");
        dir.record_child(QEMU, qemu.id()).expect("it runs");
        let owner = thread::spawn(move || {
            qemu.wait().expect("it is ours");
            dir.remove().expect("nobody else removes it");
        });
        end(root.path(), "vm-1").expect("the owner is there");
        assert!(!root.path().join("vm-1").exists());
        owner.join().expect("no panic");
    }

    #[test]
    fn a_process_that_is_written_down_while_somebody_waits_is_ended_too() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let dir = owned(root.path(), "vm-1");
        let ending = {
            let root = root.path().to_owned();
            thread::spawn(move || end(&root, "vm-1"))
        };
        let mut qemu = waiting_shell("vm-1");
        dir.record_child(QEMU, qemu.id()).expect("it runs");
        assert!(!qemu.wait().expect("it is ours").success());
        dir.remove().expect("nobody else removes it");
        ending.join().expect("no panic").expect("it is gone");
    }

    #[test]
    fn an_owner_that_goes_meanwhile_leaves_the_directory_to_whoever_waits() {
        let root = tempfile::tempdir().expect("a temporary directory");
        fs::create_dir(root.path().join("vm-1")).expect("it is new");
        let lock = File::create(root.path().join("vm-1").join(LOCK)).expect("it is new");
        lock.lock().expect("nobody has it");
        let mut owner = waiting_shell("owner");
        let process = ProcessName::of(owner.id()).expect("it runs");
        let mut record = Record::new("vm-1", &Details::default()).expect("this process can be named");
        record.owner.process = process;
        record.write(&root.path().join("vm-1").join(RECORD)).expect("it can be written");
        let ending = {
            let root = root.path().to_owned();
            thread::spawn(move || end(&root, "vm-1"))
        };
        // As the kernel does it: what a process holds is let go before its death is seen.
        drop(lock);
        owner.kill().expect("it is ours");
        ending.join().expect("no panic").expect("it is gone");
        assert!(!root.path().join("vm-1").exists());
        owner.wait().expect("it is ours");
    }

    #[test]
    fn an_abandoned_vm_is_ended_and_removed_and_one_that_is_not_there_is_gone() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let dir = root.path().join("vm-1");
        fs::create_dir(&dir).expect("it is new");
        File::create(dir.join(LOCK)).expect("it is new");
        let mut qemu = waiting_shell("vm-1");
        let process = ProcessName::of(qemu.id()).expect("it runs");
        ChildRecord { role: QEMU.into(), process }.append(&dir.join(CHILDREN)).expect("it can be written");
        end(root.path(), "vm-1").expect("it dies");
        assert!(!qemu.wait().expect("it is ours").success());
        assert!(list(root.path()).expect("it can be read").is_empty());
        end(root.path(), "vm-1").expect("it is gone already");
    }

    #[test]
    fn whoever_ends_a_vm_at_the_same_time_sees_it_gone() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let begin = std::sync::Barrier::new(4);
        for number in 0..20 {
            let id = format!("vm-{number}");
            let dir = owned(root.path(), &id);
            let mut qemu = waiting_shell(&id);
            dir.record_child(QEMU, qemu.id()).expect("it runs");
            dir.abandon();
            thread::scope(|scope| {
                for ender in 0..4 {
                    let (root, id, begin) = (root.path(), &id, &begin);
                    scope.spawn(move || {
                        begin.wait();
                        if ender == 0 {
                            let reaped = reap(root).expect("it can be read");
                            assert!(reaped.resisted.is_empty(), "{reaped:?}");
                            return;
                        }
                        end(root, id).expect("it dies");
                        assert!(!root.join(id).exists());
                    });
                }
            });
            assert!(!qemu.wait().expect("it is ours").success());
        }
    }

    #[test]
    fn an_owner_that_does_not_clear_up_is_named() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let dir = owned(root.path(), "vm-1");
        let error = end_within(root.path(), "vm-1", Duration::ZERO).expect_err("nobody clears up");
        assert!(matches!(error, EndError::OwnerIsSlow { owner: Some(owner) } if owner.pid == std::process::id()));
        dir.remove().expect("it is left to its owner");
    }
}
