//! Frames: what crosses the service's socket.
//!
//! `len: u32 BE | kind: u8 | body: len bytes`
//!
//! The peer is a process of the same user and is believed in what it means, not in what it sends: a length is checked before its body is
//! waited for, and nothing here panics on input. The kinds and the greeting's fields never change their meaning, so that any build
//! can tell another from itself and end it.

use std::io;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// `len` and `kind`.
const HEADER_BYTES: usize = 5;

/// Longest body that a service sends: a piece of output is 64 KiB, an outcome a page of text.
pub(super) const MAX_ANSWER_BYTES: usize = 1024 * 1024;

/// Longest body that a service takes: the longest program and the largest environment that are accepted, were each of their characters
/// written in six, take less.
pub(super) const MAX_REQUEST_BYTES: usize = 16 * 1024 * 1024;

/// What a body means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Service: who it is. The first frame of every connection.
    Greeting,
    /// Client: a request to run. After it the client says nothing; when it hangs up, or ends its half, the run is called off.
    Run,
    /// Client: tell me when the pool is full. Answered by `Done` or `Failed`.
    AwaitPool,
    /// Client: end. Answered by `Done` or `Failed` when all VMs are confirmed dead, or are not.
    End,
    /// Service: a piece of the program's standard output.
    Stdout,
    /// Service: a piece of the program's standard error.
    Stderr,
    /// Service: a piece of the guest's console.
    BootLog,
    /// Service: a piece of what an installer of packages says.
    Progress,
    /// Service: the outcome of a run, but for what was written. The last frame.
    Outcome,
    /// Service: it was not done, and why. The last frame.
    Failed,
    /// Service: what was asked for is done. The last frame.
    Done,
}

/// A frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) kind: Kind,
    pub(super) body: Bytes,
}

/// Takes frames out of bytes as they arrive. What it has read of a frame is kept when a read is dropped.
#[derive(Debug)]
pub(super) struct Inlet {
    arrived: BytesMut,
    max_body_bytes: usize,
}

impl Kind {
    const ALL: [(u8, Self); 11] = [
        (1, Self::Greeting),
        (2, Self::Run),
        (3, Self::AwaitPool),
        (4, Self::End),
        (5, Self::Stdout),
        (6, Self::Stderr),
        (7, Self::BootLog),
        (8, Self::Outcome),
        (9, Self::Failed),
        (10, Self::Done),
        (11, Self::Progress),
    ];

    fn number(self) -> u8 {
        Self::ALL.iter().find(|(_, kind)| *kind == self).map_or(0, |(number, _)| *number)
    }

    fn of(number: u8) -> Option<Self> {
        Self::ALL.iter().find(|(known, _)| *known == number).map(|(_, kind)| *kind)
    }
}

impl Inlet {
    /// An inlet for bodies up to `max_body_bytes`.
    pub(super) fn new(max_body_bytes: usize) -> Self {
        Self { arrived: BytesMut::new(), max_body_bytes }
    }

