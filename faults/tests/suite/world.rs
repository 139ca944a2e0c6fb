//! A world of one test: an image of a few bytes, a fake QEMU with its scenes, and directories that nothing else uses.

use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error as _,
    fmt::Write as _,
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use exec_sandbox::{AccelRequest, Error, ErrorKind, Language, Outcome, RunRequest, Scheduler, SchedulerConfig};
use exec_sandbox_image::{Blob, BlobSources, Digest, ImageStore, Interpreter, Manifest};
use faults::Scenes;

use crate::{
    FAKE_QEMU,
    leftovers::{self, Process},
};

/// How long anything here may take to come true before the test fails: generous, because machines can be busy.
const PATIENCE: Duration = Duration::from_secs(30);

/// How often it is looked at.
const LOOK: Duration = Duration::from_millis(2);

/// The memory of VMs that play the scene of a world with one. All others are in good order.
const FAULTY_MIB: u32 = 129;

/// See the head of this file.
#[derive(Debug)]
pub(crate) struct World {
    dir: tempfile::TempDir,
    program: PathBuf,
}

/// What a caller was told of a fault.
#[derive(Debug)]
pub(crate) struct Failure(Error);

/// A run that plays the scene of a world with one.
pub(crate) fn faulty() -> RunRequest {
    of_memory(FAULTY_MIB)
}

/// A run that plays the scene for VMs of `memory_mib`.
pub(crate) fn of_memory(memory_mib: u32) -> RunRequest {
    RunRequest { memory_mib: Some(memory_mib), ..RunRequest::new(Language::Raw, "echo $((6 * 7))") }
}

impl World {
    /// A world in which one scene can be played.
    pub(crate) fn playing(steps: &[&str]) -> Self {
        Self::with_scenes(&[(FAULTY_MIB, steps)])
    }

    /// A world in which every QEMU is in good order.
    pub(crate) fn in_good_order() -> Self {
        Self::with_scenes(&[])
    }

    /// A world with a scene for each of these sizes of memory.
    pub(crate) fn with_scenes(scenes: &[(u32, &[&str])]) -> Self {
        // Readable to all, because what runs the program may not be this user. Short, because a socket's path has 108 bytes.
        let dir = tempfile::Builder::new()
            .prefix("fq-")
            .permissions(Permissions::from_mode(0o755))
            .tempdir_in("/tmp")
            .expect("a temporary directory");
        // The kernel keeps 15 bytes of the name, by which even a zombie is found.
        let program = dir.path().join(dir.path().file_name().expect("it has a name"));
        let world = Self { dir, program };
        world.install(scenes);
        publish_image(&world.dir.path().join("images"));
        world
    }

    /// Puts the program in its place, as a new file.
    pub(crate) fn install(&self, scenes: &[(u32, &[&str])]) {
        let mut text = String::new();
        for (memory_mib, steps) in scenes {
            write_scene(&mut text, &memory_mib.to_string(), steps);
        }
        self.install_text(&text);
    }

    /// The same with a scene for one life of the VMs that play scenes: `donor` or `copy`.
    pub(crate) fn install_for(&self, life: &str, steps: &[&str]) {
        self.install_for_each(&[life], steps);
    }

    /// The same with a scene for several lives, of which that of a VM that only boots is called nothing.
    pub(crate) fn install_for_each(&self, lives: &[&str], steps: &[&str]) {
        let mut text = String::new();
        for life in lives {
            write_scene(&mut text, &format!("{FAULTY_MIB} {life}"), steps);
        }
        self.install_text(&text);
    }

    fn install_text(&self, text: &str) {
        let appendix = Scenes::appendix(text).unwrap_or_else(|error| panic!("{error}"));
        let mut program = fs::read(FAKE_QEMU).expect("it has been built");
        program.extend_from_slice(appendix.as_bytes());
        self.replace_program(&program, 0o755);
    }

    /// Puts any file in the program's place.
    pub(crate) fn replace_program(&self, content: &[u8], mode: u32) {
        // A file that is being executed cannot be written to, so it is another.
        let _ = fs::remove_file(&self.program);
        fs::write(&self.program, content).expect("it is new");
        fs::set_permissions(&self.program, Permissions::from_mode(mode)).expect("it is ours");
    }

