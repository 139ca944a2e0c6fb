//! A VM behind one of the networks, with the program that is the guest's end of the measurements.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use exec_sandbox::{
    ExecRequest, Exit, Language, NetworkPolicy, PortMapping, Protocol, Scheduler, Session, SessionRequest, VmSpec,
    WriteOptions,
};

use crate::{
    network::{GUEST_PORT, Network, StandIns},
    peer::{self, Peer},
    usage::{self, Used},
};

/// How long the guest's port may take to be open.
const PATIENCE: Duration = Duration::from_secs(60);

/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(100);

/// Longer than a whole benchmark leaves it alone.
const IDLE_TIMEOUT: Duration = Duration::from_secs(3600);

/// Bytes that go there and back before anything is measured.
const WARM_UP_TRIPS: u32 = 10;

/// Who opens a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Opener {
    Guest,
    /// Through the exposed port.
    Host,
}

/// One VM.
#[derive(Debug)]
pub(crate) struct Vm {
    pub(crate) network: Network,
    scheduler: Scheduler,
    session: Session,
    /// By which the guest's port is reached from the host.
    pub(crate) exposed: SocketAddr,
    pub(crate) peer: Peer,
    network_pid: Option<u32>,
}

impl Vm {
    pub(crate) async fn start(network: Network, stand_ins: &StandIns, peer: &Peer, traffic: &Path) -> Result<Self> {
        let (config, port) = stand_ins.config(network)?;
        let scheduler = Scheduler::start(config).await.context("starting the scheduler")?;
        let spec = VmSpec {
            network: NetworkPolicy::Open,
            expose: vec![PortMapping { internal: GUEST_PORT, external: None, protocol: Protocol::Tcp }],
            ..VmSpec::new(Language::Raw)
        };
        let session = scheduler.session(SessionRequest { vm: spec, idle_timeout: Some(IDLE_TIMEOUT) }).await?;
        let executable = WriteOptions { mode: Some(0o755), ..WriteOptions::default() };
        session
            .write_file("traffic", tokio::fs::File::open(traffic).await.context("opening the guest's end")?, executable)
            .await?;
        let opened = session.exposed_ports().first().map(|port| port.external);
        let port = port.or(opened).context("the guest's port is not exposed")?;
        let mut vm = Self {
            network,
            scheduler,
            session,
            exposed: (Ipv4Addr::LOCALHOST, port).into(),
            peer: peer.clone(),
            network_pid: None,
        };
        vm.traffic(&format!("listen {GUEST_PORT} >/dev/null 2>&1 </dev/null &")).await?;
        vm.network_pid = vm.find_network()?;
        vm.warm_up().await?;
        Ok(vm)
    }

    /// Runs the guest's end with these arguments.
    pub(crate) async fn traffic(&self, arguments: &str) -> Result<()> {
        let mut request = ExecRequest::new(format!("./traffic {arguments}"));
        request.timeout = Some(exec_sandbox::MAX_TIMEOUT);
        let outcome = self.session.exec(request).await.context("running the guest's end")?;
        let said = String::from_utf8_lossy(&outcome.stderr);
        ensure!(outcome.exit == Exit::Code(0), "traffic {arguments} ended with {:?}: {said}", outcome.exit);
        Ok(())
    }

    /// QEMU's process, and the network's if it has one.
    pub(crate) fn pids(&self) -> (u32, Option<u32>) {
        (self.session.vm().process().pid(), self.network_pid)
    }

    /// What they have taken.
    pub(crate) fn used(&self) -> Result<Used> {
        let (qemu, network) = self.pids();
        Used::of(qemu, network)
    }

    pub(crate) async fn close(self) -> Result<()> {
        self.session.close().await.context("closing a session")?;
        self.scheduler.close().await.context("closing a scheduler")
    }

    /// The process that is the network.
    fn find_network(&self) -> Result<Option<u32>> {
        let gateway = self.session.vm().gateway().context("there is no gateway")?.pid();
        Ok(match self.network {
            Network::Gateway => Some(gateway),
            Network::Passt => Some(usage::child_of(gateway).context("passt has ended")?),
            Network::Slirp => None,
        })
    }

    /// Waits until bytes go through, both ways of connecting. The guest is first: passt learns its address from it.
    async fn warm_up(&self) -> Result<()> {
        let echo = |stream: &TcpStream| peer::echo(stream, WARM_UP_TRIPS).map(drop);
        self.on_connection(Opener::Guest, echo).await.context("nothing goes out")?;
        let begun = Instant::now();
        while let Err(error) = self.on_connection(Opener::Host, echo).await {
            ensure!(begun.elapsed() < PATIENCE, "nothing goes through the exposed port: {error:#}");
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    }

    /// Does something on a connection with the guest.
    pub(crate) async fn on_connection<T: Send + 'static>(
        &self,
        opener: Opener,
        work: impl FnOnce(&TcpStream) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        match opener {
            Opener::Host => {
                let to = self.exposed;
                tokio::task::spawn_blocking(move || work(&peer::connect(to)?)).await?
            }
            Opener::Guest => {
                let peer = self.peer.clone();
                let calling = format!("call {}", peer.address);
                let working = tokio::task::spawn_blocking(move || work(&peer.accept()?));
                let (called, worked) = tokio::join!(self.traffic(&calling), working);
                let worked = worked?;
                called.and(worked)
            }
        }
    }
}
