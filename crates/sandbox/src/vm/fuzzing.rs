//! The host's side of one execution, for the fuzz targets: what a guest says, what a caller takes and where connections are lost, in
//! any order, beside a model of what may come of it.

use std::{
    pin::pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use exec_sandbox_wire::{
    Done, End, Frame, FrameDecoder, GuestMessage, HostMessage,
    limits::{MAX_STDERR_BYTES, MAX_STDOUT_BYTES, STREAM_WINDOW_BYTES},
};

use super::{
    execution::{Execution, Finished, Violation},
    inbox::{self, Inbox, Next, Outlet, Piece, StreamName},
};
use crate::{ExecRequest, Language, SchedulerConfig};

/// The operation. Frames of others are somebody else's.
const OP: u32 = 1;

const WINDOW: usize = STREAM_WINDOW_BYTES as usize;

/// The line about a program that was ended, which no window bounds, is shorter.
const NOTE_BYTES: usize = 256;

/// What happens next.
#[derive(Clone, Copy, Debug)]
pub enum Step<'a> {
    /// Bytes of the guest arrive.
    Arrives(&'a [u8]),
    /// The guest sends so many bytes of output.
    Writes {
        /// To standard error, or to standard output.
        to_stderr: bool,
        /// How many.
        bytes: usize,
    },
    /// The guest says that the program has ended, with totals that agree, and has written so many bytes too much.
    Ends(u64),
    /// The caller takes what there is next.
    Takes,
    /// The connection is lost and made again.
    Reconnects,
}

/// A guest says what it likes. Panics if the host lets it send more than it was granted or than is kept, refuses what is neither,
/// holds more for the caller than a window, grants too much or too little, or gives the caller other bytes than came.
///
/// # Panics
/// See above.
pub fn execution<'a>(steps: impl IntoIterator<Item = Step<'a>>) {
    let mut world = World::new();
    for step in steps {
        if !world.step(step) {
            break;
        }
    }
    world.finish();
}

#[derive(Debug)]
struct World {
    execution: Execution,
    outlet: Outlet<()>,
    inbox: Inbox<()>,
    decoder: FrameDecoder,
    streams: Streams,
}

/// Both streams, as they should be.
#[derive(Debug)]
struct Streams {
    stdout: Model,
    stderr: Model,
}

/// One of them.
#[derive(Debug)]
struct Model {
    cap: u64,
    /// What the guest may send.
    window: usize,
    /// What it sent.
    received: usize,
    /// What is meant for the caller: that, and perhaps a note.
    shown: Vec<u8>,
    taken: Vec<u8>,
}

impl World {
    fn new() -> Self {
        let request = ExecRequest::new("true").validate(Language::Raw, &SchedulerConfig::default());
        let (execution, _) = Execution::start(OP, &request.expect("it is valid"), 0);
        let (outlet, inbox) = inbox::pair(Arc::default());
        let model = |cap| Model { cap, window: WINDOW, received: 0, shown: Vec::new(), taken: Vec::new() };
        let streams = Streams { stdout: model(MAX_STDOUT_BYTES), stderr: model(MAX_STDERR_BYTES) };
        Self { execution, outlet, inbox, decoder: FrameDecoder::default(), streams }
    }

    /// `false`: the guest is not listened to any more.
    fn step(&mut self, step: Step<'_>) -> bool {
        match step {
            Step::Arrives(bytes) => {
                self.decoder.buffer().extend_from_slice(bytes);
                self.arrive()
            }
            Step::Writes { to_stderr, bytes } => {
                let from = if to_stderr { self.streams.stderr.received } else { self.streams.stdout.received };
                // Each byte tells its place.
                let output: Bytes = (from..).take(bytes).map(|place| (place % 251) as u8).collect();
                self.hear(if to_stderr { GuestMessage::Stderr(output) } else { GuestMessage::Stdout(output) })
            }
            Step::Ends(more) => {
                let total = |stream: &Model| {
                    let is_full = stream.received as u64 == stream.cap;
                    stream.received as u64 + if is_full { more } else { 0 }
                };
                let (stdout_bytes, stderr_bytes) = (total(&self.streams.stdout), total(&self.streams.stderr));
                let done = Done { end: End::Exited.into(), stdout_bytes, stderr_bytes, ..Done::default() };
                self.hear(GuestMessage::Done(done));
                assert!(self.execution.is_over(), "an honest end is not believed");
                false
            }
            Step::Takes => {
                self.take();
                true
            }
            Step::Reconnects => {
                self.reconnect();
                true
            }
        }
    }

    fn arrive(&mut self) -> bool {
        loop {
            match self.decoder.next_frame() {
                Ok(Some(frame)) if frame.op != OP => {}
                Ok(Some(frame)) => {
                    if !GuestMessage::parse(frame).is_ok_and(|message| self.hear(message)) {
                        return false;
                    }
                }
                Ok(None) => return true,
                Err(_) => return false,
            }
        }
    }

    fn hear(&mut self, message: GuestMessage) -> bool {
        match self.execution.on_message(message.clone()) {
            Ok(piece) => {
                self.check_accepted(&message);
                if let Some((stream, bytes)) = piece {
                    self.outlet.push(stream, &bytes);
                    self.streams.named(stream).shown.extend_from_slice(&bytes);
                }
                for stream in self.streams.both() {
                    assert!(stream.untaken() <= WINDOW + NOTE_BYTES, "more than a window is held for the caller");
                }
                !self.execution.is_over()
            }
            Err(violation) => {
                self.check_refused(&message, &violation);
                false
            }
        }
    }

