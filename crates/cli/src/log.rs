//! The library's log: silent unless `EXEC_SANDBOX_LOG_LEVEL` names a level, and then on standard error.

use tracing_subscriber::filter::LevelFilter;

use crate::failure::Failure;

const VARIABLE: &str = "EXEC_SANDBOX_LOG_LEVEL";

/// Starts the log that the environment asks for.
pub(crate) fn start() -> Result<(), Failure> {
    let Some(level) = level(std::env::var(VARIABLE).ok().as_deref())? else { return Ok(()) };
    tracing_subscriber::fmt().with_max_level(level).with_writer(std::io::stderr).init();
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
