//! Where packages come from: an index for each language, the hosts that it and its files are at, and who vouches for them.
//!
//! The index is the configuration's, the environment's or the image's, in this order, and the machine that installs reaches it and its
//! files and nothing else. No program of a user's runs there, and whom it speaks to has to prove its name by TLS: so where this host finds
//! a registry at a private address, as a company's mirror is, that address is let through.

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, SocketAddr, ToSocketAddrs as _},
    path::{Path, PathBuf},
};

use exec_sandbox_gateway::policy::{AllowList, Cidr, Exceptions, Policy, ReservedRange, Rules, classify};
use tracing::debug;

use crate::{Error, ErrorKind, Language, config, host, network::Registries, request::ValidNetwork};

/// Where systems keep the certificates that they believe, all in one file.
const AUTHORITIES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Most of a file of certificates: one of all that are usual has 250 KB.
const MAX_AUTHORITIES_BYTES: u64 = 8 << 20;

const REMEDY: &str = "name it in EXEC_SANDBOX_PACKAGE_INDEXES (python=https://mirror.example/simple/ \
                      javascript=https://mirror.example/npm/) or in the configuration";

/// The address of an index: HTTPS, at its usual port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Index {
    /// As it was given, perhaps with a password.
    url: String,
    host: String,
}

/// The indexes that somebody has chosen, by language.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Indexes(BTreeMap<Language, Chosen>);

/// An index, and by what it was chosen, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Chosen {
    index: Index,
    by: &'static str,
}

/// What is known of where packages come from.
#[derive(Clone, Debug)]
pub(crate) struct Sources {
    /// The configuration's and the environment's.
    chosen: Indexes,
    /// The image's.
    by_default: Indexes,
    registries: Registries,
    exceptions: Vec<Cidr>,
    resolvers: Option<Vec<SocketAddr>>,
    authorities: Option<PathBuf>,
}

/// Where the packages of one language come from.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    /// `None`: from where the installer does by itself.
    pub(crate) index: Option<Index>,
    /// Whether only the index knows where its files are.
    pub(crate) is_to_be_asked: bool,
    hosts: Vec<String>,
}

/// What the package managers' own variables say, which a private mirror's users have set already.
#[derive(Clone, Debug, Default)]
pub(crate) struct ToolVariables {
    pub(crate) python: Option<NamedValue>,
    pub(crate) javascript: Option<NamedValue>,
}

