//! What is printed as JSON. The names are a contract; what was not measured is null.

use std::{borrow::Cow, collections::BTreeMap, net::IpAddr, time::Duration};

use exec_sandbox::{Exit, ExposedPort, Language, NetworkUsage, Outcome, Timing, Usage};
use serde::Serialize;

use crate::failure::Explanation;

/// One execution.
#[derive(Debug, Serialize)]
pub(crate) struct Ran<'a> {
    source: &'a str,
    language: Language,
    /// -1 when the program's time was up.
    exit_code: i32,
    /// How it ended: `exited`, `signalled`, `timed_out`, `out_of_memory` or `cancelled`.
    end: &'static str,
    stdout: Cow<'a, str>,
    stderr: Cow<'a, str>,
    timing: TimingMs,
    usage: UsageFigures,
    /// Null: the VM has no network.
    network: Option<NetworkFigures>,
    exposed_ports: Vec<PortEntry>,
    vm_id: &'a str,
    accelerator: &'a str,
    /// Downloads that failed after it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) download_errors: Vec<Explanation>,
}

/// Something that failed, and to which source it happened if it did not happen to all.
#[derive(Debug, Serialize)]
pub(crate) struct Failed<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) source: Option<&'a str>,
    pub(crate) error: Explanation,
}

/// [`Timing`] in milliseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct TimingMs {
    origin: &'static str,
    /// Null: the VM has no packages.
    packages_ms: Option<f64>,
    admission_ms: f64,
    prepare_ms: f64,
    gateway_start_ms: Option<f64>,
    spawn_ms: f64,
    guest_wait_ms: f64,
    snapshot_ms: Option<f64>,
    execute_ms: f64,
    teardown_ms: f64,
    total_ms: f64,
    first_output_ms: Option<f64>,
}

/// [`NetworkUsage`], and what was refused by name.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct NetworkFigures {
    sent_bytes: u64,
    received_bytes: u64,
    connections: u64,
    accepted: u64,
    unreachable: u64,
    timed_out: u64,
    questions: u64,
    malformed: u64,
    up: bool,
    current: bool,
    refusals: BTreeMap<String, u64>,
}

/// [`ExposedPort`].
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct PortEntry {
    internal: u16,
    external: u16,
    host: IpAddr,
    protocol: &'static str,
}

/// [`Usage`] in milliseconds and bytes.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct UsageFigures {
    interpreter_start_ms: Option<f64>,
    process_ms: Option<f64>,
    guest_cpu_ms: Option<f64>,
    guest_memory_peak_bytes: Option<u64>,
    qemu_cpu_ms: Option<f64>,
    qemu_memory_peak_bytes: Option<u64>,
}

impl<'a> Ran<'a> {
    pub(crate) fn new(source: &'a str, language: Language, outcome: &'a Outcome, accelerator: &'a str) -> Self {
        Self {
            source,
            language,
            exit_code: outcome.exit.code(),
            end: end_of(outcome.exit),
            stdout: String::from_utf8_lossy(&outcome.stdout),
            stderr: String::from_utf8_lossy(&outcome.stderr),
            timing: (&outcome.timing).into(),
            usage: (&outcome.usage).into(),
            network: outcome.network.map(|usage| network(usage, outcome.refusals.clone().into())),
            exposed_ports: outcome.exposed_ports.iter().map(port).collect(),
            vm_id: &outcome.vm_id,
            accelerator,
            download_errors: Vec::new(),
        }
    }
}

impl From<&Timing> for TimingMs {
    fn from(timing: &Timing) -> Self {
        Self {
            origin: timing.origin.name(),
            packages_ms: timing.packages.map(ms),
            admission_ms: ms(timing.admission),
            prepare_ms: ms(timing.prepare),
            gateway_start_ms: timing.gateway_start.map(ms),
            spawn_ms: ms(timing.spawn),
            guest_wait_ms: ms(timing.guest_wait),
            snapshot_ms: timing.snapshot.map(ms),
            execute_ms: ms(timing.execute),
            teardown_ms: ms(timing.teardown),
            total_ms: ms(timing.total),
            first_output_ms: timing.first_output.map(ms),
        }
    }
}

