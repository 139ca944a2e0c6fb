//! The table between a host and an executor, both modelled, over a connection that may be lost at any point.
//!
//! An honest host gets each byte of each execution once and in order, then its end, whatever happens to the connection. Any other
//! host makes the agent keep no more than is written at the head of the table's file.

use std::{collections::VecDeque, sync::LazyLock};

use exec_sandbox_wire::{FrameDecoder, Kind, Window};
use proptest::prelude::*;

use super::*;

/// What may happen.
#[derive(Clone, Debug)]
enum Step {
    /// The host begins an execution, if it waits for none.
    Begin,
    /// The program writes so many bytes to standard output and to standard error.
    Write(usize, usize),
    /// The program ends.
    End,
    /// The host calls its execution off.
    Cancel,
    /// So many frames arrive at the host, which grants for what they bring.
    ToHost(usize),
    /// So many frames arrive at the agent.
    ToAgent(usize),
    /// The connection is lost, with all that is on its way.
    Lose,
    /// The host comes back, and hears who is there.
    Return,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        2 => Just(Step::Begin),
        4 => (0_usize..300_000, 0_usize..40_000).prop_map(|(out, err)| Step::Write(out, err)),
        2 => Just(Step::End),
        1 => prop::bool::weighted(0.2).prop_map(|cancel| if cancel { Step::Cancel } else { Step::End }),
        5 => (1_usize..9).prop_map(Step::ToHost),
        5 => (1_usize..9).prop_map(Step::ToAgent),
        2 => Just(Step::Lose),
        2 => Just(Step::Return),
    ];
    prop::collection::vec(step, 1..120)
}

/// An execution, as its host and its program see it.
#[derive(Debug)]
struct Execution {
    op: u32,
    cancelled: bool,
    /// For standard output and standard error: what arrived, what may still come, and what the program wrote.
    received: [u64; 2],
    windows: [Window; 2],
}

#[derive(Debug, Default)]
struct World {
    operations: Operations,
    connected: bool,
    /// The host has heard who is there and has answered.
    met: bool,
    to_host: VecDeque<Frame>,
    to_agent: VecDeque<Frame>,
    awaited: Option<Execution>,
    next_op: u32,
    /// The executor's execution, if it has one: its streams, and whether its program is whole.
    running: Option<(u32, Rc<Streams>, bool)>,
    written: BTreeMap<u32, [u64; 2]>,
    completed: usize,
}

/// What a program writes from one place on. Each byte tells its place.
fn text(from: u64, bytes: usize) -> &'static [u8] {
    static TEXT: LazyLock<Vec<u8>> = LazyLock::new(|| (0..=250).cycle().take(1_000_000).collect());
    &TEXT[usize::try_from(from % 251).expect("it is small")..][..bytes]
}

impl World {
    fn step(&mut self, step: &Step) {
        match *step {
            Step::Begin => self.begin(),
            Step::Write(stdout, stderr) => self.write(stdout, stderr),
            Step::End => self.end(),
            Step::Cancel => {
                if let Some(execution) = &mut self.awaited
                    && self.met
                {
                    execution.cancelled = true;
                    self.to_agent.push_back(HostMessage::Cancel.into_frame(execution.op));
                }
            }
            Step::ToHost(frames) => {
                for _ in 0..frames {
                    let Some(frame) = self.to_host.pop_front() else { break };
                    self.at_host(frame);
                }
            }
            Step::ToAgent(frames) => {
                for _ in 0..frames {
                    let Some(frame) = self.to_agent.pop_front() else { break };
                    let message = HostMessage::parse(frame.clone()).expect("the host is honest");
                    let effects = self.operations.hear(frame.op, message, Instant::now());
                    self.follow(effects.expect("the host is honest"));
                }
            }
            Step::Lose => {
                (self.connected, self.met) = (false, false);
                self.to_host.clear();
                self.to_agent.clear();
                let command = self.operations.lose();
                self.tell(command);
            }
            Step::Return => {
                if !self.connected {
                    self.connected = true;
                    let command = self.operations.greet();
                    let hello = GuestMessage::Hello(Hello { generation: GENERATION, ..Hello::default() });
                    self.to_host.push_back(hello.into_frame(CONNECTION_OP));
                    self.tell(command);
                }
            }
        }
        self.pump();
        assert!(self.operations.table.len() <= limits::MAX_OPERATIONS);
        assert!(self.operations.kept_bytes() <= MAX_KEPT_BYTES);
    }

    fn begin(&mut self) {
        if self.awaited.is_some() || !self.met {
            return;
        }
        self.next_op += 1;
        let op = self.next_op;
        let (bytes, piece) = program();
        self.to_agent.extend([start(bytes).into_frame(op), piece.into_frame(op)]);
        self.awaited = Some(Execution { op, cancelled: false, received: [0; 2], windows: [Window::default(); 2] });
    }

