//! Exceptions: ranges that the host's configuration lists, which may be reached although they are not the internet's.
//!
//! An exception lifts the refusal of a range and nothing else: an allow-list still wants a name and TLS. It is meant literally. A
//! metadata address may be reached only if it is listed by itself, so that a list of a whole network gives no credentials away.

use std::{fmt, net::IpAddr, str::FromStr};

use serde::{Deserialize, Serialize};

use super::{ReservedRange, classify};

/// Most exceptions. An operator lists some networks by hand; each is compared with every new connection.
pub const MAX_EXCEPTIONS: usize = 256;

/// A range of addresses: `10.1.0.0/16`, or an address alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Cidr {
    first: IpAddr,
    prefix_bits: u8,
}

/// Why a text is no range.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CidrError {
    /// What is before the slash is no address.
    #[error("reading the address of a range")]
    Address(#[source] std::net::AddrParseError),
    /// What is behind the slash is no number, or more bits than the address has.
    #[error("the length of a range's prefix is a number of at most {most} bits")]
    Prefix {
        /// The bits of the address.
        most: u8,
    },
    /// Bits behind the prefix are set: something else was meant.
    #[error("the range's address has bits behind its prefix")]
    HostBits,
}

/// Ranges that may be reached. By default none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<Cidr>", into = "Vec<Cidr>")]
pub struct Exceptions(Vec<Cidr>);

/// There are more than [`MAX_EXCEPTIONS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("at most {MAX_EXCEPTIONS} ranges may be excepted")]
pub struct TooManyExceptions;

impl Cidr {
    /// Whether `address` is in it. An address of IPv4 that is mapped into IPv6 is the one that it maps.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.first, address.to_canonical()) {
            (IpAddr::V4(first), IpAddr::V4(address)) => {
                (u32::from(first) ^ u32::from(address)).leading_zeros() >= self.prefix_bits.into()
            }
            (IpAddr::V6(first), IpAddr::V6(address)) => {
                (u128::from(first) ^ u128::from(address)).leading_zeros() >= self.prefix_bits.into()
            }
            _ => false,
        }
    }

    /// Whether it is one address alone.
    fn is_single(&self) -> bool {
        self.prefix_bits == bits(self.first)
    }
}

impl Exceptions {
    /// The exceptions that are listed.
    ///
    /// # Errors
    /// [`TooManyExceptions`].
    pub fn new(ranges: impl IntoIterator<Item = Cidr>) -> Result<Self, TooManyExceptions> {
        let ranges: Vec<Cidr> = ranges.into_iter().take(MAX_EXCEPTIONS + 1).collect();
        if ranges.len() > MAX_EXCEPTIONS { Err(TooManyExceptions) } else { Ok(Self(ranges)) }
    }

    /// What of `address` is in the way: nothing if it is the internet's or is excepted.
    #[must_use]
    pub fn judge(&self, address: IpAddr) -> Option<ReservedRange> {
        let range = classify(address)?;
        let is_metadata = range == ReservedRange::Metadata;
        let is_excepted = self.0.iter().any(|cidr| cidr.contains(address) && (!is_metadata || cidr.is_single()));
        (!is_excepted).then_some(range)
    }
}

fn bits(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

impl FromStr for Cidr {
    type Err = CidrError;

    fn from_str(text: &str) -> Result<Self, CidrError> {
        let (address, prefix) = text.split_once('/').map_or((text, None), |(address, prefix)| (address, Some(prefix)));
        let first: IpAddr = address.parse().map_err(CidrError::Address)?;
        let most = bits(first);
        let prefix_bits = match prefix {
            // A sign is read by `parse`, and is none of a range's.
            Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => digits.parse().ok(),
            Some(_) => None,
            None => Some(most),
        };
        let prefix_bits = prefix_bits.filter(|bits| *bits <= most).ok_or(CidrError::Prefix { most })?;
        let trailing_zeros = match first {
            IpAddr::V4(first) => u32::from(first).trailing_zeros(),
            IpAddr::V6(first) => u128::from(first).trailing_zeros(),
        };
        if trailing_zeros < u32::from(most - prefix_bits) {
            Err(CidrError::HostBits)
        } else {
            Ok(Self { first, prefix_bits })
        }
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.first, self.prefix_bits)
    }
}

impl TryFrom<String> for Cidr {
    type Error = CidrError;

    fn try_from(text: String) -> Result<Self, CidrError> {
        text.parse()
    }
}

