//! Fetching: from the lock file to verified files.
//!
//! Every file is checked against the lock when it arrives and each time it is taken from the cache. Mirrors drop a Debian package when
//! its successor arrives; then the list it belongs to is resolved anew from the signed index, which is said loudly and remembered beside
//! the cache until the lock file changes. With `--locked` it is refused.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use exec_sandbox_image::Digest;
use sha2::{Digest as _, Sha256, Sha512};

use super::apt::{self, Apt, Download};
use super::cache::Cache;
use super::lock::{self, Deb, DebSet, Lock, Wheel};
use super::progress::{self, Ui};
use super::recipe::Recipe;
use super::tools;

/// Fetches what the lock names.
#[derive(Debug)]
pub(crate) struct Fetcher<'a> {
    cache: &'a Cache,
    recipe: &'a Recipe,
    /// The lock file with the successors of what the mirror dropped.
    lock: Lock,
    written: Lock,
    locked: bool,
}

impl<'a> Fetcher<'a> {
    /// Takes the lock, and what an earlier run found to have moved since.
    pub(crate) fn new(cache: &'a Cache, recipe: &'a Recipe, written: Lock, locked: bool) -> Result<Self> {
        let remembered = moved_path(cache, &written);
        let lock = match fs::read_to_string(&remembered) {
            Ok(text) if !locked => {
                Lock::parse(&text).with_context(|| format!("cannot use {}", remembered.display()))?
            }
            _ => written.clone(),
        };
        Ok(Self { cache, recipe, lock, written, locked })
    }

    /// What is going to be fetched.
    pub(crate) fn lock(&self) -> &Lock {
        &self.lock
    }

    /// Names of the downloads that the lock stands for.
    pub(crate) fn pinned_digests(&self) -> Vec<String> {
        let debs = DebSet::ALL.iter().flat_map(|(_, set)| self.lock.debs(*set)).map(|deb| deb.sha256.clone());
        let wheels = self.lock.wheels.iter().chain(&self.lock.qemu_wheels).map(|wheel| wheel.sha256.clone());
        debs.chain(wheels).chain([bun_name(&self.lock)]).collect()
    }

    /// The files of a list of Debian packages. The lock may change for it: see [`Fetcher::lock`].
    pub(crate) fn debs(&mut self, set: DebSet, ui: &mut Ui) -> Result<Vec<(Deb, PathBuf)>> {
        if let Err(e) = self.download_debs(set, ui) {
            if self.locked {
                return Err(e).context("cannot fetch Debian packages as pinned, and --locked forbids their successors");
            }
            ui.note("cannot fetch as pinned: asking apt what there is now");
            self.take_successors(set, e, ui)?;
            self.download_debs(set, ui).context("cannot fetch Debian packages")?;
        }
        Ok(self.lock.debs(set).iter().map(|deb| (deb.clone(), self.cache.download(&deb.sha256))).collect())
    }

    /// Bun's package, as npm packs it.
    pub(crate) fn bun(&self, ui: &mut Ui) -> Result<PathBuf> {
        let package = &self.lock.bun;
        let path = self.cache.download(&bun_name(&self.lock));
        if integrity(&path).is_ok_and(|found| found == package.integrity) {
            return Ok(path);
        }
        ui.work(&format!("fetching bun {}", package.version));
        let dir = self.cache.scratch("npm")?;
        let wanted = format!("{}@{}", package.name, package.version);
        tools::run(npm().args(["pack", "--silent", &wanted]).current_dir(&dir), &self.cache.logs(), ui)
            .context("cannot fetch bun from the npm registry")?;
        let fetched = only_file(&dir)?;
        let found = integrity(&fetched).with_context(|| format!("cannot read {}", fetched.display()))?;
        if found != package.integrity {
            bail!("{wanted} from the npm registry has integrity {found} instead of {}", package.integrity);
        }
        rename(&fetched, &path)?;
        Ok(path)
    }

