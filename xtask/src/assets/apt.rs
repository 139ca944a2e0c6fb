//! Debian's archive through apt: which mirror, which packages, and fetching them.
//!
//! The mirror is the one that the machine's own apt uses, and downloads go through apt's methods, so its proxies and credentials hold.
//! Resolving uses a private apt state with the guest's suites, signed by the archive's own keys, and leaves the machine's state alone.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use super::lock::Deb;
use super::progress::Ui;
use super::tools;

/// Overrides what apt says.
const MIRROR_VARIABLE: &str = "EXEC_SANDBOX_DEBIAN_MIRROR";

/// The archive's keys, from the package debian-archive-keyring.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// apt's program for single downloads. It is in no PATH.
const HELPER: &str = "/usr/lib/apt/apt-helper";

/// How the name of a source's archive ends.
pub(crate) const SOURCE_SUFFIX: &str = ".orig.tar.xz";

/// Every essential package but apt: it is essential to Debian, and the guest's root is read-only.
const ESSENTIAL: &str = "?and(?essential, ?not(?exact-name(apt)))";

/// A file to fetch.
#[derive(Debug)]
pub(crate) struct Download<'a> {
    pub(crate) deb: &'a Deb,
    pub(crate) target: PathBuf,
}

/// A private apt state.
#[derive(Debug)]
pub(crate) struct Apt {
    config: PathBuf,
    mirror: String,
}

/// The Debian mirror that this machine uses, ending in a slash.
pub(crate) fn mirror() -> Result<String> {
    if let Ok(mirror) = env::var(MIRROR_VARIABLE)
        && !mirror.is_empty()
    {
        return Ok(format!("{}/", mirror.trim_end_matches('/')));
    }
    // The second answer is the one of a machine that has not run `apt-get update`: it knows its sources, but not what is in them.
    for extra in [&[][..], &["--no-release-info"]] {
        let format = "$(REPO_URI)|$(ORIGIN)|$(LABEL)";
        let targets =
            tools::capture(Command::new("apt-get").arg("indextargets").args(extra).args(["--format", format]))
                .with_context(|| format!("cannot ask apt for a Debian mirror; {MIRROR_VARIABLE} can name one"))?;
        if let Some(mirror) = mirror_in(&targets) {
            return Ok(mirror);
        }
    }
    bail!("apt knows no Debian mirror on this machine: {MIRROR_VARIABLE} can name one")
}

