//! The network of a VM: what it reaches, and which of its ports are reached.

use std::{
    collections::BTreeSet,
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use exec_sandbox_gateway::policy::{AllowList, Policy, Rules};
use serde::{Deserialize, Serialize};

use crate::{
    Error, ErrorKind, Language,
    config::{self, SchedulerConfig},
    network::Registries,
};

/// Most ports of one VM.
const MAX_PORTS: usize = 10;
/// Least port of the host that may be asked for: those below are the system's.
const MIN_EXTERNAL_PORT: u16 = 1024;
/// Longest domain, in characters: what DNS can carry.
const MAX_DOMAIN_CHARS: usize = 253;
/// Longest part of a domain, in characters; DNS again.
const MAX_LABEL_CHARS: usize = 63;

/// What of the network a VM reaches.
///
/// Whatever it is, ports of the VM may be exposed besides. Private, local and metadata addresses are refused under every policy,
/// unless [`SchedulerConfig::network_exceptions`] lists them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum NetworkPolicy {
    /// Nothing.
    #[default]
    Denied,
    /// What its language needs: the package registries for Python and JavaScript, everything public for the shell. Which hosts
    /// those are the image says, or [`SchedulerConfig::registries`].
    LanguageDefault,
    /// These domains and their subdomains, by TLS on port 443: at least one, each of two labels or more.
    AllowList(Vec<String>),
    /// Everything public.
    Open,
}

/// A port of a VM that is reached from the host, on 127.0.0.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PortMapping {
    /// The port in the guest, at least 1.
    pub internal: u16,
    /// The port of the host, at least 1024. `None`: one that is free.
    pub external: Option<u16>,
    /// What is spoken there.
    pub protocol: Protocol,
}

/// A port of a VM, and where it is reached on the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ExposedPort {
    /// The port in the guest.
    pub internal: u16,
    /// The port of the host. It is open since before the VM was started.
    pub external: u16,
    /// The address of the host: 127.0.0.1.
    pub host: IpAddr,
    /// What is spoken there.
    pub protocol: Protocol,
}

/// The network of a VM that has one: every limit holds. A VM that reaches nothing and of which nothing is reached has none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ValidNetwork {
    pub(crate) rules: Rules,
    pub(crate) expose: Vec<PortMapping>,
    /// `None`: the host's own.
    pub(crate) resolvers: Option<Vec<SocketAddr>>,
}

/// What is spoken on a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Protocol {
    /// Streams.
    #[default]
    Tcp,
    /// Datagrams.
    Udp,
}

/// A name that is none of the protocols.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown protocol {name:?}: use tcp or udp")]
pub struct UnknownProtocol {
    /// The name as it was given.
    pub name: String,
}

impl Protocol {
    /// Every protocol.
    pub const ALL: [Self; 2] = [Self::Tcp, Self::Udp];

    /// The name in configuration, on the command line and in JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Protocol {
    type Err = UnknownProtocol;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.into_iter().find(|protocol| protocol.name() == name);
        found.ok_or_else(|| UnknownProtocol { name: name.into() })
    }
}

impl ValidNetwork {
    /// What is asked for of a VM of `language`, closed. `None`: no network at all.
    ///
    /// # Errors
    /// It is invalid, or nobody has said which hosts are the language's.
    pub(super) fn of(
        (policy, expose): (NetworkPolicy, Vec<PortMapping>),
        language: Language,
        config: &SchedulerConfig,
        registries: &Registries,
    ) -> Result<Option<Self>, Error> {
        check_policy(&policy)?;
        check_ports(&expose)?;
        let policy = match policy {
            NetworkPolicy::Denied if expose.is_empty() => return Ok(None),
            NetworkPolicy::Denied => Policy::InboundOnly,
            NetworkPolicy::LanguageDefault => match language {
                Language::Python | Language::JavaScript => Policy::AllowList(registries.of(language)?.clone()),
                Language::Raw => Policy::Open,
            },
            NetworkPolicy::AllowList(domains) => Policy::AllowList(
                AllowList::new(domains).map_err(|error| refused("reading allowed domains".into()).because(error))?,
            ),
            NetworkPolicy::Open => Policy::Open,
        };
        let rules = Rules { policy, exceptions: config::exceptions(&config.network_exceptions)? };
        Ok(Some(Self { rules, expose, resolvers: config.resolvers.clone() }))
    }
}

/// Checks what is to be reached.
fn check_policy(policy: &NetworkPolicy) -> Result<(), Error> {
    match policy {
        NetworkPolicy::Denied | NetworkPolicy::LanguageDefault | NetworkPolicy::Open => Ok(()),
        NetworkPolicy::AllowList(domains) if domains.is_empty() => {
            Err(refused("The list of allowed domains is empty: name one, or ask for no network or an open one".into()))
        }
        NetworkPolicy::AllowList(domains) => domains.iter().try_for_each(|domain| check_domain(domain)),
    }
}

