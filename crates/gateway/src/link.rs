//! The link between the guest and the gateway: two Ethernet addresses, two IPv4 addresses, frames and ARP.
//!
//! Static on purpose: one guest, one gateway, nothing to learn and nothing to hand out. What the frames carry is the business of
//! [`ip`](crate::ip).
//!
//! The guest is hostile. A frame that does not come from its address, or that is too short for what it says it is, is a
//! [`Malformed`] with a name.

use std::net::Ipv4Addr;

/// An Ethernet address.
pub type Mac = [u8; 6];

/// The gateway's address on the link: locally administered, ending in its IPv4 address.
pub const GATEWAY_MAC: Mac = [0x02, 0, 192, 168, 127, 1];

/// The guest's address on the link. QEMU gives it to the guest's card.
pub const GUEST_MAC: Mac = [0x02, 0, 192, 168, 127, 2];

/// The gateway: the guest's router and its only name server.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(192, 168, 127, 1);

/// The guest.
pub const GUEST: Ipv4Addr = Ipv4Addr::new(192, 168, 127, 2);

/// Bits of the link's network in both addresses.
pub const PREFIX_BITS: u8 = 24;

/// Largest MTU of the link. A packet of this size moves most bytes per system call and per checksum; it is the largest that Linux
/// admits on a virtio card with its header, rounded down to 16 bytes.
pub const MAX_MTU: u16 = 65_520;

/// Smallest MTU of the link: what every IPv4 host must take.
pub const MIN_MTU: u16 = 576;

/// Destination, source and type.
pub const HEADER_BYTES: usize = 14;

/// Ethernet's smallest frame without its checksum. ARP is shorter and is filled up to it.
const SHORTEST_FRAME_BYTES: usize = 60;

/// The bit of an address's first byte that says that it is a group's.
const GROUP: u8 = 1;

const BROADCAST: Mac = [0xff; 6];
const IPV4: u16 = 0x0800;
const ARP: u16 = 0x0806;
const IPV6: u16 = 0x86dd;

/// Hardware type Ethernet, protocol IPv4, and the lengths of their addresses.
const ARP_KINDS: [u8; 6] = [0, 1, 0x08, 0, 6, 4];
const ARP_BYTES: usize = 28;
const ARP_REQUEST: u16 = 1;
const ARP_REPLY: u16 = 2;

/// What is wrong with a frame or a packet whatever the policy: an honest guest sends none of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// The frame does not come from the guest's Ethernet address.
    ForeignMac,
    /// The frame goes to somebody who is not on this link.
    NotForGateway,
    /// The frame is neither ARP nor IP.
    UnknownEtherType,
    /// An ARP packet that is no question about this link.
    BadArp,
    /// Bytes are missing, or lengths contradict each other.
    Truncated,
    /// A header that no sender makes: another version, or a length below the smallest.
    BadHeader,
    /// A checksum does not fit what it covers.
    BadChecksum,
    /// The packet does not come from the guest's IPv4 address.
    ForeignSource,
    /// The packet's time to live is over.
    Expired,
    /// Its port is zero.
    PortZero,
}

impl Malformed {
    /// All of them, in the order of their counters.
    pub const ALL: [Self; 10] = [
        Self::ForeignMac,
        Self::NotForGateway,
        Self::UnknownEtherType,
        Self::BadArp,
        Self::Truncated,
        Self::BadHeader,
        Self::BadChecksum,
        Self::ForeignSource,
        Self::Expired,
        Self::PortZero,
    ];

    /// Its name in reports.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::ForeignMac => "foreign_mac",
            Self::NotForGateway => "not_for_gateway",
            Self::UnknownEtherType => "unknown_ether_type",
            Self::BadArp => "bad_arp",
            Self::Truncated => "truncated",
            Self::BadHeader => "bad_header",
            Self::BadChecksum => "bad_checksum",
            Self::ForeignSource => "foreign_source",
            Self::Expired => "expired",
            Self::PortZero => "port_zero",
        }
    }
}

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// The guest asks for the gateway's Ethernet address.
    WhoIsGateway,
    /// The guest asks for, or tells, an address that is not the gateway's: nobody answers.
    OtherArp,
    /// An IPv4 packet, unchecked.
    Ipv4(&'a [u8]),
    /// An IPv6 packet, unread.
    Ipv6,
}

/// Reads a frame of the guest.
///
/// # Errors
/// [`Malformed`] if it is none.
pub fn read(frame: &[u8]) -> Result<Frame<'_>, Malformed> {
    let (header, payload) = frame.split_first_chunk::<HEADER_BYTES>().ok_or(Malformed::Truncated)?;
    let [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, t0, t1] = *header;
    let (destination, source) = ([d0, d1, d2, d3, d4, d5], [s0, s1, s2, s3, s4, s5]);
    if source != GUEST_MAC {
        return Err(Malformed::ForeignMac);
    }
    match u16::from_be_bytes([t0, t1]) {
        // IPv6 speaks by multicast before anything else; it is one refusal, whoever it is for.
        IPV6 => Ok(Frame::Ipv6),
        ARP if destination == BROADCAST || destination == GATEWAY_MAC => read_arp(payload),
        // What goes to a group is a packet too; the policy has a name for its address.
        IPV4 if destination == GATEWAY_MAC || d0 & GROUP != 0 => Ok(Frame::Ipv4(payload)),
        ARP | IPV4 => Err(Malformed::NotForGateway),
        _ => Err(Malformed::UnknownEtherType),
    }
}

