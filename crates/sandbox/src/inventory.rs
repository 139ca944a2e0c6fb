//! The inventory: the VMs of this user on this machine, whoever started them, for an operator who looks at them or ends them.
//!
//! It knows what the run directory and `/proc` tell, and asks no owner. Nothing here starts a VM or repairs one.

use std::{
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::Serialize;

use crate::{
    Error, ErrorKind, SchedulerConfig, host, ids,
    paths::Environment,
    run_dir::{self, ChildRecord, EndError, Found, GATEWAY, Known, QEMU, Record, Resistance, RunDirError},
};

/// How many ids a message names at most.
const NAMED_IDS: usize = 10;

/// How it is about a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum VmState {
    /// Its owner lives.
    Running,
    /// Its owner is gone. The next start of a scheduler ends what is left of it, as does [`collect_garbage`].
    Abandoned,
    /// Somebody has killed its processes and could not confirm their death; one of them is still there.
    Undead,
}

/// A VM as it is found.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct VmInfo {
    /// Its id, which is the name of its directory.
    pub id: String,
    /// How it is about it.
    pub state: VmState,
    /// The process that made it. Unknown if its record cannot be read, like all that comes from there.
    pub owner: Option<VmOwner>,
    /// Its processes, QEMU's first. None has been started while it is prepared.
    pub processes: Vec<VmProcess>,
    /// How long ago it was made.
    pub age: Option<Duration>,
    /// Memory of the guest, in MiB.
    pub memory_mib: Option<u32>,
    /// The language that it was made for.
    pub language: Option<String>,
    /// Whose it is, as its owner was told.
    pub tenant_id: Option<String>,
    /// What it does, as its owner was told.
    pub task_id: Option<String>,
    /// The image that it booted.
    pub image: Option<String>,
    /// Its directory.
    pub path: PathBuf,
}

/// The process that made a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct VmOwner {
    /// The process id. It may be another's by now if the VM is abandoned.
    pub pid: u32,
    /// The name of the program.
    pub name: Option<String>,
}

/// A process of a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct VmProcess {
    /// What it is to the VM, such as `qemu`.
    pub role: String,
    /// The process id. It may be another's by now if the process is not alive.
    pub pid: u32,
    /// Whether it is there and has not ended.
    pub is_alive: bool,
    /// User and system time so far.
    pub cpu: Option<Duration>,
    /// Memory that is resident now.
    pub resident_bytes: Option<u64>,
}

/// What [`collect_garbage`] did.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Garbage {
    /// Processes that were alive and are confirmed dead.
    pub ended: Vec<EndedProcess>,
    /// VMs of which nothing is left.
    pub removed: Vec<String>,
    /// VMs of which something is left, and why.
    pub resisted: Vec<(String, Error)>,
}

/// A process that was ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct EndedProcess {
    /// The VM it belonged to.
    pub vm_id: String,
    /// What it was to the VM.
    pub role: String,
    /// The process id that it had.
    pub pid: u32,
}

/// Why an id stands for no VM.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
enum Unresolved {
    #[error("there is no such VM")]
    Unknown,
    #[error("it stands for {}", listed(.0))]
    Ambiguous(Vec<String>),
}

impl VmState {
    /// The name in JSON and on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Abandoned => "abandoned",
            Self::Undead => "undead",
        }
    }
}

impl VmInfo {
    /// QEMU's process, if it has been started.
    #[must_use]
    pub fn qemu(&self) -> Option<&VmProcess> {
        self.processes.iter().find(|process| process.role == QEMU)
    }

    /// The process that is its network, if it has one.
    #[must_use]
    pub fn gateway(&self) -> Option<&VmProcess> {
        self.processes.iter().find(|process| process.role == GATEWAY)
    }

    /// User and system time of its processes that could be read.
    #[must_use]
    pub fn cpu(&self) -> Option<Duration> {
        self.processes.iter().filter_map(|process| process.cpu).reduce(Duration::saturating_add)
    }

