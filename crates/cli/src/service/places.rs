//! Where a service is found: a socket, a lock and a log beside the directories of its VMs, for this user alone.
//!
//! The lock is held for as long as a service lives and never removed; whoever holds it may remove a socket that is left.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io,
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::PathBuf,
};

use exec_sandbox::SchedulerConfig;
use tokio::net::UnixListener;

use crate::failure::Failure;

/// See the head of this file.
#[derive(Clone, Debug)]
pub(super) struct Places {
    dir: PathBuf,
}

/// Held, no other service can be this user's in this run directory.
#[derive(Debug)]
pub(super) struct Lock {
    places: Places,
    _file: File,
}

impl Places {
    /// Those of a service under `config`. Their directory is there from now on.
    pub(super) fn of(config: &SchedulerConfig) -> Result<Self, Failure> {
        Ok(Self { dir: config.run_dir_in_use()? })
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.dir.join("service")
    }

    pub(super) fn log(&self) -> PathBuf {
        self.dir.join("service.log")
    }

    pub(super) fn lock_file(&self) -> PathBuf {
        self.dir.join("service.lock")
    }

    /// Takes the lock. `None`: it is another's.
    pub(super) fn lock(&self) -> Result<Option<Lock>, Failure> {
        let open = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(self.lock_file());
        let file = open.map_err(|error| Failure::host("opening the service's lock", error))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Lock { places: self.clone(), _file: file })),
            Err(fs::TryLockError::WouldBlock) => Ok(None),
            Err(fs::TryLockError::Error(error)) => Err(Failure::host("taking the service's lock", error)),
        }
    }
}

impl Lock {
    /// Listens where clients look. What a service has left there that was killed is removed.
    pub(super) fn listen(&self) -> io::Result<UnixListener> {
        self.clear()?;
        let socket = self.places.socket();
        let listener = UnixListener::bind(&socket)?;
        fs::set_permissions(&socket, Permissions::from_mode(0o600))?;
        Ok(listener)
    }

    /// Removes the socket: whoever comes from now on finds no service.
    pub(super) fn clear(&self) -> io::Result<()> {
        match fs::remove_file(self.places.socket()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _gone => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    fn places(dir: &tempfile::TempDir) -> Places {
        let config = SchedulerConfig { run_dir: Some(dir.path().join("run")), ..SchedulerConfig::default() };
        Places::of(&config).expect("it can be made")
    }

    #[test]
    fn one_holds_the_lock_and_the_next_after_it() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let places = places(&dir);
        let lock = places.lock().expect("it can be opened").expect("it is free");
        assert!(places.lock().expect("it can be opened").is_none());
        drop(lock);
        assert!(places.lock().expect("it can be opened").is_some());
    }

    #[tokio::test]
    async fn a_socket_is_this_users_alone_and_takes_the_place_of_one_that_was_left() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let places = places(&dir);
        let lock = places.lock().expect("it can be opened").expect("it is free");
        drop(lock.listen().expect("it is free"));
        assert!(places.socket().exists(), "nobody has removed it");
        let _listener = lock.listen().expect("what was left is removed");
        assert_eq!(fs::metadata(places.socket()).expect("it is there").mode() & 0o777, 0o600);
        lock.clear().expect("it is ours");
        lock.clear().expect("it is gone already");
        assert!(!places.socket().exists());
    }

    #[test]
    fn a_directory_that_others_may_write_to_is_refused() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        fs::set_permissions(dir.path(), Permissions::from_mode(0o777)).expect("it is ours");
        let config = SchedulerConfig { run_dir: Some(dir.path().into()), ..SchedulerConfig::default() };
        let failure = Places::of(&config).expect_err("anybody could put a socket there");
        assert!(failure.explain().remedy.is_some_and(|remedy| remedy.contains("EXEC_SANDBOX_RUN_DIR")));
    }
}
