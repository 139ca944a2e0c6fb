//! A proxy of bytes that breaks connections as it is told.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
};

/// What it does. A change breaks every connection that there is.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Mode {
    /// Passes everything on.
    Pass,
    /// Accepts and closes.
    Dead,
    /// Accepts, reads, and never answers.
    Silent,
    /// Answers every request with this, without asking anybody.
    Answer(&'static str),
    /// Passes so many bytes to the client over all connections, and then is dead.
    CutAfter(usize),
    /// Passes so many bytes to the client over all connections, and then no more.
    StallAfter(usize),
    /// Passes so many bytes from the client over all connections, and then is dead.
    CutUploadAfter(usize),
    /// Passes so many bytes to the client at once; the rest of each answer one by one.
    DripAfter(usize),
}

/// A proxy, until it is dropped.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    mode: watch::Sender<Mode>,
    connections: Arc<AtomicUsize>,
    passed: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

#[derive(Clone)]
struct Rules {
    mode: watch::Receiver<Mode>,
    /// Bytes that were passed since the mode was changed, in the direction that the mode is about.
    passed: Arc<AtomicUsize>,
}

impl Proxy {
    pub(crate) async fn start(to: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a test has what it needs");
        let address = listener.local_addr().expect("a test has what it needs");
        let (mode, watching) = watch::channel(Mode::Pass);
        let (connections, passed) = (Arc::default(), Arc::default());
        let rules = Rules { mode: watching, passed: Arc::clone(&passed) };
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, to, rules, Arc::clone(&connections)));
        Self { address, mode, connections, passed, _tasks: tasks }
    }

    pub(crate) fn set(&self, mode: Mode) {
        self.passed.store(0, SeqCst);
        self.mode.send_replace(mode);
    }

    /// Connections that were made so far.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(SeqCst)
    }
}

async fn accept(listener: TcpListener, to: SocketAddr, rules: Rules, connections: Arc<AtomicUsize>) {
    let mut serving = JoinSet::new();
    loop {
        let Ok((client, _)) = listener.accept().await else { return };
        connections.fetch_add(1, SeqCst);
        let mut rules = rules.clone();
        let mode = *rules.mode.borrow_and_update();
        serving.spawn(async move {
            let mut changes = rules.mode.clone();
            tokio::select! {
                _ = changes.changed() => {}
                () = serve(client, to, mode, rules) => {}
            }
        });
    }
}

async fn serve(mut client: TcpStream, to: SocketAddr, mode: Mode, rules: Rules) {
    match mode {
        Mode::Dead => {}
        Mode::Silent => {
            let mut ignored = [0; 4096];
            while client.read(&mut ignored).await.is_ok_and(|read| read > 0) {}
        }
        Mode::Answer(answer) => {
            let mut request = [0; 4096];
            while client.read(&mut request).await.is_ok_and(|read| read > 0) {
                if client.write_all(answer.as_bytes()).await.is_err() {
                    return;
                }
            }
        }
        _ => {
            let Ok(server) = TcpStream::connect(to).await else { return };
            let (mut from_client, mut to_client) = client.split();
            let (mut from_server, mut to_server) = { server }.into_split();
            tokio::select! {
                () = pass(&mut from_client, &mut to_server, &rules, mode, true) => {}
                () = pass(&mut from_server, &mut to_client, &rules, mode, false) => {}
            }
        }
    }
}

/// Passes bytes in one direction until the mode ends it.
async fn pass(
    from: &mut (impl tokio::io::AsyncRead + Unpin),
    to: &mut (impl tokio::io::AsyncWrite + Unpin),
    rules: &Rules,
    mode: Mode,
    is_up: bool,
) {
    let mut bytes = vec![0; 16 * 1024];
    loop {
        let most = match (mode, is_up) {
            (Mode::CutAfter(most) | Mode::StallAfter(most) | Mode::DripAfter(most), false)
            | (Mode::CutUploadAfter(most), true) => most.saturating_sub(rules.passed.load(SeqCst)),
            _ => usize::MAX,
        };
        match mode {
            Mode::CutAfter(_) | Mode::CutUploadAfter(_) if most == 0 => return,
            Mode::StallAfter(_) if most == 0 => std::future::pending().await,
            Mode::DripAfter(_) if most == 0 => tokio::time::sleep(Duration::from_millis(5)).await,
            _ => {}
        }
        let at_once = most.clamp(1, bytes.len());
        let Ok(read) = from.read(&mut bytes[..at_once]).await else { return };
        rules.passed.fetch_add(read, SeqCst);
        if read == 0 || to.write_all(&bytes[..read]).await.is_err() {
            return;
        }
    }
}
