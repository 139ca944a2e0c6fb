//! The supervisor against guests and QEMUs that misbehave, and against callers who leave.

use std::future::Future;

use tokio::{net::UnixListener, task::JoinHandle};

use super::*;
use crate::{
    ErrorKind, ExecRequest, Exit, Language, Outcome, QemuVm, SchedulerConfig,
    admission::{Admission, Priority, tests::one_core},
    vm::{
        channel::Channel,
        pretend::{self, Guest},
    },
};

const BOOT_ID: &[u8] = b"the boot";

/// A VM whose QEMU is a shell and whose guest is this test.
struct Fixture {
    vm: Arc<QemuVm>,
    /// At the other end of the first connection.
    guest: Guest,
    /// Where further connections come.
    listener: UnixListener,
    closing: CancellationToken,
    /// Ends once the VM is dead.
    owner: JoinHandle<()>,
    root: tempfile::TempDir,
    _monitor: tokio::net::UnixStream,
}

impl Fixture {
    async fn new(script: &str) -> Self {
        Self::admitted_by(&one_core(), script).await
    }

    async fn admitted_by(admission: &Admission, script: &str) -> Self {
        let root = tempfile::tempdir().expect("a temporary directory");
        let (instance, monitor) = pretend::instance(&root, script).await;
        let listener = UnixListener::bind(instance.agent_socket()).expect("it is new");
        let channel = Channel::connect(&instance.agent_socket(), instance.pid()).await.expect("it listens");
        let guest = Guest::accept(&listener).await;
        let process = instance.process().expect("it runs");
        let permit = admission.admit(128, Priority::Normal).await.expect("there is room");
        let live = Live { instance, channel, boot_id: BOOT_ID.to_vec() };
        let (mailbox, requests) = mpsc::channel(1);
        let (attention, grave, closing) = (Arc::new(Notify::new()), Arc::new(Grave::new()), CancellationToken::new());
        let mut desk = Desk {
            mailbox: requests,
            attention: Arc::clone(&attention),
            closing: closing.clone(),
            grave: Arc::clone(&grave),
        };
        let owner = tokio::spawn(async move {
            let supervisor = Supervisor::new("vm-1".into(), live, permit);
            let (instance, permit, dying) = supervisor.serve(&mut desk).await;
            grave::bury(instance, "vm-1", dying, &mut desk).await;
            drop(permit);
        });
        let vm = QemuVm {
            id: "vm-1".into(),
            language: Language::Raw,
            config: Arc::new(SchedulerConfig::default()),
            process,
            booted: Booted { prepare: Duration::ZERO, spawn: Duration::ZERO, guest_wait: Duration::ZERO },
            mailbox,
            attention,
            turn: tokio::sync::Mutex::new(()),
            closing: closing.clone(),
            grave,
        };
        Self { vm: Arc::new(vm), guest, listener, closing, owner, root, _monitor: monitor }
    }

    /// An execution under way in a task of its own.
    fn execute(&self) -> JoinHandle<Result<Outcome, Error>> {
        let vm = Arc::clone(&self.vm);
        tokio::spawn(async move { vm.execute(ExecRequest::new("true")).await })
    }

    /// Waits for the VM's death, which nobody asks for any more, and proves that nothing is left.
    async fn ends_by_itself(self) {
        self.owner.await.expect("no panic");
        assert!(!self.vm.process().is_alive());
        assert!(!self.root.path().join("vm-1").exists());
    }
}

async fn error_of(execution: JoinHandle<Result<Outcome, Error>>) -> Error {
    execution.await.expect("no panic").expect_err("it cannot have come to its end")
}

/// Lets the future come as far as it can, and drops it.
async fn poll_and_drop(future: impl Future) {
    let _ = tokio::time::timeout(Duration::ZERO, future).await;
}

