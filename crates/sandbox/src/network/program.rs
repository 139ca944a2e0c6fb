//! The gateway's program: where it is, and what confines it.
//!
//! It belongs to this program and comes with it, so it is looked for beside it. Nobody needs it who runs VMs without a network, so it
//! is looked for when the first VM with one is asked for.

use std::{
    env,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use crate::{
    Error, ErrorKind,
    process::{Confinement, Jail, Missing},
};

/// Its name where it is installed.
const NAME: &str = "exec-sandbox-gateway";

/// What to do about one that is missing.
const REMEDY: &str = "install exec-sandbox-gateway beside this program or on the PATH (in a checkout: \
                      `cargo build --package exec-sandbox-gateway`), or name it in EXEC_SANDBOX_GATEWAY";

/// A gateway that can be started.
#[derive(Debug)]
pub(crate) struct GatewayProgram {
    pub(crate) path: PathBuf,
    pub(crate) jail: Jail,
    /// Why it has no user of its own.
    pub(crate) missing: Option<Missing>,
    build: Build,
}

/// By what a file is known, whatever its name: device, inode, and when it was last changed.
type Build = (u64, u64, i64, i64);

/// Finds the gateway that is `named`, else the one beside this program or on the `PATH`. Blocks for a moment.
pub(crate) fn find(named: Option<&Path>) -> Result<GatewayProgram, Error> {
    let path = match named {
        Some(path) => path.to_owned(),
        None => search().ok_or_else(|| missing(format!("finding the gateway: there is no {NAME}")))?,
    };
    let build = build(&path)
        .ok_or_else(|| missing(format!("finding the gateway: {} is not an executable file", path.display())))?;
    let (jail, missing) = Confinement::of_gateway(&path);
    Ok(GatewayProgram { path, jail, missing, build })
}

impl GatewayProgram {
    /// Whether the file is the one that was examined.
    pub(crate) fn is_current(&self) -> bool {
        build(&self.path) == Some(self.build)
    }
}

fn search() -> Option<PathBuf> {
    let beside = env::current_exe().ok().and_then(|program| program.parent().map(Path::to_owned));
    let on_path = env::var_os("PATH").unwrap_or_default();
    let dirs: Vec<PathBuf> = beside.into_iter().chain(env::split_paths(&on_path)).collect();
    dirs.into_iter().map(|dir| dir.join(NAME)).find(|path| build(path).is_some())
}

/// `None`: it is no file that can be executed.
fn build(path: &Path) -> Option<Build> {
    let metadata = path.metadata().ok().filter(|metadata| metadata.is_file())?;
    rustix::fs::access(path, rustix::fs::Access::EXEC_OK).ok()?;
    Some((metadata.dev(), metadata.ino(), metadata.ctime(), metadata.ctime_nsec()))
}

fn missing(message: String) -> Error {
    Error::new(ErrorKind::Dependency, message).remedied_by(REMEDY)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use super::*;

    #[test]
    fn one_that_is_named_is_examined_and_known_again() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("gateway");
        let error = find(Some(&path)).expect_err("it is not there");
        assert_eq!(error.kind(), ErrorKind::Dependency);
        assert!(error.remedy().is_some_and(|remedy| remedy.contains("EXEC_SANDBOX_GATEWAY")));
        fs::copy("/bin/true", &path).expect("it can be copied");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("it is ours");
        let error = find(Some(&path)).expect_err("it cannot be executed").to_string();
        assert!(error.contains("not an executable file") && error.contains("gateway"), "{error}");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("it is ours");
        let found = find(Some(&path)).expect("it can be executed");
        assert!(found.is_current());
        fs::remove_file(&path).expect("it is ours");
        assert!(!found.is_current());
    }

    #[test]
    fn a_directory_is_no_program() {
        assert!(find(Some(Path::new("/bin"))).is_err());
    }
}
