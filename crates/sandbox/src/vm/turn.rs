//! Whose turn it is in a VM: nobody's, an execution's that waits for CPU or for the agent, or one's that runs.
//!
//! Knows the caller's end of an execution and its state, and neither a channel nor a process. An execution that is dropped here
//! without an end has always been answered: see [`Turn::bury`].

use std::{future, mem, pin::Pin};

use exec_sandbox_wire::{
    Frame, GuestMessage, HostMessage, ResumePoint, Signal,
    limits::{HOST_SLACK, INTERPRETER_START},
};
use tokio::time::Instant;

use super::{
    Executed, Wish,
    execution::{Execution, Finished, Ran, Violation},
    grave::Dying,
    inbox::Outlet,
    supervisor::{End, Finale, Lost},
};
use crate::{Error, ErrorKind, admission::Cpu, request::ValidExec};

type CpuWait = Pin<Box<dyn Future<Output = Result<Cpu, Error>> + Send>>;

/// See the head of this file.
#[derive(Debug)]
pub(super) enum Turn {
    Idle { since: Instant },
    Waiting(Waiting),
    Running(Box<Running>),
}

/// An execution of which nothing has left the host.
pub(super) struct Waiting {
    ticket: u64,
    request: Box<ValidExec>,
    outlet: Outlet<Finale>,
    asked: Instant,
    /// The wait for CPU, unless the VM has it.
    cpu: Option<CpuWait>,
}

/// An execution that the guest has been told of.
#[derive(Debug)]
pub(super) struct Running {
    ticket: u64,
    op: u32,
    execution: Execution,
    outlet: Outlet<Finale>,
    asked: Instant,
    dispatched: Instant,
    deadline: Instant,
    first_output: Option<Instant>,
}

impl Waiting {
    pub(super) fn new(
        ticket: u64,
        request: Box<ValidExec>,
        outlet: Outlet<Finale>,
        cpu: Option<impl Future<Output = Result<Cpu, Error>> + Send + 'static>,
    ) -> Self {
        Self { ticket, request, outlet, asked: Instant::now(), cpu: cpu.map(|cpu| Box::pin(cpu) as CpuWait) }
    }
}

impl std::fmt::Debug for Waiting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Waiting").field("language", &self.request.language).finish_non_exhaustive()
    }
}

impl Turn {
    pub(super) fn idle() -> Self {
        Self::Idle { since: Instant::now() }
    }

    /// Since when nothing executes or waits to.
    pub(super) fn idle_since(&self) -> Option<Instant> {
        match self {
            Self::Idle { since } => Some(*since),
            Self::Waiting(_) | Self::Running(_) => None,
        }
    }

