//! Tests of the jail from inside: what a child that is confined can and cannot do.
//!
//! A layer that this machine cannot put around a child is not tested, and the first test, whose output is always shown, says so.

use std::{
    fs::{self, File},
    io::Read,
    net::TcpListener,
    os::{
        fd::AsFd,
        unix::{fs::PermissionsExt, process::ExitStatusExt},
    },
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{DumpableBehavior, Pid, PidfdFlags},
};

use super::*;
use crate::process::{
    Child, Command,
    cgroup::VmCgroup,
    confinement::{Confinement, Missing, Subject},
    landlock::{self, Allowed},
};

/// Long enough for a child to die, however busy the machine is.
const PATIENCE: Timespec = Timespec { tv_sec: 20, tv_nsec: 0 };

/// The layer, or the words with which its test is left out.
fn layer<T>(found: Result<T, Missing>) -> Option<T> {
    found.map_err(|missing| eprintln!("SKIPPED, because this machine lacks the layer: {missing}")).ok()
}

/// The layers that this machine can put around a shell.
fn confinement() -> Confinement {
    confinement_of(Path::new("/bin/sh"), &[])
}

fn confinement_of(program: &Path, files: &[&File]) -> Confinement {
    let id = crate::host::new_vm_id();
    Confinement::find(&Subject { id: &id, program, opened: None, files, directory: None, kvm: false }, None)
}

/// What a shell and its commands may use, and reading of `files`.
fn shells_rules(files: &[&File]) -> Option<Ruleset> {
    let system = || ["/usr", "/bin", "/lib", "/lib64", "/etc/ld.so.cache", "/proc"].map(PathBuf::from).to_vec();
    let allowed = Allowed { execute: system(), read: system(), use_devices: vec!["/dev/null".into()] };
    layer(allowed.to_kernel(files).map_err(Missing::from))
}

fn shell(jail: Jail, script: &str) -> Command {
    let mut command = Command::new("/bin/sh".into(), vec!["-c".into(), script.into()]);
    command.jail(jail);
    command
}

/// What `command` writes to 1 and 2.
async fn said(mut command: Command) -> String {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).expect("a pipe");
    command.pass(write.try_clone().expect("it can be cloned"), 1);
    command.pass(write, 2);
    let mut child = Child::spawn(command).await.expect("it starts");
    child.ended().await.expect("it ends");
    let mut text = String::new();
    File::from(read).read_to_string(&mut text).expect("it is text");
    text
}

async fn shell_says(jail: Jail, script: &str) -> String {
    said(shell(jail, script)).await
}

#[test]
fn the_layers_that_are_tested_here_are_named() {
    let found = confinement();
    for layer in found.layers() {
        match layer.missing {
            None => println!("tested: {}", layer.name),
            Some(missing) => println!("SKIPPED: {}, because this machine lacks it: {missing}", layer.name),
        }
    }
    if hierarchy().is_none() {
        println!("SKIPPED: membership in control groups, because none can be made");
    }
    let (jail, there) = (found.jail(), found.layers().iter().filter(|layer| layer.missing.is_none()).count());
    let used = [
        jail.landlock.is_some(),
        jail.own_user.is_some(),
        jail.namespaces.is_some(),
        jail.calls.is_some(),
        found.groups.is_ok(),
    ];
    assert_eq!(used.iter().filter(|used| **used).count(), there, "what is there is used");
}

#[tokio::test]
async fn a_confined_child_reads_what_it_is_allowed_and_nothing_else() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (image, secret) = (dir.path().join("image"), dir.path().join("secret"));
    fs::write(&image, "image\n").expect("it is ours");
    fs::write(&secret, "secret\n").expect("it is ours");
    let opened = File::open(&image).expect("it is ours");
    let Some(landlock) = shells_rules(&[&opened]) else { return };
    let dir = dir.path().display();
    let script = format!(
        "cat /proc/self/fd/6 {dir}/image; cat {dir}/secret; ls {dir}; ls /; echo x > {dir}/new; echo x > {dir}/image; \
         rm {dir}/secret; cat /dev/urandom | head -c 1"
    );
    let mut command = shell(Jail { landlock: Some(landlock), ..Jail::default() }, &script);
    command.pass(opened.into(), 6);
    let text = said(command).await;
    assert_eq!(text.lines().take(2).collect::<Vec<_>>(), ["image", "image"], "{text}");
    assert_eq!(text.lines().filter(|line| line.contains("ermission denied")).count(), 7, "{text}");
    assert_eq!(text.lines().count(), 9, "{text}");
    assert_eq!(fs::read_to_string(secret).expect("it is there"), "secret\n");
}

