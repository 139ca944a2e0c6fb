//! The lock file: version and digest of everything that is fetched.
//!
//! It names no host: Debian's packages are paths under whatever mirror the machine uses, the rest goes through the registries' own
//! clients. Every value is checked on loading, because they become arguments of commands and names of files.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use super::apt;

/// The file beside the recipe.
pub(crate) const FILE_NAME: &str = "assets.lock.toml";

const HEADER: &str = "\
# Version and digest of everything that `cargo xtask assets` fetches. Written by `cargo xtask assets --update-lock`.
";

/// The whole file.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Lock {
    pub(crate) bun: NpmPackage,
    pub(crate) wheels: Vec<Wheel>,
    /// Wheels that QEMU is built with.
    pub(crate) qemu_wheels: Vec<Wheel>,
    /// The kernel's source.
    pub(crate) kernel: Vec<Deb>,
    /// QEMU's source and its firmware.
    pub(crate) qemu: Vec<Deb>,
    /// Programs that the build runs.
    pub(crate) tools: Vec<Deb>,
    /// The root file system.
    pub(crate) image: Vec<Deb>,
}

/// A package of the npm registry.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NpmPackage {
    pub(crate) name: String,
    pub(crate) version: String,
    /// `sha512-` and the digest in base64, as npm spells it.
    pub(crate) integrity: String,
}

/// A wheel of PyPI.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Wheel {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) sha256: String,
}

/// A Debian binary package, or the source of some.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Deb {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) sha256: String,
    /// Path under the mirror, as it stands in a URI.
    pub(crate) pool: String,
}

/// Which of the lists of Debian packages: each is resolved and fetched as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DebSet {
    /// The kernel's source.
    Kernel,
    /// QEMU's source and its firmware.
    Qemu,
    /// Programs that the build runs.
    Tools,
    /// The root file system.
    Image,
}

impl DebSet {
    /// Every list, as the lock file names it.
    pub(crate) const ALL: [(&'static str, Self); 4] =
        [("kernel", Self::Kernel), ("qemu", Self::Qemu), ("tools", Self::Tools), ("image", Self::Image)];
}

impl Lock {
    /// Reads the lock file in `assets`.
    pub(crate) fn load(assets: &Path) -> Result<Self> {
        let path = assets.join(FILE_NAME);
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Self::parse(&text).with_context(|| format!("cannot use {}", path.display()))
    }

    /// Reads and checks a lock file's text.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let lock: Self = toml::from_str(text)?;
        lock.check()?;
        Ok(lock)
    }

    /// The text that [`Lock::parse`] reads: one package a line, so that an update shows what changed.
    pub(crate) fn render(&self) -> String {
        let NpmPackage { name, version, integrity } = &self.bun;
        let mut text =
            format!("{HEADER}bun = {{ name = {name:?}, version = {version:?}, integrity = {integrity:?} }}\n");
        for (key, wheels) in [("wheels", &self.wheels), ("qemu_wheels", &self.qemu_wheels)] {
            let wheels = wheels.iter().map(|wheel| {
                format!("name = {:?}, version = {:?}, sha256 = {:?}", wheel.name, wheel.version, wheel.sha256)
            });
            render_list(&mut text, key, wheels);
        }
        for (key, set) in DebSet::ALL {
            let debs = self.debs(set).iter().map(|deb| {
                let Deb { name, version, sha256, pool } = deb;
                format!("name = {name:?}, version = {version:?}, sha256 = {sha256:?}, pool = {pool:?}")
            });
            render_list(&mut text, key, debs);
        }
        text
    }

    /// One of the lists.
    pub(crate) fn debs(&self, set: DebSet) -> &[Deb] {
        match set {
            DebSet::Kernel => &self.kernel,
            DebSet::Qemu => &self.qemu,
            DebSet::Tools => &self.tools,
            DebSet::Image => &self.image,
        }
    }

    /// Puts another list in place of one.
    pub(crate) fn replace(&mut self, set: DebSet, debs: Vec<Deb>) {
        match set {
            DebSet::Kernel => self.kernel = debs,
            DebSet::Qemu => self.qemu = debs,
            DebSet::Tools => self.tools = debs,
            DebSet::Image => self.image = debs,
        }
    }

    fn check(&self) -> Result<()> {
        check_word("bun", &self.bun.name.replace(['@', '/'], ""))?;
        check_word("bun", &self.bun.version)?;
        ensure!(self.bun.integrity.starts_with("sha512-"), "the integrity of bun is not a sha512 one");
        for wheel in self.wheels.iter().chain(&self.qemu_wheels) {
            check_word(&wheel.name, &wheel.name)?;
            check_word(&wheel.name, &wheel.version)?;
            check_sha256(&wheel.name, &wheel.sha256)?;
        }
        for (_, set) in DebSet::ALL {
            ensure!(!self.debs(set).is_empty(), "a list of Debian packages is empty");
            for deb in self.debs(set) {
                check_word(&deb.name, &deb.name)?;
                check_sha256(&deb.name, &deb.sha256)?;
                let is_package = deb.pool.ends_with(".deb") || deb.pool.ends_with(apt::SOURCE_SUFFIX);
                let is_plain = deb.pool.starts_with("pool/") && is_package && !deb.pool.contains("..");
                ensure!(is_plain, "{}: {:?} is not a path in a Debian archive", deb.name, deb.pool);
            }
        }
        Ok(())
    }
}

/// What changed between two lists, a line each.
pub(crate) fn differences(old: &[Deb], new: &[Deb]) -> Vec<String> {
    let find = |list: &[Deb], name: &str| list.iter().find(|deb| deb.name == name).cloned();
    let gone = old.iter().filter(|deb| find(new, &deb.name).is_none());
    let mut lines: Vec<String> = gone.map(|deb| format!("{} {} is no longer needed", deb.name, deb.version)).collect();
    for deb in new {
        match find(old, &deb.name) {
            None => lines.push(format!("{} {} is new", deb.name, deb.version)),
            Some(was) if was.version != deb.version => {
                lines.push(format!("{} moved from {} to {}", deb.name, was.version, deb.version));
            }
            Some(was) if was.sha256 != deb.sha256 => {
                lines.push(format!("{} {} has another content", deb.name, deb.version));
            }
            Some(_) => {}
        }
    }
    lines
}

fn render_list(text: &mut String, key: &str, entries: impl Iterator<Item = String>) {
    text.push_str(&format!("{key} = [\n"));
    entries.for_each(|entry| text.push_str(&format!("    {{ {entry} }},\n")));
    text.push_str("]\n");
}

/// Refuses what could be taken for an option or for two arguments.
fn check_word(of: &str, word: &str) -> Result<()> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b".+-_:~".contains(&byte);
    if word.is_empty() || word.starts_with('-') || !word.bytes().all(is_plain) {
        bail!("{of}: {word:?} is neither a name nor a version");
    }
    Ok(())
}

