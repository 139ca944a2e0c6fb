//! The file operations of a VM, beside its execution: several at once, each with its caller.
//!
//! A file operation ends with the connection that it began on: neither side can know how far the other one has come, so nothing is
//! resumed, and whoever asked asks again.

use std::{collections::BTreeMap, time::Duration};

use exec_sandbox_wire::{Frame, GuestMessage, HostMessage, Refusal};
use tokio::time::Instant;

use super::{
    execution::Violation,
    inbox::{Left, Outlet, Piece},
    printable,
    transfer::{Finished, Transfer},
};
use crate::{Error, ErrorKind};

/// How long a guest may leave a file operation without a word that it owes. It moves megabytes in a second, and a busy machine
/// takes its time.
const PATIENCE: Duration = Duration::from_secs(60);

/// Longest refusal that is shown.
const MAX_DETAIL_CHARS: usize = 1024;

/// How a file operation ended: of a file, its size.
pub(super) type FileEnd = Result<u64, Error>;

/// See the head of this file.
#[derive(Debug, Default)]
pub(super) struct Transfers {
    under_way: BTreeMap<u32, Entry>,
}

#[derive(Debug)]
struct Entry {
    transfer: Transfer,
    outlet: Outlet<FileEnd>,
    /// When the guest or the caller last brought it forward.
    moved: Instant,
}

impl Transfers {
    pub(super) fn is_empty(&self) -> bool {
        self.under_way.is_empty()
    }

    pub(super) fn has(&self, op: u32) -> bool {
        self.under_way.contains_key(&op)
    }

    /// Begins one; the frame that says so.
    pub(super) fn begin(&mut self, op: u32, request: HostMessage, outlet: Outlet<FileEnd>) -> Frame {
        let (transfer, frame) = Transfer::start(op, request);
        self.under_way.insert(op, Entry { transfer, outlet, moved: Instant::now() });
        frame
    }

    /// When the first of them is overdue.
    pub(super) fn due(&self) -> Option<Instant> {
        let waiting = self.under_way.values().filter(|entry| entry.waits_for_guest());
        waiting.map(|entry| entry.moved + PATIENCE).min()
    }

    /// Ends those that are overdue; the frames that call them off.
    pub(super) fn expire(&mut self, now: Instant, vm_id: &str) -> Vec<Frame> {
        let overdue = |entry: &Entry| entry.waits_for_guest() && entry.moved + PATIENCE <= now;
        let ops: Vec<u32> = self.under_way.iter().filter(|(_, entry)| overdue(entry)).map(|(op, _)| *op).collect();
        ops.into_iter()
            .filter_map(|op| {
                let why = format!("the agent has said nothing of it for {} s", PATIENCE.as_secs());
                self.under_way.remove(&op)?.outlet.end(Err(failed(vm_id).because(why)));
                Some(HostMessage::Cancel.into_frame(op))
            })
            .collect()
    }

    /// Whether the caller of one is gone.
    pub(super) fn is_abandoned(&self) -> bool {
        self.under_way.values().any(|entry| entry.outlet.is_abandoned())
    }

    /// What callers have taken, given and called off: the frames that follow from it.
    pub(super) fn attend(&mut self) -> Vec<Frame> {
        let mut frames = Vec::new();
        self.under_way.retain(|op, entry| {
            if entry.outlet.left() == Some(Left::CalledOff) {
                frames.push(HostMessage::Cancel.into_frame(*op));
                return false;
            }
            let taken = entry.outlet.taken().data;
            if taken > 0 {
                entry.moved = Instant::now();
            }
            frames.extend(entry.transfer.on_taken(taken));
            for given in entry.outlet.given() {
                frames.extend(entry.transfer.on_given(given));
                entry.moved = Instant::now();
            }
            true
        });
        frames
    }

