//! Every socket outside, by its flow: the engine's [`Outside`], and what their events say to the engine.
//!
//! Sockets are waited for by their edges. What is left to be read when a budget is used up is waited for anew, so that one socket that
//! never runs dry does not keep the others waiting.

use std::{
    collections::HashMap,
    io::{self, ErrorKind, Read as _, Write as _},
    net::{Ipv4Addr, Shutdown, SocketAddr, SocketAddrV4},
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use mio::{
    Interest, Registry,
    event::{self, Event},
    net::{TcpListener, TcpStream, UdpSocket},
};
use rustix::net::sockopt;

use super::asking::{Asking, Heard};
use crate::{
    config::{Config, Port, PortProtocol},
    engine::{End, Engine, Moved, Outside, Question, TcpFlow, UdpFlow, Upstream},
};

/// Connections or datagrams that one socket brings before others have their turn.
const BUDGET: usize = 64;

/// Longest datagram there can be.
const DATAGRAM_BYTES: usize = 64 * 1024;

/// What an event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    Qemu,
    Reports,
    Tcp(TcpFlow),
    Udp(UdpFlow),
    /// An exposed port, by its number in the configuration.
    Port(u16),
    Question(Question),
}

#[derive(Debug)]
struct Stream {
    stream: TcpStream,
    is_connected: bool,
    /// Everything that had come was read: until the next event there is nothing.
    is_drained: bool,
    /// The other end has ended its side: what is left to be read ends with the end.
    has_ended: bool,
}

/// An exposed port.
#[derive(Debug)]
enum Exposed {
    Tcp { guest_port: u16, listener: TcpListener },
    Udp { guest_port: u16, socket: UdpSocket },
}

/// The sockets.
#[derive(Debug)]
pub(super) struct Sockets {
    registry: Registry,
    tcp: HashMap<u16, Stream>,
    udp: HashMap<u16, UdpSocket>,
    questions: HashMap<u16, Asking>,
    ports: Vec<Exposed>,
    resolvers: Vec<SocketAddr>,
    scratch: Box<[u8]>,
}

impl Sockets {
    pub(super) fn new(registry: Registry, config: &Config) -> Self {
        Self {
            registry,
            tcp: HashMap::new(),
            udp: HashMap::new(),
            questions: HashMap::new(),
            ports: Vec::new(),
            resolvers: config.resolvers.clone(),
            scratch: vec![0; DATAGRAM_BYTES].into(),
        }
    }

    /// Takes over the socket of an exposed port.
    pub(super) fn expose(&mut self, port: Port, fd: OwnedFd) -> io::Result<()> {
        let Port { protocol, guest_port, .. } = port;
        let number = u16::try_from(self.ports.len()).map_err(|_| io::Error::from(ErrorKind::InvalidInput))?;
        let mut exposed = match protocol {
            PortProtocol::Tcp => Exposed::Tcp { guest_port, listener: TcpListener::from_std(fd.into()) },
            PortProtocol::Udp => Exposed::Udp { guest_port, socket: UdpSocket::from_std(fd.into()) },
        };
        self.registry.register(exposed.source(), Source::Port(number).token(), Interest::READABLE)?;
        self.ports.push(exposed);
        Ok(())
    }

    pub(super) fn tcp_event(&mut self, flow: TcpFlow, event: &Event, engine: &mut Engine, now: Instant) {
        let Some(socket) = self.tcp.get_mut(&flow.0) else { return };
        let is_readable = event.is_readable() || event.is_read_closed() || event.is_error();
        socket.is_drained &= !is_readable;
        socket.has_ended |= event.is_read_closed() || event.is_error();
        if !socket.is_connected {
            let is_connected = match socket.stream.take_error() {
                Ok(None) if socket.stream.peer_addr().is_ok() => true,
                // An event of a socket that had this place before, or one that says nothing.
                Ok(None) if !event.is_error() && !event.is_write_closed() => return,
                _ => false,
            };
            socket.is_connected = is_connected;
            engine.dialed(flow, is_connected, self, now);
            return;
        }
        engine.ready(flow, is_readable, event.is_writable() || event.is_error());
    }

    pub(super) fn udp_event(&mut self, flow: UdpFlow, engine: &mut Engine, now: Instant) {
        for _ in 0..BUDGET {
            let Some(socket) = self.udp.get(&flow.0) else { return };
            match socket.recv(&mut self.scratch) {
                Ok(bytes) => {
                    let datagram = self.scratch.get(..bytes).unwrap_or_default().to_vec();
                    engine.arrived(flow, &datagram, self, now);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                // The next datagram of the guest finds out anew.
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                    return engine.udp_refused(flow, self, now);
                }
                Err(_) => return engine.udp_gone(flow, self, now),
            }
        }
        if let Some(socket) = self.udp.get_mut(&flow.0) {
            again(&self.registry, socket, Source::Udp(flow));
        }
    }

