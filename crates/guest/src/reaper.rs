//! The one owner of waits: every exit status of this machine is collected here and nowhere else.
//!
//! PID 1 is the parent of every orphan, so a wait for "any child" is needed, and it would take the status from whoever waits for one
//! child of its own. Hence all children are started through [`Reaper::spawn`], which knows whom to tell. The reaper and everything
//! that spawns run on one thread, and neither awaits between starting a child and registering it: a status cannot come too early.

use std::{cell::RefCell, collections::HashMap, io};

use rustix::process::{Pid, WaitOptions, WaitStatus};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::oneshot,
};

use crate::spawn::{self, Launch, LaunchError, Started};

/// Statuses collected before others get their turn. A storm of orphans must not silence the agent.
const BATCH: usize = 256;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// By itself, with this code.
    Code(u8),
    /// By this signal.
    Signal(u8),
}

/// Collects exit statuses and tells those who wait for one.
#[derive(Debug, Default)]
pub(crate) struct Reaper {
    waiting: RefCell<HashMap<Pid, oneshot::Sender<Exit>>>,
}

/// A started process, with the promise of its end.
#[derive(Debug)]
pub(crate) struct Child {
    /// Its number, and its process group's. Means this process until `exit` has been received.
    pub(crate) pid: Pid,
    /// How it ended.
    pub(crate) exit: oneshot::Receiver<Exit>,
}

impl Reaper {
    /// Starts a process whose end will be told.
    pub(crate) fn spawn(&self, launch: &Launch<'_>) -> Result<(Child, Started), LaunchError> {
        let (pid, started) = spawn::launch(launch)?;
        let (tell, exit) = oneshot::channel();
        self.waiting.borrow_mut().insert(pid, tell);
        Ok((Child { pid, exit }, started))
    }

    /// Collects for ever.
    pub(crate) async fn run(&self) -> io::Error {
        let mut deaths = match signal(SignalKind::child()) {
            Ok(deaths) => deaths,
            Err(error) => return error,
        };
        loop {
            if self.collect() {
                tokio::task::yield_now().await;
            } else {
                let _ = deaths.recv().await;
            }
        }
    }

    /// Collects a batch; whether more may be there.
    fn collect(&self) -> bool {
        for _ in 0..BATCH {
            match rustix::process::wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) => self.tell(pid, status),
                Err(rustix::io::Errno::INTR) => {}
                Ok(None) | Err(_) => return false,
            }
        }
        true
    }

    fn tell(&self, pid: Pid, status: WaitStatus) {
        let (Some(exit), Some(waiting)) =
            (Exit::of(status.exit_status(), status.terminating_signal()), self.waiting.borrow_mut().remove(&pid))
        else {
            return;
        };
        // Whoever waited may have lost interest.
        let _ = waiting.send(exit);
    }
}

impl Exit {
    fn of(code: Option<i32>, signal: Option<i32>) -> Option<Self> {
        match code {
            Some(code) => u8::try_from(code).ok().map(Self::Code),
            None => u8::try_from(signal?).ok().map(Self::Signal),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_says_whether_a_code_or_a_signal_ended_the_process() {
        assert_eq!(Exit::of(Some(7), None), Some(Exit::Code(7)));
        assert_eq!(Exit::of(None, Some(9)), Some(Exit::Signal(9)));
        assert_eq!(Exit::of(None, None), None, "it was stopped, not ended");
    }
}
