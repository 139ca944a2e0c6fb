//! The actor: plays the steps of a scene, one after the other.
//!
//! A step that needs what an earlier one did not make is a mistake of the scene, and ends the process with a word about it. A
//! host that hangs up is none: a QEMU lives on without it, so the actor hangs.

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    os::unix::net::UnixListener,
    path::PathBuf,
    process::{Command, ExitCode},
};

use bytes::Bytes;
use exec_sandbox_wire::{
    CONNECTION_OP, Done, ExecStart, Frame, GuestMessage, Hello, HostMessage, Kind, NetworkState, Program, Refusal,
    Refused, Window, limits::STREAM_WINDOW_BYTES,
};
use faults::{Amount, Step, Stream};
use prost::Message as _;
use rustix::process::Signal;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    GRANDCHILD,
    descriptors::Descriptors,
    memory,
    monitor::Monitor,
    port::{self, Port},
    raise::raise,
};

/// An operation that no host begins in a test.
const OTHER_OPERATION: u32 = 99;

/// A kind that this generation does not have.
const UNKNOWN_KIND: Kind = Kind(0xee);

/// How an execution ends that ends well.
const WELL: Step =
    Step::Done { end: exec_sandbox_wire::End::Exited as i32, exit: 0, signal: 0, stdout: None, stderr: None };

/// See the head of this file.
#[derive(Debug)]
pub(crate) struct Actor {
    own_program: PathBuf,
    listener: Option<UnixListener>,
    monitor: Option<Monitor>,
    console: Option<File>,
    /// The file that is the guest's memory, if there is one.
    memory: Option<PathBuf>,
    port: Option<Port>,
    execution: Execution,
    /// What is said of a network that the host names; nothing is wrong with it if this is empty.
    network_failure: String,
    boot_id: Vec<u8>,
}

/// The execution under way, or the one that would be the first.
#[derive(Debug, Default)]
struct Execution {
    op: u32,
    program: Vec<u8>,
    stdout: Sent,
    stderr: Sent,
}

/// What has been sent of a stream.
#[derive(Debug, Default)]
struct Sent {
    bytes: u64,
    window: Window,
}

