//! The network benchmark: one guest, one QEMU, one card, and three networks behind it, measured in turns.
//!
//! It is started by `cargo xtask bench network`, which gives it a network namespace of its own: the host's side of every connection
//! is this program, at [`HOST`]. Three VMs live side by side, and each trial is made with one after the other, so that what else the
//! machine does disturbs all three alike. It judges nothing.

mod network;
mod page;
mod peer;
mod sheet;
mod trial;
mod usage;
mod vm;

use std::{net::Ipv4Addr, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context as _, Result};
use clap::Parser;
use exec_sandbox::{Scheduler, SchedulerConfig};

use self::{
    network::{Network, StandIns},
    page::page,
    peer::Peer,
    sheet::{Row, Sheet, Unit},
    trial::Trial,
    vm::Vm,
};

/// The address that the guest reaches the host by, in the namespace that `cargo xtask bench network` makes.
const HOST: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 1);

/// How long the VMs are left alone before it is measured what they take when they are.
const SETTLING: Duration = Duration::from_secs(3);

/// How long that is measured.
const IDLE: Duration = Duration::from_secs(5);

/// Measures the gateway, passt and slirp behind the same VM
#[derive(Debug, Parser)]
#[command(name = "cargo xtask bench network", max_term_width = 100)]
struct Options {
    /// How often each trial is made with each network
    #[arg(short, long, value_name = "COUNT", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Seconds of each transfer, and of each burst of connections at most
    #[arg(short, long, value_name = "SECONDS", default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=60))]
    seconds: u8,
    /// The gateway that is measured; `cargo xtask bench network` names the release build
    #[arg(long, value_name = "PROGRAM", hide = true)]
    gateway: PathBuf,
    /// The guest's end, linked statically
    #[arg(long, value_name = "PROGRAM", hide = true)]
    traffic: PathBuf,
    /// The passt that is measured
    #[arg(long, value_name = "PROGRAM", default_value = "/usr/bin/passt")]
    passt: PathBuf,
    /// Make only trials whose name contains this
    #[arg(long, value_name = "TEXT", default_value = "")]
    only: String,
    /// Print every sample as JSON
    #[arg(long)]
    json: bool,
}

#[expect(clippy::print_stderr, clippy::print_stdout, reason = "a program for people at a terminal")]
fn main() -> ExitCode {
    let measured = Options::parse().measure();
    match measured {
        Ok(text) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            error.chain().skip(1).for_each(|cause| eprintln!("  because: {cause}"));
            ExitCode::FAILURE
        }
    }
}

impl Options {
    fn measure(self) -> Result<String> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.context("starting the runtime")?.block_on(self.measured())
    }

    async fn measured(self) -> Result<String> {
        let config = SchedulerConfig { qemu: Some(network::full_qemu()?), ..SchedulerConfig::default() };
        let scheduler = Scheduler::start(config).await.context("examining this machine")?;
        let facts = scheduler.facts().clone();
        scheduler.close().await.context("closing the scheduler")?;
        let passt = network::passt_version(&self.passt)?;
        let title = format!("{} · QEMU {} · passt {passt}", facts.accelerator, facts.qemu_version);
        let (stand_ins, peer) = (StandIns::make(&facts, &self.gateway, &self.passt)?, Peer::open(HOST)?);
        let mut vms = Vec::new();
        for network in Network::ALL {
            let vm = Vm::start(network, &stand_ins, &peer, &self.traffic).await;
            vms.push(vm.with_context(|| format!("a VM behind {network}"))?);
        }
        let mut sheet = Sheet::new(title);
        idle(&vms, &mut sheet).await?;
        for round in 0..self.rounds {
            for trial in Trial::ALL.into_iter().filter(|trial| trial.to_string().contains(&self.only)) {
                self.turn(round, trial, &vms, &mut sheet).await;
            }
        }
        tokio::time::sleep(SETTLING).await;
        resident(&vms, "after the trials", &mut sheet)?;
        for vm in vms {
            vm.close().await?;
        }
        if self.json { sheet.json().context("writing JSON") } else { Ok(page(&sheet)) }
    }

    /// One trial with each network. Who begins changes from round to round.
    #[expect(clippy::print_stderr, reason = "it takes minutes, and somebody may be waiting")]
    async fn turn(&self, round: u32, trial: Trial, vms: &[Vm], sheet: &mut Sheet) {
        let first = round as usize % vms.len();
        for vm in vms.iter().cycle().skip(first).take(vms.len()) {
            eprintln!("round {} of {}: {trial}, {}", round + 1, self.rounds, vm.network);
            if let Err(error) = trial.make(vm, self.seconds, sheet).await {
                // A network that loses a connection now and then is measured by what it carries, and its losses are told.
                let failure = format!("{trial}, {}: {error:#}", vm.network);
                eprintln!("failed: {failure}");
                sheet.failures.push(failure);
            }
        }
    }
}

/// What VMs and their networks take that have nothing to do.
async fn idle(vms: &[Vm], sheet: &mut Sheet) -> Result<()> {
    tokio::time::sleep(SETTLING).await;
    resident(vms, "before the trials", sheet)?;
    let before = vms.iter().map(Vm::used).collect::<Result<Vec<_>>>()?;
    tokio::time::sleep(IDLE).await;
    for (vm, before) in vms.iter().zip(before) {
        let used = vm.used()?.since(&before);
        let share = |cpu: Duration| cpu.as_secs_f64() / IDLE.as_secs_f64() * 100.0;
        if let Some(network) = used.network {
            sheet.add(Row::new("idle, the network's process", Unit::PercentOfCore), vm.network, share(network));
        }
        sheet.add(Row::new("idle, with QEMU", Unit::PercentOfCore), vm.network, share(used.all()));
    }
    Ok(())
}

fn resident(vms: &[Vm], when: &str, sheet: &mut Sheet) -> Result<()> {
    for vm in vms {
        let used = vm.used()?;
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        if let Some(bytes) = used.network_bytes {
            let row = Row::new(format!("the network's process, {when}"), Unit::ResidentMebibytes);
            sheet.add(row, vm.network, mib(bytes));
        }
        let row = Row::new(format!("with QEMU, {when}"), Unit::ResidentMebibytes);
        sheet.add(row, vm.network, mib(used.qemu_bytes + used.network_bytes.unwrap_or(0)));
    }
    Ok(())
}
