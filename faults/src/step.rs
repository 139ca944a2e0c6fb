//! Steps: the words of a scene.

use std::str::FromStr;

use exec_sandbox_wire::{End, GENERATION};

/// One thing that the fake does. After the last one it hangs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// `greet`: greet on the monitor, and answer the command that comes.
    Greet,
    /// `monitor TEXT`: a line on the monitor.
    Monitor(String),
    /// `monitor-flood N`: so many bytes on the monitor, none of which ends a line.
    MonitorFlood(usize),
    /// `close-monitor`.
    CloseMonitor,
    /// `answer N`: wait for so many commands on the monitor and carry each out in good order.
    Answer(u64),
    /// `decline TEXT`: wait for a command, and refuse it in these words.
    Decline(String),
    /// `migration STATUS`: wait for a command, and answer that saving or loading has come so far.
    Migration(String),
    /// `state N`: so many bytes as the guest's state to the descriptor that came last, and its end.
    State(usize),
    /// `load`: read the state from the descriptor that came last, to its end.
    Load,
    /// `memory N`: so many bytes that are not zero into the file that is the guest's memory.
    Memory(usize),
    /// `rehearse`: run one program that says a word, to its end and beyond.
    Rehearse,
    /// `save`: carry out the commands by which a guest is saved, with a state of a hundred bytes, and that by which it goes on.
    Save,
    /// `await-ping`: read until a ping has come, and answer it.
    AwaitPing,
    /// `await-seed`: read until a hello with a seed has come.
    AwaitSeed,
    /// `no-network TEXT`: from here on a network that the host names is answered with this failure.
    NoNetwork(String),
    /// `say TEXT`: a line on standard error.
    Say(String),
    /// `console TEXT`: a line on the guest's console.
    Console(String),
    /// `exit N`: end with this code.
    Exit(u8),
    /// `signal N`: send this signal to itself.
    Signal(i32),
    /// `ignore-term`: live on after SIGTERM.
    IgnoreTerm,
    /// `grandchild`: start a process that keeps what it inherits and never ends.
    Grandchild,
    /// `hang`: do nothing for ever.
    Hang,
    /// `close-listener`: close the agent's socket.
    CloseListener,
    /// `accept`: take the host's connection to the agent.
    Accept,
    /// `close-channel`: hang up.
    CloseChannel,
    /// `hello`, `hello N`: the agent's hello, of this generation or of another.
    Hello(u32),
    /// `half-hello`: a hello that breaks off.
    HalfHello,
    /// `garbage N`: so many bytes that are no frames, the same each time.
    Garbage(usize),
    /// `huge-header`: a frame that announces more than may be sent.
    HugeHeader,
    /// `bad-body`: a hello that cannot be read.
    BadBody,
    /// `pongs N`, `pongs forever`: answers that nobody asked for.
    Pongs(Amount),
    /// `await-exec`: read until a whole program has come.
    AwaitExec,
    /// `await-ack`: read until the host knows of the end.
    AwaitAck,
    /// `stdout TEXT`, `stderr TEXT`: output of the program, one frame, whatever was granted.
    Write(Stream, String),
    /// `stdout-bytes N`, `stdout-bytes N by N`: so much output in pieces of the size, as the host grants it.
    WriteBytes {
        /// Where.
        stream: Stream,
        /// How much.
        bytes: usize,
        /// In pieces of this size.
        by: usize,
    },
    /// `over-window`: one byte more at once than may be on its way.
    OverWindow,
    /// `other-operation`: output and end of an operation that there is not.
    OtherOperation,
    /// `unknown-kind`: a frame of the operation whose kind nobody knows.
    UnknownKind,
    /// `done`, with any of `exit=N`, `signal=N`, `end=N`, `stdout=N`, `stderr=N`: the end, whose totals are true unless given.
    Done {
        /// How it ended.
        end: i32,
        /// The program's code.
        exit: i32,
        /// The signal's number.
        signal: u32,
        /// A total that is claimed.
        stdout: Option<u64>,
        /// A total that is claimed.
        stderr: Option<u64>,
    },
    /// `refuse TEXT`: the operation does not begin.
    Refuse(String),
    /// `serve`: run one program after another, each of which writes its own source.
    Serve,
}

/// One of a program's two streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// How often.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Amount {
    /// So often.
    Times(u64),
    /// Until the host hangs up.
    Forever,
}

/// A line that is no step.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{line:?} is no step of a scene")]
pub struct StepError {
    /// The line.
    pub line: String,
}

/// Pieces in which output is written unless a step says otherwise: as an honest agent does.
const PIECE_BYTES: usize = exec_sandbox_wire::limits::CHUNK_BYTES as usize;

impl FromStr for Step {
    type Err = StepError;

    fn from_str(line: &str) -> Result<Self, Self::Err> {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        parse(word, rest).ok_or_else(|| StepError { line: line.into() })
    }
}

