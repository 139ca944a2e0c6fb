//! A world in memory: the engine, a guest, what is outside, and a link between that loses, repeats and reorders frames.
//!
//! Time is virtual: it goes on when nothing moves, to the next thing that is due. Chance comes from a seed.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    time::{Duration, Instant},
};

use exec_sandbox_gateway::{
    config::Limits,
    engine::{End, Engine, Gate, Moved, Outside, Parts, Question, TcpFlow, UdpFlow, Upstream},
    policy::Refusal,
    stream::Incoming,
};

use super::guest::Guest;

/// An address that everything is behind.
pub(crate) const SERVER: Ipv4Addr = Ipv4Addr::new(93, 184, 215, 14);

/// Longest time that a world may take to come to rest, in virtual time.
const PATIENCE: Duration = Duration::from_secs(7200);

/// What the link does to frames, in percent, in both directions.
#[derive(Clone, Copy, Default)]
pub(crate) struct Link {
    pub(crate) loses: u64,
    pub(crate) repeats: u64,
    pub(crate) reorders: u64,
}

/// A socket outside.
#[derive(Default)]
pub(crate) struct Host {
    /// What it will say.
    pub(crate) says: VecDeque<u8>,
    /// It ends its side when it has said everything.
    pub(crate) ends: bool,
    /// It breaks when it is next read or written.
    pub(crate) is_broken: bool,
    /// What it was told.
    pub(crate) heard: Vec<u8>,
    /// How much more it takes. `None` is everything.
    pub(crate) takes: Option<usize>,
    pub(crate) is_shut: bool,
    pub(crate) closed: Option<End>,
}

/// What is outside.
#[derive(Default)]
pub(crate) struct World {
    /// Who answers, and what a connection is then like. Others refuse.
    pub(crate) servers: HashMap<SocketAddrV4, fn() -> Host>,
    /// Nobody hears of a connection.
    pub(crate) is_silent: bool,
    pub(crate) hosts: BTreeMap<u16, Host>,
    /// Sockets that were closed, in their order.
    pub(crate) closed: Vec<Host>,
    dialed: Vec<(TcpFlow, SocketAddrV4)>,
    pub(crate) dials: usize,
    pub(crate) udp: BTreeMap<u16, (SocketAddrV4, Vec<Vec<u8>>)>,
    pub(crate) udp_closed: usize,
    pub(crate) answers: Vec<(u16, SocketAddr, Vec<u8>)>,
    pub(crate) questions: Vec<(Question, Upstream, Vec<u8>)>,
    pub(crate) forgotten: HashSet<u16>,
    /// A resolver that cannot be asked.
    pub(crate) no_resolver: Option<usize>,
}

impl Outside for World {
    fn dial(&mut self, flow: TcpFlow, to: SocketAddrV4) -> bool {
        self.dials += 1;
        let taken = self.hosts.insert(flow.0, Host::default());
        assert!(taken.is_none(), "a flow that is open is not dialed again");
        self.dialed.push((flow, to));
        true
    }

    fn write(&mut self, flow: TcpFlow, bytes: &[u8]) -> Moved {
        let host = self.hosts.get_mut(&flow.0).expect("it is open");
        assert!(!host.is_shut && !bytes.is_empty());
        if host.is_broken {
            return Moved::Gone;
        }
        let taken = bytes.len().min(host.takes.unwrap_or(usize::MAX));
        host.takes = host.takes.map(|left| left - taken);
        host.heard.extend_from_slice(&bytes[..taken]);
        if taken == 0 { Moved::Later } else { Moved::Bytes(taken) }
    }

    fn read(&mut self, flow: TcpFlow, room: &mut [u8]) -> Moved {
        let host = self.hosts.get_mut(&flow.0).expect("it is open");
        assert!(!room.is_empty());
        if host.is_broken {
            return Moved::Gone;
        }
        let given = room.len().min(host.says.len());
        for (to, from) in room.iter_mut().zip(host.says.drain(..given)) {
            *to = from;
        }
        match given {
            0 if host.ends => Moved::End,
            0 => Moved::Later,
            _ => Moved::Bytes(given),
        }
    }

    fn shut(&mut self, flow: TcpFlow) {
        let host = self.hosts.get_mut(&flow.0).expect("it is open");
        assert!(!host.is_shut, "it is shut once");
        host.is_shut = true;
    }

    fn close(&mut self, flow: TcpFlow, end: End) {
        let mut host = self.hosts.remove(&flow.0).expect("it is closed once");
        host.closed = Some(end);
        self.dialed.retain(|(dialed, _)| *dialed != flow);
        self.closed.push(host);
    }

    fn open_udp(&mut self, flow: UdpFlow, to: SocketAddrV4) -> bool {
        assert!(self.udp.insert(flow.0, (to, Vec::new())).is_none());
        true
    }

    fn send_udp(&mut self, flow: UdpFlow, payload: &[u8]) {
        self.udp.get_mut(&flow.0).expect("it is open").1.push(payload.to_vec());
    }

    fn close_udp(&mut self, flow: UdpFlow) {
        self.udp.remove(&flow.0).expect("it is open");
        self.udp_closed += 1;
    }

    fn answer_udp(&mut self, guest_port: u16, to: SocketAddr, payload: &[u8]) {
        self.answers.push((guest_port, to, payload.to_vec()));
    }

    fn ask(&mut self, question: Question, upstream: Upstream, message: &[u8]) -> bool {
        self.questions.push((question, upstream, message.to_vec()));
        self.no_resolver != Some(upstream.resolver)
    }

    fn forget(&mut self, question: Question) {
        self.forgotten.insert(question.0);
    }
}

