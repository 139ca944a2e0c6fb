//! The network, as the host names it: address, route and resolver of the card that the host means.
//!
//! Done by system calls alone, on the host's word and before any program runs. Every step counts: a network that is not up as it was
//! named is down, and an error that the host is told; what to do about it is the host's business. A machine without a card is never
//! named a network, and its resolver's list stays empty, so that looking up a name fails at once.

mod interface;

use std::{fs, io, net::Ipv4Addr, path::Path};

use exec_sandbox_wire::Network;
use rustix::{io::Errno, mount::MountFlags};

pub(crate) use interface::Interface;

/// Network interfaces, by their names.
const INTERFACES: &str = "/sys/class/net";

/// The interface that every machine has.
const LOOPBACK: &str = "lo";

/// Who knows names, as programs read it: a file of ours over the image's, which is read-only. `/run` is root's alone.
const RESOLVERS: &str = "/run/resolv.conf";
const RESOLVERS_PLACE: &str = "/etc/resolv.conf";

/// Packets that IPv4 wants every network to carry.
const LEAST_MTU: u32 = 576;

/// Why the network is not up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NetworkError {
    /// The host named a network that is none.
    #[error("{what} is {value}, which cannot be")]
    BadValue {
        /// Which number.
        what: &'static str,
        /// What it is.
        value: u32,
    },
    /// The host named an address that is nobody's here.
    #[error("{what} is {address}, which cannot be")]
    BadAddress {
        /// Whose.
        what: &'static str,
        /// Which.
        address: Ipv4Addr,
    },
    /// The host named an Ethernet address that no card has.
    #[error("{what} is {number:#x}, which cannot be")]
    BadMac {
        /// Whose.
        what: &'static str,
        /// Which.
        number: u64,
    },
    /// There is not exactly one card of which the host may have spoken.
    #[error("the machine has {found} network cards{}, and one was expected", with_address(*.address))]
    Cards {
        /// How many there are.
        found: usize,
        /// With which Ethernet address; `None`: any.
        address: Option<Mac>,
    },
    /// The kernel's list of cards cannot be read.
    #[error("cannot list the network cards")]
    List {
        /// Why.
        source: io::Error,
    },
    /// A setting of the card was refused.
    #[error("cannot {what}")]
    Card {
        /// Which.
        what: &'static str,
        /// Why.
        source: Errno,
    },
    /// Programs cannot be told who knows names.
    #[error("cannot write the list of resolvers")]
    Resolvers {
        /// Why.
        source: io::Error,
    },
}

/// An Ethernet address.
type Mac = [u8; 6];

/// A network that can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Settings {
    address: Ipv4Addr,
    mask: Ipv4Addr,
    gateway: Ipv4Addr,
    resolver: Ipv4Addr,
    mtu: u16,
    /// `None`: it is asked for on the link.
    gateway_card: Option<Mac>,
}

/// Sets the network up. Done again, as after a restore, it is as it was named last, and what an earlier one left is gone.
pub(crate) fn set_up(network: &Network) -> Result<(), NetworkError> {
    let cards = cards().map_err(|source| NetworkError::List { source })?;
    let name = named_card(cards, mac("the card's Ethernet address", network.card)?)?;
    let step = |what| move |source| NetworkError::Card { what, source };
    let card = Interface::open(&name).map_err(step("find the network card"))?;
    card.down().map_err(step("take the network card down"))?;
    let settings = Settings::of(network)?;
    let done = configure(&name, &card, &settings)
        .and_then(|()| tell_programs(settings.resolver).map_err(|source| NetworkError::Resolvers { source }));
    if done.is_err() {
        // No half of a network. That it cannot be taken down any more says less than why it is not up.
        let _ = card.down();
    }
    done
}

