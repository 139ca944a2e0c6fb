//! Flow control: how much of one stream may be on its way.
//!
//! The sender holds a [`Window`] per stream, takes from it what it sends and adds what the receiver grants. A stream that
//! nobody reads so stops its program, and no other stream of the channel.

use crate::limits::STREAM_WINDOW_BYTES;

/// What a sender may still send of one stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    available: u32,
}

/// A grant that no honest receiver gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a grant of {granted} bytes on top of {available} is over the window of {STREAM_WINDOW_BYTES}")]
pub struct FlowError {
    /// The bytes granted.
    pub granted: u32,
    /// What was still available.
    pub available: u32,
}

impl Default for Window {
    fn default() -> Self {
        Self { available: STREAM_WINDOW_BYTES }
    }
}

impl Window {
    /// A window of which so much is open, after a connection was lost.
    ///
    /// # Errors
    /// [`FlowError`] if it is more than [`STREAM_WINDOW_BYTES`].
    pub fn resumed(available: u32) -> Result<Self, FlowError> {
        let mut window = Self { available: 0 };
        window.grant(available).map(|()| window)
    }

    /// Bytes that may be sent now.
    #[must_use]
    pub fn available(self) -> usize {
        self.available as usize
    }

    /// Takes what is about to be sent, at most [`available`](Self::available); returns how much of `wanted` may go.
    pub fn take(&mut self, wanted: usize) -> usize {
        let taken = u32::try_from(wanted).unwrap_or(u32::MAX).min(self.available);
        self.available -= taken;
        taken as usize
    }

    /// Adds a grant.
    ///
    /// # Errors
    /// [`FlowError`] if it would open the window beyond [`STREAM_WINDOW_BYTES`]; the window is then unchanged.
    pub fn grant(&mut self, granted: u32) -> Result<(), FlowError> {
        match self.available.checked_add(granted) {
            Some(sum) if sum <= STREAM_WINDOW_BYTES => {
                self.available = sum;
                Ok(())
            }
            _ => Err(FlowError { granted, available: self.available }),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_window_is_resumed_as_far_as_it_may_be_open() {
        assert_eq!(Window::resumed(7).map(Window::available), Ok(7));
        assert_eq!(Window::resumed(STREAM_WINDOW_BYTES), Ok(Window::default()));
        assert!(Window::resumed(STREAM_WINDOW_BYTES + 1).is_err());
    }

    proptest! {
        #[test]
        fn no_order_of_sends_and_grants_opens_the_window_beyond_its_size(steps in prop::collection::vec((any::<bool>(), 0_u32..600_000), 0..60)) {
            let (mut window, mut in_flight) = (Window::default(), 0_usize);
            for (send, bytes) in steps {
                if send {
                    in_flight += window.take(bytes as usize);
                } else if window.grant(bytes).is_ok() {
                    in_flight -= bytes as usize;
                }
                prop_assert_eq!(window.available() + in_flight, STREAM_WINDOW_BYTES as usize);
            }
        }
    }
}
