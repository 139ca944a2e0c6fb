//! Downloads: what a guest has → files of this host.
//!
//! The guest is hostile: it may list any name, any kind and any size. A name is taken apart into steps that `target` checks, links
//! and devices are left out, and of the permissions only the executable bit is believed.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use exec_sandbox::FileType;

use super::{DownloadSpec, Guest, below, guest::Entry, target::Folder};
use crate::{failure::Failure, meter::Meter};

/// Refuses, before anything has run, downloads that could not be kept, or that would be kept in the same place.
pub(crate) fn check(specs: &[DownloadSpec], sources: usize) -> Result<(), Failure> {
    if sources > 1 && !specs.is_empty() {
        let message = format!("--download with {sources} sources: each would write to the same place");
        return Err(Failure::usage(message, "run the sources one at a time, each with a LOCAL of its own"));
    }
    for (number, spec) in specs.iter().enumerate() {
        let local = spec.local.display();
        if specs[..number].iter().any(|other| other.local == spec.local) {
            let message = format!("--download {}: another one goes to {local} too", spec.label());
            return Err(Failure::usage(message, "give each a LOCAL of its own: GUEST:LOCAL"));
        }
        let parent = spec.local.parent().filter(|parent| !parent.as_os_str().is_empty());
        if let Some(parent) = parent.filter(|parent| !parent.is_dir()) {
            let message = format!("--download {}: there is no directory {}", spec.label(), parent.display());
            return Err(Failure::usage(message, "make it first"));
        }
        if fs::metadata(&spec.local).is_ok_and(|found| !found.is_file() && !found.is_dir()) {
            let message = format!("--download {}: {local} is neither a file nor a directory", spec.label());
            return Err(Failure::usage(message, "name a file or a directory as LOCAL"));
        }
    }
    Ok(())
}

/// Fetches what `spec` names; returns how many links, devices and the like in a directory were left out.
pub(crate) async fn download(guest: &impl Guest, spec: &DownloadSpec, meter: &Meter) -> Result<usize, Failure> {
    let doing = |cause| Failure::transfer(format!("downloading {}", spec.label()), cause);
    let found = if spec.guest.is_empty() {
        Entry { name: String::new(), kind: FileType::Directory, size: 0, mode: 0o755 }
    } else {
        guest.stat(&spec.guest).await.map_err(doing)?
    };
    match found.kind {
        FileType::Directory => fetch_tree(guest, spec, meter).await,
        // Where a link leads, the guest decides among its own files.
        FileType::File | FileType::Link => {
            meter.expect(found.size);
            fetch_named(guest, spec, &found, meter).await.map_err(doing)?;
            Ok(0)
        }
        _ => Err(doing(Failure::host("examining it", io::Error::other("it is neither a file nor a directory")))),
    }
}

async fn fetch_named(guest: &impl Guest, spec: &DownloadSpec, found: &Entry, meter: &Meter) -> Result<(), Failure> {
    let writing =
        |error| Failure::transfer(format!("writing {}", spec.local.display()), Failure::host("opening it", error));
    let local = resolved(&spec.local).map_err(writing)?;
    let (Some(parent), Some(name)) = (local.parent(), local.file_name().and_then(|name| name.to_str())) else {
        return Err(writing(io::Error::other("it has no name that is UTF-8 text")));
    };
    let folder = Folder::open(parent).map_err(writing)?;
    fetch(guest, &spec.guest, (&folder, name), found.mode, meter).await
}

/// A link that the user named stands for what it points to; one that a guest named is never followed.
fn resolved(local: &Path) -> io::Result<PathBuf> {
    match fs::symlink_metadata(local) {
        Ok(found) if found.is_symlink() => fs::canonicalize(local),
        _ => Ok(local.to_owned()),
    }
}

