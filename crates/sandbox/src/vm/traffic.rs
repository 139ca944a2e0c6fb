//! The network of a VM as its callers see it: its process, its ports, and what went through it from one look to the next.

use std::{
    io,
    sync::{Mutex, PoisonError},
};

use std::collections::BTreeMap;

use exec_sandbox_gateway::{policy::Refusals, report::Report};

use super::gateway::{Gateway, Listener};
use crate::{ExposedPort, NetworkUsage, Process};

/// See the head of this file.
#[derive(Debug)]
pub(super) struct Network {
    process: Process,
    ports: Vec<ExposedPort>,
    listener: Listener,
    /// What callers have been told.
    told: Mutex<Report>,
}

/// What went through a network in some time.
#[derive(Clone, Debug)]
pub(crate) struct Traffic {
    pub(crate) usage: NetworkUsage,
    pub(crate) refusals: Refusals,
}

impl Network {
    pub(super) fn of(gateway: &Gateway, ports: Vec<ExposedPort>) -> io::Result<Self> {
        let (process, listener) = (gateway.process()?, gateway.listener());
        Ok(Self { process, ports, listener, told: Mutex::default() })
    }

    /// The gateway's process.
    pub(super) fn process(&self) -> &Process {
        &self.process
    }

    pub(super) fn ports(&self) -> &[ExposedPort] {
        &self.ports
    }

    /// What went through it since the last look. It takes as long as a gateway may take to answer.
    pub(super) async fn since_last(&self) -> Traffic {
        let is_up = self.process.is_alive();
        let (report, is_current) = self.listener.ask().await;
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let traffic = between(&told, &report);
        *told = report;
        Traffic { usage: NetworkUsage { is_up, is_current, ..traffic.usage }, refusals: traffic.refusals }
    }
}

/// What was counted between two reports. A gateway whose counts shrink has counted nothing.
fn between(before: &Report, after: &Report) -> Traffic {
    let more = |count: fn(&Report) -> u64| count(after).saturating_sub(count(before));
    let usage = NetworkUsage {
        sent_bytes: more(|report| report.bytes_from_guest),
        received_bytes: more(|report| report.bytes_to_guest),
        connections: more(|report| report.connections),
        accepted: more(|report| report.accepted),
        unreachable: more(|report| report.unreachable),
        timed_out: more(|report| report.timed_out),
        questions: more(|report| report.questions),
        malformed: more(|report| report.malformed.values().fold(0, |sum, count| sum.saturating_add(*count))),
        ..NetworkUsage::default()
    };
    let earlier: BTreeMap<&str, u64> = before.refusals.iter().collect();
    let refused = after
        .refusals
        .iter()
        .map(|(name, count)| (name.to_owned(), count.saturating_sub(earlier.get(name).copied().unwrap_or_default())));
    Traffic { usage, refusals: Refusals::from(refused.collect::<BTreeMap<_, _>>()) }
}

#[cfg(test)]
mod tests {
    use exec_sandbox_gateway::policy::Refusal;

    use super::*;

    #[test]
    fn what_is_told_is_what_was_counted_since_it_was_told_last() {
        let mut before = Report { bytes_from_guest: 10, questions: 3, ..Report::default() };
        before.refusals.count(Refusal::NameNotAllowed);
        before.malformed.insert("truncated".into(), 1);
        let mut after = Report { bytes_from_guest: 25, connections: 1, ..before.clone() };
        for why in [Refusal::NameNotAllowed, Refusal::NameNotAllowed, Refusal::MetadataAddress] {
            after.refusals.count(why);
        }
        after.malformed.insert("bad_arp".into(), 4);
        let traffic = between(&before, &after);
        let expected = NetworkUsage { sent_bytes: 15, connections: 1, malformed: 4, ..NetworkUsage::default() };
        assert_eq!(traffic.usage, expected);
        let met: Vec<_> = traffic.refusals.iter().filter(|(_, count)| *count > 0).collect();
        assert_eq!(met, [("metadata_address", 1), ("name_not_allowed", 2)]);
    }

    #[test]
    fn a_gateway_that_counts_backwards_and_one_that_counts_to_the_end_break_nothing() {
        let full = Report {
            bytes_to_guest: u64::MAX,
            malformed: [("truncated".to_owned(), u64::MAX), ("bad_arp".to_owned(), u64::MAX)].into(),
            ..Report::default()
        };
        let traffic = between(&Report::default(), &full);
        assert_eq!((traffic.usage.received_bytes, traffic.usage.malformed), (u64::MAX, u64::MAX));
        assert_eq!(between(&full, &Report::default()).usage, NetworkUsage::default());
    }
}