#[tokio::test]
async fn a_program_runs_and_its_vm_is_ended_by_whoever_asks_and_by_all_at_once() {
    let mut fixture = Fixture::new("exec sleep 1000").await;
    let execution = fixture.execute();
    let op = fixture.guest.program().await;
    fixture.guest.say(op, GuestMessage::Stdout("hi".into())).await;
    fixture.guest.done(op, 2).await;
    let outcome = execution.await.expect("no panic").expect("it ran");
    assert_eq!((outcome.exit, &outcome.stdout[..]), (Exit::Code(0), &b"hi"[..]));
    assert!(outcome.usage.qemu_memory_peak_bytes.is_some_and(|bytes| bytes > 0));
    let ends = [0, 1, 2].map(|_| {
        let vm = Arc::clone(&fixture.vm);
        tokio::spawn(async move { vm.destroy().await })
    });
    for end in ends {
        end.await.expect("no panic").expect("it dies");
    }
    fixture.vm.destroy().await.expect("it is dead, which is no error");
    fixture.ends_by_itself().await;
}

#[tokio::test]
async fn a_guest_that_never_stops_talking_keeps_neither_its_caller_nor_its_vm() {
    // Nobody asks anything of it: it is ended after a while.
    let fixture = Fixture::new("exec sleep 1000").await;
    let Fixture { guest, owner, .. } = fixture;
    let babbling = tokio::spawn(guest.babble());
    owner.await.expect("no panic");
    babbling.await.expect("no panic");
    // Its caller leaves.
    let mut fixture = Fixture::new("exec sleep 1000").await;
    let execution = fixture.execute();
    fixture.guest.program().await;
    let babbling = tokio::spawn(fixture.guest.babble());
    execution.abort();
    fixture.owner.await.expect("no panic");
    babbling.await.expect("no panic");
    // Somebody asks for its end.
    let mut fixture = Fixture::new("exec sleep 1000").await;
    let execution = fixture.execute();
    fixture.guest.program().await;
    let babbling = tokio::spawn(fixture.guest.babble());
    fixture.vm.destroy().await.expect("it dies");
    assert_eq!(error_of(execution).await.kind(), ErrorKind::OutcomeUnknown);
    babbling.await.expect("no panic");
}

#[tokio::test]
async fn a_vm_that_is_idle_leaves_its_cpu_to_others_and_keeps_its_life_when_it_gets_none_back() {
    let admission = one_core();
    let fixture = Fixture::admitted_by(&admission, "exec sleep 1000").await;
    let _other = admission.admit(128, Priority::Normal).await.expect("the idle VM gives way");
    let execution = fixture.execute();
    while fixture.vm.turn.try_lock().is_ok() {
        tokio::task::yield_now().await;
    }
    admission.close();
    assert_eq!(error_of(execution).await.kind(), ErrorKind::Closed, "no CPU will come any more");
    assert!(fixture.vm.process().is_alive());
    fixture.vm.destroy().await.expect("it dies");
}

#[tokio::test]
async fn a_caller_who_goes_while_the_vm_waits_for_cpu_ends_it() {
    let admission = one_core();
    let fixture = Fixture::admitted_by(&admission, "exec sleep 1000").await;
    let _other = admission.admit(128, Priority::Normal).await.expect("the idle VM gives way");
    poll_and_drop(fixture.vm.execute(ExecRequest::new("true"))).await;
    fixture.ends_by_itself().await;
}

#[tokio::test]
async fn a_vm_that_ends_while_it_waits_for_cpu_has_not_run_the_program() {
    let admission = one_core();
    let fixture = Fixture::admitted_by(&admission, "read -r line").await;
    let _other = admission.admit(128, Priority::Normal).await.expect("the idle VM gives way");
    let lost = fixture.vm.execute(ExecRequest::new("true")).await.expect_err("its standard input is empty");
    assert!(lost.kind().is_transient(), "{lost}");
    fixture.ends_by_itself().await;
}

#[tokio::test]
async fn a_handle_that_is_dropped_ends_the_vm() {
    let Fixture { vm, owner, root, guest: _guest, _monitor, .. } = Fixture::new("exec sleep 1000").await;
    drop(vm);
    owner.await.expect("no panic");
    assert!(!root.path().join("vm-1").exists());
}

#[tokio::test]
async fn closing_ends_a_vm_that_somebody_holds_and_says_so_to_its_caller() {
    let mut fixture = Fixture::new("exec sleep 1000").await;
    let execution = fixture.execute();
    fixture.guest.program().await;
    fixture.closing.cancel();
    assert_eq!(error_of(execution).await.kind(), ErrorKind::Closed);
    let late = fixture.vm.execute(ExecRequest::new("true")).await.expect_err("it is gone");
    assert_eq!(late.kind(), ErrorKind::Closed);
    fixture.ends_by_itself().await;
}

