//! Copies of a guest that was saved: each is a machine of its own, sees nothing of what was before it, and is replaced if it is damaged.

use std::{
    collections::BTreeMap,
    error::Error as _,
    fs::{self, Permissions},
    io::{self, Write as _},
    os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _},
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use exec_sandbox::{
    ExecRequest, Exit, Language, Origin, Outcome, QemuVm, RunRequest, Scheduler, SchedulerConfig, SessionRequest,
    VmSpec, WriteOptions,
};
use exec_sandbox_image::Digest;
use serde_json::Value;
use vmtests::{World, run, start, stderr, stdout};

/// How far a guest's clock may be from the host's.
const CLOCK_TOLERANCE: Duration = Duration::from_millis(50);

/// What is drawn at random, a `name value` a line, and the time.
const DRAWS: [(Language, &str); 3] = [
    (
        Language::Python,
        "import os, random, secrets, time, uuid\n\
         print('clock', time.time())\n\
         print('urandom', os.urandom(16).hex())\n\
         print('random', random.random())\n\
         print('secrets', secrets.token_hex(16))\n\
         print('uuid', uuid.uuid4())\n\
         print('boot_id', open('/proc/sys/kernel/random/boot_id').read().strip())",
    ),
    (
        Language::JavaScript,
        "const { randomBytes } = require('crypto'), { readFileSync } = require('fs');\n\
         console.log('clock', Date.now() / 1000);\n\
         console.log('urandom', randomBytes(16).toString('hex'));\n\
         console.log('random', Math.random());\n\
         console.log('uuid', crypto.randomUUID());\n\
         console.log('boot_id', readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim());",
    ),
    (
        Language::Raw,
        "echo clock $EPOCHREALTIME\n\
         echo random $RANDOM-$RANDOM-$RANDOM-$RANDOM\n\
         echo srandom $SRANDOM-$SRANDOM-$SRANDOM\n\
         echo urandom $(od -An -N16 -tx8 /dev/urandom)\n\
         echo uuid $(cat /proc/sys/kernel/random/uuid)\n\
         echo boot_id $(cat /proc/sys/kernel/random/boot_id)",
    ),
];

/// What a program finds, without what differs from VM to VM in any case; and an error that says where it is. The names that the wrapper of
/// a shell keeps for itself are more after a first program, whoever's that was.
const FINDINGS: [(Language, &str); 3] = [
    (
        Language::Python,
        "import os, sys\n\
         print(sorted(globals()), __name__, sys.argv, sys.path, os.getcwd())\n\
         print(sorted(os.environ.items()))\n\
         print(sorted(os.listdir('.')), sorted(os.listdir('/tmp')), sorted(os.listdir('/dev/shm')))\n\
         ours = [f'/proc/{pid}' for pid in os.listdir('/proc') if pid.isdigit()]\n\
         print(sorted(open(f'{pid}/comm').read() for pid in ours if os.stat(pid).st_uid == os.getuid()))\n\
         def fails(): return 1 / 0\n\
         fails()",
    ),
    (
        Language::JavaScript,
        "const fs = require('fs');\n\
         console.log(Object.getOwnPropertyNames(globalThis).sort().join(), process.argv.length, process.cwd());\n\
         console.log(Object.entries(process.env).sort().join());\n\
         console.log(fs.readdirSync('.').join(), fs.readdirSync('/tmp').join(), fs.readdirSync('/dev/shm').join());\n\
         const pids = fs.readdirSync('/proc').filter((name) => /^[0-9]+$/.test(name)).map((pid) => `/proc/${pid}`);\n\
         const ours = pids.filter((pid) => fs.statSync(pid).uid === process.getuid());\n\
         console.log(ours.map((pid) => fs.readFileSync(`${pid}/comm`, 'utf8')).sort().join());\n\
         throw new Error('fails');",
    ),
    (
        Language::Raw,
        "echo status $?; compgen -v | grep -v ^__exec_sandbox_ | sort; env | sort; pwd; ls -A . /tmp /dev/shm; jobs; alias; declare -F\n\
         for pid in /proc/[0-9]*; do [ -O $pid ] && echo $(<$pid/comm); done\n\
         no-such-command",
    ),
];

async fn vm(scheduler: &Scheduler, spec: VmSpec) -> QemuVm {
    let vm = scheduler.manager().create_vm(spec).await;
    vm.unwrap_or_else(|error| panic!("{error}: {:?}", std::error::Error::source(&error)))
}