async fn fetch_tree(guest: &impl Guest, spec: &DownloadSpec, meter: &Meter) -> Result<usize, Failure> {
    let doing =
        |name: &str, cause| Failure::transfer(format!("downloading {}", shown(&below(&spec.guest, name), spec)), cause);
    let writing = |error| Failure::host("writing it", error);
    let entries = guest.tree(&spec.guest).await.map_err(|cause| doing("", cause))?;
    let root = root(&spec.local).map_err(|error| doing("", writing(error)))?;
    let sizes = entries.iter().filter(|entry| entry.kind == FileType::File).map(|entry| entry.size);
    meter.expect(sizes.fold(0, u64::saturating_add));
    let mut left_out = 0;
    for Entry { name, kind, mode, .. } in entries {
        let fetched = match kind {
            FileType::Directory => enter(&root, &name).map(drop).map_err(writing),
            FileType::File => {
                let (way, last) = name.rsplit_once('/').map_or((None, name.as_str()), |(way, last)| (Some(way), last));
                match way.map(|way| enter(&root, way)).transpose() {
                    Ok(inner) => {
                        let folder = inner.as_ref().unwrap_or(&root);
                        fetch(guest, &below(&spec.guest, &name), (folder, last), mode, meter).await
                    }
                    Err(error) => Err(writing(error)),
                }
            }
            _ => {
                left_out += 1;
                Ok(())
            }
        };
        fetched.map_err(|cause| doing(&name, cause))?;
    }
    Ok(left_out)
}

/// The directory that a tree goes into, made if it is not there.
fn root(local: &Path) -> io::Result<Folder> {
    match fs::create_dir(local) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error),
    }
    Folder::open(local)
}

/// The directory that is `way` below `root`, made as far as it is not there.
fn enter(root: &Folder, way: &str) -> io::Result<Folder> {
    let mut steps = way.split('/');
    let mut folder = root.enter(steps.next().unwrap_or_default())?;
    for step in steps {
        folder = folder.enter(step)?;
    }
    Ok(folder)
}

/// Fetches one file, which appears when all of it has arrived.
async fn fetch(
    guest: &impl Guest,
    path: &str,
    (folder, name): (&Folder, &str),
    mode: u32,
    meter: &Meter,
) -> Result<(), Failure> {
    let writing = |error| Failure::host("writing it", error);
    let (draft, file): (_, File) = folder.draft(name, mode & 0o111 != 0).map_err(writing)?;
    guest.read(path, meter.count(tokio::fs::File::from_std(file))).await?;
    draft.keep().map_err(writing)
}

