//! Ids: what VMs, tenants and tasks may be called.
//!
//! An id is a directory's name, a word of QEMU's command line and a line of a log, so it has nothing in it that any of them reads.

use crate::{Error, ErrorKind};

/// Longest id. A socket's path has 108 bytes, but that is for the run directory to find out: tenants and tasks are in no path.
const MAX_ID_BYTES: usize = 128;

/// Whether `value` may be an id: 1 to 128 of `A-Z a-z 0-9 _ -`.
pub(crate) fn is_id(value: &str) -> bool {
    (1..=MAX_ID_BYTES).contains(&value.len()) && value.bytes().all(is_id_byte)
}

/// Whether `byte` may be part of an id.
pub(crate) fn is_id_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-')
}

/// Refuses a `value` of the field `name` that is no id.
pub(crate) fn check_id(name: &str, value: &str) -> Result<(), Error> {
    if is_id(value) {
        return Ok(());
    }
    let shown: String = value.chars().take(MAX_ID_BYTES).collect();
    let message = format!("{name} must be 1 to {MAX_ID_BYTES} letters, digits, `_` or `-`, not {shown:?}");
    Err(Error::new(ErrorKind::InvalidConfig, message))
}

/// The one of `all` that `typed` stands for: the one it is, or else the only one that begins with it. If there is none, those that it
/// could stand for, sorted.
pub(crate) fn resolve<'a>(typed: &str, all: &'a [String]) -> Result<&'a str, Vec<String>> {
    if let Some(exact) = all.iter().find(|id| *id == typed) {
        return Ok(exact);
    }
    let mut candidates: Vec<&String> = all.iter().filter(|id| id.starts_with(typed)).collect();
    candidates.sort();
    match candidates[..] {
        [only] => Ok(only),
        _ => Err(candidates.into_iter().cloned().collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_a_word_and_nothing_that_a_path_or_a_terminal_reads() {
        for good in ["a", "vm-0a1b", "Task_7", &"x".repeat(MAX_ID_BYTES)] {
            assert!(check_id("task_id", good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "a b", "a\n", "é", "a\0", &"x".repeat(MAX_ID_BYTES + 1)] {
            let error = check_id("task_id", bad).expect_err(bad);
            assert_eq!(error.kind(), ErrorKind::InvalidConfig);
            assert!(error.to_string().starts_with("task_id must be"), "{error}");
        }
    }
}
