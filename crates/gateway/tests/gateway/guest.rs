//! A guest: a TCP stack behind an Ethernet card, in memory. It owns no clock and no link.

use std::{
    collections::VecDeque,
    net::{Ipv4Addr, SocketAddrV4},
    time::{Duration, Instant},
};

use exec_sandbox_gateway::link::{GATEWAY, GATEWAY_MAC, GUEST, GUEST_MAC, PREFIX_BITS};
use smoltcp::{
    iface::{Config, Interface, SocketHandle, SocketSet},
    phy::{ChecksumCapabilities, Device, DeviceCapabilities, Medium, RxToken, TxToken},
    socket::tcp::{Socket, SocketBuffer, State},
    time::Instant as StackInstant,
    wire::{HardwareAddress, IpAddress, IpCidr, IpProtocol, Ipv4Cidr, Ipv4Packet, Ipv4Repr, UdpPacket, UdpRepr},
};

/// Bytes that the guest's own sockets hold each way.
const BUFFER_BYTES: usize = 512 * 1024;

/// First of the ports that it connects from.
const FIRST_PORT: u16 = 40_000;

/// The guest.
pub(crate) struct Guest {
    interface: Interface,
    card: Card,
    sockets: SocketSet<'static>,
    epoch: Instant,
    next_port: u16,
}

/// The card: packets, without their Ethernet headers.
struct Card {
    mtu: usize,
    arrived: VecDeque<Vec<u8>>,
    sent: VecDeque<Vec<u8>>,
}

impl Device for Card {
    type RxToken<'a> = Arrived;
    type TxToken<'a> = Room<'a>;

    fn receive(&mut self, _: StackInstant) -> Option<(Arrived, Room<'_>)> {
        self.arrived.pop_front().map(|packet| (Arrived(packet), Room(&mut self.sent)))
    }

    fn transmit(&mut self, _: StackInstant) -> Option<Room<'_>> {
        Some(Room(&mut self.sent))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = self.mtu;
        capabilities
    }
}

struct Arrived(Vec<u8>);

impl RxToken for Arrived {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, take: F) -> R {
        take(&self.0)
    }
}

struct Room<'a>(&'a mut VecDeque<Vec<u8>>);

impl TxToken for Room<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, fill: F) -> R {
        let mut packet = vec![0; length];
        let result = fill(&mut packet);
        self.0.push_back(packet);
        result
    }
}

impl Guest {
    pub(crate) fn new(mtu: usize, now: Instant) -> Self {
        let mut card = Card { mtu, arrived: VecDeque::new(), sent: VecDeque::new() };
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = 7;
        let mut interface = Interface::new(config, &mut card, StackInstant::ZERO);
        interface.update_ip_addrs(|addresses| {
            addresses.push(IpCidr::Ipv4(Ipv4Cidr::new(GUEST, PREFIX_BITS))).expect("there is room");
        });
        interface.routes_mut().add_default_ipv4_route(GATEWAY).expect("there is room");
        Self { interface, card, sockets: SocketSet::new(Vec::new()), epoch: now, next_port: FIRST_PORT }
    }

    fn stack_time(&self, now: Instant) -> StackInstant {
        StackInstant::from_micros(i64::try_from((now - self.epoch).as_micros()).expect("it is not long"))
    }

    /// Takes a frame of the gateway.
    pub(crate) fn receive(&mut self, frame: &[u8]) {
        let header = [&GUEST_MAC[..], &GATEWAY_MAC, &[8, 0]].concat();
        if let Some(packet) = frame.strip_prefix(&header[..]) {
            self.card.arrived.push_back(packet.to_vec());
        }
    }

    /// Lets the stack work, and gives what it sends as frames.
    pub(crate) fn poll(&mut self, now: Instant) -> Vec<Vec<u8>> {
        let at = self.stack_time(now);
        self.interface.poll(at, &mut self.card, &mut self.sockets);
        self.card.sent.drain(..).map(|packet| frame(&packet)).collect()
    }

