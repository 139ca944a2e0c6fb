//! An image's QEMU: laid out where it is run from, proven with the image, mended from its blobs, and gone with the last image that has it.

#![expect(clippy::unwrap_used, reason = "a panic is how a test's fixture fails")]

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use exec_sandbox_image::{
    Arrival, Blob, BlobRole, BlobSources, Digest, ImageError, ImageStore, Interpreter, Manifest, Pruned, Qemu,
};
use tempfile::TempDir;

struct Fixture {
    dir: TempDir,
    store: ImageStore,
}

impl Fixture {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        for name in ["kernel", "agent", "root", "qemu", "pvh.bin", "qboot.rom", "newer"] {
            fs::write(dir.path().join(name), name).unwrap();
        }
        let store = ImageStore::at(dir.path().join("images"));
        Self { dir, store }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn publish(&self, manifest: &Manifest) -> Result<(), ImageError> {
        let [kernel, initramfs, root] = ["kernel", "agent", "root"].map(|name| self.path(name));
        let qemu = Some(self.dir.path());
        let sources = BlobSources { kernel: &kernel, initramfs: &initramfs, root: &root, qemu };
        self.store.publish(manifest, sources).map(drop)
    }

    /// The program and the firmware of a verified image.
    fn verified(&self) -> (PathBuf, PathBuf) {
        let image = self.store.load("standard").unwrap().verify_fully().unwrap();
        (image.qemu().unwrap(), image.firmware().unwrap())
    }

    fn prefixes(&self) -> usize {
        fs::read_dir(self.path("images/qemu")).unwrap().count()
    }
}

fn blob(content: &str) -> Blob {
    Blob { blake3: Digest::of(content.as_bytes()), size_bytes: content.len() as u64 }
}

fn manifest() -> Manifest {
    Manifest {
        format: Manifest::FORMAT,
        name: "standard".into(),
        arch: "x86_64".into(),
        kernel_version: "6.12.0".into(),
        kernel: blob("kernel"),
        initramfs: blob("agent"),
        root: blob("root"),
        languages: BTreeMap::from([("raw".into(), Interpreter { path: "/bin/bash".into(), version: "5.2".into() })]),
        packages: Vec::new(),
        registries: BTreeMap::new(),
        indexes: BTreeMap::new(),
        qemu: Some(Qemu {
            version: "10.0.13".into(),
            program: blob("qemu"),
            firmware: ["pvh.bin", "qboot.rom"].map(|name| (name.into(), blob(name))).into(),
        }),
    }
}

fn mode(path: &Path) -> u32 {
    path.metadata().unwrap().permissions().mode() & 0o777
}

fn overwrite(path: &Path, content: &str) {
    fs::set_permissions(path, Permissions::from_mode(0o644)).unwrap();
    fs::write(path, content).unwrap();
}

#[test]
fn a_published_qemu_lies_as_it_looks_for_its_firmware_and_everybody_may_run_it() {
    let fixture = Fixture::new();
    fixture.publish(&manifest()).unwrap();
    let (program, firmware) = fixture.verified();
    assert!(program.ends_with("bin/qemu"), "{}", program.display());
    assert_eq!(Some(firmware.as_path()), program.ancestors().nth(2).map(|prefix| prefix.join("share/qemu")).as_deref());
    assert_eq!((fs::read_to_string(&program).unwrap().as_str(), mode(&program)), ("qemu", 0o555));
    for name in ["pvh.bin", "qboot.rom"] {
        assert_eq!(
            (fs::read_to_string(firmware.join(name)).unwrap().as_str(), mode(&firmware.join(name))),
            (name, 0o444)
        );
    }
    assert_eq!(mode(&firmware), 0o755);
    assert!(fixture.path("images/blobs").join(blob("pvh.bin").blake3.to_string()).exists(), "it can be mended");
}

#[test]
fn an_image_without_a_qemu_has_none() {
    let fixture = Fixture::new();
    fixture.publish(&Manifest { qemu: None, ..manifest() }).unwrap();
    let image = fixture.store.load("standard").unwrap().verify_fully().unwrap();
    assert_eq!((image.qemu(), image.firmware()), (None, None));
    assert!(!fixture.path("images/qemu").exists());
}

