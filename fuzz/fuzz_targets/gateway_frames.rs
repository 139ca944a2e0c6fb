//! The gateway's engine, from a hostile guest: frames of every kind, beside sockets that connect, speak, stop and break.
//!
//! The oracle: tables stay within their limits, what is dialed is closed once, bytes are neither made nor lost on their way out,
//! everything that goes to the guest is a well-formed frame, what was refused was a frame that came, and when all is over no flow is
//! left.
#![no_main]

use std::{
    collections::{BTreeMap, HashMap},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    time::{Duration, Instant},
};

use exec_sandbox_gateway::{
    config::Limits,
    engine::{End, Engine, Gate, Moved, Outside, Parts, Question, TcpFlow, UdpFlow, Upstream},
    link::{GATEWAY, GATEWAY_MAC, GUEST, GUEST_MAC},
    policy::{Exceptions, Policy, Rules},
    stream::Incoming,
};
use libfuzzer_sys::fuzz_target;

const LIMITS: Limits =
    Limits { tcp_flows: 4, udp_flows: 3, flow_buffer_bytes: 64 * 1024, wide_flows: 2, wide_buffer_bytes: 128 * 1024 };
const MTU: u16 = 1500;

/// Where packets go: the gateway, somebody, somebody else, somebody who is refused.
const PLACES: [Ipv4Addr; 4] =
    [GATEWAY, Ipv4Addr::new(93, 184, 215, 14), Ipv4Addr::new(93, 184, 215, 15), Ipv4Addr::new(10, 0, 0, 1)];
const PORTS: [u16; 4] = [53, 80, 443, 7];

const RAW: u8 = 0;
const PACKET: u8 = 1;
const SEGMENT: u8 = 2;
const DATAGRAM: u8 = 3;
const DIALED: u8 = 4;
const SPEAKS: u8 = 5;
const TIME: u8 = 6;
const DRAINS: u8 = 7;
const FROM_OUTSIDE: u8 = 8;
const ANSWERS: u8 = 9;
const KINDS: u8 = 10;

// Steps: what a frame is made of, what sockets do, how much time passes, and whether QEMU reads.
fuzz_target!(init: fuzz::sow(seeds()), |script: &[u8]| {
    let mut world = World::new();
    for (choice, argument) in fuzz::steps(script) {
        world.step(choice % KINDS, argument);
        world.check();
    }
    world.finish();
});

/// A socket outside.
#[derive(Default)]
struct Host {
    says: usize,
    ends: bool,
    is_broken: bool,
    takes: usize,
    is_shut: bool,
}

#[derive(Default)]
struct Sockets {
    tcp: BTreeMap<u16, Host>,
    udp: BTreeMap<u16, SocketAddrV4>,
    questions: BTreeMap<u16, Vec<u8>>,
    taken: u64,
    given: u64,
}

impl Outside for Sockets {
    fn dial(&mut self, flow: TcpFlow, to: SocketAddrV4) -> bool {
        assert!(!to.ip().is_private(), "what is refused is not dialed");
        assert!(self.tcp.insert(flow.0, Host::default()).is_none());
        true
    }

    fn write(&mut self, flow: TcpFlow, bytes: &[u8]) -> Moved {
        let host = self.tcp.get_mut(&flow.0).expect("it is open");
        assert!(!host.is_shut && !bytes.is_empty());
        let taken = bytes.len().min(host.takes);
        if host.is_broken {
            return Moved::Gone;
        }
        host.takes -= taken;
        self.taken += taken as u64;
        if taken == 0 { Moved::Later } else { Moved::Bytes(taken) }
    }

    fn read(&mut self, flow: TcpFlow, room: &mut [u8]) -> Moved {
        let host = self.tcp.get_mut(&flow.0).expect("it is open");
        let given = room.len().min(host.says);
        match given {
            _ if host.is_broken => Moved::Gone,
            0 if host.ends => Moved::End,
            0 => Moved::Later,
            _ => {
                host.says -= given;
                self.given += given as u64;
                Moved::Bytes(given)
            }
        }
    }

    fn shut(&mut self, flow: TcpFlow) {
        let host = self.tcp.get_mut(&flow.0).expect("it is open");
        assert!(!std::mem::replace(&mut host.is_shut, true));
    }

    fn close(&mut self, flow: TcpFlow, _: End) {
        assert!(self.tcp.remove(&flow.0).is_some(), "it is closed once");
    }

    fn open_udp(&mut self, flow: UdpFlow, to: SocketAddrV4) -> bool {
        assert!(!to.ip().is_private(), "what is refused is not sent");
        assert!(self.udp.insert(flow.0, to).is_none());
        true
    }

