//! The root step: locked Debian packages, Bun, uv and cloudpickle as one read-only EROFS image.
//!
//! mmdebstrap installs from a repository that holds the locked packages and nothing else, so what is installed is what is locked. It
//! works as root, and without root in a user namespace: then the files that it reads must be readable by another user, which a home
//! directory seldom is, so they are staged.

use std::env;
use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use exec_sandbox_image::{Digest, KeyBuilder};
use rustix::fs::Mode;

use super::cache::{Artefact, Cache};
use super::dpkg::{self, Installed};
use super::fetch::Fetcher;
use super::lock::{Deb, DebSet};
use super::places::Places;
use super::progress::Ui;
use super::recipe::Recipe;
use super::tools;

/// The image's name in the result.
pub(crate) const EROFS: &str = "root.erofs";

/// The fact that lists what is installed.
pub(crate) const PACKAGES: &str = "packages";

/// The version of what this file does.
const RECIPE: &str = "root 1";

/// The time of every file: trixie's release. Zero would do for the file system, but zip archives cannot hold times before 1980.
const SOURCE_DATE_EPOCH: &str = "1754697600";

/// LZ4 at its best ratio: slow to write once, as quick to read as any. Larger clusters would make a page fault unpack more.
const COMPRESSION: [&str; 2] = ["-zlz4hc", "-C65536"];

/// Fixed, or no two builds would be the same file.
const UUID: &str = "00000000-0000-4000-8000-000000000001";

