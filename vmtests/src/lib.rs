//! The harness of the tests that boot VMs: a world of its own for each test, and the proof that nothing of it is left.
//!
//! The tests need the guest's assets (`cargo xtask assets`) and, where they run the command line, its program
//! (`cargo build --package exec-sandbox-cli`); what is missing is named by the failure.

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub mod puppet;
pub mod session;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use exec_sandbox::{Language, Outcome, RunRequest, Scheduler, SchedulerConfig};

/// How long anything here may take to come true before the test fails: generous, because a busy machine emulates slowly.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A run directory that no other test uses.
#[derive(Debug)]
pub struct World {
    run_dir: tempfile::TempDir,
    /// Where its snapshots are, if they are not those of all tests.
    snapshots: Option<tempfile::TempDir>,
}

impl World {
    /// A new world.
    ///
    /// # Panics
    /// There is no room for a temporary directory.
    #[must_use]
    pub fn new() -> Self {
        // Short: the path of a socket in it has 108 bytes.
        let run_dir = tempfile::Builder::new().prefix("sbx-").tempdir_in("/tmp").expect("a temporary directory");
        Self { run_dir, snapshots: None }
    }

    /// A new world without snapshots, whose own are found by nobody else: its first VM boots and is saved.
    ///
    /// # Panics
    /// There is no room for a temporary directory.
    #[must_use]
    pub fn without_snapshots() -> Self {
        Self { snapshots: Some(tempfile::tempdir().expect("a temporary directory")), ..Self::new() }
    }

    /// Where the snapshots are that only this world has.
    ///
    /// # Panics
    /// It shares those of all tests.
    #[must_use]
    pub fn snapshot_dir(&self) -> &Path {
        self.snapshots.as_ref().expect("it has its own").path()
    }

    /// The run directory.
    #[must_use]
    pub fn run_dir(&self) -> &Path {
        self.run_dir.path()
    }

    /// A configuration whose VMs belong to this world.
    #[must_use]
    pub fn config(&self) -> SchedulerConfig {
        let snapshot_dir = self.snapshots.as_ref().map(|dir| dir.path().into());
        SchedulerConfig { run_dir: Some(self.run_dir().into()), snapshot_dir, ..SchedulerConfig::default() }
    }

    /// The same for VMs with a network: it names the gateway that was built, if the environment names no other.
    ///
    /// # Panics
    /// It has not been built.
    #[must_use]
    pub fn networked(&self) -> SchedulerConfig {
        let gateway = match std::env::var_os("EXEC_SANDBOX_GATEWAY") {
            Some(_) => None,
            None => Some(built("exec-sandbox-gateway", "exec-sandbox-gateway")),
        };
        SchedulerConfig { gateway, ..self.config() }
    }

    /// A scheduler of this world.
    ///
    /// # Panics
    /// It does not start; the error says what is missing.
    pub async fn scheduler(&self) -> Scheduler {
        start(self.config()).await
    }

    /// The command line of this world.
    ///
    /// # Panics
    /// It has not been built.
    #[must_use]
    pub fn sbx(&self) -> Command {
        let mut command = Command::new(built("sbx", "exec-sandbox-cli"));
        command.env("EXEC_SANDBOX_RUN_DIR", self.run_dir());
        command
    }

    /// The VMs that have a directory now.
    ///
    /// # Panics
    /// The run directory cannot be read.
    #[must_use]
    pub fn vms(&self) -> BTreeSet<String> {
        let entries = fs::read_dir(self.run_dir()).expect("the run directory can be read");
        entries
            .map(|entry| entry.expect("it can be read"))
            .filter(|entry| entry.path().is_dir())
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect()
    }

    /// Waits until a VM of this world has a process, and returns its id.
    ///
    /// # Panics
    /// None has within [`PATIENCE`].
    #[must_use]
    pub fn wait_for_vm(&self) -> String {
        wait_for("a VM", || self.vms().into_iter().find(|id| !processes(id).is_empty()))
    }

    /// Proves that neither a directory of this world nor a process of `ids` is there.
    ///
    /// # Panics
    /// Something is.
    pub fn assert_empty(&self, ids: impl IntoIterator<Item = impl AsRef<str>>) {
        assert_eq!(self.vms(), BTreeSet::new(), "run directories are left");
        for id in ids {
            assert_eq!(processes(id.as_ref()), Vec::<u32>::new(), "processes of {} are left", id.as_ref());
        }
    }
}

/// A program of `package`, as it was built.
fn built(program: &str, package: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a test has a path");
    let program = test.ancestors().nth(2).expect("tests lie two levels below the target directory").join(program);
    assert!(program.exists(), "{} is missing: cargo build --package {package}", program.display());
    program
}

impl Default for World {
    fn default() -> Self {
        Self::new()
    }
}

/// The processes of the VM `vm_id`, zombies that still have a command line included: QEMU's, and its gateway's if it has a network.
///
/// # Panics
/// `/proc` cannot be read.
#[must_use]
pub fn processes(vm_id: &str) -> Vec<u32> {
    let names = [format!("guest={vm_id}"), format!("exec-sandbox-gateway:{vm_id}")];
    let has_name = |proc: &PathBuf| {
        fs::read(proc.join("cmdline")).is_ok_and(|line| {
            String::from_utf8_lossy(&line).split('\0').any(|arg| names.iter().any(|name| arg == name))
        })
    };
    let entries = fs::read_dir("/proc").expect("/proc can be read").filter_map(Result::ok);
    entries
        .map(|entry| entry.path())
        .filter(has_name)
        .filter_map(|path| path.file_name()?.to_str()?.parse().ok())
        .collect()
}

/// Processes, zombies included, that this process is the parent of.
///
/// # Panics
/// `/proc` cannot be read.
#[must_use]
pub fn children() -> Vec<u32> {
    let tasks = fs::read_dir("/proc/self/task").expect("/proc can be read").filter_map(Result::ok);
    let lists = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    lists
        .flat_map(|list| list.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
        .flat_map(|pid| pid.parse())
        .collect()
}

/// The resident memory of this process.
///
/// # Panics
/// `/proc` does not say.
#[must_use]
pub fn resident_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("/proc can be read");
    let kib =
        status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kib.expect("the kernel says it") * 1024
}

/// A scheduler with this configuration.
///
/// # Panics
/// It does not start; the error says what is missing.
pub async fn start(config: SchedulerConfig) -> Scheduler {
    Scheduler::start(config).await.unwrap_or_else(|error| panic!("{error}: {:?}", error.remedy()))
}

/// Asks again and again until there is an answer.
///
/// # Panics
/// There is none within [`PATIENCE`].
pub fn wait_for<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(begun.elapsed() < PATIENCE, "{what}: nothing within {} s", PATIENCE.as_secs());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Runs one program and proves that nothing of its VM is left.
///
/// # Panics
/// The sandbox fails, or leaves something.
pub async fn run(world: &World, scheduler: &Scheduler, language: Language, code: &str) -> Outcome {
    let outcome = scheduler.run(RunRequest::new(language, code)).await;
    let outcome = outcome.unwrap_or_else(|error| panic!("{error}: {:?}", std::error::Error::source(&error)));
    world.assert_empty([&outcome.vm_id]);
    outcome
}

/// What a program wrote to standard output.
#[must_use]
pub fn stdout(outcome: &Outcome) -> String {
    String::from_utf8_lossy(&outcome.stdout).into_owned()
}

/// What a program wrote to standard error.
#[must_use]
pub fn stderr(outcome: &Outcome) -> String {
    String::from_utf8_lossy(&outcome.stderr).into_owned()
}
