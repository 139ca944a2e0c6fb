//! The process: the real program on socket pairs, a guest's stack in the test, and servers on loopback.

mod bounds;
mod unreachable;

use std::{
    fs,
    io::{ErrorKind, Read as _, Write as _},
    net::{Ipv4Addr, Shutdown, SocketAddrV4, TcpListener, TcpStream, UdpSocket},
    os::{
        fd::{AsFd, AsRawFd as _},
        unix::net::UnixStream,
    },
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use exec_sandbox_gateway::{
    config::{Config, Jail, Limits, Port, PortProtocol, VERSION},
    link::MAX_MTU,
    policy::{Policy, Refusal},
    report::{Report, Reports},
    stream::Incoming,
};
use rustix::{
    event::{PollFd, PollFlags, Timespec},
    io::FdFlags,
};
use smoltcp::{iface::SocketHandle, socket::tcp::State};

use super::{
    gate,
    guest::{Guest, frame, udp},
};

/// How long anything may take before a test fails. Nothing here waits for so long.
const PATIENCE: Duration = Duration::from_secs(40);

/// A gateway that runs, with a guest.
struct Gateway {
    child: Child,
    qemu: UnixStream,
    incoming: Incoming,
    /// What is left to be written to the gateway.
    outgoing: Vec<u8>,
    guest: Guest,
    /// Datagrams for the guest, with their headers.
    datagrams: Vec<Vec<u8>>,
    /// Messages of ICMP for the guest, and who they are from.
    messages: Vec<(Ipv4Addr, Vec<u8>)>,
    reports: UnixStream,
    reader: Reports,
    report: Option<Report>,
}

/// Lets the descriptor's number be the same in the child.
fn inherited(fd: impl AsFd) -> i32 {
    rustix::io::fcntl_setfd(&fd, FdFlags::empty()).expect("it is open");
    fd.as_fd().as_raw_fd()
}

fn start(json: &str) -> Child {
    let (config, mut parent) = UnixStream::pair().expect("there are descriptors");
    let fd = inherited(&config);
    let child = Command::new(env!("CARGO_BIN_EXE_exec-sandbox-gateway"))
        .args(["--config-fd", &fd.to_string()])
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    parent.write_all(json.as_bytes()).expect("it reads");
    child
}

impl Gateway {
    fn start(change: impl FnOnce(&mut Config)) -> Self {
        let (qemu, its_qemu) = UnixStream::pair().expect("there are descriptors");
        let (reports, its_reports) = UnixStream::pair().expect("there are descriptors");
        let mut config = Config {
            version: VERSION,
            qemu_fd: inherited(&its_qemu),
            report_fd: inherited(&its_reports),
            mtu: MAX_MTU,
            rules: gate::rules(Policy::Open, &["127.0.0.0/8"]),
            resolvers: Vec::new(),
            ports: Vec::new(),
            limits: Limits::default(),
            jail: Jail::Possible,
        };
        change(&mut config);
        let child = start(&serde_json::to_string(&config).expect("it is JSON"));
        qemu.set_nonblocking(true).expect("it is a socket");
        reports.set_nonblocking(true).expect("it is a socket");
        let mut gateway = Self {
            child,
            qemu,
            incoming: Incoming::default(),
            outgoing: Vec::new(),
            guest: Guest::new(MAX_MTU.into(), Instant::now()),
            datagrams: Vec::new(),
            messages: Vec::new(),
            reports,
            reader: Reports::default(),
            report: None,
        };
        gateway.until("it has started", |gateway| gateway.report.is_some());
        gateway
    }

    /// Sends a frame of the guest.
    fn send(&mut self, frame: &[u8]) {
        self.outgoing.extend(u32::try_from(frame.len()).expect("it is short").to_be_bytes());
        self.outgoing.extend(frame);
    }

    /// Lets the guest work until `done`.
    fn until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let end = Instant::now() + PATIENCE;
        while !done(self) {
            let now = Instant::now();
            assert!(now < end, "{what}: not within {PATIENCE:?}; {:?}", self.report);
            for frame in self.guest.poll(now) {
                self.send(&frame);
            }
            self.write();
            let due = self.guest.next_deadline(now).unwrap_or(now + Duration::from_millis(20));
            self.wait(due.saturating_duration_since(now).min(Duration::from_millis(20)));
            self.read();
        }
    }

    fn wait(&self, time: Duration) {
        let mut wanted = PollFlags::IN;
        if !self.outgoing.is_empty() {
            wanted |= PollFlags::OUT;
        }
        let mut fds = [PollFd::new(&self.qemu, wanted), PollFd::new(&self.reports, PollFlags::IN)];
        let time = Timespec::try_from(time).expect("it is short");
        rustix::event::poll(&mut fds, Some(&time)).expect("it can wait");
    }

    fn write(&mut self) {
        while !self.outgoing.is_empty() {
            match self.qemu.write(&self.outgoing) {
                Ok(written) => drop(self.outgoing.drain(..written)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => panic!("writing to the gateway: {error}"),
            }
        }
    }

    fn read(&mut self) {
        while let Ok(bytes @ 1..) = self.qemu.read(self.incoming.room()) {
            self.incoming.filled(bytes);
            while let Some(frame) = self.incoming.next_frame().expect("it is framed") {
                // By its protocol; the guest's stack has no use for what is not TCP.
                match frame.get(23) {
                    Some(1) => {
                        self.messages.push(([frame[26], frame[27], frame[28], frame[29]].into(), frame[34..].to_vec()))
                    }
                    Some(17) => self.datagrams.push(frame[34..].to_vec()),
                    _ => self.guest.receive(frame),
                }
            }
        }
        self.read_reports();
    }

    fn read_reports(&mut self) {
        let mut bytes = [0; 8192];
        while let Ok(length @ 1..) = self.reports.read(&mut bytes) {
            self.report = self.reader.take(&bytes[..length]).expect("they are reports").or_else(|| self.report.take());
        }
    }

    /// What the gateway has counted.
    fn ask(&mut self) -> Report {
        self.report = None;
        self.reports.write_all(b"?").expect("it is there");
        self.until("it reports", |gateway| gateway.report.is_some());
        self.report.clone().expect("it is there")
    }

    /// How much was refused, as far as it was told.
    fn refused(&self) -> u64 {
        self.report.as_ref().map_or(0, |report| report.refusals.iter().map(|(_, count)| count).sum())
    }

    fn connect(&mut self, to: SocketAddrV4) -> SocketHandle {
        let stream = self.guest.connect(to);
        self.until("it is connected", |gateway| gateway.guest.state(stream) == State::Established);
        stream
    }

    /// Waits for the end, which is not waited for in vain: something ended it. Returns also what it wrote to standard error.
    fn ended(&mut self) -> (ExitStatus, String) {
        let status = self.child.wait().expect("it is a child");
        self.read_reports();
        let mut complaint = String::new();
        self.child.stderr.take().expect("it is piped").read_to_string(&mut complaint).expect("it is text");
        (status, complaint)
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        // It may have ended, which is well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn loopback(port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::LOCALHOST, port)
}

/// Says back everything, and then that it is the end.
fn echo_server() -> SocketAddrV4 {
    let listener = TcpListener::bind(loopback(0)).expect("there is a port");
    let at = listener.local_addr().expect("it is bound");
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("it is accepted");
            thread::spawn(move || {
                let mut from = stream.try_clone().expect("there are descriptors");
                // A reset in the middle is a matter of the test.
                let _ = std::io::copy(&mut from, &mut stream);
                let _ = stream.shutdown(Shutdown::Write);
            });
        }
    });
    loopback(at.port())
}