/// What nobody reads in a guest. Licences stay.
const DPKG_OPTIONS: [&str; 6] = [
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/info/*",
    "path-exclude=/usr/share/locale/*",
    "path-exclude=/usr/share/lintian/*",
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
];

/// Where trixie's packages put the C library and its loader.
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";

/// What mmdebstrap reads, readable by whom it runs as.
#[derive(Debug)]
struct Staging {
    dir: PathBuf,
    /// Removes the directory when it lies outside the cache.
    _temporary: Option<tempfile::TempDir>,
}

/// The root file system, from the cache or built.
pub(crate) fn ensure(
    places: &Places,
    recipe: &Recipe,
    cache: &Cache,
    fetcher: &mut Fetcher<'_>,
    ui: &mut Ui,
) -> Result<Artefact> {
    let script_path = places.assets.join("image/customize.sh");
    let script = fs::read(&script_path).with_context(|| format!("cannot read {}", script_path.display()))?;
    if let Some(artefact) = cache.artefact("root", key(recipe, &script, fetcher))? {
        return Ok(artefact);
    }
    tools::start_log(&cache.logs(), ui)?;
    let debs = fetcher.debs(DebSet::Image, ui)?;
    let tools = fetcher.debs(DebSet::Tools, ui)?;
    let key = key(recipe, &script, fetcher);
    if let Some(artefact) = cache.artefact("root", key)? {
        return Ok(artefact);
    }
    // What is made from here on is read under another user id, and becomes part of an image that must not depend on who built it.
    rustix::process::umask(Mode::WGRP | Mode::WOTH);
    let staging = Staging::new(cache)?;
    staging.repository(&debs, cache, ui)?;
    staging.script(&script)?;
    let extra = staging.programs(fetcher, cache, ui)?;
    let tar = cache.scratch("root")?.join("root.tar");
    staging.install(recipe, &tar, cache, ui)?;
    let result = cache.scratch("root-result")?;
    make_erofs(&tools, &tar, &result.join(EROFS), cache, ui)?;
    let mut packages = installed(&tar)?;
    packages.extend(extra);
    packages.sort();
    cache.keep("root", key, &result, &[(PACKAGES, &dpkg::to_text(&packages))])
}

/// Everything that shapes the root file system.
fn key(recipe: &Recipe, script: &[u8], fetcher: &Fetcher<'_>) -> Digest {
    let lock = fetcher.lock();
    let mut key = KeyBuilder::new(RECIPE).with("script", script).with("time", SOURCE_DATE_EPOCH.as_bytes());
    for part in DPKG_OPTIONS.iter().chain(&COMPRESSION) {
        key = key.with("option", part.as_bytes());
    }
    for package in &recipe.image.packages {
        key = key.with("wanted", package.as_bytes());
    }
    for set in [DebSet::Image, DebSet::Tools] {
        for deb in lock.debs(set) {
            key = key.with("deb", deb.sha256.as_bytes());
        }
    }
    for wheel in &lock.wheels {
        key = key.with("wheel", wheel.sha256.as_bytes());
    }
    key.with("bun", lock.bun.integrity.as_bytes()).finish()
}

impl Staging {
    fn new(cache: &Cache) -> Result<Self> {
        if rustix::process::geteuid().is_root() {
            return Ok(Self { dir: cache.scratch("staging")?, _temporary: None });
        }
        let temporary = tempfile::tempdir().context("cannot create a directory for the build")?;
        let dir = temporary.path().to_owned();
        fs::set_permissions(&dir, Permissions::from_mode(0o755)).context("cannot open the build's directory")?;
        Ok(Self { dir, _temporary: Some(temporary) })
    }

    /// A repository of exactly these packages.
    fn repository(&self, debs: &[(Deb, PathBuf)], cache: &Cache, ui: &mut Ui) -> Result<()> {
        ui.work("laying out a repository of the locked packages");
        let dir = self.dir.join("repository");
        fs::create_dir(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        for (deb, path) in debs {
            place(path, &dir.join(format!("{}.deb", deb.name)), 0o644)?;
        }
        let mut scan = Command::new("sh");
        scan.args(["-c", "exec dpkg-scanpackages --multiversion . >Packages"]).current_dir(&dir);
        tools::run(&mut scan, &cache.logs(), ui)
    }

    fn script(&self, script: &[u8]) -> Result<()> {
        let path = self.dir.join("customize.sh");
        fs::write(&path, script)
            .and_then(|()| fs::set_permissions(&path, Permissions::from_mode(0o755)))
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// Packs what does not come from Debian, and says what it is.
    fn programs(&self, fetcher: &Fetcher<'_>, cache: &Cache, ui: &mut Ui) -> Result<Vec<Installed>> {
        let (bun, wheels) = (fetcher.bun(ui)?, fetcher.wheels(ui)?);
        ui.work("unpacking programs");
        let (tree, logs) = (cache.scratch("programs")?, cache.logs());
        let (bin, python) = (tree.join("usr/local/bin"), tree.join("usr/lib/python3/dist-packages"));
        for dir in [&bin, &python] {
            fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
        }
        let mut tar = Command::new("tar");
        tar.arg("--extract").arg("--file").arg(&bun).arg("--directory").arg(&bin);
        tools::run(tar.args(["--strip-components=2", "package/bin/bun"]), &logs, ui)?;
        let version = fetcher.lock().bun.version.clone();
        let mut installed = vec![Installed { name: "bun".into(), version }];
        for (wheel, path) in wheels {
            let dir = cache.scratch("unpacked-wheel")?;
            let mut unzip = Command::new("python3");
            tools::run(unzip.args(["-m", "zipfile", "--extract"]).arg(&path).arg(&dir), &logs, ui)?;
            take_wheel(&dir, &bin, &python).with_context(|| format!("cannot install {}", wheel.name))?;
            installed.push(Installed { name: wheel.name, version: wheel.version });
        }
        set_modes(&tree).context("cannot set the programs' modes")?;
        let mut tar = Command::new("tar");
        tar.args(["--create", "--sort=name", "--owner=0", "--group=0", "--numeric-owner"]);
        tar.arg(format!("--mtime=@{SOURCE_DATE_EPOCH}")).arg("--directory").arg(&tree).arg("--file");
        tools::run(tar.arg(self.dir.join("programs.tar")).arg("usr"), &logs, ui)?;
        Ok(installed)
    }

    fn install(&self, recipe: &Recipe, tar: &Path, cache: &Cache, ui: &mut Ui) -> Result<()> {
        let mode = if rustix::process::geteuid().is_root() { "root" } else { "unshare" };
        ui.work(&format!("installing (mmdebstrap in {mode} mode)"));
        let dir = self.dir.display();
        let mut command = Command::new("mmdebstrap");
        command.args([&format!("--mode={mode}"), "--variant=essential", "--format=tar"]);
        command.arg(format!("--include={}", recipe.image.packages.join(",")));
        command.args(["--aptopt=APT::Install-Recommends \"false\"", "--aptopt=APT::Sandbox::User \"root\""]);
        command.args(DPKG_OPTIONS.map(|option| format!("--dpkgopt={option}")));
        command.arg(format!("--customize-hook=tar-in {dir}/programs.tar /"));
        command.arg(format!("--customize-hook={dir}/customize.sh"));
        // No suite: the one source is a flat repository. It is trusted because each of its files was checked against the lock.
        command.arg("").arg(tar).arg(format!("deb [trusted=yes] copy://{dir}/repository ./"));
        command.env("SOURCE_DATE_EPOCH", SOURCE_DATE_EPOCH).env("LC_ALL", "C").env("PATH", path_with_sbin());
        tools::run(&mut command, &cache.logs(), ui)
    }
}

/// Programs of a wheel go to `bin`, its modules to `python`; what describes the wheel stays behind if it has no modules.
fn take_wheel(wheel: &Path, bin: &Path, python: &Path) -> Result<()> {
    let mut entries: Vec<PathBuf> = fs::read_dir(wheel)?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    entries.sort();
    let has_suffix = |path: &PathBuf, suffix: &str| path.to_string_lossy().ends_with(suffix);
    if let Some(data) = entries.iter().find(|path| has_suffix(path, ".data")) {
        for program in fs::read_dir(data.join("scripts"))? {
            let program = program?;
            fs::rename(program.path(), bin.join(program.file_name()))?;
        }
        return Ok(());
    }
    for entry in entries {
        fs::rename(&entry, python.join(entry.file_name().unwrap_or_default()))?;
    }
    Ok(())
}

/// Programs can be run, everything else can be read; a wheel's archive and the umask have other ideas.
fn set_modes(dir: &Path) -> std::io::Result<()> {
    let is_bin = dir.ends_with("bin");
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            set_modes(&path)?;
        } else {
            fs::set_permissions(&path, Permissions::from_mode(if is_bin { 0o755 } else { 0o644 }))?;
        }
    }
    fs::set_permissions(dir, Permissions::from_mode(0o755))
}

/// Writes the image with Debian's mkfs.erofs, run through the loader that it was built for.
fn make_erofs(tools: &[(Deb, PathBuf)], tar: &Path, image: &Path, cache: &Cache, ui: &mut Ui) -> Result<()> {
    ui.work("compressing the root file system");
    let (dir, logs) = (cache.scratch("tools")?, cache.logs());
    for (_, deb) in tools {
        tools::run(Command::new("dpkg-deb").arg("--extract").arg(deb).arg(&dir), &logs, ui)?;
    }
    let libraries = dir.join(LIBRARIES);
    let mut command = Command::new(libraries.join("ld-linux-x86-64.so.2"));
    command.arg("--library-path").arg(&libraries).arg(dir.join("usr/bin/mkfs.erofs"));
    command.args(["--quiet", "--tar=f", "-U", UUID]).arg(format!("-T{SOURCE_DATE_EPOCH}")).args(COMPRESSION);
    tools::run(command.arg(image).arg(tar), &logs, ui).context("cannot write the EROFS image")
}

fn installed(tar: &Path) -> Result<Vec<Installed>> {
    let mut command = Command::new("tar");
    command.args(["--extract", "--to-stdout", "--file"]).arg(tar).arg("./var/lib/dpkg/status");
    let packages = dpkg::installed(&tools::capture(&mut command)?);
    if packages.is_empty() {
        bail!("dpkg says that nothing is installed");
    }
    Ok(packages)
}

fn place(from: &Path, to: &Path, mode: u32) -> Result<()> {
    fs::copy(from, to)
        .and_then(|_| fs::set_permissions(to, Permissions::from_mode(mode)))
        .with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))
}

/// mmdebstrap needs programs that an ordinary user's PATH often lacks.
fn path_with_sbin() -> OsString {
    let mut path = env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/sbin:/sbin");
    path
}
