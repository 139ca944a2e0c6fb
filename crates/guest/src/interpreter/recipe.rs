//! How each language's interpreter is started, and the wrappers that run in them.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use exec_sandbox_wire::Language;

const WRAPPERS: &str = "/run/exec-sandbox/wrappers";

const PYTHON: &str = "/run/exec-sandbox/wrappers/python.py";
const PYTHON_WORKERS: &str = "/run/exec-sandbox/wrappers/python_workers.py";
const JAVASCRIPT: &str = "/run/exec-sandbox/wrappers/javascript.js";
const RAW: &str = "/run/exec-sandbox/wrappers/raw.sh";

/// Path and text of each wrapper.
const FILES: [(&str, &str); 4] = [
    (PYTHON, include_str!("../wrappers/python.py")),
    (PYTHON_WORKERS, include_str!("../wrappers/python_workers.py")),
    (JAVASCRIPT, include_str!("../wrappers/javascript.js")),
    (RAW, include_str!("../wrappers/raw.sh")),
];

/// How an interpreter is started.
#[derive(Debug)]
pub(super) struct Recipe {
    pub(super) program: &'static str,
    pub(super) arguments: &'static [&'static str],
    pub(super) variables: &'static [(&'static str, &'static str)],
}

/// A language's recipe. Where interpreters lie is a convention of images.
pub(super) fn of(language: Language) -> Recipe {
    match language {
        Language::Python => Recipe { program: "/usr/bin/python3", arguments: &[PYTHON], variables: &[] },
        Language::JavaScript => Recipe {
            program: "/usr/local/bin/bun",
            // A module that is missing is an error and not a reason to ask a registry.
            arguments: &["--no-install", JAVASCRIPT],
            variables: &[("DO_NOT_TRACK", "1"), ("BUN_RUNTIME_TRANSPILER_CACHE_PATH", "0")],
        },
        Language::Raw | Language::Unspecified => {
            Recipe { program: "/bin/bash", arguments: &["--norc", "--noprofile", RAW], variables: &[] }
        }
    }
}

/// Writes the wrappers where interpreters find them and no program can change them.
pub(crate) fn install() -> io::Result<()> {
    fs::create_dir_all(WRAPPERS)?;
    for (path, text) in FILES {
        let file = OpenOptions::new().write(true).create_new(true).mode(0o444).open(Path::new(path));
        file?.write_all(text.as_bytes())?;
    }
    Ok(())
}
