//! The manifest of a layer, as another version, another machine or another program has left it, for the fuzz targets.

use exec_sandbox_image::Digest;

use super::{
    manifest::LayerManifest,
    parts::{FORMAT, LayerKey, LayerParts},
};
use crate::{Language, request::PackageSet};

/// Reads a manifest. What is accepted is the same when it is written and read again, and agrees with itself.
///
/// # Panics
/// See above.
pub fn layer_manifest(json: &[u8]) {
    let Ok(manifest) = LayerManifest::from_json(json) else { return };
    let text = manifest.to_json().expect("it is data");
    assert_eq!(LayerManifest::from_json(&text).expect("it was written by us"), manifest);
    // The key is the name of a directory, and of one that is read back.
    let key = manifest.parts.key();
    assert_eq!(key.to_string().parse::<LayerKey>(), Ok(key));
    let index = manifest.parts.index.clone().map_or_else(|| Some(String::new()), |_| None);
    assert_ne!(LayerParts { index, ..manifest.parts }.key(), key);
}

/// Manifests that are accepted.
pub fn layer_manifests() -> Vec<Vec<u8>> {
    let sets = [(Language::Python, "idna[all]==3.10"), (Language::JavaScript, "@types/node@22.5.0")];
    let manifest = |(language, package): (Language, &str)| {
        let set = PackageSet::of(language, &[package.to_owned()], false).ok().flatten()?;
        let index = Some("https://mirror.example/simple".to_owned());
        let parts = LayerParts { format: FORMAT, root: Digest::of(b"r"), set, index };
        LayerManifest::new(parts, Digest::of(b"l"), 4096, vec![package.to_owned()]).to_json().ok()
    };
    sets.into_iter().filter_map(manifest).collect()
}
