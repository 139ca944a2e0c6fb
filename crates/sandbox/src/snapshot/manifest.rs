//! The manifest of a snapshot: what it was made of, and what its files are.

use std::time::{SystemTime, UNIX_EPOCH};

use exec_sandbox_image::Digest;
use serde::{Deserialize, Serialize};

use super::parts::{FORMAT, Key, Parts};

/// Most that is read of a manifest: it has a few kilobytes, and twenty packages more.
pub(super) const MAX_MANIFEST_BYTES: u64 = 256 * 1024;

/// What a snapshot says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Manifest {
    /// [`FORMAT`].
    format: u32,
    key: Key,
    parts: Parts,
    pub(super) ram: Content,
    pub(super) state: Content,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) translations: Option<Content>,
    /// For people, as is what follows.
    created_unix_s: u64,
    made_by: String,
}

/// What is in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Content {
    /// [`Digest::of_sparse_file`].
    pub(super) digest: Digest,
    pub(super) size_bytes: u64,
}

/// Why a manifest was refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ManifestError {
    #[error("it is not one")]
    Malformed(#[source] serde_json::Error),
    #[error("its format is {0} and this build reads format {FORMAT}")]
    UnknownFormat(u32),
    #[error("its key is not that of its parts")]
    WrongKey,
    #[error("its memory has {found_bytes} bytes and its VM {expected_bytes}")]
    WrongMemory { found_bytes: u64, expected_bytes: u64 },
    #[error("it has more than {MAX_MANIFEST_BYTES} bytes")]
    TooLong,
}

impl Manifest {
    /// The manifest of a snapshot that is made now.
    pub(super) fn new(parts: Parts, ram: Content, state: Content, translations: Option<Content>) -> Self {
        let created = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let made_by = format!("{} {}", env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"));
        let created_unix_s = created.as_secs();
        Self { format: FORMAT, key: parts.key(), parts, ram, state, translations, created_unix_s, made_by }
    }

    /// Reads and checks one.
    pub(super) fn from_json(json: &[u8]) -> Result<Self, ManifestError> {
        let manifest: Self = serde_json::from_slice(json).map_err(ManifestError::Malformed)?;
        for format in [manifest.format, manifest.parts.format] {
            if format != FORMAT {
                return Err(ManifestError::UnknownFormat(format));
            }
        }
        if manifest.key != manifest.parts.key() {
            return Err(ManifestError::WrongKey);
        }
        let (found_bytes, expected_bytes) = (manifest.ram.size_bytes, memory_bytes(manifest.parts.memory_mib));
        if found_bytes != expected_bytes {
            return Err(ManifestError::WrongMemory { found_bytes, expected_bytes });
        }
        Ok(manifest)
    }

    /// The text that [`Manifest::from_json`] reads: indented, ending in a line break.
    pub(super) fn to_json(&self) -> serde_json::Result<Vec<u8>> {
        let mut json = serde_json::to_vec_pretty(self)?;
        json.push(b'\n');
        Ok(json)
    }

    pub(super) fn key(&self) -> Key {
        self.key
    }

    pub(super) fn parts(&self) -> &Parts {
        &self.parts
    }
}

/// The length of the file that is a VM's memory.
pub(super) fn memory_bytes(memory_mib: u32) -> u64 {
    u64::from(memory_mib) << 20
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{super::parts::tests::any_parts, *};

    fn manifest(parts: Parts, translations: Option<u64>) -> Manifest {
        let content = |size_bytes| Content { digest: Digest::of(b"c"), size_bytes };
        let ram = content(memory_bytes(parts.memory_mib));
        Manifest::new(parts, ram, content(7), translations.map(content))
    }

    proptest! {
        #[test]
        fn a_manifest_reads_back_as_it_was_written(parts in any_parts(), translations in any::<Option<u64>>()) {
            let manifest = manifest(Parts { format: FORMAT, ..parts }, translations);
            let json = manifest.to_json().expect("it is data");
            prop_assert_eq!(Manifest::from_json(&json).expect("it is ours"), manifest);
            let json: serde_json::Value = serde_json::from_slice(&json).expect("it is JSON");
            let said = json.get("translations").map(|content| content["size_bytes"].as_u64());
            prop_assert_eq!(said, translations.map(Some), "of what is not there nothing is said");
        }

        #[test]
        fn parts_of_another_format_are_refused(parts in any_parts(), format in 4..9_u32) {
            let json = manifest(Parts { format, ..parts }, None).to_json().expect("it is data");
            let refused = Manifest::from_json(&json);
            prop_assert!(matches!(refused, Err(ManifestError::UnknownFormat(found)) if found == format));
        }
    }
}
