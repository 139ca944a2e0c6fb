//! The meter: how much of a transfer is done and how fast it goes, said by a spinner.

use std::{
    cell::Cell,
    pin::Pin,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use tokio::io::{self, AsyncRead, AsyncWrite, ReadBuf};

use crate::progress::Progress;

/// Between two changes of what is said: as often as the spinner moves.
const BETWEEN_CHANGES: Duration = Duration::from_millis(100);

/// Counts bytes. Several transfers at once share one.
#[derive(Debug)]
pub(crate) struct Meter {
    progress: Progress,
    verb: &'static str,
    total: Cell<u64>,
    done: Cell<u64>,
    begun: Cell<Option<Instant>>,
    said: Cell<Option<Instant>>,
}

/// Something that is read or written, and counted.
#[derive(Debug)]
pub(crate) struct Counted<'a, T> {
    inner: T,
    meter: &'a Meter,
}

impl Meter {
    /// A meter of what `verb` says, of which `total` bytes are expected.
    pub(crate) fn new(progress: Progress, verb: &'static str, total: u64) -> Self {
        let (total, done) = (Cell::new(total), Cell::new(0));
        Self { progress, verb, total, done, begun: Cell::default(), said: Cell::default() }
    }

    /// Expects so many bytes more.
    pub(crate) fn expect(&self, bytes: u64) {
        self.total.set(self.total.get().saturating_add(bytes));
    }

    /// Counts what passes through `inner`.
    pub(crate) fn count<T>(&self, inner: T) -> Counted<'_, T> {
        Counted { inner, meter: self }
    }

    fn add(&self, bytes: usize, now: Instant) {
        let begun = self.begun.get().unwrap_or(now);
        self.begun.set(Some(begun));
        self.done.set(self.done.get().saturating_add(bytes as u64));
        if self.said.get().is_none_or(|said| now - said >= BETWEEN_CHANGES) {
            self.said.set(Some(now));
            self.progress.say(&line(self.verb, self.done.get(), self.total.get(), now - begun));
        }
    }
}

/// What is said of `done` of `total` bytes after so long.
fn line(verb: &str, done: u64, total: u64, after: Duration) -> String {
    // A file may have grown since it was counted.
    let total = total.max(done);
    let mut line = format!("{verb} {:.1}/{:.1} MiB", mib(done), mib(total));
    // The first piece has taken no time that could be measured.
    if after >= BETWEEN_CHANGES {
        line.push_str(&format!(" at {:.1} MiB/s", mib(done) / after.as_secs_f64()));
    }
    line
}

#[expect(clippy::cast_precision_loss, reason = "shown with one decimal")]
fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

impl<T: AsyncRead + Unpin> AsyncRead for Counted<'_, T> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(context, into))?;
        self.meter.add(into.filled().len() - before, Instant::now());
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Counted<'_, T> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.inner).poll_write(context, bytes))?;
        self.meter.add(written, Instant::now());
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_tells_done_total_and_rate() {
        let mib = 1 << 20;
        assert_eq!(line("uploading", mib, 4 * mib, Duration::ZERO), "uploading 1.0/4.0 MiB");
        assert_eq!(line("uploading", 3 * mib, 4 * mib, Duration::from_secs(2)), "uploading 3.0/4.0 MiB at 1.5 MiB/s");
        assert_eq!(line("downloading", 5 * mib, mib, Duration::ZERO), "downloading 5.0/5.0 MiB", "it has grown");
    }

    #[test]
    fn what_passes_is_counted_over_all_transfers() {
        let meter = Meter::new(Progress::start("", false), "uploading", 0);
        let now = Instant::now();
        meter.expect(10);
        meter.add(3, now);
        meter.add(4, now);
        assert_eq!((meter.done.get(), meter.total.get()), (7, 10));
    }
}
