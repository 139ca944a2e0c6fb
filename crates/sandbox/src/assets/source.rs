//! The source: files of a base as pieces of bytes, from wherever in the file one asks, over HTTP or from a directory.
//!
//! Owns the client, ranges, and the time after which a silent server is given up. It tries once: when to try again is the fetcher's
//! business. A server is not believed: what it says of a file's length can only make it be refused earlier.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use reqwest::{Client, Response, StatusCode, Url, header};
use rustls::{ClientConfig, RootCertStore, client::danger::ServerCertVerifier, crypto::ring};
use rustls_platform_verifier::Verifier;
use tokio::sync::mpsc;

use super::{place::Place, trouble::Trouble};

/// Bytes that are read from a file at a time.
const PIECE_BYTES: usize = 256 * 1024;

/// Pieces that wait for whoever writes them: enough that reading and writing overlap.
pub(super) const PIECES_UNDER_WAY: usize = 4;

/// How long a server is waited for, and how often.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terms {
    /// Until there is a connection.
    pub(super) connect: Duration,
    /// Without a byte.
    pub(super) silence: Duration,
    /// Before the second try; each further pause is twice as long.
    pub(super) first_pause: Duration,
    /// Tries in a row that bring next to nothing.
    pub(super) tries: u32,
    /// Whether the environment's proxies are used.
    pub(super) proxies: bool,
}

/// Where files come from.
#[derive(Debug)]
pub(super) struct Source {
    base: Place,
    client: Option<Client>,
}

/// What is left of a file.
#[derive(Debug)]
pub(super) struct Body {
    /// Where in the file it begins: where it was asked to, or at the start.
    pub(super) start: u64,
    /// Its length, if the source tells.
    pub(super) announced_bytes: Option<u64>,
    pieces: Pieces,
}

#[derive(Debug)]
enum Pieces {
    Response(Response),
    File(mpsc::Receiver<io::Result<Bytes>>),
}

impl Default for Terms {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(15),
            silence: Duration::from_secs(30),
            first_pause: Duration::from_millis(500),
            tries: 5,
            proxies: true,
        }
    }
}

impl Source {
    pub(super) fn new(base: Place, terms: &Terms) -> Result<Self, Trouble> {
        let client = match &base {
            Place::File(_) => None,
            Place::Url(url) => Some(client(url, terms)?),
        };
        Ok(Self { base, client })
    }

    pub(super) fn base(&self) -> &Place {
        &self.base
    }

    /// Opens a file at `from`, or at its start where that cannot be had.
    pub(super) async fn open(&self, place: &Place, from: u64) -> Result<Body, Trouble> {
        match (place, &self.client) {
            (Place::Url(url), Some(client)) => get(client, url, from).await,
            (Place::File(path), _) => read(path.clone(), from).await,
            (Place::Url(_), None) => Err(Trouble::Interrupted),
        }
    }
}

impl Body {
    /// The next bytes; `None` at the end, which may have come too early.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Trouble> {
        match &mut self.pieces {
            Pieces::Response(response) => response.chunk().await.map_err(Trouble::of_client),
            Pieces::File(pieces) => pieces.recv().await.transpose().map_err(Trouble::Unreadable),
        }
    }
}

/// A client whose TLS is this library's own, whatever the process uses elsewhere.
fn client(base: &Url, terms: &Terms) -> Result<Client, Trouble> {
    let is_https = base.scheme() == "https";
    let tls = || {
        let provider = Arc::new(ring::default_provider());
        let config =
            ClientConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions()?;
        let config = match Verifier::new(provider) {
            Ok(verifier) => {
                let verifier: Arc<dyn ServerCertVerifier> = Arc::new(verifier);
                config.dangerous().with_custom_certificate_verifier(verifier)
            }
            // A system without certificates still reaches a server without TLS.
            Err(_) if !is_https => config.with_root_certificates(RootCertStore::empty()),
            Err(error) => return Err(error),
        };
        Ok::<_, rustls::Error>(config.with_no_client_auth())
    };
    let builder = Client::builder()
        .tls_backend_preconfigured(tls().map_err(|error| Trouble::Tls(error.into()))?)
        // The manifest is believed because of who serves it, so the way there must not lose its protection.
        .https_only(is_https)
        .user_agent(concat!("exec-sandbox/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(terms.connect)
        .read_timeout(terms.silence);
    let builder = if terms.proxies { builder } else { builder.no_proxy() };
    builder.build().map_err(|error| Trouble::Tls(error.without_url().into()))
}

async fn get(client: &Client, url: &Url, from: u64) -> Result<Body, Trouble> {
    if from > 0 {
        let range = client.get(url.clone()).header(header::RANGE, format!("bytes={from}-"));
        let response = range.send().await.map_err(Trouble::of_client)?;
        match response.status() {
            StatusCode::PARTIAL_CONTENT if starts_at(&response, from) => return body(response, from),
            // Another part than was asked for, or none: the whole file is asked for instead.
            StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE => {}
            _ => return body(response, 0),
        }
    }
    body(client.get(url.clone()).send().await.map_err(Trouble::of_client)?, 0)
}

/// Whether the answer to a range says that it is that range.
fn starts_at(response: &Response, from: u64) -> bool {
    let range = response.headers().get(header::CONTENT_RANGE).and_then(|range| range.to_str().ok());
    range
        .and_then(|range| range.strip_prefix("bytes ")?.split_once('-'))
        .is_some_and(|(start, _)| start.parse() == Ok(from))
}

fn body(response: Response, start: u64) -> Result<Body, Trouble> {
    let status = response.status();
    if status != StatusCode::OK && !(status == StatusCode::PARTIAL_CONTENT && start > 0) {
        return Err(Trouble::Status(status));
    }
    let announced_bytes = response.content_length().map(|rest| rest.saturating_add(start));
    Ok(Body { start, announced_bytes, pieces: Pieces::Response(response) })
}

/// A file's bytes from `from` on, read by a thread that ends when nobody takes them any more.
async fn read(path: PathBuf, from: u64) -> Result<Body, Trouble> {
    let open = move || {
        // What is no file, a pipe for example, might never let itself be opened.
        if !path.metadata()?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a file"));
        }
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(from))?;
        Ok((file, length))
    };
    let opened = tokio::task::spawn_blocking(open).await.map_err(|_ending| Trouble::Interrupted)?;
    let (file, length) = opened.map_err(Trouble::Unreadable)?;
    let (sender, pieces) = mpsc::channel(PIECES_UNDER_WAY);
    // It needs no owner: it ends with the file, or once the receiver is gone.
    drop(tokio::task::spawn_blocking(move || send(file, &sender)));
    Ok(Body { start: from, announced_bytes: Some(length), pieces: Pieces::File(pieces) })
}

fn send(file: File, to: &mpsc::Sender<io::Result<Bytes>>) {
    let mut file = file;
    loop {
        let mut piece = Vec::with_capacity(PIECE_BYTES);
        let read = (&mut file).take(PIECE_BYTES as u64).read_to_end(&mut piece);
        let last = piece.is_empty() || read.is_err();
        let sent = match read {
            Ok(0) => Ok(()),
            Ok(_) => to.blocking_send(Ok(piece.into())),
            Err(error) => to.blocking_send(Err(error)),
        };
        if last || sent.is_err() {
            return;
        }
    }
}
