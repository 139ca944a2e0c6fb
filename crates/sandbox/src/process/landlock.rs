//! Landlock: the files, sockets and signals that a child may use, as a set of rules that the kernel keeps.
//!
//! The rules are made here, in the parent and once; a child only says that they hold for it. What the kernel is too old to refuse
//! stays allowed: files are refused by every Landlock, TCP by its ABI 4, devices' `ioctl` by 5, signals and abstract sockets by 6.
#![expect(unsafe_code, reason = "the version of Landlock is asked for by a system call that has no wrapper")]

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    os::{fd::OwnedFd, unix::ffi::OsStringExt},
    path::{Path, PathBuf},
    ptr,
    sync::Arc,
};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, PathBeneath, PathFd, Ruleset as Rules, RulesetAttr, RulesetCreated,
    RulesetCreatedAttr, RulesetError, Scope,
};

use super::jail::Ruleset;

/// The newest Landlock whose refusals are known here. An older kernel refuses what it can.
const KNOWN: ABI = ABI::V6;

/// Where a distribution keeps libraries, firmware and what the C library reads about its place. None of it is a user's.
const SYSTEM: [&str; 8] =
    ["/usr", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/localtime", "/nix/store", "/gnu/store", "/dev/urandom"];

/// Directories beside a program's own in which it finds its firmware, and its libraries if it has some. Not more of them: a program
/// in a user's `bin` stands beside all that is the user's.
const FIRMWARE: [&str; 2] = ["share/qemu", "share/seabios"];
const LIBRARIES: [&str; 2] = ["lib", "lib64"];

/// How much of a program's start is read to find its loader.
const HEADERS_BYTES: u64 = 64 * 1024;

/// What a child may use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Allowed {
    /// Programs, or directories of them.
    pub(crate) execute: Vec<PathBuf>,
    /// Files and directories.
    pub(crate) read: Vec<PathBuf>,
    /// Devices.
    pub(crate) use_devices: Vec<PathBuf>,
}

/// Why Landlock confines nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LandlockError {
    #[error("this kernel has no Landlock, or has it turned off")]
    Absent,
    #[error("making its rules")]
    Rules(#[from] RulesetError),
    #[error("finding the loader of {}", program.display())]
    Program { program: PathBuf, source: io::Error },
}

/// The version of this kernel's Landlock.
pub(crate) fn abi() -> Option<u32> {
    // SAFETY: with this flag and no attributes the call answers a number and touches no memory.
    let answer = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, ptr::null::<u8>(), 0, VERSION_FLAG) };
    u32::try_from(answer).ok().filter(|version| *version > 0)
}

/// `LANDLOCK_CREATE_RULESET_VERSION`.
const VERSION_FLAG: u32 = 1;

impl Allowed {
    /// What `program`, a QEMU, needs to start: itself and its firmware, and a loader and libraries of the system and beside it unless it
    /// is static.
    pub(crate) fn to_start(program: &Path) -> Result<Self, LandlockError> {
        let at = |source| LandlockError::Program { program: program.to_owned(), source };
        let program = program.canonicalize().map_err(at)?;
        let loader = loader(&program).map_err(at)?;
        let prefix = program.parent().and_then(Path::parent);
        let (system, libraries) = if loader.is_some() { (&SYSTEM[..], &LIBRARIES[..]) } else { Default::default() };
        let beside = prefix.into_iter().flat_map(|prefix| FIRMWARE.iter().chain(libraries).map(|dir| prefix.join(dir)));
        let read = system.iter().map(PathBuf::from).chain(beside);
        Ok(Self {
            read: read.collect(),
            execute: loader.into_iter().chain([program]).collect(),
            use_devices: vec!["/dev/null".into()],
        })
    }

    /// These rules and reading of `files`, for the kernel. A path that is not there allows nothing.
    pub(crate) fn to_kernel(&self, files: &[&File]) -> Result<Ruleset, LandlockError> {
        let read: BitFlags<AccessFs> = AccessFs::ReadFile | AccessFs::ReadDir;
        let mut rules = Rules::default()
            .handle_access(AccessFs::from_all(KNOWN))?
            .handle_access(AccessNet::from_all(KNOWN))?
            .scope(Scope::from_all(KNOWN))?
            .create()?;
        rules = allow(rules, &self.execute, read | AccessFs::Execute)?;
        rules = allow(rules, &self.read, read)?;
        rules = allow(rules, &self.use_devices, AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::IoctlDev)?;
        for file in files {
            rules = rules.add_rule(PathBeneath::new(file, AccessFs::ReadFile))?;
        }
        let fd: Option<OwnedFd> = rules.into();
        Ok(Ruleset { fd: Arc::new(fd.ok_or(LandlockError::Absent)?) })
    }
}

