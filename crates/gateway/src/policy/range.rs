//! Ranges of addresses that are not the internet's, and the addresses at which clouds tell secrets.
//!
//! An address that carries another one is judged by what it carries, however deep: `::ffff:127.0.0.1` reaches the host as 127.0.0.1
//! does. What is said here is what an address is; whether it may be reached is the policy's matter.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::Refusal;

/// What an address is, if it is not the internet's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReservedRange {
    /// Of a private network, a carrier's inside, or IPv6's unique local ones.
    Private,
    /// The host itself.
    Loopback,
    /// Of a link: it means another host on each.
    LinkLocal,
    /// Where a cloud tells a machine its credentials and configuration.
    Metadata,
    /// Of a group.
    Multicast,
    /// Everybody on a link.
    Broadcast,
    /// Nobody: a connection to it reaches the host itself.
    Unspecified,
    /// For texts and for measuring networks.
    Documentation,
    /// Kept for protocols and for the future.
    Reserved,
}

impl ReservedRange {
    /// The refusal of an address in it.
    #[must_use]
    pub const fn refusal(self) -> Refusal {
        match self {
            Self::Private => Refusal::PrivateAddress,
            Self::Loopback => Refusal::LoopbackAddress,
            Self::LinkLocal => Refusal::LinkLocalAddress,
            Self::Metadata => Refusal::MetadataAddress,
            Self::Multicast => Refusal::MulticastAddress,
            Self::Broadcast | Self::Unspecified | Self::Documentation | Self::Reserved => Refusal::ReservedAddress,
        }
    }
}

/// The metadata services of clouds. Some have addresses that look like anybody's.
const METADATA: [IpAddr; 11] = [
    // AWS, Google, Azure and most others; then AWS's resolver, clock, and credentials of containers and of pods.
    v4(169, 254, 169, 254),
    v4(169, 254, 169, 253),
    v4(169, 254, 169, 123),
    v4(169, 254, 170, 2),
    v4(169, 254, 170, 23),
    // Alibaba, Oracle, and Azure's host agent.
    v4(100, 100, 100, 200),
    v4(192, 0, 0, 192),
    v4(168, 63, 129, 16),
    // AWS, its pods, and Google.
    v6([0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254]),
    v6([0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23]),
    v6([0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254]),
];

/// Ranges of IPv4, the narrower before the wider: a range's first address, the length of its prefix, what it is.
const IPV4: [(Ipv4Addr, u8, ReservedRange); 16] = [
    (Ipv4Addr::BROADCAST, 32, ReservedRange::Broadcast),
    (Ipv4Addr::new(0, 0, 0, 0), 8, ReservedRange::Unspecified),
    (Ipv4Addr::new(10, 0, 0, 0), 8, ReservedRange::Private),
    (Ipv4Addr::new(100, 64, 0, 0), 10, ReservedRange::Private),
    (Ipv4Addr::new(127, 0, 0, 0), 8, ReservedRange::Loopback),
    (Ipv4Addr::new(169, 254, 0, 0), 16, ReservedRange::LinkLocal),
    (Ipv4Addr::new(172, 16, 0, 0), 12, ReservedRange::Private),
    (Ipv4Addr::new(192, 0, 0, 0), 24, ReservedRange::Reserved),
    (Ipv4Addr::new(192, 0, 2, 0), 24, ReservedRange::Documentation),
    (Ipv4Addr::new(192, 88, 99, 0), 24, ReservedRange::Reserved),
    (Ipv4Addr::new(192, 168, 0, 0), 16, ReservedRange::Private),
    (Ipv4Addr::new(198, 18, 0, 0), 15, ReservedRange::Documentation),
    (Ipv4Addr::new(198, 51, 100, 0), 24, ReservedRange::Documentation),
    (Ipv4Addr::new(203, 0, 113, 0), 24, ReservedRange::Documentation),
    (Ipv4Addr::new(224, 0, 0, 0), 4, ReservedRange::Multicast),
    (Ipv4Addr::new(240, 0, 0, 0), 4, ReservedRange::Reserved),
];

/// Ranges of IPv6 that carry no address of IPv4, the narrower before the wider. What is in none of them and not in
/// `2000::/3` has not been given to anybody.
const IPV6: [(Ipv6Addr, u8, ReservedRange); 10] = [
    (Ipv6Addr::UNSPECIFIED, 128, ReservedRange::Unspecified),
    (Ipv6Addr::LOCALHOST, 128, ReservedRange::Loopback),
    (Ipv6Addr::new(0x64, 0xff9b, 1, 0, 0, 0, 0, 0), 48, ReservedRange::Private),
    (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 32, ReservedRange::Documentation),
    (Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 0), 20, ReservedRange::Documentation),
    (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 23, ReservedRange::Reserved),
    (Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 0), 7, ReservedRange::Private),
    (Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10, ReservedRange::LinkLocal),
    (Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 0), 10, ReservedRange::Private),
    (Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8, ReservedRange::Multicast),
];

