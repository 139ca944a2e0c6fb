//! What the fuzz targets drive of this crate, whose types are its own. Built for them alone, with `--cfg fuzzing`.
//!
//! Each function takes what a peer says and panics where the agent keeps no promise that it makes about any peer. The executor is
//! modelled, so no process is started.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    future::Future as _,
    pin::pin,
    rc::Rc,
    task::{Context, Waker},
    time::Instant,
};

use bytes::Bytes;
use exec_sandbox_wire::{
    CONNECTION_OP, Credit, Done, ExecStart, Frame, FrameDecoder, GENERATION, HEADER_BYTES, Hello, HostMessage, Kind,
    Language, Network, ResumePoint, limits,
};
use tokio::runtime::{Builder, Runtime};

use crate::{
    exec::{Command, Finished, Terminal},
    interpreter::{Control, Report, Said},
    operations::{Effect, Operations},
    output::Streams,
    program::{Assembly, BadRequest},
};

/// Output that operations may make the agent keep: four times what one may.
const MAX_KEPT_BYTES: u64 = 4 * Streams::MAX_KEPT_BYTES;

/// A line of a wrapper that is heard whatever pieces it comes in, and one that never is.
const CERTAIN_LINE_BYTES: usize = 64;
const HOPELESS_LINE_BYTES: usize = 2 * CERTAIN_LINE_BYTES;

/// What happens next to the agent.
#[derive(Clone, Copy, Debug)]
pub enum Step<'a> {
    /// Bytes of the host arrive.
    Arrives(&'a [u8]),
    /// The program writes so many bytes.
    Writes {
        /// To standard output.
        stdout: usize,
        /// To standard error.
        stderr: usize,
    },
    /// The program ends.
    Ends,
    /// The host goes, and one comes.
    Reconnects,
}

/// A host says what it likes, while programs write and end. Panics if the agent runs two programs at once, says more than it was
/// granted, tells an end twice on one connection, keeps more than its bounds, or cannot serve an honest host afterwards.
pub fn agent<'a>(steps: impl IntoIterator<Item = Step<'a>>) {
    let mut world = World::default();
    world.reconnect();
    for step in steps {
        match step {
            Step::Arrives(bytes) => world.arrive(bytes),
            Step::Writes { stdout, stderr } => world.write(stdout, stderr),
            Step::Ends => world.end(),
            Step::Reconnects => world.reconnect(),
        }
    }
    world.recover();
}

/// A program that the host has sent in pieces of so many bytes: whether the agent takes it.
///
/// # Errors
/// The agent's reason, in words.
pub fn program(encoded: &[u8], piece_bytes: usize) -> Result<(), String> {
    let read = || -> Result<bool, BadRequest> {
        let mut assembly = Assembly::begin(u32::try_from(encoded.len()).unwrap_or(u32::MAX))?;
        let mut pieces = encoded.chunks(piece_bytes.max(1)).map(Bytes::copy_from_slice);
        pieces.try_fold(false, |_, piece| Ok(assembly.add(&piece)?.is_some()))
    };
    match read() {
        Ok(true) => Ok(()),
        Ok(false) => Err("it is not whole".into()),
        Err(error) => Err(error.to_string()),
    }
}

/// What a program writes to its wrapper's socket. Panics if anything is heard but one thing for each line that is not empty: the report
/// that it is, or that it is none.
pub fn control(said: &[u8]) {
    thread_local! {
        static RUNTIME: Runtime = Builder::new_current_thread().enable_io().build().expect("an event loop");
    }
    RUNTIME.with(|runtime| {
        runtime.block_on(async {
            let (ours, theirs) = std::os::unix::net::UnixStream::pair().expect("a socket");
            ours.set_nonblocking(true).expect("a flag");
            let mut control = Control::new(ours.into()).expect("a socket");
            assert_eq!(rustix::io::write(&theirs, said), Ok(said.len()), "it fits");
            drop(theirs);
            for line in said.split_inclusive(|byte| *byte == b'\n') {
                let body = line.strip_suffix(b"\n").unwrap_or(line);
                let is_whole = body.len() < line.len();
                if body.is_empty() || !is_whole && body.len() <= CERTAIN_LINE_BYTES {
                    continue;
                }
                let (heard, expected) = (control.hear().await, report(body).map_or(Said::Nonsense, Said::Report));
                // Whether so long a line is read to its end depends on the pieces it comes in.
                let may_be_cut = !is_whole || body.len() > CERTAIN_LINE_BYTES;
                let may_be_whole = is_whole && body.len() <= HOPELESS_LINE_BYTES;
                let is_right = may_be_whole && heard == expected || may_be_cut && heard == Said::Nonsense;
                assert!(is_right, "{heard:?} instead of {expected:?}");
            }
            let more = pin!(control.hear()).poll(&mut Context::from_waker(Waker::noop()));
            assert!(more.is_pending(), "{more:?} follows the end");
            assert!(!control.is_silent());
        })
    });
}