#[tokio::test]
async fn a_confined_child_executes_only_what_it_is_allowed() {
    let allowed = Allowed::to_start(Path::new("/bin/sh")).expect("it is an ELF");
    let Some(landlock) = layer(allowed.to_kernel(&[]).map_err(Missing::from)) else { return };
    let jail = Jail { landlock: Some(landlock), ..Jail::default() };
    let text = shell_says(jail, "echo alive; /bin/cat /etc/passwd; /bin/sh -c 'echo again'").await;
    assert!(text.starts_with("alive\n") && text.ends_with("again\n"), "{text}");
    assert_eq!(text.lines().filter(|line| line.contains("ermission denied")).count(), 1, "{text}");
}

#[tokio::test]
async fn a_confined_child_cannot_signal_its_parent() {
    let Some(landlock) = shells_rules(&[]) else { return };
    if landlock::abi() < Some(6) {
        eprintln!("SKIPPED, because this machine's Landlock does not know signals");
        return;
    }
    let script = "kill -0 $PPID && echo it can";
    assert_eq!(shell_says(Jail::default(), script).await, "it can\n", "without Landlock it can");
    let text = shell_says(Jail { landlock: Some(landlock), ..Jail::default() }, script).await;
    assert!(text.contains("not permitted"), "{text}");
}

#[tokio::test]
async fn a_confined_child_has_no_tcp() {
    let Some(landlock) = shells_rules(&[]) else { return };
    if landlock::abi() < Some(4) || !Path::new("/bin/bash").exists() {
        eprintln!("SKIPPED, because this machine's Landlock does not know TCP, or there is no bash");
        return;
    }
    let listener = TcpListener::bind("127.0.0.1:0").expect("there is a port");
    let port = listener.local_addr().expect("it is bound").port();
    let script = format!("exec 2>&1; /bin/bash -c 'exec 3<>/dev/tcp/127.0.0.1/{port} && echo connected'");
    assert_eq!(shell_says(Jail::default(), &script).await, "connected\n", "without Landlock it has");
    let mut jail = Jail { landlock: Some(landlock), ..Jail::default() };
    let text = shell_says(jail.clone(), &script).await;
    assert!(text.contains("ermission denied"), "{text}");
    // Without an interface there is nothing to connect through, whatever Landlock knows.
    jail.landlock = None;
    jail.namespaces = confinement().namespaces.ok();
    if jail.namespaces.is_some() {
        assert!(!shell_says(jail, &script).await.contains("connected"));
    }
}

#[test]
fn what_a_script_needs_that_starts_a_program_is_not_known() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let script = dir.path().join("qemu");
    fs::write(&script, "#!/bin/sh\nexec /bin/true\n").expect("it is ours");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("it is ours");
    let found = confinement_of(&script, &[]);
    for missing in [found.landlock.err(), found.calls.err()] {
        let remedy = missing.map(|missing| missing.remedy());
        assert!(remedy.is_some_and(|remedy| remedy.contains("EXEC_SANDBOX_QEMU")), "{remedy:?}");
    }
}

#[tokio::test]
async fn a_filtered_child_has_no_sockets_and_changes_no_file_by_name() {
    let Some(calls) = layer(confinement().calls) else { return };
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = dir.path().join("file");
    let dir = dir.path().display();
    let script = format!(
        "mkdir {dir}/new; mkfifo {dir}/pipe; ln {dir}/file {dir}/link; mv {dir}/file {dir}/moved; chmod 600 {dir}/*; \
         touch -d 2000-01-01 {dir}/*; rm -r {dir}/*; bash -c 'echo > /dev/udp/127.0.0.1/9'; echo alive"
    );
    fs::write(&file, "text").expect("it is ours");
    assert_eq!(shell_says(Jail::default(), &script).await, "alive\n", "without a filter nothing is refused");
    fs::write(&file, "text").expect("it is ours");
    let text = shell_says(Jail { calls: Some(calls), ..Jail::default() }, &script).await;
    assert_eq!(text.matches("not permitted").count(), 9, "{text}");
    assert!(text.ends_with("alive\n") && file.exists(), "{text}");
}