    /// What stands in QEMU's place.
    pub(crate) fn program(&self) -> &Path {
        &self.program
    }

    /// Puts a shell script in the gateway's place. It finds its descriptors as a gateway does: 4 is QEMU's, 5 the report channel.
    pub(crate) fn gateway(&self, script: &str) -> PathBuf {
        let gateway = self.dir.path().join("gateway");
        fs::write(&gateway, format!("#!/bin/sh\n{script}\n")).expect("it is new");
        fs::set_permissions(&gateway, Permissions::from_mode(0o755)).expect("it is ours");
        gateway
    }

    /// Where VMs have their directories.
    pub(crate) fn run_dir(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    /// A configuration of this world, in which many VMs may run at once.
    pub(crate) fn config(&self) -> SchedulerConfig {
        SchedulerConfig {
            default_memory_mib: 128,
            images_dir: Some(self.dir.path().join("images")),
            cache_dir: Some(self.dir.path().join("cache")),
            run_dir: Some(self.run_dir()),
            qemu: Some(self.program.clone()),
            accel: AccelRequest::Tcg,
            host_memory_reserve_ratio: 0.01,
            memory_overcommit_ratio: 10.0,
            host_cpu_reserve_cores: 0.0,
            cpu_overcommit_ratio: 20.0,
            // A scene is about one QEMU; those about snapshots ask for them.
            snapshots: false,
            ..SchedulerConfig::default()
        }
    }

    /// A scheduler of this world.
    pub(crate) async fn scheduler(&self) -> Scheduler {
        Scheduler::start(self.config()).await.unwrap_or_else(|error| panic!("{}", chain(&error)))
    }

    /// The directories of VMs.
    pub(crate) fn vms(&self) -> BTreeSet<PathBuf> {
        let Ok(entries) = fs::read_dir(self.run_dir()) else { return BTreeSet::new() };
        entries.map(|entry| entry.expect("it can be read").path()).filter(|path| path.is_dir()).collect()
    }

    /// The processes of this world's program, zombies included.
    pub(crate) fn processes(&self) -> Vec<Process> {
        leftovers::processes(&self.program)
    }

    /// Waits until this world has a process that is as wanted.
    pub(crate) async fn process(&self, wanted: impl Fn(&Process) -> bool) -> Process {
        eventually("a process", || self.processes().into_iter().find(&wanted)).await
    }

    /// Proves that no VM has left a directory or a process.
    #[track_caller]
    pub(crate) fn assert_empty(&self) {
        assert_eq!(self.processes(), [], "processes are left");
        assert_eq!(self.vms(), BTreeSet::new(), "directories are left");
    }

    /// Waits until no VM has a directory or a process: for callers who have left and are not told.
    pub(crate) async fn becomes_empty(&self) {
        eventually("nothing left", || (self.processes().is_empty() && self.vms().is_empty()).then_some(())).await;
    }

    /// Closes the scheduler and proves that nothing is left: `before` is what the process had open when nothing ran.
    pub(crate) async fn end(&self, scheduler: &Scheduler, before: &BTreeMap<String, usize>) {
        scheduler.close().await.unwrap_or_else(|error| panic!("{}", chain(&error)));
        self.assert_empty();
        closes_down_to(before).await;
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // What a test that failed has left, and what one has left on purpose.
        for process in self.processes() {
            process.kill();
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self(error)
    }
}

impl Failure {
    /// The request may be sent again: the program did not run.
    #[track_caller]
    pub(crate) fn is_transient(&self, kind: ErrorKind, words: &[&str]) {
        assert!(self.0.kind().is_transient(), "{:?}", self.0);
        self.is(kind, words);
    }

    /// The request may not be sent again without thought.
    #[track_caller]
    pub(crate) fn is_final(&self, kind: ErrorKind, words: &[&str]) {
        assert!(!self.0.kind().is_transient(), "{:?}", self.0);
        self.is(kind, words);
    }

    /// Of this kind, and its text or causes say these words.
    #[track_caller]
    pub(crate) fn is(&self, kind: ErrorKind, words: &[&str]) {
        let text = chain(&self.0);
        assert_eq!(self.0.kind(), kind, "{text}");
        for word in words {
            assert!(text.contains(word), "{word:?} is not said in: {text}");
        }
    }
}

/// Plays a scene in one VM: what its caller is told, once it is proven that nothing is left and that the next VM works.
pub(crate) async fn failure_of(steps: &[&str]) -> Failure {
    failure_under(|_config| {}, steps).await
}

/// The same under another configuration.
pub(crate) async fn failure_under(change: impl FnOnce(&mut SchedulerConfig), steps: &[&str]) -> Failure {
    let world = World::playing(steps);
    let mut config = world.config();
    change(&mut config);
    let scheduler = Scheduler::start(config).await.unwrap_or_else(|error| panic!("{}", chain(&error)));
    // What is made once and kept is made here.
    serves(&scheduler).await;
    let before = leftovers::descriptors();
    let error = scheduler.run(faulty()).await.expect_err("the scene is one of a fault");
    world.assert_empty();
    assert!(error.vm_id().is_some_and(|id| id.starts_with("vm-")), "{error:?}");
    serves(&scheduler).await;
    world.end(&scheduler, &before).await;
    Failure(error)
}

/// Plays a scene that ends well, with the same proofs.
pub(crate) async fn outcome_of(steps: &[&str]) -> Outcome {
    let world = World::playing(steps);
    let scheduler = world.scheduler().await;
    serves(&scheduler).await;
    let before = leftovers::descriptors();
    let outcome = scheduler.run(faulty()).await.unwrap_or_else(|error| panic!("{}", chain(&error)));
    world.assert_empty();
    world.end(&scheduler, &before).await;
    outcome
}

/// Proves that a VM in good order serves.
pub(crate) async fn serves(scheduler: &Scheduler) {
    let request = RunRequest::new(Language::Raw, "the program itself");
    let outcome = scheduler.run(request).await.unwrap_or_else(|error| panic!("{}", chain(&error)));
    assert_eq!(&outcome.stdout[..], b"the program itself");
}

/// Waits until the process has no more open than `before`: readers that are ended let go in their own time.
pub(crate) async fn closes_down_to(before: &BTreeMap<String, usize>) {
    let begun = Instant::now();
    while leftovers::descriptors() != *before && begun.elapsed() < PATIENCE {
        tokio::time::sleep(LOOK).await;
    }
    assert_eq!(leftovers::descriptors(), *before, "descriptors are left");
}

/// Asks again and again until there is an answer.
pub(crate) async fn eventually<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(begun.elapsed() < PATIENCE, "{what}: not within {} s", PATIENCE.as_secs());
        tokio::time::sleep(LOOK).await;
    }
}

