//! A gateway that is not there, fails, dies, hangs and babbles.

use std::{
    net::{TcpListener, TcpStream},
    path::PathBuf,
    time::{Duration, Instant},
};

use exec_sandbox::{
    Ending, ErrorKind, ExecRequest, Language, NetworkPolicy, PortMapping, Protocol, QemuVm, RunRequest, Scheduler,
    SchedulerConfig, VmSpec,
};

use crate::{
    leftovers,
    world::{Failure, World, chain, eventually, faulty, serves},
};

/// What a gateway that works says first, by the shell.
const REPORT: &str = r#"report() { echo '{"version":1,"is_last":false,"bytes_from_guest":'$1',"bytes_to_guest":0,"connections":0,"accepted":0,"unreachable":0,"timed_out":0,"questions":0,"strays":0,"lost":0,"refusals":{"name_not_allowed":2},"malformed":{},"missing_layers":[]}' >&5; }"#;

/// Waits for ever, as the shell itself: a program in its place would not be known for the VM's.
const WAIT: &str = "while :; do read -r line <&4; done";

/// Far more than anything here takes that waits for nobody, and less than one that waits for ever.
const BOUNDED: Duration = Duration::from_secs(20);

/// A world with one gateway, and a scheduler in it that has served.
struct Networked {
    world: World,
    scheduler: Scheduler,
    before: std::collections::BTreeMap<String, usize>,
}

fn open() -> VmSpec {
    VmSpec { network: NetworkPolicy::Open, ..VmSpec::new(Language::Raw) }
}

impl Networked {
    async fn with(script: &str) -> Self {
        Self::under(|_config| {}, World::in_good_order(), script).await
    }

    async fn under(change: impl FnOnce(&mut SchedulerConfig), world: World, script: &str) -> Self {
        let gateway = Some(world.gateway(&format!("{REPORT}\n{script}")));
        let mut config = SchedulerConfig { gateway, ..world.config() };
        change(&mut config);
        let scheduler = Scheduler::start(config).await.unwrap_or_else(|error| panic!("{}", chain(&error)));
        serves(&scheduler).await;
        let before = leftovers::descriptors();
        Self { world, scheduler, before }
    }

    async fn vm(&self) -> QemuVm {
        self.scheduler.manager().create_vm(open()).await.unwrap_or_else(|error| panic!("{}", chain(&error)))
    }

    /// What a run is told that asks for a network, once nothing is left of it.
    async fn failure(self, request: RunRequest) -> Failure {
        let error = self.scheduler.run(RunRequest { network: NetworkPolicy::Open, ..request }).await;
        let error = error.expect_err("its gateway is faulty");
        self.world.assert_empty();
        self.end().await;
        error.into()
    }

    async fn end(self) {
        serves(&self.scheduler).await;
        self.world.end(&self.scheduler, &self.before).await;
    }
}

fn request() -> RunRequest {
    RunRequest::new(Language::Raw, "true")
}

/// Ends a VM and proves that both of its processes are dead.
async fn destroy(vm: QemuVm, ending: Ending) {
    let gateway = vm.gateway().expect("it has a network").clone();
    let begun = Instant::now();
    vm.destroy_with(ending).await.unwrap_or_else(|error| panic!("{}", chain(&error)));
    assert!(begun.elapsed() < BOUNDED, "{:?}", begun.elapsed());
    assert!(!gateway.is_alive() && !vm.process().is_alive());
}

#[tokio::test]
async fn a_gateway_that_is_not_there_is_missed_only_by_who_wants_a_network() {
    let mut nowhere = |config: &mut SchedulerConfig| config.gateway = Some(PathBuf::from("/no/such/gateway"));
    let networked = Networked::under(&mut nowhere, World::in_good_order(), "").await;
    let error = networked.scheduler.manager().create_vm(open()).await.expect_err("there is none");
    assert!(error.remedy().is_some_and(|remedy| remedy.contains("EXEC_SANDBOX_GATEWAY")), "{error:?}");
    Failure::from(error).is_final(ErrorKind::Dependency, &["finding the gateway", "/no/such/gateway"]);
    networked.end().await;
}

