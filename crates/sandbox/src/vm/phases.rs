//! Boot as a chain of phases: `Prepared → Spawned → Connected → Ready`.
//!
//! Each phase consumes the one before and holds just what exists by then. One that fails gives back what there is to tear down.
//! A wait ends early when QEMU ends, when the time is up, or when nobody wants the VM any more.

mod donate;
mod prepare;
mod rehearse;
mod restore;

use std::{
    io,
    os::{fd::OwnedFd, unix::net::UnixStream as StdUnixStream},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use exec_sandbox_wire::{CONNECTION_OP, GENERATION, GuestMessage, Hello, HostMessage, NetworkState, ResumePoint};
use rustix::io::Errno;
use tokio::{
    net::{UnixStream, unix::pipe},
    sync::{mpsc, oneshot},
    time::{Instant, sleep_until},
};

use super::{
    channel::{Channel, ChannelError},
    gateway::{self, GatewayObituary, PlanError},
    instance::{Death, Instance, Obituary},
    monitor::{Monitor, MonitorError},
    printable,
};
use crate::{
    Error, ErrorKind, ExposedPort, Output,
    network::PortError,
    process::{Child, Command, Process, SpawnError},
    run_dir::{Details, QEMU, RunDir, RunDirError},
};

pub(super) use donate::Donor;
pub(super) use prepare::{Life, Outline, details, shape};

/// Longest reason of a guest that is shown for a network that is not up.
const MAX_FAILURE_CHARS: usize = 400;

/// Why a boot came to nothing. None of the caller's code has run.
#[derive(Debug, thiserror::Error)]
pub(super) enum BootError {
    #[error("preparing the VM")]
    Prepare(#[source] io::Error),
    #[error("making the VM's directory")]
    RunDir(#[from] RunDirError),
    #[error("making the VM's sockets")]
    Sockets(#[source] io::Error),
    #[error("starting QEMU")]
    Spawn(#[from] SpawnError),
    #[error("finding the gateway")]
    FindGateway(#[source] Error),
    #[error("making the VM's network")]
    Network(#[from] PlanError),
    #[error(transparent)]
    GatewayEnded(#[from] GatewayObituary),
    #[error("the gateway did not say within {} s that it works", patience.as_secs_f64())]
    GatewayTimedOut { patience: Duration },
    #[error("the guest could not set up its network, saying: {said}")]
    GuestNetwork { said: String },
    #[error("connecting to the agent's channel")]
    Connect(#[source] io::Error),
    #[error("waiting for QEMU's process")]
    Wait(#[source] io::Error),
    #[error(transparent)]
    QemuEnded(#[from] Obituary),
    #[error("the agent did not answer within {} s", patience.as_secs_f64())]
    TimedOut { patience: Duration },
    #[error("waiting for the agent's hello")]
    Channel(#[from] ChannelError),
    #[error("the agent speaks generation {found} of the wire and this host speaks {GENERATION}")]
    Generation { found: u32 },
    #[error("having QEMU restore the guest")]
    Restore(#[from] MonitorError),
    #[error("the caller is gone")]
    Abandoned,
}

/// A phase that failed, and what it leaves to tear down.
#[derive(Debug)]
pub(super) struct Failed {
    pub(super) error: BootError,
    pub(super) instance: Option<Instance>,
}

/// All that a VM needs, and no process yet.
#[derive(Debug)]
pub(super) struct Prepared {
    command: Command,
    run_dir: RunDir,
    monitor: StdUnixStream,
    stderr: OwnedFd,
    console: Option<(StdUnixStream, mpsc::Sender<Output>)>,
    gateway: Option<gateway::Plan>,
    patience: Duration,
}

/// QEMU runs, and its gateway if it has one.
#[derive(Debug)]
pub(super) struct Spawned {
    instance: Instance,
    born: Born,
    patience: Duration,
}

/// What is known of a VM since its processes were started.
#[derive(Debug)]
pub(super) struct Born {
    /// QEMU's, for observers.
    pub(super) process: Process,
    pub(super) at: Instant,
    /// How long the gateway took to be started.
    pub(super) gateway_start: Option<Duration>,
    pub(super) ports: Vec<ExposedPort>,
}

/// QEMU has a connection for the agent, which proves nothing about the guest.
#[derive(Debug)]
pub(super) struct Connected {
    instance: Instance,
    born: Born,
    channel: Channel,
    patience: Duration,
    /// When it will be given up.
    deadline: Instant,
}

/// The agent has answered.
#[derive(Debug)]
pub(super) struct Ready {
    pub(super) live: Live,
    pub(super) born: Born,
    pub(super) ready_at: Instant,
    patience: Duration,
}

/// A QEMU with an agent that has introduced itself.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) instance: Instance,
    pub(super) channel: Channel,
    /// By which the agent is known again after the connection was lost.
    pub(super) boot_id: Vec<u8>,
}

impl Live {
    /// It came to nothing for this reason.
    fn failed(self, error: BootError) -> Failed {
        Failed { error, instance: Some(self.instance) }
    }
}

impl Prepared {
    /// Starts the gateway if there is to be one, and QEMU.
    pub(super) async fn spawn(self) -> Result<Spawned, Failed> {
        let nothing_yet = |error| Failed { error, instance: None };
        let Readers { stderr, monitor, console } = Readers::register(self.stderr, self.monitor, self.console)
            .map_err(BootError::Sockets)
            .map_err(nothing_yet)?;
        let (begun, mut ports) = (Instant::now(), Vec::new());
        let gateway = match self.gateway {
            Some(mut plan) => {
                ports = std::mem::take(&mut plan.ports);
                Some(plan.start(&self.run_dir).await.map_err(BootError::Network).map_err(nothing_yet)?)
            }
            None => None,
        };
        let gateway_start = gateway.is_some().then(|| begun.elapsed());
        let child = Child::spawn(self.command).await.map_err(BootError::Spawn).map_err(nothing_yet)?;
        let mut instance = Instance::new(child, self.run_dir, stderr, monitor);
        if let Some(gateway) = gateway {
            instance.attach(gateway);
        }
        if let Some((console, output)) = console {
            instance.stream_console(console, output);
        }
        let recorded = instance.run_dir().map_or(Ok(()), |dir| dir.record_child(QEMU, instance.pid()));
        let known = recorded.map_err(BootError::from).and_then(|()| instance.process().map_err(BootError::Wait));
        match known {
            Ok(process) => {
                let born = Born { process, at: Instant::now(), gateway_start, ports };
                Ok(Spawned { instance, born, patience: self.patience })
            }
            Err(error) => Err(Failed { error, instance: Some(instance) }),
        }
    }
}

impl Spawned {
    /// Connects to the agent's socket, which listens since before QEMU was started.
    pub(super) async fn connect(mut self) -> Result<Connected, Failed> {
        match Channel::connect(&self.instance.agent_socket(), self.instance.pid()).await {
            Ok(channel) => {
                let Self { instance, born, patience } = self;
                let deadline = born.at + patience;
                Ok(Connected { instance, born, channel, patience, deadline })
            }
            Err(error) => {
                let error = lost(&mut self.instance, BootError::Connect(error)).await;
                Err(Failed { error, instance: Some(self.instance) })
            }
        }
    }
}

impl Connected {
    /// Whether QEMU has ended.
    pub(super) async fn has_ended(&mut self) -> bool {
        tokio::select! {
            biased;
            _ended = self.instance.ended() => true,
            () = std::future::ready(()) => false,
        }
    }

    /// Writes down what the VM is for.
    pub(super) fn describe(&self, details: &Details) -> Result<(), RunDirError> {
        self.instance.run_dir().map_or(Ok(()), |dir| dir.describe(details))
    }

    /// What there is to tear down.
    pub(super) fn into_instance(self) -> Instance {
        self.instance
    }

    /// Waits for the agent's hello and answers it. `wanted` closes when the caller is gone.
    pub(super) async fn greet<T>(mut self, wanted: &mut oneshot::Sender<T>) -> Result<Ready, Failed> {
        match self.hello(wanted).await {
            Ok(boot_id) => Ok(Ready {
                live: Live { instance: self.instance, channel: self.channel, boot_id },
                born: self.born,
                ready_at: Instant::now(),
                patience: self.patience,
            }),
            Err(error) => Err(Failed { error, instance: Some(self.instance) }),
        }
    }

    /// The agent's hello, answered, and its network set up if it has one; the boot's identity.
    async fn hello<T>(&mut self, wanted: &mut oneshot::Sender<T>) -> Result<Vec<u8>, BootError> {
        let deadline = self.deadline;
        let has_network = self.instance.gateway().is_some();
        let mut greeted = None;
        loop {
            let message = tokio::select! {
                biased;
                // First, because a guest that never stops talking would keep its VM otherwise.
                () = wanted.closed() => return Err(BootError::Abandoned),
                () = sleep_until(deadline) => return Err(BootError::TimedOut { patience: self.patience }),
                message = self.channel.next() => message,
                death = self.instance.death() => return Err(died(&mut self.instance, death).await),
            };
            match (message, &mut greeted) {
                (Ok((CONNECTION_OP, GuestMessage::Hello(hello))), None) => greeted = Some(self.answer(hello)?),
                (Ok((CONNECTION_OP, GuestMessage::Network(state))), Some(_)) if has_network => {
                    network_is_up(&state)?;
                    break;
                }
                // Nothing else concerns a host that has not been greeted.
                (Ok(_), _) => {}
                (Err(error @ (ChannelError::Closed | ChannelError::Io(_))), _) => {
                    return Err(lost(&mut self.instance, error.into()).await);
                }
                (Err(error), _) => return Err(error.into()),
            }
            if greeted.is_some() && !has_network {
                break;
            }
        }
        tokio::select! {
            biased;
            started = self.instance.gateway_started() => started?,
            () = wanted.closed() => return Err(BootError::Abandoned),
            () = sleep_until(deadline) => return Err(BootError::GatewayTimedOut { patience: self.patience }),
        }
        Ok(greeted.unwrap_or_default())
    }

    fn answer(&mut self, hello: Hello) -> Result<Vec<u8>, BootError> {
        if hello.generation != GENERATION {
            return Err(BootError::Generation { found: hello.generation });
        }
        let network = self.instance.gateway().map(|_| gateway::LINK);
        let answer = HostMessage::Hello(Hello { network, ..host_hello(Vec::new()) });
        self.channel.send(&answer.into_frame(CONNECTION_OP))?;
        Ok(hello.boot_id)
    }
}

/// What a guest says has become of the network that it was named.
fn network_is_up(state: &NetworkState) -> Result<(), BootError> {
    if state.failure.is_empty() {
        return Ok(());
    }
    Err(BootError::GuestNetwork { said: printable(&state.failure, MAX_FAILURE_CHARS) })
}

/// What a host says to an agent that it meets: the time, and how far it has come with what it still waits for.
pub(super) fn host_hello(resume: Vec<ResumePoint>) -> Hello {
    Hello { generation: GENERATION, unix_time_ns: unix_time_ns(), resume, ..Hello::default() }
}

/// The wall clock in nanoseconds since 1970; 0: it is out of all bounds.
pub(super) fn unix_time_ns() -> u64 {
    let unix_time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(unix_time.as_nanos()).unwrap_or(0)
}

/// The host's ends of what QEMU writes to, registered with the runtime before QEMU exists, so that failing costs nothing.
struct Readers {
    stderr: pipe::Receiver,
    monitor: Monitor,
    console: Option<(UnixStream, mpsc::Sender<Output>)>,
}

impl Readers {
    fn register(
        stderr: OwnedFd,
        monitor: StdUnixStream,
        console: Option<(StdUnixStream, mpsc::Sender<Output>)>,
    ) -> io::Result<Self> {
        let console = match console {
            Some((stream, output)) => Some((asynchronous(stream)?, output)),
            None => None,
        };
        Ok(Self {
            stderr: pipe::Receiver::from_owned_fd(stderr)?,
            monitor: Monitor::watch(asynchronous(monitor)?),
            console,
        })
    }
}

impl BootError {
    /// Whether a guest has failed, or the QEMU that was to run it: what another guest may do better.
    pub(super) fn is_the_guests(&self) -> bool {
        matches!(
            self,
            Self::QemuEnded(_)
                | Self::TimedOut { .. }
                | Self::Channel(_)
                | Self::Generation { .. }
                | Self::GuestNetwork { .. }
                | Self::Restore(_)
        )
    }

    /// Whether what the guest was made of may be to blame, and not whoever has killed its QEMU.
    pub(super) fn is_of_its_making(&self) -> bool {
        self.is_the_guests() && !matches!(self, Self::QemuEnded(obituary) if obituary.is_a_kill())
    }

    /// The public error of a boot that failed.
    pub(super) fn into_error(self, vm_id: &str) -> Error {
        if let Self::FindGateway(error) = self {
            return error.on_vm(vm_id);
        }
        let (kind, remedy) = self.kind();
        let error = Error::new(kind, "booting a VM").because(self).on_vm(vm_id);
        match remedy {
            Some(remedy) => error.remedied_by(remedy),
            None => error,
        }
    }

    /// What sort of failure it is, and what to do about it. Only what another try may not meet again is transient.
    fn kind(&self) -> (ErrorKind, Option<&'static str>) {
        const BOOT_LOG: &str = "look at the boot log (sbx run --debug); sbx doctor examines this machine";
        match self {
            Self::TimedOut { .. } => {
                (ErrorKind::BootTimeout, Some("look at the boot log (sbx run --debug), or run fewer VMs at once"))
            }
            Self::QemuEnded(_) => (ErrorKind::Vm, Some(BOOT_LOG)),
            Self::Spawn(error) if is_no_program(error) => {
                (ErrorKind::Dependency, Some("install QEMU; sbx doctor says how"))
            }
            Self::Generation { .. } => {
                (ErrorKind::AssetDamaged, Some("build the image and this program from the same source"))
            }
            Self::Network(PlanError::Port(PortError::Asked { .. })) => {
                (ErrorKind::Host, Some("ask for another port of the host, or leave the choice to the sandbox"))
            }
            Self::Network(PlanError::Spawn(error)) if is_no_program(error) => {
                (ErrorKind::Dependency, Some("install the gateway; sbx doctor says how"))
            }
            Self::Network(_) => (ErrorKind::Host, None),
            Self::GatewayTimedOut { .. } => (ErrorKind::BootTimeout, None),
            Self::GatewayEnded(_) => (ErrorKind::Gateway, None),
            Self::Prepare(_) | Self::RunDir(_) | Self::Sockets(_) | Self::Spawn(SpawnError::Parent(_)) => {
                (ErrorKind::Host, None)
            }
            Self::Connect(error) if is_exhaustion(error) => (ErrorKind::Host, None),
            _ => (ErrorKind::Vm, None),
        }
    }
}

/// Whether what was to be started is no program.
fn is_no_program(error: &SpawnError) -> bool {
    matches!(error.errno(), Some(Errno::NOENT | Errno::ACCESS | Errno::NOEXEC))
}

/// Whether this process, or the machine, has no descriptor left.
fn is_exhaustion(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::MFILE | Errno::NFILE))
}

fn asynchronous(stream: StdUnixStream) -> io::Result<UnixStream> {
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}

/// A channel that broke with `error`. QEMU closes its channels when it ends, and its end says more.
async fn lost(instance: &mut Instance, error: BootError) -> BootError {
    match instance.ended_soon().await {
        Some(ended) => died(instance, Death::Qemu(ended)).await,
        None => error,
    }
}

async fn died(instance: &mut Instance, death: Death) -> BootError {
    match death {
        Death::Qemu(Ok(ended)) => instance.obituary(ended).await.into(),
        Death::Qemu(Err(error)) => BootError::Wait(error),
        Death::Gateway(obituary) => BootError::GatewayEnded(obituary),
    }
}
