//! The control socket: lines of text between the agent and a wrapper.
//!
//! What comes from it is written by a process that runs a stranger's code. A line is short, or thrown away; a report that is not exactly
//! one of those expected is nonsense, and changes nothing. A wrapper begins each report with a line's end, so that what a program left
//! there before is a line of its own. An order is three lines, a word each: taking words apart is more than a shell has to be made to do.

use std::{
    fmt, future, io,
    os::{fd::OwnedFd, unix::net::UnixStream as StdStream},
    path::Path,
};

use tokio::{io::AsyncWriteExt as _, net::UnixStream};

use crate::{program::Role, random::Seed};

/// `done`, a token and three digits come to 42 bytes.
const MAX_LINE_BYTES: usize = 64;

/// What proves that an answer belongs to an execution.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Token([u8; 16]);

/// What a wrapper reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Report {
    /// It can take executions.
    Ready,
    /// The execution with this token has ended by itself, with this code.
    Done {
        /// The token, as text, unchecked.
        token: String,
        /// The code.
        code: u8,
    },
    /// It has taken the seed that came with this token.
    Seeded {
        /// The token, as text, unchecked.
        token: String,
    },
}

/// What was heard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Said {
    /// A report.
    Report(Report),
    /// Something that no wrapper says.
    Nonsense,
}

/// The agent's end of the socket.
#[derive(Debug)]
pub(crate) struct Control {
    stream: UnixStream,
    lines: Lines,
    /// Nothing more will be heard: the other end is closed (its process has ended, or executed another program).
    closed: bool,
}

/// Bytes on their way to being lines.
#[derive(Debug, Default)]
struct Lines {
    bytes: Vec<u8>,
    /// Of a line that is too long, its end is awaited.
    skipping: bool,
}

