//! The resolver's brain: what a guest may ask, what is asked for it, and what it is told.
//!
//! A guest asks for addresses of IPv4, and nothing else leaves this network: a question is made anew, with a number of our own, and
//! an answer is made anew too, from the addresses that passed. So nothing of a guest's bytes reaches a resolver of the host, and
//! nothing of a stranger's reaches the guest. What an answer gave is pinned in the book of names before the guest hears it.
//!
//! A refused name does not exist, and a refused type has no records: programs take both for final, where other errors make them ask
//! again for seconds. Only what may pass later, a limit, is an error that they retry. AAAA and HTTPS are asked for by every program
//! and have no records here, without being refused: there is no IPv6, and keys for encrypted ClientHellos would hide the names that
//! are checked.

mod budget;
mod pending;

use std::{net::IpAddr, time::Instant};

use hickory_proto::{
    op::{Message, MessageType, OpCode, Query, ResponseCode},
    rr::{DNSClass, Name as Domain, RData, Record, RecordType, rdata},
};

use self::{
    budget::Budget,
    pending::{Asked, Pending},
};
use crate::{
    names::{Book, clamp_ttl},
    policy::{Name, Refusal, Refusals, Rules},
};

/// Longest question over UDP: what every resolver has taken since 1987. A question for one name has less than 300 bytes.
pub const MAX_UDP_QUESTION_BYTES: usize = 512;

/// Bytes of a message before its question.
const HEADER_BYTES: usize = 12;

/// Most aliases that an answer leads through. Delivery networks use four or five.
const MAX_ALIASES: usize = 16;

/// Most addresses that a guest is told: with the longest name they fit into an answer of 512 bytes, so no answer is ever cut.
const MAX_ADDRESSES: usize = 12;

/// How a question came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// In a datagram.
    Udp,
    /// On a connection, where its length has been checked.
    Tcp,
}

/// What becomes of a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// The guest is told this.
    Answer(Vec<u8>),
    /// A resolver of the host is asked this. What it says comes back under the key.
    Forward {
        /// The question's name from now on.
        key: u64,
        /// What is asked.
        message: Vec<u8>,
    },
    /// It is no question, and nobody waits for an answer.
    Ignore,
}

/// What a question or an answer is judged by, and where what comes of it is noted.
#[derive(Debug)]
pub struct Court<'a> {
    /// What may be reached.
    pub rules: &'a Rules,
    /// Where answers are pinned.
    pub book: &'a mut Book,
    /// Where refusals are counted.
    pub refusals: &'a mut Refusals,
    /// When it is.
    pub now: Instant,
}

/// Questions that are out, and what may still be asked.
#[derive(Debug)]
pub struct Resolver {
    pending: Pending,
    budget: Budget,
}

impl Resolver {
    /// A resolver of which nothing has been asked. `seed` is what numbers of questions are made from.
    #[must_use]
    pub fn new(seed: u64, now: Instant) -> Self {
        Self { pending: Pending::new(seed), budget: Budget::new(now) }
    }

    /// What becomes of a question of the guest. What is refused is counted.
    pub fn query(&mut self, message: &[u8], transport: Transport, court: Court<'_>) -> Action {
        let Court { rules, refusals, now, .. } = court;
        if transport == Transport::Udp && message.len() > MAX_UDP_QUESTION_BYTES {
            refusals.count(Refusal::QueryTooLarge);
            return Action::Ignore;
        }
        let may_ask = self.budget.may_ask(now);
        let Some(asked) = read(message) else {
            refusals.count(if may_ask { Refusal::QueryMalformed } else { Refusal::QueryRate });
            return if may_ask { malformed(message) } else { Action::Ignore };
        };
        let judged = if may_ask { self.judge(rules, &asked, now) } else { Err(Refusal::QueryRate) };
        match judged {
            Ok(Some(name)) => {
                let (key, message) = self.pending.add(asked, name);
                message.map_or(Action::Ignore, |message| Action::Forward { key, message })
            }
            Ok(None) => told(&asked, ResponseCode::NoError, &[], 0),
            Err(refusal) => {
                refusals.count(refusal);
                told(&asked, code_of(refusal), &[], 0)
            }
        }
    }

    /// What the guest is told after a resolver has answered; addresses that nobody may reach are left out and counted, and those that
    /// are told are pinned. `None`: this is no answer to the question, which stays open.
    pub fn upstream(&mut self, key: u64, answer: &[u8], court: Court<'_>) -> Option<Vec<u8>> {
        let Court { rules, book, refusals, now } = court;
        let open = self.pending.get(key)?;
        let answer = Message::from_vec(answer).ok().filter(|answer| open.is_answered_by(answer))?;
        let open = self.pending.take(key)?;
        let code = answer.metadata.response_code;
        let (found, ttl) = addresses(&answer, &open.asked.query.name);
        let count = found.len();
        let reachable = |address: &IpAddr| {
            let judged = rules.judge_address(*address);
            judged.inspect_err(|refusal| refusals.count(*refusal)).is_ok()
        };
        let mut allowed: Vec<IpAddr> = found.into_iter().map(IpAddr::V4).filter(reachable).collect();
        allowed.truncate(MAX_ADDRESSES);
        let ttl = clamp_ttl(ttl);
        for address in &allowed {
            book.pin(&open.name, *address, ttl, now);
        }
        let code = match code {
            // A name that leads only where nobody may go does not exist here.
            ResponseCode::NoError if allowed.is_empty() && count > 0 => ResponseCode::NXDomain,
            ResponseCode::NoError | ResponseCode::NXDomain => code,
            _ => ResponseCode::ServFail,
        };
        emit(&open.asked, code, &allowed, ttl)
    }