/// A line as the protocol has it: `ready`, or `done`, a token without spaces, and a number of one byte, or `seeded` and a token.
fn report(line: &[u8]) -> Option<Report> {
    let words: Vec<&str> = std::str::from_utf8(line).ok()?.split(' ').collect();
    match *words {
        ["ready"] => Some(Report::Ready),
        ["seeded", token] => Some(Report::Seeded { token: token.into() }),
        ["done", token, digits] if !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()) => {
            let code = digits.trim_start_matches('0');
            let code = if code.is_empty() { 0 } else { code.parse().ok()? };
            Some(Report::Done { token: token.into(), code })
        }
        _ => None,
    }
}

/// The agent between a host that is not believed and an executor that is modelled.
#[derive(Debug, Default)]
struct World {
    operations: Operations,
    decoder: FrameDecoder,
    /// The host has broken the contract and is not listened to until another comes.
    is_deaf: bool,
    /// The host has been greeted, or has answered that.
    is_greeted: bool,
    is_present: bool,
    running: Option<(u32, Rc<Streams>)>,
    sent: VecDeque<Frame>,
    /// What may still be sent of a kind of an operation's output, where that is not a whole window.
    windows: BTreeMap<(u32, u8), u64>,
    /// Operations whose end was told on this connection and is not acknowledged.
    told: BTreeSet<u32>,
}

impl World {
    fn reconnect(&mut self) {
        let command = self.operations.lose();
        self.tell(command);
        // Their worker is not modelled: it lets go of them at once.
        let _ = self.operations.drop_files();
        self.greet();
        (self.decoder, self.is_deaf) = (FrameDecoder::default(), false);
        self.told.clear();
    }

    fn greet(&mut self) {
        (self.is_greeted, self.is_present) = (true, false);
        let command = self.operations.greet();
        self.tell(command);
    }

    fn arrive(&mut self, bytes: &[u8]) {
        if self.is_deaf {
            return;
        }
        self.decoder.buffer().extend_from_slice(bytes);
        while !self.is_deaf {
            match self.decoder.next_frame() {
                Ok(Some(frame)) => match HostMessage::parse(frame.clone()) {
                    Ok(message) => self.hear(frame.op, message),
                    Err(_) => self.is_deaf = true,
                },
                Ok(None) => break,
                Err(_) => self.is_deaf = true,
            }
        }
        let most = HEADER_BYTES + limits::MAX_BODY_BYTES as usize + bytes.len();
        assert!(self.decoder.buffer().len() <= most, "more than a frame is held");
    }

    fn hear(&mut self, op: u32, message: HostMessage) {
        let Ok(effects) = self.operations.hear(op, message.clone(), Instant::now()) else {
            self.is_deaf = true;
            return;
        };
        match &message {
            HostMessage::Hello(Hello { network, seed, .. }) => {
                check_network(&effects, network.as_ref());
                check_renewal(&effects, seed);
            }
            _ => {
                check_network(&effects, None);
                check_renewal(&effects, &[]);
            }
        }
        match message {
            HostMessage::Hello(hello) if self.is_greeted && hello.seed.is_empty() => {
                (self.is_greeted, self.is_present) = (false, true);
                self.windows.clear();
                self.told.clear();
                for point in hello.resume {
                    self.windows.insert((point.op, Kind::STDOUT.0), point.stdout_credit.into());
                    self.windows.insert((point.op, Kind::STDERR.0), point.stderr_credit.into());
                }
            }
            HostMessage::Credit(credit) if self.is_present => {
                *self.window(op, Kind::STDOUT.0) += u64::from(credit.stdout_bytes);
                *self.window(op, Kind::STDERR.0) += u64::from(credit.stderr_bytes);
            }
            HostMessage::Ack => drop(self.told.remove(&op)),
            _ => {}
        }
        self.follow(effects);
    }

