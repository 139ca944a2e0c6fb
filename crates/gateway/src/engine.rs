//! The engine: frames of the guest in, frames for the guest out, and what is wanted of the world outside.
//!
//! It has no clock and no socket. Time is an argument; the world outside is an [`Outside`], which is asked to dial, to take bytes and
//! to give bytes, and answers at once. Nothing is queued in between: what cannot be moved stays where it is, in buffers of fixed
//! size, and TCP tells the guest. What may be reached is decided by the [`Gate`] alone.
//!
//! Every frame is hostile. Tables have fixed sizes, a place is taken before anything is allocated, and everything that is not
//! carried is counted under a name.

use std::{
    net::{SocketAddr, SocketAddrV4},
    time::{Duration, Instant},
};

use crate::{
    config::Limits,
    dns::{Action, Transport},
    ip::{self, Content, Packet},
    link::{self, Frame, GATEWAY},
    policy::Refusal,
    report::Counters,
    stream::Outgoing,
};

mod connection;
mod conversation;
mod flow;
mod gate;
mod medium;
mod questions;
mod tcp;
mod udp;

pub use gate::Gate;

use self::{
    medium::Medium,
    questions::{Asker, Questions},
};

/// How long something waits at least that is due but could not be done. It bounds what a mistake costs: a turn a millisecond.
const SOON: Duration = Duration::from_millis(1);

/// What a resolver says that has failed, does not do this, or does not want to.
const SERVFAIL: u8 = 2;
const NOTIMP: u8 = 4;
const REFUSED: u8 = 5;

/// A TCP flow: its place in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TcpFlow(pub u16);

/// A UDP flow of the guest: its place in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct UdpFlow(pub u16);

/// A question to a resolver of the host: its place in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Question(pub u16);

/// Who is asked, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Upstream {
    /// Which of the host's resolvers.
    pub resolver: usize,
    /// Over TCP, with a length before the message.
    pub over_tcp: bool,
}

/// What became of an attempt to move bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moved {
    /// So many bytes were moved. Never zero.
    Bytes(usize),
    /// Nothing now. [`Engine::ready`] says when it is worth to try again.
    Later,
    /// There will be nothing more.
    End,
    /// The socket is of no use any more.
    Gone,
}

impl Moved {
    pub(crate) fn bytes(self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Later | Self::End | Self::Gone => 0,
        }
    }
}

/// How a socket outside is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Everything was said in both directions.
    Orderly,
    /// It was not: the other end is to know it.
    Reset,
}

/// The world outside, as far as the engine needs it. No method waits.
pub trait Outside {
    /// Begins to connect. [`Engine::dialed`] says how it went. `false` if it could not even begin; the flow is then not known outside.
    fn dial(&mut self, flow: TcpFlow, to: SocketAddrV4) -> bool;
    /// Takes bytes of the guest.
    fn write(&mut self, flow: TcpFlow, bytes: &[u8]) -> Moved;
    /// Gives bytes to the guest.
    fn read(&mut self, flow: TcpFlow, room: &mut [u8]) -> Moved;
    /// The guest sends nothing more.
    fn shut(&mut self, flow: TcpFlow);
    /// The flow is over. Called once for each flow that was dialed or accepted.
    fn close(&mut self, flow: TcpFlow, end: End);
    /// Opens a socket for datagrams to and from one address. `false` if that cannot be.
    fn open_udp(&mut self, flow: UdpFlow, to: SocketAddrV4) -> bool;
    /// Sends a datagram, or loses it.
    fn send_udp(&mut self, flow: UdpFlow, payload: &[u8]);
    /// The flow is over.
    fn close_udp(&mut self, flow: UdpFlow);
    /// Sends a datagram from an exposed port, or loses it.
    fn answer_udp(&mut self, guest_port: u16, to: SocketAddr, payload: &[u8]);
    /// Asks a resolver of the host. [`Engine::answered`] brings the answer, [`Engine::unanswered`] says that there will be none. `false`
    /// if it cannot be asked.
    fn ask(&mut self, question: Question, upstream: Upstream, message: &[u8]) -> bool;
    /// Nobody waits for an answer any more.
    fn forget(&mut self, question: Question);
}

