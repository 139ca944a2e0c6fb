//! The command line: what a person types, what they see, and what is left afterwards.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    os::unix::{fs::PermissionsExt, process::ExitStatusExt},
    path::Path,
    process::{Child, Output, Stdio},
    time::{Duration, Instant},
};

use exec_sandbox::Scheduler;
use rustix::process::{Pid, Signal, kill_process};
use vmtests::{World, processes, wait_for};

fn sbx(world: &World, args: &[&str]) -> Output {
    world.sbx().args(args).stdin(Stdio::null()).output().expect("sbx starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A run that lasts until it is ended, and the id of its VM once the program runs in it.
fn endless(world: &World) -> (Child, String) {
    let code = "print('running'); import time; time.sleep(1000)";
    let mut child = world
        .sbx()
        .args(["run", "-t", "300", "-c", code])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("sbx starts");
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().expect("it is piped")).read_line(&mut line).expect("it is text");
    assert_eq!(line, "running\n");
    (child, world.wait_for_vm())
}

fn signal(child: &Child, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(child.id()).expect("pids are small")).expect("it is not 0");
    kill_process(pid, signal).expect("it is ours");
}

#[test]
fn code_comes_from_an_argument_a_file_or_standard_input() {
    let world = World::new();
    let output = sbx(&world, &["run", "-c", "import platform; print(platform.uname().system)"]);
    assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(0), "Linux\n"), "{}", text(&output.stderr));

    let script = world.run_dir().join("script.ts");
    fs::write(&script, "const x: number = 41; console.log(x + 1)").expect("it can be written");
    let output = sbx(&world, &["run", script.to_str().expect("it is text")]);
    assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(0), "42\n"), "{}", text(&output.stderr));

    let mut child = world
        .sbx()
        .args(["run", "-l", "raw", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("sbx starts");
    child.stdin.take().expect("it is piped").write_all(b"echo $((40+2)); exit 7").expect("it reads");
    let output = child.wait_with_output().expect("it ends");
    assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(7), "42\n"));
    world.assert_empty(world.vms());
}

#[test]
fn several_sources_run_at_once_and_are_shown_one_after_another() {
    let world = World::new();
    let output =
        sbx(&world, &["run", "-c", "print('first')", "-c", "print('second')", "-c", "import sys; sys.exit(4)"]);
    let shown = text(&output.stdout);
    let (first, second) = (shown.find("first\n"), shown.find("second\n"));
    assert!(first.is_some() && first < second, "{shown}");
    assert_eq!(output.status.code(), Some(4));
    world.assert_empty(world.vms());
}

#[test]
fn json_is_one_object_that_tells_what_was_measured() {
    let world = World::new();
    let output = sbx(&world, &["run", "--json", "-c", "print('hi')"]);
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).expect("it is JSON");
    assert_eq!((&json["exit_code"], &json["stdout"]), (&0.into(), &"hi\n".into()));
    assert!(json["timing"]["total_ms"].as_f64().is_some_and(|total| total > 0.0), "{json}");
    assert!(["cold", "snapshot"].iter().any(|origin| json["timing"]["origin"] == *origin), "{json}");
    let id = json["vm_id"].as_str().expect("it is text");
    world.assert_empty([id]);
}

#[test]
fn a_program_that_never_ends_is_ended_in_time_and_exits_with_124() {
    let world = World::new();
    let begun = Instant::now();
    let output = sbx(&world, &["run", "-t", "2", "while True: pass"]);
    assert_eq!(output.status.code(), Some(124), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("timeout"));
    assert!(begun.elapsed() < Duration::from_secs(30), "the grace was not used up: {:?}", begun.elapsed());
    world.assert_empty(world.vms());
}

#[test]
fn an_interrupt_ends_the_vm_and_then_the_command() {
    for (number, code) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        let world = World::new();
        let (mut child, id) = endless(&world);
        signal(&child, number);
        assert_eq!(child.wait().expect("it ends").code(), Some(code));
        world.assert_empty([id]);
    }
}

