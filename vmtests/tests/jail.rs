//! The jail of a real QEMU, seen from the host while its guest runs a program.

use std::fs;

use exec_sandbox::{Language, Output, RunRequest, doctor};
use tokio::sync::mpsc;
use vmtests::{World, processes};

#[tokio::test]
async fn qemu_has_no_privilege_and_few_limits_left_to_reach() {
    let world = World::new();
    let scheduler = world.scheduler().await;
    let report = doctor::examine(world.config()).await.expect("the configuration is valid");
    let layers = report.checks.into_iter().find(|check| check.name == "jail").expect("it is examined").detail;
    let (sender, mut output) = mpsc::channel(1);
    let request = RunRequest::new(Language::Raw, "echo running; sleep 1000");
    let look = async {
        assert_eq!(output.recv().await, Some(Output::Stdout("running\n".into())));
        let id = world.vms().into_iter().next().expect("it runs");
        examine(*processes(&id).first().expect("it has a process"), &layers);
        id
    };
    let id = tokio::select! {
        outcome = scheduler.run_streaming(request, sender) => panic!("it does not end by itself: {outcome:?}"),
        id = look => id,
    };
    scheduler.close().await.expect("nothing is left");
    world.assert_empty([id]);
}

fn examine(pid: u32, layers: &str) {
    let has = |layer: &str| !layers.contains(&format!("{layer} missing"));
    let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).expect("it lives");
    let status = read("status");
    for line in ["CapEff:\t0000000000000000", "CapPrm:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"] {
        assert!(status.contains(line), "{line}: {status}");
    }
    let limits = read("limits");
    for (name, most) in
        [("Max core file size", "0"), ("Max file size", "0"), ("Max locked memory", "0"), ("Max open files", "256")]
    {
        let line = limits.lines().find_map(|line| line.strip_prefix(name)).expect("the kernel has it");
        assert_eq!(line.split_whitespace().nth(1), Some(most), "{name}");
    }
    // What takes privileges is there where the tests have them.
    if has("own uid") {
        let uid = 2_013_265_920 + pid;
        assert!(status.contains(&format!("Uid:\t{uid}\t{uid}\t{uid}\t{uid}")), "{status}");
        assert!(status.contains("CapBnd:\t0000000000000000"), "{status}");
    }
    if has("namespaces net ipc uts") {
        let network = |who: &str| fs::read_link(format!("/proc/{who}/ns/net")).expect("it can be read");
        assert_ne!(network(&pid.to_string()), network("self"));
    }
}
