//! One pipe from a program, and the way from it to the port.

use std::{future, io};

use bytes::Bytes;
use exec_sandbox_wire::{Frame, Kind};
use rustix::{fd::OwnedFd, io::Errno};
use tokio::{net::unix::pipe, sync::mpsc};

use super::meter::{Allowance, Meter};
use crate::port::Outgoing;

/// Where the frames of one stream go.
#[derive(Clone, Debug)]
pub(crate) struct Outbox {
    frames: mpsc::Sender<Outgoing>,
}

/// The agent's end of a pipe.
#[derive(Debug)]
pub(crate) struct Pipe {
    reader: pipe::Receiver,
    kind: Kind,
    buffer: Vec<u8>,
    /// No process can write to it any more.
    closed: bool,
}

impl Outbox {
    pub(crate) fn new(frames: mpsc::Sender<Outgoing>) -> Self {
        Self { frames }
    }
}

impl Pipe {
    /// Reads `fd`, which must not block; its bytes go out as `kind`.
    pub(crate) fn new(fd: OwnedFd, kind: Kind) -> io::Result<Self> {
        let reader = pipe::Receiver::from_owned_fd(fd)?;
        Ok(Self { reader, kind, buffer: Vec::new(), closed: false })
    }

    /// Moves what comes next, at most `most` bytes of it. Pends while nothing comes or nothing may be sent. Cancelling it loses
    /// nothing.
    pub(crate) async fn pump(&mut self, op: u32, meter: &mut Meter, outbox: &Outbox, most: usize) -> usize {
        let allowance = meter.allowance();
        if self.closed || allowance == Allowance::Wait {
            return future::pending().await;
        }
        if self.reader.readable().await.is_err() {
            self.closed = true;
            return 0;
        }
        match allowance {
            Allowance::Send(allowed) => {
                let Ok(permit) = outbox.frames.reserve().await else { return future::pending().await };
                let bytes = self.read(allowed.min(most));
                if bytes.is_empty() {
                    return 0;
                }
                let body = Bytes::copy_from_slice(bytes);
                let (length, kind) = (body.len(), self.kind);
                permit.send(Outgoing::Frame(Frame { op, kind, body }));
                meter.send(length);
                length
            }
            Allowance::Discard(allowed) => {
                let length = self.read(allowed.min(most)).len();
                meter.discard(length);
                length
            }
            Allowance::Wait => 0,
        }
    }

    /// Bytes that wait in the pipe.
    pub(crate) fn waiting(&self) -> usize {
        if self.closed {
            return 0;
        }
        rustix::io::ioctl_fionread(&self.reader).ok().and_then(|bytes| usize::try_from(bytes).ok()).unwrap_or(0)
    }

    /// Takes what waits in the pipe now, and no more of it than that.
    pub(crate) fn take_waiting(&mut self) -> Vec<u8> {
        let mut taken = vec![0; self.waiting()];
        let mut length = 0;
        while let Some(rest) = taken.get_mut(length..).filter(|rest| !rest.is_empty()) {
            match rustix::io::read(&self.reader, rest) {
                Ok(0) | Err(Errno::AGAIN) => break,
                Ok(read) => length += read,
                Err(Errno::INTR) => {}
                Err(_) => break,
            }
        }
        taken.truncate(length);
        taken
    }

    fn read(&mut self, most: usize) -> &[u8] {
        if self.buffer.len() < most {
            self.buffer.resize(most, 0);
        }
        let Some(buffer) = self.buffer.get_mut(..most) else { return &[] };
        match self.reader.try_read(buffer) {
            Ok(0) => {
                self.closed = most > 0;
                &[]
            }
            Ok(length) => buffer.get(..length).unwrap_or_default(),
            Err(error) => {
                self.closed = error.kind() != io::ErrorKind::WouldBlock;
                &[]
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use rustix::pipe::PipeFlags;

    use super::*;

    fn connected() -> (Pipe, std::fs::File) {
        let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).expect("a pipe");
        (Pipe::new(reader, Kind::STDOUT).expect("it is a pipe"), writer.into())
    }

    #[tokio::test]
    async fn what_is_pumped_is_what_was_written_and_no_more_than_asked_for() {
        let (mut pipe, mut writer) = connected();
        let (frames, mut sent) = mpsc::channel(4);
        let (outbox, mut meter) = (Outbox::new(frames), Meter::new(1000));
        writer.write_all(b"hello world").expect("it fits");
        assert_eq!(pipe.waiting(), 11);
        assert_eq!(pipe.pump(7, &mut meter, &outbox, 5).await, 5);
        let Some(Outgoing::Frame(frame)) = sent.recv().await else { panic!("no frame") };
        assert_eq!((frame.op, frame.kind, &frame.body[..]), (7, Kind::STDOUT, &b"hello"[..]));
        assert_eq!(pipe.take_waiting(), b" world");
    }

    #[tokio::test]
    async fn a_pipe_without_writers_is_left_alone() {
        let (mut pipe, writer) = connected();
        drop(writer);
        let (frames, _sent) = mpsc::channel(4);
        let (outbox, mut meter) = (Outbox::new(frames), Meter::new(1000));
        assert_eq!(pipe.pump(1, &mut meter, &outbox, 5).await, 0);
        assert_eq!(pipe.waiting(), 0);
        let again = tokio::time::timeout(std::time::Duration::ZERO, pipe.pump(1, &mut meter, &outbox, 5)).await;
        assert!(again.is_err(), "it must not spin");
    }
}
