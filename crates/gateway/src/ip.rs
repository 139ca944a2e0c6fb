//! IPv4 on the link: what a packet of the guest is, and the packets that the gateway makes itself.
//!
//! Every check of a packet is here and happens once: behind [`read`] nobody looks at a length, a checksum or a source again. TCP's
//! own state is smoltcp's. What is wrong with a packet has a name in [`Malformed`]; what is merely not carried is a [`Content`].

use std::net::{Ipv4Addr, SocketAddrV4};

use smoltcp::{
    phy::ChecksumCapabilities,
    wire::{Icmpv4Message, Icmpv4Packet, IpAddress, IpProtocol, Ipv4Packet, Ipv4Repr, TcpPacket, UdpPacket, UdpRepr},
};

use crate::{
    link::{GATEWAY, GUEST, Malformed},
    stream::Outgoing,
};

/// An IPv4 header without options, which is the only one that is made here.
pub const HEADER_BYTES: usize = 20;

/// A UDP header.
pub const UDP_HEADER_BYTES: usize = 8;

/// The same, as a datagram that carries nothing says it.
const UDP_HEADER_LENGTH: u16 = 8;

/// Type, code, checksum, and four bytes that depend on the type.
const ICMP_HEADER_BYTES: usize = 8;

/// What an ICMP error repeats of the packet that it is about: its header and the ports. More is not needed to find the socket.
const REPEATED_BYTES: usize = HEADER_BYTES + 8;

const ECHO_REPLY: u8 = 0;
const UNREACHABLE: u8 = 3;
const PORT_UNREACHABLE: u8 = 3;

/// Hops that the gateway's own packets may make; they make one.
const HOP_LIMIT: u8 = 64;

/// A packet of the guest, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet<'a> {
    /// The packet alone, without what the frame has behind it.
    pub bytes: &'a [u8],
    /// Where it goes.
    pub to: Ipv4Addr,
    /// What is in it.
    pub content: Content<'a>,
}

/// What a packet carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content<'a> {
    /// A TCP segment.
    Tcp {
        /// The guest's port.
        guest_port: u16,
        /// The other end's port.
        port: u16,
        /// It opens a connection.
        opens: bool,
    },
    /// A UDP datagram.
    Udp {
        /// The guest's port.
        guest_port: u16,
        /// The other end's port.
        port: u16,
        /// What it carries.
        payload: &'a [u8],
    },
    /// An ICMP echo request: everything behind its checksum.
    Echo(&'a [u8]),
    /// An ICMP error: the guest's kernel says what became of a packet that it was sent.
    Error,
    /// A part of a packet.
    Fragment,
    /// Another protocol, or another message of ICMP.
    Other,
}

/// Reads a packet of the guest.
///
/// # Errors
/// [`Malformed`] if it is none.
pub fn read(packet: &[u8]) -> Result<Packet<'_>, Malformed> {
    match packet.first().map(|first| first >> 4) {
        Some(4) => {}
        Some(_) => return Err(Malformed::BadHeader),
        None => return Err(Malformed::Truncated),
    }
    let header = Ipv4Packet::new_unchecked(packet);
    header.check_len().map_err(|_| Malformed::Truncated)?;
    if !header.verify_checksum() {
        return Err(Malformed::BadChecksum);
    }
    if header.src_addr() != GUEST {
        return Err(Malformed::ForeignSource);
    }
    if header.hop_limit() == 0 {
        return Err(Malformed::Expired);
    }
    let bytes = packet.get(..header.total_len().into()).ok_or(Malformed::Truncated)?;
    let to = header.dst_addr();
    let content = if header.more_frags() || header.frag_offset() != 0 {
        Content::Fragment
    } else {
        content(header.next_header(), header.payload(), to)?
    };
    Ok(Packet { bytes, to, content })
}

