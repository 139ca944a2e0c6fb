//! `exec-sandbox`: the same program under the name of the project.

use std::process::ExitCode;

fn main() -> ExitCode {
    exec_sandbox_cli::main()
}