    /// Resident memory of its processes that could be read.
    #[must_use]
    pub fn resident_bytes(&self) -> Option<u64> {
        self.processes.iter().filter_map(|process| process.resident_bytes).reduce(u64::saturating_add)
    }

    fn of(found: Found, now_unix_ms: u64) -> Self {
        let id = found.id;
        let mut processes: Vec<VmProcess> = found.children.into_iter().map(|child| VmProcess::of(child, &id)).collect();
        processes.sort_by_key(|process| process.role != QEMU);
        let is_undead = found.is_marked_undead && processes.iter().any(|process| process.is_alive);
        let state = match (is_undead, found.is_held) {
            (true, _) => VmState::Undead,
            (false, true) => VmState::Running,
            (false, false) => VmState::Abandoned,
        };
        let mut vm = Self {
            id,
            state,
            owner: None,
            processes,
            age: None,
            memory_mib: None,
            language: None,
            tenant_id: None,
            task_id: None,
            image: None,
            path: found.path,
        };
        if let Some(record) = found.record {
            vm.tell(record, now_unix_ms);
        }
        vm
    }

    fn tell(&mut self, record: Record, now_unix_ms: u64) {
        self.owner = Some(VmOwner { pid: record.owner.process.pid, name: record.owner.program });
        self.age = Some(Duration::from_millis(now_unix_ms.saturating_sub(record.created_unix_ms)));
        self.memory_mib = Some(record.details.memory_mib);
        self.language = record.details.language;
        self.tenant_id = record.details.tenant_id;
        self.task_id = record.details.task_id;
        self.image = record.details.image;
    }
}

impl VmProcess {
    fn of(child: ChildRecord, vm_id: &str) -> Self {
        // One that cannot be examined is not reported as dead.
        let found = child.process.find(Some(vm_id));
        let is_alive = found.as_ref().map_or(true, |known| known.as_ref().is_some_and(|known| !known.is_dead()));
        let usage = found.ok().flatten().filter(|known| !known.is_dead()).map(|Known { usage, .. }| usage);
        Self {
            role: child.role,
            pid: child.process.pid,
            is_alive,
            cpu: usage.map(|usage| usage.cpu),
            resident_bytes: usage.map(|usage| usage.resident_bytes),
        }
    }
}

/// The VMs below the configured run directory, the oldest first.
///
/// # Errors
/// The run directory cannot be read, or a field of `config` is invalid.
pub async fn list(config: SchedulerConfig) -> Result<Vec<VmInfo>, Error> {
    in_run_dir(config, look).await
}

/// Ends the VM with `id`, which may be shortened to what no other id begins with, and returns its whole id. Its processes are
/// killed and confirmed dead, and its directory is gone: removed by its owner, or here if there is none.
///
/// # Errors
/// [`ErrorKind::UnknownVm`] if `id` stands for no VM or for several, and [`ErrorKind::Teardown`] if the end cannot be confirmed
/// within 10 s.
pub async fn kill(config: SchedulerConfig, id: &str) -> Result<String, Error> {
    let typed = id.to_owned();
    in_run_dir(config, move |run_dir| {
        ids::check_id("the id of a VM", &typed)?;
        let all: Vec<String> = run_dir::list(run_dir).map_err(unreadable)?.into_iter().map(|found| found.id).collect();
        let id = resolve(&typed, &all).map_err(|error| {
            let others = format!("sbx ps lists them: {}", listed(&all));
            Error::new(ErrorKind::UnknownVm, format!("ending VM {typed:?}")).because(error).remedied_by(others)
        })?;
        end(run_dir, id)?;
        Ok(id.to_owned())
    })
    .await
}

/// Ends every VM there is, one after the other, and tells of each how it went. A VM that ends by itself meanwhile went well.
///
/// # Errors
/// The run directory cannot be read, or a field of `config` is invalid.
pub async fn kill_all(config: SchedulerConfig) -> Result<Vec<(String, Result<(), Error>)>, Error> {
    in_run_dir(config, |run_dir| {
        let all = run_dir::list(run_dir).map_err(unreadable)?;
        Ok(all
            .into_iter()
            .map(|found| {
                let ended = end(run_dir, &found.id);
                (found.id, ended)
            })
            .collect())
    })
    .await
}

