//! `sbx ps`, `kill` and `gc` from outside: run directories made by hand, a shell in QEMU's place, this test as the owner.

use std::{
    fs::{self, File},
    io::Write as _,
    path::PathBuf,
    process::{Child, ChildStdin, Output, Stdio},
    thread,
};

use assert_cmd::Command;

/// A run directory of its own, in which VMs are pretended.
struct World {
    home: tempfile::TempDir,
}

/// A VM whose owner is this test, for as long as the lock is not dropped.
struct Vm {
    dir: PathBuf,
    lock: Option<File>,
    qemu: Child,
    /// What the shell waits for. Whoever waits for a child closes it if the child still has it, and then it ends by itself.
    input: ChildStdin,
}

impl World {
    fn new() -> Self {
        let home = tempfile::tempdir().expect("a directory is made");
        fs::create_dir(home.path().join("run")).expect("it is new");
        Self { home }
    }

    fn sbx(&self, words: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_sbx"))
            .args(words)
            .env_clear()
            .env("HOME", self.home.path())
            .env("EXEC_SANDBOX_RUN_DIR", self.home.path().join("run"))
            .output()
            .expect("sbx runs")
    }

    /// Exit code and the two streams.
    fn told(&self, words: &[&str]) -> (i32, String, String) {
        let output = self.sbx(words);
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("sbx speaks UTF-8");
        (output.status.code().expect("it exits"), text(output.stdout), text(output.stderr))
    }

    fn json(&self, words: &[&str]) -> (i32, serde_json::Value) {
        let (code, stdout, stderr) = self.told(words);
        assert_eq!(stderr, "", "with --json nothing is said elsewhere");
        (code, serde_json::from_str(&stdout).expect("standard output is JSON"))
    }

    fn vm(&self, id: &str) -> Vm {
        let dir = self.home.path().join("run").join(id);
        fs::create_dir(&dir).expect("it is new");
        let lock = File::create(dir.join("lock")).expect("it is new");
        lock.lock().expect("nobody has it");
        let mut qemu = std::process::Command::new("/bin/sh")
            .args(["-c", "read -r line", id])
            .stdin(Stdio::piped())
            .spawn()
            .expect("sh starts");
        // For a moment after `execve` a process has no command line.
        while fs::read(format!("/proc/{}/cmdline", qemu.id())).expect("it runs").is_empty() {
            thread::yield_now();
        }
        let record = serde_json::json!({
            "vm_id": id,
            "owner": { "pid": std::process::id(), "start_ticks": start_ticks(std::process::id()), "program": "tester" },
            "created_unix_ms": 1_000, "memory_mib": 256, "language": "python", "tenant_id": "t-1", "image": "standard",
        });
        fs::write(dir.join("record"), record.to_string()).expect("it can be written");
        let children = format!("qemu {} {}\n", qemu.id(), start_ticks(qemu.id()));
        fs::write(dir.join("children"), children).expect("it can be written");
        let input = qemu.stdin.take().expect("it is piped");
        Vm { dir, lock: Some(lock), qemu, input }
    }
}

impl Vm {
    fn abandoned(mut self) -> Self {
        self.lock = None;
        self
    }

    /// Does what an owner does whose VM has ended.
    fn clear_up_when_it_dies(mut self) -> thread::JoinHandle<()> {
        thread::spawn(move || {
            self.qemu.wait().expect("it is ours");
            fs::remove_dir_all(&self.dir).expect("nobody else removes it");
        })
    }

