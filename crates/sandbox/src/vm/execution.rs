//! One execution as the host sees it: a state machine over messages, without a socket or a clock.
//!
//! ```text
//! start ─▶ running ── Stdout│Stderr ──▶ running ── Done ────▶ over
//!             │ ▲                          └────── Refused ─▶ over
//!             └─┴ the connection is lost: the guest is told how far this side has come
//! ```
//!
//! The guest is hostile. It may send what its windows allow, as much as the caps allow, nothing after its terminal frame, and
//! totals that agree with what it sent; anything else is a [`Violation`], after which nothing it says is believed.

use std::time::Duration;

use bytes::Bytes;
use exec_sandbox_wire::{
    Credit, Done, End, ExecStart, Frame, GuestMessage, HostMessage, ResumePoint, Window,
    limits::{CHUNK_BYTES, MAX_DETAIL_BYTES, MAX_STDERR_BYTES, MAX_STDOUT_BYTES, STREAM_WINDOW_BYTES},
};
use prost::Message as _;

use super::{
    inbox::{StreamName, Taken},
    printable,
};
use crate::{outcome::Exit, request::ValidExec};

/// Granting in halves keeps the sender busy while a grant is on its way, without a grant per chunk.
const GRANT_AT_BYTES: usize = STREAM_WINDOW_BYTES as usize / 2;

/// What an honest agent never does.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Violation {
    #[error("the agent sent more than it was granted")]
    OverWindow,
    #[error("the agent granted more than a window holds")]
    OverGrant,
    #[error("the agent sent more output than is kept")]
    OverCap,
    #[error("the agent went on after the end of the operation")]
    AfterEnd,
    #[error("the agent's totals disagree with what it sent")]
    WrongTotals,
    #[error("the agent named no end that exists")]
    UnknownEnd,
    #[error("the agent answered an operation with what belongs to another kind")]
    OutOfPlace,
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
    /// Its caller has called it off.
    called_off: bool,
    finished: Option<Finished>,
}

/// Output for the caller.
type Piece = (StreamName, Bytes);

/// One of the two output streams.
#[derive(Debug)]
struct Stream {
    name: &'static str,
    cap: u64,
    window: Window,
    /// Taken by the caller and not granted again yet.
    owed: usize,
    /// Received and not granted again yet: what is owed, and what the caller has not taken.
    unreturned: usize,
    kept: Vec<u8>,
}

impl Ran {
    /// A program that was called off before it began.
    pub(super) fn not_begun() -> Self {
        Self { exit: Exit::Cancelled, stdout: Bytes::new(), stderr: Bytes::new(), over_limit: None, usage: None }
    }
}

impl Execution {
    /// An execution of `request` as operation `op`, and the frames that start it at `unix_time_ns` by the wall clock.
    pub(super) fn start(op: u32, request: &ValidExec, unix_time_ns: u64) -> (Self, Vec<Frame>) {
        let program = Bytes::from(request.program.encode_to_vec());
        let start = ExecStart {
            language: exec_sandbox_wire::Language::from(request.language).into(),
            timeout_ms: u32::try_from(request.timeout.as_millis()).unwrap_or(u32::MAX),
            program_bytes: u32::try_from(program.len()).unwrap_or(u32::MAX),
            is_last: request.is_last,
            rehearsal: request.is_rehearsal,
            unix_time_ns,
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
            called_off: false,
            finished: None,
        };
        (execution, frames)
    }

    /// Takes in what the guest said about this operation; what of it is for the caller. Kinds that this build does not know are
    /// skipped.
    pub(super) fn on_message(&mut self, message: GuestMessage) -> Result<Option<Piece>, Violation> {
        if self.finished.is_some() {
            return Err(Violation::AfterEnd);
        }
        Ok(match message {
            // Nothing was written: an honest agent does not say so, and another could say it for ever.
            GuestMessage::Stdout(bytes) | GuestMessage::Stderr(bytes) if bytes.is_empty() => None,
            GuestMessage::Stdout(bytes) => {
                self.stdout.accept(&bytes)?;
                Some((StreamName::Stdout, bytes))
            }
            GuestMessage::Stderr(bytes) => {
                self.stderr.accept(&bytes)?;
                Some((StreamName::Stderr, bytes))
            }
            GuestMessage::Done(done) => self.finish(&done)?.map(|note| (StreamName::Stderr, note)),
            GuestMessage::Refused(refused) => {
                self.finished = Some(Finished::Refused(printable(&refused.detail, MAX_DETAIL_BYTES)));
                None
            }
            // Kinds of this generation that mean nothing here, and those of a later one.
            _ => None,
        })
    }

