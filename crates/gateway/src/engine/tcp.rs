//! The table of TCP flows: which flow a segment belongs to, how many there may be, and which are to be served.
//!
//! A flow has its place before anything is allocated for it, and there are so many places and no more. How many the guest opens in a
//! time is bounded too. A segment of no flow is answered with a reset, whatever it is; only one that opens a connection is a question
//! to the gate.

use std::{
    collections::{HashMap, VecDeque},
    mem,
    net::SocketAddrV4,
    time::Instant,
};

use super::{
    Key, SOON, TcpFlow, Turn,
    connection::{Buffers, Connection},
    conversation,
    flow::Flow,
};
use crate::{
    bucket::{Bucket, Rate},
    config::Limits,
    link::GATEWAY,
    names::Verdict,
    policy::{Protocol, Refusal},
};

/// The port of questions.
pub(crate) const DNS_PORT: u16 = 53;

/// Connections that the guest may open at once, and in a second after that. An installation of packages opens some hundreds. A host
/// keeps the port of each for a minute after its end, and has 28,000 of them to one other end: a guest may use up a third.
const OPENED: Rate = Rate { burst: 4096, each_second: 100 };

/// First of the ports that the gateway itself connects from; they go up to the last.
pub(crate) const FIRST_OWN_PORT: u16 = 49_152;

/// All TCP flows.
#[derive(Debug)]
pub(crate) struct Flows {
    places: Vec<Place>,
    /// When the flow in each place is to be served though nothing happened. Apart from the places, because all are looked at in
    /// every turn.
    dues: Vec<Option<Instant>>,
    by_key: HashMap<Key, TcpFlow>,
    free: Vec<TcpFlow>,
    /// What is to be served, each once.
    listed: VecDeque<TcpFlow>,
    /// What a flow may hold, and one that is wide.
    narrow: Buffers,
    wide: Buffers,
    /// How many flows more may be wide.
    wide_left: u16,
    opened: Bucket,
    next_port: u16,
    next_serial: u64,
}

#[derive(Debug, Default)]
struct Place {
    flow: Option<Flow>,
    /// Its flow is wide.
    is_wide: bool,
}

