//! One pipe from a program, and the way from it to the port.

use std::{future, io};

use exec_sandbox_wire::limits;
use rustix::{fd::OwnedFd, io::Errno};
use tokio::{net::unix::pipe, sync::mpsc};

use super::{flow::Allowance, streams::Stream};
use crate::port::Outgoing;

/// Where the frames of a program that runs go.
#[derive(Clone, Debug)]
pub(crate) struct Outbox {
    frames: mpsc::Sender<Outgoing>,
}

/// The agent's end of a pipe.
#[derive(Debug)]
pub(crate) struct Pipe {
    reader: pipe::Receiver,
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
    /// Reads `fd`, which must not block.
    pub(crate) fn new(fd: OwnedFd) -> io::Result<Self> {
        Ok(Self { reader: pipe::Receiver::from_owned_fd(fd)?, buffer: Vec::new(), closed: false })
    }

    /// Moves what comes next. Pends while nothing comes or nothing may be sent. Cancelling it loses nothing.
    pub(crate) async fn pump(&mut self, stream: &Stream, outbox: &Outbox) {
        match stream.allowance() {
            Allowance::Send => {}
            Allowance::Read(_) | Allowance::Discard(_) if !self.closed => {
                if self.reader.readable().await.is_err() {
                    self.closed = true;
                    return;
                }
            }
            _ => return future::pending().await,
        }
        // What is only counted waits for no port.
        if let Allowance::Discard(most) = stream.allowance() {
            return stream.push(self.read(most));
        }
        let Ok(permit) = outbox.frames.reserve().await else { return future::pending().await };
        // From here on nothing waits. Asked again, because a host may have gone or come meanwhile.
        if let Allowance::Read(most) = stream.allowance() {
            stream.push(self.read(most));
        }
        if let Some(frame) = stream.next_frame() {
            permit.send(Outgoing::Frame(frame));
        }
    }

    /// Takes over what the program had written by now, whether it may be sent or not. What background processes add meanwhile
    /// belongs to no execution.
    pub(crate) fn drain(&mut self, stream: &Stream) {
        self.take_waiting(|bytes| stream.push(bytes));
    }

    /// Throws away what waits in the pipe.
    pub(crate) fn forget(&mut self) {
        self.take_waiting(|_| {});
    }

    /// Takes what waits in the pipe now, at most its last `most` bytes.
    pub(crate) fn last_waiting(&mut self, most: usize) -> Vec<u8> {
        let mut last = Vec::new();
        self.take_waiting(|bytes| {
            last.extend_from_slice(bytes);
            last.drain(..last.len().saturating_sub(most));
        });
        last
    }

    /// Takes what waits in the pipe now, and no more of it than that, in pieces. The size of a pipe is the program's choice.
    fn take_waiting(&mut self, mut take: impl FnMut(&[u8])) {
        let mut waiting = rustix::io::ioctl_fionread(&self.reader).unwrap_or(0);
        while waiting > 0 {
            let most = usize::try_from(waiting).unwrap_or(usize::MAX);
            // Read without asking the event loop, which may not have heard of the last bytes yet.
            match rustix::io::read(&self.reader, room(&mut self.buffer, most)) {
                Ok(length) if length > 0 => {
                    waiting = waiting.saturating_sub(length as u64);
                    take(self.buffer.get(..length).unwrap_or_default());
                }
                Err(Errno::INTR) => {}
                Ok(_) | Err(_) => return,
            }
        }
    }

    fn read(&mut self, most: usize) -> &[u8] {
        match self.reader.try_read(room(&mut self.buffer, most)) {
            Ok(0) => {
                self.closed = true;
                &[]
            }
            Ok(length) => self.buffer.get(..length).unwrap_or_default(),
            Err(error) => {
                self.closed = error.kind() != io::ErrorKind::WouldBlock;
                &[]
            }
        }
    }
}

