//! Admission: memory and CPU for VMs, granted in the order of asking.
//!
//! The rules of the line are the `ledger`'s, which is pure; what this machine can bear right now is the `gate`'s; how much there
//! is to give and what a VM is charged is the `budget`'s. Here is what makes them wait: tasks, time, and permits that are
//! given back by being dropped. A VM holds memory until its death is confirmed, and CPU only while it boots or executes.
//!
//! Nothing runs here while nobody waits. While the gate is shut, one of those who wait looks at the machine again from time to
//! time, and when it leaves the line another one does.

mod budget;
mod cgroup;
mod gate;
mod ledger;
mod live;

use std::{
    collections::HashMap,
    convert::Infallible,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{Notify, oneshot},
    time::{Instant, sleep, timeout_at},
};

pub(crate) use budget::{Budget, Charged, Machine};
pub(crate) use ledger::Priority;
pub(crate) use live::Kernel;

use crate::{Error, ErrorKind};
use gate::{Live, Sample, Shut};
use ledger::{Ledger, Need, Never, Size, Ticket, Usage};

/// How long a request waits while nobody ahead of it is granted. A line that moves gets everybody through, however long it is; in
/// one that stands still for so long nobody can say whether it ever moves again.
const PATIENCE: Duration = Duration::from_secs(120);

/// How soon the machine is looked at again after the gate was found shut, and how seldom at last. A VM that boots takes its
/// memory in tenths of a second; the kernel's pressure figures change every two seconds.
const FIRST_LOOK: Duration = Duration::from_millis(100);
const LAST_LOOK: Duration = Duration::from_secs(2);

/// The host's memory and CPU that VMs may use. Clones are the same.
#[derive(Clone, Debug)]
pub(crate) struct Admission {
    shared: Arc<Shared>,
}

/// The right to have one VM. Given back when dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    memory: Claim,
    cpu: Option<Cpu>,
    waited: Duration,
}

/// The right of one VM to execute. Given back when dropped.
#[derive(Debug)]
pub(crate) struct Cpu {
    _claim: Claim,
}

/// Closed: everybody was sent away.
type Called = oneshot::Receiver<()>;

/// A place in the line, and after the grant what it stands for. Dropped, it is neither.
#[derive(Debug)]
struct Claim {
    shared: Arc<Shared>,
    ticket: Ticket,
}

#[derive(Debug)]
struct Shared {
    budget: Budget,
    live: Box<dyn Live>,
    state: Mutex<State>,
    /// Held by the one who waits and looks.
    looking: tokio::sync::Mutex<()>,
    found_shut: Notify,
}

#[derive(Debug)]
struct State {
    ledger: Ledger,
    callers: HashMap<Ticket, Caller>,
    /// What kept the first in the line from its grant when the machine was last looked at.
    shut: Option<Shut>,
    closed: bool,
}

/// One who waits.
#[derive(Debug)]
struct Caller {
    priority: Priority,
    /// To be called when it is granted.
    called: oneshot::Sender<()>,
    /// When somebody ahead of it was granted last, or else when it came.
    moved: Instant,
}

/// Why a request did not even wait, or waited in vain.
#[derive(Clone, Copy, Debug)]
enum Refused {
    Never,
    Closed,
    /// Who has what, and what gate was shut, when patience ended.
    Impatient(Usage, Option<Shut>),
}

impl Admission {
    /// Grants what is in `budget`, as long as the machine looks well to `live`.
    pub(crate) fn new(budget: Budget, live: Kernel) -> Self {
        Self::with(budget, Box::new(live))
    }

    fn with(budget: Budget, live: Box<dyn Live>) -> Self {
        let ledger = Ledger::new(budget.capacity);
        let state = Mutex::new(State { ledger, callers: HashMap::new(), shut: None, closed: false });
        let (looking, found_shut) = (tokio::sync::Mutex::new(()), Notify::new());
        Self { shared: Arc::new(Shared { budget, live, state, looking, found_shut }) }
    }

    /// Waits for the memory of a VM and the CPU to boot it. Dropping the future leaves the line.
    pub(crate) async fn admit(&self, vm: impl Into<Charged>, priority: Priority) -> Result<Permit, Error> {
        let vm = vm.into();
        self.hold(self.shared.budget.vm(vm), priority, || format!("admitting a VM of {} MiB", vm.memory_mib)).await
    }

