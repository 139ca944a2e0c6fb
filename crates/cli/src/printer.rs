//! The printer: a thread that writes what programs say, so that a blocked pipe blocks nothing else.

use std::{
    io::{self, IsTerminal as _, Write as _},
    thread,
};

use exec_sandbox::{Exit, Output};
use tokio::sync::{mpsc, oneshot};

use crate::{
    failure::{Explanation, Failure},
    print::{self, HEADER},
    progress::Progress,
    sequence::{Sequence, Step},
};

/// Pieces of output that wait for the printer. A piece is at most a frame of the wire, so this bounds memory, and a slow
/// reader of our output slows the program down instead of filling it.
pub(crate) const PIECES_IN_FLIGHT: usize = 16;

/// So much of a line of an installer is shown: with what is before it, it does not wrap.
const SHOWN_LINE_CHARS: usize = 80;

/// Something that happened to a source, which is named by its number.
#[derive(Debug)]
pub(crate) enum Event {
    Piece(usize, Output),
    /// Something else is to be shown before the source's end: answered when its output so far is on the page, and the page at
    /// the start of a line.
    Pause(usize, oneshot::Sender<()>),
    /// Something that a user wants to know before the source's end.
    Note(usize, String),
    End(usize, Ending),
}

/// How a source came to its end: how its program did, if it ran, and what failed besides.
#[derive(Debug, Default)]
pub(crate) struct Ending {
    pub(crate) exit: Option<Exit>,
    /// What a user has asked to be told.
    pub(crate) notes: Vec<String>,
    pub(crate) failures: Vec<Explanation>,
}

/// What is shown.
#[derive(Debug)]
pub(crate) struct View {
    /// Somebody looks at standard error and wants remarks.
    pub(crate) wants_notes: bool,
    /// Show what the programs write. Without it only boot logs are shown.
    pub(crate) programs: bool,
    /// Taken away before the first byte.
    pub(crate) progress: Progress,
}

/// The thread's handle. Letting go of it lets go of the thread, which ends with the process if its pipe is blocked.
#[derive(Debug)]
pub(crate) struct Printer {
    ended: oneshot::Receiver<Result<(), Failure>>,
}

/// The state of the thread.
struct Page {
    labels: Vec<String>,
    view: View,
    /// The source whose turn it is.
    turn: usize,
    /// Its header has been shown.
    announced: bool,
    at_line_start: bool,
}

/// What is put in order: output, and then the end.
enum Shown {
    Output(Output),
    Pause(oneshot::Sender<()>),
    Note(String),
    Ending(Ending),
}

impl Printer {
    /// Starts printing what arrives on `feed` about the sources called `labels`.
    pub(crate) fn start(mut feed: mpsc::Receiver<Event>, labels: Vec<String>, view: View) -> Result<Self, Failure> {
        let (end, ended) = oneshot::channel();
        let page = Page { labels, view, turn: 0, announced: false, at_line_start: true };
        thread::Builder::new()
            .name("printer".into())
            // Nobody may be left to hear how it ended.
            .spawn(move || drop(end.send(page.print(&mut feed).map_err(Failure::output))))
            .map_err(|error| Failure::host("starting the printer's thread", error))?;
        Ok(Self { ended })
    }

    /// Waits until everything is printed, or printing has failed.
    pub(crate) async fn ended(&mut self) -> Result<(), Failure> {
        let gone = |_| Err(Failure::host("printing", io::Error::other("the printer's thread panicked")));
        (&mut self.ended).await.unwrap_or_else(gone)
    }
}

impl Page {
    fn print(mut self, feed: &mut mpsc::Receiver<Event>) -> io::Result<()> {
        let mut sequence = Sequence::new(self.labels.len());
        while let Some(event) = feed.blocking_recv() {
            let steps = match event {
                Event::Piece(number, output) => sequence.piece(number, Shown::Output(output)),
                Event::Pause(number, paused) => sequence.piece(number, Shown::Pause(paused)),
                Event::Note(number, note) => sequence.piece(number, Shown::Note(note)),
                Event::End(number, ending) => {
                    let mut steps = sequence.piece(number, Shown::Ending(ending));
                    steps.extend(sequence.end(number));
                    steps
                }
            };
            for step in steps {
                match step {
                    Step::Turn(number) => {
                        self.turn = number;
                        self.announced = false;
                        self.announce()?;
                    }
                    Step::Show(shown) => self.show(shown)?,
                }
            }
        }
        Ok(())
    }