/// Fetches files by their paths under the mirror. apt checks each against its digest.
pub(crate) fn download(mirror: &str, downloads: &[Download<'_>], logs: &Path, ui: &mut Ui) -> Result<()> {
    let mut helper = Command::new(HELPER);
    // Files belong to whoever runs the build, so apt's own unprivileged user could not write them.
    helper.args(["-o", "APT::Sandbox::User=root", "-o", "Acquire::Retries=3", "download-file"]);
    for Download { deb, target } in downloads {
        helper.arg(format!("{mirror}{}", deb.pool)).arg(target).arg(format!("SHA256:{}", deb.sha256));
    }
    tools::run(&mut helper, logs, ui)
}

impl Apt {
    /// Sets up the state in `dir` and reads the archive's signed lists.
    pub(crate) fn update(dir: &Path, suites: &[String], logs: &Path, ui: &mut Ui) -> Result<Self> {
        ensure!(Path::new(KEYRING).exists(), "{KEYRING} is missing: install debian-archive-keyring");
        let mirror = mirror()?;
        let config = write_state(dir, &mirror, suites).with_context(|| format!("cannot set up {}", dir.display()))?;
        let apt = Self { config, mirror };
        tools::run(apt.command("apt-get").arg("update"), logs, ui).context("cannot read the archive's lists")?;
        Ok(apt)
    }

    /// The newest version of one package, without what it depends on.
    pub(crate) fn single(&self, package: &str) -> Result<Vec<Deb>> {
        self.resolve(self.command("apt-get").args(["download", "--print-uris", "-qq", package]))
    }

    /// The newest source of one package as its authors released it, without Debian's changes.
    pub(crate) fn source(&self, package: &str) -> Result<Vec<Deb>> {
        self.resolve(self.command("apt-get").args(["source", "--print-uris", "-qq", "--tar-only", package]))
    }

    /// Packages with everything that they depend on.
    pub(crate) fn closure(&self, packages: &[String]) -> Result<Vec<Deb>> {
        self.resolve(self.install().args(packages))
    }

    /// Packages with everything that they and Debian's essential ones depend on.
    pub(crate) fn system(&self, packages: &[String]) -> Result<Vec<Deb>> {
        self.resolve(self.install().arg(ESSENTIAL).args(packages))
    }

    fn install(&self) -> Command {
        let mut command = self.command("apt-get");
        command.args(["--print-uris", "-qq", "--no-install-recommends", "install"]);
        command
    }

    fn resolve(&self, command: &mut Command) -> Result<Vec<Deb>> {
        let listing = tools::capture(command).context("apt cannot resolve what the recipe asks for")?;
        let mut debs = debs_in(&listing, &self.mirror)?;
        debs.sort_by(|a, b| a.name.cmp(&b.name));
        ensure!(!debs.is_empty(), "apt resolved what the recipe asks for to nothing");
        Ok(debs)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("APT_CONFIG", &self.config).env("LC_ALL", "C").args(["-o", "Acquire::ForceHash=SHA256"]);
        command
    }
}

fn write_state(dir: &Path, mirror: &str, suites: &[String]) -> std::io::Result<PathBuf> {
    for part in ["state/lists/partial", "cache/archives/partial", "none"] {
        fs::create_dir_all(dir.join(part))?;
    }
    let kinds = ["deb", "deb-src"].into_iter();
    let lines = kinds.flat_map(|kind| {
        suites.iter().map(move |suite| format!("{kind} [signed-by={KEYRING}] {mirror} {suite} main\n"))
    });
    let sources: String = lines.collect();
    fs::write(dir.join("sources.list"), sources)?;
    // Nothing counts as installed, so a resolution has everything in it.
    fs::write(dir.join("status"), "")?;
    let config = dir.join("apt.conf");
    let dir = dir.display();
    let text = format!(
        "Dir::Etc::sourcelist \"{dir}/sources.list\";\n\
         Dir::Etc::sourceparts \"{dir}/none\";\n\
         Dir::Etc::preferences \"{dir}/none/preferences\";\n\
         Dir::Etc::preferencesparts \"{dir}/none\";\n\
         Dir::State \"{dir}/state\";\n\
         Dir::State::status \"{dir}/status\";\n\
         Dir::Cache \"{dir}/cache\";\n\
         APT::Architecture \"amd64\";\n\
         APT::Architectures {{ \"amd64\"; }};\n\
         APT::Sandbox::User \"root\";\n\
         Acquire::Languages \"none\";\n\
         Acquire::IndexTargets::deb::DEP-11::DefaultEnabled \"false\";\n"
    );
    fs::write(&config, text)?;
    Ok(config)
}

/// The first repository of Debian itself in what `apt-get indextargets` prints, `URI|origin|label` a line. Without release information
/// the last two stay as they were asked for, and the customary name of the directory decides; signatures are checked in either case.
fn mirror_in(targets: &str) -> Option<String> {
    let mut repositories = targets.lines().filter_map(|line| {
        let mut fields = line.split('|');
        let uri = fields.next()?.trim_end_matches('/');
        let is_debian = match (fields.next()?, fields.next()?) {
            ("$(ORIGIN)", _) => uri.ends_with("/debian"),
            (origin, label) => origin == "Debian" && label == "Debian",
        };
        is_debian.then_some(uri)
    });
    let uri = repositories.find(|uri| uri.starts_with("http://") || uri.starts_with("https://"))?;
    Some(format!("{uri}/"))
}

/// The packages in what apt prints for `--print-uris`: `'URI' file size SHA256:digest` a line.
fn debs_in(listing: &str, mirror: &str) -> Result<Vec<Deb>> {
    listing.lines().filter(|line| line.starts_with('\'')).map(|line| deb_in(line, mirror)).collect()
}

fn deb_in(line: &str, mirror: &str) -> Result<Deb> {
    let mut words = line.split_whitespace();
    let (Some(uri), Some(file), Some(_size), Some(hash)) = (words.next(), words.next(), words.next(), words.next())
    else {
        bail!("apt printed a line of another form: {line}");
    };
    let pool = uri.trim_matches('\'').strip_prefix(mirror).with_context(|| format!("{uri} is not on the mirror"))?;
    let sha256 = hash.strip_prefix("SHA256:").with_context(|| format!("apt gave no SHA-256 digest for {file}"))?;
    let mut parts = file.trim_end_matches(".deb").trim_end_matches(SOURCE_SUFFIX).split('_');
    let (Some(name), Some(version)) = (parts.next(), parts.next()) else {
        bail!("{file} is not named like a package");
    };
    // A colon cannot be in the file's name.
    let version = version.replace("%3a", ":");
    Ok(Deb { name: name.into(), version, sha256: sha256.into(), pool: pool.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIRROR: &str = "http://mirror.test/debian/";

    #[test]
    fn the_mirror_is_debians_own_and_not_a_neighbour() {
        let targets = "file:/media/debian/|Debian|Debian\n\
                       http://vendor.test/debian/|Vendor|Vendor\n\
                       http://mirror.test/debian-security|Debian|Debian-Security\n\
                       http://mirror.test/debian|Debian|Debian\n";
        assert_eq!(mirror_in(targets).as_deref(), Some(MIRROR));
        assert_eq!(mirror_in("http://vendor.test/debian/|Vendor|Vendor\n"), None);
    }

    #[test]
    fn a_machine_that_has_not_read_its_lists_still_names_its_mirror() {
        let targets =
            "http://mirror.test/debian-security/|$(ORIGIN)|$(LABEL)\nhttp://mirror.test/debian/|$(ORIGIN)|$(LABEL)\n";
        assert_eq!(mirror_in(targets).as_deref(), Some(MIRROR));
    }

    #[test]
    fn packages_are_read_with_epoch_and_digest() {
        let digest = "a".repeat(64);
        let listing = format!(
            "'{MIRROR}pool/main/g/git/git_1%3a2.47.3-0%2bdeb13u1_amd64.deb' git_1%3a2.47.3-0+deb13u1_amd64.deb 88 SHA256:{digest}\n"
        );
        let expected = Deb {
            name: "git".into(),
            version: "1:2.47.3-0+deb13u1".into(),
            sha256: digest,
            pool: "pool/main/g/git/git_1%3a2.47.3-0%2bdeb13u1_amd64.deb".into(),
        };
        assert_eq!(debs_in(&listing, MIRROR).unwrap(), [expected]);
    }

    #[test]
    fn a_source_is_read_with_its_version() {
        let digest = "a".repeat(64);
        let pool = "pool/main/q/qemu/qemu_10.0.13%2bds.orig.tar.xz";
        let listing = format!("'{MIRROR}{pool}' qemu_10.0.13+ds.orig.tar.xz 40010016 SHA256:{digest}\n");
        let expected = Deb { name: "qemu".into(), version: "10.0.13+ds".into(), sha256: digest, pool: pool.into() };
        assert_eq!(debs_in(&listing, MIRROR).unwrap(), [expected]);
    }

    #[test]
    fn a_weaker_hash_or_another_host_is_refused() {
        for line in [
            format!("'{MIRROR}pool/a_1_all.deb' a_1_all.deb 1 MD5Sum:abc"),
            "'http://other.test/pool/a_1_all.deb' a_1_all.deb 1 SHA256:abc".to_owned(),
            format!("'{MIRROR}pool/a_1_all.deb' a_1_all.deb"),
        ] {
            assert!(debs_in(&line, MIRROR).is_err(), "{line} was accepted");
        }
    }
}