/// Where a run's guest came from, and whether it was saved.
fn origin(outcome: &Outcome) -> (Origin, bool) {
    (outcome.timing.origin, outcome.timing.snapshot.is_some())
}

const SAVED: (Origin, bool) = (Origin::Cold, true);
const COPIED: (Origin, bool) = (Origin::Snapshot, false);

/// Draws in a VM, and proves that its clock is right: the program began and ended within the call.
async fn draws(vm: &QemuVm, code: &str) -> BTreeMap<String, String> {
    let host = || SystemTime::now().duration_since(UNIX_EPOCH).expect("it is later");
    let before = host();
    let outcome = vm.execute(ExecRequest::new(code)).await.unwrap_or_else(|error| panic!("{error}"));
    let after = host();
    assert_eq!((outcome.exit, stderr(&outcome).as_str()), (Exit::Code(0), ""));
    let lines = stdout(&outcome);
    let lines = lines.lines().map(|line| line.split_once(' ').expect("it has a name and a value"));
    let mut drawn: BTreeMap<_, _> = lines.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    let clock = drawn.remove("clock").expect("it is there").parse().expect("it is a number");
    let clock = Duration::from_secs_f64(clock);
    let allowed = before.saturating_sub(CLOCK_TOLERANCE)..=after + CLOCK_TOLERANCE;
    assert!(allowed.contains(&clock), "{clock:?} is not in {allowed:?}");
    drawn
}

#[tokio::test]
async fn copies_and_the_guest_that_was_saved_draw_different_numbers_and_have_the_right_time() {
    let world = World::without_snapshots();
    let scheduler = world.scheduler().await;
    for (language, code) in DRAWS {
        let mut seen = BTreeMap::new();
        for origin in [Origin::Cold, Origin::Snapshot, Origin::Snapshot] {
            let vm = vm(&scheduler, VmSpec::new(language)).await;
            assert_eq!(vm.boot_timing().origin, origin, "{language}");
            let drawn = draws(&vm, code).await;
            assert!(drawn.len() >= 4, "{drawn:?}");
            for (name, value) in drawn {
                let other = seen.insert((name.clone(), value.clone()), origin);
                assert_eq!(other, None, "{language}: {name} {value} was drawn twice");
            }
            vm.destroy().await.expect("it dies");
        }
    }
    scheduler.close().await.expect("nothing is left");
}

#[tokio::test]
async fn a_program_in_a_copy_finds_what_it_would_find_in_a_vm_that_was_booted() {
    let world = World::without_snapshots();
    let cold = SchedulerConfig { snapshots: false, ..world.config() };
    let cold = Scheduler::start(cold).await.unwrap_or_else(|error| panic!("{error}: {:?}", error.remedy()));
    let scheduler = world.scheduler().await;
    for (language, code) in FINDINGS {
        let booted = run(&world, &cold, language, code).await;
        assert_eq!(origin(&booted), (Origin::Cold, false));
        assert_ne!(booted.exit, Exit::Code(0), "it fails in the end");
        for expected in [SAVED, COPIED] {
            let found = run(&world, &scheduler, language, code).await;
            assert_eq!(origin(&found), expected);
            assert_eq!(found.exit, booted.exit);
            assert_eq!(stdout(&found), stdout(&booted), "{language}");
            assert_eq!(stderr(&found), stderr(&booted), "{language}");
        }
    }
}

#[tokio::test]
async fn a_copy_has_the_directory_of_its_first_program_and_of_no_other_program() {
    let world = World::without_snapshots();
    let scheduler = world.scheduler().await;
    // Made with the rehearsal, and so before anything that the host has sent since.
    let code = "cd /run/exec-sandbox; ls ops; for d in ops/*; do [[ $d -ot ~/sent ]] && echo older; done; ls -A ops/*";
    for origin in [Origin::Cold, Origin::Snapshot] {
        let vm = vm(&scheduler, VmSpec::new(Language::Raw)).await;
        assert_eq!(vm.boot_timing().origin, origin);
        vm.write_file("sent", &b""[..], WriteOptions::default()).await.expect("there is room");
        for expected in ["1\nolder\ncode\nenv\n", "2\ncode\nenv\n"] {
            let outcome = vm.execute(ExecRequest::new(code)).await.unwrap_or_else(|error| panic!("{error}"));
            assert_eq!((stdout(&outcome).as_str(), stderr(&outcome).as_str()), (expected, ""), "{origin:?}");
        }
        vm.destroy().await.expect("it dies");
    }
}

