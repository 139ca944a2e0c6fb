//! The source tree as data: which files belong to the project, and what is in them.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// One file of the project.
pub(crate) struct File {
    /// Path from the root of the workspace, with `/` between its parts.
    pub(crate) path: String,
    pub(crate) text: String,
}

impl File {
    pub(crate) fn new(path: &str, text: &str) -> Self {
        Self { path: path.into(), text: text.into() }
    }

    pub(crate) fn is_rust(&self) -> bool {
        Path::new(&self.path).extension().is_some_and(|extension| extension == "rs")
    }
}

/// The root of the workspace.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Every text file that is tracked or would be.
pub(crate) fn files() -> Vec<File> {
    // A checkout that belongs to another user (a container, CI) is read all the same.
    let listed = Command::new("git")
        .args(["-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(root())
        .output()
        .expect("git runs");
    assert!(listed.status.success(), "git ls-files: {}", String::from_utf8_lossy(&listed.stderr));
    let files: Vec<File> = String::from_utf8(listed.stdout)
        .expect("paths are UTF-8")
        .split_terminator('\0')
        // What is listed and cannot be read was deleted and not committed yet; what is not UTF-8 is not text.
        .filter_map(|path| std::fs::read_to_string(root().join(path)).ok().map(|text| File::new(path, &text)))
        .collect();
    assert!(files.iter().any(|file| file.path == "Cargo.toml"), "the list of files lacks the workspace's own");
    files
}

/// Every Rust file.
pub(crate) fn rust_files() -> Vec<File> {
    files().into_iter().filter(File::is_rust).collect()
}
