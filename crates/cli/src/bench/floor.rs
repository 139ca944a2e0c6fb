//! The floor: what QEMU's own process needs before it can do anything, which no way of starting a VM gets below.

use std::{io, path::Path, process::Stdio, time::Instant};

use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::Command,
};

use crate::{failure::Failure, json::ms};

/// A QEMU without a machine, which says on standard output that it is there.
const ARGUMENTS: [&str; 8] = ["-nodefaults", "-no-user-config", "-display", "none", "-M", "none", "-qmp", "stdio"];

/// What its first line begins with.
const GREETING: &str = "{\"QMP\":";

/// Milliseconds from asking for a process to QEMU's greeting.
pub(super) async fn sample(qemu: &Path) -> Result<f64, Failure> {
    start(qemu).await.map_err(|error| Failure::host("starting QEMU without a machine", error))
}

async fn start(qemu: &Path) -> io::Result<f64> {
    let asked = Instant::now();
    let mut child = Command::new(qemu)
        .args(ARGUMENTS)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    let mut greeting = String::new();
    if let Some(stdout) = child.stdout.take() {
        BufReader::new(stdout).read_line(&mut greeting).await?;
    }
    let took = ms(asked.elapsed());
    child.kill().await?;
    if greeting.starts_with(GREETING) {
        return Ok(took);
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, format!("it said {greeting:?} instead of its greeting")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_program_that_does_not_greet_is_no_floor() {
        let failure = sample(Path::new("/bin/echo")).await.expect_err("it says something else");
        assert!(failure.explain().causes[0].contains("-nodefaults"), "{:?}", failure.explain());
        assert!(sample(Path::new("/nonexistent/qemu")).await.is_err());
    }
}
