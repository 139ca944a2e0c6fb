//! UDP flows: a port of the guest and one other end, until nobody has said anything for a while, or another flow needs the place.
//!
//! Owns the table and its bound. Datagrams pass through and are held nowhere: one that finds no room is lost, and counted.

use std::{
    collections::HashMap,
    net::{SocketAddr, SocketAddrV4},
    time::{Duration, Instant},
};

use super::{Key, Medium, Turn, UdpFlow, tcp::FIRST_OWN_PORT};
use crate::{
    ip,
    link::GATEWAY,
    names::Verdict,
    policy::{Protocol, Refusal},
};

/// How long a flow stays though nothing passes. Programs that keep one open say something at least this often.
const IDLE_LIMIT: Duration = Duration::from_secs(60);

/// How long a flow was silent at least when another one takes its place because there is no other. Programs that ask one question
/// from each port leave such flows behind, and a flood does not end at once what is in use.
const SPARED: Duration = Duration::from_secs(1);

/// Who the other end is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Peer {
    /// A socket outside, that is connected to it.
    Outside,
    /// Somebody who speaks to an exposed port.
    Exposed(SocketAddr),
}

#[derive(Debug)]
struct Flow {
    key: Key,
    peer: Peer,
    /// When something passed last.
    at: Instant,
}

/// All UDP flows.
#[derive(Debug)]
pub(crate) struct Flows {
    places: Vec<Option<Flow>>,
    by_key: HashMap<Key, UdpFlow>,
    by_peer: HashMap<(u16, SocketAddr), UdpFlow>,
    free: Vec<UdpFlow>,
    next_port: u16,
}

impl Flows {
    pub(crate) fn new(flows: u16) -> Self {
        Self {
            places: (0..flows).map(|_| None).collect(),
            by_key: HashMap::new(),
            by_peer: HashMap::new(),
            free: (0..flows).rev().map(UdpFlow).collect(),
            next_port: FIRST_OWN_PORT,
        }
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.by_key.len()
    }

    /// A datagram of the guest.
    ///
    /// # Errors
    /// Why it goes nowhere.
    pub(crate) fn datagram(&mut self, key: Key, payload: &[u8], turn: &mut Turn<'_>) -> Result<(), Refusal> {
        let id = match self.by_key.get(&key) {
            Some(id) => *id,
            None => match turn.gate.permits(key.other, Protocol::Udp, turn.now) {
                Verdict::Allow => {
                    let id = self.place(turn)?;
                    if !turn.outside.open_udp(id, key.other) {
                        self.free.push(id);
                        nobody_there(key, turn);
                        return Ok(());
                    }
                    self.put(id, Flow { key, peer: Peer::Outside, at: turn.now })
                }
                Verdict::InspectTls => return Err(Refusal::ProtocolRefused),
                Verdict::Refuse(refusal) => return Err(refusal),
            },
        };
        let Some(flow) = self.flow(id) else { return Ok(()) };
        flow.at = turn.now;
        match flow.peer {
            Peer::Outside => turn.outside.send_udp(id, payload),
            Peer::Exposed(peer) => turn.outside.answer_udp(key.guest_port, peer, payload),
        }
        turn.counters.bytes_from_guest += u64::try_from(payload.len()).unwrap_or(0);
        Ok(())
    }

    /// A datagram for a flow of the guest.
    pub(crate) fn arrived(&mut self, id: UdpFlow, payload: &[u8], turn: &mut Turn<'_>) {
        let Some(flow) = self.flow(id) else { return };
        flow.at = turn.now;
        to_guest(flow.key, payload, turn);
    }

