//! The library's log: silent unless `EXEC_SANDBOX_LOG_LEVEL` names a level, and then on standard error.

use std::{
    fs::File,
    io::{self, Write},
    os::fd::AsFd as _,
    sync::Mutex,
};

use tracing_subscriber::filter::LevelFilter;

use crate::failure::Failure;

const VARIABLE: &str = "EXEC_SANDBOX_LOG_LEVEL";

/// Longest log of a process that nobody watches: some thousand lines, and little of a file system in memory.
const MAX_FILE_BYTES: u64 = 1024 * 1024;

/// A file that begins again when it is full. Everybody who writes to it appends.
struct Bounded(File);

impl Write for Bounded {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.0.metadata()?.len() >= MAX_FILE_BYTES {
            self.0.set_len(0)?;
        }
        self.0.write(line)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Starts the log that the environment asks for.
pub(crate) fn start() -> Result<(), Failure> {
    let Some(level) = level(std::env::var(VARIABLE).ok().as_deref())? else { return Ok(()) };
    tracing_subscriber::fmt().with_max_level(level).with_writer(io::stderr).init();
    Ok(())
}

/// Starts the log of a process whose standard error is a file: warnings, or what the environment asks for.
pub(crate) fn start_bounded() -> Result<(), Failure> {
    let level = level(std::env::var(VARIABLE).ok().as_deref())?.unwrap_or(LevelFilter::WARN);
    let file = io::stderr().as_fd().try_clone_to_owned().map_err(|error| Failure::host("opening the log", error))?;
    let file = Mutex::new(Bounded(file.into()));
    tracing_subscriber::fmt().with_max_level(level).with_ansi(false).with_writer(file).init();
    Ok(())
}

fn level(value: Option<&str>) -> Result<Option<LevelFilter>, Failure> {
    let Some(name) = value.map(str::trim).filter(|name| !name.is_empty()) else { return Ok(None) };
    // Python's names for the same levels are understood, because the variable is shared with the Python package.
    let name = match name.to_ascii_lowercase().as_str() {
        "warning" => "warn".into(),
        "critical" => "error".into(),
        other => other.to_owned(),
    };
    name.parse().map(Some).map_err(|_| {
        Failure::usage(
            format!("{VARIABLE} is {name:?}, which is no level"),
            "use error, warn, info, debug, trace or off",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_that_is_full_begins_again() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("log");
        let file = File::options().create(true).append(true).open(&path).expect("it is new");
        let mut log = Bounded(file);
        let line = [b'x'; 1000];
        for _ in 0..=MAX_FILE_BYTES / 1000 {
            log.write_all(&line).expect("there is room");
        }
        assert!(path.metadata().expect("it is there").len() > MAX_FILE_BYTES);
        log.write_all(b"last\n").expect("there is room");
        assert_eq!(std::fs::read(&path).expect("it is there"), b"last\n");
    }

    #[test]
    fn nothing_is_logged_unless_it_is_asked_for() {
        assert!(matches!(level(None), Ok(None)));
        assert!(matches!(level(Some(" ")), Ok(None)));
    }

    #[test]
    fn levels_are_understood_in_both_dialects() {
        assert_eq!(level(Some("debug")).ok(), Some(Some(LevelFilter::DEBUG)));
        assert_eq!(level(Some("WARNING")).ok(), Some(Some(LevelFilter::WARN)));
        assert!(level(Some("loud")).is_err());
    }
}
