//! The options of a VM's network.

use clap::Args;
use exec_sandbox::{NetworkPolicy, PortMapping, Protocol};

#[derive(Debug, Args)]
pub(crate) struct NetworkArgs {
    /// Let programs reach the package registries of their language, in raw everything public
    #[arg(long)]
    network: bool,
    /// With --network: reach this domain and its subdomains and nothing else; may be repeated
    #[arg(long, value_name = "DOMAIN", requires = "network")]
    allow_domain: Vec<String>,
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
    use super::*;

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
