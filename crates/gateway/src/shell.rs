//! The shell around the engine: one thread that owns every socket, the clock and the reports.
//!
//! It waits for sockets and for the engine's next deadline, and for nothing else: an idle gateway makes no system call. QEMU's end of
//! the stream, or the parent's end of the report channel, is the gateway's end.

use std::{
    io::{self, ErrorKind, Read as _, Write as _},
    time::{Duration, Instant},
};

use mio::{Events, Interest, Poll, Token, event::Event, net::UnixStream};
use rustix::net::sockopt;

use crate::{
    config::Config,
    descriptors,
    engine::{Engine, Gate, Parts},
    stream::{FrameTooLong, Incoming},
};

mod asking;
mod reporting;
mod sockets;

use self::{
    reporting::{Asked, Reporting},
    sockets::{Sockets, Source},
};

/// Events that are taken at once.
const EVENTS: usize = 256;

/// How often QEMU's stream is read before connections are served: what it gives at once is about a megabyte.
const READS_PER_TURN: usize = 4;

/// What QEMU may be behind in reading: the more, the seldomer one of the two waits for the other. What the kernel gives is less.
const SEND_BUFFER_BYTES: usize = 1024 * 1024;

/// Why a gateway ended that was not told to.
#[derive(Debug, thiserror::Error)]
pub enum ShellError {
    /// A descriptor of the configuration is of no use.
    #[error("taking over {what}")]
    Descriptor {
        /// Which one.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// There is nothing to wait with.
    #[error("waiting for sockets")]
    Wait(#[source] io::Error),
    /// QEMU's stream broke.
    #[error("the stream of QEMU")]
    Stream(#[source] io::Error),
    /// QEMU's stream is no stream of frames.
    #[error("the stream of QEMU")]
    Frames(#[from] FrameTooLong),
    /// There is no randomness.
    #[error("asking for randomness")]
    Random(#[source] io::Error),
}

/// A gateway that can run.
#[derive(Debug)]
pub struct Shell {
    poll: Poll,
    engine: Engine,
    sockets: Sockets,
    qemu: UnixStream,
    incoming: Incoming,
    is_qemu_readable: bool,
    /// QEMU has ended its side: what is left to be read ends with the end.
    has_qemu_ended: bool,
    is_qemu_writable: bool,
    /// Whether room in QEMU's stream is an event.
    waits_for_room: bool,
    /// Frames were read that the engine had no room for.
    holds_frames: bool,
    reporting: Reporting,
}

/// Whether there is more to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Goes {
    On,
    Ends,
}

impl Shell {
    /// Takes over the descriptors of the configuration. Nothing has moved yet.
    ///
    /// # Errors
    /// [`ShellError`] if one of them is of no use.
    pub fn new(config: &Config) -> Result<Self, ShellError> {
        let poll = Poll::new().map_err(ShellError::Wait)?;
        let adopt = |what, fd| descriptors::adopt(fd).map_err(|source| ShellError::Descriptor { what, source });
        let stream = |what, fd| -> Result<UnixStream, ShellError> { Ok(UnixStream::from_std(adopt(what, fd)?.into())) };
        let mut qemu = stream("the stream of QEMU", config.qemu_fd)?;
        let mut reports = stream("the report channel", config.report_fd)?;
        // Where the kernel does not give so much, it gives what it may.
        let _ = sockopt::set_socket_send_buffer_size(&qemu, SEND_BUFFER_BYTES);
        let registry = poll.registry();
        registry.register(&mut qemu, Source::Qemu.token(), Interest::READABLE).map_err(ShellError::Wait)?;
        let interest = Interest::READABLE | Interest::WRITABLE;
        registry.register(&mut reports, Source::Reports.token(), interest).map_err(ShellError::Wait)?;
        let mut sockets = Sockets::new(registry.try_clone().map_err(ShellError::Wait)?, config);
        for port in &config.ports {
            let fd = adopt("an exposed port", port.fd)?;
            let at = |source| ShellError::Descriptor { what: "an exposed port", source };
            sockets.expose(*port, fd).map_err(at)?;
        }
        let parts = Parts {
            gate: Gate::new(config.rules.clone(), seed()?, Instant::now()),
            mtu: config.mtu,
            limits: config.limits,
            resolvers: config.resolvers.len(),
            seed: seed()?,
        };
        Ok(Self {
            poll,
            engine: Engine::new(parts, Instant::now()),
            sockets,
            qemu,
            incoming: Incoming::default(),
            // The first events say more.
            is_qemu_readable: false,
            has_qemu_ended: false,
            is_qemu_writable: true,
            waits_for_room: false,
            holds_frames: false,
            reporting: Reporting::new(reports),
        })
    }

    /// Works until QEMU or the parent ends its side.
    ///
    /// # Errors
    /// [`ShellError`] if it cannot go on.
    pub fn run(mut self, missing_layers: Vec<String>) -> Result<(), ShellError> {
        let mut events = Events::with_capacity(EVENTS);
        self.reporting.start(missing_layers, self.engine.counters(), Instant::now());
        let ended = loop {
            match self.turn(&mut events) {
                Ok(Goes::On) => {}
                Ok(Goes::Ends) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        self.reporting.end(self.engine.counters());
        ended
    }

    fn turn(&mut self, events: &mut Events) -> Result<Goes, ShellError> {
        let timeout = if self.has_work() { Some(Duration::ZERO) } else { self.timeout() };
        match self.poll.poll(events, timeout) {
            Err(error) if error.kind() != ErrorKind::Interrupted => return Err(ShellError::Wait(error)),
            _ => {}
        }
        let now = Instant::now();
        for event in events.iter() {
            if self.event(event, now) == Goes::Ends {
                return Ok(Goes::Ends);
            }
        }
        let read = self.read_qemu(now)?;
        if self.engine.next_deadline().is_some_and(|deadline| deadline <= now) {
            self.engine.expire(&mut self.sockets, now);
        }
        self.engine.serve(&mut self.sockets, now);
        while self.write_qemu()? && self.engine.wants_service() {
            self.engine.serve(&mut self.sockets, now);
        }
        self.reporting.turn(self.engine.counters(), now);
        Ok(read)
    }

    /// Whether something can be done though nothing happens.
    fn has_work(&self) -> bool {
        let reads = (self.is_qemu_readable || self.holds_frames) && self.engine.can_receive();
        reads || self.is_qemu_writable && self.engine.wants_service()
    }

    fn timeout(&self) -> Option<Duration> {
        let deadline = [self.engine.next_deadline(), self.reporting.next_deadline()].into_iter().flatten().min()?;
        Some(deadline.saturating_duration_since(Instant::now()))
    }

    fn event(&mut self, event: &Event, now: Instant) -> Goes {
        let Self { engine, sockets, .. } = self;
        match Source::of(event.token()) {
            Some(Source::Qemu) => {
                self.is_qemu_readable |= event.is_readable() || event.is_read_closed();
                self.has_qemu_ended |= event.is_read_closed();
                // Where nobody reads any more, writing is what finds it out.
                self.is_qemu_writable |= event.is_writable() || event.is_write_closed();
            }
            Some(Source::Reports) => match self.reporting.event(event) {
                Asked::Nothing => {}
                Asked::Report => self.reporting.tell(engine.counters(), now),
                Asked::End => return Goes::Ends,
            },
            Some(Source::Tcp(flow)) => sockets.tcp_event(flow, event, engine, now),
            Some(Source::Udp(flow)) => sockets.udp_event(flow, engine, now),
            Some(Source::Port(number)) => sockets.port_event(number, engine, now),
            Some(Source::Question(question)) => sockets.question_event(question, engine, now),
            None => {}
        }
        Goes::On
    }

    /// Reads frames and gives them to the engine, as long as it has room for answers.
    fn read_qemu(&mut self, now: Instant) -> Result<Goes, ShellError> {
        for _ in 0..READS_PER_TURN {
            while self.engine.can_receive()
                && let Some(frame) = self.incoming.next_frame()?
            {
                self.engine.receive(frame, &mut self.sockets, now);
            }
            self.holds_frames = !self.engine.can_receive();
            if self.holds_frames || !self.is_qemu_readable {
                break;
            }
            let room = self.incoming.room();
            let wanted = room.len();
            match self.qemu.read(room) {
                Ok(0) => return Ok(Goes::Ends),
                Ok(bytes) => {
                    self.incoming.filled(bytes);
                    // Less than there was room for is all there was. What comes later is another event.
                    self.is_qemu_readable = bytes == wanted || self.has_qemu_ended;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.is_qemu_readable = false,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if is_end(&error) => return Ok(Goes::Ends),
                Err(error) => return Err(ShellError::Stream(error)),
            }
        }
        Ok(Goes::On)
    }

    /// Room in QEMU's stream would be an event whenever QEMU has read something, so it is one only from when there was none until
    /// everything is written.
    fn wait_for_room(&mut self, waits: bool) -> Result<(), ShellError> {
        if self.waits_for_room != waits {
            let interest = if waits { Interest::READABLE | Interest::WRITABLE } else { Interest::READABLE };
            let registry = self.poll.registry();
            registry.reregister(&mut self.qemu, Source::Qemu.token(), interest).map_err(ShellError::Wait)?;
            self.waits_for_room = waits;
        }
        Ok(())
    }

    /// Writes what goes to QEMU. Returns whether there is room for more.
    fn write_qemu(&mut self) -> Result<bool, ShellError> {
        while self.is_qemu_writable && !self.engine.outgoing().bytes().is_empty() {
            match self.qemu.write(self.engine.outgoing().bytes()) {
                Ok(bytes) => self.engine.outgoing().written(bytes),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.is_qemu_writable = false;
                    self.wait_for_room(true)?;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // The end is seen where it is read, which needs room for answers: nobody reads those.
                Err(error) if is_end(&error) => {
                    self.engine.outgoing().written(usize::MAX);
                    (self.is_qemu_readable, self.has_qemu_ended) = (true, true);
                }
                Err(error) => return Err(ShellError::Stream(error)),
            }
        }
        if self.is_qemu_writable {
            self.wait_for_room(false)?;
        }
        Ok(self.engine.outgoing().has_room())
    }
}

/// QEMU is gone, which is an end like any other.
fn is_end(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset)
}

fn seed() -> Result<u64, ShellError> {
    let mut bytes = [0; 8];
    let mut filled = 0;
    while filled < bytes.len() {
        let room = bytes.get_mut(filled..).unwrap_or_default();
        filled += rustix::rand::getrandom(room, rustix::rand::GetRandomFlags::empty())
            .map_err(|error| ShellError::Random(error.into()))?;
    }
    Ok(u64::from_ne_bytes(bytes))
}

/// What a token means to mio, and to us.
impl Source {
    const KIND_BITS: u32 = 16;

    fn token(self) -> Token {
        let (kind, number) = match self {
            Self::Qemu => (0, 0),
            Self::Reports => (1, 0),
            Self::Tcp(flow) => (2, flow.0),
            Self::Udp(flow) => (3, flow.0),
            Self::Port(number) => (4, number),
            Self::Question(question) => (5, question.0),
        };
        Token(kind << Self::KIND_BITS | usize::from(number))
    }

    fn of(token: Token) -> Option<Self> {
        use crate::engine::{Question, TcpFlow, UdpFlow};
        let number = u16::try_from(token.0 & usize::from(u16::MAX)).ok()?;
        Some(match token.0 >> Self::KIND_BITS {
            0 => Self::Qemu,
            1 => Self::Reports,
            2 => Self::Tcp(TcpFlow(number)),
            3 => Self::Udp(UdpFlow(number)),
            4 => Self::Port(number),
            5 => Self::Question(Question(number)),
            _ => return None,
        })
    }
}
