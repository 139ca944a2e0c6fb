//! A set of packages: what a caller asked for, in the one spelling that all who mean the same have.

use serde::{Deserialize, Serialize};

use super::{check, known::normalised, refused};
use crate::{Error, Language};

/// Packages that may be installed, each pinned and each once: every limit holds. There is at least one.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct PackageSet {
    language: Language,
    /// In the form of the language's installer, sorted.
    requirements: Vec<String>,
}

impl PackageSet {
    /// The set that `packages` are; `None`: there are none.
    ///
    /// # Errors
    /// One of them is not allowed, or two are versions of the same.
    pub(crate) fn of(language: Language, packages: &[String], only_known: bool) -> Result<Option<Self>, Error> {
        check(language, packages, only_known)?;
        let mut requirements: Vec<String> = packages.iter().map(|package| spelled(language, package)).collect();
        requirements.sort_unstable();
        requirements.dedup();
        for pair in requirements.windows(2) {
            if let [one, other] = pair
                && name(language, one) == name(language, other)
            {
                return Err(refused(format!(
                    "Packages {one:?} and {other:?} are two of the same: ask for one of them"
                )));
            }
        }
        Ok((!requirements.is_empty()).then_some(Self { language, requirements }))
    }

    pub(crate) fn language(&self) -> Language {
        self.language
    }

    /// The requirements, as the language's installer takes them.
    pub(crate) fn requirements(&self) -> &[String] {
        &self.requirements
    }

    /// The names alone.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.requirements.iter().map(|requirement| name(self.language, requirement))
    }
}

/// A requirement whose form is right, spelled as its registry compares it.
fn spelled(language: Language, requirement: &str) -> String {
    let Language::Python = language else { return requirement.to_owned() };
    let (project, version) = requirement.split_once("==").unwrap_or((requirement, ""));
    let (name, extras) = project.split_once('[').unwrap_or((project, ""));
    let mut extras: Vec<String> =
        extras.trim_end_matches(']').split(',').filter(|extra| !extra.is_empty()).map(normalised).collect();
    extras.sort_unstable();
    extras.dedup();
    let extras = if extras.is_empty() { String::new() } else { format!("[{}]", extras.join(",")) };
    format!("{}{extras}=={}", normalised(name), version.to_ascii_lowercase())
}

fn name(language: Language, requirement: &str) -> &str {
    match language {
        Language::Python => requirement.split(['[', '=']).next().unwrap_or(requirement),
        Language::JavaScript => requirement.rsplit_once('@').map_or(requirement, |(name, _version)| name),
        Language::Raw => requirement,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn set(language: Language, packages: &[&str]) -> Result<Option<PackageSet>, Error> {
        let packages: Vec<String> = packages.iter().map(|package| (*package).to_owned()).collect();
        PackageSet::of(language, &packages, false)
    }

    fn requirements(language: Language, packages: &[&str]) -> Vec<String> {
        set(language, packages).expect("they are allowed").map(|set| set.requirements).unwrap_or_default()
    }

    #[test]
    fn those_who_mean_the_same_packages_have_the_same_set() {
        let one = requirements(Language::Python, &["Zope.Interface==6.4", "uvicorn[standard,H11]==0.30.1"]);
        let other = requirements(
            Language::Python,
            &["uvicorn[h11,standard,h11]==0.30.1", "zope_interface==6.4", "ZOPE-interface==6.4"],
        );
        assert_eq!(one, other);
        assert_eq!(one, ["uvicorn[h11,standard]==0.30.1", "zope-interface==6.4"]);
        let one = requirements(Language::JavaScript, &["lodash@4.17.21", "@types/node@22.5.0", "lodash@4.17.21"]);
        assert_eq!(one, ["@types/node@22.5.0", "lodash@4.17.21"]);
        // npm's old packages differ by their capitals.
        assert_eq!(requirements(Language::JavaScript, &["JSONStream@1.3.5"]), ["JSONStream@1.3.5"]);
    }

    #[test]
    fn no_packages_are_no_set() {
        for language in Language::ALL {
            assert_eq!(set(language, &[]).expect("none are allowed"), None);
        }
    }

    #[test]
    fn two_versions_of_one_package_are_refused_by_their_names() {
        for (language, packages) in [
            (Language::Python, ["a==1", "A==2"]),
            (Language::Python, ["a[b]==1", "a==1"]),
            (Language::JavaScript, ["@a/b@1.0.0", "@a/b@1.0.1"]),
        ] {
            let error = set(language, &packages).expect_err("which one?");
            assert!(error.to_string().contains("two of the same"), "{error}");
        }
        assert!(set(Language::JavaScript, &["@a/b@1.0.0", "@a/c@1.0.0", "b@1.0.0"]).is_ok());
    }

    proptest! {
        #[test]
        fn the_order_means_nothing_and_spelling_again_changes_nothing(
            (packages, shuffled) in prop::collection::vec("[A-Za-z][A-Za-z0-9]{0,3}([-_.][a-z0-9]{1,2})?==[0-9]{1,2}", 0..8)
                .prop_flat_map(|packages| (Just(packages.clone()), Just(packages).prop_shuffle())),
        ) {
            let one = PackageSet::of(Language::Python, &packages, false).ok();
            prop_assert_eq!(&one, &PackageSet::of(Language::Python, &shuffled, false).ok());
            if let Some(Some(set)) = one {
                let again = PackageSet::of(Language::Python, &set.requirements, false).expect("it was allowed");
                prop_assert_eq!(Some(set), again);
            }
        }
    }
}
