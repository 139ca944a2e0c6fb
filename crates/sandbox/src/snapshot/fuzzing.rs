//! The manifest of a snapshot, as another version or another program has left it, for the fuzz targets.

use std::num::NonZeroU32;

use exec_sandbox_image::Digest;
use exec_sandbox_qemu::Accelerator;

use super::{
    Key, Parts,
    manifest::{Content, Manifest, memory_bytes},
    parts::{FORMAT, QemuBuild},
};
use crate::Language;

/// Reads a manifest. What is accepted is the same when it is written and read again, and agrees with itself.
///
/// # Panics
/// See above.
pub fn snapshot_manifest(json: &[u8]) {
    let Ok(manifest) = Manifest::from_json(json) else { return };
    let text = manifest.to_json().expect("it is data");
    assert_eq!(Manifest::from_json(&text).expect("it was written by us"), manifest);
    let mut parts = manifest.parts().clone();
    assert_eq!(parts.key(), manifest.key());
    assert_eq!(memory_bytes(parts.memory_mib), manifest.ram.size_bytes);
    // The key is the name of a directory, and of one that is read back.
    let name = manifest.key().to_string();
    assert!(name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit()), "{name}");
    assert_eq!(name.parse::<Key>(), Ok(manifest.key()));
    parts.packages.reverse();
    assert_eq!(parts.key(), manifest.key());
    parts.packages.push(String::new());
    assert_ne!(parts.key(), manifest.key());
}

/// Manifests that are accepted.
pub fn snapshot_manifests() -> [Vec<u8>; 3] {
    let bare = Parts {
        format: FORMAT,
        generation: 1,
        kernel: Digest::of(b"k"),
        initramfs: Digest::of(b"i"),
        root: Digest::of(b"r"),
        qemu: QemuBuild { version: "10.0.2".into(), content: None, size_bytes: 1, modified_s: 2, modified_ns: 3 },
        accelerator: Accelerator::Hvf,
        host_cpu: None,
        machine: Vec::new(),
        memory_mib: 192,
        language: None,
        packages: Vec::new(),
        layer: None,
        is_preloaded: false,
    };
    let kvm = Parts {
        accelerator: Accelerator::Kvm { cpu_model: "host".into() },
        host_cpu: Some("GenuineIntel 6 207".into()),
        machine: vec!["-M".into(), "microvm".into()],
        ..bare.clone()
    };
    let tcg = Parts {
        accelerator: Accelerator::Tcg { tsc_khz: NonZeroU32::new(2_000_000) },
        language: Some(Language::Python),
        packages: vec!["a==1".into(), "b==2".into()],
        ..bare.clone()
    };
    [bare, kvm, tcg].map(|parts| {
        let content = |size_bytes| Content { digest: Digest::of(b"c"), size_bytes };
        let ram = content(memory_bytes(parts.memory_mib));
        // Only software emulation translates.
        let translations = matches!(parts.accelerator, Accelerator::Tcg { .. }).then(|| content(9));
        Manifest::new(parts, ram, content(7), translations).to_json().expect("it is data")
    })
}