    /// The caller has taken output; the grant that this is worth, if any.
    pub(super) fn on_taken(&mut self, taken: Taken) -> Option<Frame> {
        if self.finished.is_some() {
            return None;
        }
        let credit = Credit {
            stdout_bytes: self.stdout.taken(taken.stdout),
            stderr_bytes: self.stderr.taken(taken.stderr),
            ..Credit::default()
        };
        (credit != Credit::default()).then(|| HostMessage::Credit(credit).into_frame(self.op))
    }

    /// Calls it off: what is said to the guest. From now on it may end as called off.
    pub(super) fn call_off(&mut self) -> Frame {
        self.called_off = true;
        HostMessage::Cancel.into_frame(self.op)
    }

    /// How far it has come, for a guest that the connection to was lost. Both sides go on from there: what was on its way in
    /// either direction counts for nothing.
    pub(super) fn resume(&mut self) -> ResumePoint {
        ResumePoint {
            op: self.op,
            stdout_bytes: self.stdout.kept.len() as u64,
            stderr_bytes: self.stderr.kept.len() as u64,
            stdout_credit: self.stdout.reopen(),
            stderr_credit: self.stderr.reopen(),
        }
    }

    /// Whether the terminal frame has come.
    pub(super) fn is_over(&self) -> bool {
        self.finished.is_some()
    }

    /// How it ended, once it [`is_over`](Self::is_over).
    pub(super) fn into_finished(self) -> Option<Finished> {
        self.finished
    }

    /// The end of the program; the line about it for the caller, if there is one.
    fn finish(&mut self, done: &Done) -> Result<Option<Bytes>, Violation> {
        let end = End::try_from(done.end);
        // What is called off is not sent to its end, though the program may have come to its own before the guest heard of it.
        if end != Ok(End::Cancelled) {
            self.stdout.check_total(done.stdout_bytes, self.called_off)?;
            self.stderr.check_total(done.stderr_bytes, self.called_off)?;
        }
        let exit = match end {
            Ok(End::Exited) => Exit::Code(done.exit_code),
            Ok(End::Signalled) => Exit::Signal(done.signal),
            Ok(End::TimedOut) => Exit::TimedOut,
            Ok(End::OutOfMemory) => Exit::OutOfMemory,
            Ok(End::Cancelled) if self.called_off => Exit::Cancelled,
            Ok(End::Cancelled | End::Unspecified) | Err(_) => return Err(Violation::UnknownEnd),
        };
        let note = self.note(exit);
        self.stderr.kept.extend_from_slice(note.as_deref().unwrap_or_default());
        self.finished = Some(Finished::Ran(Ran {
            exit,
            stdout: std::mem::take(&mut self.stdout.kept).into(),
            stderr: std::mem::take(&mut self.stderr.kept).into(),
            over_limit: [(&self.stdout, done.stdout_bytes), (&self.stderr, done.stderr_bytes)]
                .into_iter()
                .find_map(|(stream, total)| (total > stream.cap).then_some(stream.name)),
            usage: done.usage,
        }));
        Ok(note)
    }

    /// The line on standard error that tells why a program was ended from outside.
    fn note(&self, exit: Exit) -> Option<Bytes> {
        let text = match exit {
            Exit::TimedOut => format!("timeout: the program was ended after {} s", self.timeout.as_secs_f64()),
            Exit::OutOfMemory => "out of memory: the program used up the memory of its VM and was ended".into(),
            Exit::Code(_) | Exit::Signal(_) | Exit::Cancelled => return None,
        };
        let newline = if self.stderr.kept.last().is_none_or(|last| *last == b'\n') { "" } else { "\n" };
        Some(format!("{newline}{text}\n").into())
    }
}

