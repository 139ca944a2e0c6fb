//! The first phase: all that a VM needs is made, and there is no process yet.

use std::{
    fs::File,
    os::unix::net::{UnixListener, UnixStream as StdUnixStream},
    path::PathBuf,
    sync::Arc,
};

use exec_sandbox_gateway::link;
use exec_sandbox_qemu as qemu;
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::sync::mpsc;

use super::{BootError, Prepared};
use crate::{
    Output,
    host::Host,
    process::Command,
    request::{ValidNetwork, ValidVm},
    run_dir::{Details, RunDir},
    vm::gateway,
};

/// The numbers under which QEMU finds its descriptors.
const AGENT_FD: i32 = 3;
const QMP_FD: i32 = 4;
const CONSOLE_FD: i32 = 5;
const IMAGE_FDS: [i32; 3] = [6, 7, 8];
const NETWORK_FD: i32 = 9;
const MEMORY_FD: i32 = 10;

/// How a guest is to come to life.
#[derive(Debug)]
pub(in crate::vm) enum Life {
    /// It boots, and its memory ends with QEMU.
    Boot,
    /// It boots with this file as its memory, so that it can be saved.
    Donor(File),
    /// It is a copy of another, whose memory is in the host's directory of memories.
    Blank,
}

/// What a VM needs before it is started.
#[derive(Debug)]
pub(in crate::vm) struct Outline {
    details: Details,
    network: Option<ValidNetwork>,
    boot_log: Option<mpsc::Sender<Output>>,
}

impl Outline {
    /// Of a VM that is to be `spec`.
    pub(in crate::vm) fn of(host: &Host, spec: &ValidVm) -> Self {
        let details = details(host, spec);
        Self { details, network: spec.network.clone(), boot_log: spec.boot_log.clone() }
    }

    /// Of a VM of which no more than its memory is known yet.
    pub(in crate::vm) fn blank(host: &Host, memory_mib: u32) -> Self {
        let details = Details { memory_mib, image: Some(host.facts.image.clone()), ..Details::default() };
        Self { details, network: None, boot_log: None }
    }
}

/// What is written down about a VM that is `spec`.
pub(in crate::vm) fn details(host: &Host, spec: &ValidVm) -> Details {
    Details {
        memory_mib: spec.memory_mib,
        language: Some(spec.language.name().into()),
        tenant_id: spec.tenant_id.clone(),
        task_id: spec.task_id.clone(),
        image: Some(host.facts.image.clone()),
    }
}

impl Prepared {
    /// Makes the run directory, the sockets and the arguments, beside the runtime's threads: files are touched, and the run
    /// directory's lock may have to be waited for.
    pub(in crate::vm) async fn new(
        host: Arc<Host>,
        vm_id: String,
        outline: Outline,
        life: Life,
    ) -> Result<Self, BootError> {
        let prepared = tokio::task::spawn_blocking(move || Self::make(&host, vm_id, outline, life)).await;
        prepared.map_err(|panicked| BootError::Prepare(panicked.into()))?
    }

