//! The table of file operations: what the host may say about each, and what the worker is told. Pure.
//!
//! ```text
//!  FILE_WRITE ─▶ Writing ─▶ (FILE_END) Working ─▶ over
//!  FILE_READ, FILE_LIST ─────────────▶ Sending ─▶ over
//!  FILE_CHANGE ──────────────────────▶ Working ─▶ over
//! ```
//! An operation is in the table from its first frame until the worker says that it is over. What comes for one that is not there is
//! skipped: the host had not heard of its end.

use std::collections::BTreeMap;

use bytes::Bytes;
use exec_sandbox_wire::{FlowError, GuestMessage, HostMessage, Refusal, Refused, Window};

use super::{Gate, Job, MAX_TRANSFERS};

/// The file operations under way.
#[derive(Debug, Default)]
pub(crate) struct Transfers {
    table: BTreeMap<u32, Transfer>,
}

/// What no honest host says about a file operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TransferError {
    /// Bytes that were not granted, or for an operation that takes none.
    #[error("it sends {bytes} bytes, of which {granted} were granted")]
    Data {
        /// Sent.
        bytes: usize,
        /// Granted.
        granted: usize,
    },
    /// An end of something that has none, or has had it.
    #[error("it ends what is not being written")]
    End,
    /// More than a window.
    #[error("it grants too much")]
    Credit { source: FlowError },
}

#[derive(Debug)]
struct Transfer {
    state: State,
    gate: Gate,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The host sends.
    Writing,
    /// The worker sends.
    Sending,
    /// Nobody sends any more.
    Working,
}

impl Transfers {
    /// Whether an operation is under way.
    pub(crate) fn has(&self, op: u32) -> bool {
        self.table.contains_key(&op)
    }

    /// Whether the message begins a file operation.
    pub(crate) fn is_start(message: &HostMessage) -> bool {
        use HostMessage::{FileChange, FileList, FileRead, FileWrite};
        matches!(message, FileWrite(_) | FileRead(_) | FileList(_) | FileChange(_))
    }

    /// The host begins an operation, whose number is free: what the worker is told, or why it is refused.
    pub(crate) fn begin(&mut self, op: u32, message: HostMessage) -> Result<Option<Job>, Refused> {
        if self.table.len() >= MAX_TRANSFERS {
            let detail = format!("{MAX_TRANSFERS} file operations are under way");
            return Err(Refused { reason: Refusal::Busy.into(), detail });
        }
        let gate = Gate::default();
        let (state, job) = match message {
            HostMessage::FileWrite(request) => (State::Writing, Job::Write(op, request, gate.clone())),
            HostMessage::FileRead(request) => (State::Sending, Job::Read(op, request, gate.clone())),
            HostMessage::FileList(request) => (State::Sending, Job::List(op, request, gate.clone())),
            HostMessage::FileChange(request) => (State::Working, Job::Change(op, request)),
            _ => return Ok(None),
        };
        self.table.insert(op, Transfer { state, gate });
        Ok(Some(job))
    }

    /// The host says more about one.
    pub(crate) fn hear(&mut self, op: u32, message: HostMessage) -> Result<Option<Job>, TransferError> {
        let Some(transfer) = self.table.get_mut(&op) else { return Ok(None) };
        Ok(match message {
            HostMessage::FileData(bytes) => transfer.receive(&bytes)?.then(|| Job::Data(op, bytes)),
            HostMessage::FileEnd(sum) => {
                if transfer.state != State::Writing {
                    return Err(TransferError::End);
                }
                transfer.state = State::Working;
                Some(Job::End(op, sum))
            }
            HostMessage::Credit(credit) => {
                transfer.grant(credit.data_bytes).map_err(|source| TransferError::Credit { source })?;
                (credit.data_bytes > 0).then_some(Job::More(op))
            }
            HostMessage::Cancel => Some(Job::Cancel(op)),
            _ => None,
        })
    }

    /// The worker has come to the end of one: what the host is told, unless it has gone meanwhile.
    pub(crate) fn finish(&mut self, op: u32, end: GuestMessage) -> Option<GuestMessage> {
        self.table.remove(&op).map(|_| end)
    }

    /// The connection is lost: whether anything was under way.
    pub(crate) fn clear(&mut self) -> bool {
        !std::mem::take(&mut self.table).is_empty()
    }
}

impl Transfer {
    /// Bytes have come; whether there are any.
    fn receive(&mut self, bytes: &Bytes) -> Result<bool, TransferError> {
        let granted = if self.state == State::Writing { self.gate.take(bytes.len()) } else { 0 };
        if self.state != State::Writing || granted < bytes.len() {
            return Err(TransferError::Data { bytes: bytes.len(), granted });
        }
        Ok(!bytes.is_empty())
    }

    fn grant(&self, bytes: u32) -> Result<(), FlowError> {
        match self.state {
            State::Sending => self.gate.grant(bytes),
            // There is nothing to be granted.
            State::Writing | State::Working => Window::default().grant(bytes),
        }
    }
}

#[cfg(test)]
mod tests;
