//! The kernel step: Debian's source, the project's patches and configuration, one uncompressed ELF.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use anyhow::{Context, Result, bail};
use exec_sandbox_image::{Digest, KeyBuilder};

use super::cache::{Artefact, Cache};
use super::fetch::Fetcher;
use super::kconfig;
use super::lock::DebSet;
use super::patches::Patches;
use super::places::Places;
use super::progress::Ui;
use super::tools;

/// The kernel's name in the result.
pub(crate) const VMLINUX: &str = "vmlinux";

/// The fact that says what `uname -r` will.
pub(crate) const RELEASE: &str = "release";

/// The version of what this file does.
const RECIPE: &str = "kernel 1";

/// What `uname -v` says instead of when, where and by whom it was built.
const BUILD_IDENTITY: [(&str, &str); 4] = [
    ("KBUILD_BUILD_HOST", "build"),
    ("KBUILD_BUILD_TIMESTAMP", "Sat Aug  9 00:00:00 UTC 2025"),
    ("KBUILD_BUILD_USER", "exec-sandbox"),
    ("KBUILD_BUILD_VERSION", "1"),
];

/// The project's part of the kernel.
#[derive(Debug)]
struct Intent {
    fragment_path: PathBuf,
    fragment: String,
    must_be_off: String,
    patches: Patches,
}

/// A source tree that is patched and configured.
#[derive(Debug)]
struct Tree {
    dir: PathBuf,
    logs: PathBuf,
}

/// The kernel, from the cache or built.
pub(crate) fn ensure(places: &Places, cache: &Cache, fetcher: &mut Fetcher<'_>, ui: &mut Ui) -> Result<Artefact> {
    let intent = Intent::load(&places.assets.join("kernel"))?;
    if let Some(artefact) = cache.artefact("kernel", intent.key(fetcher)?)? {
        return Ok(artefact);
    }
    tools::start_log(&cache.logs(), ui)?;
    let debs = fetcher.debs(DebSet::Kernel, ui)?;
    // The source may have moved to another version, which may have been built already.
    let key = intent.key(fetcher)?;
    if let Some(artefact) = cache.artefact("kernel", key)? {
        return Ok(artefact);
    }
    let [(_, deb)] = &debs[..] else { bail!("the kernel's source should be one package and is {}", debs.len()) };
    let tree = Tree::unpack(deb, cache, ui)?;
    intent.patches.apply(&tree.dir, &tree.logs, ui)?;
    tree.configure(&intent, ui)?;
    let (vmlinux, release) = tree.compile(ui)?;
    let result = cache.scratch("kernel-result")?;
    fs::rename(vmlinux, result.join(VMLINUX)).context("cannot take the kernel")?;
    fs::copy(tree.dir.join(".config"), result.join("config")).context("cannot keep the configuration")?;
    cache.keep("kernel", key, &result, &[(RELEASE, &release)])
}

impl Intent {
    fn load(dir: &Path) -> Result<Self> {
        let read = |name: &str| {
            let path = dir.join(name);
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
        };
        Ok(Self {
            fragment_path: dir.join("guest.fragment"),
            fragment: read("guest.fragment")?,
            must_be_off: read("must-be-off.list")?,
            patches: Patches::load(dir)?,
        })
    }

    /// Everything that shapes the kernel.
    fn key(&self, fetcher: &Fetcher<'_>) -> Result<Digest> {
        let mut key = KeyBuilder::new(RECIPE).with("fragment", self.fragment.as_bytes());
        key = self.patches.add_to(key.with("must be off", self.must_be_off.as_bytes()));
        for deb in fetcher.lock().debs(DebSet::Kernel) {
            key = key.with("source", deb.sha256.as_bytes());
        }
        for (variable, value) in BUILD_IDENTITY {
            key = key.with(variable, value.as_bytes());
        }
        for program in ["gcc", "ld"] {
            let version = tools::capture(Command::new(program).arg("--version"))?;
            key = key.with(program, version.lines().next().unwrap_or_default().as_bytes());
        }
        Ok(key.finish())
    }
}

impl Tree {
    fn unpack(deb: &Path, cache: &Cache, ui: &mut Ui) -> Result<Self> {
        ui.work("unpacking the source");
        let (dir, logs) = (cache.scratch("kernel")?, cache.logs());
        tools::run(Command::new("dpkg-deb").arg("--extract").arg(deb).arg(&dir), &logs, ui)?;
        let sources = dir.join("usr/src");
        let archives = fs::read_dir(&sources).with_context(|| format!("{} holds no source", deb.display()))?;
        let mut archives = archives.filter_map(|entry| Some(entry.ok()?.path()));
        let archive = archives.find(|path| path.extension().is_some_and(|extension| extension == "xz"));
        let archive = archive.with_context(|| format!("{} holds no archive of the source", deb.display()))?;
        let tree = dir.join("tree");
        fs::create_dir(&tree).context("cannot create the source tree")?;
        let mut tar = Command::new("tar");
        tar.args(["--extract", "--strip-components=1", "--file"]).arg(&archive).arg("--directory").arg(&tree);
        tools::run(&mut tar, &logs, ui)?;
        Ok(Self { dir: tree, logs })
    }

    /// Everything off but what the fragment names and what that needs, and proof of it.
    fn configure(&self, intent: &Intent, ui: &mut Ui) -> Result<()> {
        ui.work("configuring");
        let mut merge = self.command("scripts/kconfig/merge_config.sh");
        tools::run(merge.arg("-n").arg(&intent.fragment_path), &self.logs, ui)?;
        tools::run(self.command("make").arg("olddefconfig"), &self.logs, ui)?;
        let config = fs::read_to_string(self.dir.join(".config")).context("cannot read the configuration")?;
        let differences = kconfig::differences(&intent.fragment, &intent.must_be_off, &config);
        if !differences.is_empty() {
            bail!("the kernel's configuration is not what was meant:\n    {}", differences.join("\n    "));
        }
        Ok(())
    }

    /// The stripped kernel and its release.
    fn compile(&self, ui: &mut Ui) -> Result<(PathBuf, String)> {
        let jobs = thread::available_parallelism().map_or(1, usize::from);
        ui.work(&format!("compiling with {jobs} jobs (about 8 minutes of one core)"));
        tools::run(self.command("make").arg(format!("-j{jobs}")).arg(VMLINUX), &self.logs, ui)?;
        let release = tools::capture(self.command("make").args(["--silent", "kernelrelease"]))?;
        let vmlinux = self.dir.join(VMLINUX);
        tools::run(Command::new("strip").arg("--strip-all").arg(&vmlinux), &self.logs, ui)?;
        // Without this note no VMM finds the entry, and QEMU says only that it cannot load the kernel.
        let notes = tools::capture(Command::new("readelf").args(["--notes", "--wide"]).arg(&vmlinux))?;
        if !notes.contains("Xen") {
            bail!("the kernel has no PVH entry");
        }
        Ok((vmlinux, release.trim().to_owned()))
    }

    /// A command in the tree. An outer make's flags would bring its job server, which is not passed on.
    fn command(&self, program: &str) -> Command {
        let path = if program.contains('/') { self.dir.join(program) } else { PathBuf::from(program) };
        let mut command = Command::new(path);
        command.current_dir(&self.dir).env("ARCH", "x86_64").env("LC_ALL", "C").envs(BUILD_IDENTITY);
        for variable in ["MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "CFLAGS", "LDFLAGS", "CROSS_COMPILE"] {
            command.env_remove(variable);
        }
        command
    }
}