fn content(protocol: IpProtocol, payload: &[u8], to: Ipv4Addr) -> Result<Content<'_>, Malformed> {
    let (source, destination) = (IpAddress::Ipv4(GUEST), IpAddress::Ipv4(to));
    match protocol {
        IpProtocol::Tcp => {
            let segment = TcpPacket::new_checked(payload).map_err(|_| Malformed::Truncated)?;
            if !segment.verify_checksum(&source, &destination) {
                return Err(Malformed::BadChecksum);
            }
            let opens = segment.syn() && !segment.ack() && !segment.rst() && !segment.fin();
            match (segment.src_port(), segment.dst_port()) {
                (0, _) | (_, 0) => Err(Malformed::PortZero),
                (guest_port, port) => Ok(Content::Tcp { guest_port, port, opens }),
            }
        }
        IpProtocol::Udp => {
            let datagram = UdpPacket::new_checked(payload).map_err(|_| Malformed::Truncated)?;
            // UDP over IPv4 may do without.
            if datagram.checksum() != 0 && !datagram.verify_checksum(&source, &destination) {
                return Err(Malformed::BadChecksum);
            }
            match (datagram.src_port(), datagram.dst_port()) {
                (0, _) | (_, 0) => Err(Malformed::PortZero),
                (guest_port, port) => Ok(Content::Udp { guest_port, port, payload: datagram.payload() }),
            }
        }
        IpProtocol::Icmp => {
            let message = Icmpv4Packet::new_checked(payload).map_err(|_| Malformed::Truncated)?;
            if !message.verify_checksum() {
                return Err(Malformed::BadChecksum);
            }
            Ok(match (message.msg_type(), message.msg_code()) {
                (Icmpv4Message::EchoRequest, 0) => payload.get(4..).map_or(Content::Other, Content::Echo),
                (Icmpv4Message::DstUnreachable | Icmpv4Message::TimeExceeded | Icmpv4Message::ParamProblem, _) => {
                    Content::Error
                }
                _ => Content::Other,
            })
        }
        _ => Ok(Content::Other),
    }
}

/// Adds a datagram for the guest's port. Not if it is too long for the link or there is no room.
pub fn add_udp(out: &mut Outgoing, mtu: usize, from: SocketAddrV4, guest_port: u16, payload: &[u8]) -> Option<()> {
    let length = UDP_HEADER_BYTES + payload.len();
    let header = header(*from.ip(), IpProtocol::Udp, length);
    add(out, mtu, header, |room| {
        let repr = UdpRepr { src_port: from.port(), dst_port: guest_port };
        let (source, destination) = (IpAddress::Ipv4(*from.ip()), IpAddress::Ipv4(GUEST));
        let mut datagram = UdpPacket::new_unchecked(room);
        let fill = |to: &mut [u8]| to.copy_from_slice(payload);
        repr.emit(&mut datagram, &source, &destination, payload.len(), fill, &ChecksumCapabilities::default());
    })
}

/// Adds the answer to an echo request, `request` being what stands behind its checksum.
pub fn add_echo_reply(out: &mut Outgoing, mtu: usize, request: &[u8]) -> Option<()> {
    add_icmp(out, mtu, (GATEWAY, ECHO_REPLY, 0), &[request])
}

/// Adds the message that nobody takes datagrams at the port that `refused` went to. A program hears of it at once and does not wait.
pub fn add_port_unreachable(out: &mut Outgoing, mtu: usize, refused: &Packet<'_>) -> Option<()> {
    let repeated = refused.bytes.get(..REPEATED_BYTES)?;
    add_icmp(out, mtu, (refused.to, UNREACHABLE, PORT_UNREACHABLE), &[&[0; 4], repeated])
}

/// The same about a datagram that is gone, from the guest's port: what is repeated of it is what finds the socket.
pub fn add_port_unreachable_for(out: &mut Outgoing, mtu: usize, guest_port: u16, to: SocketAddrV4) -> Option<()> {
    let mut repeated = [0; REPEATED_BYTES];
    let mut packet = Ipv4Packet::new_unchecked(&mut repeated[..]);
    let header = Ipv4Repr { src_addr: GUEST, dst_addr: *to.ip(), ..header(GUEST, IpProtocol::Udp, UDP_HEADER_BYTES) };
    header.emit(&mut packet, &ChecksumCapabilities::default());
    let mut datagram = UdpPacket::new_unchecked(packet.payload_mut());
    datagram.set_src_port(guest_port);
    datagram.set_dst_port(to.port());
    // Its checksum covered bytes that nobody has any more: zero says that there is none.
    datagram.set_len(UDP_HEADER_LENGTH);
    add_icmp(out, mtu, (*to.ip(), UNREACHABLE, PORT_UNREACHABLE), &[&[0; 4], &repeated])
}