fn check_sha256(of: &str, digest: &str) -> Result<()> {
    let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    ensure!(digest.len() == 64 && digest.bytes().all(is_hex), "{of}: {digest:?} is not a SHA-256 digest");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deb(name: &str, version: &str) -> Deb {
        let pool = format!("pool/main/{name}_{version}_amd64.deb");
        Deb { name: name.into(), version: version.into(), sha256: "a".repeat(64), pool }
    }

    fn sample() -> Lock {
        Lock {
            bun: NpmPackage { name: "@oven/bun".into(), version: "1.4.5".into(), integrity: "sha512-AA==".into() },
            wheels: vec![Wheel { name: "uv".into(), version: "0.13.9".into(), sha256: "b".repeat(64) }],
            qemu_wheels: vec![Wheel { name: "meson".into(), version: "1.5.0".into(), sha256: "c".repeat(64) }],
            kernel: vec![deb("linux-source-6.12", "6.12.117-1")],
            qemu: vec![deb("qemu-system-data", "1:10.0.13+ds-0+deb13u1")],
            tools: vec![deb("erofs-utils", "1.8.6-1")],
            image: vec![deb("libc6", "2.41-12+deb13u5"), deb("git", "1:2.47.3-0+deb13u1")],
        }
    }

    #[test]
    fn a_lock_reads_back_as_it_was_rendered() {
        assert_eq!(Lock::parse(&sample().render()).unwrap(), sample());
    }

    #[test]
    fn the_lock_file_of_the_project_is_valid_and_rendered_by_this_code() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets").join(FILE_NAME);
        let text = fs::read_to_string(path).unwrap();
        assert_eq!(Lock::parse(&text).unwrap().render(), text);
    }

    #[test]
    fn values_that_could_become_other_arguments_or_paths_are_refused() {
        let good = sample().render();
        let cases = [
            ("\"uv\"", "\"--index-url=x\""),
            ("\"0.13.9\"", "\"0.13.9 --pre\""),
            (&"a".repeat(64), "../../etc/passwd"),
            ("pool/main/git_", "pool/../../git_"),
            ("pool/main/git_", "other/git_"),
            ("sha512-AA==", "sha1-AA=="),
        ];
        for (from, to) in cases {
            let bad = good.replacen(from, to, 1);
            assert_ne!(bad, good, "{from} is not in the sample");
            assert!(Lock::parse(&bad).is_err(), "{to} was accepted");
        }
    }

    #[test]
    fn a_lock_with_an_empty_list_is_refused() {
        let empty = Lock { tools: Vec::new(), ..sample() };
        assert!(Lock::parse(&empty.render()).is_err());
    }

    #[test]
    fn differences_name_what_moved_came_and_went() {
        let old = [deb("a", "1"), deb("b", "1"), deb("c", "1"), deb("d", "1")];
        let new = [deb("a", "1"), deb("b", "2"), deb("e", "1"), Deb { sha256: "f".repeat(64), ..deb("d", "1") }];
        let expected = ["c 1 is no longer needed", "b moved from 1 to 2", "e 1 is new", "d 1 has another content"];
        assert_eq!(differences(&old, &new), expected);
    }
}