#[tokio::test]
async fn an_invalid_request_leaves_the_vm_as_it_was() {
    let mut fixture = Fixture::new("exec sleep 1000").await;
    let refused = fixture.vm.execute(ExecRequest::new(" ")).await.expect_err("it is blank");
    assert_eq!(refused.kind(), ErrorKind::InvalidCode);
    let execution = fixture.execute();
    let op = fixture.guest.program().await;
    fixture.guest.done(op, 0).await;
    execution.await.expect("no panic").expect("it ran");
}

#[tokio::test]
async fn a_program_outlives_the_connection_and_its_caller_misses_nothing() {
    let mut fixture = Fixture::new("exec sleep 1000").await;
    let execution = fixture.execute();
    let op = fixture.guest.program().await;
    fixture.guest.say(op, GuestMessage::Stdout("be".into())).await;
    fixture.guest.say(op, GuestMessage::Pong("".into())).await;
    fixture.vm.channel().close().await.expect("it lives");
    while fixture.guest.hear().await.is_some() {}
    fixture.vm.channel().close().await.expect("closing what is closed does nothing");
    let channel = fixture.vm.channel();
    let (opened, mut guest) = tokio::join!(channel.open(), async {
        let mut guest = Guest::accept(&fixture.listener).await;
        let points = guest.greet(BOOT_ID).await;
        assert_eq!(points.len(), 1);
        assert!(points[0].op == op && points[0].stdout_bytes <= 2, "{points:?}");
        let rest = &b"before and after"[usize::try_from(points[0].stdout_bytes).expect("it is small")..];
        guest.say(op, GuestMessage::Stdout(rest.into())).await;
        guest
    });
    opened.expect("the agent answers");
    guest.done(op, 16).await;
    let outcome = execution.await.expect("no panic").expect("it ran");
    assert_eq!(&outcome.stdout[..], b"before and after");
    // Nothing is resumed once nothing is under way.
    fixture.vm.channel().close().await.expect("it lives");
    let (opened, points) = tokio::join!(channel.open(), async {
        let mut guest = Guest::accept(&fixture.listener).await;
        (guest.greet(BOOT_ID).await, guest)
    });
    opened.expect("the agent answers");
    assert_eq!(points.0, []);
}

#[tokio::test]
async fn an_execution_opens_the_channel_that_it_needs() {
    let fixture = Fixture::new("exec sleep 1000").await;
    fixture.vm.channel().close().await.expect("it lives");
    let execution = fixture.execute();
    let mut guest = Guest::accept(&fixture.listener).await;
    assert_eq!(guest.greet(BOOT_ID).await, []);
    let op = guest.program().await;
    guest.done(op, 0).await;
    execution.await.expect("no panic").expect("it ran");
}

#[tokio::test]
async fn a_connection_without_a_clean_hello_is_given_up_for_another() {
    let fixture = Fixture::new("exec sleep 1000").await;
    fixture.vm.channel().close().await.expect("it lives");
    let execution = fixture.execute();
    // What was meant for an earlier host.
    let mut first = Guest::accept(&fixture.listener).await;
    first.say_bytes(&[0xff; 100]).await;
    assert!(first.hear().await.is_none(), "it is not listened to");
    let mut second = Guest::accept(&fixture.listener).await;
    second.greet(BOOT_ID).await;
    let op = second.program().await;
    second.done(op, 0).await;
    execution.await.expect("no panic").expect("it ran");
}

