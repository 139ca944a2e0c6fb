//! The life of a gateway beside its VM, and the network that is open.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::{SocketAddr, TcpStream},
    process::{Command, Stdio},
};

use exec_sandbox::{Language, NetworkPolicy, Origin, Refusal, SessionRequest, VmManager, VmSpec};
use rustix::process::{Signal, pidfd_send_signal};
use vmtests::{World, processes, stdout, wait_for};

use crate::{
    Online,
    internet::{HIDDEN, Internet, public},
    python,
};

#[tokio::test]
async fn an_open_network_reaches_all_but_what_the_host_keeps_and_its_end_is_not_the_vms() {
    let online = Online::start(&[("good.example", 1)], python(NetworkPolicy::Open)).await;
    online.prepare().await;
    let ([tcp, private, metadata], udp) = (online.internet.tcp_echo, online.internet.udp_echo);
    online.reaches("tls, 'good.example', 'good.example'", "this is good.example").await;
    online.reaches(&format!("tcp, 'good.example', {}, b'hello'", tcp.port()), "hello").await;
    online.reaches(&format!("udp, '{}', {}", udp.ip(), udp.port()), "hello").await;
    let echoes = |at: SocketAddr| format!("tcp, '{}', {}, b'hello'", at.ip(), at.port());
    online.reaches(&echoes(private), "hello").await;
    // It is there, and the host has excepted a range around it, which is not meant for it.
    TcpStream::connect(metadata).expect("the host reaches it");
    online.is_refused(&echoes(metadata), "metadata_address").await;
    for (address, reason) in
        [("10.0.0.1", "private_address"), ("192.168.1.1", "private_address"), ("0.0.0.1", "reserved_address")]
    {
        online.is_refused(&format!("tcp, '{address}', 80"), reason).await;
    }
    online.is_dropped("udp, '224.0.0.251', 5353, False", "multicast_address").await;
    // Nobody takes datagrams there, which the program hears as it would without a gateway.
    let closed = format!("attempt(udp, '{}', {})", udp.ip(), udp.port() ^ 1);
    let (came, met) = online.attempt(&closed).await;
    assert!(came.starts_with("refused: ConnectionRefusedError") && met.is_empty(), "{came} {met:?}");

    // Its neighbour is complete and stays: nobody on the link is asked for it.
    let neighbours = online.run("print(open('/proc/net/arp').read().split()[-6:-2])").await;
    assert_eq!(stdout(&neighbours), "['192.168.127.1', '0x1', '0x6', '02:00:c0:a8:7f:01']\n");

    let gateway = online.session.vm().gateway().expect("it has one");
    let ps = online.world.sbx().args(["ps", "--json"]).output().expect("it runs");
    let listed: serde_json::Value = serde_json::from_slice(&ps.stdout).expect("it is JSON");
    let roles: Vec<_> = listed[0]["processes"].as_array().expect("it is a list").iter().collect();
    assert_eq!((roles[0]["role"].as_str(), roles[1]["role"].as_str()), (Some("qemu"), Some("gateway")), "{listed}");
    assert_eq!(roles[1]["pid"], gateway.pid());

    pidfd_send_signal(gateway, Signal::KILL).expect("it is ours");
    gateway.ended().await.expect("there are descriptors");
    let outcome = online.run("attempt(tls, 'good.example', 'good.example')\nprint(6 * 7)").await;
    assert!(stdout(&outcome).starts_with("refused") && stdout(&outcome).ends_with("\n42\n"), "{outcome:?}");
    assert!(outcome.network.is_some_and(|network| !network.is_up), "{:?}", outcome.network);
    online.end().await;
}

#[tokio::test]
async fn a_copy_of_a_guest_with_a_card_has_a_network_of_its_own() {
    let spec = python(NetworkPolicy::AllowList(vec!["good.example".into()]));
    let mut online = Online::start_in(World::without_snapshots(), &[("good.example", 1)], spec.clone()).await;
    assert_eq!(online.session.vm().boot_timing().origin, Origin::Cold);
    let copy = online.scheduler.session(SessionRequest { vm: spec, idle_timeout: None }).await.expect("it is restored");
    assert_eq!(copy.vm().boot_timing().origin, Origin::Snapshot);
    let donor = std::mem::replace(&mut online.session, copy);
    online.prepare().await;
    online.reaches("tls, 'good.example', 'good.example'", "this is good.example").await;
    online.is_refused("socket.gethostbyname, 'other.example'", "name_not_allowed").await;
    // The other one still has its own.
    let copy = std::mem::replace(&mut online.session, donor);
    online.prepare().await;
    online.reaches("tls, 'good.example', 'good.example'", "this is good.example").await;
    copy.close().await.expect("it dies");
    online.end().await;
}

