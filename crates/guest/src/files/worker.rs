//! The worker: one thread that does all file operations, as the user, a chunk of each in turn.
//!
//! Bytes to be written are written as they come, so nothing is queued here. What is to be sent goes in rounds over the transfers whose
//! host has granted for it. It waits for jobs if there is nothing to send, and for the port's writer if that has enough.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use exec_sandbox_wire::{Credit, FileSum, Frame, GuestMessage, limits};
use rustix::{
    fd::{AsFd as _, OwnedFd},
    fs::{Mode, OFlags},
};
use tokio::sync::mpsc;

use super::{
    Gate, Job, Note,
    change::{self, Removal},
    error::FileError,
    identity,
    list::{self, Listing},
    read::{self, Reading},
    write::Writing,
};
use crate::{kmsg, port::Outbound, spawn::HOME};

/// A host is granted for what was written once it comes to half a window: the other half is on its way meanwhile.
const GRANT_BYTES: u32 = limits::STREAM_WINDOW_BYTES / 2;

/// Where the worker's words go.
#[derive(Debug)]
pub(super) struct Exits {
    pub(super) outbound: Outbound,
    pub(super) notes: mpsc::Sender<Note>,
}

#[derive(Debug)]
struct Worker {
    home: OwnedFd,
    exits: Exits,
    transfers: BTreeMap<u32, (Transfer, Gate)>,
    /// Those that may have something to send or to do, in the order in which they come next. Each stands in it once.
    ready: VecDeque<u32>,
}

#[derive(Debug)]
enum Transfer {
    Writing {
        file: Writing,
        /// Written and not yet granted again.
        written: u32,
    },
    Reading(Reading),
    Listing(Listing),
    Removing(Removal),
}

/// How far a transfer has come in its turn.
enum Turn {
    /// It may go on.
    Ready,
    /// It waits for the host.
    Waiting,
    Over(FileSum),
}

/// Works until nobody has jobs.
pub(super) fn run(mut jobs: mpsc::Receiver<Job>, exits: Exits) {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let home = match identity::assume().and_then(|()| Ok(rustix::fs::open(HOME, flags, Mode::empty())?)) {
        Ok(home) => home,
        // The agent sees that there is no worker, and says what that means.
        Err(error) => return kmsg::warn(&format!("cannot work on files as the user: {error}")),
    };
    let mut worker = Worker::new(home, exits);
    loop {
        // Between two turns as many jobs as have come, at most as many as can wait: neither side starves.
        let mut left = super::JOBS;
        while left > 0 {
            let job = if worker.ready.is_empty() { jobs.blocking_recv() } else { jobs.try_recv().ok() };
            match job {
                Some(job) => worker.take(job),
                None if worker.ready.is_empty() => return,
                None => break,
            }
            left -= 1;
        }
        worker.turn();
    }
}

impl Worker {
    fn new(home: OwnedFd, exits: Exits) -> Self {
        Self { home, exits, transfers: BTreeMap::new(), ready: VecDeque::new() }
    }

    /// Does a job, or begins with it.
    fn take(&mut self, job: Job) {
        let home = self.home.as_fd();
        match job {
            Job::Write(op, request, gate) => {
                let begun = Writing::begin(home, &request).map(|file| Transfer::Writing { file, written: 0 });
                self.begin(op, begun, gate);
            }
            Job::Read(op, request, gate) => {
                let begun = Reading::begin(home, &request).map(Transfer::Reading);
                self.begin(op, begun, gate);
            }
            Job::List(op, request, gate) => {
                let begun = Listing::begin(home, &request).map(Transfer::Listing);
                self.begin(op, begun, gate);
            }
            Job::Change(op, request) => match change::begin(home, &request) {
                Ok(Some(removal)) => self.begin(op, Ok(Transfer::Removing(removal)), Gate::default()),
                Ok(None) => self.say_over(op, Ok(FileSum::default())),
                Err(error) => self.say_over(op, Err(error)),
            },
            Job::Data(op, bytes) => self.write(op, &bytes),
            Job::End(op, sum) => {
                if let Some((Transfer::Writing { file, .. }, _)) = self.transfers.remove(&op) {
                    self.say_over(op, file.finish(sum));
                }
            }
            Job::More(op) => self.wake(op),
            Job::Cancel(op) => {
                if self.remove(op) {
                    self.say_over(op, Err(FileError::Cancelled));
                }
            }
            Job::Clear => {
                self.transfers.clear();
                self.ready.clear();
                let _ = self.exits.notes.blocking_send(Note::Cleared);
            }
        }
    }