    pub(super) fn port_event(&mut self, number: u16, engine: &mut Engine, now: Instant) {
        for _ in 0..BUDGET {
            match self.ports.get(usize::from(number)) {
                Some(Exposed::Tcp { guest_port, listener }) => match listener.accept() {
                    Ok((stream, _)) => {
                        let guest_port = *guest_port;
                        self.accept(guest_port, stream, engine, now);
                    }
                    Err(error) if is_passing(&error) => {}
                    Err(_) => return,
                },
                Some(Exposed::Udp { guest_port, socket }) => match socket.recv_from(&mut self.scratch) {
                    Ok((bytes, peer)) => {
                        let datagram = self.scratch.get(..bytes).unwrap_or_default().to_vec();
                        let guest_port = *guest_port;
                        engine.exposed(guest_port, peer, &datagram, self, now);
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                    // What was sent earlier was not received; that is no matter of this socket.
                    Err(_) => {}
                },
                None => return,
            }
        }
        if let Some(exposed) = self.ports.get_mut(usize::from(number)) {
            again(&self.registry, exposed.source(), Source::Port(number));
        }
    }

    fn accept(&mut self, guest_port: u16, stream: TcpStream, engine: &mut Engine, now: Instant) {
        let Ok(flow) = engine.accept(guest_port, self, now) else { return reset(&stream) };
        if let Err(stream) = self.keep(flow, stream, true) {
            reset(&stream);
            // It is found to be gone when it is served.
        }
    }

    /// Keeps a stream. It comes back if it cannot be waited for.
    fn keep(&mut self, flow: TcpFlow, mut stream: TcpStream, is_connected: bool) -> Result<(), TcpStream> {
        // Bytes are passed on in the pieces in which they came. Where that cannot be asked for, they are passed on later.
        let _ = stream.set_nodelay(true);
        let interest = Interest::READABLE | Interest::WRITABLE;
        if self.registry.register(&mut stream, Source::Tcp(flow).token(), interest).is_err() {
            return Err(stream);
        }
        self.tcp.insert(flow.0, Stream { stream, is_connected, is_drained: false, has_ended: false });
        Ok(())
    }

    pub(super) fn question_event(&mut self, question: Question, engine: &mut Engine, now: Instant) {
        let Some(asking) = self.questions.get_mut(&question.0) else { return };
        match asking.event(&mut self.scratch) {
            Heard::Nothing => {}
            Heard::Gone => engine.unanswered(question, self, now),
            Heard::Answer(answer) => engine.answered(question, &answer, self, now),
        }
    }
}

impl Outside for Sockets {
    fn dial(&mut self, flow: TcpFlow, to: SocketAddrV4) -> bool {
        TcpStream::connect(to.into()).is_ok_and(|stream| self.keep(flow, stream, false).is_ok())
    }

    fn write(&mut self, flow: TcpFlow, bytes: &[u8]) -> Moved {
        let Some(Stream { stream, .. }) = self.tcp.get_mut(&flow.0) else { return Moved::Gone };
        moved(Moved::Gone, || stream.write(bytes))
    }

    fn read(&mut self, flow: TcpFlow, room: &mut [u8]) -> Moved {
        let Some(Stream { stream, is_drained, has_ended, .. }) = self.tcp.get_mut(&flow.0) else { return Moved::Gone };
        if *is_drained {
            return Moved::Later;
        }
        let moved = moved(Moved::End, || stream.read(room));
        *is_drained = !*has_ended && moved.bytes() < room.len();
        moved
    }

    fn shut(&mut self, flow: TcpFlow) {
        if let Some(Stream { stream, .. }) = self.tcp.get(&flow.0) {
            // It fails where the other end is gone, which is found when it is read.
            let _ = stream.shutdown(Shutdown::Write);
        }
    }

    fn close(&mut self, flow: TcpFlow, end: End) {
        if let Some(Stream { mut stream, .. }) = self.tcp.remove(&flow.0) {
            let _ = self.registry.deregister(&mut stream);
            if end == End::Reset {
                reset(&stream);
            }
        }
    }

    fn open_udp(&mut self, flow: UdpFlow, to: SocketAddrV4) -> bool {
        let any = (Ipv4Addr::UNSPECIFIED, 0).into();
        let opened = UdpSocket::bind(any).and_then(|mut socket| {
            socket.connect(to.into())?;
            self.registry.register(&mut socket, Source::Udp(flow).token(), Interest::READABLE)?;
            Ok(socket)
        });
        opened.is_ok_and(|socket| self.udp.insert(flow.0, socket).is_none())
    }

    fn send_udp(&mut self, flow: UdpFlow, payload: &[u8]) {
        if let Some(socket) = self.udp.get(&flow.0)
            // What became of an earlier datagram is said instead of sending this one, and once: what becomes of this one is an event.
            && socket.send(payload).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
        {
            // Datagrams may be lost.
            let _ = socket.send(payload);
        }
    }