    async fn hold(&self, size: Size, priority: Priority, doing: impl Fn() -> String + Send) -> Result<Permit, Error> {
        let asked = Instant::now();
        let memory =
            self.shared.claim(size, priority).await.map_err(|refused| self.shared.error(&doing(), size, refused))?;
        let cpu = self.shared.state().ledger.split_cpu(memory.ticket);
        let cpu = cpu.map(|ticket| Cpu { _claim: Claim { shared: Arc::clone(&self.shared), ticket } });
        Ok(Permit { memory, cpu, waited: asked.elapsed() })
    }

    /// Waits, behind everybody else, for the memory of a QEMU that has no guest yet, and the CPU to start it.
    pub(crate) async fn admit_blank(&self) -> Result<Permit, Error> {
        self.hold(self.shared.budget.blank(), Priority::Low, || "admitting a QEMU without a guest".into()).await
    }

    /// Whether the first who waits does so for memory.
    pub(crate) fn is_short_of_memory(&self) -> bool {
        let state = self.shared.state();
        state.shut.is_some() || state.ledger.is_short_of_memory()
    }

    /// Refuses everyone who waits and everyone who comes.
    pub(crate) fn close(&self) {
        let mut state = self.shared.state();
        state.closed = true;
        // Each of them sees that nobody will call any more, and leaves.
        state.callers.clear();
    }
}

impl Permit {
    /// How long it took to get it.
    pub(crate) fn waited(&self) -> Duration {
        self.waited
    }

    /// The VM has booted: what it took of the host's memory can be seen there, and is not counted twice any more.
    pub(crate) fn booted(&self) {
        let mut state = self.memory.shared.state();
        state.ledger.landed(self.memory.ticket);
        self.memory.shared.settle(&mut state);
    }

    /// Whether the VM may execute.
    pub(crate) fn has_cpu(&self) -> bool {
        self.cpu.is_some()
    }

    /// Gives the CPU to others: the VM has become idle.
    pub(crate) fn give_back_cpu(&mut self) {
        self.cpu = None;
    }

    /// Waits for CPU, on its own: the permit can be used meanwhile. Dropping the future leaves the line.
    pub(crate) fn claim_cpu(&self) -> impl Future<Output = Result<Cpu, Error>> + Send + use<> {
        let shared = Arc::clone(&self.memory.shared);
        async move {
            let size = shared.budget.execution();
            // Somebody waits for what a VM executes, whatever the VM was made for.
            let claim = shared.claim(size, Priority::Normal).await;
            claim
                .map(|claim| Cpu { _claim: claim })
                .map_err(|refused| shared.error("admitting an execution", size, refused))
        }
    }

    /// Takes what was waited for.
    pub(crate) fn keep_cpu(&mut self, cpu: Cpu) {
        self.cpu = Some(cpu);
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        state.ledger.leave(self.ticket);
        state.callers.remove(&self.ticket);
        self.shared.settle(&mut state);
    }
}

impl State {
    /// The line has moved for all who stand behind `granted`.
    fn advance_behind(&mut self, granted: Option<(Priority, Ticket)>) {
        let Some(granted) = granted else { return };
        let now = Instant::now();
        for (ticket, caller) in &mut self.callers {
            if (caller.priority, *ticket) > granted {
                caller.moved = now;
            }
        }
    }
}

impl Shared {
    /// Waits in the line.
    async fn claim(self: &Arc<Self>, size: Size, priority: Priority) -> Result<Claim, Refused> {
        let (claim, called, mut moved) = self.enter(size, priority)?;
        let turn = async {
            tokio::select! {
                biased;
                called = called => called,
                never = self.keep_looking() => match never {},
            }
        };
        let mut turn = pin!(turn);
        loop {
            match timeout_at(moved + PATIENCE, &mut turn).await {
                Ok(Ok(())) => return Ok(claim),
                Ok(Err(_closed)) => return Err(Refused::Closed),
                Err(_elapsed) => {
                    // While the claim is still in the line: who leaves it last opens the gate.
                    let state = self.state();
                    match state.callers.get(&claim.ticket) {
                        Some(caller) if caller.moved == moved => {
                            return Err(Refused::Impatient(state.ledger.usage(), state.shut));
                        }
                        Some(caller) => moved = caller.moved,
                        // It was called, or all were sent away, in this very moment: the next look sees it.
                        None => {}
                    }
                }
            }
        }
    }

    /// A place in the line, how its holder is called, and when it began to wait.
    fn enter(self: &Arc<Self>, size: Size, priority: Priority) -> Result<(Claim, Called, Instant), Refused> {
        let mut state = self.state();
        if state.closed {
            return Err(Refused::Closed);
        }
        let ticket = state.ledger.request(size, priority).map_err(|Never| Refused::Never)?;
        let (caller, called) = oneshot::channel();
        let moved = Instant::now();
        state.callers.insert(ticket, Caller { priority, called: caller, moved });
        self.settle(&mut state);
        Ok((Claim { shared: Arc::clone(self), ticket }, called, moved))
    }