    /// What the guest is told of a question that nobody answers.
    pub fn give_up(&mut self, key: u64) -> Option<Vec<u8>> {
        let open = self.pending.take(key)?;
        emit(&open.asked, ResponseCode::ServFail, &[], 0)
    }

    /// Questions that are out.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Whether a question may be asked: of whom, or that it has no records here.
    fn judge(&mut self, rules: &Rules, asked: &Asked, now: Instant) -> Result<Option<Name>, Refusal> {
        let name = Name::parse(&asked.query.name.to_ascii()).map_err(|error| error.refusal())?;
        rules.judge_name(&name)?;
        match asked.query.query_type {
            RecordType::A => {}
            RecordType::AAAA | RecordType::HTTPS | RecordType::SVCB => return Ok(None),
            _ => return Err(Refusal::QueryType),
        }
        if self.pending.is_full() {
            return Err(Refusal::QueryLimit);
        }
        if !self.budget.may_ask_for(&name, now) {
            return Err(Refusal::QueryBudget);
        }
        Ok(Some(name))
    }
}

/// A question that asks for one thing.
fn read(message: &[u8]) -> Option<Asked> {
    let message = Message::from_vec(message).ok()?;
    let is_question = message.metadata.message_type == MessageType::Query
        && message.metadata.op_code == OpCode::Query
        && message.answers.is_empty()
        && message.authorities.is_empty();
    let [query] = &message.queries[..] else { return None };
    let asked =
        Asked { id: message.metadata.id, recursion_desired: message.metadata.recursion_desired, query: query.clone() };
    (is_question && query.query_class == DNSClass::IN).then_some(asked)
}

/// What a question that cannot be read is told, if it has a number to say it under.
fn malformed(message: &[u8]) -> Action {
    let is_query = message.get(2).is_some_and(|flags| flags & 0x80 == 0);
    match message {
        [high, low, ..] if message.len() >= HEADER_BYTES && is_query => {
            let id = u16::from_be_bytes([*high, *low]);
            let answer = Message::error_msg(id, OpCode::Query, ResponseCode::FormErr).to_vec();
            answer.map_or(Action::Ignore, Action::Answer)
        }
        _ => Action::Ignore,
    }
}

/// How a refusal is told.
fn code_of(refusal: Refusal) -> ResponseCode {
    match refusal {
        Refusal::QueryType => ResponseCode::NoError,
        Refusal::QueryRate | Refusal::QueryLimit => ResponseCode::ServFail,
        Refusal::NetworkDenied | Refusal::InboundOnly | Refusal::QueryBudget => ResponseCode::Refused,
        _ => ResponseCode::NXDomain,
    }
}

/// The addresses that `answer` gives for `name`, through its aliases, and how many seconds the whole chain lives.
fn addresses(answer: &Message, name: &Domain) -> (Vec<std::net::Ipv4Addr>, u32) {
    let (mut current, mut ttl) = (name.clone(), u32::MAX);
    for _ in 0..=MAX_ALIASES {
        let of_current = || answer.answers.iter().filter(|record| record.name == current && is_internet(record));
        let found: Vec<_> = of_current()
            .filter_map(|record| match &record.data {
                RData::A(address) => Some((address.0, record.ttl)),
                _ => None,
            })
            .collect();
        if !found.is_empty() {
            let least = found.iter().map(|(_, ttl)| *ttl).fold(ttl, u32::min);
            return (found.into_iter().map(|(address, _)| address).collect(), least);
        }
        let alias = of_current().find_map(|record| match &record.data {
            RData::CNAME(target) => Some((target.0.clone(), record.ttl)),
            _ => None,
        });
        let Some((target, its_ttl)) = alias else { break };
        (current, ttl) = (target, ttl.min(its_ttl));
    }
    (Vec::new(), 0)
}

fn is_internet(record: &Record) -> bool {
    record.dns_class == DNSClass::IN
}

fn told(asked: &Asked, code: ResponseCode, addresses: &[IpAddr], ttl: u32) -> Action {
    emit(asked, code, addresses, ttl).map_or(Action::Ignore, Action::Answer)
}

/// An answer: the question as it was asked, and the addresses as its name's own.
fn emit(asked: &Asked, code: ResponseCode, addresses: &[IpAddr], ttl: u32) -> Option<Vec<u8>> {
    let mut answer = Message::response(asked.id, OpCode::Query);
    answer.metadata.recursion_desired = asked.recursion_desired;
    answer.metadata.recursion_available = true;
    answer.metadata.response_code = code;
    answer.add_query(asked.query.clone());
    for address in addresses {
        if let IpAddr::V4(address) = address {
            let data = RData::A(rdata::A(*address));
            answer.add_answer(Record::from_rdata(asked.query.name.clone(), ttl, data));
        }
    }
    answer.to_vec().ok()
}

/// The question for addresses of `name` that a resolver of the host is asked under the number `id`.
fn question(id: u16, name: &Name) -> Option<Vec<u8>> {
    let mut domain = Domain::from_labels(name.as_str().split('.').map(str::as_bytes)).ok()?;
    domain.set_fqdn(true);
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(domain, RecordType::A));
    message.to_vec().ok()
}

#[cfg(test)]
mod tests;