    /// The next frame from `peer`; `None`: it has hung up after a whole one.
    ///
    /// # Errors
    /// The peer sent what is no frame, hung up within one, or cannot be read.
    pub(super) async fn next(&mut self, peer: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Frame>> {
        loop {
            if let Some(frame) = self.take()? {
                return Ok(Some(frame));
            }
            if peer.read_buf(&mut self.arrived).await? == 0 {
                let is_between_frames = self.arrived.is_empty();
                return if is_between_frames { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
            }
        }
    }

    /// A frame out of what has arrived. `None`: it is not all there.
    fn take(&mut self) -> io::Result<Option<Frame>> {
        let mut header = self.arrived.as_ref();
        let (Ok(len), Ok(number)) = (header.try_get_u32(), header.try_get_u8()) else { return Ok(None) };
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        if len > self.max_body_bytes {
            return Err(wrong(format!("a frame of {len} bytes is over the limit of {}", self.max_body_bytes)));
        }
        let kind = Kind::of(number).ok_or_else(|| wrong(format!("there are no frames of kind {number}")))?;
        if header.len() < len {
            return Ok(None);
        }
        self.arrived.advance(HEADER_BYTES);
        Ok(Some(Frame { kind, body: self.arrived.split_to(len).freeze() }))
    }
}

/// Sends a frame. Dropped before it is done, part of it may have gone.
///
/// # Errors
/// The body is longer than a length can say, or the peer does not take it: then it has not got all of it.
pub(super) async fn send(peer: &mut (impl AsyncWrite + Unpin), kind: Kind, body: &[u8]) -> io::Result<()> {
    let len = u32::try_from(body.len()).map_err(|_| wrong("the body is too long for a frame".into()))?;
    let mut frame = BytesMut::with_capacity(HEADER_BYTES + body.len());
    frame.put_u32(len);
    frame.put_u8(kind.number());
    frame.put_slice(body);
    peer.write_all(&frame).await
}

pub(super) fn wrong(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read(bytes: &[u8], max_body_bytes: usize) -> io::Result<Vec<Frame>> {
        let (mut peer, mut inlet, mut frames) = (bytes, Inlet::new(max_body_bytes), Vec::new());
        while let Some(frame) = inlet.next(&mut peer).await? {
            frames.push(frame);
        }
        Ok(frames)
    }

    #[tokio::test]
    async fn frames_arrive_as_they_were_sent_however_the_bytes_are_cut() {
        let (mut sent, mut bytes) = (Vec::new(), Vec::new());
        let longest = Kind::ALL.len() * 7 - 7;
        for (number, kind) in Kind::ALL {
            let body = vec![number; usize::from(number) * 7 - 7];
            send(&mut bytes, kind, &body).await.expect("a vector takes it");
            sent.push(Frame { kind, body: body.into() });
        }
        assert_eq!(read(&bytes, longest).await.expect("they are frames"), sent);
        let (mut near, mut far) = tokio::io::duplex(1);
        let sending = async move { far.write_all(&bytes).await };
        let reading = async {
            let mut inlet = Inlet::new(longest);
            for frame in sent {
                assert_eq!(inlet.next(&mut near).await.expect("it is a frame"), Some(frame));
            }
            assert_eq!(inlet.next(&mut near).await.expect("it is the end"), None);
        };
        let (all_sent, ()) = futures_util::future::join(sending, reading).await;
        all_sent.expect("it is read");
    }

    #[tokio::test]
    async fn a_body_over_the_limit_is_refused_before_any_of_it_has_come() {
        let mut bytes = Vec::new();
        send(&mut bytes, Kind::Stdout, &[0; 64]).await.expect("a vector takes it");
        assert_eq!(read(&bytes, 64).await.expect("it is a frame").len(), 1);
        let error = read(&bytes[..HEADER_BYTES], 63).await.expect_err("it is too long");
        assert!(error.to_string().contains("64 bytes is over the limit of 63"), "{error}");
        let error = read(&[0xff, 0xff, 0xff, 0xff, 5], MAX_ANSWER_BYTES).await.expect_err("it is too long");
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }

    #[tokio::test]
    async fn a_kind_that_is_none_and_a_frame_that_breaks_off_are_refused() {
        for number in [0, 12, 255] {
            let error = read(&[0, 0, 0, 0, number], 1).await.expect_err("there is no such kind");
            assert!(error.to_string().ends_with(&format!("kind {number}")), "{error}");
        }
        let mut bytes = Vec::new();
        send(&mut bytes, Kind::Stderr, b"abc").await.expect("a vector takes it");
        for len in 1..bytes.len() {
            let error = read(&bytes[..len], 3).await.expect_err("it is not all there");
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{len}");
        }
    }

    #[tokio::test]
    async fn a_read_that_is_dropped_loses_nothing() {
        let (mut near, mut far) = tokio::io::duplex(64);
        let mut inlet = Inlet::new(3);
        far.write_all(&[0, 0, 0, 3, 6, b'a']).await.expect("it is read");
        let waited = tokio::time::timeout(std::time::Duration::from_millis(1), inlet.next(&mut near)).await;
        assert!(waited.is_err(), "it is not all there");
        far.write_all(b"bc").await.expect("it is read");
        let frame = inlet.next(&mut near).await.expect("it is a frame");
        assert_eq!(frame, Some(Frame { kind: Kind::Stderr, body: Bytes::from_static(b"abc") }));
    }
}
