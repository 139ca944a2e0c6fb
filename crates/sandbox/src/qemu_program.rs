//! The QEMU program: found once, and its version known without running it each time.
//!
//! It is the one that is named, else the image's own, else the one on the `PATH`.

use std::{
    env,
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
};

use exec_sandbox_image::{Digest, KeyBuilder, Manifest, Qemu, VerifiedImage};
use exec_sandbox_qemu::{Arch, MINIMUM_VERSION, QemuVersion};

use crate::{Error, ErrorKind, config::Settings, notes};

/// What to do about a QEMU that is missing or too old.
const REMEDY: &str = "use an image that has a QEMU (in a checkout: `cargo xtask assets`), or install QEMU 10 or newer (on Debian \
                      12: qemu-system-x86 from bookworm-backports), or name one in EXEC_SANDBOX_QEMU";

/// A QEMU that can be used.
#[derive(Clone, Debug)]
pub(crate) struct QemuProgram {
    pub(crate) path: PathBuf,
    pub(crate) version: QemuVersion,
    /// What it is if it came with the image.
    pub(crate) own: Option<Arc<OwnQemu>>,
}

/// The QEMU of a verified image, kept open: VMs run this one, whatever becomes of its path, and need no right to go where it lies.
#[derive(Debug)]
pub(crate) struct OwnQemu {
    /// Of its files.
    pub(crate) digest: Digest,
    pub(crate) program: File,
    /// The directory of its firmware.
    pub(crate) firmware: File,
}

/// Finds the QEMU that the settings name, else the one that came with `image`, else the one on the `PATH`, and checks its version.
pub(crate) fn find(arch: Arch, settings: &Settings, image: Option<&VerifiedImage>) -> Result<QemuProgram, Error> {
    let (path, own) = match image.filter(|image| of_image(arch, settings, image.manifest()).is_some()) {
        Some(image) => open(image)?,
        None => (locate(arch, settings.qemu.as_deref())?, None),
    };
    let build = build(&path)?;
    let answer = match fs::read_to_string(version_file(&settings.cache_dir, &build)) {
        Ok(answer) => answer,
        Err(_not_asked_yet) => ask(&path)?,
    };
    let version = QemuVersion::parse(&answer).map_err(|error| {
        let doing = format!("asking {} for its version", path.display());
        Error::new(ErrorKind::Dependency, doing).because(error).remedied_by(REMEDY)
    })?;
    if version.version < MINIMUM_VERSION {
        let message = format!("using {}: version {version} is older than {MINIMUM_VERSION}", path.display());
        return Err(Error::new(ErrorKind::Dependency, message).remedied_by(REMEDY));
    }
    remember(&version_file(&settings.cache_dir, &build), &answer);
    Ok(QemuProgram { path, version, own })
}

/// The QEMU of an image, if it is the one to use.
fn of_image<'a>(arch: Arch, settings: &Settings, image: &'a Manifest) -> Option<&'a Qemu> {
    // It is a program for Linux, and an image may be used elsewhere.
    let is_wanted = settings.qemu.is_none() && image.arch == arch.name() && cfg!(target_os = "linux");
    image.qemu.as_ref().filter(|_| is_wanted)
}

fn open(image: &VerifiedImage) -> Result<(PathBuf, Option<Arc<OwnQemu>>), Error> {
    let open = || -> io::Result<_> {
        let missing = || io::Error::from(io::ErrorKind::NotFound);
        let (program, firmware) = image.qemu().zip(image.firmware()).ok_or_else(missing)?;
        let digest = image.manifest().qemu.as_ref().ok_or_else(missing)?.digest();
        let own = OwnQemu { digest, program: File::open(&program)?, firmware: File::open(firmware)? };
        Ok((program, Some(Arc::new(own))))
    };
    let doing = || format!("opening the QEMU of image {:?}", image.manifest().name);
    open().map_err(|error| Error::new(ErrorKind::AssetNotFound, doing()).because(error))
}

