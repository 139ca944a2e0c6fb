//! How much memory each memory file system may take. Pure.

/// The kernel rounds a size up to a page; rounding down here keeps the sum what was meant.
const PAGE_BYTES: u64 = 4096;

/// What the agent itself writes: wrappers, and the program of the execution under way, which is at most 8 MiB and held twice.
pub(crate) const RUN_BYTES: u64 = 24 * 1024 * 1024;

/// `/tmp`: half of memory, as on an ordinary Linux.
pub(crate) fn tmp_bytes(total: u64) -> u64 {
    percent(total, 50)
}

/// `/home/user`: less than `/tmp`, so that filling both still runs into the programs' memory limit and not into the agent's.
pub(crate) fn home_bytes(total: u64) -> u64 {
    percent(total, 40)
}

/// `/dev/shm`: what shared memory of programs may take.
pub(crate) fn shm_bytes(total: u64) -> u64 {
    percent(total, 40)
}

fn percent(total: u64, percent: u8) -> u64 {
    // Widened, so that no memory is too large to be multiplied.
    let bytes = u128::from(total) * u128::from(percent) / 100;
    u64::try_from(bytes).map_or(0, |bytes| bytes - bytes % PAGE_BYTES)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn sizes_are_whole_pages_and_never_more_than_their_share(total in any::<u64>()) {
            for (bytes, share) in [(tmp_bytes(total), 2.0), (home_bytes(total), 2.5), (shm_bytes(total), 2.5)] {
                prop_assert_eq!(bytes % PAGE_BYTES, 0);
                #[expect(clippy::cast_precision_loss, reason = "a share is compared, not counted")]
                let within = bytes as f64 * share <= total as f64 * 1.000_001;
                prop_assert!(within);
            }
        }
    }

    #[test]
    fn a_machine_of_192_mib_gets_96_for_tmp() {
        assert_eq!(tmp_bytes(192 * 1024 * 1024), 96 * 1024 * 1024);
    }
}
