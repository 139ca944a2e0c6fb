//! The agent step: the guest's one program, alone in the archive that the kernel starts from.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use exec_sandbox_image::{KeyBuilder, cpio};

use super::cache::{Artefact, Cache};
use super::places::Places;
use super::progress::Ui;
use super::tools;

/// The archive's name in the result.
pub(crate) const INITRAMFS: &str = "initramfs.cpio";

const PACKAGE: &str = "exec-sandbox-guest";

/// The standard target: with a static libc it serves the guest, and no other toolchain is needed.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// The version of the archive's layout.
const RECIPE: &str = "agent 1";

/// What the agent mounts on before it has a root file system.
const DIRECTORIES: [&str; 4] = ["dev", "newroot", "proc", "sys"];

/// ELF's program header that asks for a dynamic loader.
const PT_INTERP: u32 = 3;

/// Builds the agent and packs it. cargo knows whether there is anything to compile, so it is always asked.
pub(crate) fn ensure(places: &Places, cache: &Cache, ui: &mut Ui) -> Result<Artefact> {
    let binary = compile(places, cache, ui).context("cannot build the guest agent")?;
    let agent = fs::read(&binary).with_context(|| format!("cannot read {}", binary.display()))?;
    match asks_for_loader(&agent) {
        None => bail!("{} is not a 64-bit ELF program", binary.display()),
        Some(true) => bail!("{} is not static, and the guest has no loader when it starts", binary.display()),
        Some(false) => {}
    }
    let key = KeyBuilder::new(RECIPE).with("agent", &agent).finish();
    if let Some(artefact) = cache.artefact("agent", key)? {
        return Ok(artefact);
    }
    ui.work("packing the initramfs");
    let dir = cache.scratch("agent")?;
    let archive = pack(&agent).context("cannot pack the initramfs")?;
    fs::write(dir.join(INITRAMFS), archive).context("cannot write the initramfs")?;
    cache.keep("agent", key, &dir, &[])
}

fn compile(places: &Places, cache: &Cache, ui: &mut Ui) -> Result<PathBuf> {
    tools::start_log(&cache.logs(), ui)?;
    // Its own target directory: other flags in the common one would rebuild everything each time.
    let target_dir = env::var_os("CARGO_TARGET_DIR").map_or_else(|| places.workspace.join("target"), PathBuf::from);
    let target_dir = places.workspace.join(target_dir).join("guest");
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo")));
    cargo.args(["build", "--profile", "guest", "--package", PACKAGE, "--target", TARGET]).arg("--target-dir");
    cargo
        .arg(&target_dir)
        .current_dir(&places.workspace)
        .env("CARGO_ENCODED_RUSTFLAGS", rust_flags(&places.workspace)?);
    cargo.env_remove("RUSTFLAGS");
    tools::run(&mut cargo, &cache.logs(), ui)?;
    Ok(target_dir.join(TARGET).join("guest").join(PACKAGE))
}

/// A static libc, and no trace of where the build ran: panics name source files, and snapshots are keyed by the agent's digest.
fn rust_flags(workspace: &Path) -> Result<OsString> {
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(env::home_dir()?.join(".cargo"))).context("cannot find the home directory")?;
    let mut flags = OsString::from("-Ctarget-feature=+crt-static");
    for (from, to) in [(workspace, "/exec-sandbox"), (&home, "/cargo")] {
        flags.push("\u{1f}--remap-path-prefix=");
        flags.push(from);
        flags.push("=");
        flags.push(to);
    }
    Ok(flags)
}

fn pack(agent: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut archive = cpio::Writer::new(Vec::new());
    for directory in DIRECTORIES {
        archive.directory(directory, 0o755)?;
    }
    // The kernel opens it for the first program's standard streams, before anything has mounted /dev.
    archive.char_device("dev/console", 0o600, 5, 1)?;
    archive.file("init", 0o755, agent)?;
    archive.finish()
}

/// Whether a 64-bit little-endian ELF program asks for a dynamic loader; `None` if it is no such program.
pub(crate) fn asks_for_loader(elf: &[u8]) -> Option<bool> {
    if !elf.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let table = usize::try_from(u64::from_le_bytes(elf.get(32..40)?.try_into().ok()?)).ok()?;
    let entry_bytes = usize::from(u16::from_le_bytes(elf.get(54..56)?.try_into().ok()?));
    let entries = usize::from(u16::from_le_bytes(elf.get(56..58)?.try_into().ok()?));
    for index in 0..entries {
        let at = table.checked_add(index.checked_mul(entry_bytes)?)?;
        let kind = u32::from_le_bytes(elf.get(at..at.checked_add(4)?)?.try_into().ok()?);
        if kind == PT_INTERP {
            return Some(true);
        }
    }
    Some(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An ELF header with program headers of these kinds.
    fn elf(kinds: &[u32]) -> Vec<u8> {
        let mut bytes = vec![0; 64];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        bytes[32] = 64;
        bytes[54] = 56;
        bytes[56] = u8::try_from(kinds.len()).unwrap();
        for kind in kinds {
            bytes.extend_from_slice(&kind.to_le_bytes());
            bytes.extend_from_slice(&[0; 52]);
        }
        bytes
    }

    #[test]
    fn a_program_header_decides_whether_a_program_is_static() {
        assert_eq!(asks_for_loader(&elf(&[1, 2, 1])), Some(false));
        assert_eq!(asks_for_loader(&elf(&[1, PT_INTERP, 1])), Some(true));
    }

    #[test]
    fn what_is_no_program_or_cut_short_is_neither() {
        assert_eq!(asks_for_loader(b"#!/bin/sh\n"), None);
        let whole = elf(&[1, 2]);
        assert_eq!(asks_for_loader(&whole[..whole.len() - 53]), None);
    }

    #[test]
    fn this_very_program_asks_for_a_loader() {
        let program = fs::read(env::current_exe().unwrap()).unwrap();
        assert_eq!(asks_for_loader(&program), Some(true));
    }

    #[test]
    fn the_archive_is_the_same_for_the_same_agent() {
        assert_eq!(pack(b"agent").unwrap(), pack(b"agent").unwrap());
        assert_ne!(pack(b"agent").unwrap(), pack(b"tnega").unwrap());
    }
}
