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

mod files;
mod link;

const BOOT_ID: &[u8] = b"the boot";

/// A VM whose QEMU is a shell and whose guest is this test.
pub(crate) struct Fixture {
    pub(crate) vm: Arc<QemuVm>,
    /// At the other end of the first connection.
    guest: Guest,
    /// Where further connections come.
    listener: UnixListener,
    closing: CancellationToken,
    /// Ends once the VM is dead.
    pub(crate) owner: JoinHandle<()>,
    root: tempfile::TempDir,
    _monitor: tokio::net::UnixStream,
}

impl Fixture {
    pub(crate) async fn new(script: &str) -> Self {
        Self::admitted_by(&one_core(), script).await
    }

    pub(crate) async fn admitted_by(admission: &Admission, script: &str) -> Self {
        Self::made(admission, script, None).await
    }

    async fn with_idle_timeout(timeout: Duration) -> Self {
        Self::made(&one_core(), "exec sleep 1000", Some(timeout)).await
    }

    async fn made(admission: &Admission, script: &str, idle_timeout: Option<Duration>) -> Self {
        let root = tempfile::tempdir().expect("a temporary directory");
        let (instance, monitor) = pretend::instance(&root, script).await;
        let listener = UnixListener::bind(instance.agent_socket()).expect("it is new");
        let channel = Channel::connect(&instance.agent_socket(), instance.pid()).await.expect("it listens");
        let guest = Guest::accept(&listener).await;
        let process = instance.process().expect("it runs");
        let permit = admission.admit(128, Priority::Normal).await.expect("there is room");
        let live = Live { instance, channel, boot_id: BOOT_ID.to_vec() };
        let (mailbox, requests) = mpsc::channel(1);
        let (attention, grave, closing) = (Arc::new(Notify::new()), Arc::<Grave>::default(), CancellationToken::new());
        let mut desk = Desk {
            mailbox: requests,
            attention: Arc::clone(&attention),
            closing: closing.clone(),
            grave: Arc::clone(&grave),
        };
        let owner = tokio::spawn(async move {
            let supervisor = Supervisor::new("vm-1".into(), live, permit, idle_timeout);
            let (instance, permit, dying) = supervisor.serve(&mut desk).await;
            grave::bury(instance, "vm-1", dying, &mut desk).await;
            drop(permit);
        });
        let vm = QemuVm {
            id: "vm-1".into(),
            language: Language::Raw,
            config: Arc::new(SchedulerConfig::default()),
            process,
            network: None,
            booted: crate::BootTiming::default(),
            mailbox,
            attention,
            turn: tokio::sync::Mutex::new(()),
            tickets: std::sync::atomic::AtomicU64::new(0),
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
    caller.try_send(Request::Execute { ticket: 0, request: Box::new(request), outlet }).expect("there is room");
    let (reply, destroyed) = oneshot::channel();
    caller.try_send(Request::Destroy { ending: Ending::AtOnce, reply }).expect("there is room");
    let (reply, opened) = oneshot::channel();
    caller.try_send(Request::OpenChannel { reply }).expect("there is room");
    grave::bury(instance, "vm-1", Dying::at_once(), &mut desk).await;
    let crate::vm::inbox::Next::End(Err(lost)) = inbox.next().await else { panic!("it never left") };
    assert!(lost.kind().is_transient(), "{lost}");
    assert!(destroyed.await.expect("it is answered").expect("it is dead").is_some());
    opened.await.expect("it is answered").expect_err("there is nothing to open");
    assert!(desk.grave.used().is_some(), "what it used is known to who asks later");
}

#[tokio::test]
async fn an_execution_is_signalled_and_called_off_while_it_runs() {
    let mut fixture = Fixture::new("exec sleep 1000").await;
    let vm = Arc::clone(&fixture.vm);
    let execution = vm.begin(ExecRequest::new("true")).await.expect("it is valid");
    let control = execution.control();
    let (outcome, ()) = tokio::join!(execution.outcome(None), async {
        let op = fixture.guest.program().await;
        control.signal(10).await;
        while !matches!(fixture.guest.hear().await, Some((_, HostMessage::ExecSignal(signal))) if signal.number == 10) {
        }
        control.cancel().await;
        while !matches!(fixture.guest.hear().await, Some((from, HostMessage::Cancel)) if from == op) {}
        let done = exec_sandbox_wire::Done { end: exec_sandbox_wire::End::Cancelled.into(), ..Default::default() };
        fixture.guest.say(op, GuestMessage::Done(done)).await;
    });
    assert_eq!(outcome.expect("it is an outcome").exit, Exit::Cancelled);
    control.cancel().await;
    let execution = fixture.execute();
    let op = fixture.guest.program().await;
    fixture.guest.done(op, 0).await;
    execution.await.expect("no panic").expect("a control that is stale does nothing");
}

#[tokio::test]
async fn an_agent_answers_while_a_program_runs() {
    let mut fixture = Fixture::new("exec sleep 1000").await;
    let execution = fixture.execute();
    let running = fixture.guest.program().await;
    let vm = Arc::clone(&fixture.vm);
    let asking = tokio::spawn(async move { vm.ping().await });
    let op = loop {
        if let (op, HostMessage::Ping(_)) = fixture.guest.hear().await.expect("the host is there") {
            break op;
        }
    };
    fixture.guest.say(op, GuestMessage::Pong(Bytes::new())).await;
    asking.await.expect("no panic").expect("it has answered");
    fixture.guest.done(running, 0).await;
    execution.await.expect("no panic").expect("it ran");
    fixture.vm.channel().close().await.expect("it lives");
    let unheard = fixture.vm.ping().await.expect_err("nobody is connected");
    assert_eq!(unheard.to_string(), "asking an agent that does not answer");
    fixture.vm.destroy().await.expect("it dies");
    assert_eq!(fixture.vm.ping().await.expect_err("it is dead").to_string(), "using a VM that has ended");
}

#[tokio::test(start_paused = true)]
async fn a_vm_that_nobody_uses_ends_after_its_time_and_says_why() {
    let mut fixture = Fixture::with_idle_timeout(Duration::from_secs(60)).await;
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_secs(50)).await;
        let execution = fixture.execute();
        let op = fixture.guest.program().await;
        tokio::time::sleep(Duration::from_secs(20)).await;
        fixture.guest.done(op, 0).await;
        execution.await.expect("no panic").expect("each use begins its time anew");
    }
    let vm = Arc::clone(&fixture.vm);
    fixture.ends_by_itself().await;
    assert_eq!(vm.ended_because(), Some("it was idle for as long as it may be"));
}