impl Settings {
    fn of(network: &Network) -> Result<Self, NetworkError> {
        let Network { address, prefix_bits, gateway, resolver, mtu, card: _, gateway_card } = *network;
        let bad = |what, value| NetworkError::BadValue { what, value };
        let bad_address = |what, address| NetworkError::BadAddress { what, address: Ipv4Addr::from_bits(address) };
        let mask = match prefix_bits {
            1..=30 => u32::MAX << (32 - prefix_bits),
            _ => return Err(bad("the number of bits of the network", prefix_bits)),
        };
        // Neither the network's own address nor the one that means all in it; the kernel would take both for a machine's.
        let is_machine = |address: u32| address & !mask != 0 && address | mask != u32::MAX;
        let is_usual = |address: Ipv4Addr| !address.is_multicast() && !address.is_loopback();
        if !is_machine(address) || !is_usual(Ipv4Addr::from_bits(address)) {
            return Err(bad_address("the guest's address", address));
        }
        // The kernel takes a gateway only if it is in reach, and says less about it.
        if gateway & mask != address & mask || !is_machine(gateway) || gateway == address {
            return Err(bad_address("the gateway's address", gateway));
        }
        // Programs take this one for the machine itself.
        if resolver == 0 {
            return Err(bad_address("the resolver's address", resolver));
        }
        Ok(Self {
            address: Ipv4Addr::from_bits(address),
            mask: Ipv4Addr::from_bits(mask),
            gateway: Ipv4Addr::from_bits(gateway),
            resolver: Ipv4Addr::from_bits(resolver),
            mtu: u16::try_from(mtu).ok().filter(|_| mtu >= LEAST_MTU).ok_or_else(|| bad("the packet's size", mtu))?,
            gateway_card: mac("the gateway's Ethernet address", gateway_card)?,
        })
    }
}

fn configure(name: &str, card: &Interface, settings: &Settings) -> Result<(), NetworkError> {
    let step = |what| move |source| NetworkError::Card { what, source };
    // The bring-up has turned it off, and can do so no more.
    let ipv6 = fs::read(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"));
    if ipv6.map_err(|source| step("see whether IPv6 is off")(errno(&source)))? != b"1\n" {
        return Err(step("do without IPv6")(Errno::ROFS));
    }
    card.set_mtu(settings.mtu).map_err(step("set the packet's size"))?;
    card.set_address(settings.address, settings.mask).map_err(step("set the address"))?;
    card.up().map_err(step("bring the network card up"))?;
    card.set_gateway(settings.gateway).map_err(step("set the gateway"))?;
    match settings.gateway_card {
        // Nobody has to be asked then, and nobody on the link can answer for it.
        Some(mac) => card.set_neighbour(settings.gateway, mac).map_err(step("set the gateway's Ethernet address")),
        None => Ok(()),
    }
}

/// The cards, by name, and their Ethernet addresses as the kernel writes them.
fn cards() -> io::Result<Vec<(String, String)>> {
    let mut cards = Vec::new();
    for entry in fs::read_dir(INTERFACES)? {
        let entry = entry?;
        let Some(name) = entry.file_name().into_string().ok().filter(|name| name != LOOPBACK) else { continue };
        let address = fs::read_to_string(entry.path().join("address"))?;
        cards.push((name, address.trim_end().to_owned()));
    }
    Ok(cards)
}

/// The one card with this address, or the only one there is.
fn named_card(cards: Vec<(String, String)>, address: Option<Mac>) -> Result<String, NetworkError> {
    let is_meant = |card: &(String, String)| address.is_none_or(|address| card.1 == text(address));
    let mut meant: Vec<String> = cards.into_iter().filter(is_meant).map(|(name, _)| name).collect();
    match (meant.len(), meant.pop()) {
        (1, Some(name)) => Ok(name),
        (found, _) => Err(NetworkError::Cards { found, address }),
    }
}

/// An Ethernet address out of its number; `None` is none.
fn mac(what: &'static str, number: u64) -> Result<Option<Mac>, NetworkError> {
    match number.to_be_bytes() {
        [0, 0, 0, 0, 0, 0, 0, 0] => Ok(None),
        // A machine's own, and not a group's.
        [0, 0, a, b, c, d, e, f] if a & 1 == 0 => Ok(Some([a, b, c, d, e, f])),
        _ => Err(NetworkError::BadMac { what, number }),
    }
}

fn text(address: Mac) -> String {
    address.map(|byte| format!("{byte:02x}")).join(":")
}

fn with_address(address: Option<Mac>) -> String {
    address.map(|address| format!(" with the address {}", text(address))).unwrap_or_default()
}

fn tell_programs(resolver: Ipv4Addr) -> io::Result<()> {
    fs::write(RESOLVERS, resolvers(resolver))?;
    if is_mounted(RESOLVERS, RESOLVERS_PLACE)? {
        return Ok(());
    }
    rustix::mount::mount_bind(RESOLVERS, RESOLVERS_PLACE)?;
    let read_only = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    rustix::mount::mount_remount(RESOLVERS_PLACE, read_only, c"")?;
    Ok(())
}

/// One resolver, which answers at once or not at all: what it does not know it refuses, so a second try would only wait.
fn resolvers(resolver: Ipv4Addr) -> String {
    format!("nameserver {resolver}\noptions timeout:10 attempts:2\n")
}

/// Whether the two are one file.
fn is_mounted(file: impl AsRef<Path>, place: impl AsRef<Path>) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt as _;
    let identity = |path: &Path| fs::metadata(path).map(|it| (it.dev(), it.ino()));
    Ok(identity(file.as_ref())? == identity(place.as_ref())?)
}