fn pattern(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| (at / 251 + at).to_le_bytes()[0]).collect()
}

#[test]
fn a_server_is_reached_and_every_byte_comes_back() {
    let server = echo_server();
    let mut gateway = Gateway::start(|_| ());
    let stream = gateway.connect(server);
    let (up, mut sent, mut down) = (pattern(8 * 1024 * 1024), 0, Vec::new());
    gateway.until("everything is back", |gateway| {
        sent += gateway.guest.send(stream, &up[sent..]);
        if sent == up.len() {
            gateway.guest.tcp(stream).close();
        }
        down.extend(gateway.guest.take(stream));
        down.len() == up.len() && !gateway.guest.tcp(stream).may_recv()
    });
    assert!(down == up);
    let report = gateway.ask();
    assert_eq!(
        (report.connections, report.bytes_from_guest, report.bytes_to_guest),
        (1, up.len() as u64, up.len() as u64)
    );
    assert!(gateway.refused() == 0 && report.malformed.is_empty(), "{report:?}");
}

#[test]
fn a_server_that_says_something_and_ends_at_once_is_heard_to_its_end() {
    let listener = TcpListener::bind(loopback(0)).expect("there is a port");
    let server = loopback(listener.local_addr().expect("it is bound").port());
    thread::spawn(move || {
        // What it says and its end may be one event of the gateway's, also that of the connection, or two or three.
        for (number, stream) in listener.incoming().enumerate() {
            let mut stream = stream.expect("somebody connects");
            stream.write_all(&pattern(1 + number)).expect("it is taken");
        }
    });
    let mut gateway = Gateway::start(|_| ());
    for number in 0..50 {
        let (stream, mut down) = (gateway.guest.connect(server), Vec::new());
        gateway.until("it has ended", |gateway| {
            down.extend(gateway.guest.take(stream));
            gateway.guest.state(stream) == State::CloseWait
        });
        down.extend(gateway.guest.take(stream));
        assert!(down == pattern(1 + number), "{number}");
        gateway.guest.tcp(stream).close();
    }
}