    fn close_udp(&mut self, flow: UdpFlow) {
        if let Some(mut socket) = self.udp.remove(&flow.0) {
            let _ = self.registry.deregister(&mut socket);
        }
    }

    fn answer_udp(&mut self, port: u16, to: SocketAddr, payload: &[u8]) {
        let exposed = self.ports.iter().find_map(|exposed| match exposed {
            Exposed::Udp { guest_port, socket } if *guest_port == port => Some(socket),
            _ => None,
        });
        if let Some(socket) = exposed {
            // Datagrams may be lost.
            let _ = socket.send_to(payload, to);
        }
    }

    fn ask(&mut self, question: Question, upstream: Upstream, message: &[u8]) -> bool {
        let Some(resolver) = self.resolvers.get(upstream.resolver).copied() else { return false };
        let asked =
            if upstream.over_tcp { Asking::stream(resolver, message) } else { Asking::datagram(resolver, message) };
        let Ok(mut asking) = asked else { return false };
        let token = Source::Question(question).token();
        let waits = match &mut asking {
            Asking::Datagram(socket) => self.registry.register(socket, token, Interest::READABLE),
            Asking::Stream { stream, .. } => {
                self.registry.register(stream, token, Interest::READABLE | Interest::WRITABLE)
            }
        };
        let is_asked = waits.is_ok();
        if is_asked {
            self.questions.insert(question.0, asking);
        }
        is_asked
    }

    fn forget(&mut self, question: Question) {
        if let Some(mut asking) = self.questions.remove(&question.0) {
            let _ = match &mut asking {
                Asking::Datagram(socket) => self.registry.deregister(socket),
                Asking::Stream { stream, .. } => self.registry.deregister(stream),
            };
        }
    }
}

impl Exposed {
    fn source(&mut self) -> &mut dyn event::Source {
        match self {
            Self::Tcp { listener, .. } => listener,
            Self::Udp { socket, .. } => socket,
        }
    }
}

/// Waits for a socket anew: if something is there, there is an event.
fn again(registry: &Registry, source: &mut (impl event::Source + ?Sized), token: Source) {
    // Where that fails, the socket's next event comes with what comes next.
    let _ = source.reregister(registry, token.token(), Interest::READABLE);
}

/// What an attempt to move bytes became; no bytes mean `none`.
fn moved(none: Moved, mut attempt: impl FnMut() -> io::Result<usize>) -> Moved {
    loop {
        return match attempt() {
            Ok(0) => none,
            Ok(bytes) => Moved::Bytes(bytes),
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) if error.kind() == ErrorKind::WouldBlock => Moved::Later,
            Err(_) => Moved::Gone,
        };
    }
}

/// A connection was gone before it was accepted. The next one is another matter.
fn is_passing(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::ConnectionAborted | ErrorKind::Interrupted)
}

/// Closing it tells the other end that not everything was said.
fn reset(stream: &TcpStream) {
    // Where it fails, the other end sees an end.
    let _ = sockopt::set_socket_linger(stream, Some(Duration::ZERO));
}

#[cfg(test)]
mod tests {
    use mio::Poll;

    use super::*;
    use crate::{
        config::{Jail, Limits, VERSION},
        link::MAX_MTU,
        policy::{Exceptions, Policy, Rules},
    };

    #[test]
    fn a_datagram_is_not_lost_because_an_earlier_one_was_refused() {
        let config = Config {
            version: VERSION,
            qemu_fd: -1,
            report_fd: -1,
            mtu: MAX_MTU,
            rules: Rules { policy: Policy::Open, exceptions: Exceptions::default() },
            resolvers: Vec::new(),
            ports: Vec::new(),
            limits: Limits::default(),
            jail: Jail::Possible,
        };
        let poll = Poll::new().expect("there are descriptors");
        let mut sockets = Sockets::new(poll.registry().try_clone().expect("there are descriptors"), &config);
        let server = std::net::UdpSocket::bind("127.0.0.1:0").expect("there is a port");
        let SocketAddr::V4(at) = server.local_addr().expect("it is bound") else { unreachable!("it is IPv4") };
        drop(server);
        assert!(sockets.open_udp(UdpFlow(0), at));
        sockets.send_udp(UdpFlow(0), b"to nobody");
        let server = std::net::UdpSocket::bind(at).expect("nobody took it meanwhile");
        server.set_read_timeout(Some(Duration::from_secs(20))).expect("it is a socket");
        sockets.send_udp(UdpFlow(0), b"hello");
        let mut heard = [0; 100];
        let bytes = server.recv(&mut heard).expect("it arrives");
        assert_eq!(&heard[..bytes], b"hello");
    }
}