fn locate(arch: Arch, named: Option<&Path>) -> Result<PathBuf, Error> {
    let missing = |message: String| Error::new(ErrorKind::Dependency, message).remedied_by(REMEDY);
    if let Some(path) = named {
        return if is_executable(path) {
            Ok(path.to_owned())
        } else {
            Err(missing(format!("finding QEMU: {} is not an executable file", path.display())))
        };
    }
    let name = arch.qemu_program();
    let dirs = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&dirs)
        .map(|dir| dir.join(name))
        .find(|path| is_executable(path))
        .ok_or_else(|| missing(format!("finding QEMU: there is no {name} on the PATH")))
}

fn is_executable(path: &Path) -> bool {
    path.is_file() && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok()
}

/// What changes when the QEMU that [`find`] finds does.
pub(crate) fn identity(arch: Arch, settings: &Settings, image: &Manifest) -> Result<String, Error> {
    if let Some(qemu) = of_image(arch, settings, image) {
        return Ok(qemu.digest().to_string());
    }
    build(&locate(arch, settings.qemu.as_deref())?)
}

/// Changes when the file does: what was learned by running it is kept under this name.
fn build(path: &Path) -> Result<String, Error> {
    let examined = fs::canonicalize(path).and_then(|path| Ok((fs::metadata(&path)?, path)));
    let (metadata, path) = examined.map_err(|error| {
        Error::new(ErrorKind::Dependency, format!("examining {}", path.display())).because(error).remedied_by(REMEDY)
    })?;
    let mut key = KeyBuilder::new("qemu build").with("path", path.as_os_str().as_encoded_bytes());
    for (name, number) in [("size", metadata.size()), ("inode", metadata.ino())] {
        key = key.with(name, &number.to_be_bytes());
    }
    for (name, number) in [("mtime", metadata.mtime()), ("mtime-ns", metadata.mtime_nsec())] {
        key = key.with(name, &number.to_be_bytes());
    }
    Ok(key.finish().to_string())
}

