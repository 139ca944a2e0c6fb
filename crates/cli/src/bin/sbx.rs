//! `sbx`: the short name.

use std::process::ExitCode;

fn main() -> ExitCode {
    exec_sandbox_cli::main()
}
