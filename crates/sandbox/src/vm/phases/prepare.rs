//! The first phase: all that a VM needs is made, and there is no process yet.

use std::{
    fs::File,
    os::unix::net::{UnixListener, UnixStream as StdUnixStream},
    path::PathBuf,
    sync::Arc,
};

use exec_sandbox_gateway::link;
use exec_sandbox_qemu as qemu;
use exec_sandbox_wire::boot::{BootWords, FileLimit};
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::sync::mpsc;

use super::{BootError, Prepared};
use crate::{
    Output,
    host::Host,
    layers::Layer,
    process::Command,
    request::{ValidNetwork, ValidVm},
    run_dir::{Details, RunDir},
    snapshot::MAX_TRANSLATIONS_BYTES,
    vm::gateway,
};

/// The numbers under which QEMU finds its descriptors.
const AGENT_FD: i32 = 3;
const QMP_FD: i32 = 4;
const CONSOLE_FD: i32 = 5;
const IMAGE_FDS: [i32; 3] = [6, 7, 8];
const NETWORK_FD: i32 = 9;
const MEMORY_FD: i32 = 10;
const LAYER_FD: i32 = 11;
const FIRMWARE_FD: i32 = 12;
const MEMORIES_FD: i32 = 13;

/// Files in each memory file system of a guest that installs packages: fifty packages of JavaScript have tens of thousands.
const INSTALLERS_FILES: FileLimit = match FileLimit::new(262_144) {
    Some(files) => files,
    None => FileLimit::MAX,
};

/// How a guest is to come to life.
#[derive(Debug)]
pub(in crate::vm) enum Life {
    /// It boots; `waits`: after it has been told of translations.
    Boot {
        /// Its memory, so that it can be saved; `None`: memory that ends with QEMU.
        memory: Option<File>,
        waits: bool,
    },
    /// It is a copy of another.
    Blank,
}

/// What a VM needs before it is started.
#[derive(Debug)]
pub(in crate::vm) struct Outline {
    details: Details,
    layer: Option<Arc<Layer>>,
    network: Option<ValidNetwork>,
    installs: bool,
    boot_log: Option<mpsc::Sender<Output>>,
}

impl Outline {
    /// Of a VM that is to be `spec`.
    pub(in crate::vm) fn of(host: &Host, spec: &ValidVm) -> Self {
        let details = details(host, spec);
        let (layer, network, boot_log) = (spec.layer.clone(), spec.network.clone(), spec.boot_log.clone());
        Self { details, layer, network, installs: spec.installs, boot_log }
    }

    /// Of a VM of which no more than its memory is known yet.
    pub(in crate::vm) fn blank(host: &Host, memory_mib: u32) -> Self {
        let details = Details { memory_mib, image: Some(host.facts.image.clone()), ..Details::default() };
        Self { details, layer: None, network: None, installs: false, boot_log: None }
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
        let Outline { details, layer, network, installs, boot_log } = outline;
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
        let files = if installs { INSTALLERS_FILES } else { FileLimit::MIN };
        let words = BootWords { has_layer: layer.is_some(), files }.to_args();
        // While it is saved, its translations are there twice.
        let is_twice = matches!(life, Life::Boot { memory: Some(_), .. }) && host.keeps_translations();
        let room_bytes = if is_twice { MAX_TRANSLATIONS_BYTES } else { 0 };
        let (start, memory, takes) = match life {
            Life::Boot { memory, waits } => {
                let memory_fd = memory.is_some().then_some(MEMORY_FD);
                let boot = qemu::Boot { kernel, initramfs, kernel_args: words, memory_fd, waits };
                (qemu::Start::Boot(boot), memory, waits)
            }
            Life::Blank => (qemu::Start::Blank, None, true),
        };
        let confinement = host.confinement();
        let ceiling_bytes = host.memory_ceiling_bytes(memory_mib, network.is_some()) + room_bytes;
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
            ..machine(host, memory_mib, (gateway.is_some(), layer.is_some()), start)
        };
        let mut command = Command::new(host.qemu.path.clone(), qemu::argv(&machine));
        if let Some(own) = &host.qemu.own {
            command.execute(own.program.try_clone().map_err(BootError::Prepare)?.into());
            command.pass(own.firmware.try_clone().map_err(BootError::Prepare)?.into(), FIRMWARE_FD);
        }
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
            command.pass(memory.into(), MEMORY_FD);
        }
        if takes {
            command.pass(host.memories().map_err(BootError::Prepare)?, MEMORIES_FD);
        }
        if let Some(layer) = layer {
            command.pass(layer.open().map_err(BootError::Prepare)?, LAYER_FD);
        }
        if let Some(link) = gateway.as_mut().and_then(|plan| plan.link.take()) {
            command.pass(link, NETWORK_FD);
        }
        Ok(Self { command, run_dir, monitor, stderr, console, gateway, patience: host.boot_timeout })
    }
}

/// What a VM has in common with all those whose state can be loaded into it. `has`: a network, and a layer of packages.
pub(in crate::vm) fn shape(host: &Host, memory_mib: u32, has: (bool, bool)) -> Vec<String> {
    qemu::shape(&machine(host, memory_mib, has, qemu::Start::Blank))
}

/// A machine without a name, a disk or a console.
fn machine(host: &Host, memory_mib: u32, (has_network, has_layer): (bool, bool), start: qemu::Start) -> qemu::Machine {
    let card = qemu::NetworkCard { fd: NETWORK_FD, mac: link::GUEST_MAC, mtu: link::MAX_MTU };
    qemu::Machine {
        name: String::new(),
        arch: host.arch,
        accelerator: host.accelerator.clone(),
        memory_mib,
        vcpus: 1,
        start,
        root_disk: qemu::RootDisk { path: PathBuf::new() },
        layer_disk: has_layer.then_some(qemu::LayerDisk { fd: LAYER_FD }),
        agent_fd: AGENT_FD,
        qmp_fd: QMP_FD,
        network: has_network.then_some(card),
        console: None,
        firmware_fd: host.qemu.own.as_ref().map(|_| FIRMWARE_FD),
        sandbox: true,
    }
}

/// The file of this name in the directory of memories, as a QEMU opens it that was started to take something from there.
pub(super) fn memory_path(name: &str) -> String {
    format!("/proc/self/fd/{MEMORIES_FD}/{name}")
}
