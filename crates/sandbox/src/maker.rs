//! Who made a thing: this process, or the one that it was forked from.
//!
//! After `fork` what was in memory is in two processes, and of the first one's threads the second has a single one. What the memory
//! stands for (a child, a directory, a lock) is still the first one's alone. The second must not give it up, not even by dropping it,
//! and must not wait for a lock in memory, whose holder may be a thread that it does not have. The one value of this crate that is
//! there without anybody having made it, the spawner, is therefore made anew. A handle that was inherited is of no use: its VM is
//! served by a runtime whose threads are elsewhere, and registrations with that runtime are shared, so it is best never dropped.

use std::process;

/// The process that made something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Maker(u32);

impl Maker {
    pub(crate) fn this_process() -> Self {
        Self(process::id())
    }

    pub(crate) fn is_this_process(self) -> bool {
        self == Self::this_process()
    }
}

#[cfg(test)]
pub(crate) mod tests;
