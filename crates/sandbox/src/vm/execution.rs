//! One execution as the host sees it: a state machine over messages, without a socket or a clock.
//!
//! ```text
//! start ─▶ running ── Stdout│Stderr ──▶ running ── Done ──▶ over, once all output has been delivered
//!                                          └────── Refused ─▶ over
//! ```
//!
//! The guest is hostile. It may send what its windows allow, as much as the caps allow, nothing after its terminal frame, and
//! totals that agree with what it sent; anything else is a [`Violation`], after which nothing it says is believed.

use std::{collections::VecDeque, time::Duration};

use bytes::Bytes;
use exec_sandbox_wire::{
    Credit, Done, End, ExecStart, Frame, GuestMessage, HostMessage, Window,
    limits::{CHUNK_BYTES, MAX_DETAIL_BYTES, MAX_STDERR_BYTES, MAX_STDOUT_BYTES, STREAM_WINDOW_BYTES},
};
use prost::Message as _;

use super::printable;
use crate::{
    outcome::{Exit, Output},
    request::ValidRequest,
};

/// Granting in halves keeps the sender busy while a grant is on its way, without a grant per chunk.
const GRANT_AT_BYTES: usize = STREAM_WINDOW_BYTES as usize / 2;

/// What an honest agent never does.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Violation {
    #[error("the agent sent more than it was granted")]
    OverWindow,
    #[error("the agent sent more output than is kept")]
    OverCap,
    #[error("the agent went on after the end of the operation")]
    AfterEnd,
    #[error("the agent's totals disagree with what it sent")]
    WrongTotals,
    #[error("the agent named no end that exists")]
    UnknownEnd,
}

/// How the execution is over.
#[derive(Debug)]
pub(super) enum Finished {
    /// The program ran.
    Ran(Ran),
    /// The program did not run, and why, for people.
    Refused(String),
}

/// A program that ran: all that the guest said of it.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) exit: Exit,
    pub(crate) stdout: Bytes,
    pub(crate) stderr: Bytes,
    pub(crate) over_limit: Option<&'static str>,
    pub(crate) usage: Option<exec_sandbox_wire::Usage>,
}

/// An execution under way.
#[derive(Debug)]
pub(super) struct Execution {
    op: u32,
    timeout: Duration,
    stdout: Stream,
    stderr: Stream,
    arrived: VecDeque<Output>,
    finished: Option<Finished>,
}

/// One of the two output streams.
#[derive(Debug)]
struct Stream {
    name: &'static str,
    cap: u64,
    window: Window,
    /// Delivered to the caller and not granted again yet.
    owed: usize,
    kept: Vec<u8>,
}

impl Execution {
    /// An execution of `request` as operation `op`, and the frames that start it.
    pub(super) fn start(op: u32, request: &ValidRequest) -> (Self, Vec<Frame>) {
        let program = Bytes::from(request.program.encode_to_vec());
        let start = ExecStart {
            language: exec_sandbox_wire::Language::from(request.language).into(),
            timeout_ms: u32::try_from(request.timeout.as_millis()).unwrap_or(u32::MAX),
            program_bytes: u32::try_from(program.len()).unwrap_or(u32::MAX),
        };
        let chunk = CHUNK_BYTES as usize;
        let pieces = (0..program.len()).step_by(chunk).map(|from| program.slice(from..program.len().min(from + chunk)));
        let frames = [HostMessage::ExecStart(start)]
            .into_iter()
            .chain(pieces.map(HostMessage::ExecProgram))
            .map(|message| message.into_frame(op))
            .collect();
        let execution = Self {
            op,
            timeout: request.timeout,
            stdout: Stream::new("stdout", MAX_STDOUT_BYTES),
            stderr: Stream::new("stderr", MAX_STDERR_BYTES),
            arrived: VecDeque::new(),
            finished: None,
        };
        (execution, frames)
    }

