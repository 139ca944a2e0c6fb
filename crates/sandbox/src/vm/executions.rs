//! Executions, as callers use them: asked for, signalled, called off, and waited for.
//!
//! Here is the caller's half: it runs in the caller's own future, hands output on at the caller's pace, and makes an outcome of what
//! the supervisor says.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::{
    sync::{MutexGuard, mpsc},
    time::Instant,
};

use super::{
    Executed, QemuVm, Ran, Request, Traffic,
    inbox::{self, Next, Piece, StreamName},
};
use crate::{
    Error, ErrorKind, ExecRequest, Outcome, Output,
    outcome::{Timing, Usage},
    process::{ChildUsage, ProcessUsage},
    request::ValidExec,
};

/// An execution that has been asked for: see [`QemuVm::begin`]. Dropped before its outcome, nothing of it has run or will.
#[derive(Debug)]
pub struct Execution<'a> {
    vm: &'a QemuVm,
    ticket: u64,
    request: ValidExec,
    called: Instant,
    _turn: MutexGuard<'a, ()>,
}

/// A way to an execution while another task waits for its outcome.
#[derive(Clone, Debug)]
pub struct Control {
    ticket: u64,
    mailbox: mpsc::Sender<Request>,
}

/// What a caller may want of an execution that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    Signal(u32),
    Cancel,
}

impl QemuVm {
    /// Runs one program. What the interpreter holds is kept from execution to execution. Dropping the future ends the VM, once
    /// the program's turn has come.
    ///
    /// The outcome's timing has no phases of a boot, and the usage of QEMU is that of this execution, but for the peak of memory,
    /// which is the highest since the VM was started.
    ///
    /// # Errors
    /// The sandbox failed, not the program: see [`ErrorKind`]. An invalid request leaves the VM as it was.
    pub async fn execute(&self, request: ExecRequest) -> Result<Outcome, Error> {
        self.begin(request).await?.outcome(None).await
    }

    /// Like [`execute`](Self::execute), and sends what the program writes as it arrives. A slow receiver slows the program down;
    /// one that is dropped does not stop it.
    ///
    /// # Errors
    /// As for [`execute`](Self::execute).
    pub async fn execute_streaming(
        &self,
        request: ExecRequest,
        output: mpsc::Sender<Output>,
    ) -> Result<Outcome, Error> {
        self.begin(request).await?.outcome(Some(output)).await
    }

    /// Begins an execution that can be signalled and called off while it runs: waits for its turn behind those that were asked for
    /// before. Nothing of it runs before its outcome is waited for.
    ///
    /// # Errors
    /// The request is invalid.
    pub async fn begin(&self, request: ExecRequest) -> Result<Execution<'_>, Error> {
        let called = Instant::now();
        let request = request.validate(self.language, &self.config)?;
        let turn = self.turn.lock().await;
        let ticket = self.tickets.fetch_add(1, Ordering::Relaxed);
        Ok(Execution { vm: self, ticket, request, called, _turn: turn })
    }

    /// Runs a program that has been checked.
    pub(crate) async fn run(
        &self,
        request: ValidExec,
        output: Option<mpsc::Sender<Output>>,
    ) -> Result<Executed, Error> {
        let _turn = self.turn.lock().await;
        self.run_in_turn(self.tickets.fetch_add(1, Ordering::Relaxed), request, output).await
    }

    async fn run_in_turn(
        &self,
        ticket: u64,
        request: ValidExec,
        mut output: Option<mpsc::Sender<Output>>,
    ) -> Result<Executed, Error> {
        let (outlet, mut inbox) = inbox::pair(Arc::clone(&self.attention));
        self.ask(Request::Execute { ticket, request: Box::new(request), outlet }).await?;
        loop {
            match inbox.next().await {
                Next::Piece(piece) => {
                    // A caller who stops listening does not stop the program.
                    if let (Some(listener), Some(piece)) = (&output, output_of(piece))
                        && listener.send(piece).await.is_err()
                    {
                        output = None;
                    }
                }
                Next::End(finale) => return finale,
                // The owner answers every request, so this one has panicked, and nobody knows how far it had come.
                Next::Gone => {
                    let doing = "waiting for the program's end; it may have run";
                    return Err(Error::new(ErrorKind::OutcomeUnknown, doing).on_vm(&self.id));
                }
            }
        }
    }
}

