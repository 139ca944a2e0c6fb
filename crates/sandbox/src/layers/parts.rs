//! The key of a layer: everything that shapes what is installed.

use std::{fmt, str::FromStr};

use exec_sandbox_image::{Digest, KeyBuilder, NotADigest};
use serde::{Deserialize, Serialize};

use crate::request::PackageSet;

/// Changes when what is in a layer, or how it is made, does: no older layer is found then.
pub(crate) const FORMAT: u32 = 1;

/// What a layer is made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LayerParts {
    /// [`FORMAT`].
    pub(crate) format: u32,
    /// The root file system in which it was installed: its interpreters, their libraries and the installers.
    pub(crate) root: Digest,
    /// The language and what was asked for.
    pub(crate) set: PackageSet,
    /// Where it was installed from, without a password; `None`: from where the installer does by itself.
    pub(crate) index: Option<String>,
}

/// The name of a layer: a digest of its [`LayerParts`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct LayerKey(Digest);

impl LayerParts {
    /// The name of the layer that is made of these. Each part goes in with its length, the list with its count.
    pub(crate) fn key(&self) -> LayerKey {
        // Taken apart, so that a part that is added is not forgotten here.
        let Self { format, root, set, index } = self;
        let count = |key: KeyBuilder, label, count: usize| key.with(label, &(count as u64).to_be_bytes());
        let mut key = KeyBuilder::new("package layer").with("format", &format.to_be_bytes());
        key = key.with("root", root.to_string().as_bytes()).with("language", set.language().name().as_bytes());
        key = count(key, "packages", set.requirements().len());
        for requirement in set.requirements() {
            key = key.with("item", requirement.as_bytes());
        }
        key = count(key, "index", usize::from(index.is_some()));
        LayerKey(index.iter().fold(key, |key, index| key.with("item", index.as_bytes())).finish())
    }
}

impl LayerKey {
    pub(crate) fn digest(self) -> Digest {
        self.0
    }
}

impl fmt::Display for LayerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for LayerKey {
    type Err = NotADigest;

    fn from_str(text: &str) -> Result<Self, NotADigest> {
        text.parse().map(Self)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::{collection::vec, option, prelude::*, sample::select};

    use super::*;
    use crate::Language;

    /// Few values of each part, which run together in many ways, so that two of them often differ in one.
    pub(in super::super) fn any_parts() -> impl Strategy<Value = LayerParts> {
        let python = vec(select(vec!["a==1", "ab==1", "a==11", "b==1", "c[x]==1", "c[x,y]==1", "d==1"]), 1..4);
        let javascript = vec(select(vec!["a@1.0.0", "ab@1.0.0", "@a/b@1.0.0", "b@1.0.0", "b@1.0.1"]), 1..4);
        let set = prop_oneof![
            python.prop_map(|packages| (Language::Python, packages)),
            javascript.prop_map(|packages| (Language::JavaScript, packages)),
        ];
        let set = set.prop_filter_map("two of the same", |(language, packages)| {
            let packages: Vec<String> = packages.into_iter().map(str::to_owned).collect();
            PackageSet::of(language, &packages, false).ok().flatten()
        });
        let index = option::of(select(vec!["", "item", "https://a.example/", "https://a.example/b"]));
        let root = select(vec![Digest::of(b"a"), Digest::of(b"b")]);
        (0..2_u32, root, set, index).prop_map(|(format, root, set, index)| LayerParts {
            format,
            root,
            set,
            index: index.map(str::to_owned),
        })
    }

    proptest! {
        #[test]
        fn the_keys_of_two_are_equal_if_and_only_if_all_parts_are(one in any_parts(), other in any_parts()) {
            prop_assert_eq!(one.key() == other.key(), one == other);
        }

        #[test]
        fn one_part_that_differs_is_enough(one in any_parts(), other in any_parts(), number in 0..4_u8) {
            let mut mixed = one.clone();
            match number {
                0 => mixed.format = other.format,
                1 => mixed.root = other.root,
                2 => mixed.set = other.set,
                _ => mixed.index = other.index,
            }
            prop_assert_eq!(one.key() == mixed.key(), one == mixed);
        }

        #[test]
        fn parts_read_back_as_they_are_written(parts in any_parts()) {
            let json = serde_json::to_vec(&parts).expect("it is data");
            let read: LayerParts = serde_json::from_slice(&json).expect("it was written by us");
            prop_assert_eq!(read, parts);
        }
    }

    #[test]
    fn a_key_reads_back_as_it_is_written_and_is_one_name() {
        let key = LayerKey(Digest::of(b"a"));
        assert_eq!(key.to_string().parse(), Ok(key));
        assert!("../a".parse::<LayerKey>().is_err());
    }
}
