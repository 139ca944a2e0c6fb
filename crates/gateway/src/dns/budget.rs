//! How much a guest may ask: questions in a time, and new names in a time.
//!
//! The second is what a tunnel needs: each of its questions says something new in its name. A program asks for the same few names
//! again and again, which costs nothing here.

use std::{
    collections::{BTreeSet, VecDeque},
    time::Instant,
};

use crate::{
    bucket::{Bucket, Rate},
    policy::Name,
};

/// Questions that may come at once, and in a second after that. A page of a large site asks for some dozens; an installation of
/// packages for a few.
const QUESTIONS: Rate = Rate { burst: 200, each_second: 50 };

/// Bytes of new names that may come at once, and in a second after that: a thousand names, and one in a second. A tunnel gets through a
/// kilobyte in half a minute.
const NAME_BYTES: Rate = Rate { burst: 32 * 1024, each_second: 32 };

/// Names that are known as asked before.
const MAX_KNOWN: usize = 1024;

/// What is left.
#[derive(Debug)]
pub(super) struct Budget {
    questions: Bucket,
    name_bytes: Bucket,
    known: BTreeSet<Name>,
    /// The known names, the one that has been known for longest first.
    order: VecDeque<Name>,
}

impl Budget {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            questions: Bucket::full(QUESTIONS, now),
            name_bytes: Bucket::full(NAME_BYTES, now),
            known: BTreeSet::new(),
            order: VecDeque::new(),
        }
    }

    /// Whether another question may be asked.
    pub(super) fn may_ask(&mut self, now: Instant) -> bool {
        self.questions.take(1, now)
    }

    /// Whether it may be one for `name`.
    pub(super) fn may_ask_for(&mut self, name: &Name, now: Instant) -> bool {
        if self.known.contains(name) {
            return true;
        }
        let length = u64::try_from(name.as_str().len()).unwrap_or(u64::MAX);
        if !self.name_bytes.take(length, now) {
            return false;
        }
        if self.order.len() >= MAX_KNOWN
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
        self.known.insert(name.clone());
        self.order.push_back(name.clone());
        true
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn name(text: &str) -> Name {
        Name::parse(text).expect("it is a name")
    }

    #[test]
    fn a_name_that_was_asked_for_costs_nothing_again_and_new_ones_run_out() {
        let now = Instant::now();
        let mut budget = Budget::new(now);
        let long = |n: usize| name(&format!("{n:0>60}.{}.example", "x".repeat(60)));
        let asked = (0..10_000).take_while(|n| budget.may_ask_for(&long(*n), now)).count();
        assert!((200..300).contains(&asked), "{asked}");
        assert!(!budget.may_ask_for(&long(99_999), now));
        assert!(budget.may_ask_for(&long(0), now), "it is known");
        assert!(budget.may_ask_for(&long(99_999), now + Duration::from_secs(10)), "four seconds are a name");
    }

    #[test]
    fn names_are_forgotten_in_the_order_in_which_they_came() {
        let begun = Instant::now();
        let mut budget = Budget::new(begun);
        for n in 0..=MAX_KNOWN {
            let now = begun + Duration::from_secs(u64::try_from(n).expect("it is small"));
            assert!(budget.may_ask_for(&name(&format!("n{n}.example")), now));
        }
        assert_eq!((budget.known.len(), budget.order.len()), (MAX_KNOWN, MAX_KNOWN));
        assert!(!budget.known.contains(&name("n0.example")));
        assert!(budget.known.contains(&name("n1.example")));
    }
}
