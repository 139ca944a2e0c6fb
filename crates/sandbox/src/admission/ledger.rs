//! The ledger: who has how much of the memory and the CPU, and who waits for how much.
//!
//! It has no clock, no tasks and no eye for the machine: whether a grant is wise right now is asked of a gate that the caller
//! brings. Sizes are exact, and a request is granted as a whole. The rules of the line:
//!
//! - Normal requests come before low ones; within a priority the order is that of asking.
//! - Nobody takes of a resource that somebody before him waits for, however small his wish: large requests do not starve.
//! - Who waits for memory does not wait for CPU yet. So an execution in a VM that exists, which needs only CPU, passes a new VM
//!   that finds no memory: else the VMs that hold the memory could not finish what would free it.
//! - While no VM holds memory the gate is not asked: a host that is busy with other things is slow, not dead.

use std::{
    collections::{BTreeMap, HashMap},
    mem,
};

/// Names a request, and after its grant what it holds. Tickets grow in the order of asking.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Ticket(u64);

/// An amount of both resources. What is 0 is not competed for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Size {
    pub(crate) memory_mib: u64,
    /// Thousandths of a core.
    pub(crate) cpu_millis: u64,
}

/// Who comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Priority {
    /// Somebody waits for the result.
    Normal,
    /// It is done ahead of need: the refill of a pool.
    Low,
}

/// The request is larger than the whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Never;

/// What the gate is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Need {
    /// Memory of the request that would be granted.
    pub(super) wanted_mib: u64,
    /// Memory that was granted and that its VM has not taken from the host yet.
    pub(super) in_flight_mib: u64,
}

/// The state of the ledger, for messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Usage {
    /// Those who hold memory.
    pub(super) vms: usize,
    pub(super) held: Size,
    pub(super) in_flight_mib: u64,
    pub(super) waiting: usize,
}

/// See the head of this file.
#[derive(Debug)]
pub(super) struct Ledger {
    capacity: Size,
    next: u64,
    waiting: BTreeMap<(Priority, Ticket), Size>,
    holdings: HashMap<Ticket, Holding>,
    /// Sums over the holdings; of the waiting nothing is counted.
    usage: Usage,
}

#[derive(Clone, Copy, Debug)]
struct Holding {
    size: Size,
    in_flight: bool,
}

/// The resources that somebody further ahead in the line waits for.
#[derive(Clone, Copy, Debug, Default)]
struct Claimed {
    memory: bool,
    cpu: bool,
}

impl Ledger {
    pub(super) fn new(capacity: Size) -> Self {
        let (waiting, holdings) = (BTreeMap::new(), HashMap::new());
        Self { capacity, next: 0, waiting, holdings, usage: Usage::default() }
    }

    /// Puts a request into the line. Whether its turn has come, [`grant`](Self::grant) says, as for everybody else in it.
    pub(super) fn request(&mut self, size: Size, priority: Priority) -> Result<Ticket, Never> {
        if size.memory_mib > self.capacity.memory_mib || size.cpu_millis > self.capacity.cpu_millis {
            return Err(Never);
        }
        let ticket = self.ticket();
        self.waiting.insert((priority, ticket), size);
        Ok(ticket)
    }

    /// Grants all whose turn it is, in the order of the line. To be called after every change; `gate` is asked only about a
    /// request whose turn for memory it is and which fits.
    pub(super) fn grant(&mut self, mut gate: impl FnMut(Need) -> bool) -> Vec<Ticket> {
        let (mut granted, mut claimed) = (Vec::new(), Claimed::default());
        let mut line = mem::take(&mut self.waiting);
        line.retain(|&(_, ticket), &mut size| {
            let its_turn = self.admits(size, &mut claimed, &mut gate);
            if its_turn {
                self.hold(ticket, Holding { size, in_flight: size.memory_mib > 0 });
                granted.push(ticket);
            }
            !its_turn
        });
        self.waiting = line;
        granted
    }

    /// Whether the first in the line waits for memory that others hold.
    pub(super) fn is_short_of_memory(&self) -> bool {
        let first = self.waiting.values().next();
        first.is_some_and(|size| {
            size.memory_mib > 0 && self.usage.held.memory_mib + size.memory_mib > self.capacity.memory_mib
        })
    }