impl Stream {
    fn new(name: &'static str, cap: u64) -> Self {
        Self { name, cap, window: Window::default(), owed: 0, unreturned: 0, kept: Vec::new() }
    }

    fn accept(&mut self, bytes: &[u8]) -> Result<(), Violation> {
        if self.window.available() < bytes.len() {
            return Err(Violation::OverWindow);
        }
        self.window.take(bytes.len());
        self.unreturned += bytes.len();
        if (self.kept.len() + bytes.len()) as u64 > self.cap {
            return Err(Violation::OverCap);
        }
        self.kept.extend_from_slice(bytes);
        Ok(())
    }

    /// Notes what the caller took; returns the bytes to grant now.
    fn taken(&mut self, bytes: usize) -> u32 {
        self.owed += bytes;
        if self.owed < GRANT_AT_BYTES {
            return 0;
        }
        let granted = u32::try_from(self.owed).unwrap_or(u32::MAX);
        if self.window.grant(granted).is_err() {
            return 0;
        }
        self.unreturned -= std::mem::take(&mut self.owed);
        granted
    }

    /// Begins a new connection; returns what may be sent on it before anything more is granted.
    fn reopen(&mut self) -> u32 {
        let credit = STREAM_WINDOW_BYTES.saturating_sub(u32::try_from(self.unreturned).unwrap_or(u32::MAX));
        self.window = Window::resumed(credit).unwrap_or_default();
        credit
    }