#[test]
fn the_same_server_is_refused_by_name_where_the_host_excepts_nothing() {
    let server = echo_server();
    let mut gateway = Gateway::start(|config| config.rules = gate::rules(Policy::Open, &[]));
    let stream = gateway.guest.connect(server);
    gateway.until("it is reset", |gateway| gateway.guest.state(stream) == State::Closed);
    // Nobody asks for this report.
    gateway.until("it is told", |gateway| gateway.refused() > 0);
    let report = gateway.report.as_ref().expect("it is there");
    assert_eq!((report.refusals.get(Refusal::LoopbackAddress), gateway.refused()), (1, 1));
}

#[test]
fn a_server_that_is_not_there_is_a_reset() {
    let listener = TcpListener::bind(loopback(0)).expect("there is a port");
    let at = loopback(listener.local_addr().expect("it is bound").port());
    drop(listener);
    let mut gateway = Gateway::start(|_| ());
    let stream = gateway.guest.connect(at);
    gateway.until("it is reset", |gateway| gateway.guest.state(stream) == State::Closed);
    assert_eq!(gateway.ask().unreachable, 1);
}

#[test]
fn a_datagram_goes_out_and_its_answer_comes_back() {
    let server = UdpSocket::bind(loopback(0)).expect("there is a port");
    let at = loopback(server.local_addr().expect("it is bound").port());
    let mut gateway = Gateway::start(|_| ());
    gateway.send(&frame(&udp(1000, at, b"hello")));
    gateway.write();
    let mut bytes = [0; 100];
    server.set_read_timeout(Some(PATIENCE)).expect("it is a socket");
    let (length, from) = server.recv_from(&mut bytes).expect("it arrives");
    assert_eq!(&bytes[..length], b"hello");
    server.send_to(b"good day", from).expect("it can answer");
    gateway.until("the answer is there", |gateway| !gateway.datagrams.is_empty());
    assert!(gateway.datagrams[0].ends_with(b"good day"));
    assert_eq!(gateway.datagrams[0][..4], [at.port().to_be_bytes(), 1000_u16.to_be_bytes()].concat());
}

