//! Questions that are out, and how their answers are known.
//!
//! An answer belongs to a question if it has its number, which nobody outside foresees, and repeats it. The socket adds a port
//! of its own to that. The case of letters is not varied as a third mark: some resolvers change it, and their answers would be lost.

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash as _, Hasher as _},
};

use hickory_proto::op::{Message, MessageType, Query};

use super::question;
use crate::policy::Name;

/// Most questions that are out at once: a program asks for a few names at a time, and a crawler may wait.
pub(super) const MAX_PENDING: usize = 64;

/// A question of the guest, as far as it is told again.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    /// The guest's number.
    pub(super) id: u16,
    pub(super) recursion_desired: bool,
    pub(super) query: Query,
}

/// A question that is out.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) asked: Asked,
    pub(super) name: Name,
    /// Our number.
    id: u16,
}

/// All of them.
#[derive(Debug)]
pub(super) struct Pending {
    seed: u64,
    /// Questions that ever were: the key of the next one.
    next: u64,
    open: BTreeMap<u64, Open>,
}

impl Pending {
    pub(super) fn new(seed: u64) -> Self {
        Self { seed, next: 0, open: BTreeMap::new() }
    }

    pub(super) fn is_full(&self) -> bool {
        self.open.len() >= MAX_PENDING
    }

    pub(super) fn len(&self) -> usize {
        self.open.len()
    }

    /// Notes a question for `name`, and makes the one that is asked instead, in the name's one form: the case of a guest's letters
    /// could say something to whoever owns the name, and costs no new name.
    pub(super) fn add(&mut self, asked: Asked, name: Name) -> (u64, Option<Vec<u8>>) {
        let key = self.next;
        self.next += 1;
        let id = self.number(key);
        let message = question(id, &name);
        if message.is_some() {
            self.open.insert(key, Open { asked, name, id });
        }
        (key, message)
    }

    pub(super) fn get(&self, key: u64) -> Option<&Open> {
        self.open.get(&key)
    }

    pub(super) fn take(&mut self, key: u64) -> Option<Open> {
        self.open.remove(&key)
    }

    /// A number for a question, which without the seed cannot be told from the others.
    fn number(&self, key: u64) -> u16 {
        let mut hasher = DefaultHasher::new();
        (self.seed, key).hash(&mut hasher);
        let [low, high, ..] = hasher.finish().to_le_bytes();
        u16::from_le_bytes([low, high])
    }
}

impl Open {
    /// Whether `answer` is one to this question.
    pub(super) fn is_answered_by(&self, answer: &Message) -> bool {
        let [query] = &answer.queries[..] else { return false };
        let ours = &self.asked.query;
        answer.metadata.id == self.id
            && answer.metadata.message_type == MessageType::Response
            && query.name == ours.name
            && query.query_type == ours.query_type
            && query.query_class == ours.query_class
    }
}
