//! The three networks, and the programs that stand in QEMU's and the gateway's places to have them.
//!
//! The library starts the same QEMU and what it takes for a gateway each time; the stand-ins are scripts that put something else
//! there. QEMU is started by a script with every network, so that it is confined alike with all of them.

use std::{
    env::{self, consts::ARCH},
    fmt::{self, Write as _},
    fs,
    net::{Ipv4Addr, TcpListener},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};
use exec_sandbox::{Facts, SchedulerConfig};
use exec_sandbox_gateway::{
    link::{GATEWAY, GUEST, MAX_MTU, PREFIX_BITS},
    report::{Counters, Report},
};
use tempfile::TempDir;

use crate::HOST;

/// The guest's port that is reached from the host.
pub(crate) const GUEST_PORT: u16 = 5201;

/// What is behind the guest's card.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Network {
    /// The gateway, beside QEMU.
    Gateway,
    /// passt, in the gateway's place.
    Passt,
    /// `-netdev user`, in QEMU.
    Slirp,
}

impl Network {
    /// All of them, in the order of their columns.
    pub(crate) const ALL: [Self; 3] = [Self::Gateway, Self::Passt, Self::Slirp];
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Gateway => "gateway",
            Self::Passt => "passt",
            Self::Slirp => "slirp",
        })
    }
}

/// The stand-ins, in a directory of their own.
#[derive(Debug)]
pub(crate) struct StandIns {
    dir: TempDir,
    config: SchedulerConfig,
    qemu: PathBuf,
    gateway: PathBuf,
    passt: PathBuf,
}

/// A QEMU with every network that it can have, which the image's own has not: the one that is named, else the one on the `PATH`.
pub(crate) fn full_qemu() -> Result<PathBuf> {
    if let Some(named) = env::var_os("EXEC_SANDBOX_QEMU").filter(|named| !named.is_empty()) {
        return Ok(named.into());
    }
    let (name, dirs) = (format!("qemu-system-{ARCH}"), env::var_os("PATH").unwrap_or_default());
    let found = env::split_paths(&dirs).map(|dir| dir.join(&name)).find(|path| path.is_file());
    found.with_context(|| format!("there is no {name} on the PATH"))
}

impl StandIns {
    pub(crate) fn make(facts: &Facts, gateway: &Path, passt: &Path) -> Result<Self> {
        // QEMU and the gateway may be run as users of their own, who have to get here. Short: there are sockets in it.
        let dir = tempfile::Builder::new().prefix("netbench-").permissions(fs::Permissions::from_mode(0o755)).tempdir();
        let dir = dir.context("making a directory")?;
        let accel = facts.accelerator.parse().context("choosing the accelerator")?;
        let range = format!("{HOST}/32").parse().context("excepting the host's address")?;
        let config = SchedulerConfig {
            accel,
            network_exceptions: vec![range],
            run_dir: Some(dir.path().join("run")),
            ..SchedulerConfig::default()
        };
        Ok(Self { dir, config, qemu: facts.qemu.clone(), gateway: gateway.to_owned(), passt: passt.to_owned() })
    }

    /// A configuration whose VMs have this network, and the host's port by which [`GUEST_PORT`] is then reached; `None` if the
    /// library opens it.
    pub(crate) fn config(&self, network: Network) -> Result<(SchedulerConfig, Option<u16>)> {
        let (mut config, qemu) = (self.config.clone(), quoted(&self.qemu));
        let straight = format!("exec {qemu} \"$@\"");
        let (qemu, gateway, port) = match network {
            Network::Gateway => (straight, None, None),
            Network::Passt => {
                let port = free_port()?;
                (straight, Some(passt(&self.passt, port)), Some(port))
            }
            Network::Slirp => {
                let port = free_port()?;
                (slirp(&qemu, port), Some(nobody()), Some(port))
            }
        };
        config.qemu = Some(self.script(&format!("{network}-qemu"), &qemu)?);
        config.gateway = Some(match gateway {
            Some(script) => self.script(&format!("{network}-gateway"), &script)?,
            None => self.gateway.clone(),
        });
        Ok((config, port))
    }

    fn script(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.dir.path().join(name);
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).with_context(|| format!("writing {}", path.display()))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).context("making a script executable")?;
        Ok(path)
    }
}

