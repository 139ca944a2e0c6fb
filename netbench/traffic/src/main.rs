//! The guest's end of the network benchmark: it connects or listens, and does on each connection what the host asks for.
//!
//! A connection begins with two bytes of the host: what is asked for, and for how many seconds. It depends on nothing, so that it can
//! be linked statically for a guest whose libraries are not known here. An interpreter would be what is measured: under emulation it
//! takes more than half of the time of a short connection.

use std::{
    env,
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    process::ExitCode,
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// What one call moves at most.
const PIECE_BYTES: usize = 256 * 1024;

/// Connections that are served at once: the most that the host makes.
const WORKERS: usize = 16;

/// Connections to the host in one burst at most. The gateway refuses what is more than 4096 at once and 100 in a second, of which there
/// are enough again when the next round begins.
const MAX_DIALED: u16 = 1000;

#[expect(clippy::print_stderr, reason = "the host shows what it says when it fails")]
fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}: {error}", arguments.join(" "));
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[&str]) -> io::Result<()> {
    match arguments {
        ["listen", port] => listen(number(port)?),
        ["call", host] => serve(TcpStream::connect(address(host)?)?),
        ["dial", host, seconds, at_once] => dial(address(host)?, number(seconds)?, number(at_once)?),
        _ => Err(io::Error::other("usage: listen PORT | call ADDRESS | dial ADDRESS SECONDS AT_ONCE")),
    }
}

fn number(word: &str) -> io::Result<u16> {
    word.parse().map_err(io::Error::other)
}

fn address(word: &str) -> io::Result<SocketAddr> {
    word.parse().map_err(io::Error::other)
}

/// Serves connections to this port until it is killed.
fn listen(port: u16) -> io::Result<()> {
    let listener = Arc::new(TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))?);
    let work = || {
        let listener = Arc::clone(&listener);
        move || {
            loop {
                // What goes wrong on one connection is found by the host, which is at its other end.
                let _ = listener.accept().and_then(|(stream, _)| serve(stream));
            }
        }
    };
    join((0..WORKERS).map(|_| thread::spawn(work())).collect())
}

/// Does what the host asks for.
fn serve(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut asked = [0; 2];
    stream.read_exact(&mut asked)?;
    let [job, seconds] = asked;
    match job {
        b's' => {
            let (piece, begun) = (vec![7; PIECE_BYTES], Instant::now());
            while begun.elapsed() < Duration::from_secs(seconds.into()) {
                stream.write_all(&piece)?;
            }
        }
        b'r' => {
            let mut room = vec![0; PIECE_BYTES];
            while stream.read(&mut room)? > 0 {}
        }
        b'e' => {
            let mut one = [0];
            while stream.read(&mut one)? > 0 {
                stream.write_all(&one)?;
            }
        }
        // It was asked to close.
        _ => {}
    }
    Ok(())
}

/// Connects, says two bytes, hears one, closes, and does it again.
fn dial(host: SocketAddr, seconds: u16, at_once: u16) -> io::Result<()> {
    let begun = Instant::now();
    let work = move || {
        let mut left = MAX_DIALED / at_once.max(1);
        while left > 0 && begun.elapsed() < Duration::from_secs(seconds.into()) {
            left -= 1;
            let mut stream = TcpStream::connect(host)?;
            stream.write_all(b"c\0")?;
            stream.read_exact(&mut [0])?;
        }
        Ok(())
    };
    join((0..at_once).map(|_| thread::spawn(work)).collect())
}

fn join(workers: Vec<JoinHandle<io::Result<()>>>) -> io::Result<()> {
    workers.into_iter().try_for_each(|worker| worker.join().map_err(|_| io::Error::other("a worker has panicked"))?)
}