    fn show(&mut self, shown: Shown) -> io::Result<()> {
        // The first source waits with its header until there is something below it: till then there is a spinner.
        self.announce()?;
        match shown {
            Shown::Output(output) => self.output(&output)?,
            Shown::Pause(paused) => {
                self.view.progress.end();
                self.leave_the_line();
                self.at_line_start = true;
                // Who asked may have been interrupted.
                let _ = paused.send(());
            }
            Shown::Note(note) => {
                self.view.progress.end();
                self.note(self.several().then(|| self.label()), &note);
            }
            Shown::Ending(ending) => self.ending(&ending),
        }
        Ok(())
    }

    fn several(&self) -> bool {
        self.labels.len() > 1
    }

    fn label(&self) -> &str {
        self.labels.get(self.turn).map_or("", String::as_str)
    }

    fn announce(&mut self) -> io::Result<()> {
        if self.announced || !self.view.programs || !self.several() {
            return Ok(());
        }
        self.announced = true;
        self.view.progress.end();
        let mut stdout = anstream::stdout().lock();
        if !self.at_line_start {
            writeln!(stdout)?;
        }
        if self.turn > 0 {
            writeln!(stdout)?;
        }
        writeln!(stdout, "{HEADER}==> {} <=={HEADER:#}", self.label())?;
        self.at_line_start = true;
        stdout.flush()
    }

    fn output(&mut self, output: &Output) -> io::Result<()> {
        match output {
            Output::Stdout(bytes) if self.view.programs && !bytes.is_empty() => {
                self.view.progress.end();
                self.at_line_start = bytes.ends_with(b"\n");
                let mut stdout = io::stdout().lock();
                stdout.write_all(bytes)?;
                stdout.flush()
            }
            Output::Stderr(bytes) if self.view.programs => {
                self.to_stderr(bytes);
                Ok(())
            }
            Output::BootLog(bytes) => {
                self.to_stderr(bytes);
                Ok(())
            }
            Output::Progress(bytes) => {
                installing(&self.view.progress, bytes);
                Ok(())
            }
            Output::Stdout(_) | Output::Stderr(_) => Ok(()),
        }
    }

    fn to_stderr(&self, bytes: &[u8]) {
        self.view.progress.end();
        // A program whose errors nobody reads goes on.
        let _ = io::stderr().write_all(bytes);
    }

    /// On a terminal both streams are one page: what `sbx` says does not go on in a line that a program began.
    fn leave_the_line(&self) {
        if !self.at_line_start && io::stdout().is_terminal() && io::stderr().is_terminal() {
            let _ = writeln!(io::stderr());
        }
    }

    fn note(&self, subject: Option<&str>, text: &str) {
        self.leave_the_line();
        print::note(&subject.map_or_else(|| text.to_owned(), |subject| format!("{subject}: {text}")));
    }

    fn ending(&self, ending: &Ending) {
        if !self.view.programs {
            return;
        }
        self.view.progress.end();
        let subject = self.several().then(|| self.label());
        if self.view.wants_notes
            && let Some(remark) = ending.exit.and_then(|exit| remark(exit, self.several()))
        {
            self.note(subject, &remark);
        }
        for note in &ending.notes {
            self.note(subject, note);
        }
        for failure in &ending.failures {
            self.leave_the_line();
            let _ = print::explanation(&mut anstream::stderr(), subject, failure);
        }
    }
}

/// What an end has to say that the exit code alone does not.
fn remark(exit: Exit, several: bool) -> Option<String> {
    match exit {
        Exit::Code(0) | Exit::TimedOut | Exit::Cancelled => None,
        Exit::Code(code) => several.then(|| format!("ended with exit code {code}")),
        Exit::Signal(number) => Some(format!("ended by signal {number}")),
        Exit::OutOfMemory => Some("used up the VM's memory; -m gives it more".into()),
    }
}

/// Shows an installer's last line in place of what was shown before.
pub(crate) fn installing(progress: &Progress, said: &[u8]) {
    if let Some(line) = String::from_utf8_lossy(said).lines().map(str::trim).rfind(|line| !line.is_empty()) {
        let plain: String = line.chars().filter(|c| !c.is_control()).take(SHOWN_LINE_CHARS).collect();
        progress.say(&format!("installing packages: {plain}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_that_speaks_for_itself_needs_no_remark() {
        assert_eq!(remark(Exit::Code(0), true), None);
        assert_eq!(remark(Exit::Code(3), false), None);
        // The library has said so on the program's standard error.
        assert_eq!(remark(Exit::TimedOut, true), None);
    }

    #[test]
    fn an_end_that_needs_one_has_one() {
        assert!(remark(Exit::Code(3), true).is_some_and(|text| text.contains('3')));
        assert!(remark(Exit::Signal(11), false).is_some_and(|text| text.contains("11")));
        assert!(remark(Exit::OutOfMemory, false).is_some_and(|text| text.contains("-m")));
    }
}
