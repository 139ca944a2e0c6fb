//! The manifest: which files an entry has and by which digests their blobs are found.
//!
//! What is read here was written by whoever may write to the store, and may be damaged besides. It is bounded before it is parsed, has
//! a seal (the digest of everything else in it) so that a flipped bit in the facts does not pass, and names what it is the manifest of,
//! so that a copy in another place is noticed. The seal is no signature: it proves that nothing broke, not who wrote it.

use serde::{Deserialize, Serialize};

use crate::{
    digest::Digest,
    entry::{EntryError, EntryName, check_facts, check_names},
};

/// The only format there is. A reader refuses any other number instead of guessing.
const FORMAT: u32 = 1;

/// Longest manifest. Facts of control characters are written with six bytes for one, and the files need less than 8 KiB.
pub(crate) const MAX_MANIFEST_BYTES: usize = 512 * 1024;

/// A manifest that was checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Manifest {
    pub(crate) name: EntryName,
    pub(crate) facts: String,
    pub(crate) files: Vec<ListedFile>,
}

/// A file of an entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ListedFile {
    pub(crate) name: String,
    /// Its length, holes and all.
    pub(crate) plain_bytes: u64,
    /// Digest of its plain content, by which its blob is found.
    pub(crate) blake3: Digest,
    /// Length of its blob.
    pub(crate) stored_bytes: u64,
}

