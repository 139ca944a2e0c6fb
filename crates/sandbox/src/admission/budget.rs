//! The budget: how much of this machine VMs may have, and what one VM is charged.

use std::thread;

use exec_sandbox_qemu::Accelerator;

use super::{cgroup::Cgroups, ledger::Size, live};
use crate::SchedulerConfig;

/// What QEMU takes beside the guest's memory under emulation, in MiB.
///
/// Measured on QEMU's own mappings with guests of 192 MiB (QEMU 10.0, x86_64): the used part of the translation buffer is 40 for
/// bash, 56 for Python and 92 for Bun, of the 256 it may grow to; its other private memory is 20 to 28. So Bun takes 120, and
/// resident peaks of 135 to 254 are that, the 44 to 104 that the guest has touched, and about 30 of program files that all VMs
/// share. A guest that starts one large program after another comes to 150: the surplus is what the memory reserve is for.
const EMULATION_OVERHEAD_MIB: u64 = 128;

/// The same without a translation buffer: QEMU's other private memory of 20 to 28 MiB, and as much again for what the kernel
/// keeps for a VM. Not measured under an accelerator.
const ACCELERATION_OVERHEAD_MIB: u64 = 48;

/// What a QEMU takes that has made no machine yet, in MiB: 14 of its own were measured, under emulation.
const BLANK_MIB: u64 = 16;

/// What a VM's gateway takes, in MiB.
///
/// Resident are 3, half of which all gateways share, and 14 with 20 connections that carry all they can or stand still with full buffers,
/// which is as many as package managers open. All that there may be would be 130: that surplus is the memory reserve's, too.
const GATEWAY_MIB: u64 = 16;

/// What a VM takes while it boots or executes: its one processor, whole. Idle it takes about 0.3 % of a core, which the CPU
/// reserve bears.
const VM_CPU_MILLIS: u64 = 1000;

/// How large the machine is that VMs share, its containers considered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Machine {
    /// `None`: the kernel does not say.
    pub(crate) memory_mib: Option<u64>,
    pub(crate) cpu_millis: u64,
}

/// What of a VM decides what it is charged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Charged {
    /// Its guest's memory.
    pub(crate) memory_mib: u32,
    /// It has a gateway beside it.
    pub(crate) has_network: bool,
}

/// See the head of this file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Budget {
    pub(super) capacity: Size,
    /// What must stay free on the machine, in MiB.
    pub(super) reserve_mib: u64,
    pub(super) overhead_mib: u64,
}

impl Machine {
    /// This machine. Reads a few files of the kernel's.
    pub(crate) fn read() -> Self {
        let cgroups = Cgroups::of_this_process();
        let memory_mib = [live::total_mib(), cgroups.memory_limit_mib()].into_iter().flatten().min();
        let cpu_millis = cgroups.cpu_limit_millis().map_or(u64::MAX, |limit| limit.max(1)).min(processors() * 1000);
        Self { memory_mib, cpu_millis }
    }
}

impl Budget {
    /// What `config` lets VMs have of `machine`.
    ///
    /// Whatever is reserved, one VM may always execute: a machine of half a core is slow, not useless.
    pub(crate) fn of(config: &SchedulerConfig, machine: Machine, accelerator: &Accelerator) -> Self {
        let reserve_mib = machine.memory_mib.map_or(0, |total| scaled(total, config.host_memory_reserve_ratio));
        // Of a machine that does not tell its size nothing is known to be too much; the bound keeps sums far from overflow.
        let memory_mib = machine
            .memory_mib
            .map_or(u64::MAX >> 1, |total| scaled(total.saturating_sub(reserve_mib), config.memory_overcommit_ratio));
        let cores_millis = machine.cpu_millis.saturating_sub(scaled(1000, config.host_cpu_reserve_cores));
        let cpu_millis = scaled(cores_millis, config.cpu_overcommit_ratio).max(VM_CPU_MILLIS);
        let overhead_mib = match accelerator {
            Accelerator::Tcg { .. } => EMULATION_OVERHEAD_MIB,
            Accelerator::Kvm { .. } | Accelerator::Hvf => ACCELERATION_OVERHEAD_MIB,
        };
        Self { capacity: Size { memory_mib, cpu_millis }, reserve_mib, overhead_mib }
    }

    /// What a VM is charged when it is admitted.
    pub(super) fn vm(&self, Charged { memory_mib, has_network }: Charged) -> Size {
        let gateway_mib = if has_network { GATEWAY_MIB } else { 0 };
        Size { memory_mib: u64::from(memory_mib) + self.overhead_mib + gateway_mib, ..self.execution() }
    }