fn read_arp(payload: &[u8]) -> Result<Frame<'_>, Malformed> {
    let packet = payload.first_chunk::<ARP_BYTES>().ok_or(Malformed::Truncated)?;
    let (kinds, rest) = packet.split_at(ARP_KINDS.len());
    let (operation, rest) = rest.split_first_chunk::<2>().ok_or(Malformed::Truncated)?;
    let (sender, target) = rest.split_at(GUEST_MAC.len() + 4);
    if kinds != ARP_KINDS || !sender.starts_with(&GUEST_MAC) {
        return Err(Malformed::BadArp);
    }
    // A sender of 0.0.0.0 is a probe for a taken address; it is answered like any question.
    let asked = target.get(GUEST_MAC.len()..).unwrap_or_default();
    match u16::from_be_bytes(*operation) {
        ARP_REQUEST if asked == GATEWAY.octets() => Ok(Frame::WhoIsGateway),
        ARP_REQUEST | ARP_REPLY => Ok(Frame::OtherArp),
        _ => Err(Malformed::BadArp),
    }
}

/// The header of a frame to the guest that carries IPv4.
pub const IPV4_TO_GUEST: [u8; HEADER_BYTES] = header(IPV4);

const fn header(kind: u16) -> [u8; HEADER_BYTES] {
    let ([g0, g1, g2, g3, g4, g5], [s0, s1, s2, s3, s4, s5]) = (GUEST_MAC, GATEWAY_MAC);
    let [t0, t1] = kind.to_be_bytes();
    [g0, g1, g2, g3, g4, g5, s0, s1, s2, s3, s4, s5, t0, t1]
}

/// The answer to [`Frame::WhoIsGateway`], a whole frame.
pub fn arp_answer() -> [u8; SHORTEST_FRAME_BYTES] {
    let mut frame = [0; SHORTEST_FRAME_BYTES];
    let parts: [&[u8]; 7] = [
        &header(ARP),
        &ARP_KINDS,
        &ARP_REPLY.to_be_bytes(),
        &GATEWAY_MAC,
        &GATEWAY.octets(),
        &GUEST_MAC,
        &GUEST.octets(),
    ];
    for (to, from) in frame.iter_mut().zip(parts.into_iter().flatten()) {
        *to = *from;
    }
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(destination: Mac, source: Mac, kind: u16, payload: &[u8]) -> Vec<u8> {
        [&destination[..], &source, &kind.to_be_bytes(), payload].concat()
    }

    fn arp(operation: u16, sender: Mac, asked: Ipv4Addr) -> Vec<u8> {
        [&ARP_KINDS[..], &operation.to_be_bytes(), &sender, &GUEST.octets(), &[0; 6], &asked.octets()].concat()
    }

    #[test]
    fn a_question_for_the_gateway_is_answered_with_its_address() {
        let asked = frame(BROADCAST, GUEST_MAC, ARP, &arp(ARP_REQUEST, GUEST_MAC, GATEWAY));
        assert_eq!(read(&asked), Ok(Frame::WhoIsGateway));
        let answer = arp_answer();
        assert!(answer.starts_with(&[GUEST_MAC, GATEWAY_MAC].concat()));
        assert_eq!(answer[20..22], [0, 2], "it is a reply");
        assert_eq!((&answer[22..28], &answer[28..32]), (&GATEWAY_MAC[..], &GATEWAY.octets()[..]));
        assert_eq!((&answer[32..38], &answer[38..42]), (&GUEST_MAC[..], &GUEST.octets()[..]));
    }

    #[test]
    fn a_question_for_anybody_else_is_not_answered() {
        let other = frame(BROADCAST, GUEST_MAC, ARP, &arp(ARP_REQUEST, GUEST_MAC, Ipv4Addr::new(192, 168, 127, 9)));
        assert_eq!(read(&other), Ok(Frame::OtherArp));
        let reply = frame(GATEWAY_MAC, GUEST_MAC, ARP, &arp(ARP_REPLY, GUEST_MAC, GATEWAY));
        assert_eq!(read(&reply), Ok(Frame::OtherArp));
    }

    #[test]
    fn what_is_no_frame_of_the_guest_is_named() {
        let arp_as = |sender| arp(ARP_REQUEST, sender, GATEWAY);
        for (bytes, why) in [
            (vec![0; 13], Malformed::Truncated),
            (frame(GATEWAY_MAC, GATEWAY_MAC, IPV4, b"x"), Malformed::ForeignMac),
            (frame([0x02, 0, 0, 0, 0, 9], GUEST_MAC, IPV4, b"x"), Malformed::NotForGateway),
            (frame(GATEWAY_MAC, GUEST_MAC, 0x88cc, b"x"), Malformed::UnknownEtherType),
            (frame(BROADCAST, GUEST_MAC, ARP, &arp_as(GUEST_MAC)[..27]), Malformed::Truncated),
            (frame(BROADCAST, GUEST_MAC, ARP, &arp_as([0x02, 0, 0, 0, 0, 9])), Malformed::BadArp),
            (frame(BROADCAST, GUEST_MAC, ARP, &arp(7, GUEST_MAC, GATEWAY)), Malformed::BadArp),
        ] {
            assert_eq!(read(&bytes), Err(why), "{bytes:?}");
        }
        // The same frames as they should be.
        assert_eq!(read(&frame(GATEWAY_MAC, GUEST_MAC, IPV4, b"x")), Ok(Frame::Ipv4(b"x")));
        assert_eq!(read(&frame([0x33, 0x33, 0, 0, 0, 2], GUEST_MAC, IPV6, b"x")), Ok(Frame::Ipv6));
    }
}
