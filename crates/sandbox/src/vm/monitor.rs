//! The monitor: what QEMU is told, and QEMU's own events, of which the last one may say why it ended.
//!
//! QEMU is not believed, so what it says is bounded. A reply counts for the order whose commands it answers and decides nothing else; what
//! is true of the guest only the guest proves.

use std::{collections::BTreeMap, io, mem, os::fd::OwnedFd};

use exec_sandbox_qemu::qmp::{self, CommandId};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, Interest},
    net::UnixStream,
    sync::{mpsc, oneshot},
};
use tokio_util::task::AbortOnDropHandle;
use tracing::debug;

use super::printable;

/// Room for one read: an event has a few hundred bytes.
const CHUNK_BYTES: usize = 4096;

/// Longest reason that is shown; QEMU's own have under thirty characters.
const MAX_REASON_CHARS: usize = 60;

/// The connection to one QEMU's monitor, and the task that reads it.
#[derive(Debug)]
pub(super) struct Monitor {
    /// Returns the last event that tells why QEMU ended, if there was one.
    reader: AbortOnDropHandle<Option<String>>,
    orders: Orders,
}

/// Where QEMU is told what to do.
#[derive(Clone, Debug)]
pub(super) struct Orders(mpsc::Sender<Order>);

/// Why an order was not carried out.
#[derive(Debug, thiserror::Error)]
pub(super) enum MonitorError {
    #[error(transparent)]
    Refused(#[from] qmp::CommandError),
    #[error("QEMU does not answer at its monitor any more")]
    Closed,
}

/// Commands that are sent together and answered together.
#[derive(Debug)]
struct Order {
    commands: Vec<qmp::Command>,
    /// For that of the commands which needs one.
    descriptor: Option<OwnedFd>,
    reply: oneshot::Sender<Result<Value, MonitorError>>,
}

/// The order under way.
#[derive(Debug)]
struct UnderWay {
    /// What is not answered yet; the value is whether it is the last one.
    waiting: BTreeMap<CommandId, bool>,
    result: Result<Value, MonitorError>,
    reply: oneshot::Sender<Result<Value, MonitorError>>,
}

/// What the task has.
struct Reader {
    stream: UnixStream,
    decoder: qmp::Decoder,
    correlator: qmp::Correlator,
    under_way: Option<UnderWay>,
    last_word: Option<String>,
}

impl Monitor {
    /// Begins to read.
    pub(super) fn watch(stream: UnixStream) -> Self {
        let (orders, to_reader) = mpsc::channel(1);
        let reader = AbortOnDropHandle::new(tokio::spawn(Reader::new(stream).run(to_reader)));
        Self { reader, orders: Orders(orders) }
    }

    /// Where to tell it.
    pub(super) fn orders(&self) -> Orders {
        self.orders.clone()
    }

    /// The reader alone, which ends with QEMU.
    pub(super) fn into_reader(self) -> AbortOnDropHandle<Option<String>> {
        self.reader
    }
}

impl Orders {
    /// Has QEMU carry out `commands`, sent at once, with `descriptor` for that which needs one. Returns what the last one returned, or
    /// why the first that was refused was.
    pub(super) async fn give(
        &self,
        commands: impl Into<Vec<qmp::Command>> + Send,
        descriptor: Option<OwnedFd>,
    ) -> Result<Value, MonitorError> {
        let (reply, answer) = oneshot::channel();
        let order = Order { commands: commands.into(), descriptor, reply };
        self.0.send(order).await.map_err(|_gone| MonitorError::Closed)?;
        answer.await.map_err(|_gone| MonitorError::Closed)?
    }
}

impl Reader {
    fn new(stream: UnixStream) -> Self {
        let (decoder, correlator) = (qmp::Decoder::default(), qmp::Correlator::default());
        Self { stream, decoder, correlator, under_way: None, last_word: None }
    }

    /// Reads to the end, or until what is said is no QMP; keeps the event that tells most about the end.
    async fn run(mut self, mut orders: mpsc::Receiver<Order>) -> Option<String> {
        // Events come once capabilities are agreed. QEMU reads the command when it is ready, so there is nothing to wait for.
        let (_id, command) = self.correlator.issue(qmp::Command::Capabilities).ok()?;
        // One that does not read it any more may have said its last word before.
        let _ = self.stream.write_all(&command).await;
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            let is_free = self.under_way.is_none() && !orders.is_closed();
            tokio::select! {
                read = self.stream.read(&mut chunk) => match read {
                    Ok(read @ 1..) => {
                        self.decoder.push(chunk.get(..read)?);
                        if !self.settle() {
                            return self.last_word;
                        }
                    }
                    Ok(_) | Err(_) => return self.last_word,
                },
                order = orders.recv(), if is_free => if let Some(order) = order {
                    self.carry_out(order).await;
                },
            }
        }
    }