/// Room for the next bytes: at most so many, and never none.
fn room(buffer: &mut Vec<u8>, most: usize) -> &mut [u8] {
    let most = most.clamp(1, limits::CHUNK_BYTES as usize);
    if buffer.len() < most {
        buffer.resize(most, 0);
    }
    buffer.get_mut(..most).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::{io::Write as _, task::Poll};

    use exec_sandbox_wire::{Kind, ResumePoint};
    use rustix::pipe::PipeFlags;

    use super::*;
    use crate::output::Streams;

    const WINDOW: usize = limits::STREAM_WINDOW_BYTES as usize;

    fn connected() -> (Pipe, std::fs::File) {
        let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).expect("a pipe");
        // As large as a program may make it.
        rustix::pipe::fcntl_setpipe_size(&writer, 1024 * 1024).expect("it may be so large");
        (Pipe::new(reader).expect("it is a pipe"), writer.into())
    }

    fn outgoing() -> (Outbox, mpsc::Receiver<Outgoing>) {
        let (frames, sent) = mpsc::channel(64);
        (Outbox::new(frames), sent)
    }

    /// What is in the queue, put together.
    fn sent(queue: &mut mpsc::Receiver<Outgoing>) -> Vec<u8> {
        let mut bytes = Vec::new();
        while let Ok(Outgoing::Frame(frame)) = queue.try_recv() {
            assert_eq!((frame.op, frame.kind), (7, Kind::STDOUT));
            bytes.extend_from_slice(&frame.body);
        }
        bytes
    }

    /// Whether it waits. Asked twice, with a turn of the event loop between: what is ready may not have been heard of at first.
    async fn pends(pump: impl Future<Output = ()>) -> bool {
        let mut pump = std::pin::pin!(pump);
        for _ in 0..2 {
            let ready = future::poll_fn(|context| Poll::Ready(pump.as_mut().poll(context).is_ready())).await;
            if ready {
                return false;
            }
            tokio::task::yield_now().await;
        }
        true
    }

    #[tokio::test]
    async fn a_program_is_read_as_far_as_the_host_has_granted_and_drained_when_it_has_ended() {
        let (mut pipe, mut writer) = connected();
        let (outbox, mut queue) = outgoing();
        let streams = Streams::new(7);
        let written: Vec<u8> = (0..=250).cycle().take(WINDOW + 5).collect();
        writer.write_all(&written).expect("it fits");
        assert!(pends(pipe.pump(&streams.stdout, &outbox)).await, "there is no host");
        assert_eq!(streams.stdout.total(), 0, "the program is held up, and nothing is kept");
        streams.restart();
        while streams.stdout.total() < WINDOW as u64 {
            pipe.pump(&streams.stdout, &outbox).await;
        }
        assert_eq!(sent(&mut queue), written[..WINDOW]);
        assert!(pends(pipe.pump(&streams.stdout, &outbox)).await, "the host has not granted more");
        pipe.drain(&streams.stdout);
        assert_eq!(streams.stdout.total(), written.len() as u64);
        let point = ResumePoint { op: 7, stdout_bytes: WINDOW as u64 - 3, stdout_credit: 8, ..ResumePoint::default() };
        streams.resume(&point).expect("it can have so much");
        let rest: Vec<u8> = std::iter::from_fn(|| streams.next_frame()).flat_map(|frame| frame.body).collect();
        assert_eq!(rest, written[WINDOW - 3..]);
        assert!(streams.are_sent());
    }

    #[tokio::test]
    async fn what_was_lost_is_sent_again_before_the_pipe_is_read() {
        let (mut pipe, mut writer) = connected();
        let (outbox, mut queue) = outgoing();
        let streams = Streams::new(7);
        streams.restart();
        writer.write_all(b"one ").expect("it fits");
        pipe.pump(&streams.stdout, &outbox).await;
        assert_eq!(sent(&mut queue), b"one ");
        writer.write_all(b"two").expect("it fits");
        streams.suspend();
        streams.restart();
        pipe.pump(&streams.stdout, &outbox).await;
        pipe.pump(&streams.stdout, &outbox).await;
        assert_eq!(sent(&mut queue), b"one two");
    }

    #[tokio::test]
    async fn past_the_cap_a_program_is_read_although_nothing_is_written_to_the_port() {
        let (mut pipe, mut writer) = connected();
        let (frames, mut queue) = mpsc::channel(1);
        let (outbox, streams) = (Outbox::new(frames), Streams::new(7));
        streams.stdout.push(&vec![0; 1_000_000]);
        let point = ResumePoint { op: 7, stdout_credit: 1, ..ResumePoint::default() };
        streams.resume(&point).expect("it has nothing");
        assert!(!pends(pipe.pump(&streams.stdout, &outbox)).await);
        streams.give_up();
        writer.write_all(b"more").expect("it fits");
        pipe.pump(&streams.stdout, &outbox).await;
        assert_eq!(streams.stdout.total(), 1_000_004);
        assert!(queue.try_recv().is_ok() && queue.try_recv().is_err(), "the queue was full all the time");
    }

    #[tokio::test]
    async fn a_pipe_without_writers_is_left_alone() {
        let (mut pipe, writer) = connected();
        drop(writer);
        let (outbox, _queue) = outgoing();
        let streams = Streams::new(7);
        streams.restart();
        pipe.pump(&streams.stdout, &outbox).await;
        assert!(pends(pipe.pump(&streams.stdout, &outbox)).await, "it must not spin");
    }

    #[tokio::test]
    async fn of_what_waits_the_end_is_taken_or_nothing() {
        let (mut pipe, mut writer) = connected();
        writer.write_all(&[b'x'; 100_000]).expect("it fits");
        writer.write_all(b"last words").expect("it fits");
        assert_eq!(pipe.last_waiting(10), b"last words");
        writer.write_all(b"more").expect("it fits");
        pipe.forget();
        assert_eq!(pipe.last_waiting(10), b"");
    }
}
