//! What a gateway is told when it starts: one JSON object, read to its end from a descriptor.
//!
//! The parent is believed, but a mistake of it is not guessed at: an unknown field, a number out of range or a descriptor named twice
//! is an error, and no packet has moved.

use std::{collections::HashSet, net::SocketAddr, os::fd::RawFd};

use serde::{Deserialize, Serialize};

use crate::{
    link::{MAX_MTU, MIN_MTU},
    policy::Rules,
};

/// The form of a configuration. A gateway refuses another.
pub const VERSION: u32 = 1;

/// Longest configuration: room for some thousands of names.
pub const MAX_CONFIG_BYTES: u64 = 1024 * 1024;

/// Most flows of a kind. Each is a socket of the host.
pub const MAX_FLOWS: u16 = 4096;

/// What a flow may hold each way: at least one of the link's longest packets, at most what a window can tell and more.
pub const FLOW_BUFFER_BYTES: std::ops::RangeInclusive<u32> = 64 * 1024..=4 * 1024 * 1024;

/// Most exposed ports.
pub const MAX_PORTS: usize = 1024;

/// Most resolvers. More than any host has.
pub const MAX_RESOLVERS: usize = 8;

/// The configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// [`VERSION`].
    pub version: u32,
    /// The socket on which QEMU speaks: a stream.
    pub qemu_fd: RawFd,
    /// The socket on which reports are told and asked for: a stream. See [`report`](crate::report).
    pub report_fd: RawFd,
    /// Largest packet of the link. The guest's card has the same.
    pub mtu: u16,
    /// What may be reached.
    pub rules: Rules,
    /// The host's resolvers, in the order in which they are asked. Read by the parent: the gateway opens no file.
    pub resolvers: Vec<SocketAddr>,
    /// Ports of the guest that may be reached from the host.
    #[serde(default)]
    pub ports: Vec<Port>,
    /// What may be held.
    #[serde(default)]
    pub limits: Limits,
    /// What becomes of a machine that lacks a layer of the jail.
    #[serde(default)]
    pub jail: Jail,
}

/// An exposed port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Port {
    /// What is carried.
    pub protocol: PortProtocol,
    /// The guest's port.
    pub guest_port: u16,
    /// The host's socket: it listens already, or, for UDP, is bound.
    pub fd: RawFd,
}

/// What an exposed port carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PortProtocol {
    /// Connections.
    Tcp,
    /// Datagrams.
    Udp,
}

/// How much of the jail there has to be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Jail {
    /// What the machine has. What it lacks is in the report.
    #[default]
    Possible,
    /// All of it, or the gateway does not start.
    Required,
}

/// What a gateway may hold at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// TCP flows at once, of both directions.
    pub tcp_flows: u16,
    /// UDP flows at once, of both directions.
    pub udp_flows: u16,
    /// Bytes that a TCP flow may hold each way.
    pub flow_buffer_bytes: u32,
    /// TCP flows at once that may hold more: those that come while there are fewer.
    pub wide_flows: u16,
    /// Bytes of the guest that such a flow may hold; half as many may wait for the guest.
    pub wide_buffer_bytes: u32,
}

impl Default for Limits {
    /// 256 connections are what a package manager or a browser opens at worst, several times over. 256 KiB each way hold four of the
    /// link's longest packets; with 1 MiB a guest that sends fast stops less often to wait, and of connections that move much at
    /// once there are few. The other way half of it does as much, and 768 KiB were seen to be more than a small guest has memory for.
    /// Memory is used only as far as bytes really wait.
    fn default() -> Self {
        Self {
            tcp_flows: 256,
            udp_flows: 128,
            flow_buffer_bytes: 256 * 1024,
            wide_flows: 16,
            wide_buffer_bytes: 1024 * 1024,
        }
    }
}

/// Why a configuration is none.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be read as one.
    #[error("reading the configuration")]
    Json(#[from] serde_json::Error),
    /// It has another form.
    #[error("the configuration has the form {found}, not {VERSION}")]
    Version {
        /// The form it has.
        found: u32,
    },
    /// A number is out of its range.
    #[error("the configuration's {what} is {value}, which is not in {least}..={most}")]
    Range {
        /// Which number.
        what: &'static str,
        /// What it is.
        value: u64,
        /// The least it may be.
        least: u64,
        /// The most it may be.
        most: u64,
    },
    /// A descriptor is named twice.
    #[error("the configuration names the descriptor {fd} twice")]
    SameDescriptor {
        /// Which one.
        fd: RawFd,
    },
    /// A port is exposed twice.
    #[error("the configuration exposes the port {guest_port} twice")]
    SamePort {
        /// Which one.
        guest_port: u16,
    },
}