    /// The wheels, in the lock's order.
    pub(crate) fn wheels(&self, ui: &mut Ui) -> Result<Vec<(Wheel, PathBuf)>> {
        self.lock.wheels.iter().map(|wheel| Ok((wheel.clone(), self.wheel(wheel, ui)?))).collect()
    }

    /// The wheels that QEMU is built with, in the lock's order.
    pub(crate) fn qemu_wheels(&self, ui: &mut Ui) -> Result<Vec<(Wheel, PathBuf)>> {
        self.lock.qemu_wheels.iter().map(|wheel| Ok((wheel.clone(), self.wheel(wheel, ui)?))).collect()
    }

    /// Says once more, at the end, that the lock file is behind.
    pub(crate) fn warn_if_moved(&self) {
        let mut lines = Vec::new();
        for (_, set) in DebSet::ALL {
            lines.extend(lock::differences(self.written.debs(set), self.lock.debs(set)));
        }
        if !lines.is_empty() {
            lines.push(
                "this build is not the one that the lock file pins: `cargo xtask assets --update-lock` updates it"
                    .into(),
            );
            progress::warn(&lines);
        }
    }

    fn wheel(&self, wheel: &Wheel, ui: &mut Ui) -> Result<PathBuf> {
        let path = self.cache.download(&wheel.sha256);
        if sha256(&path).is_ok_and(|found| found == wheel.sha256) {
            return Ok(path);
        }
        ui.work(&format!("fetching {} {}", wheel.name, wheel.version));
        let dir = self.cache.scratch("pip")?;
        let requirements = dir.join("requirements.txt");
        let requirement = format!("{}=={} --hash=sha256:{}\n", wheel.name, wheel.version, wheel.sha256);
        fs::write(&requirements, requirement).context("cannot write a requirements file")?;
        let target = self.cache.scratch("wheel")?;
        let mut pip = pip_download(&self.recipe.pypi.platform, &target);
        pip.arg("--require-hashes").arg("-r").arg(&requirements);
        tools::run(&mut pip, &self.cache.logs(), ui)
            .with_context(|| format!("cannot fetch {} from PyPI", wheel.name))?;
        let fetched = only_file(&target)?;
        check_sha256(&fetched, &wheel.sha256)?;
        rename(&fetched, &path)?;
        Ok(path)
    }

    fn download_debs(&self, set: DebSet, ui: &mut Ui) -> Result<()> {
        let is_there = |deb: &&Deb| sha256(&self.cache.download(&deb.sha256)).is_ok_and(|found| found == deb.sha256);
        let missing: Vec<&Deb> = self.lock.debs(set).iter().filter(|deb| !is_there(deb)).collect();
        if missing.is_empty() {
            return Ok(());
        }
        ui.work(&format!("fetching {} Debian packages", missing.len()));
        let dir = self.cache.scratch("debs")?;
        let downloads: Vec<Download<'_>> =
            missing.into_iter().map(|deb| Download { deb, target: dir.join(&deb.sha256) }).collect();
        apt::download(&apt::mirror()?, &downloads, &self.cache.logs(), ui)?;
        for Download { deb, target } in downloads {
            check_sha256(&target, &deb.sha256)?;
            rename(&target, &self.cache.download(&deb.sha256))?;
        }
        Ok(())
    }

    fn take_successors(&mut self, set: DebSet, why: anyhow::Error, ui: &mut Ui) -> Result<()> {
        let apt = Apt::update(&self.cache.apt(), &self.recipe.debian.suites, &self.cache.logs(), ui)?;
        let found = resolve(&apt, self.recipe, set)?;
        let moved = lock::differences(self.lock.debs(set), &found);
        if moved.is_empty() {
            return Err(why).context("the archive still lists the pinned packages, and they cannot be fetched");
        }
        progress::warn(&moved);
        self.lock.replace(set, found);
        let path = moved_path(self.cache, &self.written);
        fs::write(&path, self.lock.render()).with_context(|| format!("cannot write {}", path.display()))
    }
}

