//! The breaker: a store that has failed is left alone for a while.
//!
//! ```text
//!            failed                  its time is over, one is let through
//!   up ─────────────────▶ resting ────────────────────────────▶ trying ──▶ up
//!                            ▲ twice as long          failed      │
//!                            └────────────────────────────────────┘
//! ```
//!
//! Time is an argument. What began before a change says nothing about what is now: its verdict is ignored.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// Whether the store is asked.
#[derive(Debug)]
pub(crate) struct Breaker {
    first: Duration,
    longest: Duration,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    state: State,
    /// The next rest.
    rest: Duration,
    /// Counts changes.
    epoch: u64,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Up,
    Resting { until: Instant },
    Trying { since_rest_until: Instant },
}

/// Leave to ask the store once. One that is dropped without a verdict lets the next one try.
#[derive(Debug)]
pub(crate) struct Pass<'a> {
    breaker: &'a Breaker,
    epoch: u64,
}

/// What a verdict has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// Nothing.
    None,
    /// It was up and is left alone for so long.
    Down(Duration),
    /// It was tried again, in vain, and is left alone for so long.
    StillDown(Duration),
    /// It was tried again and is up.
    Back,
}

impl Breaker {
    pub(crate) fn new(first: Duration, longest: Duration) -> Self {
        let inner = Inner { state: State::Up, rest: first.min(longest), epoch: 0 };
        Self { first: first.min(longest), longest, inner: Mutex::new(inner) }
    }

    /// Leave to ask, unless the store rests or somebody tries it already.
    pub(crate) fn enter(&self, now: Instant) -> Option<Pass<'_>> {
        let mut inner = self.lock();
        match inner.state {
            State::Up => {}
            State::Resting { until } if now >= until => inner.state = State::Trying { since_rest_until: until },
            State::Resting { .. } | State::Trying { .. } => return None,
        }
        Some(Pass { breaker: self, epoch: inner.epoch })
    }

    /// Whether the store is left alone, or was and is not known to be back.
    pub(crate) fn is_down(&self) -> bool {
        !matches!(self.lock().state, State::Up)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Every change is one assignment after another without a panic between them.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pass<'_> {
    /// The store has answered, be it that there is nothing.
    pub(crate) fn succeeded(self) -> Change {
        let mut inner = self.breaker.lock();
        if inner.epoch != self.epoch || matches!(inner.state, State::Up) {
            return Change::None;
        }
        inner.state = State::Up;
        inner.rest = self.breaker.first;
        inner.epoch += 1;
        Change::Back
    }

    /// The store has not.
    pub(crate) fn failed(self, now: Instant) -> Change {
        let mut inner = self.breaker.lock();
        if inner.epoch != self.epoch {
            return Change::None;
        }
        let rest = inner.rest;
        let was_up = matches!(inner.state, State::Up);
        inner.state = State::Resting { until: now + rest };
        inner.rest = (rest * 2).min(self.breaker.longest);
        inner.epoch += 1;
        if was_up { Change::Down(rest) } else { Change::StillDown(rest) }
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        let mut inner = self.breaker.lock();
        if let State::Trying { since_rest_until } = inner.state
            && inner.epoch == self.epoch
        {
            inner.state = State::Resting { until: since_rest_until };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REST: Duration = Duration::from_secs(30);
    const LONGEST: Duration = Duration::from_mins(10);

    fn enter(breaker: &Breaker, now: Instant) -> Pass<'_> {
        breaker.enter(now).expect("it may be asked")
    }

    #[test]
    fn a_store_that_failed_rests_and_is_tried_by_one() {
        let (breaker, start) = (Breaker::new(REST, LONGEST), Instant::now());
        assert_eq!(enter(&breaker, start).failed(start), Change::Down(REST));
        assert!(breaker.enter(start + REST - Duration::from_millis(1)).is_none());
        let trying = enter(&breaker, start + REST);
        assert!(breaker.enter(start + REST).is_none(), "one tries at a time");
        assert!(breaker.is_down());
        assert_eq!(trying.succeeded(), Change::Back);
        assert!(!breaker.is_down());
        assert_eq!(enter(&breaker, start + REST).succeeded(), Change::None);
    }

    #[test]
    fn each_vain_try_doubles_the_rest_up_to_the_longest() {
        let (breaker, mut now) = (Breaker::new(REST, LONGEST), Instant::now());
        assert_eq!(enter(&breaker, now).failed(now), Change::Down(REST));
        let mut rest = REST;
        for expected in [60, 120, 240, 480, 600, 600] {
            now += rest;
            rest = Duration::from_secs(expected);
            assert_eq!(enter(&breaker, now).failed(now), Change::StillDown(rest));
        }
        now += rest;
        assert_eq!(enter(&breaker, now).succeeded(), Change::Back);
        assert_eq!(enter(&breaker, now).failed(now), Change::Down(REST), "and it begins anew");
    }

    #[test]
    fn many_failures_at_once_are_one() {
        let (breaker, now) = (Breaker::new(REST, LONGEST), Instant::now());
        let passes: Vec<Pass<'_>> = (0..3).map(|_| enter(&breaker, now)).collect();
        let changes: Vec<Change> = passes.into_iter().map(|pass| pass.failed(now)).collect();
        assert_eq!(changes, [Change::Down(REST), Change::None, Change::None]);
        assert!(breaker.enter(now + REST).is_some(), "the rest was not doubled");
    }

    #[test]
    fn what_began_before_the_rest_does_not_end_it() {
        let (breaker, now) = (Breaker::new(REST, LONGEST), Instant::now());
        let (early, failing) = (enter(&breaker, now), enter(&breaker, now));
        assert_eq!(failing.failed(now), Change::Down(REST));
        assert_eq!(early.succeeded(), Change::None);
        assert!(breaker.enter(now).is_none());
    }

    #[test]
    fn who_gives_up_trying_lets_the_next_one_try() {
        let (breaker, now) = (Breaker::new(REST, LONGEST), Instant::now());
        assert_eq!(enter(&breaker, now).failed(now), Change::Down(REST));
        drop(enter(&breaker, now + REST));
        assert_eq!(enter(&breaker, now + REST).succeeded(), Change::Back);
    }
}
