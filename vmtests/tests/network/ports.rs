//! Ports of a VM, reached from the host.

use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpStream, UdpSocket},
    thread,
};

use exec_sandbox::{ExposedPort, Language, NetworkPolicy, PortMapping, Protocol, VmSpec, WriteOptions};
use vmtests::{PATIENCE, wait_for};

use crate::{Online, internet::public};

/// Connections at once.
const CONNECTIONS: usize = 100;

/// What goes there and back on one of them: a few windows.
const BULK_BYTES: usize = 4 << 20;

/// What goes each way where it is a lot.
const LOT_BYTES: usize = 1_000_000_000;

/// It consists of this again and again: a prime number of bytes, so that nothing that is lost, doubled or exchanged in windows, packets or
/// buffers, whose sizes are none of its multiples, looks right.
const PATTERN_BYTES: usize = 1_000_003;

/// What is sent and compared at once.
const PIECE_BYTES: usize = 1 << 20;

/// Takes a lot from one connection, every byte of it as it should be, and sends as much.
const TAKE_AND_SEND: &str = r#"
TOTAL, PATTERN, PIECE = 1_000_000_000, open("pattern", "rb").read(), 1 << 20
# As long as a piece from any of its bytes on.
ROUND = memoryview(PATTERN * 3)
with server.accept()[0] as connection:
    taken, room = 0, memoryview(bytearray(PIECE))
    expected = bytes(ROUND)
    while count := connection.recv_into(room):
        assert expected.startswith(room[:count], taken % len(PATTERN)), taken
        taken += count
    assert taken == TOTAL, taken
    for sent in range(0, TOTAL, PIECE):
        begin = sent % len(PATTERN)
        connection.sendall(ROUND[begin : begin + min(PIECE, TOTAL - sent)])
print("taken and sent")
"#;

/// A server of both protocols that goes on after the execution that has started it.
const ECHO: &str = r#"
import asyncio, threading

class Datagrams(asyncio.DatagramProtocol):
    def connection_made(self, transport):
        self.transport = transport
    def datagram_received(self, data, address):
        self.transport.sendto(data, address)

async def stream(reader, writer):
    while piece := await reader.read(65536):
        writer.write(piece)
        await writer.drain()
    writer.close()

async def serve(ready):
    await asyncio.get_running_loop().create_datagram_endpoint(Datagrams, ("0.0.0.0", 5353))
    server = await asyncio.start_server(stream, "0.0.0.0", 8080, backlog=200)
    ready.set()
    await server.serve_forever()

ready = threading.Event()
threading.Thread(target=lambda: asyncio.run(serve(ready)), daemon=True).start()
print(ready.wait(60))
"#;

fn address(port: &ExposedPort) -> SocketAddr {
    (port.host, port.external).into()
}

fn connect(at: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(at).expect("it is open");
    stream.set_read_timeout(Some(PATIENCE)).expect("it is a time");
    stream
}

/// Sends `bytes`, ends its side, and reads what comes back to the end.
fn echoed(at: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = connect(at);
    let mut writer = stream.try_clone().expect("there are descriptors");
    let mut back = Vec::new();
    thread::scope(|scope| {
        scope.spawn(move || {
            writer.write_all(bytes).expect("it is taken");
            writer.shutdown(Shutdown::Write).expect("it is open");
        });
        stream.read_to_end(&mut back).expect("it comes back");
    });
    back
}

fn bulk(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| (at.wrapping_mul(2_654_435_761) >> 13).to_le_bytes()[0]).collect()
}

/// Sends a lot and takes as much, every byte of it as it should be.
fn send_and_take(at: SocketAddr, pattern: &[u8]) {
    let (round, mut stream) = (pattern.repeat(3), connect(at));
    for sent in (0..LOT_BYTES).step_by(PIECE_BYTES) {
        let (begin, length) = (sent % PATTERN_BYTES, PIECE_BYTES.min(LOT_BYTES - sent));
        stream.write_all(&round[begin..begin + length]).expect("it is taken");
    }
    stream.shutdown(Shutdown::Write).expect("it is open");
    let (mut taken, mut room) = (0, vec![0; PIECE_BYTES]);
    while let count @ 1.. = stream.read(&mut room).expect("it comes") {
        let begin = taken % PATTERN_BYTES;
        assert!(room[..count] == round[begin..begin + count], "after {taken} bytes");
        taken += count;
    }
    assert_eq!(taken, LOT_BYTES);
}

