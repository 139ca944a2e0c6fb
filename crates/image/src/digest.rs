//! Digests: BLAKE3 of a file's bytes, and of a list of inputs as one key.
//!
//! Owns the spelling of a digest (64 lower-case hex digits) and the canonical form of a key. What the bytes mean is not its business.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Read size while hashing: large enough for BLAKE3's wide lanes, small enough to stay in a cache.
const CHUNK_BYTES: usize = 256 * 1024;

/// A BLAKE3 digest. Parsing it is the only check a name in the blob store needs: it cannot contain a path separator.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest([u8; 32]);

/// A text that is not a digest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a BLAKE3 digest (64 lower-case hex digits)")]
pub struct NotADigest(String);

/// Collects the inputs of a cache key. Every input is written with its length and its label, so no two lists of inputs run together to
/// the same bytes.
#[derive(Clone, Debug)]
pub struct KeyBuilder(blake3::Hasher);

/// A digest in the making, of bytes that come piece by piece.
#[derive(Clone, Debug, Default)]
pub(crate) struct Hashing(blake3::Hasher);

impl Digest {
    /// The digest of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }

    /// The digest and the length of a file's content.
    ///
    /// # Errors
    /// Whatever opening or reading the file answers.
    pub fn of_file(path: &Path) -> io::Result<(Self, u64)> {
        Self::of_reader(File::open(path)?)
    }

    /// The digest and the length of everything `reader` still has.
    ///
    /// # Errors
    /// Whatever reading answers.
    pub fn of_reader(reader: impl Read) -> io::Result<(Self, u64)> {
        let mut hashing = Hashing::default();
        hashing.read(reader)?;
        Ok((hashing.digest(), hashing.count()))
    }
}

impl Hashing {
    /// Takes everything that `reader` still has.
    pub(crate) fn read(&mut self, mut reader: impl Read) -> io::Result<()> {
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            match reader.read(&mut chunk) {
                Ok(0) => return Ok(()),
                Ok(read) => self.update(&chunk[..read]),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// Takes the next bytes.
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// How many bytes there have been.
    pub(crate) fn count(&self) -> u64 {
        self.0.count()
    }

    /// The digest of what there has been.
    pub(crate) fn digest(&self) -> Digest {
        Digest(*self.0.finalize().as_bytes())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

impl FromStr for Digest {
    type Err = NotADigest;

    fn from_str(text: &str) -> Result<Self, NotADigest> {
        let refuse = || NotADigest(text.to_owned());
        let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if !text.bytes().all(is_hex) {
            return Err(refuse());
        }
        blake3::Hash::from_hex(text).map(|hash| Self(*hash.as_bytes())).map_err(|_| refuse())
    }
}

impl TryFrom<String> for Digest {
    type Error = NotADigest;

    fn try_from(text: String) -> Result<Self, NotADigest> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

impl KeyBuilder {
    /// A key for `purpose`. Change the purpose's version when the recipe that the key stands for changes.
    #[must_use]
    pub fn new(purpose: &str) -> Self {
        Self(blake3::Hasher::new()).with("purpose", purpose.as_bytes())
    }

    /// The same key with one more input.
    #[must_use]
    pub fn with(mut self, label: &str, value: &[u8]) -> Self {
        for part in [label.as_bytes(), value] {
            self.0.update(&(part.len() as u64).to_le_bytes());
            self.0.update(part);
        }
        self
    }

    /// The key.
    #[must_use]
    pub fn finish(&self) -> Digest {
        Digest(*self.0.finalize().as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_reads_back_as_it_is_written() {
        let digest = Digest::of(b"a");
        assert_eq!(digest.to_string().parse(), Ok(digest));
    }

    #[test]
    fn the_digest_of_nothing_is_the_published_one() {
        let published = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262";
        assert_eq!(Digest::of(b"").to_string(), published);
    }

    #[test]
    fn upper_case_short_and_foreign_texts_are_not_digests() {
        let good = Digest::of(b"a").to_string();
        for bad in
            [good.to_uppercase(), good[1..].to_owned(), format!("{good}0"), "../../etc/passwd".into(), String::new()]
        {
            assert_eq!(bad.parse::<Digest>(), Err(NotADigest(bad)));
        }
    }

    #[test]
    fn a_reader_and_a_slice_of_the_same_bytes_agree() {
        let bytes = vec![7; CHUNK_BYTES * 2 + 1];
        assert_eq!(Digest::of_reader(&bytes[..]).unwrap(), (Digest::of(&bytes), bytes.len() as u64));
    }

    #[test]
    fn a_key_tells_apart_inputs_that_run_together() {
        let one = KeyBuilder::new("k").with("x", b"ab").with("x", b"c").finish();
        let other = KeyBuilder::new("k").with("x", b"a").with("x", b"bc").finish();
        assert_ne!(one, other);
    }
}
