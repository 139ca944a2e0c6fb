//! Signals that ask `sbx` to end. The first is answered by an orderly teardown, the second by leaving at once.

use tokio::signal::unix::{self, SignalKind};

use crate::{exit::Status, failure::Failure};

/// A request to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Signal {
    /// Ctrl-C.
    Interrupt,
    /// The system or a supervisor.
    Terminate,
    /// The terminal is gone.
    Hangup,
}

/// Listens for as long as it lives; a signal that nobody waits for is kept.
pub(crate) struct Interrupts {
    /// `None`: Ctrl-C has another meaning.
    interrupt: Option<unix::Signal>,
    terminate: unix::Signal,
    hangup: unix::Signal,
}

impl Signal {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Interrupt => "SIGINT",
            Self::Terminate => "SIGTERM",
            Self::Hangup => "SIGHUP",
        }
    }

    pub(crate) fn status(self) -> Status {
        Status::signal(match self {
            Self::Hangup => 1,
            Self::Interrupt => 2,
            Self::Terminate => 15,
        })
    }
}

impl Interrupts {
    /// Takes the signals over from the system's default, which ends the process on the spot.
    pub(crate) fn listen() -> Result<Self, Failure> {
        Ok(Self { interrupt: Some(listen(SignalKind::interrupt())?), ..Self::but_for_the_keyboard()? })
    }

    /// The same without Ctrl-C.
    pub(crate) fn but_for_the_keyboard() -> Result<Self, Failure> {
        let (terminate, hangup) = (listen(SignalKind::terminate())?, listen(SignalKind::hangup())?);
        Ok(Self { interrupt: None, terminate, hangup })
    }

    /// The next signal.
    pub(crate) async fn next(&mut self) -> Signal {
        tokio::select! {
            () = received(self.interrupt.as_mut()) => Signal::Interrupt,
            _ = self.terminate.recv() => Signal::Terminate,
            _ = self.hangup.recv() => Signal::Hangup,
        }
    }
}

fn listen(kind: SignalKind) -> Result<unix::Signal, Failure> {
    unix::signal(kind).map_err(|error| Failure::host("listening for signals", error))
}

async fn received(signal: Option<&mut unix::Signal>) {
    match signal {
        Some(signal) => drop(signal.recv().await),
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_ends_the_program_as_it_would_a_shell_command() {
        assert_eq!(Signal::Interrupt.status().code(), 130);
        assert_eq!(Signal::Terminate.status().code(), 143);
        assert_eq!(Signal::Hangup.status().code(), 129);
    }
}
