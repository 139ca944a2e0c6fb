//! QEMU's version, from the text of `--version`.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The oldest QEMU that is supported: a long-term branch, Debian stable's, and the oldest on which this device list and its saved
/// states are tested.
///
/// Older ones lack single features: `microvm` without ACPI is 5.2, `main-loop` options are 7.1, `-netdev stream` is 7.2, x2APIC
/// under emulation is 9.0.
pub const MINIMUM_VERSION: Version = Version { major: 10, minor: 0, micro: 0 };

/// A version number, ordered as versions are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Version {
    /// Grows once a year.
    pub major: u32,
    /// Grows with each release of the year.
    pub minor: u32,
    /// Grows with each fix; 50 and above is a version in development.
    pub micro: u32,
}

/// A version and who built it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct QemuVersion {
    /// The number.
    pub version: Version,
    /// The builder's words, for example a distribution's package version.
    pub package: Option<String>,
}

/// A text that does not tell QEMU's version.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the answer to --version does not name a QEMU version: `{first_line}`")]
pub struct VersionError {
    /// The start of the answer.
    pub first_line: String,
}

impl fmt::Display for Version {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{}.{}", self.major, self.minor, self.micro)
    }
}

impl fmt::Display for QemuVersion {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.package {
            Some(package) => write!(formatter, "{} ({package})", self.version),
            None => write!(formatter, "{}", self.version),
        }
    }
}

impl QemuVersion {
    /// Reads the answer of `qemu-system-… --version`.
    ///
    /// # Errors
    /// The answer is not QEMU's.
    pub fn parse(answer: &str) -> Result<Self, VersionError> {
        let first_line = answer.lines().next().unwrap_or_default().trim();
        parse_line(first_line).ok_or_else(|| VersionError { first_line: first_line.chars().take(200).collect() })
    }
}

fn parse_line(line: &str) -> Option<QemuVersion> {
    let rest = line.strip_prefix("QEMU emulator version ")?;
    let (number, package) = match rest.split_once(' ') {
        None => (rest, None),
        Some((number, package)) => (number, package.trim().strip_prefix('(')?.strip_suffix(')').map(str::to_owned)),
    };
    let mut parts = number.split('.').map(|part| part.parse().ok());
    let version = Version { major: parts.next()??, minor: parts.next()??, micro: parts.next()?? };
    parts.next().is_none().then_some(QemuVersion { version, package })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(answer: &str) -> (String, Option<String>) {
        let parsed = QemuVersion::parse(answer).expect("the answer is QEMU's");
        (parsed.version.to_string(), parsed.package)
    }

    #[test]
    fn debian_upstream_and_homebrew_answers_are_read() {
        let copyright = "\nCopyright (c) 2003-2025 Fabrice Bellard and the QEMU Project developers\n";
        let debian = format!("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2+deb13u1~bpo12+1){copyright}");
        assert_eq!(parsed(&debian), ("10.0.2".into(), Some("Debian 1:10.0.2+ds-2+deb13u1~bpo12+1".into())));
        let upstream = format!("QEMU emulator version 10.1.91 (v10.2.0-rc1-2-gabcdef){copyright}");
        assert_eq!(parsed(&upstream), ("10.1.91".into(), Some("v10.2.0-rc1-2-gabcdef".into())));
        let homebrew = format!("QEMU emulator version 10.1.2{copyright}");
        assert_eq!(parsed(&homebrew), ("10.1.2".into(), None));
    }

    #[test]
    fn versions_are_ordered_by_number_not_by_text() {
        let of = |text: &str| QemuVersion::parse(&format!("QEMU emulator version {text}")).expect("it is one").version;
        assert!(of("10.0.0") > of("9.2.4"));
        assert!(of("10.0.2") < of("10.0.13"));
        assert!(of("7.2.0") < MINIMUM_VERSION && of("10.0.0") >= MINIMUM_VERSION);
    }

    #[test]
    fn another_programs_answer_is_refused_with_its_first_line() {
        for answer in
            ["", "bash 5.2", "QEMU emulator version", "QEMU emulator version 10", "QEMU emulator version 1.2.3.4"]
        {
            let error = QemuVersion::parse(answer).expect_err("it is not QEMU's");
            assert_eq!(error.first_line, answer);
        }
    }
}
