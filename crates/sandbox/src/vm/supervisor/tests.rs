//! The supervisor against guests and QEMUs that misbehave, and against callers who leave.

use std::{io::Write as _, thread};

use super::*;
use crate::{
    Language, RunRequest, SchedulerConfig,
    admission::{Admission, Priority, tests::one_core},
    vm::pretend,
};

/// A supervisor of a guest that never stops talking.
async fn flooded(root: &tempfile::TempDir) -> Supervisor {
    let (instance, _monitor) = pretend::instance(root, "exec sleep 1000").await;
    let (mut channel, mut qemus) = pretend::channel().await;
    thread::spawn(move || {
        let flood = pretend::chatter(5000);
        while qemus.write_all(&flood).is_ok() {}
    });
    // From here on there is always something to hear.
    channel.next().await.expect("it talks");
    Supervisor { vm_id: "vm-1".into(), instance, channel, next_op: 1 }
}

/// A supervisor of a guest that says nothing, which lives as long as QEMU's end of the channel.
async fn silent(root: &tempfile::TempDir) -> (Supervisor, impl Sized + use<>) {
    let (instance, _monitor) = pretend::instance(root, "exec sleep 1000").await;
    let (channel, qemus) = pretend::channel().await;
    (Supervisor { vm_id: "vm-1".into(), instance, channel, next_op: 1 }, qemus)
}

async fn admitted(admission: &Admission) -> Permit {
    admission.admit(128, Priority::Normal).await.expect("there is room, or will be")
}

fn request() -> ValidRequest {
    RunRequest::new(Language::Raw, "true").validate(&SchedulerConfig::default()).expect("it is valid")
}

/// A letter that asks for an execution, and where its answer comes.
fn execution() -> (Request, oneshot::Receiver<Result<Executed, Error>>) {
    let (reply, answer) = oneshot::channel();
    (Request::Execute { request: Box::new(request()), output: None, reply }, answer)
}

#[tokio::test]
async fn a_guest_that_never_stops_talking_does_not_outlast_its_caller() {
    let root = tempfile::tempdir().expect("a temporary directory");
    let mut supervisor = flooded(&root).await;
    let (reply, answer) = oneshot::channel();
    drop(answer);
    assert_eq!(supervisor.execute(&request(), None, reply).await, Err(()));
    supervisor.instance.tear_down().await.expect("it dies");
}

#[tokio::test]
async fn a_guest_that_never_stops_talking_does_not_keep_its_vm() {
    let root = tempfile::tempdir().expect("a temporary directory");
    let supervisor = flooded(&root).await;
    let (_caller, mut mailbox) = mpsc::channel(1);
    let (mut instance, asked) = supervisor.serve(&mut mailbox, &mut admitted(&one_core()).await).await;
    assert!(asked.is_none(), "nobody has asked");
    instance.tear_down().await.expect("it dies");
}

#[tokio::test]
async fn a_vm_that_is_idle_leaves_its_cpu_to_others_and_keeps_its_life_when_it_gets_none_back() {
    let root = tempfile::tempdir().expect("a temporary directory");
    let (supervisor, _qemus) = silent(&root).await;
    let admission = one_core();
    let mut permit = admitted(&admission).await;
    let (caller, mut mailbox) = mpsc::channel(1);
    let serving = tokio::spawn(async move { supervisor.serve(&mut mailbox, &mut permit).await });
    let _other = admitted(&admission).await;
    let (execute, executed) = execution();
    caller.send(execute).await.expect("it listens");
    admission.close();
    let refused = executed.await.expect("it is answered").expect_err("no CPU will come any more");
    assert_eq!(refused.kind(), ErrorKind::Closed);
    let (reply, _destroyed) = oneshot::channel();
    caller.send(Request::Destroy { reply }).await.expect("it still listens");
    let (mut instance, asked) = serving.await.expect("no panic");
    assert!(asked.is_some(), "the VM ends because somebody asks for it");
    instance.tear_down().await.expect("it dies");
}

#[tokio::test]
async fn a_caller_who_goes_while_the_vm_waits_for_cpu_ends_it() {
    let root = tempfile::tempdir().expect("a temporary directory");
    let (supervisor, _qemus) = silent(&root).await;
    let admission = one_core();
    let mut permit = admitted(&admission).await;
    permit.give_back_cpu();
    let _other = admitted(&admission).await;
    let (caller, mut mailbox) = mpsc::channel(1);
    let (execute, executed) = execution();
    caller.send(execute).await.expect("there is room");
    drop(executed);
    let (mut instance, asked) = supervisor.serve(&mut mailbox, &mut permit).await;
    assert!(asked.is_none(), "nobody has asked");
    instance.tear_down().await.expect("it dies");
}

#[tokio::test]
async fn a_vm_that_ends_while_it_waits_for_cpu_has_not_run_the_program() {
    let root = tempfile::tempdir().expect("a temporary directory");
    let (instance, _monitor) = pretend::instance(&root, "exec sleep 0.2").await;
    let (channel, _qemus) = pretend::channel().await;
    let supervisor = Supervisor { vm_id: "vm-1".into(), instance, channel, next_op: 1 };
    let admission = one_core();
    let mut permit = admitted(&admission).await;
    permit.give_back_cpu();
    let _other = admitted(&admission).await;
    let (caller, mut mailbox) = mpsc::channel(1);
    let (execute, executed) = execution();
    caller.send(execute).await.expect("there is room");
    let (mut instance, _nobody) = supervisor.serve(&mut mailbox, &mut permit).await;
    let lost = executed.await.expect("it is answered").expect_err("it never left");
    assert!(lost.kind().is_transient(), "{lost}");
    instance.tear_down().await.expect("it is dead");
}

#[tokio::test]
async fn who_asks_while_the_vm_is_buried_is_answered_by_the_kind_of_the_request() {
    let root = tempfile::tempdir().expect("a temporary directory");
    let (instance, _monitor) = pretend::instance(&root, "exec sleep 1000").await;
    let (caller, mut mailbox) = mpsc::channel(2);
    let (execute, executed) = execution();
    caller.try_send(execute).expect("there is room");
    let (reply, destroyed) = oneshot::channel();
    caller.try_send(Request::Destroy { reply }).expect("there is room");
    bury(instance, "vm-1", None, &mut mailbox).await;
    let lost = executed.await.expect("it is answered").expect_err("it never left");
    assert!(lost.kind().is_transient(), "{lost}");
    assert!(destroyed.await.expect("it is answered").expect("it is dead").is_some());
}
