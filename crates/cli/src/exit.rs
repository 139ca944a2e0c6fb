//! Exit codes: the whole table, in one place.
//!
//! A program's own code passes through. What the sandbox itself has to say lies where programs seldom are: 124 and 125 as
//! with `timeout(1)` and container engines, 128 + n for signals as in a shell.

use std::process::ExitCode;

use exec_sandbox::{ErrorKind, Exit};

/// How `sbx` ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Status(u8);

impl Status {
    pub(crate) const SUCCESS: Self = Self(0);
    /// The command line or the request is wrong.
    pub(crate) const USAGE: Self = Self(2);
    /// The program or the boot took longer than it may.
    pub(crate) const TIMEOUT: Self = Self(124);
    /// The sandbox failed; the program may not have run.
    pub(crate) const SANDBOX: Self = Self(125);

    /// Ended by a signal, or as if by it.
    pub(crate) fn signal(number: u8) -> Self {
        Self(number.saturating_add(128))
    }

    /// The reader of standard output went away (SIGPIPE is 13).
    pub(crate) fn broken_pipe() -> Self {
        Self::signal(13)
    }

    /// The code of several sources: that of the first, in the order given, which did not succeed.
    pub(crate) fn first_failure(all: impl IntoIterator<Item = Self>) -> Self {
        all.into_iter().find(|status| *status != Self::SUCCESS).unwrap_or(Self::SUCCESS)
    }

    /// What another process of this program has ended with, or would have.
    pub(crate) fn of(code: u8) -> Self {
        Self(code)
    }

    pub(crate) fn code(self) -> u8 {
        self.0
    }
}

impl From<Exit> for Status {
    fn from(exit: Exit) -> Self {
        match exit {
            Exit::TimedOut => Self::TIMEOUT,
            // A process has eight bits to say how it ended; the guest's had no more.
            ended => Self(ended.code().to_le_bytes()[0]),
        }
    }
}

impl From<ErrorKind> for Status {
    fn from(kind: ErrorKind) -> Self {
        match kind {
            kind if kind.is_invalid_input() => Self::USAGE,
            ErrorKind::BootTimeout => Self::TIMEOUT,
            _ => Self::SANDBOX,
        }
    }
}

impl From<Status> for ExitCode {
    fn from(status: Status) -> Self {
        Self::from(status.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_programs_own_code_passes_through() {
        for code in [0, 1, 7, 124, 255] {
            assert_eq!(i32::from(Status::from(Exit::Code(code)).code()), code);
        }
    }

    #[test]
    fn signals_memory_and_time_have_their_codes() {
        assert_eq!(Status::from(Exit::Signal(11)).code(), 139);
        assert_eq!(Status::from(Exit::OutOfMemory).code(), 137);
        assert_eq!(Status::from(Exit::TimedOut).code(), 124);
        assert_eq!(Status::broken_pipe().code(), 141);
        assert_eq!(Status::signal(2).code(), 130);
    }

    #[test]
    fn errors_of_the_request_are_usage_and_a_slow_boot_is_a_timeout() {
        assert_eq!(Status::from(ErrorKind::InvalidEnv), Status::USAGE);
        assert_eq!(Status::from(ErrorKind::InvalidArgument), Status::USAGE);
        assert_eq!(Status::from(ErrorKind::UnknownVm), Status::USAGE);
        assert_eq!(Status::from(ErrorKind::PackageNotAllowed), Status::USAGE);
        assert_eq!(Status::from(ErrorKind::PackageInstall), Status::SANDBOX);
        assert_eq!(Status::from(ErrorKind::Teardown), Status::SANDBOX);
        assert_eq!(Status::from(ErrorKind::BootTimeout), Status::TIMEOUT);
        assert_eq!(Status::from(ErrorKind::OutcomeUnknown), Status::SANDBOX);
        assert_eq!(Status::from(ErrorKind::AssetDamaged), Status::SANDBOX);
    }

    #[test]
    fn the_first_source_that_failed_decides() {
        let of = |codes: &[i32]| Status::first_failure(codes.iter().map(|code| Status::from(Exit::Code(*code)))).code();
        assert_eq!(of(&[0, 3, 7]), 3);
        assert_eq!(of(&[0, 0]), 0);
        assert_eq!(of(&[]), 0);
    }
}
