//! Gates and rules for tests.

use std::time::Instant;

use exec_sandbox_gateway::{
    engine::Gate,
    policy::{Exceptions, Policy, Rules},
};

pub(crate) fn open() -> Gate {
    Gate::new(rules(Policy::Open, &[]), 1, Instant::now())
}

pub(crate) fn inbound_only() -> Gate {
    Gate::new(rules(Policy::InboundOnly, &[]), 1, Instant::now())
}

pub(crate) fn rules(policy: Policy, excepted: &[&str]) -> Rules {
    let ranges = excepted.iter().map(|range| range.parse().expect("it is a range"));
    Rules { policy, exceptions: Exceptions::new(ranges).expect("they are few") }
}