/// What the recipe's names for a list stand for today.
pub(crate) fn resolve(apt: &Apt, recipe: &Recipe, set: DebSet) -> Result<Vec<Deb>> {
    match set {
        DebSet::Kernel => apt.single(&recipe.debian.kernel),
        DebSet::Qemu => {
            let [source, firmware] = [&recipe.debian.qemu.source, &recipe.debian.qemu.firmware];
            Ok([apt.source(source)?, apt.single(firmware)?].concat())
        }
        DebSet::Tools => apt.closure(&recipe.debian.tools),
        DebSet::Image => apt.system(&recipe.image.packages),
    }
}

/// npm, without its opinions about funding and newer versions.
pub(crate) fn npm() -> Command {
    let mut command = Command::new("npm");
    command.env("npm_config_update_notifier", "false").env("npm_config_fund", "false");
    command
}

/// `pip download` of wheels for the guest into `target`.
pub(crate) fn pip_download(platform: &str, target: &Path) -> Command {
    let mut command = Command::new("python3");
    command.args(["-m", "pip", "download", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:"]);
    command.args(["--platform", platform, "--dest"]).arg(target);
    command
}

/// The one file in a directory into which a client was told to put one.
pub(crate) fn only_file(dir: &Path) -> Result<PathBuf> {
    let entries: io::Result<Vec<_>> = fs::read_dir(dir).and_then(Iterator::collect);
    let entries = entries.with_context(|| format!("cannot list {}", dir.display()))?;
    let [entry] = &entries[..] else {
        bail!("expected one file in {} and found {}", dir.display(), entries.len());
    };
    Ok(entry.path())
}

/// SHA-256 of a file, in hexadecimal.
pub(crate) fn sha256(path: &Path) -> io::Result<String> {
    let mut hasher = HashWriter(Sha256::new());
    io::copy(&mut fs::File::open(path)?, &mut hasher)?;
    Ok(hasher.0.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// What npm calls the integrity of a file.
fn integrity(path: &Path) -> io::Result<String> {
    let mut hasher = HashWriter(Sha512::new());
    io::copy(&mut fs::File::open(path)?, &mut hasher)?;
    Ok(format!("sha512-{}", BASE64.encode(hasher.0.finalize())))
}

fn check_sha256(path: &Path, expected: &str) -> Result<()> {
    let found = sha256(path).with_context(|| format!("cannot read {}", path.display()))?;
    if found != expected {
        bail!("a download has SHA-256 {found} instead of {expected}");
    }
    Ok(())
}

fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).with_context(|| format!("cannot create {}", to.display()))
}

fn bun_name(lock: &Lock) -> String {
    format!("bun-{}.tgz", lock.bun.version)
}

/// Where the successors of what this lock pins are remembered.
fn moved_path(cache: &Cache, written: &Lock) -> PathBuf {
    cache.apt().with_file_name(format!("moved-{}.toml", Digest::of(written.render().as_bytes())))
}

/// Feeds a hash with what is written to it.
struct HashWriter<H>(H);

impl<H: sha2::digest::Update> io::Write for HashWriter<H> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_spelled_as_the_registries_spell_them() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(sha256(file.path()).unwrap(), empty);
        let empty = "sha512-z4PhNX7vuL3xVChQ1m2AB9Yg5AULVxXcg/SpIdNs6c5H0NE8XYXysP+DGNKHfuwvY7kxvUdBeoGlODJ6+SfaPg==";
        assert_eq!(integrity(file.path()).unwrap(), empty);
    }

    #[test]
    fn a_download_with_other_content_is_refused_with_both_digests() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let refused = check_sha256(file.path(), &"0".repeat(64)).unwrap_err().to_string();
        assert!(refused.contains("e3b0c442") && refused.contains("0000"), "{refused}");
    }
}