/// An error with its causes.
pub(crate) fn chain(error: &Error) -> String {
    let (mut text, mut cause) = (error.to_string(), error.source());
    while let Some(error) = cause {
        let _ = write!(text, ": {error}");
        cause = error.source();
    }
    text
}

fn write_scene(text: &mut String, title: &str, steps: &[&str]) {
    for line in [&*format!("[{title}]")].iter().chain(steps) {
        writeln!(text, "{line}").expect("a string takes all");
    }
}

/// An image that nothing boots.
fn publish_image(dir: &Path) {
    let source = |content: &str| {
        let path = dir.with_extension(content);
        fs::write(&path, content).expect("it is new");
        path
    };
    let blob = |content: &str| Blob { blake3: Digest::of(content.as_bytes()), size_bytes: content.len() as u64 };
    let manifest = Manifest {
        format: Manifest::FORMAT,
        name: "standard".into(),
        arch: std::env::consts::ARCH.into(),
        kernel_version: "6.12.0".into(),
        kernel: blob("kernel"),
        initramfs: blob("initramfs"),
        root: blob("root"),
        languages: BTreeMap::from([("raw".into(), Interpreter { path: "/bin/bash".into(), version: "5.2".into() })]),
        packages: Vec::new(),
        registries: BTreeMap::new(),
        indexes: BTreeMap::new(),
        qemu: None,
    };
    let (kernel, initramfs, root) = (source("kernel"), source("initramfs"), source("root"));
    let sources = BlobSources { kernel: &kernel, initramfs: &initramfs, root: &root, qemu: None };
    ImageStore::at(dir).publish(&manifest, sources).expect("it is valid");
}