    fn check_accepted(&mut self, message: &GuestMessage) {
        match message {
            GuestMessage::Stdout(bytes) => self.streams.stdout.accept(bytes.len()),
            GuestMessage::Stderr(bytes) => self.streams.stderr.accept(bytes.len()),
            GuestMessage::Done(done) => assert!(self.do_totals_agree(done)),
            _ => {}
        }
    }

    fn check_refused(&self, message: &GuestMessage, violation: &Violation) {
        let (stream, bytes) = match message {
            GuestMessage::Stdout(bytes) => (&self.streams.stdout, bytes.len()),
            GuestMessage::Stderr(bytes) => (&self.streams.stderr, bytes.len()),
            GuestMessage::Done(done) => {
                assert!(*violation == Violation::UnknownEnd || !self.do_totals_agree(done), "{violation}: {done:?}");
                return;
            }
            other => panic!("{violation}: {other:?}"),
        };
        let is_over_cap = (stream.received + bytes) as u64 > stream.cap;
        assert!(bytes > stream.window || is_over_cap, "{violation}: {bytes} bytes were granted");
    }

    fn do_totals_agree(&self, done: &Done) -> bool {
        [(&self.streams.stdout, done.stdout_bytes), (&self.streams.stderr, done.stderr_bytes)]
            .iter()
            .all(|(stream, total)| (*total).min(stream.cap) == stream.received as u64)
    }

    fn take(&mut self) {
        match next(&mut self.inbox) {
            Some(Next::Piece(piece)) => self.streams.give(piece),
            None => return,
            Some(end) => panic!("{end:?} comes before the end"),
        }
        if let Some(frame) = self.execution.on_taken(self.outlet.taken()) {
            self.grant(frame);
        }
        self.check_windows();
    }

    fn grant(&mut self, frame: Frame) {
        let Ok(HostMessage::Credit(credit)) = HostMessage::parse(frame) else { panic!("it is a grant") };
        self.streams.stdout.window += credit.stdout_bytes as usize;
        self.streams.stderr.window += credit.stderr_bytes as usize;
    }

    fn reconnect(&mut self) {
        self.decoder = FrameDecoder::default();
        let point = self.execution.resume();
        let received = (self.streams.stdout.received as u64, self.streams.stderr.received as u64);
        assert_eq!((point.op, (point.stdout_bytes, point.stderr_bytes)), (OP, received));
        self.streams.stdout.window = point.stdout_credit as usize;
        self.streams.stderr.window = point.stderr_credit as usize;
        self.check_windows();
    }

    /// What is granted and what is held come to a window, but for what is not worth a grant yet.
    fn check_windows(&self) {
        for stream in self.streams.both() {
            let bytes = stream.window + stream.received.saturating_sub(stream.taken.len());
            assert!(bytes <= WINDOW && bytes > WINDOW / 2, "{bytes} bytes");
        }
    }

    /// The caller gets all that is there, and then the end.
    fn finish(mut self) {
        let is_over = self.execution.is_over();
        if is_over {
            assert_eq!(self.execution.on_message(GuestMessage::Stdout("x".into())), Err(Violation::AfterEnd));
            assert_eq!(self.execution.on_taken(self.outlet.taken()), None, "nothing is granted after the end");
            self.outlet.end(());
        } else {
            drop(self.outlet);
        }
        let end = loop {
            match next(&mut self.inbox).expect("the end follows") {
                Next::Piece(piece) => self.streams.give(piece),
                end => break end,
            }
        };
        assert_eq!(end, if is_over { Next::End(()) } else { Next::Gone });
        for stream in self.streams.both() {
            assert!(stream.taken == stream.shown, "the caller got other bytes than came");
        }
        if let Some(Finished::Ran(ran)) = self.execution.into_finished() {
            assert!(ran.stdout[..] == self.streams.stdout.shown && ran.stderr[..] == self.streams.stderr.shown);
        }
    }
}

impl Streams {
    fn both(&self) -> [&Model; 2] {
        [&self.stdout, &self.stderr]
    }

    fn named(&mut self, stream: StreamName) -> &mut Model {
        match stream {
            StreamName::Stdout => &mut self.stdout,
            StreamName::Stderr => &mut self.stderr,
            StreamName::Data => panic!("it is no execution's"),
        }
    }

    fn give(&mut self, piece: Piece) {
        match piece {
            Piece::Bytes(stream, bytes) => self.named(stream).taken.extend_from_slice(&bytes),
            Piece::Entries(..) => panic!("it is no execution's"),
        }
    }
}

impl Model {
    fn accept(&mut self, bytes: usize) {
        self.window = self.window.checked_sub(bytes).expect("more is accepted than was granted");
        self.received += bytes;
        assert!(self.received as u64 <= self.cap, "more is accepted than is kept");
    }

    fn untaken(&self) -> usize {
        self.shown.len() - self.taken.len()
    }
}

/// What is there now.
fn next(inbox: &mut Inbox<()>) -> Option<Next<()>> {
    match pin!(inbox.next()).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(next) => Some(next),
        Poll::Pending => None,
    }
}
