//! Names of hosts: the one form in which they are compared.
//!
//! Small ASCII letters, digits, hyphens and underscores in labels of at most 63 bytes, without a dot at the end. A name that a guest
//! wrote has to come into this form before anything is decided by it; what has no such form, or is an address, is none.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::Refusal;

/// Longest name: what a question of DNS can ask for, written with dots.
pub const MAX_NAME_BYTES: usize = 253;

/// Longest label of a name.
const MAX_LABEL_BYTES: usize = 63;

/// A name of a host.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

/// Why a text is no name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// There is nothing, or nothing between two dots.
    #[error("a name has labels with something in them, with dots between them")]
    EmptyLabel,
    /// It is longer than [`MAX_NAME_BYTES`], or a label of it is longer than a question can say.
    #[error("a name has at most {MAX_NAME_BYTES} bytes, and {MAX_LABEL_BYTES} between two dots")]
    TooLong,
    /// Something in it is no letter of ASCII, digit, hyphen or underscore.
    #[error("a name is made of letters of ASCII, digits, hyphens and underscores; other letters are written as xn--…")]
    Character,
    /// Its last label is a number: programs read that as an address.
    #[error("it is an address, not a name")]
    IsAddress,
}

impl Name {
    /// The name that `text` writes. A dot at its end is left out.
    ///
    /// # Errors
    /// [`NameError`] if it writes none.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let text = text.strip_suffix('.').unwrap_or(text);
        if text.parse::<std::net::IpAddr>().is_ok() {
            return Err(NameError::IsAddress);
        }
        if text.len() > MAX_NAME_BYTES {
            return Err(NameError::TooLong);
        }
        for label in text.split('.') {
            if label.is_empty() {
                return Err(NameError::EmptyLabel);
            }
            if !label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_') {
                return Err(NameError::Character);
            }
            if label.len() > MAX_LABEL_BYTES {
                return Err(NameError::TooLong);
            }
        }
        let last = text.rsplit('.').next().unwrap_or_default();
        if is_number(last) { Err(NameError::IsAddress) } else { Ok(Self(text.to_ascii_lowercase())) }
    }

    /// The name, written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this is `domain` or a name below it.
    #[must_use]
    pub fn is_within(&self, domain: &Self) -> bool {
        self.0.strip_suffix(&domain.0).is_some_and(|above| above.is_empty() || above.ends_with('.'))
    }
}

/// Whether programs read `label`, at the end of a name, as the end of an address: `127.1` and `0x7f.1` are addresses to many.
fn is_number(label: &str) -> bool {
    let hexadecimal = label.strip_prefix("0x").or_else(|| label.strip_prefix("0X"));
    match hexadecimal {
        Some(digits) => digits.bytes().all(|byte| byte.is_ascii_hexdigit()),
        None => label.bytes().all(|byte| byte.is_ascii_digit()),
    }
}

impl NameError {
    /// The refusal of a name that a guest wrote so.
    #[must_use]
    pub const fn refusal(self) -> Refusal {
        match self {
            Self::EmptyLabel | Self::Character => Refusal::NameMalformed,
            Self::TooLong => Refusal::NameTooLong,
            Self::IsAddress => Refusal::NameIsAddress,
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        Self::parse(text)
    }
}

impl TryFrom<String> for Name {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        Self::parse(&text)
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(text: &str) -> Name {
        Name::parse(text).expect("it is a name")
    }

    #[test]
    fn a_name_is_compared_in_one_form() {
        for text in ["example.com", "EXAMPLE.com", "example.com.", "eXample.Com."] {
            assert_eq!(name(text).as_str(), "example.com");
        }
        for text in ["a", "_dmarc.example.com", "xn--bcher-kva.example", "a-.b", "1.2.3.example", "0xy"] {
            assert_eq!(name(text).as_str(), text);
        }
    }

    #[test]
    fn what_is_no_name_says_why() {
        let long_label = format!("{}.com", "a".repeat(64));
        let long = ["a"; 128].join(".");
        for (text, why) in [
            ("", NameError::EmptyLabel),
            (".", NameError::EmptyLabel),
            ("a..b", NameError::EmptyLabel),
            (".a", NameError::EmptyLabel),
            ("a..", NameError::EmptyLabel),
            ("a b", NameError::Character),
            ("*.example.com", NameError::Character),
            ("b\u{fc}cher.example", NameError::Character),
            ("example.com\0", NameError::Character),
            ("example.com:443", NameError::Character),
            (&long_label, NameError::TooLong),
            (&long, NameError::TooLong),
            ("192.0.2.1", NameError::IsAddress),
            ("192.0.2.1.", NameError::IsAddress),
            ("127.1", NameError::IsAddress),
            ("2130706433", NameError::IsAddress),
            ("0x7f.1", NameError::IsAddress),
            ("1.0x7F", NameError::IsAddress),
            ("1.0x", NameError::IsAddress),
            ("2001:db8::1", NameError::IsAddress),
        ] {
            assert_eq!(Name::parse(text), Err(why), "{text}");
        }
        assert!(Name::parse(&format!("{}.com", "a".repeat(63))).is_ok());
        assert!(Name::parse(&["a"; 127].join(".")).is_ok());
    }

    proptest! {
        #[test]
        fn what_is_below_a_domain_ends_with_its_labels(
            labels in prop::collection::vec("[a-c]{1,2}", 1..5),
            domain in prop::collection::vec("[a-c]{1,2}", 1..4),
        ) {
            let expected = labels.len() >= domain.len() && labels[labels.len() - domain.len()..] == domain[..];
            prop_assert_eq!(name(&labels.join(".")).is_within(&name(&domain.join("."))), expected);
        }

        #[test]
        fn a_name_that_was_read_is_read_again(text in "[a-zA-Z0-9_.x-]{0,20}") {
            if let Ok(read) = Name::parse(&text) {
                prop_assert_eq!(Name::parse(read.as_str()), Ok(read));
            }
        }
    }
}