    /// A datagram of `peer` for an exposed port of the guest.
    ///
    /// # Errors
    /// Why it goes nowhere.
    pub(crate) fn exposed(
        &mut self,
        guest_port: u16,
        peer: SocketAddr,
        payload: &[u8],
        turn: &mut Turn<'_>,
    ) -> Result<(), Refusal> {
        let id = match self.by_peer.get(&(guest_port, peer)) {
            Some(id) => *id,
            None => {
                let id = self.place(turn)?;
                let key = self.own_key(guest_port);
                self.by_peer.insert((guest_port, peer), id);
                self.put(id, Flow { key, peer: Peer::Exposed(peer), at: turn.now })
            }
        };
        self.arrived(id, payload, turn);
        Ok(())
    }

    /// A free place, or that of the flow that was silent for longest, which ends then.
    fn place(&mut self, turn: &mut Turn<'_>) -> Result<UdpFlow, Refusal> {
        if self.free.is_empty() {
            let flows = (0..).zip(&self.places).filter_map(|(number, place)| Some((place.as_ref()?.at, number)));
            if let Some((_, number)) = flows.min().filter(|(at, _)| *at + SPARED <= turn.now) {
                self.gone(UdpFlow(number), turn);
            }
        }
        self.free.pop().ok_or(Refusal::FlowLimit)
    }

    fn own_key(&mut self, guest_port: u16) -> Key {
        loop {
            let key = Key { guest_port, other: SocketAddrV4::new(GATEWAY, self.next_port) };
            self.next_port = self.next_port.checked_add(1).unwrap_or(FIRST_OWN_PORT);
            if !self.by_key.contains_key(&key) {
                return key;
            }
        }
    }

    fn put(&mut self, id: UdpFlow, flow: Flow) -> UdpFlow {
        self.by_key.insert(flow.key, id);
        if let Some(place) = self.places.get_mut(usize::from(id.0)) {
            *place = Some(flow);
        }
        id
    }

    fn flow(&mut self, id: UdpFlow) -> Option<&mut Flow> {
        self.places.get_mut(usize::from(id.0))?.as_mut()
    }

    /// Nobody outside takes datagrams there, as the other end's host has said.
    pub(crate) fn refused(&mut self, id: UdpFlow, turn: &mut Turn<'_>) {
        if let Some(flow) = self.flow(id) {
            nobody_there(flow.key, turn);
        }
        self.gone(id, turn);
    }

    /// The socket outside is of no use any more.
    pub(crate) fn gone(&mut self, id: UdpFlow, turn: &mut Turn<'_>) {
        let Some(flow) = self.places.get_mut(usize::from(id.0)).and_then(Option::take) else { return };
        self.by_key.remove(&flow.key);
        match flow.peer {
            Peer::Outside => turn.outside.close_udp(id),
            Peer::Exposed(peer) => drop(self.by_peer.remove(&(flow.key.guest_port, peer))),
        }
        self.free.push(id);
    }

    /// Ends what was silent for too long.
    pub(crate) fn expire(&mut self, turn: &mut Turn<'_>) {
        for number in 0..self.places.len() {
            let is_idle = |flow: &Flow| flow.at + IDLE_LIMIT <= turn.now;
            let Some(Some(flow)) = self.places.get(number) else { continue };
            if let Some(id) = u16::try_from(number).ok().filter(|_| is_idle(flow)) {
                self.gone(UdpFlow(id), turn);
            }
        }
    }

    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.places.iter().flatten().map(|flow| flow.at + IDLE_LIMIT).min()
    }
}

fn to_guest(key: Key, payload: &[u8], turn: &mut Turn<'_>) {
    match ip::add_udp(&mut turn.medium.out, turn.medium.mtu, key.other, key.guest_port, payload) {
        Some(()) => turn.counters.bytes_to_guest += u64::try_from(payload.len()).unwrap_or(0),
        None => turn.counters.lost += 1,
    }
}

/// The program in the guest hears of it as it would without a gateway.
fn nobody_there(key: Key, turn: &mut Turn<'_>) {
    turn.counters.unreachable += 1;
    let Medium { out, mtu, .. } = turn.medium;
    if ip::add_port_unreachable_for(out, *mtu, key.guest_port, key.other).is_none() {
        turn.counters.lost += 1;
    }
}