fn errno(error: &io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network() -> Network {
        let bits = |text: &str| text.parse::<Ipv4Addr>().expect("it is an address").to_bits();
        Network {
            address: bits("192.168.127.2"),
            prefix_bits: 24,
            gateway: bits("192.168.127.1"),
            resolver: bits("192.168.127.1"),
            mtu: 65520,
            card: 0x0200_c0a8_7f02,
            gateway_card: 0x0200_c0a8_7f01,
        }
    }

    #[test]
    fn a_network_is_read_as_it_was_named() {
        let settings = Settings::of(&network()).expect("it is one");
        let text = |address: Ipv4Addr| address.to_string();
        assert_eq!(text(settings.address), "192.168.127.2");
        assert_eq!(text(settings.mask), "255.255.255.0");
        assert_eq!(text(settings.gateway), "192.168.127.1");
        assert_eq!(settings.mtu, 65520);
        assert_eq!(settings.gateway_card, Some([2, 0, 192, 168, 127, 1]));
        let of_an_older_host = Network { card: 0, gateway_card: 0, ..network() };
        assert_eq!(Settings::of(&of_an_older_host).expect("it is one").gateway_card, None);
    }

    #[test]
    fn a_network_that_cannot_be_is_refused_by_the_number_that_is_wrong() {
        let says = |change: fn(&mut Network)| {
            let mut network = network();
            change(&mut network);
            Settings::of(&network).expect_err("it cannot be").to_string()
        };
        assert!(says(|network| network.prefix_bits = 0).contains("the number of bits"));
        assert!(says(|network| network.prefix_bits = 31).contains("the number of bits"));
        for (address, what) in [(0, "none"), (0xc0a8_7f00, "the network's own"), (0xc0a8_7fff, "all in it")] {
            let mut network = network();
            network.address = address;
            let error = Settings::of(&network).expect_err(what).to_string();
            assert!(error.contains("the guest's address"), "{what}: {error}");
        }
        assert!(
            says(|network| (network.address, network.gateway) = (0x7f00_0002, 0x7f00_0001)).contains("the guest's")
        );
        assert!(
            says(|network| (network.address, network.gateway) = (0xe000_0102, 0xe000_0101)).contains("the guest's")
        );
        assert!(says(|network| network.gateway = 0).contains("the gateway's address is 0.0.0.0"));
        assert!(says(|network| network.gateway = 0xc0a8_7fff).contains("the gateway's address"));
        assert!(says(|network| network.gateway = network.address).contains("the gateway's address"));
        assert!(says(|network| network.resolver = 0).contains("the resolver's address"));
        assert!(says(|network| network.mtu = 575).contains("the packet's size"));
        assert!(says(|network| network.mtu = 65536).contains("the packet's size"));
        assert!(says(|network| network.gateway_card = 1 << 48).contains("the gateway's Ethernet address"));
        assert!(says(|network| network.gateway_card = 0x0100_5e00_0001).contains("the gateway's Ethernet address"));
    }

    #[test]
    fn the_card_is_the_one_that_is_named_or_the_only_one_and_an_error_says_how_many_there_are() {
        let cards = |names: &[&str]| -> Vec<(String, String)> {
            (1..)
                .zip(names)
                .map(|(number, name)| ((*name).to_owned(), format!("02:00:c0:a8:7f:{number:02x}")))
                .collect()
        };
        let second = Some([2, 0, 0xc0, 0xa8, 0x7f, 2]);
        assert_eq!(named_card(cards(&["a", "b"]), second).expect("it is there"), "b");
        assert_eq!(named_card(cards(&["a"]), None).expect("it is one"), "a");
        let says = |names, address| named_card(cards(names), address).expect_err("which one").to_string();
        assert!(says(&[], None).contains("has 0 network cards, and"));
        assert!(says(&["a", "b"], None).contains("has 2 network cards, and"));
        assert!(says(&["a"], second).contains("has 0 network cards with the address 02:00:c0:a8:7f:02, and"));
    }

    #[test]
    fn programs_read_one_resolver() {
        let text = resolvers(Ipv4Addr::new(192, 168, 127, 1));
        assert!(text.starts_with("nameserver 192.168.127.1\n"), "{text}");
    }
}
