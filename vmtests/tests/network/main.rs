//! VMs with a network: what is permitted works, what is refused is refused by its name, ports are reached, and the gateway's life.
//!
//! Everything is on this machine, in a network of the test's own.

mod internet;
mod life;
mod packages;
mod ports;
#[path = "../../../crates/remote/tests/suite/proxy.rs"]
#[expect(dead_code, reason = "it breaks connections in more ways than are tried here")]
mod proxy;
mod refusals;
#[path = "../../../crates/remote/tests/suite/server.rs"]
#[expect(dead_code, reason = "it has more to be asked than is asked here")]
mod server;
mod shared;
mod site;
mod tools;

use std::time::Duration;

use exec_sandbox::{
    ExecRequest, Language, NetworkPolicy, Outcome, Scheduler, SchedulerConfig, Session, SessionRequest, VmSpec,
};
use internet::{Internet, public};
use vmtests::{World, stderr, stdout};

/// Time of a program: more than any takes on a machine that has other things to do.
const LONG: Duration = Duration::from_secs(250);

/// What programs try, in the session's interpreter from the first execution on.
const TRIES: &str = r#"
import socket, ssl
from pathlib import Path

def context(checks=True):
    made = ssl.create_default_context(cafile="authority.pem")
    made.check_hostname = checks
    return made

def talk(address, server_name, context):
    with socket.create_connection((address, 443), 20) as raw:
        with context.wrap_socket(raw, server_hostname=server_name) as stream:
            stream.sendall(b"hello")
            said = b""
            while piece := stream.recv(100):
                said += piece
            return said.decode()

def tls(address, server_name=None):
    return talk(address, server_name, context(server_name is not None))

def tcp(address, port, sends=b"GET / HTTP/1.0\r\n\r\n"):
    with socket.create_connection((address, port), 20) as stream:
        stream.sendall(sends)
        said = stream.recv(100)
        if not said:
            raise ConnectionError("it was closed")
        return said.decode()

def udp(address, port, waits=True):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.settimeout(20 if waits else 0)
        # One that is connected hears that nobody is there.
        one.connect((address, port))
        one.send(b"hello")
        return one.recv(100).decode() if waits else "sent"

def ask_for_text(name):
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    question = b"\0\1\1\0\0\1\0\0\0\0\0\0" + labels + b"\0\0\x10\0\1"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.settimeout(20)
        one.sendto(question, ("192.168.127.1", 53))
        return one.recv(500)[3] & 15

def attempt(what, *arguments):
    try:
        print("reached:", what(*arguments))
    except (OSError, EOFError) as error:
        print("refused:", repr(error))
"#;

/// A session in an internet of its own.
struct Online {
    world: World,
    scheduler: Scheduler,
    session: Session,
    internet: Internet,
}