/// Exposes a port, bound by the test as the host would.
fn expose(config: &mut Config, protocol: PortProtocol, guest_port: u16, fd: impl AsFd) {
    config.ports.push(Port { protocol, guest_port, fd: inherited(fd) });
}

#[test]
fn a_hundred_connections_at_once_reach_an_exposed_port() {
    const CONNECTIONS: usize = 100;
    let listener = TcpListener::bind(loopback(0)).expect("there is a port");
    let at = listener.local_addr().expect("it is bound");
    let mut gateway = Gateway::start(|config| {
        config.rules = gate::rules(Policy::InboundOnly, &[]);
        expose(config, PortProtocol::Tcp, 8080, &listener);
    });
    drop(listener);
    let mut servers: Vec<SocketHandle> = (0..CONNECTIONS).map(|_| gateway.guest.listen(8080)).collect();
    let clients: Vec<_> = (0..CONNECTIONS)
        .map(|number| {
            thread::spawn(move || {
                let mut stream = TcpStream::connect(at).expect("it listens");
                let said = pattern(10_000 + number);
                stream.write_all(&said).expect("it is read");
                stream.shutdown(Shutdown::Write).expect("it is connected");
                let mut heard = Vec::new();
                stream.read_to_end(&mut heard).expect("it ends orderly");
                heard == said
            })
        })
        .collect();
    gateway.until("all are served", |gateway| {
        servers.retain(|server| {
            let socket = gateway.guest.tcp(*server);
            if socket.can_recv() {
                let heard = gateway.guest.take(*server);
                assert_eq!(gateway.guest.send(*server, &heard), heard.len());
            } else if socket.state() == State::CloseWait {
                socket.close();
            }
            !matches!(gateway.guest.state(*server), State::Closed | State::TimeWait)
        });
        servers.is_empty()
    });
    assert!(clients.into_iter().all(|client| client.join().expect("it is well")));
    assert_eq!(gateway.ask().accepted, CONNECTIONS as u64);
}

#[test]
fn a_connection_to_an_exposed_port_where_nobody_listens_is_reset() {
    let listener = TcpListener::bind(loopback(0)).expect("there is a port");
    let at = listener.local_addr().expect("it is bound");
    let mut gateway = Gateway::start(|config| expose(config, PortProtocol::Tcp, 8080, &listener));
    drop(listener);
    let client =
        thread::spawn(move || TcpStream::connect(at).expect("it listens").read(&mut [0]).map_err(|error| error.kind()));
    gateway.until("it is told", |_| client.is_finished());
    assert_eq!(client.join().expect("it is well"), Err(ErrorKind::ConnectionReset));
}

#[test]
fn datagrams_to_an_exposed_port_are_answered_from_it() {
    let socket = UdpSocket::bind(loopback(0)).expect("there is a port");
    let at = socket.local_addr().expect("it is bound");
    let mut gateway = Gateway::start(|config| {
        config.rules = gate::rules(Policy::InboundOnly, &[]);
        expose(config, PortProtocol::Udp, 7, &socket);
    });
    drop(socket);
    let client = UdpSocket::bind(loopback(0)).expect("there is a port");
    client.connect(at).expect("it is bound");
    client.send(b"hello").expect("it is bound");
    gateway.until("it arrives", |gateway| !gateway.datagrams.is_empty());
    let datagram = gateway.datagrams.remove(0);
    assert!(datagram.ends_with(b"hello") && datagram[2..4] == [0, 7]);
    let from = SocketAddrV4::new(exec_sandbox_gateway::link::GATEWAY, u16::from_be_bytes([datagram[0], datagram[1]]));
    gateway.send(&frame(&udp(7, from, b"good day")));
    gateway.write();
    client.set_read_timeout(Some(PATIENCE)).expect("it is a socket");
    let mut heard = [0; 100];
    let length = client.recv(&mut heard).expect("it is answered");
    assert_eq!(&heard[..length], b"good day");
}

