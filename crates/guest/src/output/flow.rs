//! One output stream of one execution: what was written, what was sent, and what the host may still lack. Pure.
//!
//! ```text
//!   0 ────────── confirmed ────────── sent ────────── written ────────── total
//!       forgotten    │   kept: it may   │  kept: it was   │  over the cap:
//!                    │   be lost        │  not sent yet   │  only counted
//! ```
//! A grant confirms as many bytes as it opens, because a host grants what it has delivered. When a connection is lost, `sent` goes
//! back to what the host says that it has, at most to `confirmed`.

use std::collections::VecDeque;

use bytes::{Buf as _, Bytes};
use exec_sandbox_wire::{FlowError, Window, limits};

const CHUNK_BYTES: usize = limits::CHUNK_BYTES as usize;

/// Pieces that come to no more than this together are kept as one. A program that writes byte by byte would otherwise make the
/// agent keep several times the bytes that it wrote.
const SMALL_BYTES: usize = 1024;

/// One stream.
#[derive(Debug)]
pub(crate) struct Flow {
    cap: u64,
    total: u64,
    /// The bytes from `confirmed` to what was written, unless nobody wants them.
    kept: VecDeque<Bytes>,
    confirmed: u64,
    sent: u64,
    /// The most that was ever sent: more than `sent` after a connection was lost.
    reached: u64,
    /// What may be sent; nothing at all while there is no host, or one that has not said how far it has come.
    window: Option<Window>,
    wanted: bool,
}

/// What may be done next for a stream whose program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Allowance {
    /// Send of what is kept.
    Send,
    /// Read at most so many bytes, and send them.
    Read(usize),
    /// Read at most so many bytes, which are only counted.
    Discard(usize),
    /// Leave them where they are.
    Wait,
}

/// What no honest host says about how far it has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ResumeError {
    /// More than it was sent.
    #[error("it has {have} bytes of a stream of which {reached} were sent")]
    Ahead {
        /// What it says that it has.
        have: u64,
        /// What it can have.
        reached: u64,
    },
    /// Less than it has granted for.
    #[error("it has {have} bytes of a stream of which it has confirmed {confirmed}")]
    Behind {
        /// What it says that it has.
        have: u64,
        /// What it must have.
        confirmed: u64,
    },
    /// More may be sent than fits.
    #[error("it grants more than a window")]
    Credit { source: FlowError },
}

impl Flow {
    /// A stream of which at most `cap` bytes are sent, for no host yet.
    pub(crate) fn new(cap: u64) -> Self {
        Self { cap, total: 0, kept: VecDeque::new(), confirmed: 0, sent: 0, reached: 0, window: None, wanted: true }
    }

    /// What may be done now.
    pub(crate) fn allowance(&self) -> Allowance {
        let Some(window) = self.window else { return Allowance::Wait };
        let left = self.cap.saturating_sub(self.total);
        match (self.unsent(), left, window.available()) {
            (0, 0, _) => Allowance::Discard(CHUNK_BYTES),
            (_, _, 0) => Allowance::Wait,
            (0, left, open) => Allowance::Read(open.min(CHUNK_BYTES).min(usize::try_from(left).unwrap_or(usize::MAX))),
            _ => Allowance::Send,
        }
    }

    /// Takes in what the program has written: keeps it up to the cap, counts all of it.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        let left = usize::try_from(self.cap.saturating_sub(self.total)).unwrap_or(usize::MAX);
        self.total = self.total.saturating_add(bytes.len() as u64);
        let bytes = bytes.get(..left.min(bytes.len())).unwrap_or_default();
        if !self.wanted || bytes.is_empty() {
            return;
        }
        match self.kept.back_mut() {
            Some(last) if last.len() + bytes.len() <= SMALL_BYTES => *last = [&last[..], bytes].concat().into(),
            _ => self.kept.push_back(Bytes::copy_from_slice(bytes)),
        }
    }

    /// The next piece to send, if there is one and it may be sent; it is sent with this.
    pub(crate) fn next_chunk(&mut self) -> Option<Bytes> {
        let mut begin = self.written();
        let (piece, at) = self.kept.iter().rev().find_map(|piece| {
            begin = begin.saturating_sub(piece.len() as u64);
            Some((piece, usize::try_from(self.sent.checked_sub(begin)?).ok()?))
        })?;
        let length = self.window.as_mut()?.take(piece.len().saturating_sub(at).min(CHUNK_BYTES));
        if length == 0 {
            return None;
        }
        let chunk = piece.slice(at..at + length);
        self.sent += length as u64;
        self.reached = self.reached.max(self.sent);
        Some(chunk)
    }

    /// Whether the host may grant so much.
    pub(crate) fn check_grant(&self, bytes: u32) -> Result<(), FlowError> {
        self.window.map_or(Ok(()), |mut window| window.grant(bytes))
    }

    /// Adds what the host grants. Without a host it is void: it was on its way when the connection was lost.
    pub(crate) fn grant(&mut self, bytes: u32) -> Result<(), FlowError> {
        let Some(window) = &mut self.window else { return Ok(()) };
        window.grant(bytes)?;
        let in_flight = u64::from(limits::STREAM_WINDOW_BYTES).saturating_sub(window.available() as u64);
        self.confirm(self.sent.saturating_sub(in_flight));
        Ok(())
    }

    /// The host has gone, or another may have come: nothing is sent until it says how far it has come.
    pub(crate) fn suspend(&mut self) {
        self.window = None;
    }

    /// Whether a host can have come as far as it says.
    pub(crate) fn check(&self, have: u64, credit: u32) -> Result<Window, ResumeError> {
        if have > self.reached {
            return Err(ResumeError::Ahead { have, reached: self.reached });
        }
        if have < self.confirmed && self.wanted {
            return Err(ResumeError::Behind { have, confirmed: self.confirmed });
        }
        Window::resumed(credit).map_err(|source| ResumeError::Credit { source })
    }

    /// The host has come so far: it is sent what follows, within so much.
    pub(crate) fn resume(&mut self, have: u64, credit: u32) -> Result<(), ResumeError> {
        let window = self.check(have, credit)?;
        self.confirm(have);
        (self.sent, self.window) = (have, Some(window));
        Ok(())
    }

    /// A host that does not say how far it has come: it is sent what is kept, within a whole window.
    pub(crate) fn restart(&mut self) {
        (self.sent, self.window) = (self.confirmed, Some(Window::default()));
    }

    /// Nobody wants the rest: nothing is kept any more, and what still comes is only counted.
    pub(crate) fn give_up(&mut self) {
        self.wanted = false;
        self.kept.clear();
    }

    /// Bytes that are kept to be sent.
    pub(crate) fn unsent(&self) -> u64 {
        if self.wanted { self.written().saturating_sub(self.sent) } else { 0 }
    }

    /// Bytes that are kept.
    pub(crate) fn kept(&self) -> u64 {
        if self.wanted { self.written().saturating_sub(self.confirmed) } else { 0 }
    }

    /// Bytes that the program wrote, as far as they were read.
    pub(crate) fn total(&self) -> u64 {
        self.total
    }

    fn written(&self) -> u64 {
        self.total.min(self.cap)
    }

    fn confirm(&mut self, to: u64) {
        while let Some(first) = self.kept.front_mut()
            && self.confirmed < to
        {
            let length = usize::try_from(to - self.confirmed).unwrap_or(usize::MAX).min(first.len());
            first.advance(length);
            self.confirmed += length as u64;
            if first.is_empty() {
                self.kept.pop_front();
            }
        }
    }
}

#[cfg(test)]
mod tests;