#[tokio::test]
async fn a_snapshot_that_is_damaged_anywhere_is_set_aside_and_replaced() {
    let world = World::without_snapshots();
    // Each sees what the one before it has left on the disk, and remembers nothing.
    let runs_twice = async |expected: (Origin, bool)| {
        let scheduler = world.scheduler().await;
        for expected in [expected, COPIED] {
            let outcome = run(&world, &scheduler, Language::Raw, "echo whole").await;
            assert_eq!((origin(&outcome), stdout(&outcome).as_str()), (expected, "whole\n"));
        }
        scheduler.close().await.expect("nothing is left");
    };
    runs_twice(SAVED).await;
    runs_twice(COPIED).await;
    // In the middle of the memory is the kernel's; behind a page of the translations is their table; the manifest begins with a brace.
    for (part, at) in [("ram", 96 << 20), ("state", 1000), ("translations", 8192), ("manifest.json", 0)] {
        let snapshots: Vec<_> = fs::read_dir(world.snapshot_dir())
            .expect("it is there")
            .map(|entry| entry.expect("it can be read").path().join(part))
            .filter(|path| path.exists())
            .collect();
        let [snapshot] = &snapshots[..] else { panic!("there is one: {snapshots:?}") };
        flip(snapshot, at);
        runs_twice(SAVED).await;
        let reasons = || fs::read_dir(world.snapshot_dir().join("quarantine")).expect("it is there").count();
        assert_ne!(reasons(), 0, "{part}");
    }
}

#[tokio::test]
async fn copies_and_guests_that_boot_run_what_was_translated_for_one_that_was_saved() {
    let world = World::without_snapshots();
    // The first is saved, and has translated for itself. One with another memory boots, and so do all where there are no snapshots.
    for (memory_mib, snapshots, expected) in [
        (192, true, Origin::Cold),
        (192, true, Origin::Snapshot),
        (193, true, Origin::Cold),
        (192, false, Origin::Cold),
    ] {
        let scheduler = start(SchedulerConfig { snapshots, ..world.config() }).await;
        let translations = || {
            let snapshots = fs::read_dir(world.snapshot_dir()).into_iter().flatten().filter_map(Result::ok);
            snapshots.filter_map(|snapshot| Some(fs::metadata(snapshot.path().join("translations")).ok()?.ino()))
        };
        let known: Vec<String> = translations().map(|inode| inode.to_string()).collect();
        let vm = vm(&scheduler, VmSpec { memory_mib: Some(memory_mib), ..VmSpec::new(Language::Raw) }).await;
        assert_eq!(vm.boot_timing().origin, expected);
        let outcome = vm.execute(ExecRequest::new("echo $((6 * 7))")).await.expect("it runs");
        assert_eq!(stdout(&outcome), "42\n");
        let maps = fs::read_to_string(format!("/proc/{}/maps", vm.process().pid())).expect("it lives");
        // Permissions are the second word of a line, and the inode the fifth.
        let words = maps.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let mapped = words.filter(|words| known.iter().any(|inode| *inode == words[4])).map(|words| words[1]);
        let mapped: Vec<&str> = mapped.collect();
        assert_eq!(mapped.contains(&"r--p"), !known.is_empty(), "{memory_mib} {snapshots}: {mapped:?}");
        assert!(mapped.iter().all(|permissions| *permissions == "r--p"), "{mapped:?}");
        vm.destroy().await.expect("it dies");
        scheduler.close().await.expect("nothing is left");
        assert_ne!(translations().count(), 0);
    }
}

#[tokio::test]
async fn translations_that_end_qemu_cost_a_run_time_and_are_set_aside() {
    let world = World::without_snapshots();
    let run_with = async |memory_mib| {
        let scheduler = world.scheduler().await;
        let request = RunRequest { memory_mib: Some(memory_mib), ..RunRequest::new(Language::Raw, "echo whole") };
        let outcome = scheduler.run(request).await.unwrap_or_else(|error| panic!("{error}: {:?}", error.source()));
        scheduler.close().await.expect("nothing is left");
        assert_eq!(stdout(&outcome), "whole\n");
        origin(&outcome)
    };
    assert_eq!(run_with(192).await, SAVED);
    // One that boots with a relative's, and one that is a copy: both end, and both are made without.
    for (set_aside, memory_mib) in [(1, 193), (2, 193)] {
        let snapshots = fs::read_dir(world.snapshot_dir()).expect("it is there").filter_map(Result::ok);
        let snapshots: Vec<_> =
            snapshots.map(|entry| entry.path()).filter(|dir| dir.join("translations").exists()).collect();
        let [snapshot] = &snapshots[..] else { panic!("there is one: {snapshots:?}") };
        break_translations(snapshot);
        assert_eq!(run_with(memory_mib).await, SAVED);
        let quarantine = fs::read_dir(world.snapshot_dir().join("quarantine")).expect("it is there");
        assert_eq!(quarantine.count(), set_aside);
    }
    assert_eq!(run_with(193).await, COPIED);
}