/// Why a step was not played.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PlayError {
    #[error("a step before this one is missing: {0}")]
    Missing(&'static str),
    #[error("{0} is no signal")]
    NoSignal(i32),
    #[error("the program that came is none")]
    Program(#[from] prost::DecodeError),
    #[error("playing a step")]
    Io(#[from] io::Error),
}

/// What a step leads to.
enum Next {
    Step,
    Leave(ExitCode),
}

impl Actor {
    pub(crate) fn new(own_program: PathBuf, handed_over: Descriptors, memory: Option<PathBuf>) -> Self {
        let Descriptors { listener, monitor, console } = handed_over;
        let execution = Execution { op: 1, ..Execution::default() };
        Self {
            own_program,
            listener: Some(listener),
            monitor: Some(Monitor::new(monitor)),
            console,
            memory,
            port: None,
            execution,
            network_failure: String::new(),
            boot_id: Vec::new(),
        }
    }

    /// Plays `steps`; returns only if one of them leaves, or cannot be played.
    pub(crate) fn play(&mut self, steps: &[Step]) -> Result<ExitCode, PlayError> {
        for step in steps {
            match self.step(step) {
                Ok(Next::Step) => {}
                Ok(Next::Leave(code)) => return Ok(code),
                Err(PlayError::Io(error)) if is_hang_up(&error) => hang(),
                Err(error) => return Err(error),
            }
        }
        hang()
    }

    fn step(&mut self, step: &Step) -> Result<Next, PlayError> {
        match step {
            Step::Exit(code) => return Ok(Next::Leave(ExitCode::from(*code))),
            Step::Hang => hang(),
            Step::NoNetwork(failure) => self.network_failure.clone_from(failure),
            Step::Say(text) => writeln!(io::stderr(), "{text}")?,
            Step::Console(text) => writeln!(self.console.as_ref().ok_or(PlayError::Missing("a console"))?, "{text}")?,
            Step::Signal(number) => {
                let signal = Signal::from_named_raw(*number).ok_or(PlayError::NoSignal(*number))?;
                raise(signal)?;
            }
            Step::IgnoreTerm => ignore_term()?,
            Step::Grandchild => drop(Command::new(&self.own_program).arg(GRANDCHILD).spawn()?),
            Step::Greet | Step::Monitor(_) | Step::MonitorFlood(_) | Step::CloseMonitor => self.monitor_step(step)?,
            Step::Answer(_) | Step::Decline(_) | Step::Migration(_) => self.answer(step)?,
            Step::State(_) | Step::Load | Step::Memory(_) => self.state_step(step)?,
            Step::Rehearse => self.rehearse()?,
            Step::Save => self.save()?,
            Step::CloseListener => drop(self.listener.take()),
            Step::Accept => {
                let listener = self.listener.as_ref().ok_or(PlayError::Missing("the listener is closed"))?;
                self.port = Some(Port::new(listener.accept()?.0));
            }
            Step::CloseChannel => drop(self.port.take()),
            Step::Serve => loop {
                self.await_exec()?;
                self.echo()?;
                self.execution_step(&WELL)?;
                self.await_ack()?;
            },
            Step::AwaitExec => self.await_exec()?,
            Step::AwaitAck => self.await_ack()?,
            Step::AwaitPing => while !matches!(self.port()?.hear()?, (_, HostMessage::Ping(_))) {},
            Step::AwaitSeed => self.await_seed()?,
            Step::Hello(_)
            | Step::HalfHello
            | Step::Garbage(_)
            | Step::HugeHeader
            | Step::BadBody
            | Step::Pongs(_)
            | Step::OtherOperation => self.connection_step(step)?,
            Step::Write(..)
            | Step::WriteBytes { .. }
            | Step::OverWindow
            | Step::UnknownKind
            | Step::Done { .. }
            | Step::Refuse(_) => self.execution_step(step)?,
        }
        Ok(Next::Step)
    }

    fn monitor_step(&mut self, step: &Step) -> Result<(), PlayError> {
        if *step == Step::CloseMonitor {
            self.monitor = None;
            return Ok(());
        }
        let monitor = self.monitor()?;
        // A host that does not listen is no concern of a QEMU's.
        let _ = match step {
            Step::Greet => monitor.greet(),
            Step::Monitor(text) => monitor.say(text),
            Step::MonitorFlood(bytes) => monitor.raw(&vec![b'x'; *bytes]),
            _ => Ok(()),
        };
        Ok(())
    }

    /// What answers the host's commands.
    fn answer(&mut self, step: &Step) -> Result<(), PlayError> {
        let monitor = self.monitor()?;
        match step {
            Step::Answer(times) => {
                for _ in 0..*times {
                    monitor.answer("return", &json!({}))?;
                }
            }
            Step::Decline(why) => monitor.answer("error", &json!({ "class": "GenericError", "desc": why }))?,
            Step::Migration(status) => monitor.answer("return", &json!({ "status": status }))?,
            _ => {}
        }
        Ok(())
    }

    /// What concerns the guest's state and memory.
    fn state_step(&mut self, step: &Step) -> Result<(), PlayError> {
        if let Step::Memory(bytes) = step {
            let path = self.memory.as_ref().ok_or(PlayError::Missing("a memory"))?;
            return Ok(memory::write(path, *bytes)?);
        }
        let mut descriptor = self.monitor()?.take_descriptor().ok_or(PlayError::Missing("a descriptor"))?;
        match step {
            // A host that does not want more of it is no concern of a QEMU's.
            Step::State(bytes) => drop(descriptor.write_all(&vec![b'x'; *bytes])),
            _ => drop(descriptor.read_to_end(&mut Vec::new())?),
        }
        Ok(())
    }

    fn rehearse(&mut self) -> Result<(), PlayError> {
        self.await_exec()?;
        self.execution_step(&Step::Write(Stream::Stdout, "ready".into()))?;
        self.execution_step(&WELL)?;
        self.await_ack()?;
        self.step(&Step::AwaitPing).map(drop)
    }

    fn save(&mut self) -> Result<(), PlayError> {
        self.answer(&Step::Answer(3))?;
        self.state_step(&Step::State(100))?;
        self.answer(&Step::Migration("completed".into()))?;
        self.answer(&Step::Answer(1))
    }

    /// What concerns the connection.
    fn connection_step(&mut self, step: &Step) -> Result<(), PlayError> {
        let (op, boot_id) = (self.execution.op, self.boot_id.clone());
        let port = self.port()?;
        match step {
            Step::Hello(generation) => port.say(CONNECTION_OP, hello(*generation, &boot_id))?,
            Step::HalfHello => {
                let whole = port::encoded(&hello(exec_sandbox_wire::GENERATION, &boot_id).into_frame(CONNECTION_OP))?;
                port.raw(whole.get(..whole.len() / 2).unwrap_or_default())?;
            }
            Step::Garbage(bytes) => port.raw(&port::garbage(*bytes))?,
            Step::HugeHeader => port.raw(&port::huge_header(op))?,
            Step::BadBody => port.frame(&port::bad_body())?,
            Step::Pongs(amount) => {
                let mut left = *amount;
                while left != Amount::Times(0) {
                    port.say(CONNECTION_OP, GuestMessage::Pong("pong".into()))?;
                    left = match left {
                        Amount::Times(times) => Amount::Times(times.saturating_sub(1)),
                        Amount::Forever => Amount::Forever,
                    };
                }
            }
            Step::OtherOperation => {
                port.say(OTHER_OPERATION, GuestMessage::Stdout("of another".into()))?;
                port.say(OTHER_OPERATION, GuestMessage::Done(Done::default()))?;
            }
            _ => {}
        }
        Ok(())
    }

    /// What concerns the operation under way.
    fn execution_step(&mut self, step: &Step) -> Result<(), PlayError> {
        let op = self.execution.op;
        match step {
            Step::Write(stream, text) => self.write(*stream, Bytes::from(text.clone()))?,
            Step::WriteBytes { stream, bytes, by } => {
                let mut left = *bytes;
                while left > 0 {
                    let piece = self.granted(*stream, left.min(*by))?;
                    self.write(*stream, vec![b'x'; piece].into())?;
                    left -= piece;
                }
            }
            Step::OverWindow => self.write(Stream::Stdout, vec![b'x'; STREAM_WINDOW_BYTES as usize + 1].into())?,
            Step::UnknownKind => self.port()?.frame(&Frame { op, kind: UNKNOWN_KIND, body: "news".into() })?,
            Step::Done { end, exit, signal, stdout, stderr } => {
                let done = Done {
                    end: *end,
                    exit_code: *exit,
                    signal: *signal,
                    stdout_bytes: stdout.unwrap_or(self.execution.stdout.bytes),
                    stderr_bytes: stderr.unwrap_or(self.execution.stderr.bytes),
                    usage: None,
                };
                self.port()?.say(op, GuestMessage::Done(done))?;
            }
            Step::Refuse(detail) => {
                let refused = Refused { reason: Refusal::Busy.into(), detail: detail.clone() };
                self.port()?.say(op, GuestMessage::Refused(refused))?;
            }
            _ => {}
        }
        Ok(())
    }

    /// Writes the program's own source to its standard output.
    fn echo(&mut self) -> Result<(), PlayError> {
        let code = Bytes::from(Program::decode(&*self.execution.program)?.code);
        let mut from = 0;
        while from < code.len() {
            let piece = self.granted(Stream::Stdout, code.len() - from)?;
            self.write(Stream::Stdout, code.slice(from..from + piece))?;
            from += piece;
        }
        Ok(())
    }

    fn write(&mut self, stream: Stream, bytes: Bytes) -> Result<(), PlayError> {
        let op = self.execution.op;
        self.execution.sent(stream).bytes += bytes.len() as u64;
        let message = match stream {
            Stream::Stdout => GuestMessage::Stdout(bytes),
            Stream::Stderr => GuestMessage::Stderr(bytes),
        };
        Ok(self.port()?.say(op, message)?)
    }

    /// Takes from the window as much of `wanted` as there is, and waits for some if there is none.
    fn granted(&mut self, stream: Stream, wanted: usize) -> Result<usize, PlayError> {
        loop {
            match self.execution.sent(stream).window.take(wanted.min(exec_sandbox_wire::limits::CHUNK_BYTES as usize)) {
                0 => self.listen()?,
                taken => return Ok(taken),
            }
        }
    }

    /// Hears one message of the host's and takes in what it grants.
    fn listen(&mut self) -> Result<(), PlayError> {
        if let (_, HostMessage::Credit(credit)) = self.port()?.next()? {
            for (sent, bytes) in
                [(&mut self.execution.stdout, credit.stdout_bytes), (&mut self.execution.stderr, credit.stderr_bytes)]
            {
                sent.window.grant(bytes).map_err(io::Error::other)?;
            }
        }
        Ok(())
    }

    fn await_exec(&mut self) -> Result<(), PlayError> {
        let mut announced = None;
        loop {
            match self.port()?.next()? {
                (op, HostMessage::ExecStart(ExecStart { program_bytes, .. })) => {
                    self.execution = Execution { op, ..Execution::default() };
                    announced = Some(program_bytes as usize);
                }
                (CONNECTION_OP, HostMessage::Hello(Hello { network: Some(_), .. })) => {
                    let failure = self.network_failure.clone();
                    self.port()?.say(CONNECTION_OP, GuestMessage::Network(NetworkState { failure }))?;
                }
                (_, HostMessage::ExecProgram(piece)) => self.execution.program.extend_from_slice(&piece),
                _ => {}
            }
            if announced.is_some_and(|announced| self.execution.program.len() >= announced) {
                return Ok(());
            }
        }
    }

    fn await_ack(&mut self) -> Result<(), PlayError> {
        while self.port()?.next()?.1 != HostMessage::Ack {}
        Ok(())
    }

    fn await_seed(&mut self) -> Result<(), PlayError> {
        loop {
            if let (_, HostMessage::Hello(hello)) = self.port()?.next()?
                && !hello.seed.is_empty()
            {
                // An honest guest becomes another; this one is as its seed.
                self.boot_id = hello.seed;
                return Ok(());
            }
        }
    }

    fn monitor(&mut self) -> Result<&mut Monitor, PlayError> {
        self.monitor.as_mut().ok_or(PlayError::Missing("the monitor is closed"))
    }

    fn port(&mut self) -> Result<&mut Port, PlayError> {
        self.port.as_mut().ok_or(PlayError::Missing("there is no connection"))
    }
}

impl Execution {
    fn sent(&mut self, stream: Stream) -> &mut Sent {
        match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        }
    }
}

/// Does nothing for ever.
pub(crate) fn hang() -> ! {
    loop {
        std::thread::park();
    }
}

fn hello(generation: u32, boot_id: &[u8]) -> GuestMessage {
    let (boot_id, agent_version) = (boot_id.to_vec(), "fake".into());
    GuestMessage::Hello(Hello { generation, boot_id, agent_version, ..Hello::default() })
}

fn is_hang_up(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionReset | UnexpectedEof)
}

/// From here on SIGTERM is heard by a runtime that nobody asks: its handler stays for the process's life.
fn ignore_term() -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let _entered = runtime.enter();
    signal(SignalKind::terminate()).map(drop)
}