impl Online {
    /// One whose VM is `spec`; the host's configuration excepts a private range, and one around the metadata address.
    async fn start(names: &[(&'static str, u8)], spec: VmSpec) -> Self {
        Self::start_in(World::new(), names, spec).await
    }

    /// The same in a world that is there.
    async fn start_in(world: World, names: &[(&'static str, u8)], spec: VmSpec) -> Self {
        Self::within(world, Internet::start(names), spec, &["10.88.0.0/16", "169.254.0.0/16"]).await
    }

    /// One in `internet`, the host's configuration excepting these ranges.
    async fn within(world: World, internet: Internet, spec: VmSpec, exceptions: &[&str]) -> Self {
        let config = SchedulerConfig {
            network_exceptions: exceptions.iter().map(|range| range.parse().expect("it is one")).collect(),
            resolvers: Some(vec![internet.resolver]),
            registries: [(Language::Python, vec!["packages.example".to_owned()])].into(),
            ..world.networked()
        };
        let scheduler = Scheduler::start(config).await.unwrap_or_else(|error| panic!("{error}: {:?}", error.remedy()));
        let request = SessionRequest { vm: spec, idle_timeout: None };
        let session = scheduler.session(request).await;
        let session = session.unwrap_or_else(|error| panic!("{error}: {:?}", std::error::Error::source(&error)));
        Self { world, scheduler, session, internet }
    }

    async fn run(&self, code: &str) -> Outcome {
        let outcome = self.session.exec(ExecRequest { timeout: Some(LONG), ..ExecRequest::new(code) }).await;
        outcome.unwrap_or_else(|error| panic!("{code}: {error}: {:?}", std::error::Error::source(&error)))
    }

    /// Gives the session what it needs for tries.
    async fn prepare(&self) {
        let authority = self.internet.authority.as_bytes();
        self.session
            .write_file("authority.pem", authority, exec_sandbox::WriteOptions::default())
            .await
            .expect("there is room");
        assert_eq!(stderr(&self.run(TRIES).await), "");
    }

    /// Tries something: what it came to, and what was refused meanwhile.
    async fn attempt(&self, code: &str) -> (String, Vec<&'static str>) {
        let outcome = self.run(code).await;
        assert_eq!(stderr(&outcome), "", "{code}");
        let network = outcome.network.expect("it has one");
        assert!(network.is_up && network.is_current, "{network:?}");
        let met = outcome.refusals.iter().filter(|(_, count)| *count > 0).map(|(name, _)| name).collect();
        (stdout(&outcome).trim_end().to_owned(), met)
    }

    /// What is permitted works, and nothing is refused beside it.
    async fn reaches(&self, code: &str, expected: &str) {
        assert_eq!(self.attempt(&format!("attempt({code})")).await, (format!("reached: {expected}"), vec![]), "{code}");
    }

    /// What is refused is refused for this reason and no other.
    async fn is_refused(&self, code: &str, reason: &'static str) {
        let (came, met) = self.attempt(&format!("attempt({code})")).await;
        assert!(came.starts_with("refused") && met == [reason], "{code}: {came} {met:?}");
    }

    /// A datagram that is refused is sent all the same: nobody tells.
    async fn is_dropped(&self, code: &str, reason: &'static str) {
        // An answer to what was sent later says that the gateway has seen it.
        let code = format!("attempt({code})\nsocket.gethostbyname('good.example')");
        assert_eq!(self.attempt(&code).await.1, vec![reason], "{code}");
    }

    async fn end(self) {
        let id = self.session.vm_id().to_owned();
        self.session.close().await.expect("it is dead");
        self.scheduler.close().await.expect("nothing is left");
        self.world.assert_empty([id]);
    }
}

fn python(network: NetworkPolicy) -> VmSpec {
    VmSpec { network, ..VmSpec::new(Language::Python) }
}

#[tokio::test]
async fn an_allow_list_lets_its_names_through_by_tls_and_refuses_all_else_by_name() {
    let list = NetworkPolicy::AllowList(vec!["good.example".into(), "second.example".into()]);
    let names = [("good.example", 1), ("other.example", 2), ("second.example", 3)];
    let online = Online::start(&names, python(list)).await;
    online.prepare().await;
    let (good, other, second) = (public(1), public(2), public(3));
    for name in ["good.example", "second.example"] {
        online.reaches(&format!("tls, '{name}', '{name}'"), &format!("this is {name}")).await;
    }
    online.reaches("tls, 'a.good.example', 'a.good.example'", "this is a.good.example").await;

    online.is_refused("socket.gethostbyname, 'other.example'", "name_not_allowed").await;
    online.is_refused("socket.gethostbyname, 'good.example.net'", "name_not_allowed").await;
    online.is_refused(&format!("tls, '{good}', 'other.example'"), "name_not_allowed").await;
    online.is_refused(&format!("tls, '{good}'"), "no_name").await;
    online.is_refused(&format!("tls, '{other}', 'good.example'"), "address_not_resolved").await;
    online.is_refused(&format!("tcp, '{good}', 80"), "port_not_allowed").await;
    online.is_refused(&format!("tcp, '{good}', 443"), "not_tls").await;
    online.is_refused(&format!("tls, '{second}', 'good.example'"), "name_address_mismatch").await;
    online.is_refused("tls, 'rebound.good.example', 'rebound.good.example'", "private_address").await;
    online.is_dropped(&format!("udp, '{good}', 53, False"), "udp_not_allowed").await;
    online.is_dropped(&format!("udp, '{good}', 443, False"), "quic_not_allowed").await;
    online.is_dropped("ask_for_text, 'good.example'", "query_type").await;
    online.is_refused("tcp, '169.254.169.254', 443", "metadata_address").await;
    online.is_refused("tcp, '10.0.0.1', 443", "private_address").await;
    // After all of that the same network still works.
    online.reaches("tls, 'good.example', 'good.example'", "this is good.example").await;
    online.end().await;
}

#[tokio::test]
async fn the_default_network_of_a_language_is_its_registries_and_tools_use_it() {
    let spec = python(NetworkPolicy::LanguageDefault);
    let online = Online::start(&[("packages.example", 1), ("other.example", 2)], spec).await;
    online.prepare().await;
    for tool in [
        "python3 -c \"import urllib.request as u, ssl; c = ssl.create_default_context(cafile='authority.pem'); \
         print(u.urlopen('https://files.packages.example/', context=c).read().decode())\"",
        "NODE_EXTRA_CA_CERTS=authority.pem bun -e 'console.log(await (await fetch(\"https://files.packages.example/\")).text())'",
    ] {
        let code =
            format!("import subprocess\nprint(subprocess.run({tool:?}, shell=True, capture_output=True, text=True))");
        let (came, met) = online.attempt(&code).await;
        assert!(came.contains("this is files.packages.example") && met.is_empty(), "{tool}: {came} {met:?}");
    }
    online.is_refused("socket.gethostbyname, 'other.example'", "name_not_allowed").await;
    online.end().await;
}
