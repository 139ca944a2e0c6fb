//! The QEMU step: the source as it was released and the project's patches, with one board and the devices of a guest, as one static
//! program; and its firmware.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use exec_sandbox_image::{Digest, KeyBuilder};

use super::agent;
use super::apt;
use super::cache::{Artefact, Cache};
use super::dpkg;
use super::fetch::Fetcher;
use super::lock::{Deb, DebSet, Wheel};
use super::patches::Patches;
use super::places::Places;
use super::progress::Ui;
use super::tools;

/// The program's name in the result.
pub(crate) const PROGRAM: &str = "qemu";

/// What the board loads into a guest before its kernel: the firmware, and the loader of kernels with a PVH entry.
pub(crate) const FIRMWARE: [&str; 2] = ["pvh.bin", "qboot.rom"];

/// The fact that is its version.
pub(crate) const VERSION: &str = "version";

/// The version of what this file does.
const RECIPE: &str = "qemu 1";

/// What is built.
const TARGET: &str = "qemu-system-x86_64";

/// What the configuration of a guest's devices is called in QEMU's source, and by the options of `configure`.
const DEVICES: &str = "configs/devices/x86_64-softmmu/exec-sandbox.mak";

/// Firmware that Debian's archive of the source lacks and that is not installed, but has to be there for the build to be planned.
const NOT_THERE: &str = "pc-bios/meson.build";

/// Libraries that become part of the program, with what they need in turn; and those of which `pkg-config` does not know.
const LIBRARIES: [&str; 3] = ["glib-2.0", "libseccomp", "zlib"];
const OTHER_LIBRARIES: [&str; 3] = ["-lc", "-lm", "-lfdt"];

/// What to do when something of it is not there.
const REMEDY: &str = "`sudo scripts/system-packages.sh` installs what the build needs";

/// The project's part of QEMU.
#[derive(Debug, Default)]
struct Intent {
    devices: String,
    options: String,
    patches: Patches,
}

/// What QEMU is built of.
#[derive(Debug)]
struct Parts {
    source: PathBuf,
    version: String,
    firmware: PathBuf,
    wheels: Vec<(Wheel, PathBuf)>,
}

/// A source tree, and where it is built.
#[derive(Debug)]
struct Tree {
    dir: PathBuf,
    logs: PathBuf,
}

/// QEMU, from the cache or built.
pub(crate) fn ensure(places: &Places, cache: &Cache, fetcher: &mut Fetcher<'_>, ui: &mut Ui) -> Result<Artefact> {
    let intent = Intent::load(&places.assets.join("qemu"))?;
    if let Some(artefact) = cache.artefact("qemu", intent.key(fetcher)?)? {
        return Ok(artefact);
    }
    tools::start_log(&cache.logs(), ui)?;
    let parts = Parts::fetch(fetcher, ui)?;
    // The source may have moved to another version, which may have been built already.
    let key = intent.key(fetcher)?;
    if let Some(artefact) = cache.artefact("qemu", key)? {
        return Ok(artefact);
    }
    let tree = Tree::unpack(&parts.source, cache, ui)?;
    intent.patches.apply(&tree.dir, &tree.logs, ui)?;
    let python = tree.python(&parts.wheels, cache, ui)?;
    tree.configure(&intent, &python, ui)?;
    let program = tree.compile(ui)?;
    let result = cache.scratch("qemu-result")?;
    fs::rename(program, result.join(PROGRAM)).context("cannot take QEMU")?;
    take_firmware(&parts.firmware, &result, cache, ui)?;
    cache.keep("qemu", key, &result, &[(VERSION, &parts.version)])
}

impl Intent {
    fn load(dir: &Path) -> Result<Self> {
        let read = |name: &str| {
            let path = dir.join(name);
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
        };
        Ok(Self { devices: read("devices.mak")?, options: read("configure.options")?, patches: Patches::load(dir)? })
    }

    /// Arguments of `configure`.
    fn arguments(&self) -> impl Iterator<Item = &str> {
        self.options.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'))
    }

    /// Everything that shapes the program.
    fn key(&self, fetcher: &Fetcher<'_>) -> Result<Digest> {
        let mut key = KeyBuilder::new(RECIPE).with("devices", self.devices.as_bytes());
        key = self.patches.add_to(key.with("options", self.options.as_bytes()));
        for deb in fetcher.lock().debs(DebSet::Qemu) {
            key = key.with("source", deb.sha256.as_bytes());
        }
        for wheel in &fetcher.lock().qemu_wheels {
            key = key.with("wheel", wheel.sha256.as_bytes());
        }
        for program in ["gcc", "ld"] {
            let version = tools::capture(Command::new(program).arg("--version"))?;
            key = key.with(program, version.lines().next().unwrap_or_default().as_bytes());
        }
        let known = tools::capture(Command::new("pkg-config").args(["--static", "--libs-only-l"]).args(LIBRARIES));
        for library in known.context(REMEDY)?.split_whitespace().chain(OTHER_LIBRARIES) {
            key = key.with("library", digest_of(library)?.to_string().as_bytes());
        }
        Ok(key.finish())
    }
}

impl Parts {
    fn fetch(fetcher: &mut Fetcher<'_>, ui: &mut Ui) -> Result<Self> {
        let debs = fetcher.debs(DebSet::Qemu, ui)?;
        let (sources, firmware): (Vec<_>, Vec<_>) =
            debs.into_iter().partition(|(deb, _)| deb.pool.ends_with(apt::SOURCE_SUFFIX));
        let ([(Deb { version, .. }, source)], [(_, firmware)]) = (&sources[..], &firmware[..]) else {
            bail!("QEMU should be one source and one package of firmware");
        };
        // Debian marks a source from which it took what it may not distribute.
        let version = dpkg::upstream_version(version).split('+').next().unwrap_or_default().to_owned();
        Ok(Self { source: source.clone(), version, firmware: firmware.clone(), wheels: fetcher.qemu_wheels(ui)? })
    }
}

