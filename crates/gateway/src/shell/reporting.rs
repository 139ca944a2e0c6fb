//! The report channel: lines out, one line at a time, and what the parent asks for.
//!
//! The parent asks for a report by any byte, and for the end by closing its side. While the channel is full nothing is told; the next
//! report says all that the one left out would have said.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    time::{Duration, Instant},
};

use mio::{event::Event, net::UnixStream};

use crate::report::{Counters, Report};

/// Shortest time between reports that nobody asked for.
const PERIOD: Duration = Duration::from_secs(1);

/// Requests that are read at once; they all mean the same.
const REQUEST_BYTES: usize = 64;

/// The gateway's end of the channel.
#[derive(Debug)]
pub(super) struct Reporting {
    channel: UnixStream,
    missing_layers: Vec<String>,
    /// What is left of the line that is being written.
    line: Vec<u8>,
    /// What was refused when the last report was made, and when that was.
    told: (u64, Option<Instant>),
    /// When the next one is made that nobody asked for.
    due: Option<Instant>,
}

/// What the parent asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    Nothing,
    Report,
    End,
}

impl Reporting {
    pub(super) fn new(channel: UnixStream) -> Self {
        Self { channel, missing_layers: Vec::new(), line: Vec::new(), told: (0, None), due: None }
    }

    /// Tells that the gateway works.
    pub(super) fn start(&mut self, missing_layers: Vec<String>, counters: &Counters, now: Instant) {
        self.missing_layers = missing_layers;
        self.tell(counters, now);
    }

    /// Tells now, unless a line is still being written.
    pub(super) fn tell(&mut self, counters: &Counters, now: Instant) {
        self.flush();
        if self.line.is_empty() {
            self.line = Report::new(counters, &self.missing_layers, false).line();
            self.told = (counters.refused(), Some(now));
            self.due = None;
            self.flush();
        }
    }

    /// Tells of what was refused since the last report, not more often than [`PERIOD`].
    pub(super) fn turn(&mut self, counters: &Counters, now: Instant) {
        let (refused, at) = self.told;
        if self.due.is_none() && counters.refused() != refused {
            self.due = Some(at.map_or(now, |at| at + PERIOD));
        }
        if self.due.is_some_and(|due| due <= now) {
            self.due = None;
            self.tell(counters, now);
        }
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.due
    }

    /// The last report. It waits for nobody: a parent that does not read it did not want it.
    pub(super) fn end(&mut self, counters: &Counters) {
        self.flush();
        self.line.extend(Report::new(counters, &self.missing_layers, true).line());
        self.flush();
    }

    pub(super) fn event(&mut self, event: &Event) -> Asked {
        self.flush();
        if !event.is_readable() && !event.is_read_closed() {
            return Asked::Nothing;
        }
        let mut asked = Asked::Nothing;
        loop {
            match self.channel.read(&mut [0; REQUEST_BYTES]) {
                Ok(0) => return Asked::End,
                Ok(_) => asked = Asked::Report,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return asked,
                Err(_) => return Asked::End,
            }
        }
    }

    fn flush(&mut self) {
        while !self.line.is_empty() {
            match self.channel.write(&self.line) {
                Ok(0) => return,
                Ok(written) => drop(self.line.drain(..written)),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // A parent that is gone is seen where it is read.
                Err(_) => return,
            }
        }
    }
}