    fn is_alive(&mut self) -> bool {
        self.qemu.try_wait().expect("it is ours").is_none()
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

/// When a process started: field 22 of its `stat`, of which the second may contain blanks.
fn start_ticks(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
    let (_, fields) = stat.rsplit_once(')').expect("it has a name");
    fields.split_whitespace().nth(19).expect("it has that many").parse().expect("it is a number")
}

#[test]
fn no_vms_are_an_empty_list_and_nothing_to_do() {
    let world = World::new();
    assert_eq!(world.json(&["ps", "--json"]), (0, serde_json::json!([])));
    let titles = "ID  STATE  LANGUAGE  MEMORY  RESIDENT  CPU  AGE  QEMU  GATEWAY  OWNER  TENANT  TASK\n";
    assert_eq!(world.told(&["ps"]), (0, titles.into(), String::new()));
    assert_eq!(world.told(&["ps", "-q"]), (0, String::new(), String::new()));
    assert_eq!(world.told(&["kill", "--all"]), (0, String::new(), String::new()));
    assert_eq!(world.told(&["gc"]), (0, "Nothing was left.\n".into(), String::new()));
    assert_eq!(world.json(&["gc", "--json"]), (0, serde_json::json!({ "ended": [], "removed": [], "resisted": [] })));
}

#[test]
fn a_vm_is_shown_with_its_owner_and_what_it_is_for() {
    let world = World::new();
    let vm = world.vm("vm-1");
    let (code, stdout, stderr) = world.told(&["ps", "--json"]);
    assert_eq!((code, stderr.as_str()), (0, ""));
    insta::with_settings!({ filters => [
        (r#""pid": \d+"#, r#""pid": [pid]"#),
        (r#"_ms": [\d.]+"#, r#"_ms": [ms]"#),
        (r#""resident_bytes": \d+"#, r#""resident_bytes": [bytes]"#),
        (r#""path": ".*/run/"#, r#""path": "[run]/"#),
    ] }, { insta::assert_snapshot!("ps_json", stdout) });

    let (_, table, _) = world.told(&["ps"]);
    let row = table.lines().nth(1).expect("there is one VM");
    assert!(row.starts_with("vm-1  running  python    256 MiB"), "{table}");
    assert!(row.contains(&format!("{} tester  t-1     -", std::process::id())), "{table}");
    assert_eq!(world.told(&["ps", "-q"]).1, "vm-1\n");
    drop(vm);
    assert!(world.told(&["ps"]).1.contains("(dead)"), "its process is gone and its owner is not");
}

#[test]
fn a_record_that_cannot_be_read_hides_no_vm() {
    let world = World::new();
    let (vm, _other) = (world.vm("vm-1"), world.vm("vm-2"));
    fs::write(vm.dir.join("record"), "{\"vm_id\"").expect("it can be written");
    fs::write(vm.dir.join("children"), "\u{1b}[2J\n").expect("it can be written");
    let (code, all) = world.json(&["ps", "--json"]);
    assert_eq!(code, 0);
    let all = all.as_array().expect("it is a list");
    let shown: Vec<_> = all.iter().map(|vm| (vm["id"].as_str(), vm["owner"].is_null())).collect();
    assert_eq!(shown, [(Some("vm-2"), false), (Some("vm-1"), true)]);
}

#[test]
fn a_vm_that_is_killed_is_gone_with_its_owners_help() {
    let world = World::new();
    let owner = world.vm("vm-1a").clear_up_when_it_dies();
    let mut other = world.vm("vm-2b");
    assert_eq!(world.told(&["kill", "vm-1"]), (0, "vm-1a\n".into(), String::new()));
    owner.join().expect("no panic");
    assert!(other.is_alive());
    assert_eq!(world.told(&["ps", "-q"]).1, "vm-2b\n");
}

#[test]
fn an_id_that_stands_for_no_vm_is_wrong_usage_and_the_others_are_ended() {
    let world = World::new();
    let mut vms = [world.vm("vm-1a").abandoned(), world.vm("vm-1b").abandoned(), world.vm("vm-2").abandoned()];
    let (code, stdout, stderr) = world.told(&["kill", "vm-1", "vm-2", "nothing"]);
    assert_eq!((code, stdout.as_str()), (2, "vm-2\n"));
    assert!(stderr.contains("error: vm-1: ending VM \"vm-1\": it stands for vm-1a, vm-1b\n"), "{stderr}");
    assert!(stderr.contains("error: nothing: ending VM \"nothing\": there is no such VM\n"), "{stderr}");
    assert!(stderr.contains("help: sbx ps lists them: "), "{stderr}");
    assert!(vms[0].is_alive() && vms[1].is_alive() && !vms[2].is_alive());
    assert_eq!(world.told(&["kill"]).0, 2);
    assert_eq!(world.told(&["kill", "--all", "vm-1a"]).0, 2);
}

#[test]
fn all_vms_are_killed_at_one_word() {
    let world = World::new();
    let owner = world.vm("vm-1").clear_up_when_it_dies();
    let mut abandoned = world.vm("vm-2").abandoned();
    let (code, stdout, stderr) = world.told(&["kill", "--all"]);
    let mut ids: Vec<_> = stdout.lines().collect();
    ids.sort_unstable();
    assert_eq!((code, ids, stderr.as_str()), (0, vec!["vm-1", "vm-2"], ""));
    owner.join().expect("no panic");
    assert!(!abandoned.is_alive());
    assert_eq!(world.json(&["ps", "--json"]).1, serde_json::json!([]));
}

#[test]
fn what_is_left_is_collected_and_told_and_what_is_in_use_is_not_touched() {
    let world = World::new();
    let mut used = world.vm("vm-used");
    let mut left = world.vm("vm-left").abandoned();
    let (_, report) = world.json(&["doctor", "--json"]);
    let checks = report["checks"].as_array().expect("there are checks");
    let check = checks.iter().find(|check| check["name"] == "run directory").expect("it is examined");
    assert_eq!(check["status"], "warning");
    assert!(check["detail"].as_str().is_some_and(|detail| detail.ends_with("gone: vm-left")), "{check}");
    assert!(check["remedy"].as_str().is_some_and(|remedy| remedy.contains("`sbx gc`")), "{check}");

    let pid = left.qemu.id();
    let (code, report) = world.json(&["gc", "--json"]);
    let ended = serde_json::json!([{ "vm_id": "vm-left", "role": "qemu", "pid": pid }]);
    assert_eq!((code, report), (0, serde_json::json!({ "ended": ended, "removed": ["vm-left"], "resisted": [] })));
    assert!(used.is_alive() && !left.is_alive());
    assert!(used.dir.exists() && !left.dir.exists());
}

#[test]
fn what_resists_is_told_with_its_reason() {
    let world = World::new();
    let vm = world.vm("vm-1").abandoned();
    fs::remove_file(vm.dir.join("children")).expect("it is there");
    fs::create_dir(vm.dir.join("children")).expect("it is new");
    let (code, stdout, stderr) = world.told(&["gc"]);
    assert_eq!((code, stdout.as_str()), (125, ""));
    assert!(stderr.starts_with("error: vm-1: ending a VM: reading the processes of the VM: "), "{stderr}");
    let (code, report) = world.json(&["gc", "--json"]);
    assert_eq!((code, &report["resisted"][0]["error"]["kind"]), (125, &"teardown".into()));
    let (code, stdout, _) = world.told(&["kill", "vm-1"]);
    assert_eq!((code, stdout.as_str()), (125, ""));
    assert!(vm.dir.exists());
}

#[test]
fn a_process_that_could_not_be_ended_is_shown_for_as_long_as_it_is_there() {
    let world = World::new();
    let mut vm = world.vm("vm-1");
    fs::write(vm.dir.join("undead"), "").expect("it can be written");
    assert_eq!(world.json(&["ps", "--json"]).1[0]["state"], "undead");
    let (_, report) = world.json(&["doctor", "--json"]);
    assert!(report.to_string().contains("`sbx kill ID`"), "{report}");
    vm.input.write_all(b"\n").expect("it reads");
    vm.qemu.wait().expect("it is ours");
    assert_eq!(world.json(&["ps", "--json"]).1[0]["state"], "running");
}
