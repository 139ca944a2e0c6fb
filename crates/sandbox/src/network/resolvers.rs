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

/// A text that is no resolver's address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no resolver: write its address, and behind a colon its port if that is not {PORT}")]
pub struct NotAResolver {
    /// The text.
    pub text: String,
}

/// The resolver that `text` writes: an address, or an address and a port.
///
/// # Errors
/// [`NotAResolver`].
pub fn parse_resolver(text: &str) -> Result<SocketAddr, NotAResolver> {
    let with_port = || text.parse::<SocketAddr>().ok().filter(|resolver| resolver.port() != 0);
    let address = text.parse::<IpAddr>().ok().map(|address| SocketAddr::new(address, PORT));
    address.or_else(with_port).ok_or_else(|| NotAResolver { text: text.to_owned() })
}

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
    fn a_resolver_is_written_with_a_port_or_without() {
        for (text, written) in [
            ("192.0.2.1", "192.0.2.1:53"),
            ("192.0.2.1:5353", "192.0.2.1:5353"),
            ("2001:db8::1", "[2001:db8::1]:53"),
            ("[2001:db8::1]:5353", "[2001:db8::1]:5353"),
        ] {
            assert_eq!(parse_resolver(text).map(|resolver| resolver.to_string()), Ok(written.to_owned()));
        }
        for text in ["", "dns.example", "192.0.2", "192.0.2.1:", "192.0.2.1:0", "192.0.2.1:65536", "[2001:db8::1]"] {
            let error = parse_resolver(text).expect_err(text);
            assert!(error.to_string().contains(&format!("{text:?}")), "{error}");
        }
    }

    #[test]
    fn where_nobody_is_named_this_machine_is_asked() {
        for text in ["", "nameserver", "; nameserver 192.0.2.1", "\0\u{fffd}"] {
            assert_eq!(parsed(text), ["127.0.0.1:53"], "{text:?}");
        }
    }
}