    /// Takes in what has been read. `false`: it is not listened to any more.
    fn settle(&mut self) -> bool {
        loop {
            match self.decoder.next_message() {
                Ok(Some(message)) => match self.correlator.settle(message) {
                    qmp::Settled::Event(event) => self.last_word = describe(&event).or_else(|| self.last_word.take()),
                    qmp::Settled::Reply { id, result } => self.on_reply(id, result),
                    qmp::Settled::Greeting(_) | qmp::Settled::Stray => {}
                },
                Ok(None) => return true,
                // Reading on would gather a line without end.
                Err(error @ qmp::DecodeError::LineTooLong) => {
                    debug!(%error, "QEMU's monitor is not listened to any more");
                    return false;
                }
                Err(_not_a_message) => {}
            }
        }
    }

    fn on_reply(&mut self, id: CommandId, result: Result<Value, qmp::CommandError>) {
        let Some(order) = &mut self.under_way else { return };
        let Some(is_last) = order.waiting.remove(&id) else { return };
        match result {
            Ok(value) if is_last && order.result.is_ok() => order.result = Ok(value),
            Err(refused) if refused.command.may_be_refused() => debug!(%refused, "QEMU does without"),
            Err(refused) if order.result.is_ok() => order.result = Err(refused.into()),
            Ok(_) | Err(_) => {}
        }
        if order.waiting.is_empty()
            && let Some(UnderWay { result, reply, .. }) = self.under_way.take()
        {
            // Who does not wait any more is not told.
            let _ = reply.send(result);
        }
    }

    /// Sends the commands of an order. One that cannot be sent is not answered: its asker learns that QEMU does not.
    async fn carry_out(&mut self, order: Order) {
        let Order { commands, mut descriptor, reply } = order;
        let (mut waiting, mut plain, last) = (BTreeMap::new(), Vec::new(), commands.len().saturating_sub(1));
        for (index, command) in commands.into_iter().enumerate() {
            let descriptor = if command.needs_descriptor() { descriptor.take() } else { None };
            let Ok((id, line)) = self.correlator.issue(command) else { return };
            waiting.insert(id, index == last);
            let sent = match descriptor {
                None => {
                    plain.extend_from_slice(&line);
                    Ok(())
                }
                Some(descriptor) => {
                    let before = mem::take(&mut plain);
                    async {
                        self.stream.write_all(&before).await?;
                        send_with(&mut self.stream, &line, &descriptor).await
                    }
                    .await
                }
            };
            if sent.is_err() {
                return;
            }
        }
        if self.stream.write_all(&plain).await.is_ok() {
            self.under_way = Some(UnderWay { waiting, result: Ok(Value::Null), reply });
        }
    }
}

