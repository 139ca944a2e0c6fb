//! The host's end of every connection: it asks the guest for something, and counts and times what comes of it.
//!
//! All clocks are the host's. Calls block, and give up after [`PATIENCE`].

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

/// How long nothing may happen on a connection.
const PATIENCE: Duration = Duration::from_secs(10);

/// What one call moves at most.
const PIECE_BYTES: usize = 256 * 1024;

/// Connections of the guest that are taken at once: the most that it makes.
const TAKERS: usize = 16;

/// What no guest says.
const END: &[u8; 2] = b"zz";

/// Between two looks whether somebody has connected.
const POLL: Duration = Duration::from_millis(1);

/// Where the guest connects to.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    listener: Arc<TcpListener>,
    pub(crate) address: SocketAddr,
}

/// What was moved, and in which time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moved {
    pub(crate) bytes: u64,
    pub(crate) time: Duration,
}

impl Peer {
    pub(crate) fn open(at: Ipv4Addr) -> Result<Self> {
        let opened = TcpListener::bind((at, 0)).and_then(|listener| Ok((listener.local_addr()?, listener)));
        let (address, listener) = opened.context("opening a port (cargo xtask bench network makes the network)")?;
        Ok(Self { listener: Arc::new(listener), address })
    }

    /// The next connection of a guest.
    pub(crate) fn accept(&self) -> Result<TcpStream> {
        self.listener.set_nonblocking(true).context("waiting for the guest")?;
        let begun = Instant::now();
        loop {
            match self.listener.accept() {
                Ok((stream, _)) => return prepared(stream),
                Err(_none_yet) if begun.elapsed() < PATIENCE => thread::sleep(POLL),
                Err(error) => return Err(error).context("waiting for the guest"),
            }
        }
    }

    /// Takes connections of which each says two bytes, hears one and is closed by the guest, until [`end`](Self::end). Returns how
    /// many there were a second, from the first to the last.
    ///
    /// The guest closes first whoever connected: where the network does, slirp keeps its socket for ten seconds more, and QEMU's
    /// descriptors run out.
    pub(crate) fn take(&self) -> Result<f64> {
        self.listener.set_nonblocking(false).context("waiting for the guest")?;
        let closed = Mutex::new(Vec::new());
        let work = || -> Result<()> {
            loop {
                let (stream, _) = self.listener.accept().context("waiting for the guest")?;
                let (mut stream, mut said) = (prepared(stream)?, [0; 2]);
                stream.read_exact(&mut said).context("a connection of the guest")?;
                if &said == END {
                    return Ok(());
                }
                stream.write_all(b".").context("answering the guest")?;
                ensure!(
                    stream.read(&mut said).context("waiting for its end")? == 0,
                    "the guest said what it was not asked"
                );
                closed.lock().unwrap_or_else(PoisonError::into_inner).push(Instant::now());
            }
        };
        thread::scope(|scope| {
            let workers: Vec<_> = (0..TAKERS).map(|_| scope.spawn(work)).collect();
            workers.into_iter().map(|worker| worker.join().unwrap_or(Ok(()))).collect::<Result<Vec<()>>>()
        })?;
        let mut closed = closed.into_inner().unwrap_or_else(PoisonError::into_inner);
        closed.sort();
        let (Some(first), Some(last)) = (closed.first(), closed.last()) else { bail!("the guest did not connect") };
        // The first one is what the time begins with.
        Ok((closed.len() - 1) as f64 / last.duration_since(*first).as_secs_f64())
    }

    /// There will be no more connections of the guest.
    pub(crate) fn end(&self) -> Result<()> {
        for _ in 0..TAKERS {
            connect(self.address)?.write_all(END).context("ending")?;
        }
        Ok(())
    }
}

/// A connection to the guest's port.
pub(crate) fn connect(to: SocketAddr) -> Result<TcpStream> {
    prepared(TcpStream::connect(to).with_context(|| format!("connecting to {to}"))?)
}

fn prepared(stream: TcpStream) -> Result<TcpStream> {
    let prepare = || {
        stream.set_nonblocking(false)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))
    };
    prepare().context("preparing a connection")?;
    Ok(stream)
}

/// Bytes of the guest for so many seconds, from the first that comes to the end.
pub(crate) fn receive(mut stream: &TcpStream, seconds: u8) -> Result<Moved> {
    let mut room = vec![0; PIECE_BYTES];
    stream.write_all(&[b's', seconds]).context("asking the guest to send")?;
    let mut bytes = stream.read(&mut room).context("receiving")? as u64;
    let begun = Instant::now();
    loop {
        match stream.read(&mut room).context("receiving")? {
            0 => return Ok(Moved { bytes, time: begun.elapsed() }),
            some => bytes += some as u64,
        }
    }
}

/// Bytes to the guest for so many seconds, and until it has them all.
pub(crate) fn send(mut stream: &TcpStream, seconds: u8) -> Result<Moved> {
    let piece = vec![7; PIECE_BYTES];
    stream.write_all(b"r\0").context("asking the guest to receive")?;
    let (begun, mut bytes) = (Instant::now(), 0);
    while begun.elapsed() < Duration::from_secs(seconds.into()) {
        bytes += stream.write(&piece).context("sending")? as u64;
    }
    stream.shutdown(std::net::Shutdown::Write).context("ending what is sent")?;
    // It closes when it has everything.
    ensure!(stream.read(&mut [0]).context("waiting for the guest's end")? == 0, "the guest said what it was not asked");
    Ok(Moved { bytes, time: begun.elapsed() })
}

/// Round trips of one byte, in microseconds.
pub(crate) fn echo(mut stream: &TcpStream, count: u32) -> Result<Vec<f64>> {
    stream.write_all(b"e\0").context("asking the guest to echo")?;
    let mut trips = Vec::new();
    for _ in 0..count {
        let begun = Instant::now();
        stream.write_all(b"x").context("a round trip")?;
        stream.read_exact(&mut [0]).context("a round trip")?;
        trips.push(begun.elapsed().as_secs_f64() * 1e6);
    }
    Ok(trips)
}

/// Connections to the guest's port, made and closed by it, `at_once` at a time: how many a second.
pub(crate) fn dial(to: SocketAddr, seconds: u8, at_once: u32) -> Result<f64> {
    let begun = Instant::now();
    let work = || {
        let mut count = 0_u32;
        while begun.elapsed() < Duration::from_secs(seconds.into()) {
            let mut stream = connect(to)?;
            stream.write_all(b"c\0").context("asking the guest to close")?;
            ensure!(stream.read(&mut [0]).context("waiting for its end")? == 0, "the guest said what it was not asked");
            count += 1;
        }
        Ok(count)
    };
    let counts = thread::scope(|scope| {
        let workers: Vec<_> = (0..at_once).map(|_| scope.spawn(work)).collect();
        workers.into_iter().map(|worker| worker.join().unwrap_or_else(|_| Ok(0))).collect::<Result<Vec<u32>>>()
    })?;
    Ok(f64::from(counts.into_iter().sum::<u32>()) / begun.elapsed().as_secs_f64())
}