    /// Calls all whose turn it is. The machine is looked at once, and only if there is memory for somebody in the line.
    fn settle(&self, state: &mut State) {
        let (mut sample, mut shut): (Option<Sample>, _) = (None, None);
        let granted = state.ledger.grant(|need: Need| {
            let sample = sample.get_or_insert_with(|| self.live.sample());
            shut = gate::check(sample, need, self.budget.reserve_mib).err();
            shut.is_none()
        });
        let mut first: Option<(Priority, Ticket)> = None;
        for ticket in granted {
            let Some(Caller { priority, called, .. }) = state.callers.remove(&ticket) else { continue };
            first = first.into_iter().chain([(priority, ticket)]).min();
            // One who has gone meanwhile drops the claim next, and with it the grant.
            let _ = called.send(());
        }
        state.advance_behind(first);
        state.shut = shut;
        if shut.is_some() {
            self.found_shut.notify_one();
        }
    }

    /// Looks at the machine again while the gate is shut, if nobody else does.
    async fn keep_looking(&self) -> Infallible {
        let _turn = self.looking.lock().await;
        let mut pause = FIRST_LOOK;
        loop {
            if self.state().shut.is_none() {
                pause = FIRST_LOOK;
                self.found_shut.notified().await;
                continue;
            }
            sleep(pause).await;
            pause = (pause * 2).min(LAST_LOOK);
            self.settle(&mut self.state());
        }
    }

    fn error(&self, doing: &str, size: Size, refused: Refused) -> Error {
        let (charge, whole) = (charge(size), self.budget.capacity);
        let (usage, shut) = match refused {
            Refused::Closed => {
                return Error::new(ErrorKind::Closed, format!("{doing}: the scheduler has been closed"));
            }
            Refused::Never => {
                let whole = whole.memory_mib;
                let message =
                    format!("{doing}: it is charged {charge}, QEMU included, and all VMs together {whole} MiB at most");
                return Error::new(ErrorKind::Capacity, message).remedied_by("ask for less memory");
            }
            Refused::Impatient(usage, shut) => (usage, shut),
        };
        let patience = PATIENCE.as_secs();
        let message = format!(
            "{doing}: {charge} did not become free, and the line did not move for {patience} s; {}",
            describe(usage, whole)
        );
        let error = Error::new(ErrorKind::Capacity, message).remedied_by("try again later, or run fewer at once");
        match shut {
            Some(shut) => error.because(shut),
            None => error,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // What could panic under the lock leaves no half-made change behind that another one could not live with.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the doctor says of `budget`, and the gate that is shut right now for a VM with a guest of `memory_mib`.
pub(crate) fn outlook(budget: &Budget, live: &Kernel, memory_mib: u32) -> (String, Option<Shut>) {
    let sample = live.sample();
    let need = Need { wanted_mib: budget.vm(memory_mib.into()).memory_mib, in_flight_mib: 0 };
    let Size { memory_mib, cpu_millis } = budget.capacity;
    let mut detail = format!(
        "VMs may be charged {memory_mib} MiB together, and {} cores while they boot or execute",
        cores(cpu_millis)
    );
    if let Some(available) = [sample.available_mib, sample.container_room_mib].into_iter().flatten().min() {
        detail += &format!("; {available} MiB are available now");
    }
    (detail, gate::check(&sample, need, budget.reserve_mib).err())
}

/// Who has what, for one who does not wait any more.
fn describe(usage: Usage, whole: Size) -> String {
    let Usage { vms, held, waiting, .. } = usage;
    format!(
        "{} of {} MiB and {} of {} cores are held by {vms} VM{}, and {} more wait",
        held.memory_mib,
        whole.memory_mib,
        cores(held.cpu_millis),
        cores(whole.cpu_millis),
        if vms == 1 { "" } else { "s" },
        waiting.saturating_sub(1),
    )
}

fn charge(size: Size) -> String {
    let cores = cores(size.cpu_millis);
    let cores = if cores == "1" { "1 core".into() } else { format!("{cores} cores") };
    match size.memory_mib {
        0 => cores,
        mib => format!("{mib} MiB with {cores}"),
    }
}

fn cores(millis: u64) -> String {
    let (whole, rest) = (millis / 1000, millis % 1000);
    if rest == 0 { whole.to_string() } else { format!("{whole}.{rest:03}").trim_end_matches('0').to_owned() }
}

#[cfg(test)]
pub(crate) mod tests;