#[tokio::test]
async fn exposed_ports_are_reached_from_the_host_and_nothing_is_reached_from_the_guest() {
    let port = |internal, protocol| PortMapping { internal, external: None, protocol };
    let spec = VmSpec {
        network: NetworkPolicy::Denied,
        expose: vec![port(8080, Protocol::Tcp), port(5353, Protocol::Udp)],
        ..VmSpec::new(Language::Python)
    };
    let online = Online::start(&[("good.example", 1)], spec).await;
    let ports: BTreeMap<u16, SocketAddr> =
        online.session.exposed_ports().iter().map(|port| (port.internal, address(port))).collect();
    let (streams, datagrams) = (ports[&8080], ports[&5353]);
    online.prepare().await;
    let echo = online.run(ECHO).await;
    assert_eq!(vmtests::stdout(&echo), "True\n", "{}", vmtests::stderr(&echo));
    assert_eq!(echo.exposed_ports, online.session.exposed_ports());

    let all: Vec<TcpStream> = (0..CONNECTIONS).map(|_| connect(streams)).collect();
    for (number, mut stream) in all.iter().enumerate() {
        writeln!(stream, "I am {number:03}").expect("it is taken");
    }
    for (number, mut stream) in all.iter().enumerate() {
        let mut line = [0; 9];
        stream.read_exact(&mut line).expect("it comes back");
        assert_eq!(String::from_utf8_lossy(&line), format!("I am {number:03}\n"));
    }
    drop(all);
    let sent = bulk(BULK_BYTES);
    assert!(echoed(streams, &sent) == sent, "not a byte is lost, doubled or in another place");

    let socket = UdpSocket::bind("127.0.0.1:0").expect("there is a port");
    socket.connect(datagrams).expect("it is an address");
    socket.set_nonblocking(true).expect("it is a socket");
    // A datagram may be lost, and is sent again.
    let back = wait_for("a datagram", || {
        socket.send(b"hello").ok()?;
        let mut back = [0; 16];
        let bytes = socket.recv(&mut back).ok()?;
        Some(back[..bytes].to_vec())
    });
    assert_eq!(back, b"hello");

    let good = public(1);
    let outcome = online.run(&format!("attempt(tls, '{good}', 'good.example')")).await;
    assert!(vmtests::stdout(&outcome).starts_with("refused"), "{outcome:?}");
    assert_eq!(outcome.refusals.get(exec_sandbox::Refusal::InboundOnly), 1);
    let network = outcome.network.expect("it has one");
    assert_eq!((network.accepted, network.connections), (CONNECTIONS as u64 + 1, 0), "{network:?}");
    assert!(network.received_bytes >= BULK_BYTES as u64 && network.sent_bytes >= BULK_BYTES as u64, "{network:?}");
    online.end().await;
    assert!(TcpStream::connect(streams).is_err(), "it is closed");
}

#[tokio::test]
async fn a_gigabyte_each_way_passes_an_exposed_port_to_the_byte() {
    let expose = vec![PortMapping { internal: 9000, external: None, protocol: Protocol::Tcp }];
    let spec = VmSpec { network: NetworkPolicy::Denied, expose, ..VmSpec::new(Language::Python) };
    let online = Online::start(&[], spec).await;
    let pattern = bulk(PATTERN_BYTES);
    let written = online.session.write_file("pattern", &pattern[..], WriteOptions::default()).await;
    written.expect("there is room");
    online.run("import socket\nserver = socket.create_server(('0.0.0.0', 9000))").await;
    let at = address(&online.session.exposed_ports()[0]);
    let client = thread::spawn(move || send_and_take(at, &pattern));
    let outcome = online.run(TAKE_AND_SEND).await;
    assert_eq!(vmtests::stdout(&outcome), "taken and sent\n", "{}", vmtests::stderr(&outcome));
    client.join().expect("everything is as it should be");
    let network = outcome.network.expect("it has one");
    let lot = LOT_BYTES as u64;
    assert_eq!((network.received_bytes, network.sent_bytes, network.accepted), (lot, lot, 1), "{network:?}");
    online.end().await;
}