impl Execution<'_> {
    /// A way to it while its outcome is waited for.
    #[must_use]
    pub fn control(&self) -> Control {
        Control { ticket: self.ticket, mailbox: self.vm.mailbox.clone() }
    }

    /// Runs the program, sends what it writes to `output` if there is one, and waits for its end. Dropping the future ends the VM.
    ///
    /// # Errors
    /// As for [`QemuVm::execute`].
    pub async fn outcome(self, output: Option<mpsc::Sender<Output>>) -> Result<Outcome, Error> {
        let Self { vm, ticket, request, called, _turn } = self;
        let before = vm.process.usage().ok();
        let executed = vm.run_in_turn(ticket, request, output).await?;
        let traffic = vm.traffic().await;
        let after = vm.process.usage().ok();
        let cpu = |usage: Option<ProcessUsage>| usage.map(|usage| usage.cpu);
        let used = Used {
            qemu_cpu: cpu(after).zip(cpu(before)).map(|(after, before)| after.saturating_sub(before)),
            qemu_memory_peak_bytes: after.map(|after| after.resident_peak_bytes),
        };
        let timing = Timing {
            admission: executed.admission,
            execute: executed.finished - executed.dispatched,
            total: called.elapsed(),
            first_output: executed.first_output.map(|at| at - called),
            ..Timing::default()
        };
        executed.ran.into_outcome(vm, timing, used, traffic)
    }
}

/// Of an execution that is over, or has not begun, only the calling off of what waits has an effect.
impl Control {
    /// Sends a signal to the program's process group: Linux's number, 1 to 64. The outcome tells what came of it.
    pub async fn signal(&self, number: u8) {
        self.wish(Wish::Signal(number.into())).await;
    }

    /// Calls the program off: SIGTERM, half a second of grace, SIGKILL. Its outcome is [`Exit::Cancelled`](crate::Exit::Cancelled),
    /// unless it had ended before or ends by itself.
    pub async fn cancel(&self) {
        self.wish(Wish::Cancel).await;
    }

    async fn wish(&self, wish: Wish) {
        // A VM that is gone has no use for it.
        let _ = self.mailbox.send(Request::Interfere { ticket: self.ticket, wish }).await;
    }
}

/// What a program wrote, for whoever listens.
fn output_of(piece: Piece) -> Option<Output> {
    match piece {
        Piece::Bytes(StreamName::Stdout, bytes) => Some(Output::Stdout(bytes.freeze())),
        Piece::Bytes(StreamName::Stderr, bytes) => Some(Output::Stderr(bytes.freeze())),
        Piece::Bytes(StreamName::Data, _) | Piece::Entries(..) => None,
    }
}

/// What QEMU used for an execution.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Used {
    pub(crate) qemu_cpu: Option<Duration>,
    pub(crate) qemu_memory_peak_bytes: Option<u64>,
}

impl From<Option<ChildUsage>> for Used {
    fn from(used: Option<ChildUsage>) -> Self {
        Self { qemu_cpu: used.map(|used| used.cpu), qemu_memory_peak_bytes: used.map(|used| used.max_resident_bytes) }
    }
}

impl Ran {
    /// The outcome, unless the program wrote too much.
    pub(crate) fn into_outcome(
        self,
        vm: &QemuVm,
        timing: Timing,
        used: Used,
        traffic: Option<Traffic>,
    ) -> Result<Outcome, Error> {
        let vm_id = vm.vm_id();
        if let Some(stream) = self.over_limit {
            let message = format!("running a program: it wrote more to {stream} than is kept");
            return Err(Error::new(ErrorKind::OutputLimit, message).on_vm(vm_id).remedied_by(
                "write less: 1,000,000 bytes of stdout and 100,000 of stderr are kept; what came before was streamed",
            ));
        }
        let usage = Usage {
            interpreter_start: self.usage.map(|usage| Duration::from_micros(usage.spawn_us)),
            process: self.usage.map(|usage| Duration::from_micros(usage.run_us)),
            guest_cpu: self.usage.and_then(|usage| usage.cpu_us).map(Duration::from_micros),
            guest_memory_peak_bytes: self.usage.and_then(|usage| usage.memory_peak_bytes),
            qemu_cpu: used.qemu_cpu,
            qemu_memory_peak_bytes: used.qemu_memory_peak_bytes,
        };
        let (network, refusals) = traffic.map(|traffic| (traffic.usage, traffic.refusals)).unzip();
        Ok(Outcome {
            exit: self.exit,
            stdout: self.stdout,
            stderr: self.stderr,
            timing,
            usage,
            network,
            refusals: refusals.unwrap_or_default(),
            exposed_ports: vm.exposed_ports().to_vec(),
            vm_id: vm_id.to_owned(),
        })
    }
}