/// Why a manifest was refused.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// More than any manifest needs.
    #[error("it has {0} bytes, {MAX_MANIFEST_BYTES} are possible")]
    TooLong(u64),
    /// Not JSON of this shape, or a digest that is none.
    #[error("it is not a manifest")]
    Malformed(#[source] serde_json::Error),
    /// Written by another version of the program.
    #[error("its format is {0} and this build reads format {FORMAT}")]
    UnknownFormat(u32),
    /// Its content is not what was sealed: a damaged store, or a change by hand.
    #[error("its seal is not that of its content")]
    BrokenSeal,
    /// A name or a number out of bounds.
    #[error("it says what no entry can have")]
    Impossible(#[source] EntryError),
}

/// The format alone, whatever else there is.
#[derive(Deserialize)]
struct Versioned {
    format: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    format: u32,
    kind: String,
    key: String,
    facts: String,
    files: Vec<ListedFile>,
    /// Left out while the seal is computed.
    #[serde(skip_serializing_if = "Option::is_none")]
    seal: Option<Digest>,
}

impl ListedFile {
    /// Where its blob is.
    pub(crate) fn blob(&self) -> String {
        blob(&self.blake3)
    }
}

impl Manifest {
    /// Reads and checks a manifest.
    pub(crate) fn from_json(json: &[u8]) -> Result<Self, ManifestError> {
        if json.len() > MAX_MANIFEST_BYTES {
            return Err(ManifestError::TooLong(json.len() as u64));
        }
        let Versioned { format } = serde_json::from_slice(json).map_err(ManifestError::Malformed)?;
        if format != FORMAT {
            return Err(ManifestError::UnknownFormat(format));
        }
        let mut written: Written = serde_json::from_slice(json).map_err(ManifestError::Malformed)?;
        let seal = written.seal.take().ok_or(ManifestError::BrokenSeal)?;
        if seal != written.seal()? {
            return Err(ManifestError::BrokenSeal);
        }
        let name = EntryName::new(&written.kind, &written.key).map_err(ManifestError::Impossible)?;
        let manifest = Self { name, facts: written.facts, files: written.files };
        manifest.check()?;
        Ok(manifest)
    }

    /// The text that [`Manifest::from_json`] reads.
    pub(crate) fn to_json(&self) -> Result<Vec<u8>, ManifestError> {
        self.check()?;
        let mut written = Written {
            format: FORMAT,
            kind: self.name.kind().to_owned(),
            key: self.name.key().to_owned(),
            facts: self.facts.clone(),
            files: self.files.clone(),
            seal: None,
        };
        written.seal = Some(written.seal()?);
        serde_json::to_vec(&written).map_err(ManifestError::Malformed)
    }

    fn check(&self) -> Result<(), ManifestError> {
        check_facts(&self.facts).map_err(ManifestError::Impossible)?;
        check_names(self.files.iter().map(|file| file.name.as_str())).map_err(ManifestError::Impossible)
    }
}

impl Written {
    fn seal(&self) -> Result<Digest, ManifestError> {
        let content = serde_json::to_vec(self).map_err(ManifestError::Malformed)?;
        Ok(Digest::of(&content))
    }
}

/// Where the manifest of an entry is.
pub(crate) fn place(name: &EntryName) -> String {
    format!("{name}.json")
}

/// Where the content with this digest is.
pub(crate) fn blob(digest: &Digest) -> String {
    format!("blobs/{digest}.zst")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry_name() -> impl Strategy<Value = EntryName> {
        ("[a-z][a-z0-9-]{0,8}", any::<u64>())
            .prop_map(|(kind, key)| EntryName::new(&kind, &Digest::of(&key.to_le_bytes()).to_string()).unwrap())
    }

    fn files() -> impl Strategy<Value = Vec<ListedFile>> {
        let one = ("[A-Za-z0-9][A-Za-z0-9._-]{0,12}", any::<(u64, u64, u64)>());
        proptest::collection::btree_map(one.0, one.1, 1..5).prop_map(|files| {
            let listed = |(name, (plain_bytes, content, stored_bytes)): (String, (u64, u64, u64))| ListedFile {
                name,
                plain_bytes,
                blake3: Digest::of(&content.to_le_bytes()),
                stored_bytes,
            };
            files.into_iter().map(listed).collect()
        })
    }

    fn manifest() -> impl Strategy<Value = Manifest> {
        (entry_name(), any::<String>(), files()).prop_map(|(name, facts, files)| Manifest { name, facts, files })
    }

    fn example() -> Manifest {
        let file =
            |name: &str| ListedFile { name: name.into(), plain_bytes: 3, blake3: Digest::of(b"abc"), stored_bytes: 12 };
        Manifest {
            name: EntryName::new("snapshot", &Digest::of(b"key").to_string()).unwrap(),
            facts: r#"{"image":"python"}"#.into(),
            files: vec![file("ram"), file("state")],
        }
    }

    /// The example as JSON, changed, with a seal that fits the change.
    fn resealed(change: impl FnOnce(&mut Written)) -> Vec<u8> {
        let mut written: Written = serde_json::from_slice(&example().to_json().unwrap()).unwrap();
        written.seal = None;
        change(&mut written);
        written.seal = Some(written.seal().unwrap());
        serde_json::to_vec(&written).unwrap()
    }

    proptest! {
        #[test]
        fn a_manifest_reads_back_as_it_was_written(manifest in manifest()) {
            let json = manifest.to_json().unwrap();
            prop_assert_eq!(Manifest::from_json(&json).unwrap(), manifest);
        }

        #[test]
        fn no_flipped_bit_passes_unless_it_means_the_same(manifest in manifest(), at in any::<prop::sample::Index>(), bit in 0_u8..8) {
            let mut json = manifest.to_json().unwrap();
            let at = at.index(json.len());
            json[at] ^= 1 << bit;
            // An escape with another letter case says the same.
            if let Ok(read) = Manifest::from_json(&json) {
                prop_assert_eq!(read, manifest);
            }
        }

        #[test]
        fn arbitrary_bytes_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(Manifest::from_json(&bytes).is_err());
        }
    }

    #[test]
    fn another_format_is_refused_before_its_fields_are_looked_at() {
        let text = r#"{"format":2,"what":"a later version says"}"#;
        assert!(matches!(Manifest::from_json(text.as_bytes()), Err(ManifestError::UnknownFormat(2))));
    }

    #[test]
    fn an_unknown_field_is_refused() {
        let json = String::from_utf8(example().to_json().unwrap()).unwrap();
        for with in [
            json.replacen(r#"{"format""#, r#"{"more":1,"format""#, 1),
            json.replacen(r#"{"name""#, r#"{"more":1,"name""#, 1),
        ] {
            assert_ne!(with, json);
            assert!(matches!(Manifest::from_json(with.as_bytes()), Err(ManifestError::Malformed(_))), "{with}");
        }
    }

    #[test]
    fn a_change_breaks_the_seal_and_none_is_as_bad() {
        let json = String::from_utf8(example().to_json().unwrap()).unwrap();
        let changed = json.replacen("python", "pythom", 1);
        assert!(matches!(Manifest::from_json(changed.as_bytes()), Err(ManifestError::BrokenSeal)));
        let without = format!("{}}}", &json[..json.find(r#","seal""#).unwrap()]);
        assert!(matches!(Manifest::from_json(without.as_bytes()), Err(ManifestError::BrokenSeal)));
    }

    #[test]
    fn sealed_lies_are_refused_all_the_same() {
        let refused = |change: fn(&mut Written)| {
            let error = Manifest::from_json(&resealed(change)).unwrap_err();
            let ManifestError::Impossible(why) = error else { panic!("{error:?}") };
            why
        };
        assert!(Manifest::from_json(&resealed(|_| ())).is_ok());
        assert_eq!(refused(|it| it.kind = "blobs".into()), EntryError::Kind("blobs".into()));
        assert_eq!(refused(|it| it.key = "../up".into()), EntryError::Key("../up".into()));
        assert_eq!(refused(|it| it.files[0].name = "../ram".into()), EntryError::FileName("../ram".into()));
        assert_eq!(refused(|it| it.files[0].name = "state".into()), EntryError::Twice("state".into()));
        assert_eq!(refused(|it| it.files.clear()), EntryError::Files(0));
        assert!(matches!(refused(|it| it.facts = "x".repeat(70_000)), EntryError::Facts(70_000)));
    }

    #[test]
    fn the_longest_facts_fit_whatever_they_say() {
        let manifest = Manifest { facts: "\u{1}".repeat(crate::entry::MAX_FACTS_BYTES), ..example() };
        assert_eq!(Manifest::from_json(&manifest.to_json().unwrap()).unwrap(), manifest);
        let long = vec![b' '; MAX_MANIFEST_BYTES + 1];
        assert!(matches!(Manifest::from_json(&long), Err(ManifestError::TooLong(_))));
    }
}