impl Config {
    /// Reads and checks a configuration.
    ///
    /// # Errors
    /// [`ConfigError`] if it is none.
    pub fn read(json: &[u8]) -> Result<Self, ConfigError> {
        let config: Self = serde_json::from_slice(json)?;
        if config.version != VERSION {
            return Err(ConfigError::Version { found: config.version });
        }
        let Limits { tcp_flows, udp_flows, flow_buffer_bytes, wide_flows, wide_buffer_bytes } = config.limits;
        let length = |length: usize| u64::try_from(length).unwrap_or(u64::MAX);
        within("mtu", config.mtu, MIN_MTU, MAX_MTU)?;
        within("tcp_flows", tcp_flows, 1, MAX_FLOWS)?;
        within("udp_flows", udp_flows, 1, MAX_FLOWS)?;
        within("wide_flows", wide_flows, 0, MAX_FLOWS)?;
        let (least, most) = (*FLOW_BUFFER_BYTES.start(), *FLOW_BUFFER_BYTES.end());
        within("flow_buffer_bytes", flow_buffer_bytes, least, most)?;
        within("wide_buffer_bytes", wide_buffer_bytes, least, most)?;
        within("number of resolvers", length(config.resolvers.len()), 0, length(MAX_RESOLVERS))?;
        within("number of ports", length(config.ports.len()), 0, length(MAX_PORTS))?;
        let (mut descriptors, mut ports) = (HashSet::new(), HashSet::new());
        for fd in [config.qemu_fd, config.report_fd].into_iter().chain(config.ports.iter().map(|port| port.fd)) {
            if !descriptors.insert(fd) {
                return Err(ConfigError::SameDescriptor { fd });
            }
        }
        for Port { protocol, guest_port, .. } in config.ports.iter().copied() {
            within("guest_port", guest_port, 1, u16::MAX)?;
            if !ports.insert((protocol, guest_port)) {
                return Err(ConfigError::SamePort { guest_port });
            }
        }
        Ok(config)
    }
}

fn within<N: Into<u64>>(what: &'static str, value: N, least: N, most: N) -> Result<(), ConfigError> {
    let (value, least, most) = (value.into(), least.into(), most.into());
    if (least..=most).contains(&value) { Ok(()) } else { Err(ConfigError::Range { what, value, least, most }) }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::policy::{Exceptions, Policy};

    fn good() -> Value {
        let config = Config {
            version: VERSION,
            qemu_fd: 3,
            report_fd: 4,
            mtu: MAX_MTU,
            rules: Rules { policy: Policy::Open, exceptions: Exceptions::default() },
            resolvers: vec!["192.0.2.1:53".parse().expect("it is an address")],
            ports: vec![Port { protocol: PortProtocol::Tcp, guest_port: 80, fd: 5 }],
            limits: Limits::default(),
            jail: Jail::Required,
        };
        serde_json::to_value(config).expect("it is JSON")
    }

    fn read(change: impl FnOnce(&mut Value)) -> Result<Config, String> {
        let mut config = good();
        change(&mut config);
        Config::read(config.to_string().as_bytes())
            .map_err(|error| format!("{error} {:?}", std::error::Error::source(&error)))
    }

    #[test]
    fn what_was_written_is_read() {
        let config = read(|_| ()).expect("it is one");
        assert_eq!(serde_json::to_value(config).expect("it is JSON"), good());
    }

    #[test]
    fn a_mistake_is_an_error_that_says_which() {
        let port = good()["ports"][0].clone();
        type Mistake = fn(&mut Value, Value);
        let mistakes: [(&str, Mistake); 10] = [
            ("unknown field `color`", |config, _| config["color"] = json!("red")),
            ("unknown field `flows`", |config, _| config["limits"]["flows"] = json!(1)),
            ("form 2", |config, _| config["version"] = json!(2)),
            ("mtu is 500", |config, _| config["mtu"] = json!(500)),
            ("tcp_flows is 0", |config, _| config["limits"]["tcp_flows"] = json!(0)),
            ("flow_buffer_bytes is 1", |config, _| config["limits"]["flow_buffer_bytes"] = json!(1)),
            ("wide_buffer_bytes is 1", |config, _| config["limits"]["wide_buffer_bytes"] = json!(1)),
            ("descriptor 4 twice", |config, _| config["qemu_fd"] = json!(4)),
            ("guest_port is 0", |config, _| config["ports"][0]["guest_port"] = json!(0)),
            ("port 80 twice", |config, mut port| {
                port["fd"] = json!(9);
                config["ports"] = json!([config["ports"][0], port]);
            }),
        ];
        for (what, mistake) in mistakes {
            let error = read(|config| mistake(config, port.clone())).expect_err(what);
            assert!(error.contains(what), "{what}: {error}");
        }
    }
}