fn add_icmp(out: &mut Outgoing, mtu: usize, (from, kind, code): (Ipv4Addr, u8, u8), parts: &[&[u8]]) -> Option<()> {
    let length = ICMP_HEADER_BYTES - 4 + parts.iter().map(|part| part.len()).sum::<usize>();
    add(out, mtu, header(from, IpProtocol::Icmp, length), |room| {
        let bytes = [kind, code, 0, 0].into_iter().chain(parts.iter().copied().flatten().copied());
        for (to, from) in room.iter_mut().zip(bytes) {
            *to = from;
        }
        Icmpv4Packet::new_unchecked(room).fill_checksum();
    })
}

fn header(from: Ipv4Addr, protocol: IpProtocol, payload_len: usize) -> Ipv4Repr {
    Ipv4Repr { src_addr: from, dst_addr: GUEST, next_header: protocol, payload_len, hop_limit: HOP_LIMIT }
}

fn add(out: &mut Outgoing, mtu: usize, header: Ipv4Repr, fill: impl FnOnce(&mut [u8])) -> Option<()> {
    let length = HEADER_BYTES + header.payload_len;
    if length > mtu {
        return None;
    }
    let mut packet = Ipv4Packet::new_unchecked(out.packet(length)?);
    header.emit(&mut packet, &ChecksumCapabilities::default());
    fill(packet.payload_mut());
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{link, stream::Incoming};

    /// A packet of `source`, its checksum right.
    fn packet(source: Ipv4Addr, to: Ipv4Addr, protocol: IpProtocol, payload: &[u8]) -> Vec<u8> {
        let repr = Ipv4Repr {
            src_addr: source,
            dst_addr: to,
            next_header: protocol,
            payload_len: payload.len(),
            hop_limit: HOP_LIMIT,
        };
        let mut bytes = vec![0; HEADER_BYTES + payload.len()];
        let mut packet = Ipv4Packet::new_unchecked(&mut bytes);
        repr.emit(&mut packet, &ChecksumCapabilities::default());
        packet.payload_mut().copy_from_slice(payload);
        bytes
    }

    /// A datagram of the guest.
    fn udp(guest_port: u16, to: SocketAddrV4, payload: &[u8]) -> Vec<u8> {
        let repr = UdpRepr { src_port: guest_port, dst_port: to.port() };
        let mut bytes = vec![0; UDP_HEADER_BYTES + payload.len()];
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

    /// An echo request of the guest.
    fn echo(to: Ipv4Addr, body: &[u8]) -> Vec<u8> {
        icmp(to, 8, body)
    }

    /// A message of ICMP of the guest.
    fn icmp(to: Ipv4Addr, kind: u8, body: &[u8]) -> Vec<u8> {
        let mut message = [&[kind, 0, 0, 0], body].concat();
        Icmpv4Packet::new_unchecked(&mut message[..]).fill_checksum();
        packet(GUEST, to, IpProtocol::Icmp, &message)
    }

    /// The packets in what goes to QEMU.
    fn packets(out: &mut Outgoing) -> Vec<Vec<u8>> {
        let mut incoming = Incoming::default();
        let mut packets = Vec::new();
        while !out.bytes().is_empty() {
            let room = incoming.room();
            let taken = room.len().min(out.bytes().len());
            room[..taken].copy_from_slice(&out.bytes()[..taken]);
            incoming.filled(taken);
            out.written(taken);
            while let Some(frame) = incoming.next_frame().expect("it is framed") {
                let packet = frame.strip_prefix(&link::IPV4_TO_GUEST).expect("it carries IPv4 to the guest");
                packets.push(packet.to_vec());
            }
        }
        packets
    }

    /// `packet` with one change, its header's checksum right again.
    fn changed(packet: &[u8], change: impl FnOnce(&mut Ipv4Packet<&mut [u8]>)) -> Vec<u8> {
        let mut bytes = packet.to_vec();
        let mut view = Ipv4Packet::new_unchecked(&mut bytes[..]);
        change(&mut view);
        view.fill_checksum();
        bytes
    }

    #[test]
    fn what_is_no_packet_of_the_guest_is_named() {
        let port = SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 7), 9);
        let good = udp(7, port, b"hello");
        let seen = read(&good).expect("it is a packet");
        assert_eq!((seen.to, seen.content), (*port.ip(), Content::Udp { guest_port: 7, port: 9, payload: b"hello" }));
        let mut damaged = good.clone();
        *damaged.last_mut().expect("it has bytes") ^= 1;
        let mut header = good.clone();
        header[8] ^= 1;
        for (bytes, why) in [
            (Vec::new(), Malformed::Truncated),
            (good[..19].to_vec(), Malformed::Truncated),
            (good[..good.len() - 1].to_vec(), Malformed::Truncated),
            (changed(&good, |packet| packet.set_version(5)), Malformed::BadHeader),
            (changed(&good, |packet| packet.set_header_len(16)), Malformed::Truncated),
            (header, Malformed::BadChecksum),
            (damaged, Malformed::BadChecksum),
            (changed(&good, |packet| packet.set_src_addr(Ipv4Addr::new(192, 168, 127, 3))), Malformed::ForeignSource),
            (changed(&good, |packet| packet.set_hop_limit(0)), Malformed::Expired),
            (packet(GUEST, *port.ip(), IpProtocol::Tcp, &[0; 19]), Malformed::Truncated),
            (packet(GUEST, *port.ip(), IpProtocol::Udp, &[0; 7]), Malformed::Truncated),
            (packet(GUEST, *port.ip(), IpProtocol::Icmp, &[8; 3]), Malformed::Truncated),
            (udp(0, port, b""), Malformed::PortZero),
            (udp(7, SocketAddrV4::new(*port.ip(), 0), b""), Malformed::PortZero),
        ] {
            assert_eq!(read(&bytes).map(|packet| packet.content), Err(why), "{bytes:?}");
        }
    }

    #[test]
    fn what_is_not_carried_is_told_apart() {
        let to = Ipv4Addr::new(192, 0, 2, 7);
        let good = udp(7, SocketAddrV4::new(to, 9), b"hello");
        let content = |bytes: &[u8]| match read(bytes).expect("it is a packet").content {
            Content::Fragment => "fragment",
            Content::Other => "other",
            Content::Echo(_) => "echo",
            Content::Error => "error",
            Content::Tcp { .. } | Content::Udp { .. } => "carried",
        };
        assert_eq!(content(&good), "carried");
        assert_eq!(content(&changed(&good, |packet| packet.set_more_frags(true))), "fragment");
        assert_eq!(content(&changed(&good, |packet| packet.set_frag_offset(8))), "fragment");
        assert_eq!(content(&packet(GUEST, to, IpProtocol::Igmp, &[0; 8])), "other");
        assert_eq!(content(&echo(to, b"abcd")), "echo");
        for (kind, expected) in [(3, "error"), (11, "error"), (12, "error"), (0, "other"), (5, "other"), (13, "other")]
        {
            assert_eq!(content(&icmp(to, kind, &[0; 32])), expected, "{kind}");
        }
        // What follows a packet in a frame is filling, and no part of it.
        assert_eq!(read(&[&good[..], &[0; 20]].concat()), read(&good));
    }

    #[test]
    fn what_the_gateway_sends_is_well_formed() {
        let mut out = Outgoing::default();
        let refused = udp(7, SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 7), 9), b"hello");
        let from = SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 7), 9);
        add_udp(&mut out, 1500, from, 7, b"hello").expect("there is room");
        add_echo_reply(&mut out, 1500, b"\x00\x01\x00\x02ping").expect("there is room");
        add_port_unreachable(&mut out, 1500, &read(&refused).expect("it is a packet")).expect("there is room");
        assert_eq!(add_udp(&mut out, 1500, from, 7, &[0; 1473]), None, "it is longer than the link's packets");
        let packets = packets(&mut out);
        assert_eq!(packets.len(), 3);
        for bytes in &packets {
            let packet = Ipv4Packet::new_checked(&bytes[..]).expect("it is a packet");
            assert!(packet.verify_checksum() && packet.dst_addr() == GUEST);
            match packet.next_header() {
                IpProtocol::Udp => {
                    let datagram = UdpPacket::new_checked(packet.payload()).expect("it is a datagram");
                    assert!(datagram.verify_checksum(&packet.src_addr().into(), &GUEST.into()));
                    assert_eq!((datagram.src_port(), datagram.dst_port(), datagram.payload()), (9, 7, &b"hello"[..]));
                }
                _ => assert!(Icmpv4Packet::new_checked(packet.payload()).expect("it is ICMP").verify_checksum()),
            }
        }
        assert!(packets[2].ends_with(&refused[..REPEATED_BYTES]));
    }
}