/// Which connection a packet belongs to. The guest's address is always the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    guest_port: u16,
    other: SocketAddrV4,
}

/// What everything in the engine works with during one call.
struct Turn<'a> {
    medium: &'a mut Medium,
    gate: &'a mut Gate,
    questions: &'a mut Questions,
    counters: &'a mut Counters,
    outside: &'a mut dyn Outside,
    now: Instant,
}

/// The engine.
#[derive(Debug)]
pub struct Engine {
    medium: Medium,
    gate: Gate,
    questions: Questions,
    counters: Counters,
    tcp: tcp::Flows,
    udp: udp::Flows,
}

/// What an engine is made of.
#[derive(Debug)]
pub struct Parts {
    /// What may be reached.
    pub gate: Gate,
    /// Largest packet of the link, between [`link::MIN_MTU`] and [`link::MAX_MTU`].
    pub mtu: u16,
    /// What may be held.
    pub limits: Limits,
    /// How many resolvers the host has.
    pub resolvers: usize,
    /// Makes sequence numbers that nobody foresees.
    pub seed: u64,
}

impl Engine {
    /// An engine that starts now.
    #[must_use]
    pub fn new(parts: Parts, now: Instant) -> Self {
        let Parts { gate, mtu, limits, resolvers, seed } = parts;
        Self {
            medium: Medium::new(mtu.clamp(link::MIN_MTU, link::MAX_MTU).into(), seed, now),
            gate,
            questions: Questions::new(resolvers),
            counters: Counters::default(),
            tcp: tcp::Flows::new(&limits, now),
            udp: udp::Flows::new(limits.udp_flows),
        }
    }