    /// Takes the CPU out of what `ticket` holds, as a holding of its own that can leave by itself.
    pub(super) fn split_cpu(&mut self, ticket: Ticket) -> Option<Ticket> {
        let holding = self.holdings.get_mut(&ticket)?;
        let cpu_millis = mem::take(&mut holding.size.cpu_millis);
        let part = self.ticket();
        self.holdings.insert(part, Holding { size: Size { memory_mib: 0, cpu_millis }, in_flight: false });
        Some(part)
    }

    /// The VM of `ticket` has taken its memory from the host, where the gate sees it.
    pub(super) fn landed(&mut self, ticket: Ticket) {
        if let Some(holding) = self.holdings.get_mut(&ticket)
            && mem::take(&mut holding.in_flight)
        {
            self.usage.in_flight_mib -= holding.size.memory_mib;
        }
    }

    /// `ticket` does not wait any more (a request that is cancelled) and holds nothing any more (a grant that is released).
    pub(super) fn leave(&mut self, ticket: Ticket) {
        self.landed(ticket);
        if let Some(Holding { size, .. }) = self.holdings.remove(&ticket) {
            self.usage.held.memory_mib -= size.memory_mib;
            self.usage.held.cpu_millis -= size.cpu_millis;
            self.usage.vms -= usize::from(size.memory_mib > 0);
        }
        for priority in [Priority::Normal, Priority::Low] {
            self.waiting.remove(&(priority, ticket));
        }
    }

    pub(super) fn usage(&self) -> Usage {
        Usage { waiting: self.waiting.len(), ..self.usage }
    }

    fn ticket(&mut self) -> Ticket {
        self.next += 1;
        Ticket(self.next)
    }

    fn admits(&self, size: Size, claimed: &mut Claimed, gate: &mut impl FnMut(Need) -> bool) -> bool {
        let held = self.usage.held;
        let wants = Claimed { memory: size.memory_mib > 0, cpu: size.cpu_millis > 0 };
        if wants.memory && (claimed.memory || size.memory_mib > self.capacity.memory_mib - held.memory_mib) {
            claimed.memory = true;
            return false;
        }
        // Before the look at the CPU, though that may lack too: whom the gate keeps out must not keep others from executing.
        let need = Need { wanted_mib: size.memory_mib, in_flight_mib: self.usage.in_flight_mib };
        if wants.memory && self.usage.vms > 0 && !gate(need) {
            claimed.memory = true;
            return false;
        }
        if wants.cpu && (claimed.cpu || size.cpu_millis > self.capacity.cpu_millis - held.cpu_millis) {
            claimed.cpu = true;
            claimed.memory |= wants.memory;
            return false;
        }
        true
    }

    fn hold(&mut self, ticket: Ticket, holding: Holding) {
        let Holding { size, in_flight } = holding;
        self.usage.held.memory_mib += size.memory_mib;
        self.usage.held.cpu_millis += size.cpu_millis;
        self.usage.vms += usize::from(size.memory_mib > 0);
        self.usage.in_flight_mib += if in_flight { size.memory_mib } else { 0 };
        self.holdings.insert(ticket, holding);
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*, sample::Index};

    use super::*;

    const CAPACITY: Size = Size { memory_mib: 10, cpu_millis: 4 };

    fn size(memory_mib: u64, cpu_millis: u64) -> Size {
        Size { memory_mib, cpu_millis }
    }

    fn open(_: Need) -> bool {
        true
    }

    #[test]
    fn an_execution_passes_a_vm_that_finds_no_memory_but_not_one_that_waits_for_cpu() {
        let mut ledger = Ledger::new(CAPACITY);
        let holder = ledger.request(size(8, 2), Priority::Normal).expect("it fits");
        assert_eq!(ledger.grant(open), [holder]);
        let vm = ledger.request(size(4, 3), Priority::Normal).expect("it can fit");
        let execution = ledger.request(size(0, 1), Priority::Normal).expect("it fits");
        assert_eq!(ledger.grant(open), [execution], "the VM has no use for CPU before it has memory");
        let cpu = ledger.split_cpu(holder).expect("it holds");
        ledger.leave(holder);
        assert_eq!(ledger.grant(open), [], "now the VM waits for CPU");
        let late = ledger.request(size(0, 1), Priority::Normal).expect("it can fit");
        assert_eq!(ledger.grant(open), [], "and nobody takes it from under its eyes");
        ledger.leave(cpu);
        assert_eq!(ledger.grant(open), [vm]);
        ledger.leave(execution);
        assert_eq!(ledger.grant(open), [late]);
    }