#[tokio::test]
async fn a_gateway_that_is_stopped_is_destroyed_with_its_vm() {
    let world = World::new();
    let manager = VmManager::start(world.networked()).await.expect("it starts");
    let spec = VmSpec { network: NetworkPolicy::Open, ..VmSpec::new(Language::Raw) };
    let vm = manager.create_vm(spec).await.expect("it boots");
    let gateway = vm.gateway().expect("it has one").clone();
    assert_eq!(processes(vm.vm_id()).len(), 2);
    pidfd_send_signal(&gateway, Signal::STOP).expect("it is ours");
    vm.destroy().await.expect("SIGKILL ends what is stopped");
    assert!(!gateway.is_alive());
    manager.close().await.expect("nothing is left");
    world.assert_empty([vm.vm_id()]);
}

#[tokio::test]
async fn a_process_that_is_killed_takes_its_gateways_with_it() {
    let world = World::new();
    let gateway = world.networked().gateway.or_else(|| std::env::var_os("EXEC_SANDBOX_GATEWAY").map(Into::into));
    let mut keeper = Command::new(env!("CARGO_BIN_EXE_keeper"))
        .args([world.run_dir().as_os_str(), "2".as_ref(), gateway.expect("one of them is named").as_os_str()])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    let lines = BufReader::new(keeper.stdout.take().expect("it is piped")).lines();
    let ids: Vec<String> = lines.take(2).map(|line| line.expect("it is text")).collect();
    assert!(ids.iter().all(|id| processes(id).len() == 2), "each has a QEMU and a gateway: {ids:?}");
    keeper.kill().expect("it is ours");
    wait_for("the death of orphans", || ids.iter().all(|id| processes(id).is_empty()).then_some(()));
    keeper.wait().expect("it is ours");
    let manager = VmManager::start(world.config()).await.expect("it starts");
    world.assert_empty(ids);
    manager.close().await.expect("nothing is left");
}

#[tokio::test]
async fn refusals_are_told_by_the_command_line() {
    let world = World::new();
    let gateway = world.networked().gateway;
    let mut sbx = world.sbx();
    sbx.args(["run", "--network", "--verbose", "--expose", "80", "-l", "raw", "-c"]);
    sbx.arg("exec 3<>/dev/tcp/10.0.0.1/80 || true");
    sbx.envs(gateway.map(|gateway| ("EXEC_SANDBOX_GATEWAY", gateway)));
    let output = sbx.output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("port 80/tcp is reached at 127.0.0.1:"), "{said}");
    let (name, sentence) = (Refusal::PrivateAddress.name(), Refusal::PrivateAddress);
    assert!(said.contains(&format!("refused 1 times: {name} ({sentence})")), "{said}");
}

#[tokio::test]
async fn a_shell_has_the_network_that_its_options_describe() {
    let internet = Internet::start(&[("good.example", 1), ("other.example", 2)]);
    let world = World::new();
    let mut sbx = world.sbx();
    sbx.args(["shell", "-l", "python", "--network", "--registry", "python=good.example", "--expose", "80"]);
    sbx.args(["--verbose", "--resolver", &internet.resolver.to_string(), "--allow-address", &HIDDEN.to_string()]);
    sbx.envs(world.networked().gateway.map(|gateway| ("EXEC_SANDBOX_GATEWAY", gateway)));
    let mut shell =
        sbx.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("sbx starts");
    let script = "import socket\n\
        print(socket.gethostbyname('good.example'), socket.gethostbyname('rebound.good.example'))\n\
        socket.gethostbyname('other.example')\n";
    shell.stdin.take().expect("it is piped").write_all(script.as_bytes()).expect("it reads");
    let output = shell.wait_with_output().expect("it ends");
    let (told, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!((output.status.code(), &*told), (Some(1), &*format!("{} {HIDDEN}\n", public(1))), "{said}");
    assert!(said.contains("port 80/tcp is reached at 127.0.0.1:"), "{said}");
    assert!(said.contains(Refusal::NameNotAllowed.name()), "{said}");
    world.assert_empty(world.vms());
}
