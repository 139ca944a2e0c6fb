//! Uploads: what is named on the command line → files of this host → a guest.
//!
//! Everything is found and counted before a VM is started, so that a missing file costs no boot. Links inside a directory are left
//! out: what they point to may lie outside, and nobody has named it.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use exec_sandbox::{MAX_LISTED_ENTRIES, WriteOptions};
use tokio::io::AsyncReadExt as _;

use super::{Guest, UploadSpec, below};
use crate::{failure::Failure, meter::Meter};

/// What is to be sent.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    items: Vec<Item>,
    /// Bytes of all files.
    pub(crate) bytes: u64,
    /// Links, devices and the like that are not sent.
    pub(crate) left_out: usize,
}

#[derive(Debug, PartialEq, Eq)]
enum Item {
    File {
        local: PathBuf,
        guest: String,
        mode: u32,
    },
    /// A directory with nothing in it. The others come with their files.
    Directory {
        local: PathBuf,
        guest: String,
    },
}

impl Plan {
    /// Finds what `specs` name.
    pub(crate) fn of(specs: &[UploadSpec]) -> Result<Self, Failure> {
        let mut plan = Self::default();
        for spec in specs {
            let UploadSpec { local, guest } = spec;
            let metadata = fs::metadata(local).map_err(|error| unreadable(local, &error))?;
            if metadata.is_dir() {
                plan.add_tree(local, guest)?;
            } else if !metadata.is_file() {
                let message = format!("--upload {}: it is neither a file nor a directory", local.display());
                return Err(Failure::usage(message, "save it to a file first"));
            } else if guest.is_empty() {
                let message = format!("--upload {}: a file cannot be the home directory", local.display());
                return Err(Failure::usage(message, "say what it is called there: LOCAL:GUEST"));
            } else {
                plan.add_file(local.clone(), guest.clone(), &metadata);
            }
        }
        Ok(plan)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    fn add_file(&mut self, local: PathBuf, guest: String, metadata: &fs::Metadata) {
        let mode = if metadata.permissions().mode() & 0o111 == 0 { 0o644 } else { 0o755 };
        self.bytes = self.bytes.saturating_add(metadata.len());
        self.items.push(Item::File { local, guest, mode });
    }

    fn add_tree(&mut self, local: &Path, guest: &str) -> Result<(), Failure> {
        let mut open = vec![(local.to_owned(), guest.to_owned())];
        while let Some((local, guest)) = open.pop() {
            let listed = fs::read_dir(&local).and_then(Iterator::collect::<io::Result<Vec<_>>>);
            let mut entries = listed.map_err(|error| unreadable(&local, &error))?;
            if self.items.len() + open.len() + entries.len() > MAX_LISTED_ENTRIES {
                let message = format!("--upload {}: over {MAX_LISTED_ENTRIES} entries", local.display());
                return Err(Failure::usage(message, "pack them into an archive"));
            }
            entries.sort_by_key(fs::DirEntry::file_name);
            if entries.is_empty() {
                self.items.push(Item::Directory { local, guest });
                continue;
            }
            for entry in entries {
                let path = entry.path();
                let Ok(name) = entry.file_name().into_string() else {
                    let message = format!("--upload {}: its name is not UTF-8 text", path.display());
                    return Err(Failure::usage(message, "rename it"));
                };
                let metadata = entry.metadata().map_err(|error| unreadable(&path, &error))?;
                if metadata.is_dir() {
                    open.push((path, below(&guest, &name)));
                } else if metadata.is_file() {
                    self.add_file(path, below(&guest, &name), &metadata);
                } else {
                    self.left_out += 1;
                }
            }
        }
        Ok(())
    }
}

/// Sends what `plan` holds, one file after the other.
pub(crate) async fn upload(guest: &impl Guest, plan: &Plan, meter: &Meter) -> Result<(), Failure> {
    for item in &plan.items {
        let (local, sent) = match item {
            Item::File { local, guest: path, mode } => (local, send(guest, local, path, *mode, meter).await),
            // The home directory is there.
            Item::Directory { guest: path, .. } if path.is_empty() => continue,
            Item::Directory { local, guest: path } => (local, guest.make_dir(path).await),
        };
        sent.map_err(|cause| Failure::transfer(format!("uploading {}", local.display()), cause))?;
    }
    Ok(())
}

async fn send(guest: &impl Guest, local: &Path, path: &str, mode: u32, meter: &Meter) -> Result<(), Failure> {
    let opening = |error| Failure::host("opening it", error);
    let file = tokio::fs::File::open(local).await.map_err(opening)?;
    let size = file.metadata().await.map_err(opening)?.len();
    // A file that grows meanwhile is sent as it was.
    guest.write(path, meter.count(file.take(size)), WriteOptions { mode: Some(mode), size: Some(size) }).await
}

fn unreadable(local: &Path, error: &io::Error) -> Failure {
    Failure::usage(format!("--upload {}: {error}", local.display()), "name a file or directory that can be read")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::{super::guest::pretend::Pretend, *};
    use crate::progress::Progress;

    fn spec(local: PathBuf, guest: &str) -> UploadSpec {
        UploadSpec { local, guest: guest.into() }
    }

    #[tokio::test]
    async fn a_tree_arrives_with_its_empty_directories_and_executable_bits_and_without_its_links() {
        let root = tempfile::tempdir().expect("a directory is made");
        let at = |name: &str| root.path().join(name);
        fs::create_dir_all(at("a/b")).expect("it is made");
        fs::create_dir(at("empty")).expect("it is made");
        fs::write(at("a/b/é 1.txt"), "one").expect("it is written");
        fs::write(at("run.sh"), "").expect("it is written");
        fs::set_permissions(at("run.sh"), fs::Permissions::from_mode(0o750)).expect("it is ours");
        symlink("/etc/passwd", at("a/link")).expect("it is made");
        let plan = Plan::of(&[spec(root.path().into(), "in")]).expect("all of it is there");
        assert_eq!((plan.bytes, plan.left_out), (3, 1));

        let guest = Pretend::default();
        let meter = Meter::new(Progress::start("", false), "uploading", plan.bytes);
        upload(&guest, &plan, &meter).await.expect("it is sent");
        let files: Vec<_> = guest.files.take().into_iter().collect();
        let file = |path: &str, content: &str, mode| (path.to_owned(), (content.as_bytes().to_vec(), mode));
        assert_eq!(files, [file("in/a/b/é 1.txt", "one", 0o644), file("in/run.sh", "", 0o755)]);
        assert_eq!(guest.directories.take(), ["in/empty"]);
    }

    #[test]
    fn what_is_missing_or_no_file_is_refused_by_the_name_of_the_option() {
        for local in ["/no/such/file", "/dev/null"] {
            let failure = Plan::of(&[spec(local.into(), "x")]).expect_err(local);
            let told = failure.explain();
            assert!(told.message.starts_with(&format!("--upload {local}: ")), "{told:?}");
            assert!(told.remedy.is_some() && failure.status() == crate::exit::Status::USAGE);
        }
    }

    #[test]
    fn a_file_cannot_take_the_place_of_the_home_directory_and_a_tree_can() {
        let root = tempfile::tempdir().expect("a directory is made");
        let file = root.path().join("a");
        fs::write(&file, "").expect("it is written");
        assert!(Plan::of(&[spec(file, "")]).is_err());
        let plan = Plan::of(&[spec(root.path().into(), "")]).expect("a tree can");
        assert!(matches!(&plan.items[..], [Item::File { guest, .. }] if guest == "a"), "{plan:?}");
    }
}