    #[test]
    fn a_vm_that_the_gate_keeps_out_keeps_no_execution_waiting() {
        let mut ledger = Ledger::new(CAPACITY);
        let holder = ledger.request(size(1, 1), Priority::Normal).expect("it fits");
        assert_eq!(ledger.grant(open), [holder]);
        ledger.request(size(1, 3), Priority::Normal).expect("it can fit");
        let executions = [1, 2, 3].map(|_| ledger.request(size(0, 1), Priority::Normal).expect("it can fit"));
        assert_eq!(ledger.grant(|_| false), executions, "also those for whom it would leave too little CPU");
    }

    #[test]
    fn the_gate_is_told_of_memory_that_its_vm_has_not_taken_yet() {
        let mut ledger = Ledger::new(CAPACITY);
        let first = ledger.request(size(3, 1), Priority::Normal).expect("it fits");
        ledger.grant(|_| unreachable!("no VM holds memory"));
        ledger.request(size(2, 1), Priority::Normal).expect("it fits");
        let mut asked = Vec::new();
        let mut shut = |need| {
            asked.push(need);
            false
        };
        ledger.grant(&mut shut);
        ledger.landed(first);
        ledger.landed(first);
        ledger.grant(&mut shut);
        let expected = [3, 0].map(|in_flight_mib| Need { wanted_mib: 2, in_flight_mib });
        assert_eq!(asked, expected);
    }

    #[test]
    fn what_is_larger_than_the_whole_never_waits() {
        let mut ledger = Ledger::new(CAPACITY);
        assert_eq!(ledger.request(size(11, 1), Priority::Normal), Err(Never));
        assert_eq!(ledger.request(size(1, 5), Priority::Normal), Err(Never));
        assert_eq!(ledger.usage(), Usage::default());
    }

    #[derive(Clone, Debug)]
    enum Command {
        Request(Size, Priority),
        /// Cancels or releases: the model knows which.
        Leave(Index),
        SplitCpu(Index),
        Landed(Index),
        Gate(bool),
    }

    fn command() -> impl Strategy<Value = Command> {
        let priority = prop_oneof![3 => Just(Priority::Normal), 1 => Just(Priority::Low)];
        // Small requests fill the line and the gaps, and large ones wait.
        prop_oneof![
            4 => (0_u64..=2, 0_u64..=2, priority.clone()).prop_map(|(mib, millis, priority)| Command::Request(size(mib, millis), priority)),
            3 => (0_u64..=11, 0_u64..=5, priority).prop_map(|(mib, millis, priority)| Command::Request(size(mib, millis), priority)),
            3 => any::<Index>().prop_map(Command::Leave),
            1 => any::<Index>().prop_map(Command::SplitCpu),
            1 => any::<Index>().prop_map(Command::Landed),
            2 => any::<bool>().prop_map(Command::Gate),
        ]
    }

    /// What the ledger should be: lists that are searched, and the rules as they are spoken.
    #[derive(Debug, Default)]
    struct Model {
        line: Vec<(Priority, Ticket, Size)>,
        held: Vec<(Ticket, Size, bool)>,
        shut: bool,
    }

    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Waits {
        ForMemory,
        ForCpu,
        No,
    }

    impl Model {
        fn free(&self) -> Size {
            let held = |part: fn(&Size) -> u64| self.held.iter().map(|(_, size, _)| part(size)).sum::<u64>();
            size(CAPACITY.memory_mib - held(|it| it.memory_mib), CAPACITY.cpu_millis - held(|it| it.cpu_millis))
        }

        fn vms(&self) -> usize {
            self.held.iter().filter(|(_, size, _)| size.memory_mib > 0).count()
        }

        fn waits(&self, place: usize) -> Waits {
            let (ahead, Size { memory_mib, cpu_millis }) = (&self.line[..place], self.line[place].2);
            let somebody_wants_memory = ahead.iter().any(|(_, _, size)| size.memory_mib > 0);
            if memory_mib > 0 && (somebody_wants_memory || memory_mib > self.free().memory_mib) {
                return Waits::ForMemory;
            }
            if memory_mib > 0 && self.shut && self.vms() > 0 {
                return Waits::ForMemory;
            }
            let somebody_waits_for_cpu = (0..place).any(|other| self.waits(other) == Waits::ForCpu);
            if cpu_millis > 0 && (somebody_waits_for_cpu || cpu_millis > self.free().cpu_millis) {
                return Waits::ForCpu;
            }
            Waits::No
        }