fn ask(path: &Path) -> Result<String, Error> {
    let output = Command::new(path).arg("--version").stdin(Stdio::null()).output().map_err(|error| {
        Error::new(ErrorKind::Dependency, format!("running {} --version", path.display()))
            .because(error)
            .remedied_by(REMEDY)
    })?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn version_file(cache_dir: &Path, build: &str) -> PathBuf {
    cache_dir.join("qemu").join(build)
}

/// Not remembering costs the next process a start of QEMU, and nothing else.
fn remember(file: &Path, answer: &str) {
    if file.exists() {
        return;
    }
    if let Err(error) = notes::write(file, answer.as_bytes()) {
        tracing::debug!(%error, file = %file.display(), "QEMU's version is not remembered");
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use std::collections::BTreeMap;

    use exec_sandbox_image::{Blob, BlobSources, ImageStore, Interpreter};

    use super::*;
    use crate::{SchedulerConfig, paths::Environment};

    /// A verified image for machines of `arch`, with a QEMU of `version` if there is one.
    fn image(dir: &Path, arch: Arch, version: Option<&str>) -> VerifiedImage {
        let blob = |content: &str| Blob { blake3: Digest::of(content.as_bytes()), size_bytes: content.len() as u64 };
        let script = format!("#!/bin/sh\necho 'QEMU emulator version {}'\n", version.unwrap_or_default());
        for (name, content) in [("part", "part"), ("qemu", &script), ("pvh.bin", "pvh")] {
            fs::write(dir.join(name), content).expect("it can be written");
        }
        let qemu = version.map(|version| Qemu {
            version: version.into(),
            program: blob(&script),
            firmware: BTreeMap::from([("pvh.bin".into(), blob("pvh"))]),
        });
        let bash = Interpreter { path: "/bin/bash".into(), version: "5.2".into() };
        let [kernel, initramfs, root] = [blob("part"); 3];
        let manifest = Manifest {
            format: Manifest::FORMAT,
            name: "standard".into(),
            arch: arch.name().into(),
            kernel_version: "6.12.0".into(),
            kernel,
            initramfs,
            root,
            languages: BTreeMap::from([("raw".into(), bash)]),
            packages: Vec::new(),
            registries: BTreeMap::new(),
            indexes: BTreeMap::new(),
            qemu,
        };
        let part = dir.join("part");
        let sources = BlobSources { kernel: &part, initramfs: &part, root: &part, qemu: Some(dir) };
        let store = ImageStore::at(dir.join(format!("images-{}-{}", arch.name(), version.is_some())));
        store.publish(&manifest, sources).and_then(|image| image.verify_fully()).expect("it is valid")
    }

    /// A program that answers like a QEMU of `version`, and settings that name it.
    fn pretend(version: &str) -> (tempfile::TempDir, Settings) {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let program = dir.path().join("qemu");
        let script = format!("#!/bin/sh\necho 'QEMU emulator version {version}'\necho x >> \"$0.runs\"\n");
        fs::write(&program, script).expect("it can be written");
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("it is ours");
        let config =
            SchedulerConfig { qemu: Some(program), cache_dir: Some(dir.path().join("cache")), ..Default::default() };
        let settings = config.resolve(&Environment::default()).expect("it is valid");
        (dir, settings)
    }

    #[test]
    fn the_version_is_asked_once_for_a_build() {
        let (dir, settings) = pretend("10.1.2 (Debian 1:10.1.2+ds-1)");
        for _ in 0..3 {
            let found = find(Arch::X86_64, &settings, None).expect("it is new enough");
            assert_eq!(found.version.version.to_string(), "10.1.2");
        }
        assert_eq!(fs::read_to_string(dir.path().join("qemu.runs")).expect("it ran"), "x\n");
    }

    #[test]
    fn a_qemu_that_is_too_old_is_refused_with_both_versions() {
        let (_dir, settings) = pretend("7.2.19");
        let error = find(Arch::X86_64, &settings, None).expect_err("it is too old");
        assert_eq!(error.kind(), ErrorKind::Dependency);
        assert!(error.to_string().contains("7.2.19") && error.to_string().contains("10.0.0"), "{error}");
        assert!(error.remedy().is_some());
    }

    #[test]
    fn the_one_that_is_named_comes_before_the_images_own_and_that_before_the_path() {
        let (dir, mut settings) = pretend("10.1.2");
        let own = image(dir.path(), Arch::X86_64, Some("10.0.13"));
        let identity = |settings: &Settings, image: &VerifiedImage| {
            identity(Arch::X86_64, settings, image.manifest()).unwrap_or_default()
        };
        let named = find(Arch::X86_64, &settings, Some(&own)).expect("it is there");
        assert_eq!((Some(&named.path), named.own.is_some()), (settings.qemu.as_ref(), false));
        let of_named = identity(&settings, &own);

        settings.qemu = None;
        let found = find(Arch::X86_64, &settings, Some(&own)).expect("it is there");
        assert_eq!((Some(&found.path), found.version.version.to_string().as_str()), (own.qemu().as_ref(), "10.0.13"));
        let known = found.own.expect("it is the image's");
        assert_eq!(Some(known.digest), own.manifest().qemu.as_ref().map(Qemu::digest));
        assert_eq!(identity(&settings, &own), known.digest.to_string());
        assert_ne!(of_named, known.digest.to_string());

        let none = image(dir.path(), Arch::X86_64, None);
        let foreign = image(dir.path(), Arch::Aarch64, Some("10.0.13"));
        for other in [none, foreign] {
            let on_path = locate(Arch::X86_64, None).ok();
            let found = find(Arch::X86_64, &settings, Some(&other)).ok();
            assert_eq!(found.as_ref().map(|found| &found.path), on_path.as_ref());
            assert!(found.is_none_or(|found| found.own.is_none()));
            assert_ne!(identity(&settings, &other), known.digest.to_string());
        }
    }

    #[test]
    fn a_qemu_that_is_not_there_is_named() {
        let (_dir, mut settings) = pretend("10.0.0");
        settings.qemu = Some("/no/such/qemu".into());
        let error = find(Arch::X86_64, &settings, None).expect_err("it is not there");
        assert!(error.to_string().contains("/no/such/qemu"));
    }
}
