//! The manifest of a layer: what it was made of, what is in it, and what its file is. It may have come from elsewhere, and is not
//! believed before it has been checked.

use std::time::{SystemTime, UNIX_EPOCH};

use exec_sandbox_image::Digest;
use serde::{Deserialize, Serialize};

use super::parts::{FORMAT, LayerKey, LayerParts};

/// Most that is read of a manifest: a name and a version for each of some thousand packages.
pub(crate) const MAX_MANIFEST_BYTES: u64 = 256 * 1024;

/// What a layer says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LayerManifest {
    /// [`FORMAT`].
    format: u32,
    key: LayerKey,
    pub(crate) parts: LayerParts,
    pub(crate) digest: Digest,
    pub(crate) size_bytes: u64,
    /// For people, as is what follows: each package that is in it, with its version.
    pub(crate) installed: Vec<String>,
    created_unix_s: u64,
    made_by: String,
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
}

impl LayerManifest {
    /// The manifest of a layer that is made now.
    pub(crate) fn new(parts: LayerParts, digest: Digest, size_bytes: u64, installed: Vec<String>) -> Self {
        let created = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let made_by = format!("{} {}", env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"));
        let (key, created_unix_s) = (parts.key(), created.as_secs());
        Self { format: FORMAT, key, parts, digest, size_bytes, installed, created_unix_s, made_by }
    }

    /// Reads and checks one.
    pub(crate) fn from_json(json: &[u8]) -> Result<Self, ManifestError> {
        let manifest: Self = serde_json::from_slice(json).map_err(ManifestError::Malformed)?;
        for format in [manifest.format, manifest.parts.format] {
            if format != FORMAT {
                return Err(ManifestError::UnknownFormat(format));
            }
        }
        if manifest.key != manifest.parts.key() {
            return Err(ManifestError::WrongKey);
        }
        Ok(manifest)
    }

    /// The text that [`LayerManifest::from_json`] reads: indented, ending in a line break.
    pub(crate) fn to_json(&self) -> serde_json::Result<Vec<u8>> {
        let mut json = serde_json::to_vec_pretty(self)?;
        json.push(b'\n');
        Ok(json)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{super::parts::tests::any_parts, *};

    proptest! {
        #[test]
        fn a_manifest_reads_back_as_it_was_written_and_one_of_another_format_is_refused(
            parts in any_parts(), size_bytes in any::<u64>(), format in 2..9_u32,
        ) {
            let of = |format| {
                let parts = LayerParts { format, ..parts.clone() };
                LayerManifest::new(parts, Digest::of(b"c"), size_bytes, vec!["a 1".into()])
            };
            let read = |manifest: &LayerManifest| LayerManifest::from_json(&manifest.to_json().expect("it is data"));
            prop_assert_eq!(read(&of(FORMAT)).expect("it is ours"), of(FORMAT));
            prop_assert!(matches!(read(&of(format)), Err(ManifestError::UnknownFormat(found)) if found == format));
        }

        #[test]
        fn a_manifest_under_the_key_of_another_is_refused(one in any_parts(), other in any_parts()) {
            let of = |parts: LayerParts| LayerManifest::new(LayerParts { format: FORMAT, ..parts }, Digest::of(b"c"), 1, vec![]);
            let (one, other) = (of(one), of(other));
            let json = LayerManifest { key: other.key, ..one.clone() }.to_json().expect("it is data");
            let refused = matches!(LayerManifest::from_json(&json), Err(ManifestError::WrongKey));
            prop_assert_eq!(refused, one.parts != other.parts);
        }
    }
}