#[tokio::test]
async fn a_command_that_is_killed_takes_its_vm_with_it_and_the_next_start_clears_up() {
    let world = World::new();
    let (mut child, id) = endless(&world);
    assert_eq!(processes(&id).len(), 1);
    signal(&child, Signal::KILL);
    assert_eq!(child.wait().expect("it ends").signal(), Some(9));
    wait_for("the death of an orphan", || processes(&id).is_empty().then_some(()));
    assert!(world.vms().contains(&id), "nobody has cleared up yet");
    let scheduler = Scheduler::start(world.config()).await.expect("it starts");
    world.assert_empty([id]);
    scheduler.close().await.expect("nothing is left");
}

#[test]
fn a_qemu_that_is_killed_is_an_error_that_says_the_program_may_have_run() {
    let world = World::new();
    let (mut child, id) = endless(&world);
    let qemu = i32::try_from(processes(&id)[0]).expect("pids are small");
    kill_process(Pid::from_raw(qemu).expect("it is not 0"), Signal::KILL).expect("it is ours");
    let status = child.wait().expect("it ends");
    let mut said = String::new();
    child.stderr.take().expect("it is piped").read_to_string(&mut said).expect("it is text");
    assert_eq!(status.code(), Some(125), "{said}");
    assert!(said.contains("may have run") && said.contains("signal 9"), "{said}");
    world.assert_empty([id]);
}

#[test]
fn a_vm_is_listed_while_it_runs_and_can_be_killed_by_the_beginning_of_its_id() {
    let world = World::new();
    let (mut child, id) = endless(&world);
    let listed = sbx(&world, &["ps", "--json"]);
    let vms: serde_json::Value = serde_json::from_slice(&listed.stdout).expect("it is JSON");
    let vm = &vms[0];
    assert_eq!((&vm["id"], &vm["state"], &vm["language"]), (&id.as_str().into(), &"running".into(), &"python".into()));
    assert_eq!((&vm["owner"]["pid"], &vm["owner"]["name"]), (&child.id().into(), &"sbx".into()), "{vm}");
    assert_eq!(vm["processes"][0]["pid"].as_u64(), processes(&id).first().copied().map(u64::from), "{vm}");
    assert!(vm["resident_bytes"].as_u64().is_some_and(|bytes| bytes > 1 << 20), "{vm}");

    let killed = sbx(&world, &["kill", &id[..8]]);
    assert_eq!(killed.status.code(), Some(0), "{}", text(&killed.stderr));
    assert_eq!(text(&killed.stdout), format!("{id}\n"));
    world.assert_empty([&id]);
    let mut said = String::new();
    child.stderr.take().expect("it is piped").read_to_string(&mut said).expect("it is text");
    assert_eq!(child.wait().expect("it ends").code(), Some(125), "{said}");
    assert!(said.contains("may have run"), "{said}");
    assert_eq!(text(&sbx(&world, &["ps", "-q"]).stdout), "");
}

#[test]
fn what_a_killed_command_leaves_is_collected() {
    let world = World::new();
    let (mut child, id) = endless(&world);
    signal(&child, Signal::KILL);
    child.wait().expect("it ends");
    let collected = sbx(&world, &["gc", "--json"]);
    assert_eq!(collected.status.code(), Some(0), "{}", text(&collected.stdout));
    let report: serde_json::Value = serde_json::from_slice(&collected.stdout).expect("it is JSON");
    assert_eq!(report["removed"], serde_json::json!([id]), "{report}");
    world.assert_empty([id]);
}