    /// Gives the next transfer its turn.
    fn turn(&mut self) {
        let Some(op) = self.ready.pop_front() else { return };
        let Some((transfer, gate)) = self.transfers.get_mut(&op) else { return };
        match transfer.turn(op, gate, &self.exits.outbound) {
            Ok(Turn::Ready) => self.ready.push_back(op),
            Ok(Turn::Waiting) => {}
            Ok(Turn::Over(sum)) => {
                self.transfers.remove(&op);
                self.say_over(op, Ok(sum));
            }
            Err(error) => {
                self.transfers.remove(&op);
                self.say_over(op, Err(error));
            }
        }
    }

    fn begin(&mut self, op: u32, begun: Result<Transfer, FileError>, gate: Gate) {
        match begun {
            Ok(transfer) => {
                self.transfers.insert(op, (transfer, gate));
                self.wake(op);
            }
            Err(error) => self.say_over(op, Err(error)),
        }
    }

    fn write(&mut self, op: u32, bytes: &Bytes) {
        let Some((Transfer::Writing { file, written }, gate)) = self.transfers.get_mut(&op) else { return };
        if let Err(error) = file.add(bytes) {
            self.remove(op);
            return self.say_over(op, Err(error));
        }
        *written = written.saturating_add(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
        if *written >= GRANT_BYTES {
            let data_bytes = std::mem::take(written);
            // The table counts it before the host can use it. It was taken from there, so it fits.
            if gate.grant(data_bytes).is_ok() {
                let credit = Credit { data_bytes, ..Credit::default() };
                self.exits.outbound.small(GuestMessage::Credit(credit).into_frame(op));
            }
        }
    }

    fn wake(&mut self, op: u32) {
        if self.transfers.contains_key(&op) && !self.ready.contains(&op) {
            self.ready.push_back(op);
        }
    }

    fn remove(&mut self, op: u32) -> bool {
        self.ready.retain(|ready| *ready != op);
        self.transfers.remove(&op).is_some()
    }

    fn say_over(&self, op: u32, end: Result<FileSum, FileError>) {
        let end = end.map_or_else(|error| error.refusal(), GuestMessage::FileDone);
        let _ = self.exits.notes.blocking_send(Note::Over(op, end));
    }
}

impl Transfer {
    fn turn(&mut self, op: u32, gate: &Gate, outbound: &Outbound) -> Result<Turn, FileError> {
        let send = |message: GuestMessage| -> Frame { message.into_frame(op) };
        Ok(match self {
            Self::Writing { .. } => Turn::Waiting,
            Self::Reading(reading) => match reading.step(gate)? {
                read::Step::Send(bytes) => {
                    outbound.bulk(send(GuestMessage::FileData(bytes)));
                    Turn::Ready
                }
                read::Step::Wait => Turn::Waiting,
                read::Step::Done(sum) => Turn::Over(sum),
            },
            Self::Listing(listing) => match listing.step(gate)? {
                list::Step::Send(entries) => {
                    outbound.bulk(send(entries));
                    Turn::Ready
                }
                list::Step::Wait => Turn::Waiting,
                list::Step::Done => Turn::Over(FileSum::default()),
            },
            Self::Removing(removal) => {
                if removal.step()? {
                    Turn::Over(FileSum::default())
                } else {
                    Turn::Ready
                }
            }
        })
    }
}

#[cfg(test)]
mod tests;