/// What `address` is, if it is not the internet's.
#[must_use]
pub fn classify(address: IpAddr) -> Option<ReservedRange> {
    if METADATA.contains(&address) {
        return Some(ReservedRange::Metadata);
    }
    match address {
        IpAddr::V4(address) => classify_v4(address),
        IpAddr::V6(address) => classify_v6(address),
    }
}

fn classify_v4(address: Ipv4Addr) -> Option<ReservedRange> {
    IPV4.iter()
        .find(|(first, length, _)| shares(u32::from(address) ^ u32::from(*first), *length))
        .map(|(_, _, range)| *range)
}

fn classify_v6(address: Ipv6Addr) -> Option<ReservedRange> {
    if let Some(carried) = carried(address) {
        return carried.into_iter().flatten().find_map(|carried| classify(IpAddr::V4(carried)));
    }
    let in_range =
        |first: &Ipv6Addr, length: u8| (u128::from(address) ^ u128::from(*first)).leading_zeros() >= length.into();
    let range = IPV6.iter().find(|(first, length, _)| in_range(first, *length)).map(|(_, _, range)| *range);
    let is_global = in_range(&Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0), 3);
    range.or_else(|| (!is_global).then_some(ReservedRange::Reserved))
}

/// Whether two addresses whose differing bits are `difference` share their first `length` bits.
fn shares(difference: u32, length: u8) -> bool {
    difference.leading_zeros() >= length.into()
}

/// The addresses of IPv4 that an address of IPv6 carries, if it is of a kind that carries them.
fn carried(address: Ipv6Addr) -> Option<[Option<Ipv4Addr>; 2]> {
    let segments = address.segments();
    let v4 = |high: u16, low: u16| Some(Ipv4Addr::from(u32::from(high) << 16 | u32::from(low)));
    match segments {
        // These two are their own.
        [0, 0, 0, 0, 0, 0, 0, 0 | 1] => None,
        // Mapped, compatible, translated (two ways).
        [0, 0, 0, 0, 0, 0xffff | 0, high, low]
        | [0, 0, 0, 0, 0xffff, 0, high, low]
        | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => Some([v4(high, low), None]),
        // 6to4.
        [0x2002, high, low, ..] => Some([v4(high, low), None]),
        // Teredo: its server, and its client with all bits turned.
        [0x2001, 0, server_high, server_low, _, _, high, low] => Some([v4(!high, !low), v4(server_high, server_low)]),
        _ => None,
    }
}

const fn v4(a: u8, b: u8, c: u8, d: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(a, b, c, d))
}