    pub(crate) fn next_deadline(&mut self, now: Instant) -> Option<Instant> {
        let at = self.interface.poll_at(self.stack_time(now), &self.sockets)?;
        Some(self.epoch + Duration::from_micros(u64::try_from(at.total_micros()).expect("it is no past")))
    }

    fn socket() -> Socket<'static> {
        let buffer = || SocketBuffer::new(vec![0; BUFFER_BYTES]);
        let mut socket = Socket::new(buffer(), buffer());
        socket.set_nagle_enabled(false);
        socket.set_ack_delay(None);
        socket
    }

    /// Begins to connect, each time from another port.
    pub(crate) fn connect(&mut self, to: SocketAddrV4) -> SocketHandle {
        let port = self.next_port;
        self.next_port = if port < 65_535 { port + 1 } else { FIRST_PORT };
        let mut socket = Self::socket();
        socket.connect(self.interface.context(), (IpAddress::Ipv4(*to.ip()), to.port()), port).expect("it can begin");
        self.sockets.add(socket)
    }

    pub(crate) fn listen(&mut self, port: u16) -> SocketHandle {
        let mut socket = Self::socket();
        socket.listen(port).expect("it is free");
        self.sockets.add(socket)
    }

    pub(crate) fn tcp(&mut self, handle: SocketHandle) -> &mut Socket<'static> {
        self.sockets.get_mut(handle)
    }

    pub(crate) fn state(&self, handle: SocketHandle) -> State {
        self.sockets.get::<Socket<'_>>(handle).state()
    }

    /// Sends what there is room for; returns how much.
    pub(crate) fn send(&mut self, handle: SocketHandle, bytes: &[u8]) -> usize {
        let socket = self.tcp(handle);
        if socket.can_send() { socket.send_slice(bytes).expect("it can send") } else { 0 }
    }

    /// Everything that has arrived.
    pub(crate) fn take(&mut self, handle: SocketHandle) -> Vec<u8> {
        let socket = self.tcp(handle);
        let mut taken = Vec::new();
        while socket.can_recv() {
            socket.recv(|bytes| (bytes.len(), taken.extend_from_slice(bytes))).expect("it can receive");
        }
        taken
    }

    /// Forgets a socket.
    pub(crate) fn remove(&mut self, handle: SocketHandle) {
        self.sockets.remove(handle);
    }
}

/// A packet as a frame of the guest.
pub(crate) fn frame(packet: &[u8]) -> Vec<u8> {
    [&GATEWAY_MAC[..], &GUEST_MAC, &[8, 0], packet].concat()
}

/// A packet, its header's checksum right.
pub(crate) fn packet(from: Ipv4Addr, to: Ipv4Addr, protocol: IpProtocol, payload: &[u8]) -> Vec<u8> {
    let repr =
        Ipv4Repr { src_addr: from, dst_addr: to, next_header: protocol, payload_len: payload.len(), hop_limit: 64 };
    let mut bytes = vec![0; repr.buffer_len() + payload.len()];
    let mut view = Ipv4Packet::new_unchecked(&mut bytes);
    repr.emit(&mut view, &ChecksumCapabilities::default());
    view.payload_mut().copy_from_slice(payload);
    bytes
}

/// A datagram of the guest, as a packet.
pub(crate) fn udp(guest_port: u16, to: SocketAddrV4, payload: &[u8]) -> Vec<u8> {
    let repr = UdpRepr { src_port: guest_port, dst_port: to.port() };
    let mut bytes = vec![0; 8 + payload.len()];
    repr.emit(
        &mut UdpPacket::new_unchecked(&mut bytes),
        &GUEST.into(),
        &IpAddress::Ipv4(*to.ip()),
        payload.len(),
        |room| room.copy_from_slice(payload),
        &ChecksumCapabilities::default(),
    );
    packet(GUEST, *to.ip(), IpProtocol::Udp, &bytes)
}