impl Tree {
    fn unpack(archive: &Path, cache: &Cache, ui: &mut Ui) -> Result<Self> {
        ui.work("unpacking the source");
        let (dir, logs) = (cache.scratch("qemu")?, cache.logs());
        let mut tar = Command::new("tar");
        tar.args(["--extract", "--strip-components=1", "--file"]).arg(archive).arg("--directory").arg(&dir);
        tools::run(&mut tar, &logs, ui)?;
        fs::create_dir(dir.join("build")).context("cannot create the build directory")?;
        Ok(Self { dir, logs })
    }

    /// A Python that sees the wheels of the lock and nothing that is installed on this machine. QEMU's own environment, which it makes
    /// from this one, takes them from its source.
    fn python(&self, wheels: &[(Wheel, PathBuf)], cache: &Cache, ui: &mut Ui) -> Result<PathBuf> {
        ui.work("configuring");
        for (Wheel { name, version, .. }, path) in wheels {
            let target = self.dir.join("python/wheels").join(format!("{name}-{version}-py3-none-any.whl"));
            fs::copy(path, &target).with_context(|| format!("cannot create {}", target.display()))?;
        }
        let dir = cache.scratch("qemu-python")?;
        tools::run(Command::new("python3").args(["-m", "venv"]).arg(&dir), &self.logs, ui)
            .with_context(|| format!("cannot make a Python environment: {REMEDY}"))?;
        Ok(dir.join("bin/python3"))
    }

    fn configure(&self, intent: &Intent, python: &Path, ui: &mut Ui) -> Result<()> {
        fs::write(self.dir.join(DEVICES), &intent.devices).context("cannot write the devices' configuration")?;
        self.make_up_firmware().context("cannot prepare the directory of firmware")?;
        let mut configure = self.command("../configure");
        configure.arg(format!("--python={}", python.display())).args(intent.arguments());
        tools::run(&mut configure, &self.logs, ui)
    }

    /// Puts an empty file where `meson.build` names a packed one.
    fn make_up_firmware(&self) -> Result<()> {
        let plan = fs::read_to_string(self.dir.join(NOT_THERE))?;
        for name in plan.split('\'').filter(|word| word.starts_with("edk2-") && word.ends_with(".fd")) {
            fs::write(self.dir.join("pc-bios").join(format!("{name}.bz2")), "")?;
        }
        Ok(())
    }

    /// The stripped program.
    fn compile(&self, ui: &mut Ui) -> Result<PathBuf> {
        let jobs = thread::available_parallelism().map_or(1, usize::from);
        ui.work(&format!("compiling with {jobs} jobs (about 4 minutes of one core)"));
        tools::run(self.command("ninja").arg(format!("-j{jobs}")).arg(TARGET), &self.logs, ui)?;
        let program = self.dir.join("build").join(TARGET);
        tools::run(Command::new("strip").arg("--strip-all").arg(&program), &self.logs, ui)?;
        let elf = fs::read(&program).with_context(|| format!("cannot read {}", program.display()))?;
        ensure!(agent::asks_for_loader(&elf) == Some(false), "QEMU is not static");
        Ok(program)
    }

    /// A command in the directory where it is built, without what an environment could add to its flags.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.current_dir(self.dir.join("build")).env("LC_ALL", "C");
        for variable in ["MAKEFLAGS", "CFLAGS", "CXXFLAGS", "CPPFLAGS", "LDFLAGS", "CC", "CROSS_COMPILE", "NINJAFLAGS"]
        {
            command.env_remove(variable);
        }
        command
    }
}

fn take_firmware(deb: &Path, result: &Path, cache: &Cache, ui: &mut Ui) -> Result<()> {
    let dir = cache.scratch("qemu-firmware")?;
    tools::run(Command::new("dpkg-deb").arg("--extract").arg(deb).arg(&dir), &cache.logs(), ui)?;
    for name in FIRMWARE {
        let file = dir.join("usr/share/qemu").join(name);
        fs::rename(&file, result.join(name)).with_context(|| format!("{} has no {name}", deb.display()))?;
    }
    Ok(())
}

/// What the compiler links for `-lNAME` into a static program.
fn digest_of(library: &str) -> Result<Digest> {
    let library = library.replacen("-l", "lib", 1) + ".a";
    let path = tools::capture(Command::new("gcc").arg(format!("-print-file-name={library}")))?;
    let path = Path::new(path.trim());
    // A name that it does not find comes back as it was.
    ensure!(path.is_absolute(), "{library} is not installed: {REMEDY}");
    let (digest, _) = Digest::of_file(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_lines_and_notes_are_none() {
        let intent = Intent { options: "# a note\n--static\n\n--enable-pie\n".into(), ..Intent::default() };
        assert_eq!(intent.arguments().collect::<Vec<_>>(), ["--static", "--enable-pie"]);
    }

    #[test]
    fn a_library_that_is_not_installed_leads_to_the_script_that_installs_it() {
        assert!(digest_of("-lc").is_ok());
        let refused = digest_of("-lnothing").unwrap_err().to_string();
        assert!(refused.contains("scripts/system-packages.sh"), "{refused}");
    }
}
