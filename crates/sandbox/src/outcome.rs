//! Outcomes: how a program ended, what it wrote, and what was measured of it.

use std::time::Duration;

use bytes::Bytes;
use exec_sandbox_gateway::policy::Refusals;
use serde::{Deserialize, Serialize};

use crate::ExposedPort;

/// How a program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Exit {
    /// It ended by itself with this code.
    Code(i32),
    /// A signal ended it that nobody here sent.
    Signal(u32),
    /// Its time was up.
    TimedOut,
    /// It used up the VM's memory.
    OutOfMemory,
    /// Its caller called it off.
    Cancelled,
}

impl Exit {
    /// The exit code of the public contract: the program's own, 128 + n for signal n, 137 for memory, -1 for time and for what was
    /// called off.
    #[must_use]
    pub fn code(self) -> i32 {
        match self {
            Self::Code(code) => code,
            Self::Signal(number) => 128_i32.saturating_add_unsigned(number),
            Self::OutOfMemory => 137,
            Self::TimedOut | Self::Cancelled => -1,
        }
    }
}

/// A finished execution. A program that fails is an outcome too. Serialised it is without the bytes that were written, which no text
/// carries well.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Outcome {
    /// How it ended.
    pub exit: Exit,
    /// All it wrote to standard output.
    #[serde(skip)]
    pub stdout: Bytes,
    /// All it wrote to standard error, and the line about a timeout if there was one.
    #[serde(skip)]
    pub stderr: Bytes,
    /// Where the time went.
    pub timing: Timing,
    /// What it used.
    pub usage: Usage,
    /// What went through the VM's network since the outcome before this one, or the VM's start. `None`: it has no network.
    pub network: Option<NetworkUsage>,
    /// What that network refused in the same time, by name.
    pub refusals: Refusals,
    /// The VM's ports that are reached from the host.
    pub exposed_ports: Vec<ExposedPort>,
    /// The VM it ran in.
    pub vm_id: String,
}

/// What went through a VM's network, as its gateway counts it. What programs do between two executions counts for the second one, so
/// that the figures of all outcomes add up to those of the VM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct NetworkUsage {
    /// Bytes that the guest's programs sent, in TCP and UDP.
    pub sent_bytes: u64,
    /// Bytes that they were sent.
    pub received_bytes: u64,
    /// Connections that were made out of the guest.
    pub connections: u64,
    /// Connections that were made to exposed ports.
    pub accepted: u64,
    /// Connections and datagrams that were permitted and reached nobody.
    pub unreachable: u64,
    /// Connections that were given up because nothing happened.
    pub timed_out: u64,
    /// Questions for names.
    pub questions: u64,
    /// Frames of the guest that were none. An honest guest sends none of these.
    pub malformed: u64,
    /// Whether the network is still there. One whose gateway has ended is gone, and its VM goes on.
    pub is_up: bool,
    /// Whether the figures are those of the outcome's time. If not, the gateway has not answered within 100 ms, and they are what it
    /// had told by itself.
    pub is_current: bool,
}

/// Where a VM's guest came from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Origin {
    /// It was booted.
    #[default]
    Cold,
    /// It is a copy of a guest that had been booted, warmed and saved.
    Snapshot,
    /// It is such a copy, in a QEMU that had been started before.
    Blank,
    /// It was up, and had been exercised, before it was asked for.
    Ready,
}

impl Origin {
    /// Its name in JSON and in Python.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Cold => "cold",
            Self::Snapshot => "snapshot",
            Self::Blank => "blank",
            Self::Ready => "ready",
        }
    }
}

/// Where the time went. The phases do not overlap; what did not take place is `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Timing {
    /// Where the VM's guest came from.
    pub origin: Origin,
    /// Waiting for memory and CPU.
    pub admission: Duration,
    /// Before that: finding or installing the packages of the VM. `None`: it has none.
    #[serde(default)]
    pub packages: Option<Duration>,
    /// From there to a VM that can be started: image found and verified, run directory and sockets made. Of one that was ready, its answer.
    pub prepare: Duration,
    /// Starting the gateway's process, until it has been executed. `None`: the VM has no network.
    pub gateway_start: Option<Duration>,
    /// Starting QEMU's process, until it has been executed.
    pub spawn: Duration,
    /// From there to the agent's first answer.
    pub guest_wait: Duration,
    /// Warming the guest and saving it for those that come later. `None`: that was not done.
    pub snapshot: Option<Duration>,
    /// From sending the program to its end.
    pub execute: Duration,
    /// From there to QEMU confirmed dead and its files gone.
    pub teardown: Duration,
    /// From the call to its return.
    pub total: Duration,
    /// From the call to the first byte that the program wrote, if it wrote any.
    pub first_output: Option<Duration>,
}

impl Timing {
    /// Spawn to the agent's first answer.
    #[must_use]
    pub fn boot(&self) -> Duration {
        self.spawn + self.guest_wait
    }
}

/// What an execution used. The guest's own figures are information, not proof.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Usage {
    /// Guest: from the request to an interpreter that is ready.
    pub interpreter_start: Option<Duration>,
    /// Guest: from handing over the program to its end.
    pub process: Option<Duration>,
    /// Guest: CPU time of the user's processes.
    pub guest_cpu: Option<Duration>,
    /// Guest: the most memory that the user's processes held, in bytes.
    pub guest_memory_peak_bytes: Option<u64>,
    /// Host: CPU time of QEMU's process over its whole life.
    pub qemu_cpu: Option<Duration>,
    /// Host: the most resident memory of QEMU's process, in bytes.
    pub qemu_memory_peak_bytes: Option<u64>,
}

/// A piece of what a VM writes, as it arrives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// The program's standard output.
    Stdout(Bytes),
    /// The program's standard error.
    Stderr(Bytes),
    /// The guest's console, if the request asked for it.
    BootLog(Bytes),
    /// What an installer of packages says, for people who wait for it.
    Progress(Bytes),
}
