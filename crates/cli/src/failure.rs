//! Why `sbx` did not do what it was asked. A program that fails is no failure of `sbx`.

use std::{borrow::Cow, error::Error as _, io};

use serde::{Deserialize, Serialize};

use crate::{exit::Status, interrupt::Signal};

/// Every way for a command to end without its result.
#[derive(Debug)]
pub(crate) enum Failure {
    /// What was typed has no meaning.
    Usage { message: String, help: Option<String> },
    /// clap refused the command line, or was asked for help or the version.
    Clap(clap::Error),
    /// The library failed.
    Sandbox(exec_sandbox::Error),
    /// The host refused something that `sbx` itself needs.
    Host { doing: &'static str, cause: io::Error },
    /// A file did not get to its destination.
    Transfer { doing: String, cause: Box<Self> },
    /// Another process of this user failed, or is in the way.
    Told { explanation: Explanation, status: Status },
    /// A program that `sbx bench` brings along did not do what it does.
    Bench(String),
    /// The user, or the system, wants `sbx` to end.
    Interrupted(Signal),
    /// Nobody reads standard output any more.
    BrokenPipe,
}

/// A failure in words, for people and for programs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Explanation {
    /// A stable name: the library's, or `usage`, `io`, `service`, `bench`, `interrupted`, `broken_pipe`.
    pub(crate) kind: Cow<'static, str>,
    /// What was being done to what.
    pub(crate) message: String,
    /// Why it failed, the nearest cause first.
    pub(crate) causes: Vec<String>,
    /// What to do about it, if there is something to do.
    pub(crate) remedy: Option<String>,
}

impl Failure {
    pub(crate) fn usage(message: impl Into<String>, help: impl Into<String>) -> Self {
        Self::Usage { message: message.into(), help: Some(help.into()) }
    }

    pub(crate) fn host(doing: &'static str, cause: io::Error) -> Self {
        Self::Host { doing, cause }
    }

    /// `cause` befell what `doing` names.
    pub(crate) fn transfer(doing: impl Into<String>, cause: impl Into<Self>) -> Self {
        Self::Transfer { doing: doing.into(), cause: Box::new(cause.into()) }
    }

    /// What went wrong with standard output.
    pub(crate) fn output(cause: io::Error) -> Self {
        if cause.kind() == io::ErrorKind::BrokenPipe {
            Self::BrokenPipe
        } else {
            Self::host("writing to standard output", cause)
        }
    }

    /// The failure in words.
    pub(crate) fn explain(&self) -> Explanation {
        let plain =
            |kind: &'static str, message| Explanation { kind: kind.into(), message, causes: Vec::new(), remedy: None };
        match self {
            Self::Usage { message, help } => Explanation { remedy: help.clone(), ..plain("usage", message.clone()) },
            Self::Clap(error) => Explanation {
                remedy: Some("try --help".into()),
                ..plain("usage", first_paragraph(&error.render().to_string()))
            },
            Self::Sandbox(error) => error.into(),
            Self::Host { doing, cause } => {
                Explanation { causes: vec![cause.to_string()], ..plain("io", (*doing).to_owned()) }
            }
            Self::Transfer { doing, cause } => {
                let mut explanation = cause.explain();
                let nearest = std::mem::replace(&mut explanation.message, doing.clone());
                explanation.causes.insert(0, nearest);
                explanation
            }
            Self::Told { explanation, .. } => explanation.clone(),
            Self::Bench(message) => plain("bench", message.clone()),
            Self::Interrupted(signal) => plain("interrupted", format!("ended by {}", signal.name())),
            Self::BrokenPipe => plain("broken_pipe", "nobody reads standard output".into()),
        }
    }

    pub(crate) fn status(&self) -> Status {
        match self {
            Self::Usage { .. } => Status::USAGE,
            Self::Clap(error) if error.use_stderr() => Status::USAGE,
            Self::Clap(_) => Status::SUCCESS,
            Self::Sandbox(error) => error.kind().into(),
            Self::Transfer { cause, .. } => cause.status(),
            Self::Told { status, .. } => *status,
            Self::Host { .. } | Self::Bench(_) => Status::SANDBOX,
            Self::Interrupted(signal) => signal.status(),
            Self::BrokenPipe => Status::broken_pipe(),
        }
    }
}

impl From<exec_sandbox::Error> for Failure {
    fn from(error: exec_sandbox::Error) -> Self {
        Self::Sandbox(error)
    }
}

impl From<&exec_sandbox::Error> for Explanation {
    fn from(error: &exec_sandbox::Error) -> Self {
        let causes = std::iter::successors(error.source(), |cause| (*cause).source());
        Self {
            kind: error.kind().name().into(),
            message: error.to_string(),
            causes: causes.map(ToString::to_string).collect(),
            remedy: error.remedy().map(str::to_owned),
        }
    }
}

/// clap's message without its prefix and without what it says about usage.
fn first_paragraph(rendered: &str) -> String {
    let text = rendered.strip_prefix("error: ").unwrap_or(rendered);
    text.split("\n\n").next().unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_command_line_is_explained_in_one_line() {
        let rendered = "error: invalid value 'x' for '--memory <MIB>'\n  [possible values: a]\n\nUsage: sbx run\n";
        assert_eq!(first_paragraph(rendered), "invalid value 'x' for '--memory <MIB>' [possible values: a]");
    }

    #[test]
    fn a_file_that_did_not_arrive_is_named_before_the_reason_which_decides_the_exit_code() {
        let cause = || Failure::host("writing out.csv", io::ErrorKind::StorageFull.into());
        let failure = Failure::transfer("downloading out.csv", cause());
        let told = failure.explain();
        assert_eq!((&*told.kind, told.message.as_str()), ("io", "downloading out.csv"));
        assert_eq!(told.causes[0], "writing out.csv");
        assert_eq!(failure.status(), cause().status());
    }

    #[test]
    fn a_reader_that_went_away_is_not_an_error_of_the_host() {
        let failure = Failure::output(io::ErrorKind::BrokenPipe.into());
        assert_eq!(failure.status(), Status::broken_pipe());
        assert_eq!(Failure::output(io::ErrorKind::StorageFull.into()).status(), Status::SANDBOX);
    }
}
