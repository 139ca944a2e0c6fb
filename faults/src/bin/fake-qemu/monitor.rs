//! The monitor's port: commands of the host by lines, with the descriptors that come with them, and answers to them.

use std::{
    fs::File,
    io::{self, IoSliceMut, Write as _},
    mem::MaybeUninit,
    os::unix::net::UnixStream,
};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde_json::{Value, json};

/// Room for one read: a command has a few hundred bytes.
const READ_BYTES: usize = 4096;

/// A connection to the host.
#[derive(Debug)]
pub(crate) struct Monitor {
    stream: UnixStream,
    incoming: Vec<u8>,
    /// The descriptor that came last.
    descriptor: Option<File>,
}

impl Monitor {
    pub(crate) fn new(stream: UnixStream) -> Self {
        Self { stream, incoming: Vec::new(), descriptor: None }
    }

    /// The greeting, and the answer to the command that follows it.
    pub(crate) fn greet(&mut self) -> io::Result<()> {
        let version = json!({ "qemu": { "micro": 0, "minor": 0, "major": 10 }, "package": "fake" });
        self.say(&json!({ "QMP": { "version": version, "capabilities": [] } }).to_string())?;
        self.answer("return", &json!({}))
    }

    /// A line as it is.
    pub(crate) fn say(&mut self, line: &str) -> io::Result<()> {
        self.raw(format!("{line}\n").as_bytes())
    }

    /// Bytes as they are.
    pub(crate) fn raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Waits for a command and answers it with a `return` or an `error`.
    pub(crate) fn answer(&mut self, with: &str, what: &Value) -> io::Result<()> {
        let command = self.next()?;
        self.say(&json!({ "id": command["id"], with: what }).to_string())
    }

    /// The descriptor that came last, once.
    pub(crate) fn take_descriptor(&mut self) -> Option<File> {
        self.descriptor.take()
    }

    fn next(&mut self) -> io::Result<Value> {
        loop {
            if let Some(end) = self.incoming.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.incoming.drain(..=end).collect();
                return Ok(serde_json::from_slice(&line)?);
            }
            self.read()?;
        }
    }

    fn read(&mut self) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let (mut control, mut piece) = (RecvAncillaryBuffer::new(&mut space), [0; READ_BYTES]);
        let flags = RecvFlags::CMSG_CLOEXEC;
        let read = recvmsg(&self.stream, &mut [IoSliceMut::new(&mut piece)], &mut control, flags)?.bytes;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                self.descriptor = descriptors.last().map(File::from).or_else(|| self.descriptor.take());
            }
        }
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.incoming.extend_from_slice(piece.get(..read).unwrap_or_default());
        Ok(())
    }
}