/// Ends and removes what processes that are gone have left, as the start of a scheduler does, and tells what that was.
///
/// # Errors
/// The run directory cannot be read, or a field of `config` is invalid.
pub async fn collect_garbage(config: SchedulerConfig) -> Result<Garbage, Error> {
    in_run_dir(config, |run_dir| {
        let reaped = run_dir::reap(run_dir).map_err(unreadable)?;
        let ended = |run_dir::Ended { vm_id, role, pid }| EndedProcess { vm_id, role, pid };
        Ok(Garbage {
            ended: reaped.ended.into_iter().map(ended).collect(),
            removed: reaped.removed,
            resisted: reaped.resisted.into_iter().map(|(id, why)| (id.clone(), resisted(&id, why))).collect(),
        })
    })
    .await
}

/// The VMs below `run_dir`, the oldest first.
pub(crate) fn look(run_dir: &Path) -> Result<Vec<VmInfo>, Error> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now_unix_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
    let found = run_dir::list(run_dir).map_err(unreadable)?;
    let mut all: Vec<VmInfo> = found.into_iter().map(|found| VmInfo::of(found, now_unix_ms)).collect();
    all.sort_by(|one, other| other.age.cmp(&one.age).then_with(|| one.id.cmp(&other.id)));
    Ok(all)
}

/// `ids` in a message: so many of them as somebody reads.
pub(crate) fn listed(ids: &[impl AsRef<str>]) -> String {
    let mut named: Vec<String> = ids.iter().take(NAMED_IDS).map(|id| id.as_ref().to_owned()).collect();
    match ids.len().saturating_sub(NAMED_IDS) {
        0 if named.is_empty() => return "none".into(),
        0 => {}
        more => named.push(format!("and {more} more")),
    }
    named.join(", ")
}

async fn in_run_dir<T: Send + 'static>(
    config: SchedulerConfig,
    work: impl FnOnce(&Path) -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let settings = config.resolve(&Environment::read())?;
    host::blocking("using the run directory", move || work(&settings.run_dir)).await
}

fn resolve<'a>(typed: &str, all: &'a [String]) -> Result<&'a str, Unresolved> {
    ids::resolve(typed, all).map_err(|several| match several[..] {
        [] => Unresolved::Unknown,
        _ => Unresolved::Ambiguous(several),
    })
}

fn end(run_dir: &Path, id: &str) -> Result<(), Error> {
    run_dir::end(run_dir, id).map_err(|error| match error {
        EndError::Resists(why) => resisted(id, why),
        EndError::OwnerIsSlow { .. } => Error::new(ErrorKind::Teardown, "ending a VM")
            .because(error)
            .on_vm(id)
            .remedied_by("its owner may be stopped or busy; sbx gc clears up once it is gone"),
        EndError::RunDir(_) | EndError::Watch(_) => Error::new(ErrorKind::Host, "ending a VM").because(error).on_vm(id),
    })
}

fn resisted(id: &str, why: Resistance) -> Error {
    let remedy = match &why {
        Resistance::Undead { .. } => {
            "the process waits in the kernel, for a disk perhaps; try again once that is mended"
        }
        _ => "sbx gc tries again, as does the next start of any sandbox",
    };
    Error::new(ErrorKind::Teardown, "ending a VM").because(why).on_vm(id).remedied_by(remedy)
}