/// Everything.
pub(crate) struct Netsim {
    pub(crate) engine: Engine,
    pub(crate) guest: Guest,
    pub(crate) world: World,
    pub(crate) now: Instant,
    link: Link,
    chance: u64,
    late: [Option<Vec<u8>>; 2],
    /// When the test itself has something to do.
    wake: Option<Instant>,
}

impl Netsim {
    pub(crate) fn new(gate: Gate) -> Self {
        Self::with(gate, Limits::default(), 65_520, Link::default())
    }

    pub(crate) fn with(gate: Gate, limits: Limits, mtu: u16, link: Link) -> Self {
        let now = Instant::now();
        let parts = Parts { gate, mtu, limits, resolvers: 2, seed: 5 };
        Self {
            engine: Engine::new(parts, now),
            guest: Guest::new(mtu.into(), now),
            world: World::default(),
            now,
            link,
            chance: 0x9e37_79b9_7f4a_7c15,
            late: [None, None],
            wake: None,
        }
    }

    /// A server at a port of [`SERVER`].
    pub(crate) fn server(&mut self, port: u16, host: fn() -> Host) -> SocketAddrV4 {
        let at = SocketAddrV4::new(SERVER, port);
        self.world.servers.insert(at, host);
        at
    }

    fn percent(&mut self) -> u64 {
        // xorshift64.
        self.chance ^= self.chance << 13;
        self.chance ^= self.chance >> 7;
        self.chance ^= self.chance << 17;
        self.chance % 100
    }

    /// What the link makes of frames of one direction.
    fn through(&mut self, direction: usize, frames: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
        let mut out = Vec::new();
        for frame in frames {
            if self.percent() < self.link.loses {
                continue;
            }
            if self.percent() < self.link.repeats {
                out.push(frame.clone());
            }
            if self.percent() < self.link.reorders && self.late[direction].is_none() {
                self.late[direction] = Some(frame);
                continue;
            }
            out.push(frame);
            out.extend(self.late[direction].take());
        }
        out
    }

    /// Frames of the engine, out of its stream.
    pub(crate) fn frames_out(&mut self) -> Vec<Vec<u8>> {
        let mut incoming = Incoming::default();
        let mut frames = Vec::new();
        loop {
            let out = self.engine.outgoing();
            let room = incoming.room();
            let taken = room.len().min(out.bytes().len());
            if taken == 0 {
                return frames;
            }
            room[..taken].copy_from_slice(&out.bytes()[..taken]);
            out.written(taken);
            incoming.filled(taken);
            while let Some(frame) = incoming.next_frame().expect("it is framed") {
                frames.push(frame.to_vec());
            }
        }
    }

    /// Gives the engine frames.
    pub(crate) fn inject(&mut self, frame: &[u8]) {
        self.engine.receive(frame, &mut self.world, self.now);
        self.engine.serve(&mut self.world, self.now);
    }

    /// One round: the outside, the engine, the guest. Returns whether a frame moved.
    pub(crate) fn step(&mut self) -> bool {
        for (flow, to) in std::mem::take(&mut self.world.dialed) {
            if self.world.is_silent {
                self.world.dialed.push((flow, to));
                continue;
            }
            let host = self.world.servers.get(&to).map(|host| host());
            let is_connected = host.is_some();
            if let Some(host) = host {
                self.world.hosts.insert(flow.0, host);
            }
            self.engine.dialed(flow, is_connected, &mut self.world, self.now);
        }
        for flow in self.world.hosts.keys().copied().collect::<Vec<_>>() {
            self.engine.ready(TcpFlow(flow), true, true);
        }
        self.engine.serve(&mut self.world, self.now);
        let frames = self.frames_out();
        let frames = self.through(0, frames);
        let mut moved = !frames.is_empty();
        for frame in frames {
            self.guest.receive(&frame);
        }
        let frames = self.guest.poll(self.now);
        let frames = self.through(1, frames);
        moved |= !frames.is_empty();
        for frame in frames {
            self.engine.receive(&frame, &mut self.world, self.now);
        }
        self.engine.serve(&mut self.world, self.now);
        moved
    }

    /// One round in which no frame of the engine arrives, and the time after it.
    pub(crate) fn step_without_guest(&mut self) {
        for (flow, to) in std::mem::take(&mut self.world.dialed) {
            let is_connected = self.world.servers.contains_key(&to);
            self.engine.dialed(flow, is_connected, &mut self.world, self.now);
        }
        self.engine.serve(&mut self.world, self.now);
        self.frames_out();
        self.now = self.engine.next_deadline().unwrap_or(self.now + Duration::from_secs(1)).max(self.now);
        self.engine.expire(&mut self.world, self.now);
    }

    /// Goes on until `done`. Time goes on when nothing moves.
    pub(crate) fn until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let end = self.now + PATIENCE;
        while !done(self) {
            assert!(self.now < end, "{what}: not within {PATIENCE:?}, {:?}", self.engine.counters());
            if !self.step() {
                let due = [self.engine.next_deadline(), self.guest.next_deadline(self.now)];
                let next = due.into_iter().flatten().chain(self.wake).min();
                let soonest = self.now + Duration::from_micros(1);
                self.now = next.unwrap_or(self.now + Duration::from_secs(1)).max(soonest);
                self.engine.expire(&mut self.world, self.now);
            }
        }
    }

    /// Lets so much time pass, in steps that nobody sleeps through.
    pub(crate) fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        self.wake = Some(end);
        self.until("time passes", |sim| sim.now >= end);
        self.wake = None;
    }

    pub(crate) fn refused(&self, refusal: Refusal) -> u64 {
        self.engine.counters().refusals.get(refusal)
    }
}
