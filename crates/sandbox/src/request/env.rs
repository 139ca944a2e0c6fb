//! Environment variables: which a caller may give to a program.
//!
//! The program may set what it likes once it runs. Refused is what would change how the loader or the interpreter starts,
//! because the interpreter runs already and the caller would be told nothing.

use crate::{Error, ErrorKind};

/// Most variables of one execution.
const MAX_VARIABLES: usize = 100;
/// Longest name, in characters.
const MAX_NAME_CHARS: usize = 256;
/// Longest value, in characters.
const MAX_VALUE_CHARS: usize = 4096;

/// Names that steer a loader or an interpreter's start, in upper case.
const BLOCKED: &[&str] = &[
    "BASHOPTS",
    "BASH_ENV",
    "BASH_XTRACEFD",
    "BUN_OPTIONS",
    "ENV",
    "GCONV_PATH",
    "GLIBC_TUNABLES",
    "IFS",
    "NODE_OPTIONS",
    "NODE_PATH",
    "PATH",
    "PROMPT_COMMAND",
    "PS4",
    "PYTHONBREAKPOINT",
    "PYTHONEXECUTABLE",
    "PYTHONHOME",
    "PYTHONINSPECT",
    "PYTHONPATH",
    "PYTHONPLATLIBDIR",
    "PYTHONSTARTUP",
    "PYTHONUSERBASE",
    "PYTHONWARNINGS",
    "SHELLOPTS",
];

/// Beginnings of names that steer a loader or a shell's start, in upper case.
const BLOCKED_PREFIXES: &[&str] = &["BASH_FUNC_", "BUN_INSPECT", "LD_"];

/// Checks the variables of one execution.
pub(super) fn check(variables: &[(String, String)]) -> Result<(), Error> {
    if variables.len() > MAX_VARIABLES {
        return Err(refused(format!("Too many environment variables: {} (max {MAX_VARIABLES})", variables.len())));
    }
    variables.iter().try_for_each(|(name, value)| check_one(name, value))
}

fn check_one(name: &str, value: &str) -> Result<(), Error> {
    let shown: String = name.chars().take(40).collect();
    let length = name.chars().count();
    if length == 0 || length > MAX_NAME_CHARS {
        return Err(refused(format!(
            "Environment variable name {shown:?} must have 1 to {MAX_NAME_CHARS} characters, not {length}"
        )));
    }
    if name.contains('=') || name.chars().any(is_control) {
        return Err(refused(format!("Environment variable name {shown:?} contains '=' or a control character")));
    }
    let upper = name.to_uppercase();
    if BLOCKED.contains(&upper.as_str()) || BLOCKED_PREFIXES.iter().any(|prefix| upper.starts_with(prefix)) {
        return Err(refused(format!(
            "Environment variable {shown:?} is blocked: it steers a loader or an interpreter"
        )));
    }
    let length = value.chars().count();
    if length > MAX_VALUE_CHARS {
        return Err(refused(format!(
            "Environment variable {shown:?} has a value of {length} characters (max {MAX_VALUE_CHARS})"
        )));
    }
    if value.chars().any(|c| c != '\t' && is_control(c)) {
        return Err(refused(format!("Environment variable {shown:?} has a value with a control character")));
    }
    Ok(())
}

fn is_control(c: char) -> bool {
    c < ' ' || c == '\u{7f}'
}

fn refused(message: String) -> Error {
    Error::new(ErrorKind::InvalidEnv, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(name: &str, value: &str) -> Option<String> {
        check(&[(name.into(), value.into())]).err().map(|error| error.to_string())
    }

    #[test]
    fn ordinary_variables_are_allowed() {
        for (name, value) in
            [("A", ""), ("API_KEY", "s3cr=t"), ("TEXT", "with\ttab and ünïcode"), ("LDAP", "x"), ("MY_PATH", "/")]
        {
            assert_eq!(message(name, value), None, "{name}");
        }
    }

    #[test]
    fn names_that_steer_a_start_are_blocked_in_any_case() {
        for name in [
            "PATH",
            "path",
            "LD_PRELOAD",
            "ld_audit",
            "PythonPath",
            "NODE_OPTIONS",
            "BASH_ENV",
            "IFS",
            "BASH_FUNC_ls%%",
        ] {
            assert!(message(name, "x").is_some_and(|text| text.contains("blocked")), "{name}");
        }
    }

    #[test]
    fn control_characters_are_refused_but_a_tab_in_a_value() {
        for (name, value) in [("A\n", "x"), ("A\t", "x"), ("A=B", "x"), ("A", "a\nb"), ("A", "\u{7f}"), ("A", "\0")] {
            assert!(message(name, value).is_some(), "{name:?}={value:?}");
        }
    }

    #[test]
    fn lengths_and_the_number_have_a_limit() {
        assert_eq!(message(&"n".repeat(256), &"v".repeat(4096)), None);
        assert!(message(&"n".repeat(257), "").is_some());
        assert!(message("", "").is_some());
        assert!(message("A", &"v".repeat(4097)).is_some());
        let many: Vec<_> = (0..101).map(|n| (format!("A{n}"), String::new())).collect();
        assert!(check(&many).is_err());
        assert!(check(&many[..100]).is_ok());
    }
}
