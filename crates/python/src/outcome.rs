//! An outcome, as Python reads it: a dictionary of numbers and bytes. Times are in seconds; what was not measured is `None`.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use exec_sandbox::{BootTiming, Exit, ExposedPort};
use pyo3::{prelude::*, types::PyBytes};

/// A finished execution.
#[derive(IntoPyObject)]
pub(crate) struct Outcome {
    exit_code: i32,
    ending: &'static str,
    stdout: Raw,
    stderr: Raw,
    vm_id: String,
    origin: &'static str,
    admission: f64,
    packages: Option<f64>,
    prepare: f64,
    spawn: f64,
    guest_wait: f64,
    execute: f64,
    teardown: f64,
    total: f64,
    interpreter_start: Option<f64>,
    process: Option<f64>,
    qemu_cpu: Option<f64>,
    qemu_memory_peak_bytes: Option<u64>,
    gateway_start: Option<f64>,
    refusals: BTreeMap<String, u64>,
    exposed_ports: Vec<Port>,
}

/// A port of a guest, and that of the host by which it is reached, with the host's address and the protocol.
pub(crate) type Port = (u16, u16, String, &'static str);

/// How a VM came up.
#[derive(IntoPyObject)]
pub(crate) struct Boot {
    origin: &'static str,
    admission: f64,
    prepare: f64,
    spawn: f64,
    guest_wait: f64,
    gateway_start: Option<f64>,
}

/// Bytes that Python gets as `bytes`.
pub(crate) struct Raw(pub(crate) Bytes);

impl From<exec_sandbox::Outcome> for Outcome {
    fn from(outcome: exec_sandbox::Outcome) -> Self {
        let (timing, usage) = (outcome.timing, outcome.usage);
        let seconds = |time: Option<Duration>| time.as_ref().map(Duration::as_secs_f64);
        Self {
            exit_code: outcome.exit.code(),
            ending: ending(outcome.exit),
            stdout: Raw(outcome.stdout),
            stderr: Raw(outcome.stderr),
            vm_id: outcome.vm_id,
            origin: timing.origin.name(),
            admission: timing.admission.as_secs_f64(),
            packages: seconds(timing.packages),
            prepare: timing.prepare.as_secs_f64(),
            spawn: timing.spawn.as_secs_f64(),
            guest_wait: timing.guest_wait.as_secs_f64(),
            execute: timing.execute.as_secs_f64(),
            teardown: timing.teardown.as_secs_f64(),
            total: timing.total.as_secs_f64(),
            interpreter_start: seconds(usage.interpreter_start),
            process: seconds(usage.process),
            qemu_cpu: seconds(usage.qemu_cpu),
            qemu_memory_peak_bytes: usage.qemu_memory_peak_bytes,
            gateway_start: seconds(timing.gateway_start),
            refusals: outcome.refusals.into(),
            exposed_ports: outcome.exposed_ports.iter().map(port).collect(),
        }
    }
}

impl From<BootTiming> for Boot {
    fn from(timing: BootTiming) -> Self {
        Self {
            origin: timing.origin.name(),
            admission: timing.admission.as_secs_f64(),
            prepare: timing.prepare.as_secs_f64(),
            spawn: timing.spawn.as_secs_f64(),
            guest_wait: timing.guest_wait.as_secs_f64(),
            gateway_start: timing.gateway_start.as_ref().map(Duration::as_secs_f64),
        }
    }
}

/// A port, as Python reads it.
pub(crate) fn port(port: &ExposedPort) -> Port {
    (port.internal, port.external, port.host.to_string(), port.protocol.name())
}

fn ending(exit: Exit) -> &'static str {
    match exit {
        Exit::Code(_) => "code",
        Exit::Signal(_) => "signal",
        Exit::TimedOut => "timed_out",
        Exit::OutOfMemory => "out_of_memory",
        Exit::Cancelled => "cancelled",
    }
}

impl<'py> IntoPyObject<'py> for Raw {
    type Target = PyBytes;
    type Output = Bound<'py, PyBytes>;
    type Error = std::convert::Infallible;

    fn into_pyobject(self, py: Python<'py>) -> Result<Self::Output, Self::Error> {
        Ok(PyBytes::new(py, &self.0))
    }
}