fn parse(word: &str, rest: &str) -> Option<Step> {
    if let Some(alone) = alone(word) {
        return rest.is_empty().then_some(alone);
    }
    Some(match word {
        "monitor" => Step::Monitor(rest.into()),
        "monitor-flood" => Step::MonitorFlood(rest.parse().ok()?),
        "answer" => Step::Answer(rest.parse().ok()?),
        "decline" => Step::Decline(rest.into()),
        "migration" => Step::Migration(rest.into()),
        "state" => Step::State(rest.parse().ok()?),
        "memory" => Step::Memory(rest.parse().ok()?),
        "say" => Step::Say(rest.into()),
        "no-network" => Step::NoNetwork(rest.into()),
        "console" => Step::Console(rest.into()),
        "exit" => Step::Exit(rest.parse().ok()?),
        "signal" => Step::Signal(rest.parse().ok()?),
        "hello" if rest.is_empty() => Step::Hello(GENERATION),
        "hello" => Step::Hello(rest.parse().ok()?),
        "garbage" => Step::Garbage(rest.parse().ok()?),
        "pongs" if rest == "forever" => Step::Pongs(Amount::Forever),
        "pongs" => Step::Pongs(Amount::Times(rest.parse().ok()?)),
        "stdout" => Step::Write(Stream::Stdout, rest.into()),
        "stderr" => Step::Write(Stream::Stderr, rest.into()),
        "stdout-bytes" => write_bytes(Stream::Stdout, rest)?,
        "stderr-bytes" => write_bytes(Stream::Stderr, rest)?,
        "done" => done(rest)?,
        "refuse" => Step::Refuse(rest.into()),
        _ => return None,
    })
}

/// The steps that are one word.
fn alone(word: &str) -> Option<Step> {
    Some(match word {
        "greet" => Step::Greet,
        "close-monitor" => Step::CloseMonitor,
        "ignore-term" => Step::IgnoreTerm,
        "load" => Step::Load,
        "rehearse" => Step::Rehearse,
        "save" => Step::Save,
        "await-ping" => Step::AwaitPing,
        "await-seed" => Step::AwaitSeed,
        "grandchild" => Step::Grandchild,
        "hang" => Step::Hang,
        "close-listener" => Step::CloseListener,
        "accept" => Step::Accept,
        "close-channel" => Step::CloseChannel,
        "half-hello" => Step::HalfHello,
        "huge-header" => Step::HugeHeader,
        "bad-body" => Step::BadBody,
        "await-exec" => Step::AwaitExec,
        "await-ack" => Step::AwaitAck,
        "over-window" => Step::OverWindow,
        "other-operation" => Step::OtherOperation,
        "unknown-kind" => Step::UnknownKind,
        "serve" => Step::Serve,
        _ => return None,
    })
}

fn write_bytes(stream: Stream, rest: &str) -> Option<Step> {
    let (bytes, by) = match rest.split_once(" by ") {
        Some((bytes, by)) => (bytes, by.parse().ok()?),
        None => (rest, PIECE_BYTES),
    };
    (by > 0).then_some(Step::WriteBytes { stream, bytes: bytes.parse().ok()?, by })
}

fn done(rest: &str) -> Option<Step> {
    let (mut end, mut exit, mut signal, mut stdout, mut stderr) = (End::Exited.into(), 0, 0, None, None);
    for setting in rest.split_whitespace() {
        let (name, value) = setting.split_once('=')?;
        match name {
            "exit" => exit = value.parse().ok()?,
            "signal" => (end, signal) = (End::Signalled.into(), value.parse().ok()?),
            "end" => end = value.parse().ok()?,
            "stdout" => stdout = Some(value.parse().ok()?),
            "stderr" => stderr = Some(value.parse().ok()?),
            _ => return None,
        }
    }
    Some(Step::Done { end, exit, signal, stdout, stderr })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(line: &str) -> Step {
        line.parse().expect("it is a step")
    }

    #[test]
    fn steps_take_numbers_texts_and_settings() {
        assert_eq!(step("hello"), Step::Hello(GENERATION));
        assert_eq!(step("hello 7"), Step::Hello(7));
        assert_eq!(step("say no room = here"), Step::Say("no room = here".into()));
        assert_eq!(step("pongs forever"), Step::Pongs(Amount::Forever));
        let bytes = Step::WriteBytes { stream: Stream::Stderr, bytes: 10, by: 1 };
        assert_eq!(step("stderr-bytes 10 by 1"), bytes);
        let done = Step::Done { end: 2, exit: 0, signal: 9, stdout: Some(5), stderr: None };
        assert_eq!(step("done signal=9 stdout=5"), done);
    }

    #[test]
    fn what_is_no_step_is_refused_whole() {
        for line in ["", "helo", "hello x", "accept now", "exit 256", "done exit", "stdout-bytes 1 by 0", "pongs"] {
            assert_eq!(line.parse::<Step>(), Err(StepError { line: line.into() }));
        }
    }
}
