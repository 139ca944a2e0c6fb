//! What a gateway is started with: its configuration and descriptors, all made before there is a process.

use std::{
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream as StdUnixStream,
    },
};

use exec_sandbox_gateway::{
    config::{self, Config, Jail, Limits, Port},
    link,
};
use exec_sandbox_wire as wire;
use rustix::{net::sockopt, pipe::PipeFlags};
use tokio::net::{UnixStream, unix::pipe};
use tokio_util::task::AbortOnDropHandle;

use super::{Gateway, reports::Listener};
use crate::{
    ExposedPort,
    network::{self, GatewayProgram, PortError},
    process::{Child, Command, SpawnError, VmCgroup, nameless_file},
    request::ValidNetwork,
    run_dir::{GATEWAY, RunDir, RunDirError},
    vm::instance::tail,
};

/// The numbers under which a gateway finds its descriptors. Its ports follow.
const CONFIG_FD: i32 = 3;
const QEMU_FD: i32 = 4;
const REPORT_FD: i32 = 5;
const FIRST_PORT_FD: i32 = 6;

/// What the gateway may be behind QEMU: the more, the seldomer a guest that sends fast has to wait. What the kernel gives is less.
const LINK_SEND_BUFFER_BYTES: usize = 1024 * 1024;

/// The guest's place in its network, as it is told.
pub(in crate::vm) const LINK: wire::Network = wire::Network {
    address: link::GUEST.to_bits(),
    prefix_bits: link::PREFIX_BITS as u32,
    gateway: link::GATEWAY.to_bits(),
    resolver: link::GATEWAY.to_bits(),
    mtu: link::MAX_MTU as u32,
    card: number(link::GUEST_MAC),
    gateway_card: number(link::GATEWAY_MAC),
};

/// An Ethernet address, as the wire has it.
const fn number([a, b, c, d, e, f]: link::Mac) -> u64 {
    u64::from_be_bytes([0, 0, a, b, c, d, e, f])
}

/// A gateway that can be started.
#[derive(Debug)]
pub(in crate::vm) struct Plan {
    command: Command,
    reports: StdUnixStream,
    stderr: OwnedFd,
    vm_id: String,
    /// QEMU's end of the link.
    pub(in crate::vm) link: Option<OwnedFd>,
    /// The ports of the VM, which are open.
    pub(in crate::vm) ports: Vec<ExposedPort>,
}

/// Why there is no gateway.
#[derive(Debug, thiserror::Error)]
pub(in crate::vm) enum PlanError {
    #[error(transparent)]
    Port(#[from] PortError),
    #[error("making the gateway's descriptors")]
    Descriptors(#[from] io::Error),
    #[error("writing the gateway's configuration")]
    Config(#[from] serde_json::Error),
    #[error("starting the gateway")]
    Spawn(#[from] SpawnError),
    #[error(transparent)]
    RunDir(#[from] RunDirError),
}

impl Plan {
    /// Opens the ports and makes the descriptors. Blocks for a moment.
    pub(in crate::vm) fn make(
        vm_id: &str,
        network: ValidNetwork,
        program: &GatewayProgram,
        group: Option<&VmCgroup>,
    ) -> Result<Self, PlanError> {
        let ports = network::bind(&network.expose)?;
        let (link, gateways_link) = StdUnixStream::pair()?;
        // Where the kernel does not give so much, it gives what it may. The gateway does the same at its end.
        let _ = sockopt::set_socket_send_buffer_size(&link, LINK_SEND_BUFFER_BYTES);
        let (reports, gateways_reports) = StdUnixStream::pair()?;
        let (stderr, gateways_stderr) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(io::Error::from)?;
        let numbered = || (FIRST_PORT_FD..).zip(&ports);
        let config = Config {
            version: config::VERSION,
            qemu_fd: QEMU_FD,
            report_fd: REPORT_FD,
            mtu: link::MAX_MTU,
            rules: network.rules,
            resolvers: network.resolvers.unwrap_or_else(network::resolvers_of_this_host),
            ports: numbered()
                .map(|(fd, bound)| Port { protocol: bound.protocol(), guest_port: bound.port.internal, fd })
                .collect(),
            limits: Limits::default(),
            jail: Jail::Possible,
        };
        let mut command = Command::new(program.path.clone(), vec!["--config-fd".into(), CONFIG_FD.to_string().into()]);
        // By the id it is known to be this VM's, whoever looks.
        command.name(format!("exec-sandbox-gateway:{vm_id}"));
        command.jail(program.jail.clone());
        if let Some(group) = group {
            command.join_anothers(group)?;
        }
        command.pass(gateways_stderr, 2);
        command.pass(nameless_file("gateway-config", &serde_json::to_vec(&config)?)?, CONFIG_FD);
        command.pass(gateways_link.into(), QEMU_FD);
        command.pass(gateways_reports.into(), REPORT_FD);
        for (fd, bound) in numbered() {
            command.pass(bound.socket.as_fd().try_clone_to_owned()?, fd);
        }
        let ports = ports.into_iter().map(|bound| bound.port).collect();
        Ok(Self { command, reports, stderr, vm_id: vm_id.to_owned(), link: Some(link.into()), ports })
    }

    /// Starts it.
    pub(in crate::vm) async fn start(self, run_dir: &RunDir) -> Result<Gateway, PlanError> {
        let Self { command, reports, stderr, vm_id, .. } = self;
        // Registered before the process exists, so that failing costs nothing.
        let stderr = pipe::Receiver::from_owned_fd(stderr)?;
        reports.set_nonblocking(true)?;
        let reports = UnixStream::from_std(reports)?;
        let child = Child::spawn(command).await?;
        run_dir.record_child(GATEWAY, child.pid())?;
        let (listener, speaker) = Listener::pair();
        Ok(Gateway {
            child,
            stderr: Some(AbortOnDropHandle::new(tokio::spawn(tail(stderr)))),
            reader: Some(AbortOnDropHandle::new(tokio::spawn(speaker.listen(reports, vm_id)))),
            listener,
            ends_by: None,
            has_babbled: false,
            is_told: false,
        })
    }
}