impl From<Cidr> for String {
    fn from(cidr: Cidr) -> Self {
        cidr.to_string()
    }
}

impl TryFrom<Vec<Cidr>> for Exceptions {
    type Error = TooManyExceptions;

    fn try_from(ranges: Vec<Cidr>) -> Result<Self, TooManyExceptions> {
        Self::new(ranges)
    }
}

impl From<Exceptions> for Vec<Cidr> {
    fn from(exceptions: Exceptions) -> Self {
        exceptions.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(exceptions: &[&str], address: &str) -> Option<ReservedRange> {
        let exceptions = exceptions.iter().map(|text| text.parse().expect("it is a range"));
        Exceptions::new(exceptions).expect("they are few").judge(address.parse().expect("it is an address"))
    }

    #[test]
    fn an_exception_lifts_the_refusal_of_its_range_alone() {
        let cases = [
            (&["10.1.0.0/16"][..], "10.1.255.255", None),
            (&["10.1.0.0/16"], "10.2.0.0", Some(ReservedRange::Private)),
            (&["10.1.0.0/16"], "10.0.255.255", Some(ReservedRange::Private)),
            (&["10.1.0.0/16"], "::ffff:10.1.0.1", None),
            (&["10.1.0.0/16"], "64:ff9b::10.1.0.1", Some(ReservedRange::Private)),
            (&["127.0.0.1"], "127.0.0.1", None),
            (&["127.0.0.1"], "127.0.0.2", Some(ReservedRange::Loopback)),
            (&["fd12::/16", "10.0.0.0/8"], "fd12::1", None),
            (&["fd12::/16"], "fd13::1", Some(ReservedRange::Private)),
            (&["0.0.0.0/0"], "10.9.9.9", None),
            (&["0.0.0.0/0"], "fd12::1", Some(ReservedRange::Private)),
            (&[], "10.9.9.9", Some(ReservedRange::Private)),
            (&[], "8.8.8.8", None),
        ];
        for (exceptions, address, expected) in cases {
            assert_eq!(judge(exceptions, address), expected, "{exceptions:?} {address}");
        }
    }

    #[test]
    fn metadata_has_to_be_listed_by_itself() {
        let metadata = "169.254.169.254";
        for wide in ["169.254.0.0/16", "169.254.169.254/31", "0.0.0.0/0"] {
            assert_eq!(judge(&[wide], metadata), Some(ReservedRange::Metadata), "{wide}");
        }
        assert_eq!(judge(&["169.254.0.0/16"], "169.254.1.1"), None);
        for single in ["169.254.169.254", "169.254.169.254/32"] {
            assert_eq!(judge(&[single], metadata), None, "{single}");
        }
    }

    #[test]
    fn what_is_no_range_says_why() {
        let read = |text: &str| text.parse::<Cidr>();
        for text in ["10.0.0.0/33", "10.0.0.0/", "10.0.0.0/-1", "10.0.0.0/+8", "10.0.0.0/8/8"] {
            assert_eq!(read(text), Err(CidrError::Prefix { most: 32 }), "{text}");
        }
        assert_eq!(read("fd00::/129"), Err(CidrError::Prefix { most: 128 }));
        for text in ["10.0.0.1/8", "0.0.0.1/0", "fd00::1/64"] {
            assert_eq!(read(text), Err(CidrError::HostBits), "{text}");
        }
        for text in ["", "/8", "example.com", "10.0.0/8"] {
            assert!(matches!(read(text), Err(CidrError::Address(_))), "{text}");
        }
        for text in ["10.0.0.0/8", "0.0.0.0/0", "::/0", "192.0.2.7/32", "fd00:1::/32"] {
            assert_eq!(read(text).expect("it is a range").to_string(), text);
        }
    }

    #[test]
    fn a_configuration_lists_them_as_texts() {
        let read = |json: &str| serde_json::from_str::<Exceptions>(json);
        let exceptions = read(r#"["10.0.0.0/8","127.0.0.1"]"#).expect("it is a list");
        assert_eq!(serde_json::to_string(&exceptions).expect("it is JSON"), r#"["10.0.0.0/8","127.0.0.1/32"]"#);
        assert!(read(r#"["10.0.0.1/8"]"#).is_err());
        let many = |count| serde_json::to_string(&vec!["10.0.0.0/8"; count]).expect("it is JSON");
        assert!(read(&many(MAX_EXCEPTIONS)).is_ok());
        assert!(read(&many(MAX_EXCEPTIONS + 1)).is_err());
    }
}