    /// Takes in what the guest said about this operation. Kinds that this build does not know are skipped.
    pub(super) fn on_message(&mut self, message: GuestMessage) -> Result<(), Violation> {
        if self.finished.is_some() {
            return Err(Violation::AfterEnd);
        }
        match message {
            // Nothing was written: an honest agent does not say so, and another could say it for ever.
            GuestMessage::Stdout(bytes) | GuestMessage::Stderr(bytes) if bytes.is_empty() => {}
            // Copied, because a piece of one byte would otherwise keep the whole read that it came in.
            GuestMessage::Stdout(bytes) => {
                self.stdout.accept(&bytes)?;
                self.arrived.push_back(Output::Stdout(Bytes::copy_from_slice(&bytes)));
            }
            GuestMessage::Stderr(bytes) => {
                self.stderr.accept(&bytes)?;
                self.arrived.push_back(Output::Stderr(Bytes::copy_from_slice(&bytes)));
            }
            GuestMessage::Done(done) => self.finish(&done)?,
            GuestMessage::Refused(refused) => {
                self.finished = Some(Finished::Refused(printable(&refused.detail, MAX_DETAIL_BYTES)));
            }
            GuestMessage::Hello(_) | GuestMessage::Pong(_) | GuestMessage::Unknown(_) => {}
        }
        Ok(())
    }

    /// Whether output waits to be delivered.
    pub(super) fn has_output(&self) -> bool {
        !self.arrived.is_empty()
    }

    /// The next piece to deliver, and the grant that its delivery is worth, if any.
    pub(super) fn deliver(&mut self) -> Option<(Output, Option<Frame>)> {
        let output = self.arrived.pop_front()?;
        let credit = match &output {
            Output::Stdout(bytes) => Credit { stdout_bytes: self.stdout.delivered(bytes.len()), stderr_bytes: 0 },
            Output::Stderr(bytes) => Credit { stdout_bytes: 0, stderr_bytes: self.stderr.delivered(bytes.len()) },
            Output::BootLog(_) => Credit::default(),
        };
        let grant = (credit != Credit::default()).then(|| HostMessage::Credit(credit).into_frame(self.op));
        Some((output, grant))
    }

    /// Whether the terminal frame has come and all output before it has been delivered.
    pub(super) fn is_over(&self) -> bool {
        self.finished.is_some() && self.arrived.is_empty()
    }

    /// How it ended, once it [`is_over`](Self::is_over), and the frame that tells the guest so.
    pub(super) fn into_finished(self) -> Option<(Finished, Frame)> {
        self.finished.map(|finished| (finished, HostMessage::Ack.into_frame(self.op)))
    }

    fn finish(&mut self, done: &Done) -> Result<(), Violation> {
        self.stdout.check_total(done.stdout_bytes)?;
        self.stderr.check_total(done.stderr_bytes)?;
        let exit = match End::try_from(done.end) {
            Ok(End::Exited) => Exit::Code(done.exit_code),
            Ok(End::Signalled) => Exit::Signal(done.signal),
            Ok(End::TimedOut) => Exit::TimedOut,
            Ok(End::OutOfMemory) => Exit::OutOfMemory,
            Ok(End::Cancelled | End::Unspecified) | Err(_) => return Err(Violation::UnknownEnd),
        };
        if let Some(note) = self.note(exit) {
            self.stderr.kept.extend_from_slice(&note);
            self.arrived.push_back(Output::Stderr(note));
        }
        self.finished = Some(Finished::Ran(Ran {
            exit,
            stdout: std::mem::take(&mut self.stdout.kept).into(),
            stderr: std::mem::take(&mut self.stderr.kept).into(),
            over_limit: [(&self.stdout, done.stdout_bytes), (&self.stderr, done.stderr_bytes)]
                .into_iter()
                .find_map(|(stream, total)| (total > stream.cap).then_some(stream.name)),
            usage: done.usage,
        }));
        Ok(())
    }

    /// The line on standard error that tells why a program was ended from outside.
    fn note(&self, exit: Exit) -> Option<Bytes> {
        let text = match exit {
            Exit::TimedOut => format!("timeout: the program was ended after {} s", self.timeout.as_secs_f64()),
            Exit::OutOfMemory => "out of memory: the program used up the memory of its VM and was ended".into(),
            Exit::Code(_) | Exit::Signal(_) => return None,
        };
        let newline = if self.stderr.kept.last().is_none_or(|last| *last == b'\n') { "" } else { "\n" };
        Some(format!("{newline}{text}\n").into())
    }
}

impl Stream {
    fn new(name: &'static str, cap: u64) -> Self {
        Self { name, cap, window: Window::default(), owed: 0, kept: Vec::new() }
    }