    fn follow(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Send(frame) => self.send(frame),
                Effect::Tell(command) => self.tell(Some(command)),
                Effect::Greet => self.greet(),
                _ => {}
            }
        }
        self.pump();
    }

    fn tell(&mut self, command: Option<Command>) {
        match command {
            Some(Command::Begin(op, _, streams, _)) => {
                assert!(self.running.is_none(), "two programs run at once");
                for kind in [Kind::STDOUT.0, Kind::STDERR.0] {
                    self.windows.remove(&(op, kind));
                }
                self.running = Some((op, streams));
            }
            Some(Command::Program(op, _)) => assert_eq!(self.running_op(), Some(op), "its program comes after it"),
            Some(Command::Abandon(op)) if self.running_op() == Some(op) => {
                self.running = None;
                let effects = self.operations.finish(Finished { op, terminal: None });
                self.follow(effects);
            }
            Some(Command::Cancel(op)) if self.running_op() == Some(op) => self.end(),
            _ => {}
        }
    }

    fn running_op(&self) -> Option<u32> {
        self.running.as_ref().map(|(op, _)| *op)
    }

    fn write(&mut self, stdout: usize, stderr: usize) {
        if let Some((_, streams)) = &self.running {
            streams.stdout.push(&vec![b'o'; stdout]);
            streams.stderr.push(&vec![b'e'; stderr]);
        }
        self.pump();
    }

    /// What the executor sends while a program runs.
    fn pump(&mut self) {
        let Some(streams) = self.running.as_ref().map(|(_, streams)| Rc::clone(streams)) else { return };
        while let Some(frame) = streams.next_frame() {
            self.send(frame);
        }
    }

    fn end(&mut self) {
        let Some((op, streams)) = self.running.take() else { return };
        let (stdout_bytes, stderr_bytes) = (streams.stdout.total(), streams.stderr.total());
        let done = Done { stdout_bytes, stderr_bytes, ..Done::default() };
        let effects = self.operations.finish(Finished { op, terminal: Some(Terminal::Done(done)) });
        self.follow(effects);
    }

    fn send(&mut self, frame: Frame) {
        let bytes = frame.body.len() as u64;
        match frame.kind {
            Kind::STDOUT | Kind::STDERR => {
                assert!(self.is_present, "output is sent to nobody");
                let window = self.window(frame.op, frame.kind.0);
                *window = window.checked_sub(bytes).expect("more is sent than was granted");
                assert!(!self.told.contains(&frame.op), "output follows its end");
            }
            Kind::DONE => {
                assert!(self.is_present, "an end is told to nobody");
                assert!(self.told.insert(frame.op), "an end is told twice");
            }
            _ => {}
        }
        self.sent.push_back(frame);
    }

    fn window(&mut self, op: u32, kind: u8) -> &mut u64 {
        self.windows.entry((op, kind)).or_insert_with(|| limits::STREAM_WINDOW_BYTES.into())
    }

    /// An honest host comes. It is told all that is kept, which is within the bounds, and then served.
    fn recover(mut self) {
        self.end();
        self.reconnect();
        self.sent.clear();
        self.hear(CONNECTION_OP, hello(Vec::new()));
        assert!(!self.is_deaf, "an honest host is not listened to");
        let (mut output, mut ends) = (0, 0);
        while let Some(frame) = self.sent.pop_front() {
            let bytes = u32::try_from(frame.body.len()).expect("bodies are short");
            let credit = match frame.kind {
                Kind::STDOUT => Credit { stdout_bytes: bytes, ..Credit::default() },
                Kind::STDERR => Credit { stderr_bytes: bytes, ..Credit::default() },
                Kind::DONE | Kind::REFUSED => {
                    ends += 1;
                    self.hear(frame.op, HostMessage::Ack);
                    continue;
                }
                _ => continue,
            };
            output += u64::from(bytes);
            self.hear(frame.op, HostMessage::Credit(credit));
        }
        assert!(!self.is_deaf, "an honest host is not listened to");
        assert!(output <= MAX_KEPT_BYTES && ends <= limits::MAX_OPERATIONS, "{output} bytes of {ends} operations");
        let start = ExecStart { language: Language::Raw.into(), timeout_ms: 1, ..ExecStart::default() };
        self.hear(1, HostMessage::ExecStart(start));
        assert_eq!(self.running_op(), Some(1), "an honest host is not served");
    }
}

/// A network is set up as it was named, once, and before anything is said or done about an operation.
fn check_network(effects: &[Effect], named: Option<&Network>) {
    let set_up: Vec<&Network> = effects
        .iter()
        .filter_map(|effect| if let Effect::Network(network) = effect { Some(network) } else { None })
        .collect();
    assert_eq!(set_up, Vec::from_iter(named), "another network than was named");
    let before = |effect: &&Effect| matches!(effect, Effect::Clock(_) | Effect::Renew(_));
    let rest = effects.iter().skip_while(before).skip(set_up.len());
    assert!(!rest.into_iter().any(|effect| matches!(effect, Effect::Network(_))), "something comes before the network");
}

/// A copy becomes a machine of its own when it is told to, before anything but the clock, and greets after it. Its interpreters hear of
/// it next.
fn check_renewal(effects: &[Effect], seed: &[u8]) {
    let renewals = effects.iter().filter(|effect| matches!(effect, Effect::Renew(_))).count();
    assert_eq!(renewals, usize::from(!seed.is_empty()), "another seed than was sent");
    if renewals > 0 {
        let [Effect::Clock(_), Effect::Renew(_), .., Effect::Greet, Effect::Tell(Command::Reseed)] = effects else {
            panic!("{effects:?}");
        };
    }
}

/// What a host answers to a greeting.
fn hello(resume: Vec<ResumePoint>) -> HostMessage {
    HostMessage::Hello(Hello { generation: GENERATION, resume, ..Hello::default() })
}
