//! Refusals: every reason for which something of the guest's is not done, and how often each was met.
//!
//! One closed list for the whole gateway, so that a counter, a log line, an outcome and a test mean the same by a name. A name never
//! changes; the sentence may.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

macro_rules! refusals {
    ($($variant:ident, $name:literal, $sentence:literal;)*) => {
        /// Why something was refused. Its text is a sentence for people, its [`name`](Self::name) is for programs.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, thiserror::Error)]
        pub enum Refusal {
            $(
                #[doc = $sentence]
                #[serde(rename = $name)]
                #[error($sentence)]
                $variant,
            )*
        }

        impl Refusal {
            /// Every refusal, in the order in which they are told.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The name that counters, logs and outcomes use.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }
        }
    };
}

refusals! {
    NetworkDenied, "network_denied", "the VM has no network";
    InboundOnly, "inbound_only", "the VM may be reached and may not reach anything itself";

    PrivateAddress, "private_address", "the address is of a private network";
    LoopbackAddress, "loopback_address", "the address is the host's own";
    LinkLocalAddress, "link_local_address", "the address is of the host's link";
    MetadataAddress, "metadata_address", "a cloud tells secrets of the host at this address";
    MulticastAddress, "multicast_address", "the address is of a group";
    ReservedAddress, "reserved_address", "the address is reserved and of no host of the internet";
    Ipv6Refused, "ipv6_refused", "this network has no IPv6";
    AddressNotResolved, "address_not_resolved", "no answer of DNS gave this address for a permitted name";
    PortNotAllowed, "port_not_allowed", "with an allow-list only port 443 may be reached";
    UdpNotAllowed, "udp_not_allowed", "with an allow-list no UDP may be sent";
    QuicNotAllowed, "quic_not_allowed", "the name in QUIC cannot be checked, so that TLS over TCP has to be used";

    NotTls, "not_tls", "with an allow-list a connection has to begin with a ClientHello of TLS";
    HelloMalformed, "hello_malformed", "the ClientHello contradicts itself";
    HelloTooLarge, "hello_too_large", "the ClientHello is larger than any client's";
    NoName, "no_name", "the ClientHello names no server";
    NameIsAddress, "name_is_address", "an address stands where a name has to be";
    NameMalformed, "name_malformed", "the name is not one of a host";
    NameTooLong, "name_too_long", "the name is longer than any host's";
    NameNotAllowed, "name_not_allowed", "the name is not on the allow-list";
    NameAddressMismatch, "name_address_mismatch", "no answer of DNS gave this address for the name in the ClientHello";

    QueryMalformed, "query_malformed", "the question is not one that a resolver asks";
    QueryTooLarge, "query_too_large", "the question is larger than any that asks for a name";
    QueryType, "query_type", "nothing but addresses is asked for in this network";
    QueryRate, "query_rate", "more questions are asked than programs have";
    QueryBudget, "query_budget", "more new names are asked for than programs have";
    QueryLimit, "query_limit", "too many questions wait for their answers";

    Fragment, "fragment", "fragments are not put together";
    ProtocolRefused, "protocol_refused", "nothing but TCP and UDP is carried";
    FlowLimit, "flow_limit", "too many connections are open";
    FlowRate, "flow_rate", "more connections are opened than programs open";
}

/// How often each refusal was met. A count that is full stays full.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "BTreeMap<String, u64>", from = "BTreeMap<String, u64>")]
pub struct Refusals([u64; Refusal::ALL.len()]);

impl Refusals {
    /// Counts one.
    pub fn count(&mut self, why: Refusal) {
        self.add(why, 1);
    }

    /// How often `why` was met.
    #[must_use]
    pub fn get(&self, why: Refusal) -> u64 {
        self.0.get(why as usize).copied().unwrap_or_default()
    }

    /// Adds what another has counted.
    pub fn merge(&mut self, other: &Self) {
        for why in Refusal::ALL {
            self.add(*why, other.get(*why));
        }
    }

    /// All of them with their names; those that were not met too.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        Refusal::ALL.iter().map(|why| (why.name(), self.get(*why)))
    }

    fn add(&mut self, why: Refusal, more: u64) {
        if let Some(count) = self.0.get_mut(why as usize) {
            *count = count.saturating_add(more);
        }
    }
}

impl Default for Refusals {
    fn default() -> Self {
        Self([0; Refusal::ALL.len()])
    }
}

/// What was not met is left out.
impl From<Refusals> for BTreeMap<String, u64> {
    fn from(refusals: Refusals) -> Self {
        refusals.iter().filter(|(_, count)| *count > 0).map(|(name, count)| (name.to_owned(), count)).collect()
    }
}

/// A name that this build does not know is left out: it was counted by a newer one.
impl From<BTreeMap<String, u64>> for Refusals {
    fn from(counts: BTreeMap<String, u64>) -> Self {
        let mut refusals = Self::default();
        for why in Refusal::ALL {
            refusals.add(*why, counts.get(why.name()).copied().unwrap_or_default());
        }
        refusals
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_refusal_has_a_name_and_a_sentence_of_its_own() {
        let names: BTreeSet<_> = Refusal::ALL.iter().map(|why| why.name()).collect();
        let sentences: BTreeSet<_> = Refusal::ALL.iter().map(ToString::to_string).collect();
        assert_eq!((names.len(), sentences.len()), (Refusal::ALL.len(), Refusal::ALL.len()));
        for (index, why) in Refusal::ALL.iter().enumerate() {
            assert_eq!(*why as usize, index, "{}", why.name());
            assert_eq!(serde_json::to_value(why).expect("it is JSON"), why.name());
        }
    }

    #[test]
    fn each_is_counted_for_itself() {
        let mut refusals = Refusals::default();
        for (index, why) in Refusal::ALL.iter().enumerate() {
            (0..=index).for_each(|_| refusals.count(*why));
        }
        let expected: Vec<_> = Refusal::ALL.iter().zip(1..).map(|(why, count)| (why.name(), count)).collect();
        assert_eq!(refusals.iter().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn merging_adds_and_a_full_count_stays_full() {
        let mut one = Refusals::default();
        one.count(Refusal::Fragment);
        let mut full = Refusals::default();
        full.add(Refusal::Fragment, u64::MAX);
        one.merge(&one.clone());
        assert_eq!(one.get(Refusal::Fragment), 2);
        one.merge(&full);
        assert_eq!(one.get(Refusal::Fragment), u64::MAX);
        assert_eq!(one.get(Refusal::NotTls), 0);
    }

    #[test]
    fn counts_are_told_by_name_and_an_unknown_name_is_left_out() {
        let mut refusals = Refusals::default();
        refusals.count(Refusal::NoName);
        let told = serde_json::to_string(&refusals).expect("it is JSON");
        assert_eq!(told, r#"{"no_name":1}"#);
        let heard: Refusals = serde_json::from_str(r#"{"no_name":1,"color":7}"#).expect("it is one");
        assert_eq!(heard, refusals);
    }
}
