//! The service: runs that it serves are as they would be without it, and nothing of it is left, whoever goes first.

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead, BufReader, Read, Write},
    process::{Child, Output, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};
use vmtests::{World, processes, wait_for};

/// A world with a service, which ends with it.
struct Served {
    world: World,
    pid: u32,
}

impl Served {
    fn new() -> Self {
        let world = World::new();
        let pid = up(&world);
        Self { world, pid }
    }

    fn sbx(&self, args: &[&str]) -> Output {
        sbx(&self.world, args)
    }

    /// Where the VM of a run came from.
    fn origin(&self, args: &[&str]) -> String {
        let output = self.sbx(&[&["run", "--json", "-l", "raw", "-c", "echo hi"], args].concat());
        let json: serde_json::Value = serde_json::from_slice(&output.stdout).expect("it is JSON");
        assert_eq!((&json["stdout"], &json["exit_code"]), (&"hi\n".into(), &0.into()), "{json}");
        json["timing"]["origin"].as_str().expect("it is text").to_owned()
    }

    /// A program that runs until it is ended.
    fn endless(&self) -> Child {
        let mut command = self.world.sbx();
        command.args(["run", "-t", "300", "-c", "print('running'); import time; time.sleep(1000)"]);
        let piped = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = piped.spawn().expect("sbx starts");
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().expect("it is piped")).read_line(&mut line).expect("it is text");
        assert_eq!(line, "running\n");
        child
    }

    /// Those of `before` of which something is left.
    fn left_of(&self, before: &BTreeSet<String>) -> usize {
        before.iter().filter(|id| self.world.vms().contains(*id) || !processes(id).is_empty()).count()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        sbx(&self.world, &["down"]);
    }
}

fn sbx(world: &World, args: &[&str]) -> Output {
    world.sbx().args(args).stdin(Stdio::null()).output().expect("sbx starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Sees to it that a service is up, and returns its process.
fn up(world: &World) -> u32 {
    let output = sbx(world, &["up"]);
    let said = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{said}{}", text(&output.stderr));
    let pid = said.split("process ").nth(1).and_then(|rest| rest.split(',').next()).map(str::parse);
    pid.expect("it names its process").expect("it is a number")
}

fn signal(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(pid.cast_signed()).expect("it is a process");
    kill_process(pid, signal).expect("it lives");
}

#[test]
fn what_the_service_runs_is_as_it_would_be_without_it() {
    let served = Served::new();
    assert_eq!(served.origin(&[]), "ready");
    assert_ne!(served.origin(&["--no-service"]), "ready");
    assert_ne!(
        served.origin(&["--accel", "tcg"]),
        "ready",
        "what was asked for is another accelerator than the service's"
    );

    let mut command = served.world.sbx();
    command.args(["run", "-l", "raw", "-e", "NAME=value", "-"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.stderr(Stdio::piped()).spawn().expect("sbx starts");
    child.stdin.take().expect("it is piped").write_all(b"echo $NAME; echo err >&2; exit 7").expect("it reads");
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(
        (output.status.code(), text(&output.stdout), text(&output.stderr)),
        (Some(7), "value\n".into(), "err\n".into())
    );

    let many = served.sbx(&["run", "-v", "-c", "print('x' * 999_999)", "-c", "import sys; sys.exit(4)"]);
    let shown = text(&many.stdout);
    assert_eq!((many.status.code(), shown.matches('x').count() > 999_999), (Some(4), true));
    assert!(
        text(&many.stderr).contains(&format!("run by the service, process {}", served.pid)),
        "{}",
        text(&many.stderr)
    );

    let refused = served.sbx(&["run", "-t", "0", "-c", "1"]);
    let told = text(&refused.stderr);
    assert_eq!(
        (refused.status.code(), told.as_str()),
        (Some(2), text(&served.sbx(&["run", "--no-service", "-t", "0", "-c", "1"]).stderr).as_str())
    );
    let over = served.sbx(&["run", "-t", "1", "-c", "while True: pass"]);
    assert_eq!(over.status.code(), Some(124), "{}", text(&over.stderr));
}

#[test]
fn up_and_down_may_be_said_twice_and_down_leaves_nothing() {
    let served = Served::new();
    assert_eq!(up(&served.world), served.pid, "it was up already");
    let other = served.sbx(&["up", "--pool", "2"]);
    assert_eq!(other.status.code(), Some(125));
    assert!(text(&other.stderr).contains("sbx down"), "{}", text(&other.stderr));

    let ids = served.world.vms();
    assert!(!ids.is_empty(), "there are VMs before anybody asks");
    let down = served.sbx(&["down"]);
    assert_eq!(down.status.code(), Some(0), "{}", text(&down.stderr));
    assert!(text(&down.stdout).contains(&served.pid.to_string()));
    served.world.assert_empty(ids);
    assert!(!served.world.run_dir().join("service").exists());
    // Whose parent is not this test, so that a moment may pass until it has buried it.
    wait_for("the end of its process", || (!fs::exists(format!("/proc/{}/exe", served.pid)).ok()?).then_some(()));
    let again = served.sbx(&["down"]);
    assert_eq!((again.status.code(), text(&again.stdout).as_str()), (Some(0), "No service is up.\n"));
}

#[test]
fn a_client_that_leaves_takes_its_vm_with_it_and_after_a_service_that_was_killed_runs_go_on_alone() {
    let served = Served::new();
    let pool = served.world.vms();
    let mut child = served.endless();
    signal(child.id(), Signal::INT);
    assert_eq!(child.wait().expect("it ends").code(), Some(130));
    assert_eq!(served.left_of(&pool), pool.len() - 1, "the VM is dead when the command is");

    assert_eq!(up(&served.world), served.pid, "the pool is full again");
    let pool = served.world.vms();
    let mut child = served.endless();
    signal(child.id(), Signal::KILL);
    child.wait().expect("it ends");
    wait_for("the end of a VM whose client is gone", || (served.left_of(&pool) < pool.len()).then_some(()));

    let mut child = served.endless();
    let ids = served.world.vms();
    signal(served.pid, Signal::KILL);
    let mut said = String::new();
    child.stderr.take().expect("it is piped").read_to_string(&mut said).expect("it is text");
    assert_eq!(child.wait().expect("it ends").code(), Some(125), "{said}");
    assert!(said.contains("may have run"), "{said}");
    assert!(served.world.run_dir().join("service").exists(), "nobody has cleared up yet");
    assert_ne!(served.origin(&[]), "ready", "a run goes on alone");
    assert_ne!(up(&served.world), served.pid);
    for id in ids {
        assert_eq!(processes(&id), Vec::<u32>::new(), "its VMs ended with it");
    }
}
