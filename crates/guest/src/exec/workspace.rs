//! Where an interpreter finds the program that it shall run: a directory of the agent's for each execution, gone after it.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use exec_sandbox_wire::Program;

/// Under the directory of the agent, which no program can write to.
const PROGRAMS: &str = "/run/exec-sandbox/ops";

/// Read by the interpreter, and run by the kernel if the program names an interpreter of its own.
const CODE_MODE: u32 = 0o555;
const ENV_MODE: u32 = 0o444;

/// What is in place of the code until that comes. A file that was written to has a page, and the kernel need not look any more what
/// rights a write takes from it: in a copy that is work before the first program.
const PLACEHOLDER: &[u8] = b"\n";

/// The directory of one execution. Dropping it removes it.
#[derive(Debug)]
pub(crate) struct Workspace {
    dir: PathBuf,
}

/// A directory whose program is still to come.
#[derive(Debug)]
pub(crate) struct Blank {
    workspace: Workspace,
    code: File,
    env: File,
}

impl Blank {
    /// Makes that of the `number`th execution.
    pub(crate) fn create(number: u64) -> io::Result<Self> {
        Self::create_under(Path::new(PROGRAMS), number)
    }

    fn create_under(parent: &Path, number: u64) -> io::Result<Self> {
        let workspace = Workspace { dir: parent.join(number.to_string()) };
        fs::create_dir_all(&workspace.dir)?;
        let (mut code, env) = (workspace.file("code", CODE_MODE)?, workspace.file("env", ENV_MODE)?);
        code.write_all(PLACEHOLDER)?;
        Ok(Self { workspace, code, env })
    }

    /// Writes the program, and closes its files: the kernel executes none that somebody may write to.
    pub(crate) fn fill(mut self, program: &Program) -> io::Result<Workspace> {
        self.code.write_all_at(&program.code, 0)?;
        if program.code.len() < PLACEHOLDER.len() {
            self.code.set_len(program.code.len() as u64)?;
        }
        self.env.write_all(&environment(program))?;
        Ok(self.workspace)
    }
}

impl Workspace {
    /// Where it is.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    fn file(&self, name: &str, mode: u32) -> io::Result<File> {
        OpenOptions::new().write(true).create_new(true).mode(mode).open(self.dir.join(name))
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// `NAME=value`, each ended by a NUL, which neither can hold.
fn environment(program: &Program) -> Vec<u8> {
    let mut bytes = Vec::new();
    for variable in &program.env {
        for part in [&variable.name[..], b"=", &variable.value, b"\0"] {
            bytes.extend_from_slice(part);
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use exec_sandbox_wire::EnvVar;

    use super::*;

    #[test]
    fn a_program_is_there_for_its_execution_and_gone_after_it() {
        let parent = tempfile::tempdir().expect("a directory");
        let variable = |name: &str, value: &str| EnvVar { name: name.into(), value: value.into() };
        let program = Program { code: b"print(1)".to_vec(), env: vec![variable("A", "b=c"), variable("D", "")] };
        let workspace =
            Blank::create_under(parent.path(), 3).and_then(|blank| blank.fill(&program)).expect("it can be written");
        assert_eq!(fs::read(workspace.dir().join("code")).expect("it is there"), b"print(1)");
        assert_eq!(fs::read(workspace.dir().join("env")).expect("it is there"), b"A=b=c\0D=\0");
        drop(workspace);
        assert_eq!(fs::read_dir(parent.path()).expect("it is there").count(), 0);
    }

    #[test]
    fn of_a_program_that_is_shorter_than_what_was_in_its_place_nothing_else_is_seen() {
        let parent = tempfile::tempdir().expect("a directory");
        for code in ["", "x", "xy"] {
            let program = Program { code: code.into(), env: Vec::new() };
            let workspace = Blank::create_under(parent.path(), 1)
                .and_then(|blank| blank.fill(&program))
                .expect("it can be written");
            assert_eq!(fs::read_to_string(workspace.dir().join("code")).expect("it is there"), code);
        }
    }

    #[test]
    fn a_program_that_came_later_than_its_directory_can_be_executed() {
        let parent = tempfile::tempdir().expect("a directory");
        let blank = Blank::create_under(parent.path(), 1).expect("it can be made");
        let program = Program { code: b"#!/bin/sh\nexit 7\n".to_vec(), env: Vec::new() };
        let workspace = blank.fill(&program).expect("it can be written");
        let status = std::process::Command::new(workspace.dir().join("code")).status().expect("nobody writes to it");
        assert_eq!(status.code(), Some(7));
    }

    #[test]
    fn a_directory_whose_program_never_came_is_gone_all_the_same() {
        let parent = tempfile::tempdir().expect("a directory");
        drop(Blank::create_under(parent.path(), 1).expect("it can be made"));
        assert_eq!(fs::read_dir(parent.path()).expect("it is there").count(), 0);
    }
}
