//! What tests put in QEMU's place: a shell as its process, and a guest that says what the test wants at the sockets that QEMU
//! would have.

use std::os::unix::net::{UnixListener as StdUnixListener, UnixStream as StdUnixStream};

use bytes::BytesMut;
use exec_sandbox_wire::{
    CONNECTION_OP, Done, End, FrameDecoder, GENERATION, GuestMessage, Hello, HostMessage, ResumePoint,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{UnixListener, UnixStream, unix::pipe},
};

use super::{channel::Channel, instance::Instance, monitor::Monitor};
use crate::{
    process::{Child, Command},
    run_dir::{Details, RunDir},
};

/// An instance whose process is a shell that runs `script`, and its end of the monitor.
pub(super) async fn instance(root: &tempfile::TempDir, script: &str) -> (Instance, UnixStream) {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).expect("a pipe");
    let (ours, qemus) = UnixStream::pair().expect("a socket pair");
    let mut command = Command::new("/bin/sh".into(), vec!["-c".into(), script.into()]);
    command.pass(write, 2);
    let child = Child::spawn(command).await.expect("sh starts");
    let run_dir = RunDir::create(root.path(), "vm-1", &Details::default()).expect("it is new");
    let stderr = pipe::Receiver::from_owned_fd(read).expect("it is a pipe");
    (Instance::new(child, run_dir, stderr, Monitor::watch(ours)), qemus)
}

/// A channel and QEMU's end of it, which blocks.
pub(super) async fn channel() -> (Channel, StdUnixStream) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let listener = StdUnixListener::bind(dir.path().join("agent")).expect("it is new");
    let channel = Channel::connect(&dir.path().join("agent"), 1).await.expect("it listens");
    (channel, listener.accept().expect("it has connected").0)
}

/// Frames of a guest that has nothing to say: `number` pongs that nobody asked for.
pub(super) fn chatter(number: usize) -> Vec<u8> {
    let mut bytes = BytesMut::new();
    GuestMessage::Pong("pong".into()).into_frame(CONNECTION_OP).encode(&mut bytes).expect("it is short");
    bytes.repeat(number)
}

/// A guest at its end of one connection.
#[derive(Debug)]
pub(super) struct Guest {
    stream: UnixStream,
    decoder: FrameDecoder,
}

impl Guest {
    /// The guest of the next connection.
    pub(super) async fn accept(listener: &UnixListener) -> Self {
        let (stream, _) = listener.accept().await.expect("somebody connects");
        Self { stream, decoder: FrameDecoder::default() }
    }

    pub(super) async fn say(&mut self, op: u32, message: GuestMessage) {
        let mut bytes = BytesMut::new();
        message.into_frame(op).encode(&mut bytes).expect("it is short");
        self.say_bytes(&bytes).await;
    }

    pub(super) async fn say_bytes(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.expect("the host listens");
    }

    /// Says the same again and again until nobody listens any more.
    pub(super) async fn babble(mut self) {
        let flood = chatter(5000);
        while self.stream.write_all(&flood).await.is_ok() {}
    }

    /// The next message; `None`: the host has gone.
    pub(super) async fn hear(&mut self) -> Option<(u32, HostMessage)> {
        loop {
            if let Some(frame) = self.decoder.next_frame().expect("the host is honest") {
                return Some((frame.op, HostMessage::parse(frame).expect("the host is honest")));
            }
            if self.stream.read_buf(self.decoder.buffer()).await.unwrap_or(0) == 0 {
                return None;
            }
        }
    }

    /// Hears a program out and returns its operation.
    pub(super) async fn program(&mut self) -> u32 {
        let mut missing = None;
        loop {
            match self.hear().await.expect("the host is there") {
                (_, HostMessage::ExecStart(start)) => missing = Some(start.program_bytes as usize),
                (op, HostMessage::ExecProgram(piece)) => {
                    missing = missing.map(|bytes| bytes - piece.len());
                    if missing == Some(0) {
                        return op;
                    }
                }
                _ => {}
            }
        }
    }

    /// Greets the host as the boot `boot_id` and returns what it says of operations under way.
    pub(super) async fn greet(&mut self, boot_id: &[u8]) -> Vec<ResumePoint> {
        let hello = Hello { generation: GENERATION, boot_id: boot_id.to_vec(), ..Hello::default() };
        self.say(CONNECTION_OP, GuestMessage::Hello(hello)).await;
        loop {
            if let (CONNECTION_OP, HostMessage::Hello(hello)) = self.hear().await.expect("the host answers") {
                return hello.resume;
            }
        }
    }

    /// Says that the program has exited with 0 after so many bytes.
    pub(super) async fn done(&mut self, op: u32, stdout_bytes: u64) {
        let done = Done { end: End::Exited.into(), stdout_bytes, ..Done::default() };
        self.say(op, GuestMessage::Done(done)).await;
    }
}