fn allow(
    mut rules: RulesetCreated,
    paths: &[PathBuf],
    access: BitFlags<AccessFs>,
) -> Result<RulesetCreated, RulesetError> {
    for opened in paths.iter().filter_map(|path| PathFd::new(path).ok()) {
        rules = rules.add_rule(PathBeneath::new(opened, access))?;
    }
    Ok(rules)
}

/// The loader that a program names, which the kernel executes in its place: a 64-bit ELF's PT_INTERP. A static program has none.
fn loader(program: &Path) -> io::Result<Option<PathBuf>> {
    let mut file = File::open(program)?;
    let mut headers = Vec::new();
    file.by_ref().take(HEADERS_BYTES).read_to_end(&mut headers)?;
    let Some((at, bytes)) = interpreter(&headers)? else { return Ok(None) };
    file.seek(SeekFrom::Start(at))?;
    let mut path = Vec::new();
    file.take(bytes.min(HEADERS_BYTES)).read_to_end(&mut path)?;
    path.truncate(path.iter().position(|byte| *byte == 0).unwrap_or(path.len()));
    Ok(Some(std::ffi::OsString::from_vec(path).into()))
}

/// Where in the file the loader's name stands, and how long it is.
fn interpreter(headers: &[u8]) -> io::Result<Option<(u64, u64)>> {
    const PT_INTERP: u64 = 3;
    let damaged = || io::Error::new(io::ErrorKind::InvalidData, "it is no 64-bit ELF of this machine");
    let number = |at: u64, bytes: u64| {
        let start = usize::try_from(at).ok()?;
        let field = headers.get(start..start.checked_add(usize::try_from(bytes).ok()?)?)?;
        let mut whole = [0; 8];
        whole.get_mut(..field.len())?.copy_from_slice(field);
        Some(u64::from_le_bytes(whole))
    };
    // 64 bits, little-endian.
    if !headers.starts_with(b"\x7fELF\x02\x01") {
        return Err(damaged());
    }
    let (table, size, count) =
        (number(32, 8).ok_or_else(damaged)?, number(54, 2).ok_or_else(damaged)?, number(56, 2).ok_or_else(damaged)?);
    for index in 0..count {
        let entry = index.checked_mul(size).and_then(|offset| offset.checked_add(table)).ok_or_else(damaged)?;
        if number(entry, 4).ok_or_else(damaged)? == PT_INTERP {
            let place = number(entry.saturating_add(8), 8).zip(number(entry.saturating_add(32), 8));
            return place.map(Some).ok_or_else(damaged);
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loader_of_a_dynamic_program_is_found() {
        let loader = loader(Path::new("/bin/sh")).expect("it is an ELF").expect("it is dynamic");
        assert!(loader.is_absolute() && loader.exists(), "{}", loader.display());
    }

    #[test]
    fn a_static_program_starts_with_its_firmware_and_without_libraries() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let program = dir.path().canonicalize().expect("it is there").join("bin/qemu");
        std::fs::create_dir(program.with_file_name("")).expect("it is new");
        let mut elf = std::fs::read("/bin/sh").expect("it can be read");
        std::fs::write(&program, &elf).expect("it is ours");
        let dynamic = Allowed::to_start(&program).expect("it is an ELF");
        assert!(dynamic.read.contains(&"/usr".into()) && dynamic.execute.len() == 2, "{dynamic:?}");
        // Without a table of segments it names no loader.
        elf[56..58].fill(0);
        std::fs::write(&program, &elf).expect("it is ours");
        let prefix = program.parent().and_then(Path::parent).expect("it is in a directory");
        let expected = Allowed {
            execute: vec![program.clone()],
            read: FIRMWARE.map(|dir| prefix.join(dir)).to_vec(),
            use_devices: vec!["/dev/null".into()],
        };
        assert_eq!(Allowed::to_start(&program).expect("it is an ELF"), expected);
    }

    #[test]
    fn a_script_and_a_damaged_program_are_refused() {
        assert!(interpreter(b"#!/bin/sh\n").is_err());
        let mut headers = std::fs::read("/bin/sh").expect("it can be read");
        assert!(interpreter(&headers).is_ok());
        // The table of segments lies beyond the file.
        headers[32..40].fill(0xff);
        assert!(interpreter(&headers).is_err());
    }
}
