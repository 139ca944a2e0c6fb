//! Both output streams of one execution, as the executor and the table of operations share them.
//!
//! The executor fills them, and sends them while the program runs; the table hears how far the host has come, and sends the rest when
//! the program has ended. Both run on one thread and hold a borrow across no wait, so each sees what the other did at once: a grant
//! that arrives as a program ends is not lost between them, and nothing is sent for a host that the table does not know.

use std::cell::RefCell;

use exec_sandbox_wire::{Credit, FlowError, Frame, Kind, ResumePoint, limits};
use tokio::sync::Notify;

use super::flow::{Allowance, Flow, ResumeError};

/// Both streams of an execution.
#[derive(Debug)]
pub(crate) struct Streams {
    pub(crate) stdout: Stream,
    pub(crate) stderr: Stream,
    changed: Notify,
}

/// One of them.
#[derive(Debug)]
pub(crate) struct Stream {
    op: u32,
    kind: Kind,
    flow: RefCell<Flow>,
}

impl Streams {
    /// What one execution can make the agent keep, in bytes.
    pub(crate) const MAX_KEPT_BYTES: u64 = limits::MAX_STDOUT_BYTES + limits::MAX_STDERR_BYTES;

    /// The streams of operation `op`, for no host yet.
    pub(crate) fn new(op: u32) -> Self {
        let stream = |kind, cap| Stream { op, kind, flow: RefCell::new(Flow::new(cap)) };
        Self {
            stdout: stream(Kind::STDOUT, limits::MAX_STDOUT_BYTES),
            stderr: stream(Kind::STDERR, limits::MAX_STDERR_BYTES),
            changed: Notify::new(),
        }
    }

    /// Adds what the host grants: to both, or to neither.
    pub(crate) fn grant(&self, credit: Credit) -> Result<(), FlowError> {
        self.stdout.flow.borrow().check_grant(credit.stdout_bytes)?;
        self.stderr.flow.borrow().check_grant(credit.stderr_bytes)?;
        self.stdout.flow.borrow_mut().grant(credit.stdout_bytes)?;
        self.stderr.flow.borrow_mut().grant(credit.stderr_bytes)?;
        self.changed.notify_one();
        Ok(())
    }

    /// Nothing is sent until a host says how far it has come.
    pub(crate) fn suspend(&self) {
        self.each(Flow::suspend);
    }

    /// Whether a host can have come so far.
    pub(crate) fn check(&self, point: &ResumePoint) -> Result<(), ResumeError> {
        self.stdout.flow.borrow().check(point.stdout_bytes, point.stdout_credit)?;
        self.stderr.flow.borrow().check(point.stderr_bytes, point.stderr_credit).map(drop)
    }

    /// The host has come so far, and is sent what follows.
    pub(crate) fn resume(&self, point: &ResumePoint) -> Result<(), ResumeError> {
        self.stdout.flow.borrow_mut().resume(point.stdout_bytes, point.stdout_credit)?;
        self.stderr.flow.borrow_mut().resume(point.stderr_bytes, point.stderr_credit)?;
        self.changed.notify_one();
        Ok(())
    }

    /// The host does not say how far it has come, and is sent all that is kept.
    pub(crate) fn restart(&self) {
        self.each(Flow::restart);
    }

    /// Nobody wants the rest.
    pub(crate) fn give_up(&self) {
        self.each(Flow::give_up);
    }

    /// The next frame, if there is one and it may be sent; it is sent with this.
    pub(crate) fn next_frame(&self) -> Option<Frame> {
        self.stdout.next_frame().or_else(|| self.stderr.next_frame())
    }

    /// Whether all was sent that will be.
    pub(crate) fn are_sent(&self) -> bool {
        [&self.stdout, &self.stderr].iter().all(|stream| stream.flow.borrow().unsent() == 0)
    }

    /// Bytes that are kept.
    pub(crate) fn kept_bytes(&self) -> u64 {
        [&self.stdout, &self.stderr].iter().map(|stream| stream.flow.borrow().kept()).sum()
    }

    /// Waits until more may be sent than before.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }

    fn each(&self, change: impl Fn(&mut Flow)) {
        change(&mut self.stdout.flow.borrow_mut());
        change(&mut self.stderr.flow.borrow_mut());
        self.changed.notify_one();
    }
}

impl Stream {
    /// What may be done now.
    pub(crate) fn allowance(&self) -> Allowance {
        self.flow.borrow().allowance()
    }

    /// Takes in what the program has written.
    pub(crate) fn push(&self, bytes: &[u8]) {
        self.flow.borrow_mut().push(bytes);
    }

    /// The next frame, if there is one and it may be sent; it is sent with this.
    pub(crate) fn next_frame(&self) -> Option<Frame> {
        let body = self.flow.borrow_mut().next_chunk()?;
        Some(Frame { op: self.op, kind: self.kind, body })
    }

    /// Bytes that the program wrote, as far as they were read.
    pub(crate) fn total(&self) -> u64 {
        self.flow.borrow().total()
    }
}
