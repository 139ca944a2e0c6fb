//! What a guest may reach, and the names of what is refused.
//!
//! It owns the rules and what they say of an address, a port and a name by themselves. Which address belongs to which name is in
//! [`names`](crate::names). Nothing here is a literal of somebody's: hosts come from the configuration.

mod exceptions;
mod name;
mod range;
mod refusal;

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

pub use exceptions::{Cidr, CidrError, Exceptions, MAX_EXCEPTIONS, TooManyExceptions};
pub use name::{MAX_NAME_BYTES, Name, NameError};
pub use range::{ReservedRange, classify};
pub use refusal::{Refusal, Refusals};

/// Most domains of an allow-list. Each is compared with every question, and an operator writes them by hand.
pub const MAX_DOMAINS: usize = 1024;

/// The port of TLS, the only one that an allow-list permits: elsewhere nothing says which name is meant.
const TLS_PORT: u16 = 443;

/// How far a guest may go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Policy {
    /// Nowhere, and nobody comes.
    Denied,
    /// Nowhere; its exposed ports may be reached.
    InboundOnly,
    /// To these domains, by TLS.
    AllowList(AllowList),
    /// To the internet.
    Open,
}

/// The rules of one network: how far a guest may go, and what the host excepts from what nobody may reach.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rules {
    /// How far.
    pub policy: Policy,
    /// What may be reached although it is not the internet's.
    #[serde(default)]
    pub exceptions: Exceptions,
}

/// Domains that may be reached, with the names below them. There is at least one: what an empty list means, the caller decides
/// before it comes here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<String>", into = "Vec<String>")]
pub struct AllowList(Vec<Name>);

/// Why a list is no allow-list.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AllowListError {
    /// Nothing is in it.
    #[error("an allow-list has at least one domain")]
    Empty,
    /// More than [`MAX_DOMAINS`] are in it.
    #[error("an allow-list has at most {MAX_DOMAINS} domains")]
    TooMany,
    /// Something in it is no domain.
    #[error("reading the domain {text:?} of an allow-list")]
    Domain {
        /// What was listed.
        text: String,
        /// Why it is none.
        source: NameError,
    },
}

/// What a packet is carried by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// Connections.
    Tcp,
    /// Datagrams.
    Udp,
}

/// Where a guest wants to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Destination {
    /// The host.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
    /// How.
    pub protocol: Protocol,
}

impl Rules {
    /// Whether `name` may be resolved and reached.
    ///
    /// # Errors
    /// The refusal.
    pub fn judge_name(&self, name: &Name) -> Result<(), Refusal> {
        match &self.policy {
            Policy::Denied => Err(Refusal::NetworkDenied),
            Policy::InboundOnly => Err(Refusal::InboundOnly),
            Policy::AllowList(list) if !list.permits(name) => Err(Refusal::NameNotAllowed),
            Policy::AllowList(_) | Policy::Open => Ok(()),
        }
    }

    /// Whether anything may be reached at `address`, by whatever name.
    ///
    /// # Errors
    /// The refusal.
    pub fn judge_address(&self, address: IpAddr) -> Result<(), Refusal> {
        match self.exceptions.judge(address) {
            Some(range) => Err(range.refusal()),
            None if address.is_ipv6() => Err(Refusal::Ipv6Refused),
            None => Ok(()),
        }
    }

    /// What can be said of a destination before its name is known.
    ///
    /// # Errors
    /// The refusal.
    pub fn judge_destination(&self, to: Destination) -> Result<(), Refusal> {
        match self.policy {
            Policy::Denied => return Err(Refusal::NetworkDenied),
            Policy::InboundOnly => return Err(Refusal::InboundOnly),
            Policy::AllowList(_) | Policy::Open => self.judge_address(to.address)?,
        }
        match (&self.policy, to.protocol, to.port) {
            (Policy::AllowList(_), Protocol::Udp, TLS_PORT) => Err(Refusal::QuicNotAllowed),
            (Policy::AllowList(_), Protocol::Udp, _) => Err(Refusal::UdpNotAllowed),
            (Policy::AllowList(_), Protocol::Tcp, port) if port != TLS_PORT => Err(Refusal::PortNotAllowed),
            _ => Ok(()),
        }
    }
}

