//! `sbx ps`: the VMs of this user, whoever started them.

use std::{fmt::Write as _, path::Path};

use exec_sandbox::{
    SchedulerConfig,
    inventory::{self, VmInfo, VmOwner, VmProcess, VmState},
};
use serde::Serialize;

use crate::{
    args::PsArgs,
    exit::Status,
    failure::Failure,
    json::ms,
    print,
    table::{cell, rounded, table},
};

const TITLES: [&str; 12] =
    ["ID", "STATE", "LANGUAGE", "MEMORY", "RESIDENT", "CPU", "AGE", "QEMU", "GATEWAY", "OWNER", "TENANT", "TASK"];

/// A VM as JSON.
#[derive(Serialize)]
struct Entry<'a> {
    id: &'a str,
    state: VmState,
    owner: Option<&'a VmOwner>,
    processes: Vec<ProcessEntry<'a>>,
    age_ms: Option<f64>,
    memory_mib: Option<u32>,
    language: Option<&'a str>,
    tenant_id: Option<&'a str>,
    task_id: Option<&'a str>,
    image: Option<&'a str>,
    cpu_ms: Option<f64>,
    resident_bytes: Option<u64>,
    path: &'a Path,
}

#[derive(Serialize)]
struct ProcessEntry<'a> {
    role: &'a str,
    pid: u32,
    alive: bool,
    cpu_ms: Option<f64>,
    resident_bytes: Option<u64>,
}

/// Lists the VMs.
pub(crate) fn run(args: &PsArgs) -> Result<Status, Failure> {
    let vms = crate::block_on(async { Ok(inventory::list(SchedulerConfig::default()).await?) })?;
    if args.json {
        print::json(&vms.iter().map(entry).collect::<Vec<_>>())?;
    } else if args.quiet {
        print::page(&vms.iter().fold(String::new(), |mut page, vm| {
            let _ = writeln!(page, "{}", cell(Some(&vm.id)));
            page
        }))?;
    } else {
        print::page(&table(TITLES, &vms.iter().map(row).collect::<Vec<_>>()))?;
    }
    Ok(Status::SUCCESS)
}

fn entry(vm: &VmInfo) -> Entry<'_> {
    Entry {
        id: &vm.id,
        state: vm.state,
        owner: vm.owner.as_ref(),
        processes: vm.processes.iter().map(process).collect(),
        age_ms: vm.age.map(ms),
        memory_mib: vm.memory_mib,
        language: vm.language.as_deref(),
        tenant_id: vm.tenant_id.as_deref(),
        task_id: vm.task_id.as_deref(),
        image: vm.image.as_deref(),
        cpu_ms: vm.cpu().map(ms),
        resident_bytes: vm.resident_bytes(),
        path: &vm.path,
    }
}

fn process(process: &VmProcess) -> ProcessEntry<'_> {
    ProcessEntry {
        role: &process.role,
        pid: process.pid,
        alive: process.is_alive,
        cpu_ms: process.cpu.map(ms),
        resident_bytes: process.resident_bytes,
    }
}

fn row(vm: &VmInfo) -> [String; 12] {
    let mib = |mib: u64| format!("{mib} MiB");
    let pid = |process: &VmProcess| match process.is_alive {
        true => process.pid.to_string(),
        false => format!("{} (dead)", process.pid),
    };
    let owner = vm.owner.as_ref().map(|owner| match &owner.name {
        Some(name) => format!("{} {name}", owner.pid),
        None => owner.pid.to_string(),
    });
    [
        Some(vm.id.clone()),
        Some(vm.state.name().to_owned()),
        vm.language.clone(),
        vm.memory_mib.map(|memory| mib(memory.into())),
        vm.resident_bytes().map(|bytes| mib(bytes >> 20)),
        vm.cpu().map(|cpu| format!("{:.1} s", cpu.as_secs_f64())),
        vm.age.map(rounded),
        vm.qemu().map(pid),
        vm.gateway().map(pid),
        owner,
        vm.tenant_id.clone(),
        vm.task_id.clone(),
    ]
    .map(|text| cell(text.as_deref()))
}
