//! Entries: what is asked for and offered, and the names in it.
//!
//! An entry is one thing that was made: a layer, a snapshot. It has a name, a few files, and a text of facts that is its maker's alone. Every
//! name is checked here, once, so that it can stand in a path and in an object's name as it is.

use std::{collections::BTreeSet, fmt, fs::File, sync::Arc};

use crate::digest::is_digest;

/// Longest facts. They say what a key is made of and are read by people.
pub const MAX_FACTS_BYTES: usize = 64 * 1024;

/// Most files of an entry. A snapshot has two.
pub const MAX_FILES: usize = 16;

/// Longest name of a file: what any file system takes, with room for an ending.
const MAX_NAME_BYTES: usize = 128;

/// Longest kind.
const MAX_KIND_BYTES: usize = 32;

/// The kind that would lie among the blobs.
const RESERVED_KIND: &str = "blobs";

/// The name of an entry: what kind of thing it is, and the digest of all that shapes it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EntryName {
    kind: String,
    key: String,
}

/// An entry to be kept.
#[derive(Debug)]
pub struct Offer {
    pub(crate) name: EntryName,
    pub(crate) facts: String,
    pub(crate) files: Vec<(String, Arc<File>)>,
}

/// Why a name or an offer was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    /// A kind that is no short word.
    #[error("{0:?} is not a kind (a-z, then also 0-9 and '-'; at most {MAX_KIND_BYTES} bytes; not {RESERVED_KIND:?})")]
    Kind(String),
    /// A key that is no digest.
    #[error("{0:?} is not a key (64 lower-case hex digits)")]
    Key(String),
    /// A name that a file cannot have in any directory, or that reaches out of it.
    #[error("{0:?} is not a file's name (letters and digits, then also '.', '_', '-'; at most {MAX_NAME_BYTES} bytes)")]
    FileName(String),
    /// Two files of one name.
    #[error("there are two files {0:?}")]
    Twice(String),
    /// No file, or too many.
    #[error("an entry has 1 to {MAX_FILES} files and not {0}")]
    Files(usize),
    /// Facts that are too long.
    #[error("the facts have {0} bytes, {MAX_FACTS_BYTES} are possible")]
    Facts(usize),
}

impl EntryName {
    /// The entry of `kind`, a short word, with `key`, a digest in hexadecimal.
    ///
    /// # Errors
    /// A kind or key that could not stand in a path.
    pub fn new(kind: &str, key: &str) -> Result<Self, EntryError> {
        let mut bytes = kind.bytes();
        let is_kind = kind.len() <= MAX_KIND_BYTES
            && kind != RESERVED_KIND
            && bytes.next().is_some_and(|first| first.is_ascii_lowercase())
            && bytes.all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
        if !is_kind {
            return Err(EntryError::Kind(kind.to_owned()));
        }
        if !is_digest(key) {
            return Err(EntryError::Key(key.to_owned()));
        }
        Ok(Self { kind: kind.to_owned(), key: key.to_owned() })
    }

    /// What kind of thing it is.
    #[must_use]
    pub fn kind(&self) -> &str {
        &self.kind
    }

    /// The digest of all that shapes it.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.key
    }
}

impl fmt::Display for EntryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kind, self.key)
    }
}

impl Offer {
    /// An entry with these facts and files. A file is read through its descriptor, at places of its own, so it may lose its name
    /// meanwhile; it may not be written to.
    ///
    /// # Errors
    /// Names, numbers or facts out of bounds.
    pub fn new(name: EntryName, facts: String, files: Vec<(String, File)>) -> Result<Self, EntryError> {
        check_facts(&facts)?;
        check_names(files.iter().map(|(name, _)| name.as_str()))?;
        let files = files.into_iter().map(|(name, file)| (name, Arc::new(file))).collect();
        Ok(Self { name, facts, files })
    }
}

pub(crate) fn check_facts(facts: &str) -> Result<(), EntryError> {
    if facts.len() > MAX_FACTS_BYTES { Err(EntryError::Facts(facts.len())) } else { Ok(()) }
}

/// Names of an entry's files: plain, different, and neither none nor too many.
pub(crate) fn check_names<'a>(names: impl Iterator<Item = &'a str>) -> Result<(), EntryError> {
    let mut seen = BTreeSet::new();
    for name in names {
        if !is_plain(name) {
            return Err(EntryError::FileName(name.to_owned()));
        }
        if !seen.insert(name) {
            return Err(EntryError::Twice(name.to_owned()));
        }
    }
    if seen.is_empty() || seen.len() > MAX_FILES { Err(EntryError::Files(seen.len())) } else { Ok(()) }
}

fn is_plain(name: &str) -> bool {
    let mut bytes = name.bytes();
    name.len() <= MAX_NAME_BYTES
        && bytes.next().is_some_and(|first| first.is_ascii_alphanumeric())
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_is_a_short_word_and_not_where_blobs_are() {
        let key = "0".repeat(64);
        assert_eq!(EntryName::new("layer-2", &key).unwrap().to_string(), format!("layer-2/{key}"));
        for kind in ["", "Layer", "a/b", "..", "2nd", "blobs", "a.b", &"a".repeat(33)] {
            assert_eq!(EntryName::new(kind, &key), Err(EntryError::Kind(kind.into())));
        }
        for key in ["", "a", &key[1..], &format!("{key}0"), &"A".repeat(64), &"../".repeat(21)] {
            assert_eq!(EntryName::new("layer", key), Err(EntryError::Key(key.into())));
        }
    }

    #[test]
    fn a_file_has_a_plain_name_of_its_own() {
        assert_eq!(check_names(["ram", "state", "0.ext4"].into_iter()), Ok(()));
        for bad in ["", ".", "..", ".hidden", "-rf", "a/b", "a\\b", "a b", "a\0", &"a".repeat(129)] {
            assert_eq!(check_names([bad].into_iter()), Err(EntryError::FileName(bad.into())));
        }
        assert_eq!(check_names(["a", "b", "a"].into_iter()), Err(EntryError::Twice("a".into())));
        assert_eq!(check_names([].into_iter()), Err(EntryError::Files(0)));
        let many: Vec<String> = (0..17).map(|number| number.to_string()).collect();
        assert_eq!(check_names(many.iter().map(String::as_str)), Err(EntryError::Files(17)));
    }

    #[test]
    fn facts_have_a_limit() {
        assert_eq!(check_facts(&"x".repeat(MAX_FACTS_BYTES)), Ok(()));
        assert_eq!(check_facts(&"x".repeat(MAX_FACTS_BYTES + 1)), Err(EntryError::Facts(MAX_FACTS_BYTES + 1)));
    }
}