#[tokio::test]
async fn a_gateway_that_is_no_program_says_so() {
    let networked = Networked::with("").await;
    std::fs::write(networked.world.gateway(""), "Not a program.\n").expect("it is ours");
    let failure = networked.failure(request()).await;
    failure.is_final(ErrorKind::Dependency, &["starting the gateway", "Exec format error"]);
}

#[tokio::test]
async fn a_gateway_that_ends_at_once_is_quoted_and_the_code_did_not_run() {
    let failure = Networked::with("echo no room >&2; exit 3").await.failure(request()).await;
    failure.is_transient(ErrorKind::Gateway, &["booting a VM", "the gateway ended with code 3, saying: no room"]);
}

#[tokio::test]
async fn a_gateway_that_dies_while_the_guest_boots_ends_the_boot() {
    let world = World::playing(&["greet", "accept", "hang"]);
    let networked = Networked::under(|_config| {}, world, "report 0; kill -11 $$").await;
    let failure = networked.failure(faulty()).await;
    failure.is_transient(ErrorKind::Gateway, &["the gateway was ended by signal 11"]);
}

#[tokio::test]
async fn a_gateway_that_never_says_that_it_works_is_not_waited_for() {
    let mut impatient = |config: &mut SchedulerConfig| config.boot_timeout = Duration::from_secs(1);
    let networked = Networked::under(&mut impatient, World::in_good_order(), WAIT).await;
    let failure = networked.failure(request()).await;
    failure.is_transient(ErrorKind::BootTimeout, &["the gateway did not say within 1 s that it works"]);
}

#[tokio::test]
async fn a_gateway_that_babbles_is_ended() {
    for babble in ["echo '{}' >&5", "while :; do echo -n x >&5; done", "while :; do echo nonsense >&5; done"] {
        let failure = Networked::with(&format!("{babble}; {WAIT}")).await.failure(request()).await;
        failure.is_transient(ErrorKind::Gateway, &["the gateway was ended because it told what is no report"]);
    }
}

#[tokio::test]
async fn a_gateway_that_reports_without_end_holds_up_nobody() {
    let networked = Networked::with("while :; do report 7; done").await;
    let vm = networked.vm().await;
    let outcome = vm.execute(ExecRequest::new("true")).await.unwrap_or_else(|error| panic!("{}", chain(&error)));
    let network = outcome.network.expect("it has one");
    assert_eq!((network.sent_bytes, network.is_up), (7, true));
    assert_eq!(outcome.refusals.get(exec_sandbox::Refusal::NameNotAllowed), 2);
    let second = vm.execute(ExecRequest::new("true")).await.unwrap_or_else(|error| panic!("{}", chain(&error)));
    assert_eq!(second.network.expect("it has one").sent_bytes, 0, "nothing is told twice");
    destroy(vm, Ending::AtOnce).await;
    networked.end().await;
}

#[tokio::test]
async fn a_vm_outlives_its_gateway_and_says_that_its_network_is_lost() {
    let networked = Networked::with(&format!("report 0; {WAIT}")).await;
    let vm = networked.vm().await;
    let gateway = vm.gateway().expect("it has one");
    gateway.signal(9).expect("it is ours");
    gateway.ended().await.expect("there are descriptors");
    for _ in 0..2 {
        let outcome = vm.execute(ExecRequest::new("alive")).await.unwrap_or_else(|error| panic!("{}", chain(&error)));
        assert_eq!(&outcome.stdout[..], b"alive");
        assert!(outcome.network.is_some_and(|network| !network.is_up && !network.is_current));
    }
    assert!(!gateway.is_alive());
    destroy(vm, Ending::AtOnce).await;
    networked.end().await;
}