    fn send_udp(&mut self, flow: UdpFlow, payload: &[u8]) {
        assert!(self.udp.contains_key(&flow.0));
        self.taken += payload.len() as u64;
    }

    fn close_udp(&mut self, flow: UdpFlow) {
        assert!(self.udp.remove(&flow.0).is_some());
    }

    fn answer_udp(&mut self, _: u16, _: SocketAddr, payload: &[u8]) {
        self.taken += payload.len() as u64;
    }

    fn ask(&mut self, question: Question, _: Upstream, message: &[u8]) -> bool {
        assert!(
            self.questions.insert(question.0, message.to_vec()).is_none(),
            "a question is forgotten before it is asked again"
        );
        true
    }

    fn forget(&mut self, question: Question) {
        self.questions.remove(&question.0);
    }
}

struct World {
    engine: Engine,
    sockets: Sockets,
    now: Instant,
    frames: u64,
    /// By the guest's port: what the gateway expects next, and what it sent next.
    numbers: HashMap<u16, (u32, u32)>,
    incoming: Incoming,
}

impl World {
    fn new() -> Self {
        let now = Instant::now();
        let parts = Parts {
            gate: Gate::new(Rules { policy: Policy::Open, exceptions: Exceptions::default() }, 1, Instant::now()),
            mtu: MTU,
            limits: LIMITS,
            resolvers: 2,
            seed: 1,
        };
        Self {
            engine: Engine::new(parts, now),
            sockets: Sockets::default(),
            now,
            frames: 0,
            numbers: HashMap::new(),
            incoming: Incoming::default(),
        }
    }

    fn step(&mut self, choice: u8, argument: &[u8]) {
        let byte = |index: usize| argument.get(index).copied().unwrap_or_default();
        let rest = argument.get(4..).unwrap_or_default();
        let place = PLACES[usize::from(byte(0)) % PLACES.len()];
        let port = PORTS[usize::from(byte(1)) % PORTS.len()];
        let guest_port = 1000 + u16::from(byte(2) % 8);
        match choice {
            RAW => self.receive(argument),
            PACKET => self.receive(&frame(place, byte(1), rest)),
            SEGMENT => {
                let (seq, ack) = self.numbers.get(&guest_port).copied().unwrap_or_default();
                let offset = i32::from(byte(3).cast_signed() / 64);
                let flags = rest.first().copied().unwrap_or(2);
                let payload = rest.get(1..).unwrap_or_default();
                let mut segment = Vec::new();
                segment.extend([guest_port.to_be_bytes(), port.to_be_bytes()].concat());
                segment.extend([seq.wrapping_add_signed(offset).to_be_bytes(), ack.to_be_bytes()].concat());
                segment.extend([0x50, flags, 0x40, 0, 0, 0, 0, 0]);
                segment.extend(payload);
                self.receive(&frame(place, 6, &segment));
            }
            DATAGRAM => {
                let length = (8 + rest.len()) as u16;
                let datagram = [guest_port.to_be_bytes(), port.to_be_bytes(), length.to_be_bytes(), [0, 0]].concat();
                self.receive(&frame(place, 17, &[&datagram[..], rest].concat()));
            }
            DIALED if self.sockets.tcp.contains_key(&u16::from(byte(0) % 4)) => {
                let flow = TcpFlow(u16::from(byte(0) % 4));
                self.engine.dialed(flow, byte(1) < 200, &mut self.sockets, self.now);
            }
            SPEAKS => self.speaks(u16::from(byte(0) % 4), byte(1), argument.get(2..).unwrap_or_default()),
            TIME => self.pass(Duration::from_millis(8 * fuzz::number(argument) as u64)),
            DRAINS => self.drain(),
            FROM_OUTSIDE if byte(0) % 2 == 0 => {
                if let Ok(flow) = self.engine.accept(guest_port, &mut self.sockets, self.now) {
                    assert!(self.sockets.tcp.insert(flow.0, Host::default()).is_none());
                }
            }
            FROM_OUTSIDE => {
                let peer = SocketAddr::from((Ipv4Addr::LOCALHOST, 4000 + u16::from(byte(1))));
                self.sockets.given += rest.len() as u64;
                self.engine.exposed(guest_port, peer, rest, &mut self.sockets, self.now);
                if let Some(flow) = self.sockets.udp.keys().next().copied().filter(|_| byte(3) < 128) {
                    self.sockets.given += rest.len() as u64;
                    self.engine.arrived(UdpFlow(flow), rest, &mut self.sockets, self.now);
                }
                if let Some(flow) = self.sockets.udp.keys().next().copied().filter(|_| byte(3) >= 224) {
                    self.engine.udp_refused(UdpFlow(flow), &mut self.sockets, self.now);
                    assert!(!self.sockets.udp.contains_key(&flow), "what is refused is closed");
                }
            }
            ANSWERS => {
                if let Some((question, message)) = self.sockets.questions.iter().next() {
                    // The question with some other bytes is an answer more often than any bytes are.
                    let (question, mut answer) = (Question(*question), message.clone());
                    answer.iter_mut().zip(argument).for_each(|(byte, change)| *byte ^= change);
                    answer.extend(argument);
                    self.engine.answered(question, &answer, &mut self.sockets, self.now);
                }
            }
            _ => {}
        }
        self.engine.serve(&mut self.sockets, self.now);
    }