    /// When the program that runs must have ended.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.running().map(|running| running.deadline)
    }

    /// The operation that runs.
    pub(super) fn op(&self) -> Option<u32> {
        self.running().map(|running| running.op)
    }

    /// Whether the caller of what runs, or waits to, is gone.
    pub(super) fn is_abandoned(&self) -> bool {
        match self {
            Self::Idle { .. } => false,
            Self::Waiting(waiting) => waiting.outlet.is_abandoned(),
            Self::Running(running) => running.outlet.is_abandoned(),
        }
    }

    /// Waits for the CPU that an execution waits for. Pends for ever if none does. May be dropped and called again.
    pub(super) async fn cpu(&mut self) -> Result<Cpu, Error> {
        let Self::Waiting(Waiting { cpu: wait @ Some(_), .. }) = self else { return future::pending().await };
        let cpu = match wait {
            Some(cpu) => cpu.await,
            None => future::pending().await,
        };
        *wait = None;
        cpu
    }

    /// The next execution. The handle lets one caller at a time come here.
    pub(super) fn wait(&mut self, waiting: Waiting) {
        *self = Self::Waiting(waiting);
    }

    /// Ends an execution of which nothing has left the host.
    pub(super) fn refuse(&mut self, refused: Error) {
        if let Self::Waiting(waiting) = mem::replace(self, Self::idle()) {
            waiting.outlet.end(Err(refused));
        }
    }

    /// The same, if there is one; what runs goes on.
    pub(super) fn refuse_waiting(&mut self, error: impl FnOnce() -> Error) {
        if matches!(self, Self::Waiting(_)) {
            self.refuse(error());
        }
    }

    /// Begins the execution that waits, as operation `op`: from here on it may have run. What is to be sent of it.
    pub(super) fn dispatch(&mut self, op: u32) -> Option<Vec<Frame>> {
        if !matches!(self, Self::Waiting(_)) {
            return None;
        }
        let Self::Waiting(Waiting { ticket, request, outlet, asked, .. }) = mem::replace(self, Self::idle()) else {
            return None;
        };
        let dispatched = Instant::now();
        let deadline = dispatched + INTERPRETER_START + request.timeout + HOST_SLACK;
        let (execution, frames) = Execution::start(op, &request, super::phases::unix_time_ns());
        let running = Running { ticket, op, execution, outlet, asked, dispatched, deadline, first_output: None };
        *self = Self::Running(Box::new(running));
        Some(frames)
    }

    /// What is to be said to the guest because the caller of the execution `ticket` wants a signal sent or the execution called off.
    /// One that has not begun ends here; one that is over is left alone.
    pub(super) fn interfere(&mut self, ticket: u64, wish: Wish) -> Option<Frame> {
        match self {
            Self::Running(running) if running.ticket == ticket => Some(match wish {
                Wish::Signal(number) => HostMessage::ExecSignal(Signal { number }).into_frame(running.op),
                Wish::Cancel => running.execution.call_off(),
            }),
            Self::Waiting(waiting) if waiting.ticket == ticket && wish == Wish::Cancel => {
                if let Self::Waiting(waiting) = mem::replace(self, Self::idle()) {
                    let now = Instant::now();
                    waiting.outlet.end(Ok(Executed {
                        ran: Ran::not_begun(),
                        admission: now - waiting.asked,
                        dispatched: now,
                        first_output: None,
                        finished: now,
                    }));
                }
                None
            }
            Self::Idle { .. } | Self::Waiting(_) | Self::Running(_) => None,
        }
    }

    /// Takes in what the guest says of the operation that runs. `true`: it is over, and its caller has been told how.
    pub(super) fn on_message(&mut self, message: GuestMessage, vm_id: &str) -> Result<bool, Violation> {
        let Self::Running(running) = self else { return Ok(false) };
        if let Some((stream, bytes)) = running.execution.on_message(message)? {
            running.first_output.get_or_insert_with(Instant::now);
            running.outlet.push(stream, &bytes);
        }
        if !running.execution.is_over() {
            return Ok(false);
        }
        if let Self::Running(running) = mem::replace(self, Self::idle()) {
            running.finish(vm_id);
        }
        Ok(true)
    }

    /// What the guest may send because the caller has taken output.
    pub(super) fn grant(&mut self) -> Option<Frame> {
        let Self::Running(running) = self else { return None };
        running.execution.on_taken(running.outlet.taken())
    }

    /// How far what runs has come, for a guest that is met again.
    pub(super) fn resume(&mut self) -> Vec<ResumePoint> {
        match self {
            Self::Running(running) => vec![running.execution.resume()],
            Self::Idle { .. } | Self::Waiting(_) => Vec::new(),
        }
    }

    /// What runs has at least until then.
    pub(super) fn extend(&mut self, until: Instant) {
        if let Self::Running(running) = self {
            running.deadline = running.deadline.max(until);
        }
    }

    /// Gives a program that should have ended by `now` the time for which its output lay untaken, because that delay is its
    /// caller's own. Whether it has time left. A guest that floods its caller at the last instant gains nothing.
    pub(super) fn forgive(&mut self, now: Instant) -> bool {
        let Self::Running(running) = self else { return false };
        running.deadline += running.outlet.delay();
        running.deadline > now
    }

    /// The VM ends because of `end`. Whose turn it was is told; who asked for the end is told when it is complete.
    pub(super) fn bury(self, end: End, vm_id: &str, gone: impl FnOnce() -> Error) -> Dying {
        match self {
            Self::Idle { .. } => {}
            // Nothing has left: whoever still listens may ask another VM.
            Self::Waiting(waiting) => waiting.outlet.end(Err(gone())),
            Self::Running(running) => {
                let unknown =
                    || Error::new(ErrorKind::OutcomeUnknown, "waiting for the program's end; it may have run");
                let (error, dying) = match end {
                    End::Lost(lost) => (unknown().because(lost), Dying::at_once()),
                    End::Asked(ending, reply) => {
                        (unknown().because("the VM is being destroyed"), Dying::asked(ending, reply))
                    }
                    End::Closing => {
                        let doing = "running a program: the scheduler has been closed";
                        (Error::new(ErrorKind::Closed, doing), Dying::at_once())
                    }
                    End::Abandoned | End::Idle => (unknown(), Dying::at_once()),
                };
                running.outlet.end(Err(error.on_vm(vm_id)));
                return dying;
            }
        }
        match end {
            End::Asked(ending, reply) => Dying::asked(ending, reply),
            End::Closing | End::Abandoned | End::Idle | End::Lost(_) => Dying::at_once(),
        }
    }

    fn running(&self) -> Option<&Running> {
        match self {
            Self::Running(running) => Some(running),
            Self::Idle { .. } | Self::Waiting(_) => None,
        }
    }
}

