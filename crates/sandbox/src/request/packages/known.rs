//! Known packages: those that are used most, by name. One that is not among them may be a slip of somebody's hand, or of a model's
//! memory, under which somebody else has published something.
//!
//! The lists are data, with their source and date in their heads; `scripts/package-lists` writes them anew.

use std::{collections::HashMap, sync::LazyLock};

use crate::Language;

static PYTHON: LazyLock<Names> = LazyLock::new(|| Names::of(include_str!("python.txt")));
static JAVASCRIPT: LazyLock<Names> = LazyLock::new(|| Names::of(include_str!("javascript.txt")));

/// Names that Python programs import, of packages that are called otherwise. Only those that no spelling leads to.
const IMPORTED_AS: [(&str, &str); 8] = [
    ("bs4", "beautifulsoup4"),
    ("cv2", "opencv-python"),
    ("dateutil", "python-dateutil"),
    ("docx", "python-docx"),
    ("fitz", "pymupdf"),
    ("pil", "pillow"),
    ("skimage", "scikit-image"),
    ("sklearn", "scikit-learn"),
];

/// A name of so many bytes may differ in two places from what was meant; a shorter one in one.
const LONG_NAME_BYTES: usize = 6;

/// Names, each with its place in the order of use.
struct Names(HashMap<&'static str, usize>);

/// What is known of a name.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Known {
    Yes,
    /// No; perhaps this was meant.
    No(Option<&'static str>),
}

/// Looks `name` up, which is a valid name of the language's registry.
pub(super) fn look_up(language: Language, name: &str) -> Known {
    match language {
        Language::Python => {
            let name = normalised(name);
            let imported = || IMPORTED_AS.iter().find(|(import, _)| *import == name).map(|(_, package)| *package);
            PYTHON.look_up(&name, imported)
        }
        Language::JavaScript => JAVASCRIPT.look_up(name, || None),
        Language::Raw => Known::No(None),
    }
}

/// How PyPI compares names (PEP 503): in small letters, and any run of `-`, `_` and `.` is a hyphen.
pub(super) fn normalised(name: &str) -> String {
    let words: Vec<&str> = name.split(['-', '_', '.']).filter(|word| !word.is_empty()).collect();
    words.join("-").to_ascii_lowercase()
}

impl Names {
    fn of(list: &'static str) -> Self {
        let names = list.lines().filter(|line| !line.starts_with('#'));
        Self(names.enumerate().map(|(place, name)| (name, place)).collect())
    }

    fn look_up(&self, name: &str, otherwise: impl Fn() -> Option<&'static str>) -> Known {
        if self.0.contains_key(name) {
            return Known::Yes;
        }
        Known::No(otherwise().or_else(|| self.nearest(name)))
    }

    /// The name that differs least; of several the one that is used most.
    fn nearest(&self, name: &str) -> Option<&'static str> {
        let most = if name.len() < LONG_NAME_BYTES { 1 } else { 2 };
        let near = self.0.iter().filter(|(known, _)| known.len().abs_diff(name.len()) <= most);
        let near = near.map(|(known, place)| (strsim::osa_distance(known, name), *place, *known));
        near.filter(|(distance, ..)| *distance <= most).min().map(|(.., known)| known)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn python(name: &str) -> Known {
        look_up(Language::Python, name)
    }

    fn javascript(name: &str) -> Known {
        look_up(Language::JavaScript, name)
    }

    #[test]
    fn what_many_use_is_known_in_any_spelling_that_its_registry_takes() {
        for name in ["requests", "Requests", "scikit-learn", "scikit_learn", "Scikit.Learn", "numpy", "pandas"] {
            assert_eq!(python(name), Known::Yes, "{name}");
        }
        for name in ["lodash", "@types/node", "@babel/core", "zod", "JSONStream"] {
            assert_eq!(javascript(name), Known::Yes, "{name}");
        }
    }

    #[test]
    fn a_slip_is_told_from_what_was_meant() {
        for (slip, meant) in [
            ("reqeusts", "requests"),
            ("request5", "requests"),
            ("pandsa", "pandas"),
            ("scikitlearn", "scikit-learn"),
            ("beautifulsoup44", "beautifulsoup4"),
        ] {
            assert_eq!(python(slip), Known::No(Some(meant)), "{slip}");
        }
        for (slip, meant) in [("lodahs", "lodash"), ("expresss", "express"), ("@types/nodee", "@types/node")] {
            assert_eq!(javascript(slip), Known::No(Some(meant)), "{slip}");
        }
    }

    #[test]
    fn the_name_of_an_import_leads_to_its_package() {
        for (import, package) in IMPORTED_AS {
            assert!(PYTHON.0.contains_key(package), "{package}");
            assert!(matches!(python(import), Known::Yes | Known::No(Some(_))), "{import}");
        }
        assert_eq!(python("cv2"), Known::No(Some("opencv-python")));
        assert_eq!(python("PIL"), Known::No(Some("pillow")));
    }

    #[test]
    fn what_resembles_nothing_has_no_suggestion() {
        assert_eq!(python("zzzqqqxxxyyy"), Known::No(None));
        assert_eq!(javascript("@no-such-scope/no-such-name"), Known::No(None));
    }

    #[test]
    fn lists_say_whence_they_are_and_have_each_name_once() {
        for (list, names) in [(include_str!("python.txt"), &PYTHON), (include_str!("javascript.txt"), &JAVASCRIPT)] {
            let head: Vec<&str> = list.lines().take(3).collect();
            assert_eq!(head[0], format!("# {} packages, the most used first.", names.0.len()));
            assert!(head[1].starts_with("# Source: ") && head[2].starts_with("# Date: 20"), "{head:?}");
            assert_eq!(list.lines().count(), names.0.len() + 3);
        }
        for name in PYTHON.0.keys() {
            assert_eq!(*name, normalised(name));
        }
    }
}