#[tokio::test]
async fn a_gateway_that_is_stopped_delays_no_outcome_for_long_and_is_ended() {
    let networked = Networked::with(&format!("report 5; {WAIT}")).await;
    let vm = networked.vm().await;
    let gateway = vm.gateway().expect("it has one");
    gateway.signal(19).expect("it is ours");
    let stat = format!("/proc/{}/stat", gateway.pid());
    eventually("it stops", || std::fs::read_to_string(&stat).ok()?.contains(") T ").then_some(())).await;
    let outcome = vm.execute(ExecRequest::new("true")).await.unwrap_or_else(|error| panic!("{}", chain(&error)));
    let network = outcome.network.expect("it has one");
    assert!(network.is_up && !network.is_current, "{network:?}");
    assert_eq!(network.sent_bytes, 5, "it had told that before");
    destroy(vm, Ending::AtOnce).await;
    networked.end().await;
}

#[tokio::test]
async fn a_gateway_that_ignores_sigterm_is_ended_with_its_vm() {
    let networked = Networked::with(&format!("trap '' TERM; report 0; {WAIT}")).await;
    let vm = networked.vm().await;
    destroy(vm, Ending::Gently { patience: Duration::from_secs(10) }).await;
    networked.end().await;
}

#[tokio::test]
async fn a_vm_that_nobody_wants_any_more_takes_its_gateway_along() {
    let networked = Networked::with(&format!("report 0; {WAIT}")).await;
    let vm = networked.vm().await;
    let gateway = vm.gateway().expect("it has one").clone();
    drop(vm);
    networked.world.becomes_empty().await;
    assert!(!gateway.is_alive());
    drop(gateway);
    networked.end().await;
}

#[tokio::test]
async fn a_guest_whose_network_is_not_up_runs_nothing() {
    let world = World::playing(&["no-network no card", "greet", "accept", "hello", "serve"]);
    let networked = Networked::under(|_config| {}, world, &format!("report 0; {WAIT}")).await;
    let failure = networked.failure(faulty()).await;
    failure.is_transient(ErrorKind::Vm, &["the guest could not set up its network, saying: no card"]);
}

#[tokio::test]
async fn ports_are_open_from_the_start_and_closed_when_the_vm_is_dead() {
    let networked = Networked::with(&format!("report 0; {WAIT}")).await;
    let port = |internal, protocol| PortMapping { internal, external: None, protocol };
    let expose = vec![port(80, Protocol::Tcp), port(53, Protocol::Udp)];
    let spec = VmSpec { expose: expose.clone(), ..VmSpec::new(Language::Raw) };
    let vm = networked.scheduler.manager().create_vm(spec).await.unwrap_or_else(|error| panic!("{}", chain(&error)));
    let [web, names] = vm.exposed_ports() else { panic!("{:?}", vm.exposed_ports()) };
    assert_eq!((web.internal, names.internal, names.protocol), (80, 53, Protocol::Udp));
    TcpStream::connect((web.host, web.external)).expect("the kernel takes it");
    let outcome = vm.execute(ExecRequest::new("true")).await.unwrap_or_else(|error| panic!("{}", chain(&error)));
    assert_eq!(outcome.exposed_ports, vm.exposed_ports());
    let taken = PortMapping { external: Some(web.external), ..port(81, Protocol::Tcp) };
    let spec = VmSpec { expose: vec![taken], ..VmSpec::new(Language::Raw) };
    let error = networked.scheduler.manager().create_vm(spec).await.expect_err("it is in use");
    assert!(error.remedy().is_some());
    let named = format!("opening port {}/tcp of the host", web.external);
    Failure::from(error).is_final(ErrorKind::Host, &[&named, "in use"]);
    let at = (web.host, web.external);
    destroy(vm, Ending::AtOnce).await;
    TcpListener::bind(at).expect("it is free");
    networked.end().await;
}
