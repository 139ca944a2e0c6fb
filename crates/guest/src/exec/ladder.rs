//! The ladder by which a program is brought to its end: asked with SIGTERM, after a grace killed, after that given up. Pure.

use std::time::{Duration, Instant};

use exec_sandbox_wire::limits;

/// A caller who called the program off waits for no farewell, but a child may still want to remove a lock file.
const CANCEL_GRACE: Duration = Duration::from_millis(500);

/// A killed process is gone within milliseconds; one that is not waits for a device, and no longer wait would help.
const KILL_SETTLE: Duration = Duration::from_secs(2);

const _: () = assert!(KILL_SETTLE.as_millis() < limits::AGENT_SLACK.as_millis(), "the agent reports within its slack");

/// Why a program is brought to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// Its time is up.
    Timeout,
    /// The host called it off.
    Cancel,
}

/// What is to be done to the program's processes now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// SIGTERM to all.
    Ask,
    /// SIGKILL to all.
    Kill,
    /// Nothing more can be done.
    GiveUp,
}

/// Where a program is on the ladder, and when the next step is due.
#[derive(Debug)]
pub(crate) struct Ladder {
    asked: Option<Cause>,
    killed: bool,
    due: Instant,
}

impl Ladder {
    /// A program that begins now.
    pub(crate) fn begin(now: Instant, timeout: Duration) -> Self {
        Self { asked: None, killed: false, due: now + timeout }
    }

    /// When the next step is due.
    pub(crate) fn due(&self) -> Instant {
        self.due
    }

    /// Why the program was asked to end, if it was.
    pub(crate) fn asked(&self) -> Option<Cause> {
        self.asked
    }

    /// The next step; to be taken when it is due.
    pub(crate) fn climb(&mut self, now: Instant) -> Step {
        if self.asked.is_none() {
            return self.ask(now, Cause::Timeout, limits::KILL_GRACE);
        }
        self.due = now + KILL_SETTLE;
        if self.killed {
            return Step::GiveUp;
        }
        self.killed = true;
        Step::Kill
    }

    /// The program is called off; a step, if that changes anything.
    pub(crate) fn cancel(&mut self, now: Instant) -> Option<Step> {
        if self.asked.is_none() {
            return Some(self.ask(now, Cause::Cancel, CANCEL_GRACE));
        }
        self.due = self.due.min(now + CANCEL_GRACE);
        None
    }

    fn ask(&mut self, now: Instant, cause: Cause, grace: Duration) -> Step {
        self.asked = Some(cause);
        self.due = now + grace;
        Step::Ask
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(2);

    #[test]
    fn a_program_that_ignores_everything_is_asked_then_killed_then_given_up() {
        let start = Instant::now();
        let mut ladder = Ladder::begin(start, TIMEOUT);
        assert_eq!(ladder.due(), start + TIMEOUT);
        assert_eq!(ladder.asked(), None);
        let first = ladder.due();
        assert_eq!(ladder.climb(first), Step::Ask);
        assert_eq!(ladder.due(), first + limits::KILL_GRACE);
        let second = ladder.due();
        assert_eq!(ladder.climb(second), Step::Kill);
        let third = ladder.due();
        assert_eq!(ladder.climb(third), Step::GiveUp);
        assert!(third - start <= TIMEOUT + limits::KILL_GRACE + limits::AGENT_SLACK);
    }

    #[test]
    fn a_cancel_shortens_the_grace_and_does_not_change_the_cause() {
        let start = Instant::now();
        let mut ladder = Ladder::begin(start, TIMEOUT);
        let asked_at = ladder.due();
        ladder.climb(asked_at);
        assert_eq!(ladder.cancel(asked_at), None);
        assert_eq!(ladder.due(), asked_at + CANCEL_GRACE);
        assert_eq!(ladder.asked(), Some(Cause::Timeout));
    }

    #[test]
    fn a_cancelled_program_is_asked_once() {
        let start = Instant::now();
        let mut ladder = Ladder::begin(start, TIMEOUT);
        assert_eq!(ladder.cancel(start), Some(Step::Ask));
        assert_eq!(ladder.cancel(start), None);
        assert_eq!(ladder.climb(start + CANCEL_GRACE), Step::Kill);
        assert_eq!(ladder.asked(), Some(Cause::Cancel));
    }
}
