//! A server of files on the loopback interface that misbehaves as it is told, and counts what it sends.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

/// How one request is answered. What is not told is answered properly.
#[derive(Clone, Debug)]
pub(super) enum Answer {
    /// With this status and nothing else.
    Status(u16),
    /// With the headers of the whole answer and so many bytes of it; then the connection is closed.
    CutAfter(usize),
    /// The same without saying how long it is.
    EndAfter(usize),
    /// With the headers and so many bytes; then silence, with the connection open.
    StallAfter(usize),
    /// With all of the file, whatever range was asked for.
    Whole,
    /// With other bytes of the same length.
    Wrong,
    /// With more bytes than the file has, without saying how many.
    TooMany,
    /// As if it were another part of the file than the one that was asked for.
    OtherRange,
    /// Elsewhere.
    Redirect(String),
}

/// One request, and how much of a file it was answered with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) path: String,
    pub(super) from: Option<u64>,
    pub(super) sent_bytes: usize,
}

#[derive(Debug, Default)]
struct State {
    files: HashMap<String, Vec<u8>>,
    answers: Vec<(String, Answer)>,
    requests: Vec<Request>,
}

/// The server; it ends with this.
#[derive(Debug)]
pub(super) struct Server {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    listening: JoinHandle<()>,
}

impl Server {
    pub(super) async fn start(files: HashMap<String, Vec<u8>>) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port is free");
        let address = listener.local_addr().expect("it is bound");
        let state = Arc::new(Mutex::new(State { files, ..State::default() }));
        let shared = Arc::clone(&state);
        let listening = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                // A client that goes away is none of the server's business.
                drop(tokio::spawn(serve(stream, Arc::clone(&shared))));
            }
        });
        Self { address, state, listening }
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}/images", self.address)
    }

    /// The next request for what ends with `path` is answered so; several are answered in the order in which this is said.
    pub(super) fn answer(&self, path: &str, answer: Answer) -> &Self {
        self.state.lock().expect("nobody panicked").answers.push((path.into(), answer));
        self
    }

    /// What has been asked for of what ends with `path`.
    pub(super) fn requests(&self, path: &str) -> Vec<Request> {
        let state = self.state.lock().expect("nobody panicked");
        state.requests.iter().filter(|request| request.path.ends_with(path)).cloned().collect()
    }

    pub(super) fn sent_bytes(&self, path: &str) -> usize {
        self.requests(path).iter().map(|request| request.sent_bytes).sum()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

/// Answers one request; the connection is closed after it.
async fn serve(mut stream: TcpStream, state: Arc<Mutex<State>>) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    let head = String::from_utf8_lossy(&head).to_lowercase();
    let path = head.split([' ', '?']).nth(1).unwrap_or_default().to_owned();
    let range = head.lines().find_map(|line| line.strip_prefix("range: bytes=")?.trim_end_matches('-').parse().ok());
    let (file, answer) = {
        let mut state = state.lock().expect("nobody panicked");
        let told = state.answers.iter().position(|(suffix, _)| path.ends_with(suffix));
        (state.files.get(&path).cloned(), told.map(|told| state.answers.remove(told).1))
    };
    let (bytes, stays) = respond(file, range, answer.as_ref());
    let sent_bytes = bytes.len() - bytes.windows(4).position(|end| end == b"\r\n\r\n").map_or(0, |end| end + 4);
    state.lock().expect("nobody panicked").requests.push(Request { path, from: range, sent_bytes });
    stream.write_all(&bytes).await?;
    stream.flush().await?;
    if stays {
        // Until the client has had enough.
        drop(stream.read(&mut [0]).await);
    }
    Ok(())
}

/// Everything that is written, and whether the connection stays open then.
fn respond(file: Option<Vec<u8>>, range: Option<u64>, answer: Option<&Answer>) -> (Vec<u8>, bool) {
    let status =
        |code: u16| (format!("HTTP/1.1 {code} Told\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").into(), false);
    match (answer, file) {
        (Some(Answer::Status(code)), _) => status(*code),
        (Some(Answer::Redirect(to)), _) => {
            let head = format!("HTTP/1.1 302 Told\r\nLocation: {to}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            (head.into(), false)
        }
        (_, None) => status(404),
        (_, Some(file)) => respond_with(file, range, answer),
    }
}

fn respond_with(mut file: Vec<u8>, range: Option<u64>, answer: Option<&Answer>) -> (Vec<u8>, bool) {
    let length = file.len();
    let (mut head, mut body) = match (range, answer) {
        (Some(_), Some(Answer::OtherRange)) => {
            (format!("206 Partial\r\nContent-Range: bytes 0-{}/{length}", length - 1), file.split_off(0))
        }
        (Some(from), answer) if !matches!(answer, Some(Answer::Whole)) => {
            let rest = file.split_off(usize::try_from(from).expect("it is short").min(length));
            (format!("206 Partial\r\nContent-Range: bytes {from}-{}/{length}", length - 1), rest)
        }
        _ => ("200 OK".to_owned(), file),
    };
    if !matches!(answer, Some(Answer::EndAfter(_) | Answer::TooMany)) {
        head += &format!("\r\nContent-Length: {}", body.len());
    }
    match answer {
        Some(Answer::CutAfter(bytes) | Answer::EndAfter(bytes) | Answer::StallAfter(bytes)) => body.truncate(*bytes),
        Some(Answer::Wrong) => body.iter_mut().for_each(|byte| *byte ^= 1),
        Some(Answer::TooMany) => body.extend_from_within(..),
        _ => {}
    }
    let mut bytes = format!("HTTP/1.1 {head}\r\nConnection: close\r\n\r\n").into_bytes();
    bytes.extend(body);
    (bytes, matches!(answer, Some(Answer::StallAfter(_))))
}
