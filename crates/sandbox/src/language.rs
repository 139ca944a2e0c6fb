//! The languages that a sandbox runs.

use std::{fmt, path::Path, str::FromStr};

use exec_sandbox_wire as wire;
use serde::{Deserialize, Serialize};

/// A language, and with it the interpreter that the guest keeps for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Language {
    /// CPython 3.
    Python,
    /// JavaScript and TypeScript, run by Bun.
    JavaScript,
    /// Shell code, run by bash.
    Raw,
}

/// A name that is none of the languages.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown language {name:?}: use python, javascript or raw")]
pub struct UnknownLanguage {
    /// The name as it was given.
    pub name: String,
}

impl Language {
    /// Every language, in the order in which they are documented.
    pub const ALL: [Self; 3] = [Self::Python, Self::JavaScript, Self::Raw];

    /// The name in configuration, on the command line and in image manifests.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Python => "python",
            Self::JavaScript => "javascript",
            Self::Raw => "raw",
        }
    }

    /// The language that a source file's extension stands for, if it stands for one.
    #[must_use]
    pub fn of_file(path: &Path) -> Option<Self> {
        match path.extension()?.to_str()? {
            "py" => Some(Self::Python),
            "js" | "mjs" | "ts" => Some(Self::JavaScript),
            "sh" => Some(Self::Raw),
            _ => None,
        }
    }
}

impl fmt::Display for Language {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Language {
    type Err = UnknownLanguage;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|language| language.name() == name)
            .ok_or_else(|| UnknownLanguage { name: name.into() })
    }
}

impl From<Language> for wire::Language {
    fn from(language: Language) -> Self {
        match language {
            Language::Python => Self::Python,
            Language::JavaScript => Self::JavaScript,
            Language::Raw => Self::Raw,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_language_is_found_by_its_name() {
        for language in Language::ALL {
            assert_eq!(language.name().parse(), Ok(language));
        }
        assert!("ruby".parse::<Language>().is_err());
    }

    #[test]
    fn a_file_without_a_known_extension_has_no_language() {
        assert_eq!(Language::of_file(Path::new("a/b.ts")), Some(Language::JavaScript));
        assert_eq!(Language::of_file(Path::new("Makefile")), None);
        assert_eq!(Language::of_file(Path::new("notes.txt")), None);
    }
}