#[test]
fn what_is_missing_or_damaged_is_laid_out_anew_by_a_proof() {
    let fixture = Fixture::new();
    fixture.publish(&manifest()).unwrap();
    let (program, firmware) = fixture.verified();
    type Harm = fn(&Path, &Path);
    let harms: [Harm; 4] = [
        |program, _| overwrite(program, "qemU"),
        |_, firmware| fs::remove_file(firmware.join("pvh.bin")).unwrap(),
        |_, firmware| fs::remove_dir_all(firmware.parent().unwrap().parent().unwrap()).unwrap(),
        |_, firmware| overwrite(&firmware.join("qboot.rom"), ""),
    ];
    for harm in harms {
        harm(&program, &firmware);
        assert_eq!(fixture.verified(), (program.clone(), firmware.clone()));
        assert_eq!(fs::read_to_string(&program).unwrap(), "qemu");
        assert_eq!(fs::read_to_string(firmware.join("pvh.bin")).unwrap(), "pvh.bin");
        assert_eq!(fixture.prefixes(), 1, "nothing else is left");
    }
}

#[test]
fn without_its_blob_a_damaged_qemu_is_told_and_publishing_mends_it() {
    let fixture = Fixture::new();
    fixture.publish(&manifest()).unwrap();
    let (program, _) = fixture.verified();
    overwrite(&program, "");
    fs::remove_file(fixture.path("images/blobs").join(blob("qemu").blake3.to_string())).unwrap();
    let refused = fixture.store.load("standard").unwrap().verify_fully().unwrap_err();
    assert!(matches!(refused, ImageError::BlobMissing { role: BlobRole::Qemu, .. }), "{refused:?}");
    assert!(refused.is_mended_by_rebuilding());
    fixture.publish(&manifest()).unwrap();
    fixture.verified();
}

#[test]
fn a_store_that_may_not_be_written_to_serves_what_is_whole() {
    let fixture = Fixture::new();
    fixture.publish(&manifest()).unwrap();
    // Root writes everywhere, so what a reader must not need is taken away instead: the lock of those who make prefixes.
    let lock = fixture.path("images/.prefixes");
    fs::remove_file(&lock).unwrap();
    fixture.verified();
    assert!(!lock.exists(), "a whole one is proven without it");
}

#[test]
fn a_qemu_goes_with_the_last_image_that_has_it() {
    let fixture = Fixture::new();
    fixture.publish(&manifest()).unwrap();
    fixture.publish(&Manifest { name: "other".into(), ..manifest() }).unwrap();
    let mut newer = manifest();
    newer.qemu.as_mut().unwrap().firmware.insert("newer".into(), blob("newer"));
    fixture.publish(&newer).unwrap();
    assert_eq!(fixture.store.prune().unwrap(), Pruned::default());
    assert_eq!(fixture.prefixes(), 2);
    fs::create_dir(fixture.path("images/qemu/.new-left")).unwrap();
    fs::remove_file(fixture.path("images/other.json")).unwrap();
    let bytes = ["qemu", "pvh.bin", "qboot.rom"].map(str::len).iter().sum::<usize>() as u64;
    assert_eq!(fixture.store.prune().unwrap(), Pruned { files: 3, size_bytes: bytes });
    assert_eq!(fixture.prefixes(), 1);
    fixture.verified();
}

#[test]
fn a_qemu_that_arrives_is_laid_out_when_its_image_appears() {
    let fixture = Fixture::new();
    let arrival: Arrival = fixture.store.try_arrival().unwrap().unwrap();
    for (role, content) in [
        (BlobRole::Kernel, "kernel"),
        (BlobRole::Initramfs, "agent"),
        (BlobRole::Root, "root"),
        (BlobRole::Qemu, "qemu"),
        (BlobRole::Firmware, "pvh.bin"),
    ] {
        let mut partial = arrival.receive(role, blob(content)).unwrap();
        partial.append(content.as_bytes()).unwrap();
        partial.commit().unwrap();
    }
    let early = arrival.publish(&manifest(), None).unwrap_err();
    assert!(matches!(early, ImageError::BlobMissing { role: BlobRole::Firmware, .. }), "{early:?}");
    let mut last = arrival.receive(BlobRole::Firmware, blob("qboot.rom")).unwrap();
    last.append(b"qboot.rom").unwrap();
    last.commit().unwrap();
    let image = arrival.publish(&manifest(), None).unwrap();
    assert!(image.qemu().is_some_and(|program| program.exists()));
}