/// A path that a guest named, without what steers a terminal.
fn shown(path: &str, spec: &DownloadSpec) -> String {
    if path.is_empty() {
        return spec.label().to_owned();
    }
    path.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::{super::guest::pretend::Pretend, *};
    use crate::{exit::Status, progress::Progress};

    fn meter() -> Meter {
        Meter::new(Progress::start("", false), "downloading", 0)
    }

    fn spec(guest: &str, local: PathBuf) -> DownloadSpec {
        DownloadSpec { guest: guest.into(), local }
    }

    fn lie(name: &str, kind: FileType) -> Entry {
        Entry { name: name.into(), kind, size: 1, mode: 0o644 }
    }

    fn names(path: &Path) -> Vec<String> {
        let entries = fs::read_dir(path).expect("it is there").map(|entry| entry.expect("it can be read").file_name());
        let mut names: Vec<String> = entries.map(|name| name.into_string().expect("it is text")).collect();
        names.sort();
        names
    }

    #[tokio::test]
    async fn a_file_and_a_tree_arrive_as_they_were() {
        let root = tempfile::tempdir().expect("a directory is made");
        let guest = Pretend::with(&[("out/é/1", b"one", 0o644), ("out/run", b"", 0o755), ("log", b"\xff\0", 0o600)]);
        guest.directories.borrow_mut().push("out/empty".into());
        let (log, out) = (root.path().join("log.txt"), root.path().join("out"));
        download(&guest, &spec("log", log.clone()), &meter()).await.expect("it is there");
        assert_eq!(fs::read(log).expect("it arrived"), b"\xff\0");
        download(&guest, &spec("out", out.clone()), &meter()).await.expect("it is there");
        assert_eq!(names(&out), ["empty", "run", "é"]);
        assert_eq!(fs::read(out.join("é/1")).expect("it arrived"), b"one");
        assert_eq!(fs::metadata(out.join("run")).expect("it arrived").permissions().mode() & 0o100, 0o100);
        assert_eq!(fs::metadata(out.join("é/1")).expect("it arrived").permissions().mode() & 0o111, 0);
    }

    #[tokio::test]
    async fn whatever_names_a_guest_gives_nothing_is_written_outside() {
        let above = tempfile::tempdir().expect("a directory is made");
        let out = above.path().join("out");
        for name in ["../evil", "/tmp/sbx-evil", "a/../../evil", "a//b", "", ".", "..", "a/", "b\0c"] {
            for kind in [FileType::File, FileType::Directory] {
                let guest = Pretend { lies: vec![lie(name, kind)], ..Pretend::with(&[("out/a/x", b"1", 0o644)]) };
                let failure = download(&guest, &spec("out", out.clone()), &meter()).await.expect_err(name);
                assert_eq!(failure.status(), Status::SANDBOX, "{name:?}");
                assert_eq!(names(above.path()), ["out"], "{name:?}");
            }
        }
        assert!(!Path::new("/tmp/sbx-evil").exists());
    }

    #[tokio::test]
    async fn a_link_that_is_here_is_not_followed_and_one_that_is_there_is_left_out() {
        let above = tempfile::tempdir().expect("a directory is made");
        let (out, precious) = (above.path().join("out"), above.path().join("precious"));
        fs::create_dir(&out).expect("it is made");
        fs::create_dir(&precious).expect("it is made");
        symlink(&precious, out.join("a")).expect("it is made");
        let guest = Pretend::with(&[("out/a/x", b"1", 0o644)]);
        let failure = download(&guest, &spec("out", out.clone()), &meter()).await.expect_err("it leads out");
        assert_eq!(failure.explain().message, "downloading out/a/x");
        assert_eq!(names(&precious), Vec::<String>::new());

        let lies = vec![lie("link", FileType::Link), lie("fifo", FileType::Other)];
        let guest = Pretend { lies, ..Pretend::with(&[("tree/b", b"1", 0o644)]) };
        assert_eq!(download(&guest, &spec("tree", out.clone()), &meter()).await.expect("the rest is there"), 2);
        assert_eq!(names(&out), ["a", "b"]);
    }

    #[tokio::test]
    async fn a_download_that_fails_names_the_file_and_leaves_nothing() {
        let root = tempfile::tempdir().expect("a directory is made");
        let missing = spec("no/such", root.path().join("x"));
        let failure = download(&Pretend::default(), &missing, &meter()).await.expect_err("it is not there");
        assert_eq!(failure.explain().message, "downloading no/such");
        let guest = Pretend { lies: vec![lie("ghost", FileType::File)], ..Pretend::with(&[("d/a", b"1", 0o644)]) };
        let failure = download(&guest, &spec("d", root.path().join("d")), &meter()).await.expect_err("a ghost");
        assert_eq!(failure.explain().message, "downloading d/ghost");
        assert_eq!(names(&root.path().join("d")), Vec::<String>::new());
    }

    #[tokio::test]
    async fn a_file_does_not_take_a_directorys_place_nor_the_other_way_round() {
        let root = tempfile::tempdir().expect("a directory is made");
        let (file, directory) = (root.path().join("file"), root.path().join("directory"));
        fs::write(&file, "kept").expect("it is written");
        fs::create_dir(&directory).expect("it is made");
        let guest = Pretend::with(&[("f", b"1", 0o644), ("d/x", b"1", 0o644)]);
        assert!(download(&guest, &spec("f", directory.clone()), &meter()).await.is_err());
        assert!(download(&guest, &spec("d", file.clone()), &meter()).await.is_err());
        assert_eq!(fs::read(file).expect("it is there"), b"kept");
        assert_eq!(names(&directory), Vec::<String>::new());
    }

    #[test]
    fn downloads_that_could_not_be_kept_are_refused_before_anything_runs() {
        let one = || spec("a", "a".into());
        assert!(check(&[one(), spec("b", "b".into())], 1).is_ok());
        let told =
            |specs: &[DownloadSpec], sources| check(specs, sources).expect_err("it is refused").explain().message;
        assert!(told(&[one()], 2).contains("--download with 2 sources"));
        assert!(told(&[one(), one()], 1).contains("another one goes to a too"));
        assert!(told(&[spec("a", "/no/such/a".into())], 1).contains("there is no directory /no/such"));
        assert!(told(&[spec("a", "/dev/null".into())], 1).contains("/dev/null is neither"));
    }
}