    fn write(&mut self, stdout: usize, stderr: usize) {
        let Some((op, streams, true)) = &self.running else { return };
        let [out, err] = self.written.entry(*op).or_default();
        for (stream, count, bytes) in [(&streams.stdout, out, stdout), (&streams.stderr, err, stderr)] {
            stream.push(text(*count, bytes));
            *count += bytes as u64;
        }
    }

    fn end(&mut self) {
        let Some((op, _, true)) = self.running else { return };
        self.running = None;
        let [stdout_bytes, stderr_bytes] = self.written.get(&op).copied().unwrap_or_default();
        let done = Done { stdout_bytes, stderr_bytes, ..Done::default() };
        let effects = self.operations.finish(Finished { op, terminal: Some(Terminal::Done(done)) });
        self.follow(effects);
    }

    /// What the executor sends while a program runs.
    fn pump(&mut self) {
        if let Some((_, streams, _)) = &self.running {
            let sent: Vec<_> = std::iter::from_fn(|| streams.next_frame()).collect();
            self.send(sent);
        }
    }

    fn send(&mut self, frames: Vec<Frame>) {
        assert!(frames.is_empty() || self.connected, "it is said to nobody");
        self.to_host.extend(frames);
    }

    fn follow(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Send(frame) => self.send(vec![frame]),
                Effect::Tell(command) => self.tell(Some(command)),
                Effect::Clock(_) => {}
                Effect::Renew(_) => panic!("no host here has sent a seed"),
                Effect::Network(network) => panic!("no host here has named {network:?}"),
                Effect::File(job) => panic!("no host here has asked for {job:?}"),
                Effect::Greet => panic!("each Hello of this host is an answer"),
            }
        }
    }

    fn tell(&mut self, command: Option<Command>) {
        match command {
            Some(Command::Begin(op, _, streams, _)) => self.running = Some((op, streams, false)),
            Some(Command::Program(op, _)) => {
                self.running = self.running.take().map(|(running, streams, _)| (running, streams, running == op));
            }
            Some(Command::Abandon(op)) => {
                self.running = None;
                let effects = self.operations.finish(Finished { op, terminal: None });
                self.follow(effects);
            }
            Some(Command::Cancel(_)) => self.end(),
            Some(Command::Signal(..) | Command::Reseed) | None => {}
        }
    }

    fn at_host(&mut self, frame: Frame) {
        let op = frame.op;
        let message = GuestMessage::parse(frame).expect("the agent is honest");
        if let GuestMessage::Hello(_) = message {
            let resume = self.awaited.iter().map(Execution::point).collect();
            self.to_agent.push_back(hello(resume).into_frame(CONNECTION_OP));
            self.met = true;
            return;
        }
        assert!(self.met, "nothing comes before the host has answered");
        let Some(execution) = self.awaited.as_mut().filter(|execution| execution.op == op) else {
            // Its acknowledgement was lost, so it is given again.
            return self.to_agent.push_back(HostMessage::Ack.into_frame(op));
        };
        match message {
            GuestMessage::Stdout(bytes) => self.to_agent.push_back(execution.receive(0, &bytes)),
            GuestMessage::Stderr(bytes) => self.to_agent.push_back(execution.receive(1, &bytes)),
            GuestMessage::Done(done) => {
                let totals = [done.stdout_bytes, done.stderr_bytes];
                assert_eq!(totals, self.written.get(&op).copied().unwrap_or_default());
                let capped = [totals[0].min(limits::MAX_STDOUT_BYTES), totals[1].min(limits::MAX_STDERR_BYTES)];
                assert!(execution.cancelled || execution.received == capped, "{:?} of {capped:?}", execution.received);
                self.completed += 1;
                self.acknowledge(op);
            }
            GuestMessage::Refused(_) => {
                assert_eq!(self.written.get(&op), None, "none of it has run");
                self.acknowledge(op);
            }
            other => panic!("the agent says {other:?}"),
        }
    }

    fn acknowledge(&mut self, op: u32) {
        self.awaited = None;
        self.to_agent.push_back(HostMessage::Ack.into_frame(op));
    }
}

impl Execution {
    /// Takes what has come, and grants for it at once.
    fn receive(&mut self, stream: usize, bytes: &[u8]) -> Frame {
        assert!(bytes == text(self.received[stream], bytes.len()), "a byte is lost or repeated");
        assert_eq!(self.windows[stream].take(bytes.len()), bytes.len(), "more than was granted");
        self.received[stream] += bytes.len() as u64;
        let mut granted = [0; 2];
        granted[stream] = u32::try_from(bytes.len()).expect("it is small");
        self.windows[stream].grant(granted[stream]).expect("it was taken");
        let [stdout_bytes, stderr_bytes] = granted;
        HostMessage::Credit(Credit { stdout_bytes, stderr_bytes, ..Credit::default() }).into_frame(self.op)
    }