#[test]
fn what_is_missing_or_damaged_is_named_with_its_remedy() {
    let world = World::new();
    let images = tempfile::tempdir().expect("a temporary directory");
    let sbx = |env: &[(&str, &str)], args: &[&str]| {
        let output =
            world.sbx().envs(env.iter().copied()).args(args).stdin(Stdio::null()).output().expect("sbx starts");
        (output.status.code(), text(&output.stderr))
    };
    let dir = images.path().to_str().expect("it is text");

    let (code, said) = sbx(&[("EXEC_SANDBOX_QEMU", "/no/such/qemu")], &["run", "-c", "1"]);
    assert_eq!(code, Some(125));
    assert!(said.contains("/no/such/qemu") && said.contains("help:"), "{said}");

    let (code, said) = sbx(&[("EXEC_SANDBOX_IMAGES_DIR", dir)], &["run", "-c", "1"]);
    assert_eq!(code, Some(125));
    assert!(said.contains("no image") && said.contains("cargo xtask assets"), "{said}");

    for (role, damage) in [("kernel", Damage::Missing), ("initramfs", Damage::Cut), ("initramfs", Damage::Changed)] {
        copy_image(images.path(), role, damage);
        let (code, said) = sbx(&[("EXEC_SANDBOX_IMAGES_DIR", dir)], &["run", "-c", "1"]);
        assert_eq!(code, Some(125), "{said}");
        assert!(said.contains(role) && said.contains("cargo xtask assets"), "{said}");
    }

    let (code, said) = sbx(&[], &["run", "no-such-file.py"]);
    assert_eq!(code, Some(2));
    assert!(said.contains("no-such-file.py"), "{said}");
    let (code, said) = sbx(&[], &["run", "--no-such-option"]);
    assert_eq!(code, Some(2));
    assert!(said.contains("--no-such-option"), "{said}");
    world.assert_empty(world.vms());
}

#[derive(Clone, Copy, Debug)]
enum Damage {
    Missing,
    Cut,
    Changed,
}

/// The real image in a store of its own, with one blob damaged. The others are hard links: nothing here writes to them.
fn copy_image(to: &Path, role: &str, damage: Damage) {
    let config = exec_sandbox::SchedulerConfig::default();
    let image =
        exec_sandbox::images(&config).expect("images can be listed").into_iter().find(|image| image.name == "standard");
    let from = image.expect("the standard image is built: cargo xtask assets").path;
    let manifest = fs::read_to_string(from.join("standard.json")).expect("it is there");
    let json: serde_json::Value = serde_json::from_str(&manifest).expect("it is JSON");
    let _ = fs::remove_dir_all(to.join("blobs"));
    fs::create_dir_all(to.join("blobs")).expect("it can be made");
    fs::write(to.join("standard.json"), manifest).expect("it can be written");
    for name in ["kernel", "initramfs", "root"] {
        let digest = json[name]["blake3"].as_str().expect("it is text");
        let (source, copy) = (from.join("blobs").join(digest), to.join("blobs").join(digest));
        if name != role {
            // Another file system has no hard links to this one.
            fs::hard_link(&source, &copy).or_else(|_| fs::copy(&source, &copy).map(drop)).expect("it can be copied");
            continue;
        }
        let mut bytes = fs::read(&source).expect("it is there");
        let middle = bytes.len() / 2;
        match damage {
            Damage::Missing => continue,
            Damage::Cut => bytes.truncate(middle),
            Damage::Changed => bytes[middle] ^= 1,
        }
        fs::write(&copy, bytes).expect("it can be written");
    }
}

#[test]
fn an_accelerator_that_does_not_work_is_refused_by_name_and_automatic_choice_finds_one_that_does() {
    let world = World::new();
    let auto = sbx(&world, &["run", "--json", "-c", "print(1)"]);
    let json: serde_json::Value = serde_json::from_slice(&auto.stdout).expect("it is JSON");
    let chosen = json["accelerator"].as_str().expect("it is text").to_owned();
    let kvm = sbx(&world, &["run", "--accel", "kvm", "-c", "print(1)"]);
    if chosen == "kvm" {
        assert_eq!(kvm.status.code(), Some(0), "{}", text(&kvm.stderr));
    } else {
        assert_eq!(kvm.status.code(), Some(125));
        let said = text(&kvm.stderr);
        assert!(said.contains("using kvm as the accelerator") && said.contains("help:"), "{said}");
    }
    let hvf = sbx(&world, &["run", "--accel", "hvf", "-c", "print(1)"]);
    assert_eq!(hvf.status.code(), Some(125), "there is no hvf on Linux");
    let forced =
        world.sbx().env("EXEC_SANDBOX_FORCE_EMULATION", "true").args(["run", "--json", "-c", "print(1)"]).output();
    let json: serde_json::Value = serde_json::from_slice(&forced.expect("sbx starts").stdout).expect("it is JSON");
    assert_eq!(json["accelerator"], "tcg");
    world.assert_empty(world.vms());
}