    fn speaks(&mut self, flow: u16, how: u8, amounts: &[u8]) {
        let Some(host) = self.sockets.tcp.get_mut(&flow) else { return };
        host.says += fuzz::number(amounts);
        host.takes += fuzz::number(amounts.get(2..).unwrap_or_default());
        host.ends |= how & 1 != 0;
        host.is_broken |= how & 6 == 6;
        self.engine.ready(TcpFlow(flow), how & 8 == 0, how & 16 == 0);
    }

    fn receive(&mut self, frame: &[u8]) {
        self.frames += 1;
        self.engine.receive(frame, &mut self.sockets, self.now);
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.engine.expire(&mut self.sockets, self.now);
        self.engine.serve(&mut self.sockets, self.now);
    }

    /// QEMU reads everything.
    fn drain(&mut self) {
        loop {
            let out = self.engine.outgoing();
            let room = self.incoming.room();
            let bytes = room.len().min(out.bytes().len());
            if bytes == 0 {
                break;
            }
            room[..bytes].copy_from_slice(&out.bytes()[..bytes]);
            out.written(bytes);
            self.incoming.filled(bytes);
            while let Some(frame) = self.incoming.next_frame().expect("it is framed") {
                if let Some((port, numbers)) = well_formed(frame) {
                    self.numbers.insert(port, numbers);
                }
            }
            self.engine.serve(&mut self.sockets, self.now);
        }
    }

    fn check(&self) {
        let (tcp, udp) = self.engine.flows();
        assert!(tcp <= LIMITS.tcp_flows.into() && udp <= LIMITS.udp_flows.into());
        assert!(self.sockets.tcp.len() <= tcp && self.sockets.udp.len() <= udp);
        let counters = self.engine.counters();
        assert_eq!(counters.bytes_from_guest, self.sockets.taken, "what was taken is what was counted");
        assert!(counters.bytes_to_guest <= self.sockets.given);
        // A frame is refused at most once, and so is what comes from outside or what a connection says.
        assert!(counters.malformed.iter().sum::<u64>() <= self.frames);
    }

    /// Everybody goes away: nothing may be left.
    fn finish(mut self) {
        for host in self.sockets.tcp.values_mut() {
            host.is_broken = true;
        }
        for flow in 0..LIMITS.tcp_flows {
            self.engine.ready(TcpFlow(flow), true, true);
        }
        for _ in 0..3 {
            self.drain();
            self.pass(Duration::from_secs(3600));
            self.check();
        }
        self.drain();
        assert_eq!(self.engine.flows(), (0, 0), "nobody is there any more");
        assert!(self.sockets.tcp.is_empty() && self.sockets.udp.is_empty() && self.sockets.questions.is_empty());
    }
}

/// A frame of the guest around a payload. Checksums are not looked at while fuzzing.
fn frame(to: Ipv4Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let length = (20 + payload.len()) as u16;
    let mut header = vec![0x45, 0];
    header.extend(length.to_be_bytes());
    header.extend([0, 0, 0, 0, 64, protocol, 0, 0]);
    header.extend([GUEST.octets(), to.octets()].concat());
    [&GATEWAY_MAC[..], &GUEST_MAC, &[8, 0], &header, payload].concat()
}