impl AllowList {
    /// The list of these domains, in any case, with or without a dot at the end.
    ///
    /// # Errors
    /// [`AllowListError`] if there are none or too many, or if something is no domain.
    pub fn new<S: AsRef<str>>(domains: impl IntoIterator<Item = S>) -> Result<Self, AllowListError> {
        let mut names = Vec::new();
        for domain in domains {
            if names.len() == MAX_DOMAINS {
                return Err(AllowListError::TooMany);
            }
            let text = domain.as_ref();
            let name = Name::parse(text).map_err(|source| AllowListError::Domain { text: text.into(), source })?;
            names.push(name);
        }
        if names.is_empty() { Err(AllowListError::Empty) } else { Ok(Self(names)) }
    }

    /// Whether `name` is one of the domains or below one.
    #[must_use]
    pub fn permits(&self, name: &Name) -> bool {
        self.0.iter().any(|domain| name.is_within(domain))
    }

    /// The domains, as they are compared.
    pub fn domains(&self) -> impl Iterator<Item = &Name> {
        self.0.iter()
    }
}

impl TryFrom<Vec<String>> for AllowList {
    type Error = AllowListError;

    fn try_from(domains: Vec<String>) -> Result<Self, AllowListError> {
        Self::new(domains)
    }
}

impl From<AllowList> for Vec<String> {
    fn from(list: AllowList) -> Self {
        list.0.into_iter().map(String::from).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rules(policy: Policy) -> Rules {
        Rules { policy, exceptions: Exceptions::default() }
    }

    fn allow_list(domains: &[&str]) -> Policy {
        Policy::AllowList(AllowList::new(domains).expect("they are domains"))
    }

    fn name(text: &str) -> Name {
        Name::parse(text).expect("it is a name")
    }

    fn to(address: &str, port: u16, protocol: Protocol) -> Destination {
        Destination { address: address.parse().expect("it is an address"), port, protocol }
    }

    #[test]
    fn an_allow_list_permits_its_domains_and_what_is_below_them() {
        let rules = rules(allow_list(&["Example.COM.", "a.example.net"]));
        for permitted in ["example.com", "www.example.com", "a.b.c.example.com", "a.example.net", "b.a.example.net"] {
            assert_eq!(rules.judge_name(&name(permitted)), Ok(()), "{permitted}");
        }
        for refused in ["com", "badexample.com", "example.com.evil.net", "example.net", "b.example.net", "xample.com"] {
            assert_eq!(rules.judge_name(&name(refused)), Err(Refusal::NameNotAllowed), "{refused}");
        }
    }

    #[test]
    fn where_nothing_may_be_reached_no_name_is_resolved() {
        let any = name("example.com");
        assert_eq!(rules(Policy::Denied).judge_name(&any), Err(Refusal::NetworkDenied));
        assert_eq!(rules(Policy::InboundOnly).judge_name(&any), Err(Refusal::InboundOnly));
        assert_eq!(rules(Policy::Open).judge_name(&any), Ok(()));
    }

    #[test]
    fn each_refusal_of_a_destination_has_its_reason_beside_one_that_is_permitted() {
        use Protocol::{Tcp, Udp};
        let list = allow_list(&["example.com"]);
        let table = [
            (Policy::Open, to("8.8.8.8", 443, Tcp), Ok(())),
            (Policy::Open, to("8.8.8.8", 22, Tcp), Ok(())),
            (Policy::Open, to("8.8.8.8", 443, Udp), Ok(())),
            (Policy::Open, to("10.0.0.1", 443, Tcp), Err(Refusal::PrivateAddress)),
            (Policy::Open, to("127.0.0.1", 443, Tcp), Err(Refusal::LoopbackAddress)),
            (Policy::Open, to("169.254.1.1", 443, Tcp), Err(Refusal::LinkLocalAddress)),
            (Policy::Open, to("169.254.169.254", 80, Tcp), Err(Refusal::MetadataAddress)),
            (Policy::Open, to("224.0.0.251", 5353, Udp), Err(Refusal::MulticastAddress)),
            (Policy::Open, to("0.0.0.0", 443, Tcp), Err(Refusal::ReservedAddress)),
            (Policy::Open, to("255.255.255.255", 67, Udp), Err(Refusal::ReservedAddress)),
            (Policy::Open, to("203.0.113.1", 443, Tcp), Err(Refusal::ReservedAddress)),
            (Policy::Open, to("2606:4700::1111", 443, Tcp), Err(Refusal::Ipv6Refused)),
            (Policy::Open, to("::ffff:10.0.0.1", 443, Tcp), Err(Refusal::PrivateAddress)),
            (list.clone(), to("8.8.8.8", 443, Tcp), Ok(())),
            (list.clone(), to("8.8.8.8", 80, Tcp), Err(Refusal::PortNotAllowed)),
            (list.clone(), to("8.8.8.8", 443, Udp), Err(Refusal::QuicNotAllowed)),
            (list.clone(), to("8.8.8.8", 53, Udp), Err(Refusal::UdpNotAllowed)),
            (list, to("127.0.0.1", 80, Udp), Err(Refusal::LoopbackAddress)),
            (Policy::InboundOnly, to("8.8.8.8", 443, Tcp), Err(Refusal::InboundOnly)),
            (Policy::Denied, to("8.8.8.8", 443, Tcp), Err(Refusal::NetworkDenied)),
        ];
        for (policy, to, expected) in table {
            assert_eq!(rules(policy.clone()).judge_destination(to), expected, "{policy:?} {to:?}");
        }
    }

    #[test]
    fn an_exception_is_no_way_around_the_policy() {
        let exceptions = Exceptions::new(["127.0.0.0/8".parse().expect("it is a range")]).expect("it is one");
        let judge = |policy, port| {
            Rules { policy, exceptions: exceptions.clone() }.judge_destination(to("127.0.0.1", port, Protocol::Tcp))
        };
        assert_eq!(judge(Policy::Open, 80), Ok(()));
        assert_eq!(judge(allow_list(&["example.com"]), 443), Ok(()));
        assert_eq!(judge(allow_list(&["example.com"]), 80), Err(Refusal::PortNotAllowed));
        assert_eq!(judge(Policy::InboundOnly, 443), Err(Refusal::InboundOnly));
    }

    #[test]
    fn a_list_that_is_none_says_what_is_wrong_with_it() {
        let nothing: [&str; 0] = [];
        assert_eq!(AllowList::new(nothing), Err(AllowListError::Empty));
        assert!(AllowList::new(vec!["example.com"; MAX_DOMAINS]).is_ok());
        assert_eq!(AllowList::new(vec!["example.com"; MAX_DOMAINS + 1]), Err(AllowListError::TooMany));
        let wrong = AllowList::new(["example.com", "192.0.2.1"]).expect_err("one is an address");
        assert_eq!(wrong.to_string(), "reading the domain \"192.0.2.1\" of an allow-list");
    }

    #[test]
    fn rules_are_configuration() {
        let read = |json: &str| serde_json::from_str::<Rules>(json);
        let open = read(r#"{"policy":"open"}"#).expect("they are rules");
        assert_eq!(open, rules(Policy::Open));
        let list = read(r#"{"policy":{"allow_list":["Example.com"]},"exceptions":["10.0.0.0/8"]}"#).expect("they are");
        let written = serde_json::to_string(&list).expect("it is JSON");
        assert_eq!(written, r#"{"policy":{"allow_list":["example.com"]},"exceptions":["10.0.0.0/8"]}"#);
        assert_eq!(read(&written).expect("they are"), list);
        for wrong in [r#"{"policy":{"allow_list":[]}}"#, r#"{"policy":"shut"}"#, r#"{"policy":"open","color":1}"#] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn an_allow_list_agrees_with_one_that_compares_labels(
            domains in prop::collection::vec(prop::collection::vec("[ab]{1,2}", 1..4), 1..5),
            asked in prop::collection::vec("[ab]{1,2}", 1..6),
        ) {
            let list = AllowList::new(domains.iter().map(|labels| labels.join("."))).expect("they are domains");
            let expected = domains.iter().any(|domain| {
                domain.iter().rev().zip(asked.iter().rev()).filter(|(one, other)| one == other).count() == domain.len()
            });
            prop_assert_eq!(list.permits(&name(&asked.join("."))), expected);
        }
    }
}