#[test]
fn the_boot_log_is_shown_on_standard_error_when_it_is_asked_for() {
    let world = World::new();
    let output = sbx(&world, &["run", "--debug", "-c", "print('out')"]);
    assert_eq!(text(&output.stdout), "out\n");
    assert!(text(&output.stderr).contains("Linux version"), "{}", text(&output.stderr));
}

/// Bytes that no two files share and that do not compress: an xorshift from `seed`.
fn noise(size: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..size.div_ceil(8)).flat_map(|_| next()).take(size).collect()
}

/// What the tests with files send and fetch.
struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary directory"))
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, content: &[u8]) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("it is in the directory")).expect("it can be made");
        fs::write(path, content).expect("it can be written");
    }

    fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    fn sbx(&self, world: &World, args: &[&str]) -> Output {
        world.sbx().args(args).current_dir(self.0.path()).stdin(Stdio::null()).output().expect("sbx starts")
    }
}

fn is_executable(path: &Path) -> bool {
    fs::metadata(path).expect("it is there").permissions().mode() & 0o100 != 0
}

#[test]
fn files_go_in_before_the_program_and_come_out_after_it() {
    let (world, files) = (World::new(), Files::new());
    files.write("in.bin", &noise(3 << 20, 1));
    let code = "data = open('in.bin','rb').read(); open('out.bin','wb').write(data[::-1]); print(len(data))";
    let output = files.sbx(&world, &["run", "--upload", "in.bin", "--download", "out.bin:back.bin", "-c", code]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout), format!("{}\n", 3 << 20));
    let mut back = files.read("back.bin");
    back.reverse();
    assert!(back == files.read("in.bin"), "the bytes are not the same");
    world.assert_empty(world.vms());
}

#[test]
fn a_tree_comes_back_as_it_went() {
    let (world, files) = (World::new(), Files::new());
    let tree: [(&str, Vec<u8>); 5] = [
        ("empty", Vec::new()),
        ("grüße 🎈/日本語.txt", b"unicode".to_vec()),
        ("deep/er/and/deeper/x", vec![0]),
        ("big.bin", noise(3 << 20, 2)),
        ("run.sh", b"#!/bin/sh\necho ran\n".to_vec()),
    ];
    for (name, content) in &tree {
        files.write(&format!("tree/{name}"), content);
    }
    fs::create_dir(files.path("tree/nothing")).expect("it can be made");
    fs::set_permissions(files.path("tree/run.sh"), fs::Permissions::from_mode(0o755)).expect("it is ours");
    let args = ["run", "-l", "raw", "--upload", "tree:sent/", "--download", "sent/tree:back", "-c", "sent/tree/run.sh"];
    let output = files.sbx(&world, &args);
    assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(0), "ran\n"), "{}", text(&output.stderr));
    for (name, content) in &tree {
        assert!(files.read(&format!("back/{name}")) == *content, "{name} is not the same");
        assert_eq!(is_executable(&files.path(&format!("back/{name}"))), *name == "run.sh", "{name}");
    }
    assert!(files.path("back/nothing").is_dir());
}

