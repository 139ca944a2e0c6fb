//! `sbx bench`: what this host makes of VMs, measured.

use exec_sandbox::Language;

use crate::{
    args::{BenchArgs, BenchCommand},
    exit::Status,
    failure::Failure,
};

mod cold;
mod figures;
mod idle;
mod memory;
mod page;
mod session;

/// Measures what was asked for.
pub(crate) fn run(args: BenchArgs) -> Result<Status, Failure> {
    match args.command {
        BenchCommand::Cold(args) => cold::run(args),
        BenchCommand::Idle(args) => idle::run(args),
        BenchCommand::Session(args) => session::run(args),
    }
}

/// The shortest program that says something.
fn hello(language: Language) -> &'static str {
    match language {
        Language::Python => "print('hello')",
        Language::JavaScript => "console.log('hello')",
        Language::Raw => "echo hello",
    }
}
