//! The gate: the rules, the book of names and the resolver, asked as one.
//!
//! The engine decides nothing of what may be reached; it asks here, and counts what is refused under the name that it is given.

use std::{
    net::{IpAddr, SocketAddrV4},
    time::Instant,
};

use crate::{
    dns::{Action, Court, Resolver, Transport},
    names::{Book, Verdict},
    policy::{Destination, Policy, Protocol, Refusal, Refusals, Rules},
    tls::{self, Scanner},
};

/// What may be reached.
#[derive(Debug)]
pub struct Gate {
    rules: Rules,
    book: Book,
    resolver: Resolver,
}

/// How far the ClientHello of a flow is read.
#[derive(Debug, Default)]
pub(crate) struct Scan {
    scanner: Scanner,
    /// Bytes that the scanner was given.
    given: usize,
}

/// What a flow's first bytes say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hello {
    NeedMore,
    Permitted,
    Refused(Refusal),
}

impl Gate {
    /// A gate for these rules. From `seed` is made what an answer has to repeat and nobody foresees.
    #[must_use]
    pub fn new(rules: Rules, seed: u64, now: Instant) -> Self {
        Self { rules, book: Book::default(), resolver: Resolver::new(seed, now) }
    }

    /// What is done with a flow that goes `to` there.
    pub(crate) fn permits(&self, to: SocketAddrV4, protocol: Protocol, now: Instant) -> Verdict {
        let destination = Destination { address: IpAddr::V4(*to.ip()), port: to.port(), protocol };
        self.book.permits(&self.rules, destination, now)
    }

    /// Whether the guest may ask for names at all.
    pub(crate) fn may_ask(&self) -> Verdict {
        match self.rules.policy {
            Policy::Denied => Verdict::Refuse(Refusal::NetworkDenied),
            Policy::InboundOnly => Verdict::Refuse(Refusal::InboundOnly),
            Policy::AllowList(_) | Policy::Open => Verdict::Allow,
        }
    }

    /// Whether a flow to `address` may go on, which has sent `received` from its first byte on.
    pub(crate) fn hello(&self, scan: &mut Scan, address: IpAddr, received: &[u8], now: Instant) -> Hello {
        let new = received.get(scan.given..).unwrap_or_default();
        scan.given = received.len();
        match scan.scanner.push(new) {
            tls::Scan::NeedMore => Hello::NeedMore,
            tls::Scan::Refused(refusal) => Hello::Refused(refusal),
            tls::Scan::Hello(hello) => match self.book.judge_hello(&self.rules, address, &hello, now) {
                Ok(()) => Hello::Permitted,
                Err(refusal) => Hello::Refused(refusal),
            },
        }
    }

    /// What becomes of a question of the guest.
    pub(crate) fn query(
        &mut self,
        message: &[u8],
        transport: Transport,
        refusals: &mut Refusals,
        now: Instant,
    ) -> Action {
        let court = Court { rules: &self.rules, book: &mut self.book, refusals, now };
        self.resolver.query(message, transport, court)
    }

    /// What the guest is told after a resolver has answered. `None`: it has not answered this.
    pub(crate) fn upstream(
        &mut self,
        key: u64,
        answer: &[u8],
        refusals: &mut Refusals,
        now: Instant,
    ) -> Option<Vec<u8>> {
        let court = Court { rules: &self.rules, book: &mut self.book, refusals, now };
        self.resolver.upstream(key, answer, court)
    }

    /// What the guest is told of a question that nobody answers.
    pub(crate) fn give_up(&mut self, key: u64) -> Option<Vec<u8>> {
        self.resolver.give_up(key)
    }
}
