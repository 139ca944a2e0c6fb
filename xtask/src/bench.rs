//! Benchmarks that need more of the machine than `sbx bench`: they install, build and start what is measured.

use std::{
    env::{self, consts::ARCH},
    ffi::OsString,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

/// What makes the network of a benchmark, and starts the program that is named by its arguments.
///
/// A namespace of its own: nothing leaves the machine, and no rule of a firewall is measured. The other end of a pair of interfaces is
/// the world, because passt wants a route to it. The right to make namespaces is given up, for the library would use it to give QEMU
/// a network without interfaces, and slirp is in QEMU.
const IN_NETWORK: &str = r#"set -e
ip link set lo up
ip link add wan type veth peer name world
ip address add 10.88.0.1/24 dev wan
ip link set wan up
ip link set world up
ip route add default via 10.88.0.2
exec setpriv --inh-caps=-sys_admin --bounding-set=-sys_admin "$@"
"#;

/// Measures the gateway beside passt and slirp. Does not come back if that begins.
pub(crate) fn network(options: &[OsString]) -> Result<()> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask lies in no workspace")?;
    // Only what is measured by default has to be there.
    if !options.iter().any(|option| option.to_string_lossy().starts_with("--passt")) {
        run(Command::new(workspace.join("scripts/system-packages.sh")).arg("passt"))?;
    }
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| "target".into(), PathBuf::from);
    let (target, triple) = (workspace.join(target), format!("{ARCH}-unknown-linux-gnu"));
    build(workspace, "exec-sandbox-gateway", &["--release"], "")?;
    // It only waits for the kernel and for others, whichever way it is compiled.
    build(workspace, "netbench", &[], "")?;
    // Its own target directory: other flags in the common one would rebuild everything each time.
    let guest = target.join("guest");
    let guests = ["--release", "--target", &triple, "--target-dir", &guest.to_string_lossy()];
    build(workspace, "netbench-traffic", &guests, "-Ctarget-feature=+crt-static")?;
    let mut command = Command::new("unshare");
    if !rustix::process::geteuid().is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    command.args(["--net", "sh", "-c", IN_NETWORK, "network"]);
    command.arg(target.join("debug/netbench"));
    command.arg("--gateway").arg(target.join("release/exec-sandbox-gateway"));
    command.arg("--traffic").arg(guest.join(triple).join("release/netbench-traffic")).args(options);
    Err(command.exec()).context("starting unshare (util-linux has it)")
}

fn build(workspace: &Path, package: &str, options: &[&str], rust_flags: &str) -> Result<()> {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--package", package]).args(options).current_dir(workspace);
    if !rust_flags.is_empty() {
        cargo.env("CARGO_ENCODED_RUSTFLAGS", rust_flags).env_remove("RUSTFLAGS");
    }
    // What cargo has said of this package would be news to the build scripts of others, which would be built anew.
    for (name, _) in env::vars_os().filter(|(name, _)| is_of_package(&name.to_string_lossy())) {
        cargo.env_remove(name);
    }
    run(&mut cargo)
}

fn is_of_package(variable: &str) -> bool {
    ["CARGO_MANIFEST_", "CARGO_PKG_"].iter().any(|prefix| variable.starts_with(prefix))
}

fn run(command: &mut Command) -> Result<()> {
    let name = PathBuf::from(command.get_program()).display().to_string();
    let status = command.status().with_context(|| format!("starting {name}"))?;
    ensure!(status.success(), "{name} failed ({status})");
    Ok(())
}