#[tokio::test]
async fn the_end_of_an_operation_that_nobody_waits_for_is_acknowledged() {
    let mut fixture = Fixture::new("exec sleep 1000").await;
    fixture.guest.done(77, 0).await;
    loop {
        if let (77, HostMessage::Ack) = fixture.guest.hear().await.expect("the host is there") {
            break;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_does_not_answer_costs_the_execution_and_not_the_vm() {
    let fixture = Fixture::new("exec sleep 1000").await;
    fixture.vm.channel().close().await.expect("it lives");
    let lost = error_of(fixture.execute()).await;
    assert!(lost.kind().is_transient(), "{lost}");
    let silent = fixture.vm.channel().open().await.expect_err("it says nothing");
    assert!(std::error::Error::source(&silent).is_some_and(|cause| cause.to_string().contains("nothing for 30 s")));
    assert!(fixture.vm.process().is_alive());
}

#[tokio::test]
async fn a_guest_that_has_started_anew_has_lost_what_ran_in_it() {
    let mut fixture = Fixture::new("exec sleep 1000").await;
    let execution = fixture.execute();
    fixture.guest.program().await;
    fixture.vm.channel().close().await.expect("it lives");
    let vm = Arc::clone(&fixture.vm);
    let opening = tokio::spawn(async move { vm.channel().open().await });
    let mut guest = Guest::accept(&fixture.listener).await;
    let hello = exec_sandbox_wire::Hello {
        generation: exec_sandbox_wire::GENERATION,
        boot_id: b"another".to_vec(),
        ..Default::default()
    };
    guest.say(CONNECTION_OP, GuestMessage::Hello(hello)).await;
    let lost = error_of(execution).await;
    assert_eq!(lost.kind(), ErrorKind::OutcomeUnknown);
    assert!(std::error::Error::source(&lost).is_some_and(|cause| cause.to_string().contains("started anew")));
    opening.await.expect("no panic").expect_err("the VM is gone");
    fixture.ends_by_itself().await;
}

#[tokio::test]
async fn qemu_is_given_time_to_end_by_itself_if_somebody_asks_for_that() {
    let fixture = Fixture::new("trap 'exit 0' TERM; while :; do :; done").await;
    fixture.vm.destroy_with(Ending::Gently { patience: Duration::from_secs(60) }).await.expect("it ends");
    fixture.ends_by_itself().await;
}

#[tokio::test]
async fn one_that_ignores_the_wish_is_killed_and_sooner_if_somebody_is_in_a_hurry() {
    let deaf = "trap '' TERM; exec sleep 1000";
    let fixture = Fixture::new(deaf).await;
    fixture.vm.destroy_with(Ending::Gently { patience: Duration::from_millis(50) }).await.expect("it is killed");
    let fixture = Fixture::new(deaf).await;
    let gently = fixture.vm.destroy_with(Ending::Gently { patience: Duration::from_secs(3600) });
    let (gentle, hurried) = tokio::join!(gently, async {
        tokio::task::yield_now().await;
        fixture.vm.destroy().await
    });
    gentle.expect("it is dead");
    hurried.expect("it is dead");
    fixture.ends_by_itself().await;
}

#[tokio::test]
async fn a_process_that_is_stopped_dies_all_the_same() {
    let fixture = Fixture::new("kill -STOP $$").await;
    fixture.vm.destroy().await.expect("SIGKILL ends what is stopped");
    fixture.ends_by_itself().await;
}

#[tokio::test]
async fn who_asks_while_the_vm_is_buried_is_answered_by_the_kind_of_the_request() {
    let root = tempfile::tempdir().expect("a temporary directory");
    let (instance, _monitor) = pretend::instance(&root, "exec sleep 1000").await;
    let (caller, mailbox) = mpsc::channel(4);
    let attention = Arc::new(Notify::new());
    let mut desk =
        Desk { mailbox, attention: Arc::clone(&attention), closing: CancellationToken::new(), grave: Arc::default() };
    let (outlet, mut inbox) = crate::vm::inbox::pair(attention);
    let request = ExecRequest::new("true").validate(Language::Raw, &SchedulerConfig::default()).expect("it is valid");
    caller.try_send(Request::Execute { request: Box::new(request), outlet }).expect("there is room");
    let (reply, destroyed) = oneshot::channel();
    caller.try_send(Request::Destroy { ending: Ending::AtOnce, reply }).expect("there is room");
    let (reply, opened) = oneshot::channel();
    caller.try_send(Request::OpenChannel { reply }).expect("there is room");
    grave::bury(instance, "vm-1", Dying::at_once(), &mut desk).await;
    let crate::vm::inbox::Next::End(Err(lost)) = inbox.next().await else { panic!("it never left") };
    assert!(lost.kind().is_transient(), "{lost}");
    assert!(destroyed.await.expect("it is answered").expect("it is dead").is_some());
    opened.await.expect("it is answered").expect_err("there is nothing to open");
    assert!(desk.grave.get().is_some_and(Option::is_some), "what it used is known to who asks later");
}