/// Makes every block of a snapshot's translations an instruction that ends a process, under a digest that is right.
fn break_translations(snapshot: &Path) {
    let path = snapshot.join("translations");
    fs::set_permissions(&path, Permissions::from_mode(0o644)).expect("it is ours");
    let file = fs::File::options().read(true).write(true).open(&path).expect("it is ours");
    let number = |at| {
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, at).expect("it has so many");
        u64::from_le_bytes(bytes)
    };
    // The head of the file, see `accel/tcg/kept.c` in the patch of QEMU: the size of what TCG notes of a block, a cache line's, the table's.
    // Blocks follow, each with lengths in front of it.
    let [block_bytes, line_bytes, slots] = [56, 80, 96].map(number);
    let mut table = vec![0; usize::try_from(slots).expect("it is small") * 8];
    file.read_exact_at(&mut table, 4096).expect("it has so many");
    let (blocks, lengths_bytes) = (4096 + 8 * slots, 16);
    for slot in table.chunks_exact(8) {
        let place = u32::from_le_bytes([slot[4], slot[5], slot[6], slot[7]]);
        if place != 0 {
            let code = blocks + u64::from(place) - 1 + lengths_bytes + block_bytes.next_multiple_of(line_bytes);
            file.write_all_at(&[0xcc; 4], code).expect("it is ours");
        }
    }
    fs::set_permissions(&path, Permissions::from_mode(0o444)).expect("it is ours");
    let (digest, _) = Digest::of_sparse_file(&file).expect("it can be read");
    let path = snapshot.join("manifest.json");
    let mut manifest: Value = serde_json::from_slice(&fs::read(&path).expect("it is there")).expect("it is JSON");
    manifest["translations"]["digest"] = digest.to_string().into();
    fs::remove_file(&path).expect("it is ours");
    fs::write(&path, manifest.to_string()).expect("it is ours");
    fs::set_permissions(&path, Permissions::from_mode(0o444)).expect("it is ours");
}

/// Flips a byte of a file that nobody may write to.
fn flip(path: &Path, at: u64) {
    fs::set_permissions(path, Permissions::from_mode(0o644)).expect("it is ours");
    let file = fs::File::options().read(true).write(true).open(path).expect("it is ours");
    let length = file.metadata().expect("it is open").len();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("it has so many");
    file.write_all_at(&[!byte[0]], at).expect("it is ours");
    assert_eq!(file.metadata().expect("it is open").len(), length);
    drop(file);
    fs::set_permissions(path, Permissions::from_mode(0o444)).expect("it is ours");
}

