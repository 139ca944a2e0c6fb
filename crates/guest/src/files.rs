//! Files: what the host writes, reads, lists and changes below the user's home, beside an execution.
//!
//! ```text
//!   agent: Transfers ──── Job ───▶ worker ───▶ port writer   (data, entries, credit)
//!              ▲                     │
//!              └──────── Note ───────┘                       (an end, which the agent says)
//! ```
//! [`Transfers`] is the table of what is under way and knows no file. The worker is one thread for all of them, which touches files
//! as the user and serves one chunk of each in turn; nothing it opens can block. What is on its way to either of them is bounded by
//! the transfers' windows, so neither a slow host nor a large file takes memory.
//!
//! A transfer ends with its connection. It has exactly one end, and none if its connection was lost.

mod change;
mod error;
mod identity;
mod list;
mod path;
mod read;
mod transfers;
mod worker;
mod write;

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
};

use bytes::Bytes;
use exec_sandbox_wire::{FileChange, FileList, FileRead, FileSum, FileWrite, FlowError, GuestMessage, Window};
use tokio::sync::mpsc;

pub(crate) use transfers::{TransferError, Transfers};

use crate::port::Outbound;

/// Transfers that may be under way. Each holds a window at most and a few descriptors.
pub(crate) const MAX_TRANSFERS: usize = 16;

/// Jobs on their way to the worker. Few: their bytes are bounded by the windows, and what waits here is late.
const JOBS: usize = 32;

/// What the worker does is calls of the kernel and no recursion.
const STACK_BYTES: usize = 256 * 1024;

/// What the worker is told. The number is the operation's; a job for one that is over is ignored.
#[derive(Debug)]
pub(crate) enum Job {
    /// Write a file; its bytes follow.
    Write(u32, FileWrite, Gate),
    /// Read a file.
    Read(u32, FileRead, Gate),
    /// List a directory.
    List(u32, FileList, Gate),
    /// Make, move or remove something.
    Change(u32, FileChange),
    /// Bytes of a file to write.
    Data(u32, Bytes),
    /// There are no more of them.
    End(u32, FileSum),
    /// More may be sent.
    More(u32),
    /// It is called off.
    Cancel(u32),
    /// The connection is lost: everything is.
    Clear,
}

/// What the agent is told.
#[derive(Debug)]
pub(crate) enum Note {
    /// An operation's end, to be said to the host after all that was sent of it.
    Over(u32, GuestMessage),
    /// Nothing is under way any more, nothing more will be sent of it, and no other note is on its way.
    Cleared,
}

/// What may still be sent of one transfer, by whichever side sends. The table and the worker share it: what one does, the other sees
/// before the host can.
#[derive(Clone, Debug, Default)]
pub(crate) struct Gate(Arc<Mutex<Window>>);

/// The way to the worker and back.
#[derive(Debug)]
pub(crate) struct Files {
    jobs: mpsc::Sender<Job>,
    notes: mpsc::Receiver<Note>,
}

impl Gate {
    /// What may be sent now.
    pub(crate) fn available(&self) -> usize {
        self.lock().available()
    }

    /// Takes what is about to be sent; how much of it may go.
    pub(crate) fn take(&self, wanted: usize) -> usize {
        self.lock().take(wanted)
    }

    /// Adds a grant.
    pub(crate) fn grant(&self, granted: u32) -> Result<(), FlowError> {
        self.lock().grant(granted)
    }

    fn lock(&self) -> MutexGuard<'_, Window> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Files {
    /// Starts the worker.
    pub(crate) fn start(outbound: Outbound) -> io::Result<Self> {
        let (jobs, to_worker) = mpsc::channel(JOBS);
        // Each transfer has one end and there is one answer to `Clear`: the worker never waits for the agent, which may wait for it.
        let (tell, notes) = mpsc::channel(MAX_TRANSFERS + 1);
        thread::Builder::new()
            .name("files".to_owned())
            .stack_size(STACK_BYTES)
            .spawn(move || worker::run(to_worker, worker::Exits { outbound, notes: tell }))?;
        Ok(Self { jobs, notes })
    }

    /// Tells the worker something.
    pub(crate) async fn tell(&self, job: Job) {
        let _ = self.jobs.send(job).await;
    }

    /// The next that the worker has to say; nothing if it has ended.
    pub(crate) async fn note(&mut self) -> Option<Note> {
        self.notes.recv().await
    }

    /// Gives up everything, and returns when nothing of it will be said any more.
    pub(crate) async fn clear(&mut self) {
        self.tell(Job::Clear).await;
        while let Some(Note::Over(..)) = self.notes.recv().await {}
    }
}
