//! Questions to the host's resolvers that are out, and who waits for the answers.
//!
//! Owns who is asked next and when, and nothing of what is asked. A resolver that fails is followed at once by one that was not asked
//! yet, and one that is silent by the next one in time; an answer that was cut short is asked for again over TCP. How many questions
//! may be out is bounded twice: by the gate, which refuses, and here, where nothing grows.

use std::time::{Duration, Instant};

use super::{Outside, Question, TcpFlow, Upstream};

/// How long a resolver may think before the next one is asked.
const PATIENCE: Duration = Duration::from_secs(2);

/// How often a question is asked in all. A guest's own resolver gives up after about as long.
const ATTEMPTS: u8 = 3;

/// Questions that may be out at once.
const MAX_QUESTIONS: u16 = 64;

/// Who waits for an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asker {
    /// A program of the guest at this port.
    Datagram { guest_port: u16 },
    /// A connection with questions.
    Stream { flow: TcpFlow, serial: u64 },
}

/// One question that is out.
#[derive(Debug)]
struct Out {
    /// What the gate calls it.
    key: u64,
    asker: Asker,
    message: Vec<u8>,
    attempt: u8,
    over_tcp: bool,
    /// When somebody else is asked.
    until: Instant,
}

/// All questions that are out.
#[derive(Debug)]
pub(crate) struct Questions {
    slots: Vec<Option<Out>>,
    resolvers: u8,
}

/// What an answer, or its absence, belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ended {
    pub(crate) key: u64,
    pub(crate) asker: Asker,
}

impl Questions {
    /// `resolvers` is how many there are.
    pub(crate) fn new(resolvers: usize) -> Self {
        let slots = (0..MAX_QUESTIONS).map(|_| None).collect();
        Self { slots, resolvers: u8::try_from(resolvers).unwrap_or(u8::MAX) }
    }

    /// Asks. `false` if nobody can be asked.
    pub(crate) fn ask(
        &mut self,
        outside: &mut dyn Outside,
        key: u64,
        message: Vec<u8>,
        asker: Asker,
        now: Instant,
    ) -> bool {
        let Some((number, slot)) = (0..).zip(&mut self.slots).find(|(_, slot)| slot.is_none()) else { return false };
        if self.resolvers == 0 {
            return false;
        }
        let out = slot.insert(Out { key, asker, message, attempt: 0, over_tcp: false, until: now });
        out.ask(outside, Question(number), self.resolvers, now);
        true
    }

    /// What the gate calls a question that is out.
    pub(crate) fn key(&self, question: Question) -> Option<u64> {
        self.slots.get(usize::from(question.0))?.as_ref().map(|out| out.key)
    }

    /// Asks for an answer that was cut short once more, over TCP. `false` if that was done already.
    pub(crate) fn ask_over_tcp(&mut self, outside: &mut dyn Outside, question: Question, now: Instant) -> bool {
        let Some(Some(out)) = self.slots.get_mut(usize::from(question.0)) else { return false };
        if out.over_tcp {
            return false;
        }
        out.over_tcp = true;
        outside.forget(question);
        out.ask(outside, question, self.resolvers, now);
        true
    }

    /// Asks a resolver that was not asked yet, because the one that was has failed. `false` if there is none.
    pub(crate) fn ask_another(&mut self, outside: &mut dyn Outside, question: Question, now: Instant) -> bool {
        let Some(Some(out)) = self.slots.get_mut(usize::from(question.0)) else { return false };
        if !out.turns_to_another(self.resolvers) {
            return false;
        }
        outside.forget(question);
        out.ask(outside, question, self.resolvers, now);
        true
    }

    /// The question is answered, or the gate is done with it.
    pub(crate) fn end(&mut self, outside: &mut dyn Outside, question: Question) -> Option<Ended> {
        let out = self.slots.get_mut(usize::from(question.0))?.take()?;
        outside.forget(question);
        Some(Ended { key: out.key, asker: out.asker })
    }

    /// Asks the next resolver where one was silent for too long. Returns a question that was asked often enough, if there is one.
    pub(crate) fn expire(&mut self, outside: &mut dyn Outside, now: Instant) -> Option<Question> {
        for (number, slot) in (0..).zip(&mut self.slots) {
            let Some(out) = slot.as_mut().filter(|out| out.until <= now) else { continue };
            out.attempt += 1;
            if out.attempt >= ATTEMPTS {
                return Some(Question(number));
            }
            outside.forget(Question(number));
            out.ask(outside, Question(number), self.resolvers, now);
        }
        None
    }

    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.slots.iter().flatten().map(|out| out.until).min()
    }
}

impl Out {
    /// Asks whose turn it is, and instead of one that cannot be asked one that was not asked yet.
    fn ask(&mut self, outside: &mut dyn Outside, question: Question, resolvers: u8, now: Instant) {
        self.until = now + PATIENCE;
        loop {
            let resolver = self.attempt.checked_rem(resolvers).unwrap_or(0);
            let upstream = Upstream { resolver: resolver.into(), over_tcp: self.over_tcp };
            if outside.ask(question, upstream, &self.message) || !self.turns_to_another(resolvers) {
                return;
            }
        }
    }

    /// Makes it the turn of a resolver that was not asked yet. `false` if there is none: who was asked once is asked again in time.
    fn turns_to_another(&mut self, resolvers: u8) -> bool {
        let is_another = self.attempt + 1 < ATTEMPTS.min(resolvers);
        self.attempt += u8::from(is_another);
        is_another
    }
}
