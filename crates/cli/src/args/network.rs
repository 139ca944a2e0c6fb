//! The options of a VM's network: what is reached, and how the host leads there.

use std::net::SocketAddr;

use clap::Args;
use exec_sandbox::{Cidr, Language, NetworkPolicy, PortMapping, Protocol, SchedulerConfig, parse_resolver};

#[derive(Debug, Args)]
pub(crate) struct NetworkArgs {
    /// Let programs reach the package registries of their language, in raw everything public
    #[arg(long)]
    network: bool,
    /// With --network: reach this domain and its subdomains and nothing else; may be repeated
    #[arg(long, value_name = "DOMAIN", requires = "network")]
    allow_domain: Vec<String>,
    /// With --network: reach these addresses although they are private or of this host; may be repeated
    #[arg(long, value_name = "ADDRESS[/BITS]", requires = "network")]
    allow_address: Vec<Cidr>,
    /// With --network: a host that the packages of a language come from, instead of those that the image names; may be repeated
    #[arg(long, value_name = "LANGUAGE=HOST", requires = "network", conflicts_with = "allow_domain", value_parser = registry)]
    registry: Vec<(Language, String)>,
    /// With --network: who is asked for names, instead of this host's resolvers; may be repeated
    #[arg(long, value_name = "ADDRESS[:PORT]", requires = "network", value_parser = parse_resolver)]
    resolver: Vec<SocketAddr>,
    /// Reach a port of each VM on 127.0.0.1, at port HOST or at one that is free; may be repeated
    #[arg(long, value_name = "PORT[:HOST][/udp]", value_parser = port)]
    pub(crate) expose: Vec<PortMapping>,
}

impl NetworkArgs {
    /// What is to be reached.
    pub(crate) fn policy(&self) -> NetworkPolicy {
        match (self.network, self.allow_domain.as_slice()) {
            (false, _) => NetworkPolicy::Denied,
            (true, []) => NetworkPolicy::LanguageDefault,
            (true, domains) => NetworkPolicy::AllowList(domains.to_vec()),
        }
    }

    /// `config` with what was typed put over it.
    pub(crate) fn over(&self, mut config: SchedulerConfig) -> SchedulerConfig {
        config.network_exceptions.extend(&self.allow_address);
        for (language, host) in &self.registry {
            config.registries.entry(*language).or_default().push(host.clone());
        }
        if !self.resolver.is_empty() {
            config.resolvers = Some(self.resolver.clone());
        }
        config
    }
}

fn registry(typed: &str) -> Result<(Language, String), String> {
    let (language, host) = typed.split_once('=').ok_or_else(|| "it lacks `=`: write LANGUAGE=HOST".to_owned())?;
    Ok((language.parse().map_err(|error: exec_sandbox::UnknownLanguage| error.to_string())?, host.to_owned()))
}

fn port(typed: &str) -> Result<PortMapping, String> {
    let (ports, protocol) = match typed.split_once('/') {
        Some((ports, protocol)) => (ports, protocol.parse::<Protocol>().map_err(|error| error.to_string())?),
        None => (typed, Protocol::default()),
    };
    let number = |text: &str| text.parse::<u16>().map_err(|_| format!("{text:?} is not a port: write 1 to 65535"));
    let (internal, external) = match ports.split_once(':') {
        Some((internal, external)) => (internal, Some(number(external)?)),
        None => (ports, None),
    };
    Ok(PortMapping { internal: number(internal)?, external, protocol })
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Command {
        #[command(flatten)]
        network: NetworkArgs,
    }

    fn read(options: &[&str]) -> Result<NetworkArgs, String> {
        let words = ["sbx", "--network"].iter().chain(options);
        Command::try_parse_from(words).map(|command| command.network).map_err(|error| error.to_string())
    }

    #[test]
    fn how_the_host_leads_there_reaches_the_configuration() {
        let registries = ["--registry", "python=a.example", "--registry", "python=b.example"];
        let rest = ["--resolver", "192.0.2.1", "--resolver", "[::1]:54", "--allow-address", "10.0.0.0/8"];
        let config =
            read(&[&registries[..], &rest].concat()).expect("they are options").over(SchedulerConfig::default());
        assert_eq!(config.registries, [(Language::Python, vec!["a.example".into(), "b.example".into()])].into());
        let resolvers = ["192.0.2.1:53", "[::1]:54"].map(|text| text.parse().expect("it is an address"));
        assert_eq!(config.resolvers, Some(resolvers.to_vec()));
        assert_eq!(config.network_exceptions, ["10.0.0.0/8".parse().expect("it is a range")]);
        let nothing = read(&[]).expect("it is an option").over(SchedulerConfig::default());
        assert!(nothing.resolvers.is_none() && nothing.registries.is_empty() && nothing.network_exceptions.is_empty());
    }

    #[test]
    fn what_is_no_host_of_a_language_no_resolver_and_no_range_is_told() {
        for (options, why) in [
            (&["--registry", "a.example"][..], "LANGUAGE=HOST"),
            (&["--registry", "cobol=a.example"], "cobol"),
            (&["--resolver", "dns.example"], "is no resolver"),
            (&["--allow-address", "10.0.0.1/8"], "bits behind its prefix"),
            (&["--registry", "python=a.example", "--allow-domain", "a.example"], "cannot be used with"),
        ] {
            let error = read(options).expect_err(why);
            assert!(error.contains(why), "{why}: {error}");
        }
    }

    #[test]
    fn a_port_is_read_in_each_of_its_forms() {
        let mapping = |internal, external, protocol| Ok(PortMapping { internal, external, protocol });
        assert_eq!(port("80"), mapping(80, None, Protocol::Tcp));
        assert_eq!(port("80:8080"), mapping(80, Some(8080), Protocol::Tcp));
        assert_eq!(port("53/udp"), mapping(53, None, Protocol::Udp));
        assert_eq!(port("53:5353/udp"), mapping(53, Some(5353), Protocol::Udp));
        for typed in ["", "a", "80:", ":80", "80:81:82", "80/", "80/sctp", "70000", "-1", "80/tcp/udp"] {
            assert!(port(typed).is_err(), "{typed}");
        }
    }
}