#[tokio::test]
async fn another_memory_or_language_is_another_snapshot() {
    let world = World::without_snapshots();
    let scheduler = world.scheduler().await;
    let requests = [(Language::Raw, 192), (Language::Raw, 193), (Language::Python, 192)];
    for expected in [SAVED, COPIED] {
        for (language, memory_mib) in requests {
            // In either language.
            let request = RunRequest { memory_mib: Some(memory_mib), ..RunRequest::new(language, "number=1") };
            let outcome = scheduler.run(request).await.expect("it runs");
            assert_eq!((outcome.exit, origin(&outcome)), (Exit::Code(0), expected), "{language} {memory_mib}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_five_at_once_one_is_saved_and_all_are_right() {
    let world = World::without_snapshots();
    // As many as are asked for, whatever the machine has.
    let config = SchedulerConfig { cpu_overcommit_ratio: 20.0, ..world.config() };
    let scheduler = Scheduler::start(config).await.unwrap_or_else(|error| panic!("{error}: {:?}", error.remedy()));
    let runs = (0..5).map(|number| scheduler.run(RunRequest::new(Language::Python, format!("print({number} * 7)"))));
    let outcomes = futures_util::future::join_all(runs).await;
    let mut origins = Vec::new();
    for (number, outcome) in outcomes.into_iter().enumerate() {
        let outcome = outcome.unwrap_or_else(|error| panic!("{error}: {:?}", std::error::Error::source(&error)));
        assert_eq!(stdout(&outcome), format!("{}\n", number * 7));
        origins.push(origin(&outcome));
    }
    origins.sort_by_key(|(_, is_saved)| !is_saved);
    assert_eq!(origins, [SAVED, COPIED, COPIED, COPIED, COPIED]);
    scheduler.close().await.expect("nothing is left");
    world.assert_empty(Vec::<String>::new());
}

#[tokio::test]
async fn a_copy_of_a_large_guest_is_a_session_with_files_and_all_of_its_memory() {
    let world = World::without_snapshots();
    let scheduler = world.scheduler().await;
    let spec = VmSpec { memory_mib: Some(2048), ..VmSpec::new(Language::Python) };
    vm(&scheduler, spec.clone()).await.destroy().await.expect("it dies");
    let session = scheduler.session(SessionRequest { vm: spec, idle_timeout: None }).await.expect("it is restored");
    assert_eq!(session.vm().boot_timing().origin, Origin::Snapshot);
    session.write_file("in", &b"from the host"[..], WriteOptions::default()).await.expect("there is room");
    let exec = async |code: &str| {
        let outcome = session.exec(ExecRequest::new(code)).await.unwrap_or_else(|error| panic!("{error}"));
        stdout(&outcome) + &stderr(&outcome)
    };
    assert_eq!(exec("held = open('in').read(); open('out', 'w').write(held[::-1])").await, "");
    assert_eq!(
        exec("more = bytearray(700 << 20)\nmore[::4096] = b'x' * (len(more) // 4096)\nprint(more.count(b'x'), held)")
            .await,
        "179200 from the host\n"
    );
    let mut out = Vec::new();
    session.read_file("out", &mut out).await.expect("it is there");
    assert_eq!(out, b"tsoh eht morf");
    session.close().await.expect("it dies");
    scheduler.close().await.expect("nothing is left");
}

/// Copies, one after the other: each is right, and what is left of each is counted.
async fn copies(count: u32) {
    let world = World::without_snapshots();
    let first = world.scheduler().await;
    assert_eq!(origin(&run(&world, &first, Language::Python, "1").await), SAVED);
    first.close().await.expect("nothing is left");
    drop(first);
    let scheduler = world.scheduler().await;
    let entries = |dir: &str| fs::read_dir(dir).expect("/proc can be read").count();
    let mut times = Vec::new();
    let mut before = None;
    for number in 0..count {
        let outcome = run(&world, &scheduler, Language::Python, &format!("print({number} + 1)")).await;
        assert_eq!((stdout(&outcome), origin(&outcome)), (format!("{}\n", number + 1), COPIED));
        times.push(outcome.timing.total);
        // The first ones make what stays: the spawner's thread, the allocator's pools.
        if number == count / 10 {
            before = Some((entries("/proc/self/fd"), vmtests::resident_bytes()));
        }
    }
    let (descriptors, resident) = before.expect("it was noted on the way");
    assert_eq!(entries("/proc/self/fd"), descriptors, "descriptors are left");
    assert_eq!(vmtests::children(), Vec::<u32>::new(), "processes are left");
    let grown = vmtests::resident_bytes().saturating_sub(resident);
    assert!(grown < 10_000_000, "{grown} bytes of memory are left after {count} VMs");
    times.sort();
    let of = |percent: usize| times[(times.len() - 1) * percent / 100].as_millis();
    let _ = writeln!(
        io::stderr(),
        "{count} copies: {} ms at best, {} ms in the middle, {} ms at the 95th percentile, {} ms at worst; {grown} bytes more",
        of(0),
        of(50),
        of(95),
        of(100)
    );
    scheduler.close().await.expect("nothing is left");
    assert!(!world.snapshot_dir().join("quarantine").exists(), "nothing was set aside");
}

#[tokio::test]
async fn thirty_copies_in_a_row_are_right_and_leave_nothing() {
    copies(30).await;
}

#[tokio::test]
#[ignore = "takes minutes: cargo nextest run -p vmtests --run-ignored only"]
async fn a_thousand_copies_in_a_row_are_right_and_leave_nothing() {
    copies(1000).await;
}
