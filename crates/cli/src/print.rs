//! Printing: explanations and notes for people, JSON for programs, bytes for pipes.
//!
//! What a program in a VM wrote is passed on as it is. What `sbx` says itself loses its colours where nobody sees them.

use std::io::{self, Write};

use anstyle::{AnsiColor, Style};
use serde::Serialize;

use crate::{
    exit::Status,
    failure::{Explanation, Failure},
    json::Failed,
};

pub(crate) const ERROR: Style = AnsiColor::Red.on_default().bold();
pub(crate) const HELP: Style = AnsiColor::Cyan.on_default().bold();
pub(crate) const WARNING: Style = AnsiColor::Yellow.on_default().bold();
pub(crate) const OK: Style = AnsiColor::Green.on_default().bold();
pub(crate) const HEADER: Style = Style::new().bold();
pub(crate) const FAINT: Style = Style::new().dimmed();

/// Says why a command failed, and how the process ends because of it.
pub(crate) fn failure(failure: &Failure, as_json: bool) -> Status {
    let said = match failure {
        // Help and version are asked for, and clap knows its own way to the right stream.
        Failure::Clap(error) if !(as_json && error.use_stderr()) => error.print(),
        // There is nobody to say it to.
        Failure::BrokenPipe => Ok(()),
        _ if as_json => {
            return json(&Failed { source: None, error: failure.explain() })
                .map_or_else(|f| f.status(), |()| failure.status());
        }
        // The person who pressed the key knows.
        Failure::Interrupted(_) => Ok(()),
        _ => explanation(&mut anstream::stderr(), None, &failure.explain()),
    };
    // With standard error closed the exit code has to say it alone.
    drop(said);
    failure.status()
}

/// `error: what was done: why it failed`, and what to do about it.
pub(crate) fn explanation(to: &mut impl Write, subject: Option<&str>, explanation: &Explanation) -> io::Result<()> {
    write!(to, "{ERROR}error:{ERROR:#} ")?;
    if let Some(subject) = subject {
        write!(to, "{subject}: ")?;
    }
    write!(to, "{}", explanation.message)?;
    for cause in &explanation.causes {
        write!(to, ": {cause}")?;
    }
    writeln!(to)?;
    if let Some(remedy) = &explanation.remedy {
        writeln!(to, "{HELP}help:{HELP:#} {remedy}")?;
    }
    to.flush()
}

/// Says why one of several things was not done, and how the process ends if nothing before it failed.
pub(crate) fn failure_of(subject: &str, failure: &Failure) -> Status {
    // With standard error closed the exit code has to say it alone.
    drop(explanation(&mut anstream::stderr(), Some(subject), &failure.explain()));
    failure.status()
}

/// A remark on standard error. The caller knows that somebody wants it.
pub(crate) fn note(text: &str) {
    // A note that cannot be written is a note less.
    let _ = writeln!(anstream::stderr(), "{FAINT}note: {text}{FAINT:#}");
}

/// A value as indented JSON on standard output.
pub(crate) fn json(value: &impl Serialize) -> Result<(), Failure> {
    let mut text = serde_json::to_vec_pretty(value).map_err(|error| Failure::host("writing JSON", error.into()))?;
    text.push(b'\n');
    to_stdout(&text)
}

/// Bytes on standard output, at once.
pub(crate) fn to_stdout(bytes: &[u8]) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(bytes).and_then(|()| stdout.flush()).map_err(Failure::output)
}

/// Text of `sbx` itself on standard output, with colours where they are seen.
pub(crate) fn page(text: &str) -> Result<(), Failure> {
    let mut stdout = anstream::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(Failure::output)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_follow_the_message_and_the_remedy_stands_alone() {
        let mut written = Vec::new();
        let told = Explanation {
            kind: "vm".into(),
            message: "starting QEMU".into(),
            causes: vec!["it ended".into(), "exit status 1".into()],
            remedy: Some("run `sbx doctor`".into()),
        };
        explanation(&mut anstream::StripStream::new(&mut written), Some("a.py"), &told).expect("a vector takes it");
        assert_eq!(
            String::from_utf8(written).expect("it is text"),
            "error: a.py: starting QEMU: it ended: exit status 1\nhelp: run `sbx doctor`\n"
        );
    }
}