#[test]
fn the_end_of_qemu_is_its_end_and_the_last_report_says_so() {
    let server = echo_server();
    let mut gateway = Gateway::start(|_| ());
    gateway.connect(server);
    gateway.qemu.shutdown(Shutdown::Both).expect("it is connected");
    let (status, complaint) = gateway.ended();
    assert!(status.success() && complaint.is_empty(), "{status}: {complaint}");
    let report = gateway.report.take().expect("it is there");
    assert!(report.is_last && report.connections == 1, "{report:?}");
}

#[test]
fn a_parent_that_closes_the_channel_ends_it() {
    let mut gateway = Gateway::start(|_| ());
    gateway.reports.shutdown(Shutdown::Write).expect("it is connected");
    let (status, complaint) = gateway.ended();
    assert!(status.success() && complaint.is_empty(), "{status}: {complaint}");
    assert!(gateway.report.take().expect("it is there").is_last);
}

#[test]
fn a_stream_that_is_no_stream_of_frames_ends_it_with_a_reason() {
    let mut gateway = Gateway::start(|_| ());
    gateway.qemu.write_all(&[0xff; 8]).expect("it reads");
    let (status, complaint) = gateway.ended();
    assert_eq!(status.code(), Some(1));
    assert!(complaint.contains("a frame of 4294967295 bytes is over the limit"), "{complaint}");
}

#[test]
fn without_a_configuration_it_does_not_start() {
    for (json, why) in
        [("", "EOF"), ("{}", "missing field"), (r#"{"version":1,"color":"red"}"#, "unknown field `color`")]
    {
        let output = start(json).wait_with_output().expect("it is a child");
        let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(1) && complaint.contains(why), "{complaint}");
    }
    let closed = |fd| Gateway::config_with(fd);
    let output = start(&closed(999)).wait_with_output().expect("it is a child");
    assert!(String::from_utf8_lossy(&output.stderr).contains("taking over the stream of QEMU"));
}

impl Gateway {
    /// A configuration with nothing behind it.
    fn config_with(qemu_fd: i32) -> String {
        let config = Config {
            version: VERSION,
            qemu_fd,
            report_fd: 998,
            mtu: MAX_MTU,
            rules: gate::rules(Policy::Open, &[]),
            resolvers: Vec::new(),
            ports: Vec::new(),
            limits: Limits::default(),
            jail: Jail::Possible,
        };
        serde_json::to_string(&config).expect("it is JSON")
    }

    /// A line of what the kernel says of the process.
    fn proc(&self, file: &str, key: &str) -> String {
        let text = fs::read_to_string(format!("/proc/{}/{file}", self.child.id())).expect("it lives");
        let line = text.lines().find(|line| line.starts_with(key)).expect("there is a line");
        line[key.len()..].trim_start_matches(':').split_whitespace().next().unwrap_or_default().to_owned()
    }
}

#[test]
fn it_works_in_its_jail() {
    let server = echo_server();
    let mut gateway = Gateway::start(|_| ());
    let missing = gateway.report.as_ref().expect("it is there").missing_layers.clone();
    // A layer that this machine lacks is said; the others hold.
    let has = |layer: &str| !missing.iter().any(|missing| missing == layer);
    assert!(has("no_new_privileges") && has("resource_limits") && has("not_dumpable"), "{missing:?}");
    assert_eq!(gateway.proc("status", "NoNewPrivs"), "1");
    assert_eq!(gateway.proc("limits", "Max core file size"), "0");
    assert_eq!(gateway.proc("status", "Threads"), "1");
    if has("seccomp") {
        assert_eq!(gateway.proc("status", "Seccomp"), "2");
    }
    // New connections are still made.
    let stream = gateway.connect(server);
    gateway.guest.send(stream, b"hello");
    let mut heard = Vec::new();
    gateway.until("it comes back", |gateway| {
        heard.extend(gateway.guest.take(stream));
        heard == b"hello"
    });
}