/// A variable's name, and what it says.
pub(crate) type NamedValue = (&'static str, String);

impl Index {
    /// # Errors
    /// It is none of a kind that a guest's network lets through.
    pub(crate) fn parse(url: &str) -> Result<Self, Error> {
        let authority = url.strip_prefix("https://").and_then(|rest| rest.split(['/', '?', '#']).next());
        let host = authority.and_then(|authority| authority.rsplit('@').next());
        let host = host.map(|host| host.strip_suffix(":443").unwrap_or(host).to_ascii_lowercase());
        let is_plain = !url.chars().any(|c| c.is_control() || c.is_whitespace());
        match host.filter(|host| is_plain && host.contains('.') && AllowList::new([host]).is_ok()) {
            Some(host) => Ok(Self { url: url.to_owned(), host }),
            None => {
                let message = format!("the package index {:?} is not HTTPS at a name and port 443", shown(url));
                Err(Error::new(ErrorKind::InvalidConfig, message).remedied_by(REMEDY))
            }
        }
    }

    /// As it is given to an installer.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// As it may be shown and written down: without a password, and one for all spellings of the end.
    pub(crate) fn public(&self) -> String {
        shown(&self.url).trim_end_matches('/').to_owned()
    }
}

impl Indexes {
    /// Those of the configuration, else of `variable` (`python=https://…` and so on), else of the package managers' own variables.
    pub(crate) fn configured(
        config: &BTreeMap<Language, String>,
        variable: Option<&str>,
        tools: &ToolVariables,
    ) -> Result<Self, Error> {
        let mut all = BTreeMap::new();
        let own = [(Language::Python, &tools.python), (Language::JavaScript, &tools.javascript)];
        for (language, own) in own {
            let Some((by, url)) = own else { continue };
            // They may name what an installer reaches and a guest does not: then they are not meant for it.
            match Index::parse(url) {
                Ok(index) => drop(all.insert(language, Chosen { index, by })),
                Err(error) => debug!(%language, %error, "a package manager's index is not used"),
            }
        }
        for entry in variable.unwrap_or_default().split_whitespace() {
            let read = entry.split_once('=').and_then(|(language, url)| Some((language.parse().ok()?, url)));
            let Some((language, url)) = read else {
                let message = format!(
                    "reading EXEC_SANDBOX_PACKAGE_INDEXES: {:?} is not a language, `=` and a URL",
                    shown(entry)
                );
                return Err(Error::new(ErrorKind::InvalidConfig, message).remedied_by(REMEDY));
            };
            all.insert(language, Chosen { index: Index::parse(url)?, by: "EXEC_SANDBOX_PACKAGE_INDEXES" });
        }
        for (language, url) in config {
            all.insert(*language, Chosen { index: Index::parse(url)?, by: "the configuration" });
        }
        Ok(Self(all))
    }

    /// Those of an image. One that no guest could use is left out.
    pub(crate) fn of_image(image: &BTreeMap<String, String>) -> Self {
        let chosen = |url: &str| Index::parse(url).ok().map(|index| Chosen { index, by: "the image" });
        let read = |(name, url): (&String, &String)| Some((name.parse().ok()?, chosen(url)?));
        Self(image.iter().filter_map(read).collect())
    }

    /// Each with its URL, perhaps with a password, whoever chose it.
    pub(crate) fn urls(&self) -> Vec<(Language, &str)> {
        self.0.iter().map(|(language, chosen)| (*language, chosen.index.url())).collect()
    }
}

impl Sources {
    pub(crate) fn new(
        (chosen, by_default): (Indexes, Indexes),
        registries: Registries,
        config: &crate::SchedulerConfig,
        authorities: Option<PathBuf>,
    ) -> Self {
        let (exceptions, resolvers) = (config.network_exceptions.clone(), config.resolvers.clone());
        Self { chosen, by_default, registries, exceptions, resolvers, authorities }
    }

    /// Where the packages of `language` come from.
    ///
    /// # Errors
    /// Nobody has said which hosts are the language's.
    pub(crate) fn of(&self, language: Language) -> Result<Source, Error> {
        let chosen = self.chosen.0.get(&language);
        let registries = self.registries.of(language).map(|list| Vec::<String>::from(list.clone()));
        let mut hosts = match (&registries, chosen) {
            (Ok(hosts), _) => hosts.clone(),
            (Err(_), Some(_)) => Vec::new(),
            (Err(_), None) => return Err(registries.err().unwrap_or_else(|| unreachable_index(language))),
        };
        let index = chosen.or_else(|| self.by_default.0.get(&language)).map(|chosen| chosen.index.clone());
        hosts.extend(index.as_ref().map(|index| index.host.clone()));
        hosts.sort_unstable();
        hosts.dedup();
        Ok(Source { index, is_to_be_asked: chosen.is_some(), hosts })
    }

    /// The same for people: the index without its password and who chose it, or the hosts.
    ///
    /// # Errors
    /// As of [`Sources::of`].
    pub(crate) fn told(&self, language: Language) -> Result<String, Error> {
        let source = self.of(language)?;
        let chosen = self.chosen.0.get(&language).or_else(|| self.by_default.0.get(&language));
        Ok(match chosen {
            Some(Chosen { index, by }) => format!("{} ({by})", index.public()),
            None => format!("where its installer looks, among {}", source.hosts.join(", ")),
        })
    }

    /// The network of a machine that installs from `source`. Asks this host for names.
    pub(crate) async fn network(&self, source: &Source) -> Result<ValidNetwork, Error> {
        let list = AllowList::new(&source.hosts).map_err(|error| {
            Error::new(ErrorKind::InvalidConfig, "reading the hosts that packages come from").because(error)
        })?;
        let mut exceptions = self.exceptions.clone();
        // Names that are resolved by others are not this host's to answer.
        if self.resolvers.is_none() {
            let hosts = source.hosts.clone();
            exceptions
                .extend(host::blocking("finding package registries", move || Ok(private_addresses(&hosts))).await?);
        }
        let exceptions: Exceptions = config::exceptions(&exceptions)?;
        let rules = Rules { policy: Policy::AllowList(list), exceptions };
        Ok(ValidNetwork { rules, expose: Vec::new(), resolvers: self.resolvers.clone() })
    }

    /// The file of the certificates of those who vouch for registries: the one that was named, or this host's if it has one.
    pub(crate) fn authorities_file(&self) -> Option<&Path> {
        let named = self.authorities.as_deref();
        named.or_else(|| AUTHORITIES.iter().map(Path::new).find(|path| path.is_file()))
    }

    /// The certificates of those who vouch for registries, if this host has any.
    pub(crate) fn authorities(&self) -> Result<Option<Vec<u8>>, Error> {
        let Some(path) = self.authorities_file() else { return Ok(None) };
        let read = fs::metadata(path).and_then(|found| match found.len() {
            0..=MAX_AUTHORITIES_BYTES => fs::read(path),
            _ => Err(std::io::ErrorKind::FileTooLarge.into()),
        });
        match read {
            Ok(pem) => Ok(Some(pem)),
            Err(error) => {
                let message =
                    format!("reading the certificates in {}, which package registries are known by", path.display());
                let remedy = "name a file of PEM certificates in EXEC_SANDBOX_PACKAGE_CA, or none";
                Err(Error::new(ErrorKind::Host, message).because(error).remedied_by(remedy))
            }
        }
    }
}

impl Source {
    /// The same, with hosts at which the index says that its files are.
    pub(crate) fn with_hosts(mut self, said: impl IntoIterator<Item = String>) -> Self {
        self.hosts.extend(said.into_iter().filter(|host| AllowList::new([host]).is_ok()));
        self.hosts.sort_unstable();
        self.hosts.dedup();
        self
    }
}

fn unreachable_index(language: Language) -> Error {
    Error::new(ErrorKind::InvalidConfig, format!("finding the package index of {language}")).remedied_by(REMEDY)
}

/// A URL without its password.
fn shown(url: &str) -> String {
    match url.split_once("://").and_then(|(scheme, rest)| {
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        authority.rsplit_once('@').map(|(_, host)| format!("{scheme}://{host}{path}"))
    }) {
        Some(bare) => bare,
        None => url.to_owned(),
    }
}

/// The addresses of `hosts`, as this host finds them, which are not the internet's and may be a registry's all the same.
fn private_addresses(hosts: &[String]) -> Vec<Cidr> {
    let addresses = hosts.iter().filter_map(|host| (host.as_str(), 443).to_socket_addrs().ok()).flatten();
    let mut found: Vec<IpAddr> = addresses.map(|address| address.ip()).filter(|ip| may_be_a_mirror(*ip)).collect();
    found.sort_unstable();
    found.dedup();
    found.iter().filter_map(|ip| ip.to_string().parse().ok()).collect()
}

/// Whether an address is not the internet's and can be another machine's. This host itself, a link's neighbours and clouds' secrets are
/// excepted by nobody but the configuration.
fn may_be_a_mirror(address: IpAddr) -> bool {
    use ReservedRange::{Documentation, Private, Reserved};
    matches!(classify(address), Some(Private | Documentation | Reserved))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn public(url: &str) -> Option<(String, String)> {
        Index::parse(url).ok().map(|index| (index.public(), index.host))
    }

    #[test]
    fn an_index_is_https_at_a_name_and_its_password_is_not_shown() {
        let of = |url: &str, host: &str| Some((url.to_owned(), host.to_owned()));
        assert_eq!(public("https://a.example/simple/"), of("https://a.example/simple", "a.example"));
        assert_eq!(public("https://u:p@A.example:443/s"), of("https://A.example:443/s", "a.example"));
        for none in [
            "",
            "a.example",
            "http://a.example/",
            "https://a.example:8443/",
            "https://10.0.0.1/",
            "https:///simple",
            "https://a.example/ x",
            "https://localhost/",
            "https://[::1]/",
        ] {
            assert_eq!(public(none), None, "{none:?}");
        }
        let error = Index::parse("http://u:secret@a.example/").expect_err("it is not HTTPS");
        assert!(!error.to_string().contains("secret"), "{error}");
    }

    #[test]
    fn the_configuration_comes_before_the_variable_and_that_before_the_tools() {
        let tools = ToolVariables {
            python: Some(("UV_DEFAULT_INDEX", "https://t.example/".into())),
            javascript: Some(("npm_config_registry", "http://t.example".into())),
        };
        let url = |indexes: &Indexes, language| indexes.0.get(&language).map(|chosen| chosen.index.url.clone());
        let none = BTreeMap::new();
        let own = Indexes::configured(&none, None, &tools).expect("one is none of ours");
        assert_eq!(url(&own, Language::Python).as_deref(), Some("https://t.example/"));
        assert_eq!(url(&own, Language::JavaScript), None);
        let variable = Some("python=https://v.example/ javascript=https://w.example/");
        let all = Indexes::configured(&none, variable, &tools).expect("they are indexes");
        assert_eq!(url(&all, Language::Python).as_deref(), Some("https://v.example/"));
        let config = BTreeMap::from([(Language::Python, "https://c.example/".to_owned())]);
        let all = Indexes::configured(&config, variable, &tools).expect("they are indexes");
        assert_eq!(url(&all, Language::Python).as_deref(), Some("https://c.example/"));
        assert_eq!(url(&all, Language::JavaScript).as_deref(), Some("https://w.example/"));
        for wrong in ["python", "cobol=https://a.example/", "python=http://a.example/"] {
            assert!(Indexes::configured(&none, Some(wrong), &tools).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_mirror_may_be_at_a_private_address_and_not_at_one_that_means_this_host_or_a_clouds_secrets() {
        let address = |text: &str| text.parse().expect("it is an address");
        for mirror in ["10.1.2.3", "192.168.0.9", "100.64.0.1", "fd12::1", "203.0.113.7"] {
            assert!(may_be_a_mirror(address(mirror)), "{mirror}");
        }
        for never in
            ["127.0.0.1", "169.254.169.254", "169.254.1.1", "::1", "0.0.0.0", "fe80::1", "100.100.100.200", "8.8.8.8"]
        {
            assert!(!may_be_a_mirror(address(never)), "{never}");
        }
    }

    #[test]
    fn a_source_reaches_its_index_and_the_hosts_that_are_known_for_its_files() {
        let registries = Registries::configured(&BTreeMap::new(), Some("python=files.example")).expect("it is a host");
        let sources = |index: Option<&str>| {
            let chosen = Indexes::configured(&BTreeMap::new(), index, &ToolVariables::default()).expect("it is one");
            let config = crate::SchedulerConfig::default();
            Sources::new((chosen, Indexes::default()), registries.clone(), &config, None)
        };
        let plain = sources(None).of(Language::Python).expect("its hosts are known");
        assert_eq!(
            (plain.index.clone(), plain.is_to_be_asked, &plain.hosts[..]),
            (None, false, &["files.example".to_owned()][..])
        );
        let own = sources(Some("python=https://mirror.example/simple/")).of(Language::Python).expect("it is named");
        assert!(own.is_to_be_asked);
        let said = ["cdn.example", "not a host", "10.0.0.1"].map(str::to_owned);
        assert_eq!(own.with_hosts(said).hosts, ["cdn.example", "files.example", "mirror.example"]);
        assert_eq!(sources(None).of(Language::JavaScript).expect_err("nobody knows").kind(), ErrorKind::InvalidConfig);
        assert!(sources(Some("javascript=https://mirror.example/")).of(Language::JavaScript).is_ok());
    }

    #[test]
    fn people_are_told_where_packages_come_from_and_who_says_so_without_a_password() {
        let registries =
            Registries::configured(&BTreeMap::new(), Some("python=a.example,b.example")).expect("they are hosts");
        let told = |variable: Option<&str>, tool: Option<&str>, image: Option<&str>| {
            let tools =
                ToolVariables { python: tool.map(|url| ("PIP_INDEX_URL", url.into())), ..ToolVariables::default() };
            let chosen = Indexes::configured(&BTreeMap::new(), variable, &tools).expect("they are indexes");
            let by_default =
                Indexes::of_image(&image.map(|url| ("python".to_owned(), url.to_owned())).into_iter().collect());
            let config = crate::SchedulerConfig::default();
            Sources::new((chosen, by_default), registries.clone(), &config, None)
                .told(Language::Python)
                .expect("it is known")
        };
        assert_eq!(told(None, None, None), "where its installer looks, among a.example, b.example");
        let image = Some("https://i.example/simple/");
        assert_eq!(told(None, None, image), "https://i.example/simple (the image)");
        let tool = Some("https://user:secret@t.example/simple/");
        assert_eq!(told(None, tool, image), "https://t.example/simple (PIP_INDEX_URL)");
        let variable = Some("python=https://v.example/");
        assert_eq!(told(variable, tool, image), "https://v.example (EXEC_SANDBOX_PACKAGE_INDEXES)");
    }
}