/// Checks the ports of one VM.
fn check_ports(ports: &[PortMapping]) -> Result<(), Error> {
    if ports.len() > MAX_PORTS {
        return Err(refused(format!("Too many exposed ports: {} (max {MAX_PORTS})", ports.len())));
    }
    let (mut taken, mut exposed) = (BTreeSet::new(), BTreeSet::new());
    for PortMapping { internal, external, protocol } in ports {
        if *internal == 0 {
            return Err(refused("internal port must be between 1 and 65535, not 0".into()));
        }
        if !exposed.insert((*protocol, *internal)) {
            return Err(refused(format!("internal port {internal}/{protocol} is exposed twice")));
        }
        let Some(external) = external else { continue };
        if *external < MIN_EXTERNAL_PORT {
            let message = format!("external port must be between {MIN_EXTERNAL_PORT} and 65535, not {external}");
            return Err(refused(message));
        }
        if !taken.insert((*protocol, *external)) {
            return Err(refused(format!("external port {external}/{protocol} is given to two exposed ports")));
        }
    }
    Ok(())
}

/// Case means nothing in a domain, nor does a dot at its end.
fn check_domain(domain: &str) -> Result<(), Error> {
    let shown: String = domain.chars().take(80).collect();
    let wrong = |why: &str| Err(refused(format!("Domain {shown:?} cannot be allowed: {why}")));
    let name = domain.strip_suffix('.').unwrap_or(domain);
    if name.starts_with("*.") {
        return wrong("leave out `*.`, subdomains are included");
    }
    if name.chars().count() > MAX_DOMAIN_CHARS {
        return wrong(&format!("it has more than {MAX_DOMAIN_CHARS} characters"));
    }
    let labels: Vec<&str> = name.split('.').collect();
    if !labels.iter().all(|label| is_label(label)) {
        return wrong(&format!(
            "between dots there are 1 to {MAX_LABEL_CHARS} letters of ASCII, digits and hyphens, a hyphen neither first nor last"
        ));
    }
    if labels.len() < 2 {
        return wrong("it needs at least two labels, such as example.com");
    }
    // As of a URL's host: one whose last label is a number is an address.
    if labels.last().is_some_and(|last| last.bytes().all(|byte| byte.is_ascii_digit())) {
        return wrong("it is an address, and only names are allowed");
    }
    Ok(())
}

fn is_label(label: &str) -> bool {
    (1..=MAX_LABEL_CHARS).contains(&label.len())
        && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        && !label.starts_with('-')
        && !label.ends_with('-')
}

