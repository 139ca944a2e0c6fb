//! The link as smoltcp sees it: one packet in, room for packets out, and a clock that is an argument.
//!
//! Owns smoltcp's interface and what goes to QEMU. Each connection brings a socket set of its own, so a segment costs the same
//! whatever the number of connections, and no connection can be found by another's segments.

use std::time::{Duration, Instant};

use smoltcp::{
    iface::{Config, Interface, PollResult, SocketSet},
    phy::{Checksum, Device, DeviceCapabilities, Medium as Kind, RxToken, TxToken},
    time::Instant as StackInstant,
    wire::{HardwareAddress, IpCidr, Ipv4Cidr},
};

use crate::{
    link::{GATEWAY, PREFIX_BITS},
    stream::Outgoing,
};

/// The link, for TCP.
pub(crate) struct Medium {
    pub(crate) out: Outgoing,
    pub(crate) mtu: usize,
    interface: Interface,
    /// Where the stack's time begins.
    epoch: Instant,
}

impl std::fmt::Debug for Medium {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Medium").field("mtu", &self.mtu).field("waiting", &self.out.bytes().len()).finish()
    }
}

impl Medium {
    /// `seed` makes sequence numbers that nobody foresees.
    pub(crate) fn new(mtu: usize, seed: u64, now: Instant) -> Self {
        let mut out = Outgoing::default();
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = seed;
        let mut port = Port { mtu, incoming: None, out: &mut out };
        let mut interface = Interface::new(config, &mut port, StackInstant::ZERO);
        // Every address that the guest speaks to is here.
        interface.set_any_ip(true);
        interface.update_ip_addrs(|addresses| {
            // The list is empty and has room for one.
            let _ = addresses.push(IpCidr::Ipv4(Ipv4Cidr::new(GATEWAY, PREFIX_BITS)));
        });
        Self { out, mtu, interface, epoch: now }
    }

    /// Gives a packet, checked before, to the sockets.
    pub(crate) fn feed(&mut self, sockets: &mut SocketSet<'_>, packet: &[u8], now: Instant) {
        let now = self.stack_time(now);
        let mut port = Port { mtu: self.mtu, incoming: Some(packet), out: &mut self.out };
        self.interface.poll_ingress_single(now, &mut port, sockets);
    }

    /// Answers a segment as if nobody were there: with a reset.
    pub(crate) fn reset(&mut self, packet: &[u8], now: Instant) {
        // Without sockets the set allocates nothing.
        self.feed(&mut SocketSet::new(Vec::new()), packet, now);
    }

    /// Sends what the sockets want to send, until there is no room.
    pub(crate) fn emit(&mut self, sockets: &mut SocketSet<'_>, now: Instant) {
        let now = self.stack_time(now);
        let mut port = Port { mtu: self.mtu, incoming: None, out: &mut self.out };
        while self.interface.poll_egress(now, &mut port, sockets) == PollResult::SocketStateChanged {}
    }

    /// When the sockets want to be asked again though nothing came.
    pub(crate) fn due(&mut self, sockets: &SocketSet<'_>, now: Instant) -> Option<Instant> {
        let at = self.interface.poll_at(self.stack_time(now), sockets)?;
        Some(self.epoch + Duration::from_micros(u64::try_from(at.total_micros()).unwrap_or(0)))
    }

    /// What a socket needs to open a connection itself.
    pub(crate) fn context(&mut self) -> &mut smoltcp::iface::Context {
        self.interface.context()
    }

    fn stack_time(&self, now: Instant) -> StackInstant {
        let passed = now.saturating_duration_since(self.epoch);
        StackInstant::from_micros(i64::try_from(passed.as_micros()).unwrap_or(i64::MAX))
    }
}

/// What smoltcp calls a device, for one call.
struct Port<'a> {
    mtu: usize,
    incoming: Option<&'a [u8]>,
    out: &'a mut Outgoing,
}

impl Device for Port<'_> {
    type RxToken<'b>
        = Arrived<'b>
    where
        Self: 'b;
    type TxToken<'b>
        = Room<'b>
    where
        Self: 'b;

    fn receive(&mut self, _: StackInstant) -> Option<(Arrived<'_>, Room<'_>)> {
        // Without room for an answer there is none: the guest sends its segment again.
        self.incoming.take().map(|packet| (Arrived(packet), Room(self.out)))
    }

    fn transmit(&mut self, _: StackInstant) -> Option<Room<'_>> {
        self.out.has_room().then_some(Room(self.out))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Kind::Ip;
        capabilities.max_transmission_unit = self.mtu;
        // What comes in was checked when it was read, once.
        capabilities.checksum.ipv4 = Checksum::Tx;
        capabilities.checksum.tcp = Checksum::Tx;
        capabilities
    }
}

struct Arrived<'a>(&'a [u8]);

impl RxToken for Arrived<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, take: F) -> R {
        take(self.0)
    }
}

struct Room<'a>(&'a mut Outgoing);

impl TxToken for Room<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, fill: F) -> R {
        match self.0.packet(length) {
            Some(room) => fill(room),
            // smoltcp has to write somewhere: what it writes here is lost, as on any link.
            None => fill(&mut vec![0; length]),
        }
    }
}