impl From<&Usage> for UsageFigures {
    fn from(usage: &Usage) -> Self {
        Self {
            interpreter_start_ms: usage.interpreter_start.map(ms),
            process_ms: usage.process.map(ms),
            guest_cpu_ms: usage.guest_cpu.map(ms),
            guest_memory_peak_bytes: usage.guest_memory_peak_bytes,
            qemu_cpu_ms: usage.qemu_cpu.map(ms),
            qemu_memory_peak_bytes: usage.qemu_memory_peak_bytes,
        }
    }
}

fn network(usage: NetworkUsage, refusals: BTreeMap<String, u64>) -> NetworkFigures {
    NetworkFigures {
        sent_bytes: usage.sent_bytes,
        received_bytes: usage.received_bytes,
        connections: usage.connections,
        accepted: usage.accepted,
        unreachable: usage.unreachable,
        timed_out: usage.timed_out,
        questions: usage.questions,
        malformed: usage.malformed,
        up: usage.is_up,
        current: usage.is_current,
        refusals,
    }
}

fn port(port: &ExposedPort) -> PortEntry {
    let ExposedPort { internal, external, host, protocol, .. } = *port;
    PortEntry { internal, external, host, protocol: protocol.name() }
}

/// Milliseconds with three decimals: no clock here is finer than a microsecond.
pub(crate) fn ms(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1_000_000.0).round() / 1000.0
}

fn end_of(exit: Exit) -> &'static str {
    match exit {
        Exit::Code(_) => "exited",
        Exit::Signal(_) => "signalled",
        Exit::TimedOut => "timed_out",
        Exit::OutOfMemory => "out_of_memory",
        Exit::Cancelled => "cancelled",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn milliseconds_have_three_decimals() {
        assert_eq!(ms(Duration::from_nanos(1_234_567)).to_string(), "1.235");
        assert_eq!(ms(Duration::from_secs(2)).to_string(), "2000");
    }

    #[test]
    fn what_was_not_measured_is_null() {
        let usage = serde_json::to_value(UsageFigures::from(&Usage::default())).expect("it is JSON");
        assert!(usage.as_object().expect("it is an object").values().all(serde_json::Value::is_null), "{usage}");
        let timing = serde_json::to_value(TimingMs::from(&Timing::default())).expect("it is JSON");
        assert!(
            timing["first_output_ms"].is_null() && timing["packages_ms"].is_null() && timing["snapshot_ms"].is_null(),
            "{timing}"
        );
    }

    #[test]
    fn the_names_are_the_contract() {
        let ran = Ran {
            source: "a.py",
            language: Language::Python,
            exit_code: Exit::TimedOut.code(),
            end: end_of(Exit::TimedOut),
            stdout: String::from_utf8_lossy(b"caf\xc3\xa9 \xff"),
            stderr: "timeout".into(),
            timing: (&Timing::default()).into(),
            usage: (&Usage::default()).into(),
            network: Some(network(NetworkUsage::default(), BTreeMap::from([("name_not_allowed".to_owned(), 2)]))),
            exposed_ports: vec![PortEntry {
                internal: 80,
                external: 40_080,
                host: [127, 0, 0, 1].into(),
                protocol: "tcp",
            }],
            vm_id: "vm-1",
            accelerator: "tcg",
            download_errors: Vec::new(),
        };
        insta::assert_snapshot!("ran", serde_json::to_string_pretty(&ran).expect("it is JSON"));
        let error =
            Explanation { kind: "vm".into(), message: "starting".into(), causes: vec!["gone".into()], remedy: None };
        let failed = Failed { source: Some("a.py"), error };
        insta::assert_snapshot!("failed", serde_json::to_string_pretty(&failed).expect("it is JSON"));
    }

    #[test]
    fn every_way_to_end_has_a_name_of_its_own() {
        let ends = [Exit::Code(1), Exit::Signal(9), Exit::TimedOut, Exit::OutOfMemory, Exit::Cancelled].map(end_of);
        assert_eq!(ends, ["exited", "signalled", "timed_out", "out_of_memory", "cancelled"]);
    }
}