fn refused(message: String) -> Error {
    Error::new(ErrorKind::InvalidArgument, message)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn allow(domain: &str) -> Option<String> {
        check_policy(&NetworkPolicy::AllowList(vec![domain.into()])).err().map(|error| {
            assert_eq!(error.kind(), ErrorKind::InvalidArgument);
            error.to_string()
        })
    }

    fn tcp(internal: u16, external: Option<u16>) -> PortMapping {
        PortMapping { internal, external, protocol: Protocol::Tcp }
    }

    fn told(ports: &[PortMapping]) -> Option<String> {
        check_ports(ports).err().map(|error| error.to_string())
    }

    #[test]
    fn names_that_dns_can_carry_are_allowed() {
        let longest = format!("{}.{}", ["a".repeat(63).as_str(); 3].join("."), "b".repeat(61));
        assert_eq!(longest.len(), 253);
        for domain in ["example.com", "EXAMPLE.com.", "a-b.c1.example", "xn--bcher-kva.example", "1.2.3.x4", &longest] {
            assert_eq!(allow(domain), None, "{domain}");
        }
    }

    #[test]
    fn what_is_no_domain_is_refused_by_its_name() {
        let too_long = format!("{}.com", ["a"; 126].join("."));
        for (domain, why) in [
            ("", "letters"),
            (".", "letters"),
            ("localhost", "two labels"),
            ("com.", "two labels"),
            ("*.example.com", "subdomains are included"),
            ("a.*.example.com", "letters"),
            ("a..example.com", "letters"),
            ("example.com..", "letters"),
            (".example.com", "letters"),
            ("-a.example.com", "letters"),
            ("a-.example.com", "letters"),
            ("a_b.example.com", "letters"),
            ("bücher.example", "letters"),
            ("example.com:443", "letters"),
            ("https://example.com", "letters"),
            ("example.com/a", "letters"),
            (" example.com", "letters"),
            ("example.com\0", "letters"),
            ("127.0.0.1", "an address"),
            ("1.2", "an address"),
            (&too_long, "253 characters"),
            (&format!("{}.com", "a".repeat(64)), "letters"),
        ] {
            let shown: String = domain.chars().take(80).collect();
            let text = allow(domain).unwrap_or_default();
            assert!(text.contains(why) && text.contains(&format!("{shown:?}")), "{domain:?}: {text}");
        }
    }

    #[test]
    fn a_list_that_allows_nothing_is_no_list() {
        let error = check_policy(&NetworkPolicy::AllowList(vec![])).expect_err("it is empty");
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    }

    #[test]
    fn ports_have_their_ranges() {
        assert_eq!(told(&[tcp(1, None), tcp(65535, Some(1024)), tcp(80, Some(65535))]), None);
        assert_eq!(told(&[tcp(0, None)]).as_deref(), Some("internal port must be between 1 and 65535, not 0"));
        let expected = "external port must be between 1024 and 65535, not 1023";
        assert_eq!(told(&[tcp(80, Some(1023))]).as_deref(), Some(expected));
    }

    #[test]
    fn a_port_of_the_host_is_given_away_once_for_each_protocol() {
        let udp = PortMapping { protocol: Protocol::Udp, ..tcp(53, Some(8000)) };
        assert_eq!(told(&[tcp(80, Some(8000)), udp, tcp(81, None)]), None);
        let twice = told(&[tcp(80, Some(8000)), udp, tcp(81, Some(8000))]);
        assert_eq!(twice.as_deref(), Some("external port 8000/tcp is given to two exposed ports"));
    }

    #[test]
    fn a_port_of_the_guest_is_exposed_once_for_each_protocol() {
        let udp = PortMapping { protocol: Protocol::Udp, ..tcp(80, None) };
        assert_eq!(told(&[tcp(80, None), udp]), None);
        let twice = told(&[tcp(80, None), tcp(80, Some(8000))]);
        assert_eq!(twice.as_deref(), Some("internal port 80/tcp is exposed twice"));
    }

    #[test]
    fn the_number_of_ports_has_a_limit() {
        let ten: Vec<PortMapping> = (80..90).map(|port| tcp(port, None)).collect();
        assert_eq!(told(&ten), None);
        assert_eq!(told(&[tcp(80, None); 11]).as_deref(), Some("Too many exposed ports: 11 (max 10)"));
    }

    #[test]
    fn what_is_asked_for_has_one_meaning() {
        let config = SchedulerConfig::default();
        let hosts = BTreeMap::from([(Language::Python, vec!["packages.example.com".to_owned()])]);
        let registries = Registries::configured(&hosts, None).expect("they are hosts");
        let meant = |policy: NetworkPolicy, ports: &[PortMapping], language| {
            let network = ValidNetwork::of((policy, ports.to_vec()), language, &config, &registries);
            network.map(|network| network.map(|network| network.rules.policy))
        };
        let list = |domains: &[&str]| Some(Policy::AllowList(AllowList::new(domains).expect("they are domains")));
        let named = || NetworkPolicy::AllowList(vec!["Example.com.".into()]);
        for (policy, ports, language, expected) in [
            (NetworkPolicy::Denied, &[][..], Language::Raw, None),
            (NetworkPolicy::Denied, &[tcp(80, None)], Language::Raw, Some(Policy::InboundOnly)),
            (NetworkPolicy::Open, &[], Language::Python, Some(Policy::Open)),
            (named(), &[tcp(80, None)], Language::Python, list(&["example.com"])),
            (NetworkPolicy::LanguageDefault, &[], Language::Python, list(&["packages.example.com"])),
            (NetworkPolicy::LanguageDefault, &[], Language::Raw, Some(Policy::Open)),
        ] {
            let asked = format!("{policy:?} {language}");
            assert_eq!(meant(policy, ports, language).expect("it is valid"), expected, "{asked}");
        }
        let error = meant(NetworkPolicy::LanguageDefault, &[], Language::JavaScript).expect_err("nobody says which");
        assert_eq!(error.kind(), ErrorKind::InvalidConfig);
        assert!(error.remedy().is_some_and(|remedy| remedy.contains("EXEC_SANDBOX_REGISTRIES")), "{error:?}");
    }

    #[test]
    fn every_protocol_is_found_by_its_name() {
        for protocol in Protocol::ALL {
            assert_eq!(protocol.name().parse(), Ok(protocol));
        }
        assert!("sctp".parse::<Protocol>().is_err());
    }

    proptest! {
        #[test]
        fn a_domain_is_what_it_is_in_any_case_and_with_a_dot_at_its_end(text in "[-a-cA-C0-2.*_]{0,12}") {
            let is_allowed = allow(&text).is_none();
            prop_assert_eq!(allow(&text.to_ascii_uppercase()).is_none(), is_allowed);
            if !text.ends_with('.') {
                prop_assert_eq!(allow(&format!("{text}.")).is_none(), is_allowed);
            }
        }
    }
}