    /// What a QEMU is charged that waits for its guest.
    pub(super) fn blank(&self) -> Size {
        Size { memory_mib: BLANK_MIB, ..self.execution() }
    }

    /// What a VM that exists is charged for executing.
    #[expect(clippy::unused_self, reason = "VMs have one processor today; what they have is the budget's to know")]
    pub(super) fn execution(&self) -> Size {
        Size { memory_mib: 0, cpu_millis: VM_CPU_MILLIS }
    }
}

/// A VM without a network.
impl From<u32> for Charged {
    fn from(memory_mib: u32) -> Self {
        Self { memory_mib, has_network: false }
    }
}

/// The processors that this process may use.
fn processors() -> u64 {
    // Not `available_parallelism`, which rounds a container's share of a processor down; that share is read elsewhere.
    let allowed = rustix::thread::sched_getaffinity(None).map_or(0, |set| u64::from(set.count()));
    if allowed > 0 { allowed } else { thread::available_parallelism().map_or(1, |count| count.get() as u64) }
}

#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a multiple of a size, neither negative nor near the limits of either type"
)]
fn scaled(size: u64, ratio: f64) -> u64 {
    (size as f64 * ratio) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    const TCG: Accelerator = Accelerator::Tcg { tsc_khz: None };
    const MACHINE: Machine = Machine { memory_mib: Some(4000), cpu_millis: 2000 };

    fn budget(config: &SchedulerConfig) -> Budget {
        Budget::of(config, MACHINE, &TCG)
    }

    #[test]
    fn two_cores_and_four_gigabytes_bear_ten_idle_sessions_and_a_pool_of_three() {
        let config = SchedulerConfig::default();
        let budget = budget(&config);
        assert_eq!(budget.reserve_mib, 320);
        assert_eq!(budget.capacity, Size { memory_mib: 3680 * 5, cpu_millis: 3000 });
        let thirteen = 13 * budget.vm(config.default_memory_mib.into()).memory_mib;
        assert!(thirteen <= budget.capacity.memory_mib, "{thirteen}");
    }

    #[test]
    fn every_field_that_makes_the_budget_takes_effect() {
        let defaults = budget(&SchedulerConfig::default());
        let with = |change: fn(&mut SchedulerConfig)| {
            let mut config = SchedulerConfig::default();
            change(&mut config);
            budget(&config)
        };
        let capacity = |memory_mib, cpu_millis| Size { memory_mib, cpu_millis };
        let more_memory = with(|config| config.memory_overcommit_ratio = 2.0);
        assert_eq!(more_memory, Budget { capacity: capacity(7360, 3000), ..defaults });
        let less_reserve = with(|config| config.host_memory_reserve_ratio = 0.5);
        assert_eq!(less_reserve, Budget { capacity: capacity(10_000, 3000), reserve_mib: 2000, ..defaults });
        let more_cpu = with(|config| config.cpu_overcommit_ratio = 4.0);
        assert_eq!(more_cpu.capacity.cpu_millis, 6000);
        let more_cpu = with(|config| config.host_cpu_reserve_cores = 0.0);
        assert_eq!(more_cpu.capacity.cpu_millis, 4000);
    }

    #[test]
    fn one_vm_may_execute_whatever_is_reserved() {
        let config = SchedulerConfig { host_cpu_reserve_cores: 16.0, ..SchedulerConfig::default() };
        assert_eq!(budget(&config).capacity.cpu_millis, VM_CPU_MILLIS);
    }

    #[test]
    fn an_accelerated_vm_has_no_translation_buffer_to_pay() {
        let config = SchedulerConfig::default();
        let accelerated = Budget::of(&config, MACHINE, &Accelerator::Hvf);
        assert_eq!(accelerated.vm(192.into()).memory_mib, 240);
        assert_eq!(budget(&config).vm(192.into()), Size { memory_mib: 320, cpu_millis: 1000 });
    }

    #[test]
    fn a_network_is_charged_for_its_process() {
        let budget = budget(&SchedulerConfig::default());
        let networked = budget.vm(Charged { memory_mib: 192, has_network: true });
        assert_eq!(networked.memory_mib, budget.vm(192.into()).memory_mib + GATEWAY_MIB);
    }

    #[test]
    fn this_machine_has_a_size() {
        let machine = Machine::read();
        assert!(machine.cpu_millis > 0, "{machine:?}");
        assert!(machine.memory_mib.is_some_and(|mib| mib > 0), "{machine:?}");
    }
}