#[tokio::test]
async fn a_child_is_a_user_that_nobody_else_is_and_has_no_capability() {
    let Some(own_user) = layer(confinement().own_user) else { return };
    let jail = Jail { own_user: Some(own_user), ..Jail::default() };
    let text = shell_says(jail, "echo $$; id -u; id -g; id -G; grep -E '^(Cap|NoNew)' /proc/self/status").await;
    let lines: Vec<_> = text.lines().collect();
    let own = (FIRST_USER + lines[0].parse::<u32>().expect("it is a number")).to_string();
    assert_eq!(lines[1..4], [&own; 3], "{text}");
    let none = ["Inh", "Prm", "Eff", "Bnd", "Amb"].map(|set| format!("Cap{set}:\t0000000000000000"));
    assert_eq!(lines[4..9], none, "{text}");
    assert_eq!(lines[9], "NoNewPrivs:\t1");
}

#[tokio::test]
async fn a_child_without_a_user_of_its_own_has_no_capability_either() {
    let text = shell_says(Jail::default(), "grep -E '^Cap(Prm|Eff|Amb|Inh)' /proc/self/status").await;
    assert_eq!(text.matches("0000000000000000").count(), 4, "{text}");
}

#[tokio::test]
async fn a_program_that_is_open_is_executed_by_a_user_who_cannot_reach_it() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let program = dir.path().join("cat");
    fs::copy("/bin/cat", &program).expect("it is ours");
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).expect("it is ours");
    let opened = File::open(&program).expect("it is ours");
    let id = crate::host::new_vm_id();
    let subject =
        Subject { id: &id, program: &program, opened: Some(&opened), files: &[], directory: None, kvm: false };
    let by_descriptor = Confinement::find(&subject, None);
    let by_path = Confinement::find(&Subject { opened: None, ..subject }, None);
    let Some(own_user) = layer(by_descriptor.own_user) else { return };
    assert!(matches!(by_path.own_user, Err(Missing::Refused { .. })), "{:?}", by_path.own_user);
    let words = format!("{}\0/proc/self/cmdline\0", program.display());
    let mut command = Command::new(program, vec!["/proc/self/cmdline".into()]);
    command.execute(opened.into());
    command.jail(Jail { own_user: Some(own_user), ..Jail::default() });
    assert_eq!(said(command).await, words);
}

#[tokio::test]
async fn a_passed_file_can_be_opened_again_by_a_user_who_cannot_reach_it() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let image = dir.path().join("image");
    fs::write(&image, "image\n").expect("it is ours");
    let may = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("it is ours");
    may(&image, 0o444);
    may(dir.path(), 0o700);
    let opened = File::open(&image).expect("it is ours");
    let found = confinement_of(Path::new("/bin/sh"), &[&opened]);
    let Some(own_user) = layer(found.own_user) else { return };
    let jail = Jail { own_user: Some(own_user), landlock: shells_rules(&[&opened]), ..Jail::default() };
    let mut command = shell(jail, &format!("cat /proc/self/fd/6; cat {}", image.display()));
    command.pass(opened.try_clone().expect("it is open").into(), 6);
    let text = said(command).await;
    assert!(text.starts_with("image\n") && text.contains("ermission denied"), "{text}");
    // One that only its owner may read is told in the rehearsal, and VMs run without a user of their own.
    may(&image, 0o400);
    let found = confinement_of(Path::new("/bin/sh"), &[&opened]);
    assert!(matches!(found.own_user, Err(Missing::Refused { .. })), "{:?}", found.own_user);
    assert!(found.landlock.is_ok());
}

#[tokio::test]
async fn children_share_a_network_without_interfaces_and_nothing_else_of_it() {
    let Some(namespaces) = layer(confinement().namespaces) else { return };
    let jail = Jail { namespaces: Some(namespaces), ..Jail::default() };
    let script = "for kind in net ipc uts; do readlink /proc/self/ns/$kind; done; uname -n; grep -c : /proc/self/net/dev; \
                  grep -c lo: /proc/self/net/dev; tail -n +2 /proc/self/net/route | wc -l; cat /proc/self/net/if_inet6";
    let (one, other) = (shell_says(jail.clone(), script).await, shell_says(jail, script).await);
    let (one, other): (Vec<_>, Vec<_>) = (one.lines().collect(), other.lines().collect());
    for (number, kind) in ["net", "ipc", "uts"].into_iter().enumerate() {
        let ours = fs::read_link(format!("/proc/self/ns/{kind}")).expect("it can be read");
        assert_ne!(Path::new(one[number]), ours, "{kind}");
    }
    assert_eq!(one[0], other[0], "the network is shared");
    // lo alone, no route, and no address, because it is down.
    assert_eq!(one[3..], ["sandbox", "1", "1", "0"], "{one:?}");
}