impl Running {
    fn finish(self, vm_id: &str) {
        let Self { execution, outlet, asked, dispatched, first_output, .. } = self;
        let finished = Instant::now();
        let finale = match execution.into_finished() {
            Some(Finished::Ran(ran)) => {
                Ok(Executed { ran, admission: dispatched - asked, dispatched, first_output, finished })
            }
            Some(Finished::Refused(detail)) => {
                Err(Error::new(ErrorKind::Guest, "starting the program in the guest").because(detail).on_vm(vm_id))
            }
            None => Err(Error::new(ErrorKind::OutcomeUnknown, "waiting for the program's end").because(Lost::Overdue)),
        };
        outlet.end(finale);
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use tokio::time::{advance, sleep_until};

    use super::*;
    use crate::{
        ExecRequest, Language, SchedulerConfig,
        vm::inbox::{self, Inbox},
    };

    fn running() -> (Turn, Inbox<Finale>) {
        let (outlet, inbox) = inbox::pair(Arc::default());
        let request = ExecRequest::new("true").validate(Language::Raw, &SchedulerConfig::default());
        let cpu = None::<future::Ready<Result<Cpu, Error>>>;
        let mut turn = Turn::idle();
        turn.wait(Waiting::new(0, Box::new(request.expect("it is valid")), outlet, cpu));
        turn.dispatch(1).expect("it waits");
        (turn, inbox)
    }

    fn write(turn: &mut Turn) {
        let is_over = turn.on_message(GuestMessage::Stdout("x".into()), "vm-1").expect("it is honest");
        assert!(!is_over);
    }

    #[tokio::test(start_paused = true)]
    async fn a_program_is_given_the_time_that_its_caller_has_taken() {
        let (mut turn, mut inbox) = running();
        let deadline = turn.deadline().expect("it runs");
        let delay = Duration::from_secs(5);
        sleep_until(deadline - 2 * delay).await;
        for _ in 0..2 {
            write(&mut turn);
            advance(delay).await;
            inbox.next().await;
        }
        assert!(turn.forgive(Instant::now()));
        assert_eq!(turn.deadline(), Some(deadline + 2 * delay));
        write(&mut turn);
        for _ in 0..100 {
            advance(2 * delay).await;
            assert!(turn.forgive(Instant::now()), "nobody has taken it yet");
        }
        inbox.next().await;
        advance(2 * delay).await;
        assert!(!turn.forgive(Instant::now()));
    }

    #[tokio::test(start_paused = true)]
    async fn output_that_comes_at_the_last_instant_gains_no_time() {
        let (mut turn, _inbox) = running();
        sleep_until(turn.deadline().expect("it runs")).await;
        write(&mut turn);
        assert!(!turn.forgive(Instant::now()));
    }
}