impl Flows {
    pub(crate) fn new(limits: &Limits, now: Instant) -> Self {
        let flows = limits.tcp_flows;
        let [to_guest, wide] = [limits.flow_buffer_bytes, limits.wide_buffer_bytes]
            .map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX));
        Self {
            places: (0..flows).map(|_| Place::default()).collect(),
            dues: vec![None; flows.into()],
            by_key: HashMap::new(),
            free: (0..flows).rev().map(TcpFlow).collect(),
            listed: VecDeque::with_capacity(flows.into()),
            narrow: Buffers { from_guest: to_guest, to_guest },
            // A guest that is sent more at once loses some of it, and notices after a second.
            wide: Buffers { from_guest: wide, to_guest: to_guest.max(wide / 2) },
            wide_left: limits.wide_flows,
            opened: Bucket::full(OPENED, now),
            next_port: FIRST_OWN_PORT,
            next_serial: 0,
        }
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.by_key.len()
    }

    /// A segment of the guest.
    pub(crate) fn segment(&mut self, packet: &[u8], key: Key, opens: bool, turn: &mut Turn<'_>) {
        if let Some(id) = self.by_key.get(&key).copied() {
            if let Some(flow) = self.flow(id) {
                flow.segment(packet, opens, turn);
            }
            self.list(id);
        } else if !opens {
            turn.counters.strays += 1;
            turn.medium.reset(packet, turn.now);
        } else if let Err(refusal) = self.open(packet, key, turn) {
            turn.counters.refusals.count(refusal);
            turn.medium.reset(packet, turn.now);
        }
    }

    fn open(&mut self, syn: &[u8], key: Key, turn: &mut Turn<'_>) -> Result<(), Refusal> {
        let asks = key.other == SocketAddrV4::new(GATEWAY, DNS_PORT);
        let verdict = if asks { turn.gate.may_ask() } else { turn.gate.permits(key.other, Protocol::Tcp, turn.now) };
        if let Verdict::Refuse(refusal) = verdict {
            return Err(refusal);
        }
        if !asks && !self.opened.take(1, turn.now) {
            return Err(Refusal::FlowRate);
        }
        let id = self.free.pop().ok_or(Refusal::FlowLimit)?;
        let (serial, now) = (self.serial(), turn.now);
        let flow = if asks {
            Flow::asking(key, serial, Connection::accepted(turn.medium, conversation::BUFFERS, key, syn, now), now)
        } else if verdict == Verdict::InspectTls {
            let buffers = self.claim(id);
            Flow::inspecting(key, serial, Connection::accepted(turn.medium, buffers, key, syn, now), now)
        } else if turn.outside.dial(id, key.other) {
            self.claim(id);
            Flow::dialing(key, serial, syn, now)
        } else {
            self.free.push(id);
            turn.counters.unreachable += 1;
            turn.medium.reset(syn, now);
            return Ok(());
        };
        self.put(id, flow);
        Ok(())
    }

    /// A connection from outside to a port of the guest.
    pub(crate) fn accept(&mut self, guest_port: u16, turn: &mut Turn<'_>) -> Result<TcpFlow, Refusal> {
        let id = self.free.pop().ok_or(Refusal::FlowLimit)?;
        let key = self.own_key(guest_port);
        let connection = Connection::opened(turn.medium, self.claim(id), key);
        let serial = self.serial();
        turn.counters.accepted += 1;
        self.put(id, Flow::accepted(key, serial, connection, turn.now));
        Ok(id)
    }

    /// A key from an own port that no flow has. There are more such ports than there can be flows.
    fn own_key(&mut self, guest_port: u16) -> Key {
        loop {
            let key = Key { guest_port, other: SocketAddrV4::new(GATEWAY, self.next_port) };
            self.next_port = self.next_port.checked_add(1).unwrap_or(FIRST_OWN_PORT);
            if !self.by_key.contains_key(&key) {
                return key;
            }
        }
    }

    /// Makes the flow that takes this place a wide one, if there may be one more. Returns what it may hold.
    fn claim(&mut self, id: TcpFlow) -> Buffers {
        if let Some(place) = self.places.get_mut(usize::from(id.0))
            && let Some(left) = self.wide_left.checked_sub(1)
        {
            (self.wide_left, place.is_wide) = (left, true);
        }
        self.buffers(id)
    }

    /// What the flow in this place may hold.
    fn buffers(&self, id: TcpFlow) -> Buffers {
        let is_wide = self.places.get(usize::from(id.0)).is_some_and(|place| place.is_wide);
        if is_wide { self.wide } else { self.narrow }
    }

    fn serial(&mut self) -> u64 {
        self.next_serial += 1;
        self.next_serial
    }

    fn put(&mut self, id: TcpFlow, flow: Flow) {
        self.by_key.insert(flow.key, id);
        if let Some(place) = self.places.get_mut(usize::from(id.0)) {
            place.flow = Some(flow);
        }
        self.list(id);
    }

    fn flow(&mut self, id: TcpFlow) -> Option<&mut Flow> {
        self.places.get_mut(usize::from(id.0))?.flow.as_mut()
    }

    fn list(&mut self, id: TcpFlow) {
        if let Some(flow) = self.flow(id)
            && !flow.is_listed
        {
            flow.is_listed = true;
            self.listed.push_back(id);
        }
    }

    /// The socket outside is connected, or will never be.
    pub(crate) fn dialed(&mut self, id: TcpFlow, is_connected: bool, turn: &mut Turn<'_>) {
        let buffers = self.buffers(id);
        if let Some(flow) = self.flow(id) {
            flow.dialed(id, is_connected, buffers, turn);
        }
        self.list(id);
    }

    /// The socket outside can be read or written again.
    pub(crate) fn ready(&mut self, id: TcpFlow, is_readable: bool, is_writable: bool) {
        if let Some(flow) = self.flow(id) {
            flow.ready(is_readable, is_writable);
        }
        self.list(id);
    }

    /// An answer for a flow that asked, if it is still there.
    pub(crate) fn answer(&mut self, id: TcpFlow, serial: u64, answer: &[u8]) {
        if let Some(flow) = self.flow(id).filter(|flow| flow.serial == serial) {
            flow.answer(answer);
            self.list(id);
        }
    }

    /// Whether there is something to be served.
    pub(crate) fn are_listed(&self) -> bool {
        !self.listed.is_empty()
    }

    /// Serves what is listed while there is room for frames. What then could not send everything is listed again.
    pub(crate) fn serve(&mut self, turn: &mut Turn<'_>) {
        for _ in 0..self.listed.len() {
            if !turn.medium.out.has_room() {
                return;
            }
            let Some(id) = self.listed.pop_front() else { return };
            let number = usize::from(id.0);
            let Some((place, due)) = self.places.get_mut(number).zip(self.dues.get_mut(number)) else { continue };
            let Some(flow) = &mut place.flow else { continue };
            flow.is_listed = false;
            // A flow that is served cannot be due at once again: nothing changes until something happens.
            *due = flow.serve(id, turn).map(|due| due.max(turn.now + SOON));
            if due.is_none() {
                self.by_key.remove(&flow.key);
                place.flow = None;
                self.wide_left += u16::from(mem::take(&mut place.is_wide));
                self.free.push(id);
            } else if !turn.medium.out.has_room() {
                self.list(id);
            }
        }
    }

    /// Lists what is due.
    pub(crate) fn expire(&mut self, now: Instant) {
        for number in 0..self.dues.len() {
            let is_due = self.dues.get(number).is_some_and(|due| due.is_some_and(|due| due <= now));
            if let Some(id) = u16::try_from(number).ok().filter(|_| is_due) {
                self.list(TcpFlow(id));
            }
        }
    }

    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.dues.iter().copied().flatten().min()
    }
}
