//! Ports of the host at which a VM's ports are reached: bound here, before any process of the VM, and handed to its gateway.
//!
//! Whoever connects between now and a program that listens in the guest is taken by the kernel and waits; nobody else can take the
//! port meanwhile.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
    os::fd::OwnedFd,
};

use exec_sandbox_gateway::config::PortProtocol;

use crate::{ExposedPort, PortMapping, Protocol};

/// The address of the host at which ports are reached: nobody else's but this machine's.
const HOST: Ipv4Addr = Ipv4Addr::LOCALHOST;

/// Connections that may wait to be taken. A burst of clients comes before the gateway has its turn.
const BACKLOG: i32 = 1024;

/// A port of the host that is open.
#[derive(Debug)]
pub(crate) struct BoundPort {
    pub(crate) port: ExposedPort,
    pub(crate) socket: OwnedFd,
}

/// Why a port could not be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PortError {
    #[error("opening port {external}/{protocol} of the host")]
    Asked { external: u16, protocol: Protocol, source: io::Error },
    #[error("opening a port of the host for port {internal}/{protocol}")]
    Free { internal: u16, protocol: Protocol, source: io::Error },
}

/// Opens a port of the host for each of `asked`, in this order.
pub(crate) fn bind(asked: &[PortMapping]) -> Result<Vec<BoundPort>, PortError> {
    let mut bound: Vec<Option<BoundPort>> = asked.iter().map(|_| None).collect();
    // Those that are asked for by number first, or one that is free might be another's.
    for wants_number in [true, false] {
        for (mapping, place) in asked.iter().zip(&mut bound) {
            if mapping.external.is_some() == wants_number {
                *place = Some(bind_one(*mapping)?);
            }
        }
    }
    Ok(bound.into_iter().flatten().collect())
}

impl BoundPort {
    /// What is spoken there, in the gateway's words.
    pub(crate) fn protocol(&self) -> PortProtocol {
        match self.port.protocol {
            Protocol::Tcp => PortProtocol::Tcp,
            Protocol::Udp => PortProtocol::Udp,
        }
    }
}

fn bind_one(PortMapping { internal, external, protocol }: PortMapping) -> Result<BoundPort, PortError> {
    let at = SocketAddr::from((HOST, external.unwrap_or(0)));
    let opened = match protocol {
        Protocol::Tcp => listen(at),
        Protocol::Udp => UdpSocket::bind(at).and_then(|socket| Ok((socket.local_addr()?.port(), socket.into()))),
    };
    match opened {
        Ok((external, socket)) => {
            Ok(BoundPort { port: ExposedPort { internal, external, host: HOST.into(), protocol }, socket })
        }
        Err(source) => Err(match external {
            Some(external) => PortError::Asked { external, protocol, source },
            None => PortError::Free { internal, protocol, source },
        }),
    }
}

fn listen(at: SocketAddr) -> io::Result<(u16, OwnedFd)> {
    let listener = TcpListener::bind(at)?;
    // Listening again changes how many may wait, and nothing else.
    rustix::net::listen(&listener, BACKLOG)?;
    Ok((listener.local_addr()?.port(), listener.into()))
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, net::TcpStream};

    use super::*;

    fn tcp(internal: u16, external: Option<u16>) -> PortMapping {
        PortMapping { internal, external, protocol: Protocol::Tcp }
    }

    #[test]
    fn a_port_is_open_as_soon_as_it_is_known() {
        let bound =
            bind(&[tcp(80, None), PortMapping { protocol: Protocol::Udp, ..tcp(53, None) }]).expect("there are");
        let [web, names] = &bound[..] else { panic!("{bound:?}") };
        assert_eq!((web.port.internal, names.port.internal), (80, 53));
        assert_eq!((web.port.protocol, names.port.protocol), (Protocol::Tcp, Protocol::Udp));
        TcpStream::connect((web.port.host, web.port.external)).expect("the kernel takes it");
        assert!(UdpSocket::bind((names.port.host, names.port.external)).is_err(), "it is taken");
    }

    #[test]
    fn ports_that_are_free_are_never_one_twice_and_never_one_that_is_asked_for() {
        // Once it is free again, somebody else may take it first.
        let (external, bound) = (0..100)
            .find_map(|_| {
                let external = bind(&[tcp(80, None)]).expect("there is one").remove(0).port.external;
                let asked: Vec<_> =
                    (1..=10).map(|internal| tcp(internal, (internal == 10).then_some(external))).collect();
                Some((external, bind(&asked).ok()?))
            })
            .expect("it is not taken each time");
        let order: Vec<u16> = bound.iter().map(|bound| bound.port.internal).collect();
        assert_eq!(order, (1..=10).collect::<Vec<_>>());
        assert_eq!(bound[9].port.external, external);
        assert_eq!(bound.iter().map(|bound| bound.port.external).collect::<BTreeSet<_>>().len(), 10);
    }

    #[test]
    fn a_port_in_use_is_named() {
        let taken = bind(&[tcp(80, None)]).expect("there is one");
        let external = taken[0].port.external;
        let error = bind(&[tcp(81, Some(external))]).expect_err("it is taken");
        assert_eq!(error.to_string(), format!("opening port {external}/tcp of the host"));
        let source = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
        assert!(source.contains("in use"), "{source}");
    }
}