    fn accept(&mut self, bytes: &[u8]) -> Result<(), Violation> {
        if self.window.available() < bytes.len() {
            return Err(Violation::OverWindow);
        }
        self.window.take(bytes.len());
        if (self.kept.len() + bytes.len()) as u64 > self.cap {
            return Err(Violation::OverCap);
        }
        self.kept.extend_from_slice(bytes);
        Ok(())
    }

    /// Notes a delivery; returns the bytes to grant now. What the host adds itself was never taken from the window.
    fn delivered(&mut self, bytes: usize) -> u32 {
        self.owed += bytes;
        if self.owed < GRANT_AT_BYTES {
            return 0;
        }
        let granted = u32::try_from(std::mem::take(&mut self.owed)).unwrap_or(u32::MAX);
        if self.window.grant(granted).is_ok() { granted } else { 0 }
    }

    fn check_total(&self, total: u64) -> Result<(), Violation> {
        if total.min(self.cap) == self.kept.len() as u64 { Ok(()) } else { Err(Violation::WrongTotals) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{Language, RunRequest, SchedulerConfig};

    fn started(code: &str) -> (Execution, Vec<Frame>) {
        let request = RunRequest::new(Language::Raw, code).validate(&SchedulerConfig::default()).expect("it is valid");
        Execution::start(7, &request)
    }

    fn size(limit: u64) -> usize {
        usize::try_from(limit).expect("limits are small")
    }

    fn exited(stdout: usize, stderr: usize) -> GuestMessage {
        GuestMessage::Done(Done {
            end: End::Exited.into(),
            stdout_bytes: stdout as u64,
            stderr_bytes: stderr as u64,
            ..Done::default()
        })
    }

    fn ran(execution: Execution) -> Ran {
        match execution.into_finished() {
            Some((Finished::Ran(ran), _ack)) => ran,
            other => panic!("not a program that ran: {other:?}"),
        }
    }

    #[test]
    fn a_program_larger_than_a_frame_is_sent_in_pieces_that_make_it_whole() {
        let code = "x".repeat(200_000);
        let (_, frames) = started(&code);
        let mut program = Vec::new();
        let mut announced = 0;
        for frame in frames {
            assert_eq!(frame.op, 7);
            match HostMessage::parse(frame).expect("it was written by us") {
                HostMessage::ExecStart(start) => announced = start.program_bytes as usize,
                HostMessage::ExecProgram(piece) => program.extend_from_slice(&piece),
                other => panic!("{other:?} does not belong here"),
            }
        }
        assert_eq!(program.len(), announced);
        let program = exec_sandbox_wire::Program::decode(&*program).expect("it is whole");
        assert_eq!(program.code, code.as_bytes());
    }

    #[test]
    fn output_is_delivered_before_the_end_and_kept_in_order() {
        let (mut execution, _) = started("true");
        execution.on_message(GuestMessage::Stdout("a".into())).expect("it is honest");
        execution.on_message(GuestMessage::Stderr("b".into())).expect("it is honest");
        execution.on_message(exited(1, 1)).expect("it is honest");
        assert!(!execution.is_over(), "two pieces wait");
        let delivered: Vec<_> = std::iter::from_fn(|| execution.deliver()).map(|(output, _)| output).collect();
        assert_eq!(delivered, [Output::Stdout("a".into()), Output::Stderr("b".into())]);
        assert!(execution.is_over());
        let ran = ran(execution);
        assert_eq!((ran.exit, &ran.stdout[..], &ran.stderr[..]), (Exit::Code(0), &b"a"[..], &b"b"[..]));
    }

    #[test]
    fn a_caller_who_takes_nothing_grants_nothing() {
        let (mut execution, _) = started("true");
        let chunk = Bytes::from(vec![0; CHUNK_BYTES as usize]);
        for _ in 0..STREAM_WINDOW_BYTES / CHUNK_BYTES {
            execution.on_message(GuestMessage::Stdout(chunk.clone())).expect("the window allows it");
        }
        assert_eq!(execution.on_message(GuestMessage::Stdout("x".into())), Err(Violation::OverWindow));
    }

    #[test]
    fn more_than_the_cap_is_a_violation_and_a_larger_total_is_a_limit() {
        let (mut execution, _) = started("true");
        let mut sent = 0;
        while sent < size(MAX_STDERR_BYTES) {
            let chunk = (CHUNK_BYTES as usize).min(size(MAX_STDERR_BYTES) - sent);
            execution.on_message(GuestMessage::Stderr(vec![b'x'; chunk].into())).expect("it is below the cap");
            while execution.deliver().is_some() {}
            sent += chunk;
        }
        assert_eq!(execution.on_message(GuestMessage::Stderr("y".into())), Err(Violation::OverCap));
        let (mut execution, _) = started("true");
        execution.on_message(GuestMessage::Stderr("x".into())).expect("it is honest");
        assert_eq!(execution.on_message(exited(0, 5)), Err(Violation::WrongTotals));
    }

    #[test]
    fn a_timeout_is_said_on_standard_error_on_a_line_of_its_own() {
        let (mut execution, _) = started("true");
        execution.on_message(GuestMessage::Stderr("half a line".into())).expect("it is honest");
        let done = Done { end: End::TimedOut.into(), stderr_bytes: 11, ..Done::default() };
        execution.on_message(GuestMessage::Done(done)).expect("it is honest");
        while execution.deliver().is_some() {}
        let ran = ran(execution);
        assert_eq!(ran.exit.code(), -1);
        assert_eq!(&ran.stderr[..], b"half a line\ntimeout: the program was ended after 30 s\n");
    }

    #[test]
    fn a_refusal_is_shown_without_what_steers_a_terminal_and_no_longer_than_it_may_be() {
        let (mut execution, _) = started("true");
        let detail = format!("no\x1b[2J {}", "x".repeat(2 * MAX_DETAIL_BYTES));
        let refused = exec_sandbox_wire::Refused { detail, ..Default::default() };
        execution.on_message(GuestMessage::Refused(refused)).expect("it may refuse");
        let Some((Finished::Refused(shown), _ack)) = execution.into_finished() else { panic!("it has refused") };
        assert!(shown.starts_with("no\u{fffd}[2J xx"), "{shown}");
        assert_eq!(shown.chars().count(), MAX_DETAIL_BYTES);
    }

    #[test]
    fn output_that_is_empty_is_not_gathered() {
        let (mut execution, _) = started("true");
        execution.on_message(GuestMessage::Stdout(Bytes::new())).expect("it is harmless");
        execution.on_message(GuestMessage::Stderr(Bytes::new())).expect("it is harmless");
        assert!(!execution.has_output());
    }

    #[test]
    fn output_that_waits_does_not_keep_the_read_that_it_came_in() {
        let (mut execution, _) = started("true");
        let read = Bytes::from(vec![b'x'; 1024]);
        execution.on_message(GuestMessage::Stdout(read.slice(..1))).expect("it is honest");
        assert!(read.is_unique(), "nothing else refers to it");
    }

    #[test]
    fn nothing_is_believed_after_the_end() {
        let (mut execution, _) = started("true");
        execution.on_message(exited(0, 0)).expect("it is honest");
        assert_eq!(execution.on_message(exited(0, 0)), Err(Violation::AfterEnd));
    }

    #[test]
    fn an_end_that_does_not_exist_is_a_violation() {
        let (mut execution, _) = started("true");
        let done = GuestMessage::Done(Done { end: 77, ..Done::default() });
        assert_eq!(execution.on_message(done), Err(Violation::UnknownEnd));
    }

    proptest! {
        #[test]
        fn a_guest_that_keeps_its_window_is_never_stuck_and_loses_no_byte(sizes in prop::collection::vec(1_usize..65_536, 1..40)) {
            let (mut execution, _) = started("true");
            let (mut window, mut sent) = (Window::default(), 0_usize);
            for wanted in sizes {
                let size = wanted.min(size(MAX_STDOUT_BYTES) - sent);
                if window.available() < size {
                    while let Some((_, grant)) = execution.deliver() {
                        if let Some(HostMessage::Credit(credit)) = grant.and_then(|frame| HostMessage::parse(frame).ok()) {
                            window.grant(credit.stdout_bytes).expect("an honest grant");
                        }
                    }
                }
                prop_assert!(window.available() >= size.min(CHUNK_BYTES as usize), "the guest is stuck");
                let taken = window.take(size);
                execution.on_message(GuestMessage::Stdout(vec![b'x'; taken].into())).expect("it is honest");
                sent += taken;
            }
            execution.on_message(exited(sent, 0)).expect("it is honest");
            while execution.deliver().is_some() {}
            prop_assert_eq!(ran(execution).stdout.len(), sent);
        }
    }
}
