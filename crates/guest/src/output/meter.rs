//! What may be sent of one stream, and what was. Pure.

use exec_sandbox_wire::{FlowError, Window, limits};

/// The account of one stream of one execution.
#[derive(Debug)]
pub(crate) struct Meter {
    window: Window,
    cap: u64,
    sent: u64,
    total: u64,
    listened: bool,
}

/// What may be done with the next bytes of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Allowance {
    /// Send at most so many.
    Send(usize),
    /// Read at most so many and throw them away.
    Discard(usize),
    /// Leave them where they are.
    Wait,
}

impl Meter {
    /// A stream of which at most `cap` bytes are sent.
    pub(crate) fn new(cap: u64) -> Self {
        Self { window: Window::default(), cap, sent: 0, total: 0, listened: true }
    }

    /// What may be done now.
    pub(crate) fn allowance(&self) -> Allowance {
        let chunk = limits::CHUNK_BYTES as usize;
        let left = usize::try_from(self.cap - self.sent).unwrap_or(usize::MAX);
        if left == 0 || !self.listened {
            return Allowance::Discard(chunk);
        }
        match self.window.available().min(left).min(chunk) {
            0 => Allowance::Wait,
            bytes => Allowance::Send(bytes),
        }
    }

    /// Notes that so many bytes are sent.
    pub(crate) fn send(&mut self, bytes: usize) {
        self.window.take(bytes);
        self.sent = (self.sent + bytes as u64).min(self.cap);
        self.total += bytes as u64;
    }

    /// Notes that so many bytes were thrown away.
    pub(crate) fn discard(&mut self, bytes: usize) {
        self.total += bytes as u64;
    }

    /// Adds what the host grants.
    pub(crate) fn grant(&mut self, bytes: u32) -> Result<(), FlowError> {
        self.window.grant(bytes)
    }

    /// A new connection begins: what was on its way is lost, and its window is whole.
    pub(crate) fn reopen(&mut self) {
        self.window = Window::default();
    }

    /// Nobody will hear the rest: it is only counted.
    pub(crate) fn give_up(&mut self) {
        self.listened = false;
    }

    /// Bytes that the program wrote, as far as they were read.
    pub(crate) fn total(&self) -> u64 {
        self.total
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Reads `available` bytes under a meter as a pump does; how many were sent.
    fn pump(meter: &mut Meter, mut available: usize) -> (usize, usize) {
        let mut sent = 0;
        while available > 0 {
            match meter.allowance() {
                Allowance::Send(most) => {
                    let bytes = most.min(available);
                    meter.send(bytes);
                    (sent, available) = (sent + bytes, available - bytes);
                }
                Allowance::Discard(most) => {
                    let bytes = most.min(available);
                    meter.discard(bytes);
                    available -= bytes;
                }
                Allowance::Wait => break,
            }
        }
        (sent, available)
    }

    proptest! {
        #[test]
        fn whatever_is_written_and_granted_exactly_the_cap_is_sent_and_all_of_it_counted(
            cap in 0_u64..500_000,
            writes in prop::collection::vec(0_usize..400_000, 1..12),
        ) {
            let mut meter = Meter::new(cap);
            let (mut sent, mut waiting, mut written) = (0, 0, 0);
            for bytes in writes {
                written += bytes;
                waiting += bytes;
                while waiting > 0 {
                    let (now, left) = pump(&mut meter, waiting);
                    prop_assert!(now <= limits::STREAM_WINDOW_BYTES as usize);
                    sent += now;
                    waiting = left;
                    meter.grant(u32::try_from(now).expect("a window is small")).expect("it is what was taken");
                }
            }
            prop_assert_eq!(sent as u64, cap.min(written as u64));
            prop_assert_eq!(meter.total(), written as u64);
        }
    }

    #[test]
    fn without_credit_the_rest_stays_where_it_is() {
        let mut meter = Meter::new(1_000_000);
        let window = limits::STREAM_WINDOW_BYTES as usize;
        assert_eq!(pump(&mut meter, window + 1), (window, 1));
        assert_eq!(meter.allowance(), Allowance::Wait);
        meter.reopen();
        assert_eq!(pump(&mut meter, 1), (1, 0));
    }

    #[test]
    fn what_nobody_will_hear_is_counted_without_credit() {
        let mut meter = Meter::new(1_000_000);
        pump(&mut meter, limits::STREAM_WINDOW_BYTES as usize);
        meter.give_up();
        assert_eq!(pump(&mut meter, 500_000), (0, 0));
        assert_eq!(meter.total(), u64::from(limits::STREAM_WINDOW_BYTES) + 500_000);
    }
}