/// QEMU whose card hangs on a network of its own in place of a socket. That has no option for the MTU: it is 1500.
fn slirp(qemu: &str, port: u16) -> String {
    let netdev = format!(
        "user,id=network,ipv6=off,net={GATEWAY}/{PREFIX_BITS},host={GATEWAY},dhcpstart={GUEST},\
         hostfwd=tcp:{}:{port}-{GUEST}:{GUEST_PORT}",
        Ipv4Addr::LOCALHOST
    );
    format!(
        "for argument do\n  shift\n  case $argument in stream,id=network,*) argument='{netdev}' ;; esac\n  \
         set -- \"$@\" \"$argument\"\ndone\nexec {qemu} \"$@\""
    )
}

/// A gateway that says that it works, and leaves the network to QEMU. It is given its configuration as 3, QEMU's link as 4 and the
/// channel of its reports as 5.
fn nobody() -> String {
    format!("{}\nexec cat <&5 >/dev/null", it_works())
}

/// passt as the gateway. The script stays its parent and keeps the channel of reports open; both end with QEMU.
fn passt(program: &Path, port: u16) -> String {
    let mut script = it_works();
    let _ = write!(
        script,
        "\n{} --foreground --quiet --ipv4-only --fd 4 --mtu {MAX_MTU} --address {GUEST} --netmask {PREFIX_BITS} \
         --gateway {GATEWAY} --tcp-ports {}/{port}:{GUEST_PORT} --udp-ports none 3<&- 5<&-\nexit $?",
        quoted(program),
        Ipv4Addr::LOCALHOST
    );
    script
}

/// The report of a gateway that has begun its work.
fn it_works() -> String {
    let line = Report::new(&Counters::default(), &[], false).line();
    format!("printf '%s' '{}' >&5", String::from_utf8_lossy(&line))
}

/// A port that nobody has now. That somebody takes it within a moment is not to be expected in a namespace of our own.
fn free_port() -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("finding a free port")?;
    Ok(listener.local_addr().context("finding a free port")?.port())
}

fn quoted(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', "'\\''"))
}

/// The version of passt, as it or its package says.
pub(crate) fn passt_version(program: &Path) -> Result<String> {
    let asked = Command::new(program).arg("--version").output();
    let said = asked.with_context(|| format!("running {}", program.display()))?;
    let said = String::from_utf8_lossy(&said.stdout).lines().next().unwrap_or_default().replace("passt ", "");
    if !said.is_empty() && !said.contains("unknown") {
        return Ok(said);
    }
    // What is built without a repository does not know its own.
    let search = Command::new("dpkg-query").arg("--search").arg(program).output();
    let owner = search.ok().filter(|search| search.status.success());
    let Some(owner) = owner else { return Ok("of an unknown version".into()) };
    let package = String::from_utf8_lossy(&owner.stdout).split(':').next().unwrap_or_default().to_owned();
    let shown = Command::new("dpkg-query").args(["--show", "--showformat=${Version}", &package]).output();
    Ok(String::from_utf8_lossy(&shown.context("asking for the version of a package")?.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `script` makes of arguments, one a line.
    fn made_of(script: &str, arguments: &[&str]) -> String {
        let output = Command::new("sh").args(["-c", script, "qemu"]).args(arguments).output().expect("sh runs");
        String::from_utf8(output.stdout).expect("it is text")
    }

    #[test]
    fn slirp_takes_the_place_of_the_socket_and_of_nothing_else() {
        let script = slirp("printf '%s\\n'", 4000);
        let said = made_of(&script, &["-name", "a b", "-netdev", "stream,id=network,fd=6", "-device", "card,x=y"]);
        let lines: Vec<&str> = said.lines().collect();
        assert_eq!(lines[..3], ["-name", "a b", "-netdev"]);
        assert_eq!(lines[4..], ["-device", "card,x=y"]);
        assert!(lines[3].starts_with("user,id=network,") && lines[3].ends_with("127.0.0.1:4000-192.168.127.2:5201"));
    }

    #[test]
    fn a_path_is_one_word_of_a_script() {
        assert_eq!(made_of(&format!("printf '%s\\n' {}", quoted(Path::new("/a b/it's"))), &[]), "/a b/it's\n");
    }
}