const fn v6([a, b, c, d, e, f, g, h]: [u16; 8]) -> IpAddr {
    IpAddr::V6(Ipv6Addr::new(a, b, c, d, e, f, g, h))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use ReservedRange::{
        Broadcast, Documentation, LinkLocal, Loopback, Metadata, Multicast, Private, Reserved, Unspecified,
    };

    #[test]
    fn each_range_is_known_at_both_ends_and_its_neighbours_are_not_in_it() {
        // First, last, what it is; the neighbours before and after, and what they are.
        let table = [
            ("0.0.0.0", "0.255.255.255", Unspecified, None, Some(("1.0.0.0", None))),
            ("10.0.0.0", "10.255.255.255", Private, Some(("9.255.255.255", None)), Some(("11.0.0.0", None))),
            ("100.64.0.0", "100.127.255.255", Private, Some(("100.63.255.255", None)), Some(("100.128.0.0", None))),
            ("127.0.0.0", "127.255.255.255", Loopback, Some(("126.255.255.255", None)), Some(("128.0.0.0", None))),
            ("169.254.0.0", "169.254.255.255", LinkLocal, Some(("169.253.255.255", None)), Some(("169.255.0.0", None))),
            ("172.16.0.0", "172.31.255.255", Private, Some(("172.15.255.255", None)), Some(("172.32.0.0", None))),
            ("192.0.0.0", "192.0.0.255", Reserved, Some(("191.255.255.255", None)), Some(("192.0.1.0", None))),
            ("192.0.2.0", "192.0.2.255", Documentation, Some(("192.0.1.255", None)), Some(("192.0.3.0", None))),
            ("192.88.99.0", "192.88.99.255", Reserved, Some(("192.88.98.255", None)), Some(("192.88.100.0", None))),
            ("192.168.0.0", "192.168.255.255", Private, Some(("192.167.255.255", None)), Some(("192.169.0.0", None))),
            ("198.18.0.0", "198.19.255.255", Documentation, Some(("198.17.255.255", None)), Some(("198.20.0.0", None))),
            (
                "198.51.100.0",
                "198.51.100.255",
                Documentation,
                Some(("198.51.99.255", None)),
                Some(("198.51.101.0", None)),
            ),
            ("203.0.113.0", "203.0.113.255", Documentation, Some(("203.0.112.255", None)), Some(("203.0.114.0", None))),
            (
                "224.0.0.0",
                "239.255.255.255",
                Multicast,
                Some(("223.255.255.255", None)),
                Some(("240.0.0.0", Some(Reserved))),
            ),
            ("240.0.0.0", "255.255.255.254", Reserved, None, Some(("255.255.255.255", Some(Broadcast)))),
            ("::", "::", Unspecified, None, Some(("::1", Some(Loopback)))),
            ("64:ff9b:1::", "64:ff9b:1:ffff:ffff:ffff:ffff:ffff", Private, None, Some(("64:ff9b:2::", Some(Reserved)))),
            ("2001:2::", "2001:1ff:ffff:ffff:ffff:ffff:ffff:ffff", Reserved, None, Some(("2001:200::", None))),
            (
                "2001:db8::",
                "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff",
                Documentation,
                Some(("2001:db7::", None)),
                Some(("2001:db9::", None)),
            ),
            (
                "3fff::",
                "3fff:fff:ffff:ffff:ffff:ffff:ffff:ffff",
                Documentation,
                Some(("3ffe::", None)),
                Some(("3fff:1000::", None)),
            ),
            ("4000::", "fbff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", Reserved, None, None),
            ("fc00::", "fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", Private, None, Some(("fe00::", Some(Reserved)))),
            ("fe80::", "febf:ffff:ffff:ffff:ffff:ffff:ffff:ffff", LinkLocal, Some(("fe7f::", Some(Reserved))), None),
            ("fec0::", "feff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", Private, None, None),
            ("ff00::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", Multicast, None, None),
            ("100::", "100::ffff:ffff:ffff:ffff", Reserved, None, None),
            ("5f00::", "5f00:ffff::", Reserved, None, None),
        ];
        let what = |text: &str| classify(text.parse().expect("it is an address"));
        for (first, last, range, before, after) in table {
            assert_eq!((what(first), what(last)), (Some(range), Some(range)), "{first}");
            for (neighbour, is) in before.into_iter().chain(after) {
                assert_eq!(what(neighbour), is, "{neighbour}");
            }
        }
    }

    #[test]
    fn metadata_is_known_wherever_a_cloud_has_it() {
        for address in METADATA {
            assert_eq!(classify(address), Some(Metadata), "{address}");
        }
        for (neighbour, is) in [
            ("169.254.169.252", Some(LinkLocal)),
            ("100.100.100.201", Some(Private)),
            ("168.63.129.17", None),
            ("fd00:ec2::255", Some(Private)),
        ] {
            assert_eq!(classify(neighbour.parse().expect("it is an address")), is, "{neighbour}");
        }
    }

    #[test]
    fn addresses_of_the_internet_are_nothing_special() {
        for address in
            ["1.1.1.1", "8.8.8.8", "93.184.215.14", "223.255.255.254", "2606:4700::1111", "2a00:1450:4001::1"]
        {
            assert_eq!(classify(address.parse().expect("it is an address")), None, "{address}");
        }
    }

    fn carriers(v4: Ipv4Addr) -> [Ipv6Addr; 6] {
        let [high, low] =
            [u32::from(v4) >> 16, u32::from(v4) & 0xffff].map(|half| u16::try_from(half).expect("it is half"));
        [
            Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, high, low),
            Ipv6Addr::new(0, 0, 0, 0, 0xffff, 0, high, low),
            Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, high, low),
            Ipv6Addr::new(0x2002, high, low, 7, 0, 0, 0, 9),
            // Teredo by a public server, and a public client by it as the server.
            Ipv6Addr::new(0x2001, 0, 0x0808, 0x0808, 0, 0, !high, !low),
            Ipv6Addr::new(0x2001, 0, high, low, 0, 0, !0x0808, !0x0808),
        ]
    }

    proptest! {
        #[test]
        fn an_address_that_carries_another_is_judged_by_it(bits: u32, reserved in 0..IPV4.len()) {
            let (first, length, _) = IPV4[reserved];
            let within = u32::from(first) | (bits & u32::MAX.checked_shr(length.into()).unwrap_or(0));
            for v4 in [Ipv4Addr::from(bits), Ipv4Addr::from(within), Ipv4Addr::new(169, 254, 169, 254)] {
                for carrier in carriers(v4) {
                    prop_assert_eq!(classify(carrier.into()), classify(v4.into()), "{} in {}", v4, carrier);
                }
            }
        }

        #[test]
        fn the_standard_library_finds_nothing_that_is_missed(bits: u32) {
            let address = Ipv4Addr::from(bits);
            let special = address.is_private() || address.is_loopback() || address.is_link_local()
                || address.is_multicast() || address.is_broadcast() || address.is_unspecified() || address.is_documentation();
            prop_assert!(!special || classify(address.into()).is_some(), "{}", address);
        }
    }
}