/// Checks a frame of the gateway. Of a TCP segment returns the guest's port, what is expected of it, and what follows.
fn well_formed(frame: &[u8]) -> Option<(u16, (u32, u32))> {
    assert!(frame.starts_with(&[GUEST_MAC, GATEWAY_MAC].concat()));
    let packet = &frame[14..];
    if frame[12..14] == [8, 6] {
        assert_eq!(packet[..8], [0, 1, 8, 0, 6, 4, 0, 2]);
        return None;
    }
    assert_eq!((&frame[12..14], packet[0]), (&[8, 0][..], 0x45));
    assert_eq!(usize::from(u16::from_be_bytes([packet[2], packet[3]])), packet.len());
    assert!(packet.len() <= MTU.into() && packet[16..20] == GUEST.octets());
    assert_eq!(sum(&packet[..20], 0), 0xffff, "the header's checksum");
    let (payload, protocol) = (&packet[20..], packet[9]);
    let pseudo = packet[12..20].chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum::<u32>();
    let pseudo = pseudo + u32::from(protocol) + payload.len() as u32;
    match protocol {
        1 => assert_eq!(sum(payload, 0), 0xffff),
        17 => assert_eq!(sum(payload, pseudo), 0xffff),
        6 => {
            assert_eq!(sum(payload, pseudo), 0xffff);
            let word = |at: usize| u32::from_be_bytes([payload[at], payload[at + 1], payload[at + 2], payload[at + 3]]);
            let header = usize::from(payload[12] >> 4) * 4;
            assert!((20..=payload.len()).contains(&header));
            let flags = payload[13];
            let length = (payload.len() - header) as u32 + u32::from(flags & 1) + u32::from(flags >> 1 & 1);
            let expected = if flags & 0x10 == 0 { 0 } else { word(8) };
            return Some((u16::from_be_bytes([payload[2], payload[3]]), (expected, word(4).wrapping_add(length))));
        }
        other => panic!("the gateway does not speak protocol {other}"),
    }
    None
}

/// The sum of the internet's checksums, over `bytes` and what was summed before.
fn sum(bytes: &[u8], before: u32) -> u32 {
    let pairs = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0)));
    let mut sum = pairs.fold(before, |sum, pair| sum + pair);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum
}

fn seeds() -> Vec<Vec<u8>> {
    const SYN: u8 = 2;
    const ACK: u8 = 0x10;
    const FIN: u8 = 0x11;
    let segment = |place, flags, payload: &[u8]| [&[place, 1, 0, 0, flags], payload].concat();
    let (syn, ack, fin) = (segment(1, SYN, b""), segment(1, ACK, b""), segment(1, FIN, b""));
    let data = segment(1, ACK, b"GET / HTTP/1.1\r\n\r\n");
    let (dialed, refused): (&[u8], &[u8]) = (&[0, 0], &[0, 255]);
    let (speaks, ends): (&[u8], &[u8]) = (&[0, 0, 0, 9, 0, 9], &[0, 1, 9, 0, 0, 9]);
    let datagram = |place, port, payload: &[u8]| [&[place, port, 0, 0], payload].concat();
    let question = datagram(0, 0, b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x07example\x03com\0\0\x01\0\x01");
    let opened =
        [(SEGMENT, &syn[..]), (DIALED, dialed), (DRAINS, b""), (SEGMENT, &ack), (SEGMENT, &data), (SPEAKS, speaks)];
    let closed =
        [(DRAINS, &b""[..]), (SEGMENT, &fin), (SPEAKS, ends), (DRAINS, b""), (SEGMENT, &ack), (TIME, &[255, 255])];
    let refused_syn = segment(3, SYN, b"");
    let asked = segment(0, SYN, b"");
    vec![
        fuzz::script(opened.into_iter().chain(closed)),
        fuzz::script([(SEGMENT, &syn[..]), (SEGMENT, &syn), (DIALED, refused), (SEGMENT, &refused_syn), (DRAINS, b"")]),
        fuzz::script([
            (DATAGRAM, &datagram(1, 3, b"hello")[..]),
            (DATAGRAM, &datagram(3, 3, b"hello")),
            (FROM_OUTSIDE, &[1, 1, 1, 255]),
            (DRAINS, b""),
            (TIME, &[255, 255]),
        ]),
        fuzz::script([(DATAGRAM, &question[..]), (ANSWERS, &[0, 0, 0x80]), (TIME, &[255, 255]), (DRAINS, b"")]),
        fuzz::script([(SEGMENT, &asked[..]), (DRAINS, b""), (SEGMENT, &segment(0, ACK, &question[4..]))]),
        fuzz::script([(FROM_OUTSIDE, &[0, 0, 1][..]), (DRAINS, b""), (FROM_OUTSIDE, &[1, 1, 1, 0, 9]), (SPEAKS, ends)]),
        fuzz::script([
            (RAW, &frame(GATEWAY, 1, b"\x08\0\0\0\0\x01\0\x01ping")[..]),
            (PACKET, &[1, 47, 0, 0, 1]),
            (DRAINS, b""),
        ]),
    ]
}
