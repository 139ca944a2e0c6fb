//! The host's resolvers, as its `/etc/resolv.conf` names them.
//!
//! It is read for each VM, because a host that moves to another network has others. A resolver on loopback is as good as any: it is
//! the gateway that asks it, from the host, and not the guest.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use tracing::debug;

/// Where the host names them.
const FILE: &str = "/etc/resolv.conf";

/// The port of DNS.
const PORT: u16 = 53;

/// How many count: as many as the C library asks.
const MOST: usize = 3;

/// Who is asked for names on this host. Where nobody is named it is this machine itself, as the C library has it.
pub(crate) fn of_this_host() -> Vec<SocketAddr> {
    let text = fs::read(FILE).unwrap_or_else(|error| {
        debug!(%error, "the host's resolvers cannot be read");
        Vec::new()
    });
    parse(&String::from_utf8_lossy(&text))
}

fn parse(text: &str) -> Vec<SocketAddr> {
    let named = text.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        // An address with a zone (`fe80::1%eth0`) means nothing without the zone's number, which may change.
        let address = words.next().filter(|word| *word == "nameserver").and_then(|_| words.next())?;
        address.parse::<IpAddr>().ok().map(|address| SocketAddr::new(address, PORT))
    });
    let named: Vec<SocketAddr> = named.take(MOST).collect();
    if named.is_empty() { vec![SocketAddr::new(Ipv4Addr::LOCALHOST.into(), PORT)] } else { named }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Vec<String> {
        parse(text).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn resolvers_are_read_in_their_order_and_at_most_as_many_as_the_c_library_asks() {
        let text = "# nameserver 192.0.2.9\nsearch example.com\nnameserver 127.0.0.53\n\tnameserver\t2001:db8::1 # two\n\
                    nameserver fe80::1%eth0\nnameserver nonsense\noptions edns0\nnameserver 192.0.2.1\nnameserver 192.0.2.2\n";
        assert_eq!(parsed(text), ["127.0.0.53:53", "[2001:db8::1]:53", "192.0.2.1:53"]);
    }

    #[test]
    fn where_nobody_is_named_this_machine_is_asked() {
        for text in ["", "nameserver", "; nameserver 192.0.2.1", "\0\u{fffd}"] {
            assert_eq!(parsed(text), ["127.0.0.1:53"], "{text:?}");
        }
    }
}
