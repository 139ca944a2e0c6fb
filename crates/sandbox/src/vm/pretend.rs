//! What tests put in QEMU's place: a shell as its process, and the ends of its sockets that it would have.

use std::os::unix::net::{UnixListener, UnixStream as StdUnixStream};

use bytes::BytesMut;
use exec_sandbox_wire::{CONNECTION_OP, GuestMessage};
use tokio::net::{UnixStream, unix::pipe};

use super::{channel::Channel, instance::Instance, monitor};
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
    (Instance::new(child, run_dir, stderr, monitor::watch(ours)), qemus)
}

/// A channel and QEMU's end of it, which blocks.
pub(super) async fn channel() -> (Channel, StdUnixStream) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let listener = UnixListener::bind(dir.path().join("agent")).expect("it is new");
    let channel = Channel::connect(&dir.path().join("agent")).await.expect("it listens");
    (channel, listener.accept().expect("it has connected").0)
}

/// Frames of a guest that has nothing to say: `number` pongs that nobody asked for.
pub(super) fn chatter(number: usize) -> Vec<u8> {
    let mut bytes = BytesMut::new();
    GuestMessage::Pong("pong".into()).into_frame(CONNECTION_OP).encode(&mut bytes).expect("it is short");
    bytes.repeat(number)
}
