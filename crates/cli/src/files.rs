//! Files between this host and a VM, as they are named on the command line.
//!
//! Here is what a name means. `upload` reads this host, `download` believes nothing that a guest says, and `target` is the only
//! place that writes to this host's files.

mod download;
mod guest;
mod target;
mod upload;

use std::path::{Path, PathBuf};

pub(crate) use download::{check, download};
pub(crate) use guest::Guest;
pub(crate) use upload::{Plan, upload};

/// `LOCAL[:GUEST]`, understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct UploadSpec {
    /// A file or directory of this host.
    pub(crate) local: PathBuf,
    /// Where it goes, relative to the guest's home directory, which is itself the empty path.
    pub(crate) guest: String,
}

/// `GUEST[:LOCAL]`, understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DownloadSpec {
    /// What is fetched, relative to the guest's home directory, which is itself the empty path.
    pub(crate) guest: String,
    /// Where it goes.
    pub(crate) local: PathBuf,
}

impl UploadSpec {
    pub(crate) fn parse(typed: &str) -> Result<Self, String> {
        let (local, guest) = typed.rsplit_once(':').unwrap_or((typed, ""));
        if local.is_empty() {
            return Err("it names no local file: write LOCAL or LOCAL:GUEST".into());
        }
        let mut path = guest_path(guest)?;
        if guest.is_empty() || guest.ends_with('/') {
            let name = name_of(local).ok_or_else(|| format!("{local} has no name to keep: write {local}:GUEST"))?;
            path = below(&path, &guest_path(name)?);
        }
        Ok(Self { local: local.into(), guest: path })
    }
}

impl DownloadSpec {
    pub(crate) fn parse(typed: &str) -> Result<Self, String> {
        let (guest, local) = typed.rsplit_once(':').unwrap_or((typed, ""));
        if guest.is_empty() {
            return Err("it names no file in the guest: write GUEST or GUEST:LOCAL".into());
        }
        let guest = guest_path(guest)?;
        if !local.is_empty() && !local.ends_with('/') {
            return Ok(Self { guest, local: local.into() });
        }
        let name = name_of(&guest).ok_or("the home directory has no name to keep: write .:LOCAL")?;
        let local = Path::new(local).join(name);
        Ok(Self { guest, local })
    }

    /// What it is called in messages.
    pub(crate) fn label(&self) -> &str {
        if self.guest.is_empty() { "the home directory" } else { &self.guest }
    }
}

/// A path in the guest without what says nothing (`.`, `//`). Whether a link on it leads out, the guest sees.
pub(crate) fn guest_path(typed: &str) -> Result<String, String> {
    if typed.starts_with('/') {
        return Err(format!("{typed} is absolute: name it relative to the home directory, /home/user"));
    }
    let names: Vec<&str> = typed.split('/').filter(|name| !matches!(*name, "" | ".")).collect();
    if names.contains(&"..") {
        return Err(format!("{typed} leads out of the guest's home directory: name it without `..`"));
    }
    Ok(names.join("/"))
}

/// `name` in `directory`, either of which may be the empty path.
fn below(directory: &str, name: &str) -> String {
    match (directory, name) {
        ("", path) | (path, "") => path.to_owned(),
        _ => format!("{directory}/{name}"),
    }
}

fn name_of(path: &str) -> Option<&str> {
    Path::new(path).file_name()?.to_str()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn up(typed: &str) -> Result<(String, String), String> {
        UploadSpec::parse(typed).map(|spec| (spec.local.display().to_string(), spec.guest))
    }

    fn down(typed: &str) -> Result<(String, String), String> {
        DownloadSpec::parse(typed).map(|spec| (spec.guest, spec.local.display().to_string()))
    }

    fn pair(one: &str, other: &str) -> Result<(String, String), String> {
        Ok((one.into(), other.into()))
    }

    #[test]
    fn an_upload_keeps_its_name_unless_it_is_given_one() {
        assert_eq!(up("data/in.csv"), pair("data/in.csv", "in.csv"));
        assert_eq!(up("data/in.csv:"), pair("data/in.csv", "in.csv"));
        assert_eq!(up("data/in.csv:a/./b.csv"), pair("data/in.csv", "a/b.csv"));
        assert_eq!(up("data/in.csv:a/"), pair("data/in.csv", "a/in.csv"));
        assert_eq!(up("data/:."), pair("data/", ""));
        assert_eq!(up("data/"), pair("data/", "data"));
    }

    #[test]
    fn the_last_colon_separates_so_that_a_name_may_have_one() {
        assert_eq!(up("a:b:"), pair("a:b", "a:b"));
        assert_eq!(down("a:b:c"), pair("a:b", "c"));
    }

    #[test]
    fn a_download_goes_by_its_name_to_the_current_directory_unless_it_is_told_where() {
        assert_eq!(down("out/a.csv"), pair("out/a.csv", "a.csv"));
        assert_eq!(down("out/a.csv:b.csv"), pair("out/a.csv", "b.csv"));
        assert_eq!(down("out/a.csv:/tmp/"), pair("out/a.csv", "/tmp/a.csv"));
        assert_eq!(down(".:home"), pair("", "home"));
    }

    #[test]
    fn a_path_that_cannot_be_one_in_the_home_directory_is_refused_with_the_remedy() {
        for wrong in ["a:/etc/passwd", "a:../x", "a:b/../../c", "..", "/", ".", ":x", ""] {
            assert!(up(wrong).expect_err(wrong).contains(':'), "{wrong}");
        }
        for wrong in ["/etc/passwd", "../x:y", "a/..", ".", ":x", ""] {
            assert!(down(wrong).expect_err(wrong).contains(':'), "{wrong}");
        }
    }
}
