//! Buckets: how much there may be in a time, some of it at once.

use std::time::{Duration, Instant};

/// A full bucket, and what flows into it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rate {
    pub(crate) burst: u64,
    pub(crate) each_second: u64,
}

/// A bucket: what may still be taken, in thousandths.
#[derive(Debug)]
pub(crate) struct Bucket {
    rate: Rate,
    thousandths: u64,
    at: Instant,
}

impl Bucket {
    pub(crate) fn full(rate: Rate, now: Instant) -> Self {
        Self { rate, thousandths: rate.burst * 1000, at: now }
    }

    /// Takes `amount`, if there is as much.
    pub(crate) fn take(&mut self, amount: u64, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.at).min(Duration::from_secs(86_400));
        let millis = u64::try_from(passed.as_millis()).unwrap_or(u64::MAX);
        // What is less than a millisecond counts for the next time.
        self.at += Duration::from_millis(millis);
        let flowed = millis.saturating_mul(self.rate.each_second);
        self.thousandths = self.thousandths.saturating_add(flowed).min(self.rate.burst * 1000);
        let wanted = amount.saturating_mul(1000);
        let has = self.thousandths >= wanted;
        if has {
            self.thousandths -= wanted;
        }
        has
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_gives_its_burst_and_then_what_flows_in() {
        let begun = Instant::now();
        let mut bucket = Bucket::full(Rate { burst: 3, each_second: 2 }, begun);
        let taken = |bucket: &mut Bucket, at: u64| bucket.take(1, begun + Duration::from_millis(at));
        assert_eq!([0; 4].map(|at| taken(&mut bucket, at)), [true, true, true, false]);
        assert_eq!([499, 500, 501].map(|at| taken(&mut bucket, at)), [false, true, false]);
        assert_eq!([9000; 4].map(|at| taken(&mut bucket, at)), [true, true, true, false], "it does not overflow");
    }
}