    fn turn<'a>(
        &'a mut self,
        outside: &'a mut dyn Outside,
        now: Instant,
    ) -> (&'a mut tcp::Flows, &'a mut udp::Flows, Turn<'a>) {
        let Self { medium, gate, questions, counters, tcp, udp } = self;
        (tcp, udp, Turn { medium, gate, questions, counters, outside, now })
    }

    /// What has been counted.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// How many flows there are: TCP and UDP.
    #[must_use]
    pub fn flows(&self) -> (usize, usize) {
        (self.tcp.count(), self.udp.count())
    }

    /// What goes to QEMU.
    pub fn outgoing(&mut self) -> &mut Outgoing {
        &mut self.medium.out
    }

    /// Whether a frame's answer has room. A frame that is received without may cost the guest a second attempt.
    #[must_use]
    pub fn can_receive(&self) -> bool {
        self.medium.out.has_room_to_answer()
    }

    /// Whether [`serve`](Self::serve) would do something now.
    #[must_use]
    pub fn wants_service(&self) -> bool {
        self.tcp.are_listed() && self.medium.out.has_room()
    }

    /// When [`expire`](Self::expire) has something to do though nothing happens.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        // Connections that are due and have no room are served when there is some, which is an event.
        let tcp = self.tcp.next_deadline().filter(|_| self.medium.out.has_room());
        let deadlines = [tcp, self.udp.next_deadline(), self.questions.next_deadline()];
        deadlines.into_iter().flatten().min()
    }

    /// A frame of the guest, without its length. Connections move when they are [served](Self::serve), once after many frames.
    pub fn receive(&mut self, frame: &[u8], outside: &mut dyn Outside, now: Instant) {
        let packet = match link::read(frame) {
            Ok(Frame::Ipv4(packet)) => ip::read(packet),
            Ok(Frame::WhoIsGateway) => return self.add(|medium| medium.out.add_frame(&link::arp_answer())),
            Ok(Frame::OtherArp) => return,
            Ok(Frame::Ipv6) => return self.counters.refusals.count(Refusal::Ipv6Refused),
            Err(malformed) => Err(malformed),
        };
        match packet {
            Ok(packet) => self.packet(&packet, outside, now),
            Err(malformed) => self.counters.malformed(malformed),
        }
    }

    fn packet(&mut self, packet: &Packet<'_>, outside: &mut dyn Outside, now: Instant) {
        match packet.content {
            Content::Tcp { guest_port, port, opens } => {
                let key = Key { guest_port, other: SocketAddrV4::new(packet.to, port) };
                let (tcp, _, mut turn) = self.turn(outside, now);
                tcp.segment(packet.bytes, key, opens, &mut turn);
            }
            Content::Udp { guest_port, port: tcp::DNS_PORT, payload } if packet.to == GATEWAY => {
                self.question(guest_port, payload, outside, now);
            }
            Content::Udp { guest_port, port, payload } => {
                let key = Key { guest_port, other: SocketAddrV4::new(packet.to, port) };
                let (_, udp, mut turn) = self.turn(outside, now);
                if let Err(refusal) = udp.datagram(key, payload, &mut turn) {
                    self.counters.refusals.count(refusal);
                    self.add(|medium| ip::add_port_unreachable(&mut medium.out, medium.mtu, packet));
                }
            }
            Content::Echo(request) if packet.to == GATEWAY => {
                self.add(|medium| ip::add_echo_reply(&mut medium.out, medium.mtu, request));
            }
            // Nobody asked: it answers what came too late or to a port where nobody is, which is no wish of a program's.
            Content::Error => self.counters.strays += 1,
            Content::Echo(_) | Content::Other => self.counters.refusals.count(Refusal::ProtocolRefused),
            Content::Fragment => self.counters.refusals.count(Refusal::Fragment),
        }
    }

    fn add(&mut self, add: impl FnOnce(&mut Medium) -> Option<()>) {
        if add(&mut self.medium).is_none() {
            self.counters.lost += 1;
        }
    }

    fn question(&mut self, guest_port: u16, message: &[u8], outside: &mut dyn Outside, now: Instant) {
        let (_, _, mut turn) = self.turn(outside, now);
        match turn.query(message, Transport::Udp) {
            Action::Answer(answer) => self.answer_datagram(guest_port, &answer),
            Action::Forward { key, message } => {
                if !turn.ask(key, message, Asker::Datagram { guest_port }) {
                    self.give_up(key, Asker::Datagram { guest_port });
                }
            }
            Action::Ignore => {}
        }
    }

    fn answer_datagram(&mut self, guest_port: u16, answer: &[u8]) {
        let from = SocketAddrV4::new(GATEWAY, tcp::DNS_PORT);
        self.add(|medium| ip::add_udp(&mut medium.out, medium.mtu, from, guest_port, answer));
    }

    fn answer(&mut self, asker: Asker, answer: &[u8]) {
        match asker {
            Asker::Datagram { .. } if answer.is_empty() => {}
            Asker::Datagram { guest_port } => self.answer_datagram(guest_port, answer),
            Asker::Stream { flow, serial } => self.tcp.answer(flow, serial, answer),
        }
    }

    /// Nobody answers the question: the guest is told so, if the gate has words for it.
    fn give_up(&mut self, key: u64, asker: Asker) {
        let answer = self.gate.give_up(key).unwrap_or_default();
        self.answer(asker, &answer);
    }

    /// What a resolver said.
    pub fn answered(&mut self, question: Question, answer: &[u8], outside: &mut dyn Outside, now: Instant) {
        let Some(key) = self.questions.key(question) else { return };
        // The fourth byte's low half says what came of it. An error of this resolver is not one of the next.
        let has_failed = answer.get(3).is_some_and(|flags| matches!(flags & 15, SERVFAIL | NOTIMP | REFUSED));
        if has_failed && self.questions.ask_another(outside, question, now) {
            return;
        }
        // The third byte's second bit says that the answer was cut short.
        let is_cut = answer.get(2).is_some_and(|flags| flags & 2 != 0);
        if is_cut && self.questions.ask_over_tcp(outside, question, now) {
            return;
        }
        // What is no answer to the question leaves it open: the real one may still come.
        let refusals = &mut self.counters.refusals;
        let Some(answer) = self.gate.upstream(key, answer, refusals, now) else { return };
        if let Some(ended) = self.questions.end(outside, question) {
            self.answer(ended.asker, &answer);
        }
    }

    /// The resolver that was asked last will not answer.
    pub fn unanswered(&mut self, question: Question, outside: &mut dyn Outside, now: Instant) {
        if !self.questions.ask_another(outside, question, now) {
            outside.forget(question);
        }
    }

    /// The socket to an address that the guest dialed is connected, or will never be.
    pub fn dialed(&mut self, flow: TcpFlow, is_connected: bool, outside: &mut dyn Outside, now: Instant) {
        let (tcp, _, mut turn) = self.turn(outside, now);
        tcp.dialed(flow, is_connected, &mut turn);
    }

    /// The socket of a flow can be read or written again.
    pub fn ready(&mut self, flow: TcpFlow, is_readable: bool, is_writable: bool) {
        self.tcp.ready(flow, is_readable, is_writable);
    }

    /// A connection from outside to an exposed port of the guest.
    ///
    /// # Errors
    /// The name under which it was refused and counted.
    pub fn accept(&mut self, guest_port: u16, outside: &mut dyn Outside, now: Instant) -> Result<TcpFlow, Refusal> {
        let (tcp, _, mut turn) = self.turn(outside, now);
        let accepted = tcp.accept(guest_port, &mut turn);
        accepted.inspect_err(|refusal| self.counters.refusals.count(*refusal))
    }

    /// A datagram for a UDP flow of the guest.
    pub fn arrived(&mut self, flow: UdpFlow, payload: &[u8], outside: &mut dyn Outside, now: Instant) {
        let (_, udp, mut turn) = self.turn(outside, now);
        udp.arrived(flow, payload, &mut turn);
    }

    /// Nobody takes datagrams where a UDP flow goes: the guest is told, and its next datagram is a new flow's.
    pub fn udp_refused(&mut self, flow: UdpFlow, outside: &mut dyn Outside, now: Instant) {
        let (_, udp, mut turn) = self.turn(outside, now);
        udp.refused(flow, &mut turn);
    }

    /// The socket of a UDP flow is of no use any more.
    pub fn udp_gone(&mut self, flow: UdpFlow, outside: &mut dyn Outside, now: Instant) {
        let (_, udp, mut turn) = self.turn(outside, now);
        udp.gone(flow, &mut turn);
    }

    /// A datagram of somebody outside for an exposed port of the guest.
    pub fn exposed(
        &mut self,
        guest_port: u16,
        peer: SocketAddr,
        payload: &[u8],
        outside: &mut dyn Outside,
        now: Instant,
    ) {
        let (_, udp, mut turn) = self.turn(outside, now);
        if let Err(refusal) = udp.exposed(guest_port, peer, payload, &mut turn) {
            self.counters.refusals.count(refusal);
        }
    }

    /// Moves bytes of every connection that something happened to, while there is room for frames.
    pub fn serve(&mut self, outside: &mut dyn Outside, now: Instant) {
        let (tcp, _, mut turn) = self.turn(outside, now);
        tcp.serve(&mut turn);
    }

    /// Ends and repeats what is due. Connections that are due are served next.
    pub fn expire(&mut self, outside: &mut dyn Outside, now: Instant) {
        while let Some(question) = self.questions.expire(outside, now) {
            if let Some(ended) = self.questions.end(outside, question) {
                self.give_up(ended.key, ended.asker);
            }
        }
        let (tcp, udp, mut turn) = self.turn(outside, now);
        tcp.expire(now);
        udp.expire(&mut turn);
    }
}

impl Turn<'_> {
    fn query(&mut self, message: &[u8], transport: Transport) -> Action {
        self.counters.questions += 1;
        self.gate.query(message, transport, &mut self.counters.refusals, self.now)
    }

    /// Asks a resolver of the host. `false` if nobody can be asked.
    fn ask(&mut self, key: u64, message: Vec<u8>, asker: Asker) -> bool {
        self.questions.ask(self.outside, key, message, asker, self.now)
    }
}