    /// Takes in what the guest says of one.
    pub(super) fn on_message(&mut self, op: u32, message: GuestMessage, vm_id: &str) -> Result<(), Violation> {
        let Some(entry) = self.under_way.get_mut(&op) else { return Ok(()) };
        let (piece, granted) = entry.transfer.on_message(message)?;
        // What is empty or unknown could be said for ever.
        if piece.is_some() || granted > 0 {
            entry.moved = Instant::now();
        }
        match piece {
            Some(Piece::Bytes(stream, bytes)) => entry.outlet.push(stream, &bytes),
            Some(Piece::Entries(entries, bytes)) => entry.outlet.push_entries(entries, bytes),
            None => {}
        }
        if granted > 0 {
            entry.outlet.grant(granted);
        }
        if let Some(finished) = entry.transfer.finished()
            && let Some(entry) = self.under_way.remove(&op)
        {
            entry.outlet.end(file_end(finished, vm_id));
        }
        Ok(())
    }

    /// Ends all of them, because of `error`.
    pub(super) fn end_all(&mut self, error: impl Fn() -> Error) {
        for entry in std::mem::take(&mut self.under_way).into_values() {
            entry.outlet.end(Err(error()));
        }
    }
}

impl Entry {
    fn waits_for_guest(&self) -> bool {
        self.transfer.waits_for_guest() && !self.outlet.has_untaken()
    }
}

/// The connection that a file operation was on is gone. Whether a write took place is not known.
pub(super) fn cut_off(vm_id: &str) -> Error {
    failed(vm_id).because("the agent's channel was closed meanwhile")
}

fn failed(vm_id: &str) -> Error {
    Error::new(ErrorKind::File, "working on files in the guest").on_vm(vm_id)
}

fn file_end(finished: Finished, vm_id: &str) -> FileEnd {
    let refused = match finished {
        Finished::Done(size) => return Ok(size),
        Finished::Damaged => return Err(failed(vm_id).because("what arrived is not what was sent")),
        Finished::Refused(refused) => refused,
    };
    let kind = match refused.reason() {
        Refusal::NotFound => ErrorKind::FileNotFound,
        _ => ErrorKind::File,
    };
    let doing = "working on files in the guest";
    Err(Error::new(kind, doing).on_vm(vm_id).because(printable(&refused.detail, MAX_DETAIL_CHARS)))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use exec_sandbox_wire::{FileRead, FileWrite, limits::STREAM_WINDOW_BYTES};
    use tokio::time::advance;

    use super::*;
    use crate::vm::inbox::{self, Inbox, Next};

    const OP: u32 = 3;

    fn under_way(request: HostMessage) -> (Transfers, Inbox<FileEnd>) {
        let (outlet, inbox) = inbox::pair(Arc::default());
        let mut transfers = Transfers::default();
        transfers.begin(OP, request, outlet);
        (transfers, inbox)
    }

    fn data(bytes: &'static [u8]) -> GuestMessage {
        GuestMessage::FileData(bytes.into())
    }

    #[tokio::test(start_paused = true)]
    async fn a_guest_that_does_not_grant_for_what_it_was_sent_loses_the_file() {
        let (mut transfers, mut inbox) = under_way(HostMessage::FileWrite(FileWrite::default()));
        assert_eq!(transfers.due(), None, "the caller has given nothing yet");
        advance(PATIENCE).await;
        inbox.give(vec![0; STREAM_WINDOW_BYTES as usize].into());
        transfers.attend();
        assert_eq!(transfers.due(), Some(Instant::now() + PATIENCE));
        advance(PATIENCE).await;
        let frames = transfers.expire(Instant::now(), "vm-1");
        assert_eq!(frames, [HostMessage::Cancel.into_frame(OP)]);
        assert!(matches!(inbox.next().await, Next::End(Err(_))));
    }

    #[tokio::test(start_paused = true)]
    async fn only_what_brings_it_forward_keeps_an_operation_alive() {
        let (mut transfers, mut inbox) = under_way(HostMessage::FileRead(FileRead::default()));
        let due = Instant::now() + PATIENCE;
        advance(PATIENCE / 2).await;
        for idle in [data(b""), GuestMessage::Unknown(exec_sandbox_wire::Kind(200))] {
            transfers.on_message(OP, idle, "vm-1").expect("it is harmless");
            assert_eq!(transfers.due(), Some(due));
        }
        transfers.on_message(OP, data(b"x"), "vm-1").expect("it is honest");
        assert_eq!(transfers.due(), None, "it is for the caller to take it");
        advance(2 * PATIENCE).await;
        inbox.next().await;
        transfers.attend();
        assert_eq!(transfers.due(), Some(Instant::now() + PATIENCE), "the guest is not late because the caller was");
    }
}