#[tokio::test]
async fn a_childs_limits_are_those_of_a_qemu() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let jail = || Jail { limits: Some(Limits::QEMU), ..Jail::default() };
    let text = shell_says(jail(), "ulimit -c; ulimit -Hn; ulimit -Hl; ulimit -Hf; ulimit -Hc").await;
    assert_eq!(text, "0\n256\n0\n0\n0\n");
    let script = format!("echo x > {}/file", dir.path().display());
    let mut child = Child::spawn(shell(jail(), &script)).await.expect("it starts");
    let ended = child.ended().await.expect("it ends");
    assert_eq!(ended.status.and_then(|status| status.signal()), Some(libc::SIGXFSZ));
}

#[tokio::test]
async fn a_child_of_another_user_leaves_its_parent_as_it_was() {
    let Some(own_user) = layer(confinement().own_user) else { return };
    let jail = Jail { own_user: Some(own_user), ..Jail::default() };
    let before = fs::read_to_string("/proc/self/status").expect("it can be read");
    shell_says(jail, "true").await;
    let after = fs::read_to_string("/proc/self/status").expect("it can be read");
    let credentials = |status: &str| {
        let kept = |line: &&str| ["Uid", "Gid", "Groups", "Cap", "NoNew"].iter().any(|name| line.starts_with(name));
        status.lines().filter(kept).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(credentials(&before), credentials(&after));
    assert_eq!(rustix::process::dumpable_behavior(), Ok(DumpableBehavior::Dumpable));
}

#[tokio::test]
#[ignore = "the parent that dies in the next test"]
async fn a_parent_of_a_jailed_child() {
    let child = Child::spawn(shell(confinement_for_sleep(), "exec sleep 1000")).await.expect("it starts");
    println!("child {}", child.pid());
    std::thread::park();
}

/// All layers that are there, for a shell that starts commands.
fn confinement_for_sleep() -> Jail {
    let found = confinement();
    Jail { landlock: shells_rules(&[]), ..found.jail() }
}

#[test]
fn a_jailed_child_dies_with_its_parent() {
    let mut parent = std::process::Command::new(std::env::current_exe().expect("a test has a path"))
        .args(["--exact", "process::jail::tests::a_parent_of_a_jailed_child", "--ignored", "--nocapture"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    let lines = std::io::BufRead::lines(std::io::BufReader::new(parent.stdout.take().expect("it is piped")));
    let pid = lines.map_while(Result::ok).find_map(|line| line.split_once("child ")?.1.parse().ok());
    let pid = Pid::from_raw(pid.expect("it names its child")).expect("it is no zero");
    let child = rustix::process::pidfd_open(pid, PidfdFlags::empty()).expect("it lives");
    parent.kill().expect("it is ours");
    assert_eq!(parent.wait().expect("it is ours").signal(), Some(9));
    let dead = poll(&mut [PollFd::from_borrowed_fd(child.as_fd(), PollFlags::IN)], Some(&PATIENCE));
    assert_eq!(dead, Ok(1), "it lives on");
}

/// Where a hierarchy of version 2 is mounted that groups can be made in, with or without controllers.
fn hierarchy() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("it can be read");
    let point = mounts.lines().find(|line| line.contains(" - cgroup2 "))?.split(' ').nth(4)?;
    let probe = Path::new(point).join(format!("exec-sandbox-probe.{}", crate::host::new_vm_id()));
    fs::create_dir(&probe).and_then(|()| fs::remove_dir(&probe)).ok()?;
    Some(point.into())
}

fn group() -> Option<(PathBuf, VmCgroup)> {
    let Some(hierarchy) = hierarchy() else {
        eprintln!("SKIPPED, because this machine lets nobody make a control group of version 2");
        return None;
    };
    let dir = hierarchy.join(format!("exec-sandbox.{}", crate::host::new_vm_id()));
    Some((dir.clone(), VmCgroup::create(dir).expect("it is new")))
}

#[tokio::test]
async fn a_child_is_in_its_group_from_its_first_instruction_and_the_group_goes_with_it() {
    let Some((dir, group)) = group() else { return };
    let own_user = confinement().own_user.ok();
    let mut command = shell(Jail { own_user, ..Jail::default() }, "grep ^0:: /proc/self/cgroup");
    command.join(group).expect("it has an entrance");
    let text = said(command).await;
    assert!(dir.ends_with(text.trim().rsplit('/').next().expect("it has a name")), "{text}");
    assert!(!dir.exists());
}

#[tokio::test]
async fn what_a_child_has_started_dies_with_it_and_the_group_is_gone() {
    let Some((dir, group)) = group() else { return };
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).expect("a pipe");
    // A session of its own, so that nothing but the group connects it with the child.
    let mut command = shell(Jail::default(), "setsid sleep 1000 & echo started; wait");
    command.pass(write, 1);
    command.join(group).expect("it has an entrance");
    let mut child = Child::spawn(command).await.expect("it starts");
    let mut read = File::from(read);
    read.read_exact(&mut [0; 8]).expect("it is said");
    // Ended by itself, so that the other is alone in the group.
    rustix::process::kill_process(child.pidfd.pid(), rustix::process::Signal::KILL).expect("it is ours");
    child.ended().await.expect("it ends");
    let others = fs::read_to_string(dir.join("cgroup.procs")).expect("it is there");
    assert_eq!(others.lines().count(), 1, "the other lives: {others:?}");
    child.kill_and_reap(Duration::from_secs(20)).await.expect("it can be killed").expect("all are dead");
    assert!(!dir.exists());
    // The other held the pipe's end.
    assert_eq!(read.read(&mut [0; 8]).expect("it can be read"), 0);
}

#[tokio::test]
async fn a_dropped_child_takes_its_group_with_it() {
    let Some((dir, group)) = group() else { return };
    let mut command = shell(Jail::default(), "setsid sleep 1000 & exec sleep 1000");
    command.join(group).expect("it has an entrance");
    drop(Child::spawn(command).await.expect("it starts"));
    assert!(!dir.exists());
}

#[test]
fn a_script_in_a_programs_place_is_not_confined_by_landlock_and_the_report_says_so() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let script = dir.path().join("qemu");
    fs::write(&script, "#!/bin/sh\n").expect("it is ours");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("it is ours");
    let found = confinement_of(&script, &[]);
    assert!(found.landlock.is_err() && found.jail().landlock.is_none());
    let layers = found.layers();
    assert!(layers[0].missing.is_some_and(|missing| missing.to_string().contains("finding the loader")));
}