    fn check_total(&self, total: u64, may_lack: bool) -> Result<(), Violation> {
        let (total, kept) = (total.min(self.cap), self.kept.len() as u64);
        if total == kept || (may_lack && total > kept) { Ok(()) } else { Err(Violation::WrongTotals) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{ExecRequest, Language, SchedulerConfig};

    fn started(code: &str) -> (Execution, Vec<Frame>) {
        let request = ExecRequest::new(code).validate(Language::Raw, &SchedulerConfig::default());
        Execution::start(7, &request.expect("it is valid"), 0)
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
            Some(Finished::Ran(ran)) => ran,
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

    /// The caller takes so much of standard output.
    fn take(execution: &mut Execution, stdout: usize) -> Option<Credit> {
        let frame = execution.on_taken(Taken { stdout, ..Taken::default() })?;
        match HostMessage::parse(frame).expect("it was written by us") {
            HostMessage::Credit(credit) => Some(credit),
            other => panic!("{other:?} does not belong here"),
        }
    }

    #[test]
    fn output_is_for_the_caller_and_for_the_outcome() {
        let (mut execution, _) = started("true");
        let piece = execution.on_message(GuestMessage::Stdout("a".into())).expect("it is honest");
        assert_eq!(piece, Some((StreamName::Stdout, "a".into())));
        let piece = execution.on_message(GuestMessage::Stderr("b".into())).expect("it is honest");
        assert_eq!(piece, Some((StreamName::Stderr, "b".into())));
        assert!(!execution.is_over());
        assert_eq!(execution.on_message(exited(1, 1)).expect("it is honest"), None);
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
            execution.on_taken(Taken { stderr: chunk, ..Taken::default() });
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
        let note = "\ntimeout: the program was ended after 30 s\n";
        let piece = execution.on_message(GuestMessage::Done(done)).expect("it is honest");
        assert_eq!(piece, Some((StreamName::Stderr, note.into())));
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
        let Some(Finished::Refused(shown)) = execution.into_finished() else { panic!("it has refused") };
        assert!(shown.starts_with("no\u{fffd}[2J xx"), "{shown}");
        assert_eq!(shown.chars().count(), MAX_DETAIL_BYTES);
    }

    #[test]
    fn output_that_is_empty_is_not_handed_on() {
        let (mut execution, _) = started("true");
        for empty in [GuestMessage::Stdout(Bytes::new()), GuestMessage::Stderr(Bytes::new())] {
            assert_eq!(execution.on_message(empty).expect("it is harmless"), None);
        }
    }

    #[test]
    fn a_guest_is_told_how_far_this_side_has_come_and_may_send_what_is_not_held_here() {
        let (mut execution, _) = started("true");
        let window = STREAM_WINDOW_BYTES as usize;
        execution.on_message(GuestMessage::Stdout(vec![b'x'; window - 10].into())).expect("it is honest");
        execution.on_message(GuestMessage::Stderr("abc".into())).expect("it is honest");
        assert_eq!(take(&mut execution, 100), None, "too little to be granted yet");
        let point = execution.resume();
        let expected = ResumePoint {
            op: 7,
            stdout_bytes: window as u64 - 10,
            stderr_bytes: 3,
            stdout_credit: 10,
            stderr_credit: STREAM_WINDOW_BYTES - 3,
        };
        assert_eq!(point, expected);
        let granted = take(&mut execution, window - 110).expect("all of it has been taken");
        assert_eq!(granted.stdout_bytes as usize, window - 10, "what was owed before is not forgotten");
        assert_eq!(execution.resume().stdout_credit, STREAM_WINDOW_BYTES, "nothing is held here");
    }

    #[test]
    fn nothing_is_believed_after_the_end() {
        let (mut execution, _) = started("true");
        execution.on_message(exited(0, 0)).expect("it is honest");
        assert_eq!(execution.on_message(exited(0, 0)), Err(Violation::AfterEnd));
    }

    #[test]
    fn what_is_called_off_need_not_be_sent_to_its_end() {
        let (mut execution, _) = started("true");
        let done = || GuestMessage::Done(Done { end: End::Cancelled.into(), stdout_bytes: 500, ..Done::default() });
        assert_eq!(execution.on_message(done()), Err(Violation::UnknownEnd), "nobody has called it off");
        execution.call_off();
        execution.on_message(done()).expect("it is honest");
        assert_eq!(ran(execution).exit, Exit::Cancelled);
    }

    #[test]
    fn what_ended_by_itself_before_it_was_called_off_may_lack_output_too() {
        let (mut execution, _) = started("true");
        execution.on_message(GuestMessage::Stdout("abc".into())).expect("it is honest");
        execution.call_off();
        assert_eq!(execution.on_message(exited(2, 0)), Err(Violation::WrongTotals), "more came than was written");
        execution.on_message(exited(500, 20)).expect("it is honest");
        let ran = ran(execution);
        assert_eq!((ran.exit, &ran.stdout[..]), (Exit::Code(0), &b"abc"[..]));
    }

    #[test]
    fn an_end_that_does_not_exist_is_a_violation() {
        let (mut execution, _) = started("true");
        let done = GuestMessage::Done(Done { end: 77, ..Done::default() });
        assert_eq!(execution.on_message(done), Err(Violation::UnknownEnd));
    }

    proptest! {
        #[test]
        fn a_guest_that_keeps_its_window_is_never_stuck_and_loses_no_byte(
            steps in prop::collection::vec((1_usize..65_536, any::<bool>()), 1..40),
        ) {
            let (mut execution, _) = started("true");
            let (mut window, mut sent, mut untaken) = (Window::default(), 0_usize, 0_usize);
            for (wanted, lose) in steps {
                if lose {
                    let point = execution.resume();
                    prop_assert_eq!(point.stdout_bytes, sent as u64);
                    window = Window::resumed(point.stdout_credit).expect("it is a window");
                }
                let size = wanted.min(size(MAX_STDOUT_BYTES) - sent);
                if window.available() < size
                    && let Some(credit) = take(&mut execution, std::mem::take(&mut untaken))
                {
                    window.grant(credit.stdout_bytes).expect("an honest grant");
                }
                prop_assert!(window.available() >= size.min(CHUNK_BYTES as usize), "the guest is stuck");
                let taken = window.take(size);
                execution.on_message(GuestMessage::Stdout(vec![b'x'; taken].into())).expect("it is honest");
                (sent, untaken) = (sent + taken, untaken + taken);
            }
            execution.on_message(exited(sent, 0)).expect("it is honest");
            prop_assert_eq!(ran(execution).stdout.len(), sent);
        }
    }
}
