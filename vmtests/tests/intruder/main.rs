//! Code that has taken over QEMU or a gateway: what it reaches on the host, and what refuses it the rest.
//!
//! A real one, around a VM whose program runs, makes each call of a list, and so does a process that nothing confines, in which each
//! has to succeed. What is reached is in the list too: it is all there is, and more of it would be seen here.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

mod attempts;
mod outside;

use std::process::{Child, Command};

use exec_sandbox::{Language, Output, PortMapping, Protocol, RunRequest, Scheduler};
use tokio::sync::mpsc;
use vmtests::{
    World, processes,
    puppet::{Answer, Puppet},
};

use crate::{
    attempts::{Attempt, Verdict},
    outside::Outside,
};

/// Which of a VM's processes is taken over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    Qemu,
    Gateway,
}

/// Has a VM's process make the attempts, until one ends it.
async fn take_over(victim: Victim, outside: &Outside, attempts: &[Attempt]) {
    let world = World::new();
    let scheduler = Scheduler::start(world.networked()).await.expect("the configuration is valid");
    let mut request = RunRequest::new(Language::Raw, "echo running; sleep 1000");
    if victim == Victim::Gateway {
        request.expose = vec![PortMapping { internal: 9000, external: None, protocol: Protocol::Tcp }];
    }
    let (sender, mut output) = mpsc::channel(1);
    let intrude = async {
        assert_eq!(output.recv().await, Some(Output::Stdout("running\n".into())));
        let id = world.vms().into_iter().next().expect("it runs");
        let mut puppet = Puppet::take(process_of(victim, &id)).expect("it can be debugged");
        for attempt in attempts {
            let Attempt { what, verdict, .. } = attempt;
            let free = attempt_freely(outside, attempt);
            assert!(
                matches!(free, Answer::Done(_)),
                "{what} is no attempt, it fails where nothing confines it: {free:?}"
            );
            outside.renew();
            let answer = make(&mut puppet, attempt);
            let is_right = match answer {
                Answer::Done(_) => *verdict == Verdict::Reached,
                Answer::Refused(_) => *verdict == Verdict::Refused,
                Answer::Killed => *verdict == Verdict::Ended,
            };
            assert!(is_right, "{what}: {answer:?} is not {verdict:?} for {victim:?}");
        }
        id
    };
    let id = tokio::select! {
        outcome = scheduler.run_streaming(request, sender) => panic!("it does not end by itself: {outcome:?}"),
        id = intrude => id,
    };
    scheduler.close().await.expect("nothing is left");
    world.assert_empty([id]);
}

fn process_of(victim: Victim, vm_id: &str) -> u32 {
    let is_gateway = |pid: &u32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).expect("it lives");
        String::from_utf8_lossy(&line).contains("exec-sandbox-gateway")
    };
    let wanted = |pid: &u32| is_gateway(pid) == (victim == Victim::Gateway);
    processes(vm_id).into_iter().find(wanted).expect("it has one")
}

/// The same by a process that nothing confines.
fn attempt_freely(outside: &Outside, attempt: &Attempt) -> Answer {
    struct Free(Child);
    impl Drop for Free {
        fn drop(&mut self) {
            self.0.kill().expect("it is ours");
            self.0.wait().expect("it is ours");
        }
    }
    outside.renew();
    let free = Free(Command::new("sleep").arg("1000").spawn().expect("there is a sleep"));
    let mut puppet = vmtests::wait_for("a process that sleeps", || Puppet::take(free.0.id()).ok());
    make(&mut puppet, attempt)
}

fn make(puppet: &mut Puppet, attempt: &Attempt) -> Answer {
    let mut call = |call| puppet.call(call).expect("it is there");
    if let Some(first) = &attempt.first {
        call(first);
    }
    call(&attempt.call)
}

/// What a test says that is not run.
const SKIPPED: &str = "SKIPPED, because only root may take over a process of another user";

#[tokio::test]
async fn code_in_qemus_place_reaches_what_is_listed_and_nothing_else() {
    if !rustix::process::geteuid().is_root() {
        return eprintln!("{SKIPPED}");
    }
    let outside = Outside::new();
    take_over(Victim::Qemu, &outside, &attempts::of_qemu(&outside)).await;
}

#[tokio::test]
async fn code_in_a_gateways_place_reaches_the_network_and_nothing_else() {
    if !rustix::process::geteuid().is_root() {
        return eprintln!("{SKIPPED}");
    }
    let outside = Outside::new();
    take_over(Victim::Gateway, &outside, &attempts::of_gateway(&outside)).await;
}