fn unreadable(error: RunDirError) -> Error {
    Error::new(ErrorKind::Host, "examining the run directory").because(error)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::run_dir::{Details, RunDir, waiting_shell};

    fn made(root: &tempfile::TempDir, id: &str) -> RunDir {
        let details = Details {
            memory_mib: 256,
            language: Some("python".into()),
            tenant_id: Some("tenant-7".into()),
            ..Details::default()
        };
        RunDir::create(root.path(), id, &details).expect("it is new")
    }

    fn only(root: &tempfile::TempDir) -> VmInfo {
        let mut all = look(root.path()).expect("it can be read");
        assert_eq!(all.len(), 1, "{all:?}");
        all.remove(0)
    }

    fn config(root: &tempfile::TempDir) -> SchedulerConfig {
        let cache_dir = Some(root.path().join("cache"));
        SchedulerConfig { run_dir: Some(root.path().join("run")), cache_dir, ..SchedulerConfig::default() }
    }

    #[test]
    fn an_id_stands_for_itself_or_for_the_only_one_that_begins_with_it() {
        let all = ["vm-1", "vm-12", "vm-2f", "other"].map(str::to_owned);
        assert_eq!(resolve("vm-1", &all), Ok("vm-1"), "an exact one is not ambiguous");
        assert_eq!(resolve("vm-2", &all), Ok("vm-2f"));
        assert_eq!(resolve("o", &all), Ok("other"));
        assert_eq!(resolve("m-1", &all), Err(Unresolved::Unknown));
        assert_eq!(resolve("vm-123", &all), Err(Unresolved::Unknown));
        let several = ["vm-1", "vm-12", "vm-2f"].map(str::to_owned).to_vec();
        assert_eq!(resolve("vm-", &all), Err(Unresolved::Ambiguous(several)));
        assert_eq!(resolve("vm", &[]), Err(Unresolved::Unknown));
    }

    #[test]
    fn a_message_names_no_more_ids_than_somebody_reads() {
        assert_eq!(listed(&[] as &[&str]), "none");
        assert_eq!(listed(&["a", "b"]), "a, b");
        let many: Vec<String> = (0..12).map(|number| number.to_string()).collect();
        assert_eq!(listed(&many), "0, 1, 2, 3, 4, 5, 6, 7, 8, 9, and 2 more");
    }

    #[test]
    fn a_running_vm_is_found_with_its_record_its_owner_and_what_its_processes_use() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let dir = made(&root, "vm-1");
        let vm = only(&root);
        assert_eq!((vm.state, vm.memory_mib, vm.language.as_deref()), (VmState::Running, Some(256), Some("python")));
        assert_eq!((vm.tenant_id.as_deref(), vm.task_id), (Some("tenant-7"), None));
        assert_eq!(vm.owner.map(|owner| owner.pid), Some(std::process::id()));
        assert!(vm.age.is_some_and(|age| age < Duration::from_secs(3600)), "{:?}", vm.age);
        assert!(vm.processes.is_empty(), "none has been started");

        let (mut gateway, mut qemu) = (waiting_shell("vm-1"), waiting_shell("vm-1"));
        dir.record_child(GATEWAY, gateway.id()).expect("it runs");
        dir.record_child(QEMU, qemu.id()).expect("it runs");
        let vm = only(&root);
        let roles: Vec<_> = vm.processes.iter().map(|process| (process.role.as_str(), process.is_alive)).collect();
        assert_eq!(roles, [(QEMU, true), (GATEWAY, true)]);
        assert!(vm.cpu().is_some() && vm.resident_bytes().is_some_and(|bytes| bytes > 0), "{vm:?}");
        for process in [&mut gateway, &mut qemu] {
            process.kill().expect("it is ours");
            process.wait().expect("it is ours");
        }
        let vm = only(&root);
        assert!(vm.processes.iter().all(|process| !process.is_alive), "{vm:?}");
        assert_eq!((vm.cpu(), vm.resident_bytes()), (None, None));
    }

    #[test]
    fn a_process_whose_id_is_anothers_by_now_is_not_the_vms() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let dir = made(&root, "vm-1");
        fs::write(dir.agent_socket().with_file_name("children"), format!("qemu {} 1\n", std::process::id()))
            .expect("it can be written");
        let vm = only(&root);
        assert!(vm.qemu().is_some_and(|qemu| !qemu.is_alive && qemu.cpu.is_none()), "{vm:?}");
    }

    #[test]
    fn a_mark_counts_for_as_long_as_a_process_is_there() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let dir = made(&root, "vm-1");
        let mut qemu = waiting_shell("vm-1");
        dir.record_child(QEMU, qemu.id()).expect("it runs");
        dir.mark_undead().expect("it can be written");
        assert_eq!(only(&root).state, VmState::Undead);
        qemu.kill().expect("it is ours");
        qemu.wait().expect("it is ours");
        assert_eq!(only(&root).state, VmState::Running);
    }

    #[test]
    fn a_vm_whose_record_cannot_be_read_is_shown_with_what_is_known() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let dir = root.path().join("vm-1");
        fs::create_dir(&dir).expect("it is new");
        fs::write(dir.join("lock"), "").expect("it can be written");
        for record in ["{", "{\"vm_id\": 7}", &"x".repeat(100_000)] {
            fs::write(dir.join("record"), record).expect("it can be written");
            let vm = only(&root);
            assert_eq!((vm.id.as_str(), vm.state, vm.owner, vm.age), ("vm-1", VmState::Abandoned, None, None));
        }
    }

    #[tokio::test]
    async fn what_cannot_be_meant_is_refused_and_what_is_there_is_named() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let run_dir = config(&root).run_dir.expect("it is set");
        let _dirs = ["vm-1a", "vm-1b"].map(|id| RunDir::create(&run_dir, id, &Details::default()).expect("it is new"));
        for (id, cause) in [("vm-2", "there is no such VM"), ("vm-1", "it stands for vm-1a, vm-1b")] {
            let error = kill(config(&root), id).await.expect_err("it stands for no VM");
            assert_eq!(error.kind(), ErrorKind::UnknownVm);
            assert_eq!(std::error::Error::source(&error).map(ToString::to_string).as_deref(), Some(cause));
            assert!(error.remedy().is_some_and(|remedy| remedy.contains("vm-1a")), "{error:?}");
        }
        let error = kill(config(&root), "../x").await.expect_err("it is no id");
        assert!(error.kind().is_invalid_input(), "{error:?}");
    }

    #[tokio::test]
    async fn garbage_is_collected_and_vms_in_use_are_not() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let run_dir = config(&root).run_dir.expect("it is set");
        let _dir = RunDir::create(&run_dir, "vm-used", &Details::default()).expect("it is new");
        let mut qemu = waiting_shell("vm-left");
        let left = RunDir::create(&run_dir, "vm-left", &Details::default()).expect("it is new");
        left.record_child(QEMU, qemu.id()).expect("it runs");
        left.abandon();
        let garbage = collect_garbage(config(&root)).await.expect("it can be read");
        assert_eq!(garbage.removed, ["vm-left"]);
        let ended = EndedProcess { vm_id: "vm-left".into(), role: QEMU.into(), pid: qemu.id() };
        assert_eq!(garbage.ended, [ended]);
        assert!(garbage.resisted.is_empty());
        assert!(!qemu.wait().expect("it is ours").success());
        let left: Vec<_> = list(config(&root)).await.expect("it can be read").into_iter().map(|vm| vm.id).collect();
        assert_eq!(left, ["vm-used"]);
    }

    #[tokio::test]
    async fn all_vms_are_ended_and_each_is_told_of() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let run_dir = config(&root).run_dir.expect("it is set");
        assert!(kill_all(config(&root)).await.expect("none is no error").is_empty());
        for id in ["vm-1", "vm-2"] {
            RunDir::create(&run_dir, id, &Details::default()).expect("it is new").abandon();
        }
        let mut told = kill_all(config(&root)).await.expect("it can be read");
        told.sort_by(|one, other| one.0.cmp(&other.0));
        assert!(matches!(&told[..], [(one, Ok(())), (two, Ok(()))] if one == "vm-1" && two == "vm-2"), "{told:?}");
        assert!(look(&run_dir).expect("it can be read").is_empty());
    }
}
