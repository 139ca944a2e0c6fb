//! How fast the engine is, alone: a guest's TCP stack in memory on one side, a source and a sink on the other, no socket in between.
//!
//! `cargo run --release -p exec-sandbox-gateway --example throughput`

#[path = "../tests/gateway/guest.rs"]
#[expect(dead_code, reason = "a measurement needs less of the guest than the tests do")]
mod guest;

use std::{
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    time::{Duration, Instant},
};

use exec_sandbox_gateway::{
    config::Limits,
    engine::{End, Engine, Gate, Moved, Outside, Parts, Question, TcpFlow, UdpFlow, Upstream},
    policy::{Exceptions, Policy, Rules},
    stream::Incoming,
};
use smoltcp::socket::tcp::State;

use self::guest::Guest;

/// How long each figure is measured.
const MEASURED: Duration = Duration::from_secs(2);

const SERVER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(93, 184, 215, 14), 80);

/// Takes everything at once, and gives without end if it is a source.
#[derive(Default)]
struct Endless {
    is_source: bool,
    dialed: Vec<TcpFlow>,
    taken: u64,
    closed: u64,
}

impl Outside for Endless {
    fn dial(&mut self, flow: TcpFlow, _: SocketAddrV4) -> bool {
        self.dialed.push(flow);
        true
    }

    fn write(&mut self, _: TcpFlow, bytes: &[u8]) -> Moved {
        self.taken += bytes.len() as u64;
        Moved::Bytes(bytes.len())
    }

    fn read(&mut self, _: TcpFlow, room: &mut [u8]) -> Moved {
        if self.is_source { Moved::Bytes(room.len()) } else { Moved::Later }
    }

    fn shut(&mut self, _: TcpFlow) {}

    fn close(&mut self, _: TcpFlow, _: End) {
        self.closed += 1;
    }

    fn open_udp(&mut self, _: UdpFlow, _: SocketAddrV4) -> bool {
        false
    }

    fn send_udp(&mut self, _: UdpFlow, _: &[u8]) {}

    fn close_udp(&mut self, _: UdpFlow) {}

    fn answer_udp(&mut self, _: u16, _: SocketAddr, _: &[u8]) {}

    fn ask(&mut self, _: Question, _: Upstream, _: &[u8]) -> bool {
        false
    }

    fn forget(&mut self, _: Question) {}
}

struct Pair {
    engine: Engine,
    guest: Guest,
    outside: Endless,
    incoming: Incoming,
    /// Time that the engine took, of all that passed.
    busy: Duration,
}

impl Pair {
    fn new(mtu: u16, flow_buffer_bytes: u32, is_source: bool) -> Self {
        let now = Instant::now();
        let limits = Limits { flow_buffer_bytes, wide_flows: 0, ..Limits::default() };
        let parts = Parts {
            gate: Gate::new(Rules { policy: Policy::Open, exceptions: Exceptions::default() }, 1, Instant::now()),
            mtu,
            limits,
            resolvers: 0,
            seed: 1,
        };
        Self {
            engine: Engine::new(parts, now),
            guest: Guest::new(mtu.into(), now),
            outside: Endless { is_source, ..Endless::default() },
            incoming: Incoming::default(),
            busy: Duration::ZERO,
        }
    }

    fn round(&mut self) {
        let now = Instant::now();
        for flow in std::mem::take(&mut self.outside.dialed) {
            self.engine.dialed(flow, true, &mut self.outside, now);
        }
        let frames = self.guest.poll(now);
        let began = Instant::now();
        for frame in frames {
            self.engine.receive(&frame, &mut self.outside, now);
        }
        self.engine.expire(&mut self.outside, now);
        self.engine.serve(&mut self.outside, now);
        self.busy += began.elapsed();
        let out = self.engine.outgoing();
        while !out.bytes().is_empty() {
            let room = self.incoming.room();
            let bytes = room.len().min(out.bytes().len());
            room[..bytes].copy_from_slice(&out.bytes()[..bytes]);
            out.written(bytes);
            self.incoming.filled(bytes);
            while let Some(frame) = self.incoming.next_frame().expect("it is framed") {
                self.guest.receive(frame);
            }
        }
    }
}

fn stream(mtu: u16, buffer_bytes: u32, is_source: bool) -> (f64, f64) {
    let mut pair = Pair::new(mtu, buffer_bytes, is_source);
    let stream = pair.guest.connect(SERVER);
    while pair.guest.state(stream) != State::Established {
        pair.round();
    }
    let (piece, began, mut down) = (vec![7; 512 * 1024], Instant::now(), 0);
    pair.busy = Duration::ZERO;
    while began.elapsed() < MEASURED {
        if is_source {
            let socket = pair.guest.tcp(stream);
            while socket.can_recv() {
                down += socket.recv(|bytes| (bytes.len(), bytes.len())).expect("it can receive");
            }
        } else {
            pair.guest.send(stream, &piece);
        }
        pair.round();
    }
    let gigabytes = (if is_source { down as u64 } else { pair.outside.taken }) as f64 / 1e9;
    (gigabytes / began.elapsed().as_secs_f64(), gigabytes / pair.busy.as_secs_f64())
}

/// Connections that are made, closed by the guest and forgotten.
fn connections(open: usize) -> (f64, f64) {
    let mut pair = Pair::new(65_520, Limits::default().flow_buffer_bytes, false);
    let idle: Vec<_> = (0..open).map(|_| pair.guest.connect(SERVER)).collect();
    while idle.iter().any(|stream| pair.guest.state(*stream) != State::Established) {
        pair.round();
    }
    let (began, mut made) = (Instant::now(), 0_u32);
    pair.busy = Duration::ZERO;
    while began.elapsed() < MEASURED {
        let stream = pair.guest.connect(SERVER);
        while pair.guest.state(stream) != State::Established {
            pair.round();
        }
        pair.guest.tcp(stream).abort();
        let before = pair.outside.closed;
        while pair.outside.closed == before {
            pair.round();
        }
        pair.guest.remove(stream);
        made += 1;
    }
    (f64::from(made) / began.elapsed().as_secs_f64(), f64::from(made) / pair.busy.as_secs_f64())
}

#[expect(clippy::print_stdout, reason = "the figures are what it is for")]
fn main() {
    println!("GB/s of one stream: both stacks, and counting the engine's time alone");
    for mtu in [65_520, 9000, 1500] {
        for buffer_kib in [64, 128, 256, 512] {
            let (up, up_alone) = stream(mtu, buffer_kib * 1024, false);
            let (down, down_alone) = stream(mtu, buffer_kib * 1024, true);
            println!(
                "mtu {mtu:5} buffers {buffer_kib:3} KiB: up {up:.2} ({up_alone:.2}), down {down:.2} ({down_alone:.2})"
            );
        }
    }
    for open in [0, 250] {
        let (all, alone) = connections(open);
        println!("connections/s beside {open:3} open ones: {all:.0} ({alone:.0})");
    }
}
