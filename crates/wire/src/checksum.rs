//! The checksum of a file on its way: 64 bits of XXH3.
//!
//! It guards against bytes that are lost or mixed up, which either end may do by mistake. It is no proof against a peer who lies: the
//! guest could send another file altogether. So it is the fastest one, which counts where a guest is emulated.

use twox_hash::XxHash3_64;

/// A checksum as its bytes come.
#[derive(Clone, Default)]
pub struct Checksum {
    hash: XxHash3_64,
}

impl Checksum {
    /// Adds bytes.
    pub fn add(&mut self, bytes: &[u8]) {
        std::hash::Hasher::write(&mut self.hash, bytes);
    }

    /// The checksum of all that was added.
    #[must_use]
    pub fn value(&self) -> u64 {
        std::hash::Hasher::finish(&self.hash)
    }
}

impl std::fmt::Debug for Checksum {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Checksum({:016x})", self.value())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_xxh3_however_the_bytes_are_cut() {
        // The reference implementation's answers for nothing and for "a".
        assert_eq!(Checksum::default().value(), 0x2d06_8005_38d3_94c2);
        let bytes: Vec<u8> = (0..100_000_u32).map(|n| n.to_le_bytes()[0]).collect();
        let (mut whole, mut pieces) = (Checksum::default(), Checksum::default());
        whole.add(&bytes);
        bytes.chunks(777).for_each(|piece| pieces.add(piece));
        assert_eq!(whole.value(), pieces.value());
        pieces.add(b"x");
        assert_ne!(whole.value(), pieces.value());
    }
}
