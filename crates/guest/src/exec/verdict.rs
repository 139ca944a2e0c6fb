//! How an execution ended, from what was seen of it. Pure.

use exec_sandbox_wire::End;

use super::ladder::Cause;
use crate::reaper::Exit;

const SIGKILL: u8 = 9;
const SIGTERM: u8 = 15;

/// What a shell adds to the number of a signal that ended a program.
const SIGNAL_BASE: i32 = 128;

/// Stands for "no code": the program did not live to give one.
const NO_CODE: i32 = -1;

/// What was seen of a program's end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen {
    /// How its interpreter ended, or what code it reported; nothing if even a kill did not end it.
    pub(crate) exit: Option<Exit>,
    /// Why it was asked to end, if it was.
    pub(crate) asked: Option<Cause>,
    /// The kernel killed for memory while it ran.
    pub(crate) out_of_memory: bool,
}

/// How it ended, in the contract's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Verdict {
    pub(crate) end: End,
    pub(crate) exit_code: i32,
    pub(crate) signal: u32,
}

impl Seen {
    /// A program that exits by itself reports its own code, even when it was asked to; a signal that the agent sent is the agent's.
    pub(crate) fn verdict(self) -> Verdict {
        let ours = |cause| match cause {
            Cause::Timeout => End::TimedOut,
            Cause::Cancel => End::Cancelled,
        };
        match (self.exit, self.asked) {
            (Some(Exit::Code(code)), _) => Verdict { end: End::Exited, exit_code: code.into(), signal: 0 },
            (Some(Exit::Signal(SIGKILL)), _) if self.out_of_memory => Self::signalled(End::OutOfMemory, SIGKILL),
            (Some(Exit::Signal(signal @ (SIGTERM | SIGKILL))), Some(cause)) => {
                Verdict { end: ours(cause), exit_code: NO_CODE, signal: signal.into() }
            }
            (Some(Exit::Signal(signal)), _) => Self::signalled(End::Signalled, signal),
            (None, Some(cause)) => Verdict { end: ours(cause), exit_code: NO_CODE, signal: SIGKILL.into() },
            (None, None) => Self::signalled(End::Signalled, SIGKILL),
        }
    }

    fn signalled(end: End, signal: u8) -> Verdict {
        Verdict { end, exit_code: SIGNAL_BASE + i32::from(signal), signal: signal.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING: Seen = Seen { exit: None, asked: None, out_of_memory: false };

    fn verdict(exit: Exit, asked: Option<Cause>, out_of_memory: bool) -> (End, i32, u32) {
        let Verdict { end, exit_code, signal } = Seen { exit: Some(exit), asked, out_of_memory }.verdict();
        (end, exit_code, signal)
    }

    #[test]
    fn a_program_that_exits_reports_its_own_code_whatever_was_asked_of_it() {
        for asked in [None, Some(Cause::Timeout), Some(Cause::Cancel)] {
            assert_eq!(verdict(Exit::Code(7), asked, false), (End::Exited, 7, 0));
        }
    }

    #[test]
    fn a_signal_is_the_agents_only_if_the_agent_sent_it() {
        assert_eq!(verdict(Exit::Signal(15), None, false), (End::Signalled, 143, 15));
        assert_eq!(verdict(Exit::Signal(15), Some(Cause::Timeout), false), (End::TimedOut, -1, 15));
        assert_eq!(verdict(Exit::Signal(9), Some(Cause::Cancel), false), (End::Cancelled, -1, 9));
        assert_eq!(verdict(Exit::Signal(11), Some(Cause::Timeout), false), (End::Signalled, 139, 11));
    }

    #[test]
    fn memory_that_ran_out_comes_before_time_that_did() {
        assert_eq!(verdict(Exit::Signal(9), Some(Cause::Timeout), true), (End::OutOfMemory, 137, 9));
        assert_eq!(verdict(Exit::Code(1), None, true), (End::Exited, 1, 0), "only a child was killed");
    }

    #[test]
    fn what_even_a_kill_did_not_end_is_reported_all_the_same() {
        assert_eq!(Seen { asked: Some(Cause::Timeout), ..NOTHING }.verdict().end, End::TimedOut);
        assert_eq!(NOTHING.verdict().end, End::Signalled);
    }
}
