//! What a process has that it might forget to give back: descriptors, threads, memory, children.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

use rustix::process::{Pid, Signal, WaitOptions};

/// Bytes of a program's name that the kernel keeps.
const COMM_BYTES: usize = 15;

/// A process, as the kernel describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Process {
    pub(crate) pid: i32,
    /// `R`, `S`, `T` (stopped), `Z` (zombie) and so on.
    pub(crate) state: char,
    pub(crate) parent: i32,
}

impl Process {
    /// Ends it and, if it is this process's child, reaps it.
    pub(crate) fn kill(&self) {
        let Some(pid) = Pid::from_raw(self.pid) else { return };
        let _ = rustix::process::kill_process(pid, Signal::KILL);
        let _ = rustix::process::waitpid(Some(pid), WaitOptions::empty());
    }
}

/// The processes of `program`. A zombie has no command line any more, and still a name.
pub(crate) fn processes(program: &Path) -> Vec<Process> {
    let name = program.file_name().expect("a program has a name").as_bytes();
    let name = String::from_utf8_lossy(&name[..name.len().min(COMM_BYTES)]).into_owned();
    let entries = fs::read_dir("/proc").expect("/proc can be read").filter_map(Result::ok);
    entries
        .filter_map(|entry| {
            let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
            let (pid, rest) = stat.split_once(" (")?;
            let (comm, fields) = rest.rsplit_once(") ")?;
            let mut fields = fields.split(' ');
            let (state, parent) = (fields.next()?.chars().next()?, fields.next()?.parse().ok()?);
            (comm == name).then_some(Process { pid: pid.parse().ok()?, state, parent })
        })
        .collect()
}

/// How many descriptors of each sort this process has. A socket's and a pipe's number is left out, so that counts compare.
pub(crate) fn descriptors() -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for entry in fs::read_dir("/proc/self/fd").expect("/proc can be read").filter_map(Result::ok) {
        let target = fs::read_link(entry.path()).unwrap_or_else(|_gone| PathBuf::from("gone"));
        let target = target.to_string_lossy();
        let sort = target.split_once(":[").map_or(&*target, |(sort, _number)| sort);
        *counts.entry(sort.to_owned()).or_insert(0) += 1;
    }
    counts
}

/// This process's threads.
pub(crate) fn threads() -> usize {
    fs::read_dir("/proc/self/task").expect("/proc can be read").count()
}

/// This process's resident memory in bytes.
pub(crate) fn resident_bytes() -> usize {
    let statm = fs::read_to_string("/proc/self/statm").expect("/proc can be read");
    let pages: usize = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).expect("it is a number");
    pages * rustix::param::page_size()
}

#[test]
fn what_is_left_is_seen() {
    let before = descriptors();
    let held = std::os::unix::net::UnixStream::pair().expect("a socket pair");
    let after = descriptors();
    assert_eq!(after.get("socket").copied().unwrap_or(0), before.get("socket").copied().unwrap_or(0) + 2);
    drop(held);
    assert_eq!(descriptors(), before);

    let dir = tempfile::tempdir().expect("a temporary directory");
    let program = dir.path().join("a-name-of-more-bytes-than-are-kept");
    fs::copy(crate::FAKE_QEMU, &program).expect("it has been built");
    let mut child = std::process::Command::new(&program).arg("--version").stdout(std::process::Stdio::null()).spawn();
    let child = child.as_mut().expect("it starts");
    while !processes(&program).iter().any(|process| process.state == 'Z') {
        std::thread::yield_now();
    }
    child.wait().expect("it is ours");
    assert_eq!(processes(&program), []);
}