#[test]
fn landlock_leaves_the_hypervisors_device_to_who_uses_it() {
    if File::options().read(true).write(true).open("/dev/kvm").is_err() {
        eprintln!("SKIPPED, because there is no hypervisor, or not for this user");
        return;
    }
    let id = crate::host::new_vm_id();
    let find = |kvm| {
        Confinement::find(
            &Subject { id: &id, program: Path::new("/bin/sh"), opened: None, files: &[], directory: None, kvm },
            None,
        )
    };
    let (without, with) = (find(false), find(true));
    assert_eq!(with.landlock.is_ok(), without.landlock.is_ok(), "{:?}", with.landlock);
}

#[tokio::test]
#[ignore = "a measurement: cargo nextest run -p exec-sandbox --run-ignored only --no-capture what_a_jail_costs"]
async fn what_a_jail_costs() {
    const SPAWNS: usize = 200;
    let started = Instant::now();
    let found = confinement_of(Path::new("/bin/true"), &[]);
    println!("finding the layers: {:?}", started.elapsed());
    let full = found.jail();
    let jails = [
        ("no jail", Jail::default()),
        ("limits", Jail { limits: full.limits, ..Jail::default() }),
        ("namespaces", Jail { namespaces: full.namespaces.clone(), ..Jail::default() }),
        ("own user", Jail { own_user: full.own_user.clone(), ..Jail::default() }),
        ("Landlock", Jail { landlock: full.landlock.clone(), ..Jail::default() }),
        ("all of it", full),
    ];
    // Taken in turns, so that what else the machine does concerns all alike.
    let mut times = jails.each_ref().map(|_| (Vec::new(), Vec::new()));
    for _ in 0..SPAWNS {
        for ((_, jail), (spawned, dead)) in jails.iter().zip(&mut times) {
            let mut command = Command::new("/bin/true".into(), Vec::new());
            command.jail(jail.clone());
            let started = Instant::now();
            let mut child = Child::spawn(command).await.expect("it starts");
            spawned.push(started.elapsed());
            assert!(child.ended().await.expect("it ends").status.is_some_and(|status| status.success()));
            dead.push(started.elapsed());
        }
    }
    for ((name, _), (mut spawned, mut dead)) in jails.iter().zip(times) {
        spawned.sort();
        dead.sort();
        println!("{name:10}  spawned {:?}  dead {:?}  (medians of {SPAWNS})", spawned[SPAWNS / 2], dead[SPAWNS / 2]);
    }
}
