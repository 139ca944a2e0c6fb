//! The book of names: which address DNS gave for which name, and until when that counts.
//!
//! Under an allow-list an address may be reached only by a name that DNS resolved to it: the answer pins it, the ClientHello has to say
//! the name. A connection that was permitted stays so when its pin is gone; the book is asked when it begins.
//!
//! The book is bounded. A guest that asks for more than fits loses the pins that are longest untouched, and has to ask again.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use crate::{
    policy::{Destination, Name, Policy, Protocol, Refusal, Rules},
    tls::Hello,
};

/// Shortest and longest life of an answer, in seconds. Names of clouds live some seconds, and a guest on a busy host may need longer
/// from an answer to its first packet; behind an hour, what was moved is found again without a new VM.
pub const ANSWER_TTL_SECONDS: std::ops::RangeInclusive<u32> = 30..=3600;

/// How long a pin outlives its answer. Clients keep addresses by a clock of their own: browsers, curl and JVMs for half a minute to
/// one, pools of connections a little longer. Five minutes cover them, and are short beside the time after which an address is
/// given to somebody else.
pub const PIN_GRACE: Duration = Duration::from_secs(300);

/// Most addresses in the book: a thousand hosts within five minutes are a crawler, which may ask again.
pub const MAX_ADDRESSES: usize = 1024;

/// Most names of an address. A front of a delivery network has many names; a guest speaks with a few of them.
pub const MAX_NAMES_PER_ADDRESS: usize = 32;

/// What is done with a connection or datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is carried.
    Allow,
    /// It is carried if its ClientHello says a name that [`Book::judge_hello`] permits.
    InspectTls,
    /// It is not carried.
    Refuse(Refusal),
}

/// The pins.
#[derive(Debug, Default)]
pub struct Book {
    addresses: BTreeMap<IpAddr, Vec<Pin>>,
    /// Pins that were ever made: the number of the next one.
    serial: u64,
}

/// An address was given for a name.
#[derive(Debug)]
struct Pin {
    name: Name,
    until: Instant,
    /// Of two pins, the one with the smaller number is longer untouched.
    serial: u64,
}

impl Book {
    /// Notes that DNS gave `address` for `name`, for `ttl_seconds`. A pin that is there lives on, and never shorter than before.
    pub fn pin(&mut self, name: &Name, address: IpAddr, ttl_seconds: u32, now: Instant) {
        let until = now + Duration::from_secs(clamp_ttl(ttl_seconds).into()) + PIN_GRACE;
        let serial = self.serial;
        self.serial += 1;
        if !self.addresses.contains_key(&address) {
            self.make_room(now);
        }
        let pins = self.addresses.entry(address).or_default();
        if let Some(pin) = pins.iter_mut().find(|pin| pin.name == *name) {
            pin.until = pin.until.max(until);
            pin.serial = serial;
            return;
        }
        pins.retain(|pin| pin.until > now);
        if pins.len() >= MAX_NAMES_PER_ADDRESS {
            let oldest = pins.iter().enumerate().min_by_key(|(_, pin)| pin.serial).map(|(at, _)| at);
            oldest.map(|at| pins.swap_remove(at));
        }
        pins.push(Pin { name: name.clone(), until, serial });
    }

    /// What is done with something that goes `to` there.
    #[must_use]
    pub fn permits(&self, rules: &Rules, to: Destination, now: Instant) -> Verdict {
        match (rules.judge_destination(to), &rules.policy) {
            (Err(why), _) => Verdict::Refuse(why),
            (Ok(()), Policy::AllowList(_)) if to.protocol == Protocol::Tcp => {
                let is_pinned = self.names_of(to.address, now).any(|name| rules.judge_name(name).is_ok());
                if is_pinned { Verdict::InspectTls } else { Verdict::Refuse(Refusal::AddressNotResolved) }
            }
            (Ok(()), Policy::AllowList(_)) => Verdict::Refuse(Refusal::UdpNotAllowed),
            (Ok(()), _) => Verdict::Allow,
        }
    }

    /// Whether a connection to `address` may go on after its ClientHello. Only an allow-list asks for more than the address.
    ///
    /// The name outside an encrypted ClientHello is the one that counts: every current client sends something that looks like one,
    /// so its presence says nothing.
    ///
    /// # Errors
    /// The refusal.
    pub fn judge_hello(&self, rules: &Rules, address: IpAddr, hello: &Hello, now: Instant) -> Result<(), Refusal> {
        rules.judge_address(address)?;
        let name = match (&rules.policy, &hello.server_name) {
            (Policy::Denied, _) => return Err(Refusal::NetworkDenied),
            (Policy::InboundOnly, _) => return Err(Refusal::InboundOnly),
            (Policy::Open, _) => return Ok(()),
            (Policy::AllowList(_), None) => return Err(Refusal::NoName),
            (Policy::AllowList(_), Some(name)) => name,
        };
        rules.judge_name(name)?;
        let is_pinned = self.names_of(address, now).any(|pinned| pinned == name);
        if is_pinned { Ok(()) } else { Err(Refusal::NameAddressMismatch) }
    }

    /// The names for which DNS gave `address`.
    pub fn names_of(&self, address: IpAddr, now: Instant) -> impl Iterator<Item = &Name> {
        let pins = self.addresses.get(&address).into_iter().flatten();
        pins.filter(move |pin| pin.until > now).map(|pin| &pin.name)
    }

    /// Every address in the book, the expired ones too.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.addresses.keys().copied()
    }

    /// Makes room for another address: what has expired goes, or else what is longest untouched.
    fn make_room(&mut self, now: Instant) {
        if self.addresses.len() < MAX_ADDRESSES {
            return;
        }
        self.addresses.retain(|_, pins| pins.iter().any(|pin| pin.until > now));
        if self.addresses.len() < MAX_ADDRESSES {
            return;
        }
        let touched = |pins: &[Pin]| pins.iter().map(|pin| pin.serial).max();
        let oldest = self.addresses.iter().min_by_key(|(_, pins)| touched(pins)).map(|(address, _)| *address);
        oldest.map(|address| self.addresses.remove(&address));
    }
}

/// How long an answer that says `ttl_seconds` counts.
#[must_use]
pub fn clamp_ttl(ttl_seconds: u32) -> u32 {
    ttl_seconds.clamp(*ANSWER_TTL_SECONDS.start(), *ANSWER_TTL_SECONDS.end())
}

#[cfg(test)]
mod tests;