    fn make(host: &Host, vm_id: String, outline: Outline, life: Life) -> Result<Self, BootError> {
        let Outline { details, network, boot_log } = outline;
        let memory_mib = details.memory_mib;
        let run_dir = RunDir::create(&host.run_dir, &vm_id, &details)?;
        let listener = UnixListener::bind(run_dir.agent_socket()).map_err(BootError::Sockets)?;
        let (monitor, qemu_monitor) = StdUnixStream::pair().map_err(BootError::Sockets)?;
        let (stderr, qemu_stderr) = pipe_with(PipeFlags::CLOEXEC).map_err(|errno| BootError::Sockets(errno.into()))?;
        let console = match boot_log {
            Some(output) => Some((StdUnixStream::pair().map_err(BootError::Sockets)?, output)),
            None => None,
        };
        // Opened again by QEMU, so that each VM has positions of its own in them.
        let [kernel, initramfs, root] = IMAGE_FDS.map(|fd| format!("/proc/self/fd/{fd}").into());
        let (start, memory) = match life {
            Life::Boot => (boot(kernel, initramfs, None), None),
            Life::Donor(memory) => (boot(kernel, initramfs, Some(MEMORY_FD)), Some(memory.into())),
            Life::Blank => (qemu::Start::Blank, Some(host.memories().map_err(BootError::Prepare)?)),
        };
        let confinement = host.confinement();
        let ceiling_bytes = host.memory_ceiling_bytes(memory_mib, network.is_some());
        let group = confinement.group(&vm_id, ceiling_bytes).map_err(BootError::Prepare)?;
        let mut gateway = match network {
            Some(network) => {
                let program = host.gateway().map_err(BootError::FindGateway)?;
                Some(gateway::Plan::make(&vm_id, network, &program, group.as_ref())?)
            }
            None => None,
        };
        let console_fd = console.is_some().then_some(qemu::Console::Socket(CONSOLE_FD));
        let machine = qemu::Machine {
            name: vm_id,
            root_disk: qemu::RootDisk { path: root },
            console: console_fd,
            ..machine(host, memory_mib, gateway.is_some(), start)
        };
        let mut command = Command::new(host.qemu.clone(), qemu::argv(&machine));
        command.jail(confinement.jail());
        if let Some(group) = group {
            command.join(group).map_err(BootError::Prepare)?;
        }
        command.pass(qemu_stderr.try_clone().map_err(BootError::Sockets)?, 1);
        command.pass(qemu_stderr, 2);
        command.pass(listener.into(), AGENT_FD);
        command.pass(qemu_monitor.into(), QMP_FD);
        for (file, fd) in host.image.duplicate().map_err(BootError::Prepare)?.into_iter().zip(IMAGE_FDS) {
            command.pass(file, fd);
        }
        let console = console.map(|((ours, qemus), output)| {
            command.pass(qemus.into(), CONSOLE_FD);
            (ours, output)
        });
        if let Some(memory) = memory {
            command.pass(memory, MEMORY_FD);
        }
        if let Some(link) = gateway.as_mut().and_then(|plan| plan.link.take()) {
            command.pass(link, NETWORK_FD);
        }
        Ok(Self { command, run_dir, monitor, stderr, console, gateway, patience: host.boot_timeout })
    }
}

/// What a VM has in common with all those whose state can be loaded into it.
pub(in crate::vm) fn shape(host: &Host, memory_mib: u32, has_network: bool) -> Vec<String> {
    qemu::shape(&machine(host, memory_mib, has_network, qemu::Start::Blank))
}

/// A machine without a name, a disk or a console.
fn machine(host: &Host, memory_mib: u32, has_network: bool, start: qemu::Start) -> qemu::Machine {
    let card = qemu::NetworkCard { fd: NETWORK_FD, mac: link::GUEST_MAC, mtu: link::MAX_MTU };
    qemu::Machine {
        name: String::new(),
        arch: host.arch,
        accelerator: host.accelerator.clone(),
        memory_mib,
        vcpus: 1,
        start,
        root_disk: qemu::RootDisk { path: PathBuf::new() },
        layer_disk: None,
        agent_fd: AGENT_FD,
        qmp_fd: QMP_FD,
        network: has_network.then_some(card),
        console: None,
        sandbox: true,
    }
}

fn boot(kernel: PathBuf, initramfs: PathBuf, memory_fd: Option<i32>) -> qemu::Start {
    qemu::Start::Boot(qemu::Boot { kernel, initramfs, kernel_args: Vec::new(), memory_fd })
}

/// The memory file of this name in the directory that a blank QEMU has inherited, as QEMU opens it.
pub(super) fn memory_path(name: &str) -> String {
    format!("/proc/self/fd/{MEMORY_FD}/{name}")
}