        fn grant(&mut self) -> Vec<Ticket> {
            let mut granted = Vec::new();
            while let Some(place) = (0..self.line.len()).find(|&place| self.waits(place) == Waits::No) {
                let (_, ticket, size) = self.line.remove(place);
                self.held.push((ticket, size, size.memory_mib > 0));
                granted.push(ticket);
            }
            granted
        }

        fn usage(&self) -> Usage {
            let (free, waiting) = (self.free(), self.line.len());
            let held = size(CAPACITY.memory_mib - free.memory_mib, CAPACITY.cpu_millis - free.cpu_millis);
            let in_flight_mib = self.held.iter().filter(|it| it.2).map(|(_, size, _)| size.memory_mib).sum();
            Usage { vms: self.vms(), held, in_flight_mib, waiting }
        }
    }

    fn apply(ledger: &mut Ledger, model: &mut Model, command: &Command) {
        match command {
            Command::Request(wanted, priority) => match ledger.request(*wanted, *priority) {
                Ok(ticket) => {
                    let place = model.line.iter().take_while(|(other, ..)| other <= priority).count();
                    model.line.insert(place, (*priority, ticket, *wanted));
                }
                Err(Never) => {
                    assert!(wanted.memory_mib > CAPACITY.memory_mib || wanted.cpu_millis > CAPACITY.cpu_millis);
                }
            },
            Command::Leave(index) => {
                let known: Vec<_> = model.line.iter().map(|it| it.1).chain(model.held.iter().map(|it| it.0)).collect();
                if !known.is_empty() {
                    let ticket = *index.get(&known);
                    ledger.leave(ticket);
                    ledger.leave(ticket);
                    model.line.retain(|it| it.1 != ticket);
                    model.held.retain(|it| it.0 != ticket);
                }
            }
            Command::SplitCpu(index) if !model.held.is_empty() => {
                let (ticket, whole, _) = index.get(&model.held);
                let part = ledger.split_cpu(*ticket).expect("it holds");
                let cpu = size(0, whole.cpu_millis);
                let place = index.index(model.held.len());
                model.held[place].1.cpu_millis = 0;
                model.held.push((part, cpu, false));
            }
            Command::Landed(index) if !model.held.is_empty() => {
                let place = index.index(model.held.len());
                ledger.landed(model.held[place].0);
                model.held[place].2 = false;
            }
            Command::SplitCpu(_) | Command::Landed(_) => {}
            Command::Gate(is_open) => model.shut = !is_open,
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn the_ledger_does_what_its_rules_say(commands in vec(command(), 1..80)) {
            let (mut ledger, mut model) = (Ledger::new(CAPACITY), Model::default());
            for command in &commands {
                apply(&mut ledger, &mut model, command);
                let granted = ledger.grant(|_| !model.shut);
                prop_assert_eq!(granted, model.grant(), "after {:?}", command);
                let usage = ledger.usage();
                prop_assert_eq!(usage, model.usage(), "after {:?}", command);
                prop_assert!(usage.held.memory_mib <= CAPACITY.memory_mib && usage.held.cpu_millis <= CAPACITY.cpu_millis);
            }
        }

        #[test]
        fn memory_is_granted_in_the_order_of_the_line(commands in vec(command(), 1..80)) {
            let (mut ledger, mut model) = (Ledger::new(CAPACITY), Model::default());
            for command in &commands {
                apply(&mut ledger, &mut model, command);
                let line = model.line.clone();
                let granted = ledger.grant(|_| !model.shut);
                let with_memory: Vec<_> = line.iter().filter(|it| it.2.memory_mib > 0).map(|it| it.1).collect();
                let first: Vec<_> = granted.iter().copied().filter(|ticket| with_memory.contains(ticket)).collect();
                prop_assert!(with_memory.starts_with(&first), "{:?} of {:?}", first, with_memory);
                model.grant();
            }
        }

        #[test]
        fn when_all_have_left_all_is_free(commands in vec(command(), 1..80)) {
            let (mut ledger, mut model) = (Ledger::new(CAPACITY), Model::default());
            for command in &commands {
                apply(&mut ledger, &mut model, command);
                ledger.grant(|_| !model.shut);
                model.grant();
            }
            for ticket in model.line.iter().map(|it| it.1).chain(model.held.iter().map(|it| it.0)) {
                ledger.leave(ticket);
            }
            prop_assert_eq!(ledger.usage(), Usage::default());
            let all = ledger.request(CAPACITY, Priority::Low).expect("it is the whole");
            prop_assert_eq!(ledger.grant(|_| false), [all]);
        }
    }
}
