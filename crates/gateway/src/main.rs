//! The gateway's process: `exec-sandbox-gateway --config-fd N`.
//!
//! It reads its configuration, takes over its descriptors, enters its jail and works. It writes to standard error only why it could
//! not start or go on.

use std::{fs::File, io::Read as _, process::ExitCode};

use exec_sandbox_gateway::{
    config::{Config, ConfigError, Jail, MAX_CONFIG_BYTES},
    descriptors, jail, memory,
    shell::{Shell, ShellError},
};

/// Why there is no gateway.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("usage: exec-sandbox-gateway --config-fd N")]
    Usage,
    #[error("reading the configuration")]
    Read(#[source] std::io::Error),
    #[error("the configuration is of no use")]
    Config(#[from] ConfigError),
    #[error("starting the gateway")]
    Start(#[source] ShellError),
    #[error("a whole jail is required")]
    Jail(#[source] jail::Missing),
    #[error("the gateway cannot go on")]
    Run(#[source] ShellError),
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            complain(&failure);
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Failure> {
    memory::keep_nothing_large();
    let mut arguments = std::env::args().skip(1);
    let fd = match (arguments.next().as_deref(), arguments.next(), arguments.next()) {
        (Some("--config-fd"), Some(fd), None) => fd.parse().map_err(|_| Failure::Usage)?,
        _ => return Err(Failure::Usage),
    };
    let config = Config::read(&read(fd).map_err(Failure::Read)?)?;
    let shell = Shell::new(&config).map_err(Failure::Start)?;
    let mut missing = jail::enter(&config);
    if config.jail == Jail::Required && !missing.is_empty() {
        return Err(Failure::Jail(missing.swap_remove(0)));
    }
    let missing = missing.iter().map(|missing| missing.layer.to_string()).collect();
    shell.run(missing).map_err(Failure::Run)
}

fn read(fd: i32) -> std::io::Result<Vec<u8>> {
    let file = File::from(descriptors::adopt_blocking(fd)?);
    let mut json = Vec::new();
    file.take(MAX_CONFIG_BYTES).read_to_end(&mut json)?;
    Ok(json)
}

#[expect(clippy::print_stderr, reason = "the parent hears on standard error why there is no gateway")]
fn complain(failure: &Failure) {
    let mut cause: Option<&dyn std::error::Error> = Some(failure);
    let mut text = String::from("exec-sandbox-gateway");
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    eprintln!("{text}");
}
