//! Reaping: ending and removing what processes that are gone have left.
//!
//! A directory is taken by its lock, under the root's; then the root is free for others, who take this one for held. It is
//! removed once the death of everything that it names is confirmed. What resists is marked and left to the next.

use std::{
    collections::BTreeSet,
    io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use tracing::warn;

use super::{
    CHILDREN, ChildRecord, RunDirError, clear, each_directory, id_of, identity, identity::Known, lock::Lock,
    mark_undead,
};

/// How long all that is killed may take to die, together: a start waits for it.
const DEATH_PATIENCE: Duration = Duration::from_secs(2);

/// Directories that are taken at once. Each holds a descriptor, and one for each of its processes, under a limit that may not
/// have been raised yet.
const BATCH: usize = 64;

/// What was done about processes that are gone.
#[derive(Debug, Default)]
pub(crate) struct Reaped {
    /// Processes that were alive and are dead.
    pub(crate) ended: Vec<Ended>,
    /// VMs whose directories are gone.
    pub(crate) removed: Vec<String>,
    /// VMs of which something is left, and why.
    pub(crate) resisted: Vec<(String, Resistance)>,
}

/// A process that was ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ended {
    pub(crate) vm_id: String,
    pub(crate) role: String,
    pub(crate) pid: u32,
}

/// Why something is left of a VM.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Resistance {
    #[error("reading the processes of the VM")]
    Children(#[source] io::Error),
    #[error("examining process {pid} ({role})")]
    Examine {
        role: String,
        pid: u32,
        #[source]
        source: io::Error,
    },
    #[error("ending process {pid} ({role})")]
    Kill {
        role: String,
        pid: u32,
        #[source]
        source: io::Error,
    },
    #[error("process {pid} ({role}) has not died of SIGKILL")]
    Undead { role: String, pid: u32 },
    #[error("waiting for the death of processes")]
    Wait(#[source] io::Error),
    #[error("clearing up after the VM")]
    RunDir(#[from] RunDirError),
}

/// A directory of nobody's, which is ours now.
#[derive(Debug)]
pub(super) struct Taken {
    path: PathBuf,
    _lock: Lock,
    killed: Vec<(String, Known)>,
}

impl Taken {
    pub(super) fn new(path: &Path, lock: Lock) -> Self {
        Self { path: path.into(), _lock: lock, killed: Vec::new() }
    }

    /// Sends SIGKILL to every process of the VM that is there.
    fn kill(&mut self) -> Result<(), Resistance> {
        let children = ChildRecord::read_all(&self.path.join(CHILDREN)).map_err(Resistance::Children)?;
        for ChildRecord { role, process } in children {
            let pid = process.pid;
            let found = process.find(Some(&id_of(&self.path)));
            let found = found.map_err(|source| Resistance::Examine { role: role.clone(), pid, source })?;
            let Some(known) = found.filter(|known| !known.is_dead()) else { continue };
            known.kill().map_err(|source| Resistance::Kill { role: role.clone(), pid, source })?;
            self.killed.push((role, known));
        }
        Ok(())
    }

    fn killed(&self) -> impl Iterator<Item = &Known> {
        self.killed.iter().map(|(_, known)| known)
    }

    /// Removes the directory if what was killed is dead, and tells what that was.
    fn remove(self) -> Result<Vec<Ended>, Resistance> {
        if let Some((role, known)) = self.killed.iter().find(|(_, known)| !known.is_dead()) {
            if let Err(error) = mark_undead(&self.path) {
                warn!(error = &error as &dyn std::error::Error, "what resists cannot be marked");
            }
            return Err(Resistance::Undead { role: role.clone(), pid: known.name.pid });
        }
        clear(&self.path)?;
        let vm_id = id_of(&self.path);
        let ended = |(role, known): (String, Known)| Ended { vm_id: vm_id.clone(), role, pid: known.name.pid };
        Ok(self.killed.into_iter().map(ended).collect())
    }

    /// Kills, waits until `until` at most, and removes.
    pub(super) fn end(mut self, until: Instant) -> Result<Vec<Ended>, Resistance> {
        self.kill()?;
        identity::wait_for_death(self.killed(), until).map_err(Resistance::Wait)?;
        self.remove()
    }
}

/// Ends and removes what processes that are gone have left below `root`. A directory that resists is left to the next start:
/// it is no reason to refuse this one.
pub(crate) fn reap(root: &Path) -> Result<Reaped, RunDirError> {
    let until = Instant::now() + DEATH_PATIENCE;
    let (mut reaped, mut seen) = (Reaped::default(), BTreeSet::new());
    loop {
        let mut batch = Vec::new();
        each_directory(root, |path, lock| {
            if let Some(lock) = lock
                && batch.len() < BATCH
                && seen.insert(path.to_owned())
            {
                batch.push(Taken::new(path, lock));
            }
        })?;
        if batch.is_empty() {
            return Ok(reaped);
        }
        reaped.reap(batch, until);
    }
}

impl Reaped {
    fn reap(&mut self, batch: Vec<Taken>, until: Instant) {
        let mut dying = Vec::new();
        for mut taken in batch {
            match taken.kill() {
                Ok(()) => dying.push(taken),
                Err(why) => self.leave(id_of(&taken.path), why),
            }
        }
        if let Err(error) = identity::wait_for_death(dying.iter().flat_map(Taken::killed), until) {
            warn!(%error, "the death of processes cannot be waited for");
        }
        for taken in dying {
            let id = id_of(&taken.path);
            match taken.remove() {
                Ok(ended) => {
                    self.ended.extend(ended);
                    self.removed.push(id);
                }
                Err(why) => self.leave(id, why),
            }
        }
    }

    fn leave(&mut self, id: String, why: Resistance) {
        warn!(vm_id = id, error = &why as &dyn std::error::Error, "what a process has left resists");
        self.resisted.push((id, why));
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};

    use super::{
        super::{Details, LOCK, QEMU, RunDir, identity::ProcessName, identity::tests::waiting_shell, list},
        *,
    };

    #[test]
    fn a_directory_stays_and_is_marked_while_a_process_of_it_is_not_dead() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let dir = RunDir::create(root.path(), "vm-1", &Details::default()).expect("it is new");
        dir.abandon();
        let path = root.path().join("vm-1");
        let mut qemu = waiting_shell("vm-1");
        let known = ProcessName::of(qemu.id()).expect("it runs").find(None).expect("it can be told");
        let lock = Lock::of(File::open(path.join(LOCK)).expect("it is there"));
        // As if SIGKILL had been sent: no process here resists it.
        let killed = vec![(QEMU.to_owned(), known.expect("it is this one"))];
        let why = Taken { path: path.clone(), _lock: lock, killed }.remove().expect_err("it lives");
        assert!(matches!(&why, Resistance::Undead { pid, .. } if *pid == qemu.id()), "{why}");
        let found = list(root.path()).expect("it can be read");
        assert!(matches!(&found[..], [vm] if vm.is_marked_undead && !vm.is_held), "{found:?}");

        qemu.kill().expect("it is ours");
        qemu.wait().expect("it is ours");
        let reaped = reap(root.path()).expect("it can be read");
        assert_eq!((reaped.removed, reaped.ended), (vec!["vm-1".to_owned()], vec![]), "there was nothing to end");
        assert!(fs::read_dir(root.path()).expect("it is there").flatten().all(|entry| entry.file_name() == LOCK));
    }
}