/// Sends `line` and a descriptor with its first byte.
async fn send_with(stream: &mut UnixStream, line: &[u8], descriptor: &OwnedFd) -> io::Result<()> {
    let descriptors = [std::os::fd::AsFd::as_fd(descriptor)];
    let sent = stream
        .async_io(Interest::WRITABLE, || {
            let mut space = [mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            control.push(SendAncillaryMessage::ScmRights(&descriptors));
            Ok(sendmsg(&*stream, &[io::IoSlice::new(line)], &mut control, SendFlags::empty())?)
        })
        .await?;
    stream.write_all(line.get(sent..).unwrap_or_default()).await
}

/// What an event says about the end, if it says anything.
fn describe(event: &qmp::Event) -> Option<String> {
    match event.name.as_str() {
        "GUEST_PANICKED" => Some("a panic of the guest".into()),
        "SHUTDOWN" => {
            let reason = event.data.get("reason")?.as_str()?;
            Some(format!("a shutdown ({})", printable(reason, MAX_REASON_CHARS)))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a QEMU is asked next: its lines until `count` have come.
    async fn lines(qemus: &mut UnixStream, count: usize) -> Vec<Value> {
        let (mut bytes, mut chunk) = (Vec::new(), [0; 1024]);
        while bytes.iter().filter(|byte| **byte == b'\n').count() < count {
            let read = qemus.read(&mut chunk).await.expect("it is asked");
            assert_ne!(read, 0, "the monitor is open");
            bytes.extend_from_slice(&chunk[..read]);
        }
        bytes.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect()
    }

    async fn answer(qemus: &mut UnixStream, asked: &Value, answer: (&str, Value)) {
        let line = format!("{}\n", serde_json::json!({ "id": asked["id"], answer.0: answer.1 }));
        qemus.write_all(line.as_bytes()).await.expect("it is heard");
    }

    #[tokio::test]
    async fn an_order_is_sent_as_a_whole_and_answered_by_its_last_command() {
        let (ours, mut qemus) = UnixStream::pair().expect("a socket pair");
        let monitor = Monitor::watch(ours);
        let orders = monitor.orders();
        let order = orders.give([qmp::Command::Stop, qmp::Command::QueryStatus], None);
        let play = async {
            let asked = lines(&mut qemus, 3).await;
            for asked in &asked {
                answer(&mut qemus, asked, ("return", asked["execute"].clone())).await;
            }
        };
        let (answered, ()) = tokio::join!(order, play);
        assert_eq!(answered.expect("nothing was refused"), Value::from("query-status"));
    }

    #[tokio::test]
    async fn the_first_refusal_is_what_an_order_came_to() {
        let (ours, mut qemus) = UnixStream::pair().expect("a socket pair");
        let monitor = Monitor::watch(ours);
        let orders = monitor.orders();
        let order = orders.give([qmp::Command::Stop, qmp::Command::Continue, qmp::Command::QueryStatus], None);
        let play = async {
            let asked = lines(&mut qemus, 4).await;
            let refusal = |desc: &str| ("error", serde_json::json!({ "class": "GenericError", "desc": desc }));
            answer(&mut qemus, &asked[1], refusal("first")).await;
            answer(&mut qemus, &asked[2], refusal("second")).await;
            answer(&mut qemus, &asked[3], ("return", Value::Null)).await;
        };
        let (answered, ()) = tokio::join!(order, play);
        assert_eq!(answered.expect_err("it was refused").to_string(), "QEMU refused `stop`: first");
    }

    #[tokio::test]
    async fn an_order_does_without_what_may_be_refused() {
        let (ours, mut qemus) = UnixStream::pair().expect("a socket pair");
        let monitor = Monitor::watch(ours);
        let orders = monitor.orders();
        let load = qmp::Command::LoadTranslations { path: "/a".into() };
        let order = orders.give([load, qmp::Command::QueryStatus], None);
        let play = async {
            let asked = lines(&mut qemus, 3).await;
            let refusal = ("error", serde_json::json!({ "class": "GenericError", "desc": "of another processor" }));
            answer(&mut qemus, &asked[1], refusal).await;
            answer(&mut qemus, &asked[2], ("return", Value::from("done"))).await;
        };
        let (answered, ()) = tokio::join!(order, play);
        assert_eq!(answered.expect("nothing else was refused"), Value::from("done"));
    }

    #[tokio::test]
    async fn a_descriptor_goes_with_the_command_that_needs_it() {
        let (ours, qemus) = UnixStream::pair().expect("a socket pair");
        let monitor = Monitor::watch(ours);
        let (read, write) = rustix::pipe::pipe().expect("a pipe");
        let qemus = qemus.into_std().expect("it is one");
        let play = tokio::task::spawn_blocking(move || {
            use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
            qemus.set_nonblocking(false).expect("it can be");
            let mut space = [mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let (mut said, mut descriptors) = (Vec::new(), Vec::new());
            while said.iter().filter(|byte| **byte == b'\n').count() < 4 {
                let mut control = RecvAncillaryBuffer::new(&mut space);
                let mut chunk = [0; 1024];
                let got = recvmsg(&qemus, &mut [io::IoSliceMut::new(&mut chunk)], &mut control, RecvFlags::empty());
                said.extend_from_slice(&chunk[..got.expect("it is asked").bytes]);
                for message in control.drain() {
                    if let RecvAncillaryMessage::ScmRights(fds) = message {
                        descriptors.extend(fds);
                    }
                }
            }
            (said, descriptors)
        });
        let orders = monitor.orders();
        let order = orders.give(qmp::save(), Some(write));
        let (refused, played) = tokio::join!(order, play);
        assert!(matches!(refused, Err(MonitorError::Closed)), "nobody answered");
        let (said, descriptors) = played.expect("no panic");
        assert!(String::from_utf8_lossy(&said).contains("getfd"));
        rustix::io::write(&descriptors[0], b"x").expect("it is the pipe's end");
        assert_eq!(rustix::io::read(&read, &mut [0; 2]), Ok(1));
    }

    #[tokio::test]
    async fn the_event_that_tells_of_the_end_is_kept_whatever_is_said_around_it() {
        let (ours, mut qemus) = UnixStream::pair().expect("a socket pair");
        let monitor = Monitor::watch(ours).into_reader();
        let said = b"nonsense\n{\"event\": \"SHUTDOWN\", \"data\": {\"reason\": \"guest-reset\"}}\n[]\n{\"event\": \"STOP\"}\n";
        qemus.write_all(said).await.expect("it is read");
        // The command has to be taken, or closing is a reset.
        let _ = qemus.read(&mut [0; 256]).await.expect("it is written");
        drop(qemus);
        assert_eq!(monitor.await.expect("no panic").as_deref(), Some("a shutdown (guest-reset)"));
    }

    #[tokio::test]
    async fn a_line_without_end_is_not_gathered_for_ever() {
        let (ours, mut qemus) = UnixStream::pair().expect("a socket pair");
        let monitor = Monitor::watch(ours).into_reader();
        let endless = vec![b'x'; qmp::MAX_LINE_BYTES + 2 * CHUNK_BYTES];
        // The reader ends, though this end stays open.
        let _ = qemus.write_all(&endless).await;
        assert_eq!(monitor.await.expect("no panic"), None);
    }
}
