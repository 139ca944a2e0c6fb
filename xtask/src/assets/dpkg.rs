//! Package lists: what dpkg's status file says is installed, and the short text form in which the cache keeps it.

/// An installed package.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Installed {
    pub(crate) name: String,
    pub(crate) version: String,
}

/// The fully installed packages of a status file, sorted.
pub(crate) fn installed(status: &str) -> Vec<Installed> {
    let mut packages: Vec<Installed> = status.split("\n\n").filter_map(stanza).collect();
    packages.sort();
    packages
}

/// `name version` lines.
pub(crate) fn to_text(packages: &[Installed]) -> String {
    packages.iter().map(|package| format!("{} {}\n", package.name, package.version)).collect()
}

/// What [`to_text`] wrote.
pub(crate) fn from_text(text: &str) -> Vec<Installed> {
    let pairs = text.lines().filter_map(|line| line.split_once(' '));
    pairs.map(|(name, version)| Installed { name: name.into(), version: version.into() }).collect()
}

/// The version that a program gives of itself: Debian's without epoch and revision.
pub(crate) fn upstream_version(version: &str) -> &str {
    let version = version.split_once(':').map_or(version, |(_, rest)| rest);
    version.rsplit_once('-').map_or(version, |(upstream, _)| upstream)
}

fn stanza(text: &str) -> Option<Installed> {
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    if field("Status")? != "install ok installed" {
        return None;
    }
    Some(Installed { name: field("Package")?.to_owned(), version: field("Version")?.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS: &str = "\
Package: zlib1g
Status: install ok installed
Version: 1:1.3.1-1
Description: compression
 Package: not a field, but the description's second line

Package: half
Status: install ok unpacked
Version: 2

Package: bash
Status: install ok installed
Version: 5.2.37-2+b10
";

    #[test]
    fn only_installed_packages_are_listed_and_in_order() {
        let found = installed(STATUS);
        assert_eq!(to_text(&found), "bash 5.2.37-2+b10\nzlib1g 1:1.3.1-1\n");
        assert_eq!(from_text(&to_text(&found)), found);
    }

    #[test]
    fn upstream_versions_lose_epoch_and_revision() {
        let cases =
            [("1:2.47.3-0+deb13u1", "2.47.3"), ("5.2.37-2+b10", "5.2.37"), ("1.4.5", "1.4.5"), ("1.0-rc-1", "1.0-rc")];
        for (version, upstream) in cases {
            assert_eq!(upstream_version(version), upstream);
        }
    }
}