#[test]
fn a_download_of_what_is_not_there_fails_by_name_and_keeps_what_the_program_said_and_the_other_files() {
    let (world, files) = (World::new(), Files::new());
    let code = "open('there','w').write('yes'); print('said')";
    let output = files.sbx(&world, &["run", "--download", "missing", "--download", "there", "-c", code]);
    let said = text(&output.stderr);
    assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(125), "said\n"), "{said}");
    assert!(said.contains("downloading missing"), "{said}");
    assert_eq!(files.read("there"), b"yes");

    let args = ["run", "--json", "--download", "missing", "-c", "import sys; print('said'); sys.exit(7)"];
    let output = files.sbx(&world, &args);
    assert_eq!(output.status.code(), Some(7), "the program's own failure decides");
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).expect("it is JSON");
    assert_eq!((&json["exit_code"], &json["stdout"]), (&7.into(), &"said\n".into()), "{json}");
    assert_eq!(json["download_errors"][0]["kind"], "file_not_found", "{json}");
    assert!(json["timing"]["teardown_ms"].as_f64().is_some_and(|teardown| teardown > 0.0), "{json}");
    let phases = ["admission_ms", "prepare_ms", "spawn_ms", "guest_wait_ms", "execute_ms", "teardown_ms"];
    let phases: f64 = phases.iter().map(|phase| json["timing"][phase].as_f64().expect("it was measured")).sum();
    let phases = phases + json["timing"]["snapshot_ms"].as_f64().unwrap_or(0.0);
    let total = json["timing"]["total_ms"].as_f64().expect("it was measured");
    assert!(phases <= total && json["timing"]["guest_wait_ms"].as_f64() > Some(0.0), "{json}");
    world.assert_empty([json["vm_id"].as_str().expect("it is text")]);
}

#[test]
fn files_come_out_of_a_program_that_failed_or_was_ended_in_time() {
    let (world, files) = (World::new(), Files::new());
    let failing = "open('log','w').write('before'); import sys; sys.exit(3)";
    let output = files.sbx(&world, &["run", "--download", "log:failed", "-c", failing]);
    assert_eq!(output.status.code(), Some(3), "{}", text(&output.stderr));
    assert_eq!(files.read("failed"), b"before");
    let endless = "f = open('log','w'); f.write('before'); f.close()\nwhile True: pass";
    let output = files.sbx(&world, &["run", "-t", "2", "--download", "log:ended", "-c", endless]);
    assert_eq!(output.status.code(), Some(124), "{}", text(&output.stderr));
    assert_eq!(files.read("ended"), b"before");
}

#[test]
fn links_of_a_guest_lead_nowhere_on_this_host() {
    let (world, files) = (World::new(), Files::new());
    let code = "mkdir out; ln -s /etc out/etc; ln -s / out/root; mkfifo out/fifo; echo kept > out/file";
    let output = files.sbx(&world, &["run", "-l", "raw", "--download", "out", "-c", code]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let names: Vec<_> =
        fs::read_dir(files.path("out")).expect("it is there").map(|entry| entry.expect("it is").file_name()).collect();
    assert_eq!(names, ["file"]);
    // What is called a file and leads out of the home directory is the guest's refusal.
    let code = "ln -s /etc/passwd out";
    let output = files.sbx(&world, &["run", "-l", "raw", "--download", "out:passwd", "-c", code]);
    assert_eq!(output.status.code(), Some(125), "{}", text(&output.stderr));
    assert!(!files.path("passwd").exists());
}

#[test]
fn what_cannot_be_uploaded_is_refused_and_several_sources_get_what_can() {
    let (world, files) = (World::new(), Files::new());
    let output = files.sbx(&world, &["run", "--upload", "missing", "-c", "1"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("--upload missing"), "{}", text(&output.stderr));
    files.write("shared", b"both");
    let code = "print(open('shared').read())";
    let output = files.sbx(&world, &["run", "--upload", "shared", "-c", code, "-c", code]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout).matches("both\n").count(), 2, "{}", text(&output.stdout));
}

#[test]
fn the_doctor_tries_a_guest_of_each_language_from_inside() {
    let world = World::new();
    let output = sbx(&world, &["doctor", "--guest"]);
    let page = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{page}{}", text(&output.stderr));
    for language in ["python (", "javascript (", "raw ("] {
        assert!(page.contains(language), "{page}");
    }
    assert!(page.ends_with("checks hold.\n"), "{page}");
    world.assert_empty([""; 0]);
}
