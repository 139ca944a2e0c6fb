//! The trials: what is measured of a VM and its network, one after the other.

use std::{fmt, net::TcpStream, time::Duration};

use anyhow::{Context as _, Result};

use crate::{
    peer::{self, Moved},
    sheet::{Row, Sheet, Unit, quantile},
    usage::Used,
    vm::{Opener, Vm},
};

/// Round trips of one trial.
const ROUND_TRIPS: u32 = 1000;

/// One trial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trial {
    /// Bytes of the guest, on one connection.
    Receive(Opener),
    /// Bytes to the guest, on one connection.
    Send(Opener),
    /// Single bytes there and back.
    Echo(Opener),
    /// Connections that are made, say two bytes and are closed by the other end, so many at once.
    Connect(Opener, u32),
}

impl Trial {
    /// All of them.
    pub(crate) const ALL: [Self; 10] = [
        Self::Receive(Opener::Guest),
        Self::Send(Opener::Guest),
        Self::Receive(Opener::Host),
        Self::Send(Opener::Host),
        Self::Echo(Opener::Guest),
        Self::Echo(Opener::Host),
        Self::Connect(Opener::Guest, 1),
        Self::Connect(Opener::Guest, 16),
        Self::Connect(Opener::Host, 1),
        Self::Connect(Opener::Host, 16),
    ];

    /// Measures, and adds what came of it to the sheet.
    pub(crate) async fn make(self, vm: &Vm, seconds: u8, sheet: &mut Sheet) -> Result<()> {
        match self {
            Self::Receive(opener) => {
                self.transfer(vm, opener, sheet, move |stream| peer::receive(stream, seconds)).await
            }
            Self::Send(opener) => self.transfer(vm, opener, sheet, move |stream| peer::send(stream, seconds)).await,
            Self::Echo(opener) => self.echo(vm, opener, sheet).await,
            Self::Connect(opener, at_once) => {
                let a_second = connections(vm, opener, seconds, at_once).await?;
                sheet.add(Row::new(self.to_string(), Unit::ConnectionsPerSecond), vm.network, a_second);
                Ok(())
            }
        }
    }

    async fn transfer(
        self,
        vm: &Vm,
        opener: Opener,
        sheet: &mut Sheet,
        transfer: impl FnOnce(&TcpStream) -> Result<Moved> + Send + 'static,
    ) -> Result<()> {
        let pids = vm.pids();
        let (moved, used) = vm
            .on_connection(opener, move |stream| {
                let before = Used::of(pids.0, pids.1)?;
                let moved = transfer(stream)?;
                Ok((moved, Used::of(pids.0, pids.1)?.since(&before)))
            })
            .await?;
        let bytes = moved.bytes as f64;
        let name = self.to_string();
        let megabytes_a_second = bytes / 1e6 / moved.time.as_secs_f64();
        sheet.add(Row::new(&*name, Unit::MegabytesPerSecond), vm.network, megabytes_a_second);
        let a_gigabyte = |cpu: Duration| cpu.as_secs_f64() / (bytes / 1e9);
        if let Some(network) = used.network {
            let row = Row::new(format!("{name}, the network's process"), Unit::CpuSecondsPerGigabyte);
            sheet.add(row, vm.network, a_gigabyte(network));
        }
        let row = Row::new(format!("{name}, with QEMU"), Unit::CpuSecondsPerGigabyte);
        sheet.add(row, vm.network, a_gigabyte(used.all()));
        Ok(())
    }

    async fn echo(self, vm: &Vm, opener: Opener, sheet: &mut Sheet) -> Result<()> {
        let trips = vm.on_connection(opener, |stream| peer::echo(stream, ROUND_TRIPS)).await?;
        for (name, share) in [("median", 0.5), ("95th percentile", 0.95)] {
            let row = Row::new(format!("{self}, {name}"), Unit::Microseconds);
            sheet.add(row, vm.network, quantile(&trips, share).context("there were no round trips")?);
        }
        Ok(())
    }
}

impl fmt::Display for Trial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let by = |opener: &Opener| match opener {
            Opener::Guest => "the guest connects",
            Opener::Host => "the host connects",
        };
        match self {
            Self::Receive(opener) => write!(f, "guest to host, {}", by(opener)),
            Self::Send(opener) => write!(f, "host to guest, {}", by(opener)),
            Self::Echo(opener) => write!(f, "single bytes, {}", by(opener)),
            Self::Connect(opener, 1) => write!(f, "{}, one at a time", by(opener)),
            Self::Connect(opener, at_once) => write!(f, "{}, {at_once} at once", by(opener)),
        }
    }
}

async fn connections(vm: &Vm, opener: Opener, seconds: u8, at_once: u32) -> Result<f64> {
    match opener {
        Opener::Host => {
            let to = vm.exposed;
            tokio::task::spawn_blocking(move || peer::dial(to, seconds, at_once)).await?
        }
        Opener::Guest => {
            let peer = vm.peer.clone();
            let dialing = format!("dial {} {seconds} {at_once}", peer.address);
            let taking = tokio::task::spawn_blocking(move || peer.take());
            let dialed = vm.traffic(&dialing).await;
            vm.peer.end()?;
            let taken = taking.await?;
            dialed.and(taken)
        }
    }
}