impl Token {
    pub(crate) fn new(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

impl Report {
    /// Reads a line, without its end.
    fn parse(line: &[u8]) -> Option<Self> {
        let line = std::str::from_utf8(line).ok()?;
        if line == "ready" {
            return Some(Self::Ready);
        }
        if let Some(token) = line.strip_prefix("seeded ") {
            return Some(Self::Seeded { token: token.to_owned() }).filter(|_| !token.contains(' '));
        }
        let (token, code) = line.strip_prefix("done ")?.split_once(' ')?;
        let plain = !code.is_empty() && code.bytes().all(|byte| byte.is_ascii_digit());
        Some(Self::Done { token: token.to_owned(), code: code.parse().ok().filter(|_| plain)? })
    }
}

impl Control {
    /// Takes over a socket, which must not block.
    pub(crate) fn new(fd: OwnedFd) -> io::Result<Self> {
        let stream = UnixStream::from_std(StdStream::from(fd))?;
        Ok(Self { stream, lines: Lines::default(), closed: false })
    }

    /// Hands over the program in `dir`. After the last one the interpreter ends as that program's script would.
    pub(crate) async fn execute(&mut self, token: Token, dir: &Path, role: Role) -> io::Result<()> {
        let verb = match role {
            Role::Ordinary => "exec",
            Role::Last => "last",
            Role::Rehearsal => "rehearse",
        };
        self.say(format_args!("{verb}\n{token}\n{}\n", dir.display())).await
    }

    /// Hands over a seed, on which what the interpreter draws by itself shall depend from here on.
    pub(crate) async fn reseed(&mut self, token: Token, seed: &Seed) -> io::Result<()> {
        self.say(format_args!("seed\n{token}\n{seed}\n")).await
    }

    /// The next line. Pends for ever once the other end is closed: then the process's end tells more.
    /// Cancelling it loses nothing.
    pub(crate) async fn hear(&mut self) -> Said {
        loop {
            if let Some(said) = self.lines.next() {
                return said;
            }
            if self.closed {
                return future::pending().await;
            }
            self.receive().await;
        }
    }

    /// Whether nothing was said and the other end is open. An idle interpreter has nothing to say.
    pub(crate) fn is_silent(&mut self) -> bool {
        let mut byte = [0];
        let nothing = matches!(rustix::io::read(&self.stream, &mut byte), Err(rustix::io::Errno::AGAIN));
        nothing && self.lines.bytes.is_empty() && !self.closed
    }

    /// One write, so that no wrapper meets half an order.
    async fn say(&mut self, order: fmt::Arguments<'_>) -> io::Result<()> {
        self.stream.write_all(order.to_string().as_bytes()).await
    }

    async fn receive(&mut self) {
        let mut buffer = [0; MAX_LINE_BYTES];
        if self.stream.readable().await.is_err() {
            self.closed = true;
            return;
        }
        match self.stream.try_read(&mut buffer) {
            Ok(length) if length > 0 => self.lines.bytes.extend_from_slice(buffer.get(..length).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Ok(_) | Err(_) => self.closed = true,
        }
    }
}

impl Lines {
    /// The next line that is not empty; without one, nothing, unless what is there is too long for any.
    fn next(&mut self) -> Option<Said> {
        loop {
            let Some(end) = self.bytes.iter().position(|byte| *byte == b'\n') else {
                return self.skip();
            };
            let rest = self.bytes.split_off(end + 1);
            let line = std::mem::replace(&mut self.bytes, rest);
            let was_skipping = std::mem::take(&mut self.skipping);
            match line.strip_suffix(b"\n").unwrap_or(&line) {
                [] => {}
                _ if was_skipping => {}
                line => return Some(Report::parse(line).map_or(Said::Nonsense, Said::Report)),
            }
        }
    }

    /// Forgets the beginning of a line that is too long; it counts once.
    fn skip(&mut self) -> Option<Said> {
        if self.skipping {
            self.bytes.clear();
            return None;
        }
        self.skipping = self.bytes.len() > MAX_LINE_BYTES;
        self.skipping.then(|| {
            self.bytes.clear();
            Said::Nonsense
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn done(token: &str, code: u8) -> Said {
        Said::Report(Report::Done { token: token.to_owned(), code })
    }

    fn all(text: &[u8]) -> Vec<Said> {
        let mut lines = Lines { bytes: text.to_vec(), skipping: false };
        std::iter::from_fn(|| lines.next()).collect()
    }

    proptest! {
        #[test]
        fn whatever_a_program_writes_there_is_a_report_or_nonsense(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            for said in all(&bytes) {
                if let Said::Report(Report::Done { token, code }) = said {
                    let line = format!("done {token} ");
                    prop_assert!(String::from_utf8_lossy(&bytes).contains(&line), "{code}");
                }
            }
        }
    }

    #[test]
    fn lines_are_heard_in_order() {
        let seeded = Said::Report(Report::Seeded { token: "cd".to_owned() });
        assert_eq!(all(b"ready\ndone ab 7\n\nseeded cd\ndone "), [Said::Report(Report::Ready), done("ab", 7), seeded]);
    }

    #[test]
    fn a_code_is_a_number_of_one_byte_and_nothing_else() {
        for line in [
            "done ab 256",
            "done ab -1",
            "done ab +1",
            "done ab ",
            "done ab",
            "done ab 1 2",
            "ready ",
            " ",
            "exec ab",
            "seeded",
            "seeded a b",
        ] {
            assert_eq!(all(format!("{line}\n").as_bytes()), [Said::Nonsense], "{line:?}");
        }
    }

    #[test]
    fn a_line_without_end_is_nonsense_before_it_fills_memory() {
        assert_eq!(all(&[b'a'; MAX_LINE_BYTES]), []);
        assert_eq!(all(&[b'a'; MAX_LINE_BYTES + 1]), [Said::Nonsense]);
    }

    #[tokio::test]
    async fn each_order_is_three_lines_of_which_the_first_is_its_verb() {
        let (ours, theirs) = StdStream::pair().expect("a socket");
        ours.set_nonblocking(true).expect("a flag");
        let mut control = Control::new(ours.into()).expect("a socket");
        let (token, dir) = (Token::new([0xa0; 16]), Path::new("/run/x"));
        let seed = Seed::from_host(&[0x5e; 32]).expect("it is long enough");
        for role in [Role::Ordinary, Role::Last, Role::Rehearsal] {
            control.execute(token, dir, role).await.expect("it fits");
        }
        control.reseed(token, &seed).await.expect("it fits");
        drop(control);
        let mut said = String::new();
        io::Read::read_to_string(&mut &theirs, &mut said).expect("it is text");
        let orders = "exec T /run/x last T /run/x rehearse T /run/x seed T ".to_owned() + &"5e".repeat(32);
        assert_eq!(said.replace(&"a0".repeat(16), "T"), orders.replace(' ', "\n") + "\n");
    }

    #[test]
    fn a_token_is_written_as_32_digits_and_never_shown() {
        let token = Token::new([0xa0; 16]);
        assert_eq!(token.to_string(), "a0".repeat(16));
        assert_eq!(format!("{token:?}"), "Token(…)");
    }

    #[tokio::test]
    async fn a_report_is_heard_after_whatever_a_program_left_before_it() {
        let (ours, theirs) = StdStream::pair().expect("a socket");
        ours.set_nonblocking(true).expect("a flag");
        let mut control = Control::new(ours.into()).expect("a socket");
        rustix::io::write(&theirs, &[b'x'; 3 * MAX_LINE_BYTES]).expect("it fits");
        assert_eq!(control.hear().await, Said::Nonsense);
        rustix::io::write(&theirs, b"\nready\nleft\ndone x").expect("it fits");
        assert_eq!(control.hear().await, Said::Report(Report::Ready));
        assert_eq!(control.hear().await, Said::Nonsense);
        rustix::io::write(&theirs, b"\n\ndone ab 7\n").expect("it fits");
        assert_eq!(control.hear().await, Said::Nonsense);
        assert_eq!(control.hear().await, done("ab", 7));
        assert!(control.is_silent());
    }

    #[tokio::test]
    async fn a_closed_socket_is_not_silence_and_says_nothing() {
        let (ours, theirs) = StdStream::pair().expect("a socket");
        ours.set_nonblocking(true).expect("a flag");
        let mut control = Control::new(ours.into()).expect("a socket");
        assert!(control.is_silent());
        rustix::io::write(&theirs, b"ready\n").expect("it fits");
        assert_eq!(control.hear().await, Said::Report(Report::Ready));
        drop(theirs);
        assert!(!control.is_silent());
        assert!(tokio::time::timeout(std::time::Duration::ZERO, control.hear()).await.is_err());
    }
}
