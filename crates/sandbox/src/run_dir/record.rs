//! What is written down about a VM in its run directory, for whoever looks at it from another process.
//!
//! `record` is JSON, made whole with the directory; it is replaced as a whole when it is known later what the VM is for. `children` has one line for each process, `role pid
//! start_ticks`, and grows; a line without its end is not there yet. Both may come from another version of this program, so
//! what is not known is passed over and what cannot be read is absent.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

use super::identity::{self, ProcessName};

/// The role of QEMU's process.
pub(crate) const QEMU: &str = "qemu";

/// The role of the process that is a VM's network.
pub(crate) const GATEWAY: &str = "gateway";

/// Most that is read of a record, and of the list of children: ten times what this version writes at most.
const MAX_RECORD_BYTES: u64 = 16 * 1024;
const MAX_CHILDREN_BYTES: u64 = 4096;

/// What a VM is for, as its owner knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Details {
    pub(crate) memory_mib: u32,
    #[serde(default)]
    pub(crate) language: Option<String>,
    #[serde(default)]
    pub(crate) tenant_id: Option<String>,
    #[serde(default)]
    pub(crate) task_id: Option<String>,
    #[serde(default)]
    pub(crate) image: Option<String>,
}

/// The process that owns a VM, or whatever else it has written its name into.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Owner {
    #[serde(flatten)]
    pub(crate) process: ProcessName,
    /// For people.
    #[serde(default)]
    pub(crate) program: Option<String>,
    /// Where this name of a process means this process. Older versions do not say.
    #[serde(default)]
    pub(crate) seen_from: Option<String>,
}

/// A VM as it is written down.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) vm_id: String,
    pub(crate) owner: Owner,
    pub(crate) created_unix_ms: u64,
    #[serde(flatten)]
    pub(crate) details: Details,
}

/// A process of a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ChildRecord {
    pub(crate) role: String,
    pub(crate) process: ProcessName,
}

impl Owner {
    /// This process.
    pub(crate) fn this_process() -> io::Result<Self> {
        let pid = std::process::id();
        let (program, seen_from) = (identity::program_name(pid), identity::here());
        Ok(Self { process: ProcessName::of(pid)?, program, seen_from })
    }

    /// Whether it can be told from here that it has ended.
    pub(crate) fn is_known_to_be_gone(&self) -> bool {
        self.seen_from.is_some()
            && self.seen_from == identity::here()
            && self.process.find(None).is_ok_and(|found| found.is_none_or(|known| known.is_dead()))
    }
}

impl Record {
    /// The record of a VM that this process makes now.
    pub(super) fn new(vm_id: &str, details: &Details) -> io::Result<Self> {
        let owner = Owner::this_process()?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let created_unix_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        Ok(Self { vm_id: vm_id.into(), owner, created_unix_ms, details: details.clone() })
    }

    /// Writes it to `path`, so that a reader sees all of it or nothing.
    pub(super) fn write(&self, path: &Path) -> io::Result<()> {
        let unfinished = path.with_extension("new");
        fs::write(&unfinished, serde_json::to_vec(self)?)?;
        fs::rename(unfinished, path)
    }

    /// Reads it from `path`.
    pub(super) fn read(path: &Path) -> io::Result<Self> {
        let bytes = read_at_most(path, MAX_RECORD_BYTES)?;
        Ok(serde_json::from_slice(&bytes)?)
    }
}

impl ChildRecord {
    /// Adds it to the list at `path`, with one write.
    pub(super) fn append(&self, path: &Path) -> io::Result<()> {
        let line = format!("{} {} {}\n", self.role, self.process.pid, self.process.start_ticks);
        OpenOptions::new().append(true).create(true).open(path)?.write_all(line.as_bytes())
    }

    /// Reads the list at `path`. One that is not there is empty.
    pub(super) fn read_all(path: &Path) -> io::Result<Vec<Self>> {
        match read_at_most(path, MAX_CHILDREN_BYTES) {
            Ok(bytes) => Ok(Self::parse_all(&String::from_utf8_lossy(&bytes))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    fn parse_all(text: &str) -> Vec<Self> {
        let lines = text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'));
        lines.filter_map(Self::parse).collect()
    }

    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split(' ');
        let (role, pid, start_ticks) = (words.next()?, words.next()?, words.next()?);
        let process = ProcessName { pid: pid.parse().ok()?, start_ticks: start_ticks.parse().ok()? };
        Some(Self { role: role.into(), process })
    }
}

fn read_at_most(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = File::open(path)?.take(most + 1).read_to_end(&mut bytes)?;
    if u64::try_from(read).unwrap_or(u64::MAX) > most {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("it has more than {most} bytes")));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn child(role: &str, pid: u32) -> ChildRecord {
        ChildRecord { role: role.into(), process: ProcessName { pid, start_ticks: 99 } }
    }

    #[test]
    fn a_record_is_read_as_it_was_written_and_names_this_process() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let details = Details { memory_mib: 192, language: Some("python".into()), ..Details::default() };
        let record = Record::new("vm-1", &details).expect("this process can be named");
        record.write(&dir.path().join("record")).expect("it can be written");
        assert_eq!(Record::read(&dir.path().join("record")).expect("it is there"), record);
        assert_eq!(record.owner.process, ProcessName::of(std::process::id()).expect("it runs"));
        assert_eq!(fs::read_dir(dir.path()).expect("it is there").count(), 1, "nothing unfinished is left");
    }

    #[test]
    fn a_newer_record_is_read_for_what_is_known_of_it_and_an_older_one_for_what_it_has() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("record");
        let text = r#"{"vm_id": "vm-1", "owner": {"pid": 7, "start_ticks": 8, "shoe_size": 9}, "created_unix_ms": 5,
            "memory_mib": 192, "language": "fortran", "gpu": true}"#;
        fs::write(&path, text).expect("it can be written");
        let record = Record::read(&path).expect("it has what is needed");
        assert_eq!(record.details.language.as_deref(), Some("fortran"));
        assert_eq!((record.owner.process.pid, record.owner.program, record.details.image), (7, None, None));
    }

    #[test]
    fn a_record_that_is_none_is_refused() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("record");
        assert!(Record::read(&path).is_err(), "it is not there");
        for text in ["", "{", "[]", r#"{"vm_id": "vm-1"}"#] {
            fs::write(&path, text).expect("it can be written");
            assert!(Record::read(&path).is_err(), "{text}");
        }
        fs::write(&path, " ".repeat(1 << 20)).expect("it can be written");
        let error = Record::read(&path).expect_err("it is too long");
        assert!(error.to_string().contains("16384 bytes"), "{error}");
    }

    #[test]
    fn children_are_added_and_a_line_that_has_not_come_to_its_end_is_not_there_yet() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("children");
        assert_eq!(ChildRecord::read_all(&path).expect("none is no error"), []);
        child(QEMU, 7).append(&path).expect("it can be written");
        child("gateway", 8).append(&path).expect("it can be written");
        assert_eq!(ChildRecord::read_all(&path).expect("it is there"), [child(QEMU, 7), child("gateway", 8)]);
        let text = "qemu 7 99\n\n x\nqemu -1 99\nqemu 7\n\u{fffd}\ngateway 8 99 more\nqemu 1 9";
        assert_eq!(ChildRecord::parse_all(text), [child(QEMU, 7), child("gateway", 8)]);
    }
}