    fn point(&self) -> ResumePoint {
        let credit = |stream: usize| u32::try_from(self.windows[stream].available()).expect("it is small");
        ResumePoint {
            op: self.op,
            stdout_bytes: self.received[0],
            stderr_bytes: self.received[1],
            stdout_credit: credit(0),
            stderr_credit: credit(1),
        }
    }
}

/// What anybody may say: often something that a host says, about operations that there may be.
fn noise() -> impl Strategy<Value = Frame> {
    let kinds = prop::sample::select(Kind::KNOWN.iter().map(|(kind, _)| *kind).collect::<Vec<_>>());
    let any_frame = (0_u32..80, kinds, prop::collection::vec(any::<u8>(), 0..12)).prop_map(|(op, kind, body)| Frame {
        op,
        kind,
        body: body.into(),
    });
    let point = (0_u32..80, 0_u64..300_000, 0_u32..300_000).prop_map(|(op, have, credit)| point(op, have, credit));
    let hello = prop::collection::vec(point, 0..3).prop_map(|points| hello(points).into_frame(CONNECTION_OP));
    let seed = prop_oneof![Just(limits::SEED_BYTES), 0_usize..64].prop_map(|bytes| vec![7; bytes]);
    let copied = seed.prop_map(|seed| Hello { generation: GENERATION, seed, ..Hello::default() });
    let copied = copied.prop_map(|hello| HostMessage::Hello(hello).into_frame(CONNECTION_OP));
    let begin = (0_u32..80).prop_map(|op| start(0).into_frame(op));
    let credit = (0_u32..80, 0_u32..300_000).prop_map(|(op, bytes)| credit(bytes).into_frame(op));
    prop_oneof![3 => any_frame, 1 => hello, 1 => copied, 3 => begin, 1 => credit]
}

proptest! {
    #[test]
    fn an_honest_host_gets_all_of_every_execution_wherever_its_connections_are_lost(steps in steps()) {
        let mut world = World::default();
        for step in &steps {
            world.step(step);
        }
        // A connection that lasts brings the rest, and what comes after it.
        let before = world.completed;
        let rest = [Step::Return, Step::ToHost(9), Step::ToAgent(9), Step::Begin, Step::Write(9, 9), Step::End];
        let mut rounds = 0;
        while world.completed < before + 2 {
            rest.iter().for_each(|step| world.step(step));
            rounds += 1;
            prop_assert!(rounds < 1_000, "it has come to a halt");
        }
        while world.awaited.is_some() || !world.to_agent.is_empty() {
            [Step::ToHost(9), Step::ToAgent(9), Step::End].iter().for_each(|step| world.step(step));
        }
        prop_assert!(world.operations.table.is_empty(), "all is forgotten that was acknowledged");
    }

    #[test]
    fn no_host_makes_the_agent_keep_more_than_it_may(
        frames in prop::collection::vec((noise(), 0_usize..400_000), 1..120),
    ) {
        let (mut operations, mut decoder) = (Operations::default(), FrameDecoder::default());
        let mut running: Option<(u32, Rc<Streams>)> = None;
        operations.greet();
        for (frame, written) in frames {
            frame.encode(decoder.buffer()).expect("it is short");
            let frame = decoder.next_frame().expect("it was encoded").expect("it is whole");
            let Ok(message) = HostMessage::parse(frame.clone()) else { continue };
            let effects = operations.hear(frame.op, message, Instant::now());
            if effects.is_err() {
                operations.lose();
                operations.greet();
            }
            for effect in effects.unwrap_or_default() {
                match effect {
                    Effect::Tell(Command::Begin(op, _, streams, _)) => {
                        prop_assert!(running.is_none(), "one at a time");
                        running = Some((op, streams));
                    }
                    Effect::Greet => drop(operations.greet()),
                    _ => {}
                }
            }
            if let Some((_, streams)) = &running {
                streams.stdout.push(&vec![0; written]);
                streams.stderr.push(&vec![0; written]);
                while streams.next_frame().is_some() {}
            }
            if written % 4 == 0
                && let Some((op, _)) = running.take()
            {
                operations.finish(Finished { op, terminal: Some(Terminal::Done(Done::default())) });
            }
            prop_assert!(operations.table.len() <= limits::MAX_OPERATIONS);
            prop_assert!(operations.kept_bytes() <= MAX_KEPT_BYTES);
        }
    }
}
