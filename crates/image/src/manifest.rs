//! The manifest: what an image consists of and what a caller may expect in it.
//!
//! A manifest that exists is a valid one: [`Manifest::from_json`] and the store check every field. It names blobs by content only, never
//! by path, so it stays true wherever the store lies.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::digest::{Digest, KeyBuilder};

/// The only format there is. A reader refuses any other number instead of guessing.
const FORMAT: u32 = 1;

/// Longest name of an image, language or package: a name becomes a file name, which may have 255 bytes.
const MAX_NAME_BYTES: usize = 128;

/// Longest name of a host: what a question of DNS can ask for, written with dots.
const MAX_HOST_BYTES: usize = 253;

/// Longest address of an index: far beyond what any has, and little to pass on.
const MAX_INDEX_BYTES: usize = 2048;

/// What an image is made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Version of this layout: 1.
    pub format: u32,
    /// The name under which the store keeps the image.
    pub name: String,
    /// Machine architecture as `uname -m` says it.
    pub arch: String,
    /// What the guest's `uname -r` says.
    pub kernel_version: String,
    /// An uncompressed ELF with a PVH entry.
    pub kernel: Blob,
    /// The guest agent as an uncompressed cpio archive.
    pub initramfs: Blob,
    /// The root file system as EROFS.
    pub root: Blob,
    /// Interpreters by language (`python`, `javascript`, `raw`).
    pub languages: BTreeMap<String, Interpreter>,
    /// What is installed, sorted by name.
    pub packages: Vec<Package>,
    /// Hosts by language from which its package manager installs, as that has said when the image was made.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub registries: BTreeMap<String, Vec<String>>,
    /// Addresses by language of the index that its package manager asks, as that has said when the image was made. Each is HTTPS at its
    /// usual port, without credentials, and ends in a slash.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub indexes: BTreeMap<String, String>,
    /// The QEMU that was built for the image's guests, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub qemu: Option<Qemu>,
}

/// A QEMU that comes with an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Qemu {
    /// QEMU's own version, such as `10.0.13`.
    pub version: String,
    /// A static program for machines of the image's architecture.
    pub program: Blob,
    /// What it loads into guests, by the file names under which it looks for them.
    pub firmware: BTreeMap<String, Blob>,
}

/// A file of the image, named by its content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Blob {
    /// Digest of the whole file.
    pub blake3: Digest,
    /// Length of the file.
    pub size_bytes: u64,
}

/// Where a language's interpreter is in the root file system.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Interpreter {
    /// Absolute path in the guest.
    pub path: String,
    /// The interpreter's own version, such as `3.13.5`.
    pub version: String,
}

/// A distribution package in the root file system.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Package {
    /// The package's name.
    pub name: String,
    /// The version as the package manager spells it.
    pub version: String,
}

/// What a blob is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BlobRole {
    /// The guest kernel.
    Kernel,
    /// The guest agent's archive.
    Initramfs,
    /// The root file system.
    Root,
    /// The QEMU that runs the image's guests.
    Qemu,
    /// What that QEMU loads into guests.
    Firmware,
}

/// Why a manifest was refused.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Not JSON of this shape, or a digest that is none.
    #[error("it is not a manifest")]
    Malformed(#[source] serde_json::Error),
    /// Written by a newer program.
    #[error("its format is {0} and this build reads format {FORMAT}")]
    UnknownFormat(u32),
    /// A name that cannot be a file name, or could be mistaken for an option.
    #[error("{field} {value:?} is not a name (a-z, 0-9, then also '.', '_', '+', '-'; at most {MAX_NAME_BYTES} bytes)")]
    BadName {
        /// Which field it stood in.
        field: &'static str,
        /// What stood there.
        value: String,
    },
    /// A version or kernel version that is empty or not printable ASCII.
    #[error("{field} {value:?} is not a version (printable ASCII without spaces)")]
    BadVersion {
        /// Which field it stood in.
        field: &'static str,
        /// What stood there.
        value: String,
    },
    /// An interpreter that could point anywhere.
    #[error("interpreter path {0:?} is not an absolute path without '..'")]
    BadPath(String),
    /// A registry's host that is none.
    #[error(
        "the registry {0:?} is not the name of a host (labels of a-z, 0-9 and '-', at least two, with dots between them)"
    )]
    BadHost(String),
    /// An index's address that is none, or more than that.
    #[error("the index {0:?} is not an address of HTTPS at its usual port, without credentials, that ends in a slash")]
    BadIndex(String),
    /// A blob without content.
    #[error("the {0} is empty")]
    EmptyBlob(BlobRole),
    /// An image that can run nothing.
    #[error("it names no language")]
    NoLanguage,
}

impl Manifest {
    /// The format that this build writes.
    pub const FORMAT: u32 = FORMAT;

    /// Reads and checks a manifest.
    ///
    /// # Errors
    /// The first rule that it breaks.
    pub fn from_json(json: &[u8]) -> Result<Self, ManifestError> {
        let manifest: Self = serde_json::from_slice(json).map_err(ManifestError::Malformed)?;
        manifest.validate()?;
        Ok(manifest)
    }

    /// The text that [`Manifest::from_json`] reads: indented, ending in a line break.
    ///
    /// # Errors
    /// The first rule that it breaks.
    pub fn to_json(&self) -> Result<Vec<u8>, ManifestError> {
        self.validate()?;
        let mut json = serde_json::to_vec_pretty(self).map_err(ManifestError::Malformed)?;
        json.push(b'\n');
        Ok(json)
    }

    /// Every blob, and what each is for.
    #[must_use]
    pub fn blobs(&self) -> Vec<(BlobRole, Blob)> {
        let mut blobs = self.guests_blobs().to_vec();
        if let Some(Qemu { program, firmware, .. }) = &self.qemu {
            blobs.push((BlobRole::Qemu, *program));
            blobs.extend(firmware.values().map(|blob| (BlobRole::Firmware, *blob)));
        }
        blobs
    }

    /// The blobs that a guest is made of.
    pub(crate) fn guests_blobs(&self) -> [(BlobRole, Blob); 3] {
        [(BlobRole::Kernel, self.kernel), (BlobRole::Initramfs, self.initramfs), (BlobRole::Root, self.root)]
    }

    fn validate(&self) -> Result<(), ManifestError> {
        if self.format != FORMAT {
            return Err(ManifestError::UnknownFormat(self.format));
        }
        check_name("name", &self.name)?;
        check_name("arch", &self.arch)?;
        check_version("kernel_version", &self.kernel_version)?;
        if let Some((role, _)) = self.blobs().into_iter().find(|(_, blob)| blob.size_bytes == 0) {
            return Err(ManifestError::EmptyBlob(role));
        }
        if let Some(Qemu { version, firmware, .. }) = &self.qemu {
            check_version("version of QEMU", version)?;
            firmware.keys().try_for_each(|name| check_name("firmware", name))?;
        }
        if self.languages.is_empty() {
            return Err(ManifestError::NoLanguage);
        }
        for (language, interpreter) in &self.languages {
            check_name("language", language)?;
            check_path(&interpreter.path)?;
            check_version("interpreter version", &interpreter.version)?;
        }
        for package in &self.packages {
            check_name("package", &package.name)?;
            check_version("package version", &package.version)?;
        }
        for (language, hosts) in &self.registries {
            check_name("language of a registry", language)?;
            hosts.iter().try_for_each(|host| check_host(host))?;
        }
        for (language, index) in &self.indexes {
            check_name("language of an index", language)?;
            if !is_index(index) {
                return Err(ManifestError::BadIndex(index.clone()));
            }
        }
        Ok(())
    }
}

/// Whether an address can stand in [`Manifest::indexes`]. It becomes a package manager's argument in a guest.
#[must_use]
pub fn is_index(address: &str) -> bool {
    let Some((authority, path)) = address.strip_prefix("https://").and_then(|rest| rest.split_once('/')) else {
        return false;
    };
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~/%+".contains(&byte);
    let is_place = path.is_empty() || path.ends_with('/');
    is_host(authority) && is_place && path.bytes().all(is_plain) && address.len() <= MAX_INDEX_BYTES
}

impl Qemu {
    /// The digest of all of its files, by which it is known.
    #[must_use]
    pub fn digest(&self) -> Digest {
        let Self { version: _, program, firmware } = self;
        let mut key = KeyBuilder::new("qemu").with("program", program.blake3.to_string().as_bytes());
        for (name, blob) in firmware {
            key = key.with("firmware", name.as_bytes()).with("content", blob.blake3.to_string().as_bytes());
        }
        key.finish()
    }
}

impl fmt::Display for BlobRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kernel => "kernel",
            Self::Initramfs => "initramfs",
            Self::Root => "root file system",
            Self::Qemu => "QEMU",
            Self::Firmware => "firmware",
        })
    }
}

/// Accepts `[a-z0-9][a-z0-9._+-]*`. Debian's package names need the plus sign.
pub(crate) fn check_name(field: &'static str, value: &str) -> Result<(), ManifestError> {
    let starts = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let goes_on = |byte: u8| starts(byte) || b"._+-".contains(&byte);
    let first_is_good = value.bytes().next().is_some_and(starts);
    if first_is_good && value.len() <= MAX_NAME_BYTES && value.bytes().all(goes_on) {
        return Ok(());
    }
    Err(ManifestError::BadName { field, value: value.to_owned() })
}

fn check_version(field: &'static str, value: &str) -> Result<(), ManifestError> {
    if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Ok(());
    }
    Err(ManifestError::BadVersion { field, value: value.to_owned() })
}

fn check_host(value: &str) -> Result<(), ManifestError> {
    if is_host(value) { Ok(()) } else { Err(ManifestError::BadHost(value.to_owned())) }
}

fn is_host(value: &str) -> bool {
    let goes_on = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let is_label = |label: &str| !label.is_empty() && label.bytes().all(goes_on);
    let is_number = |label: &str| label.bytes().all(|byte| byte.is_ascii_digit());
    let labels: Vec<&str> = value.split('.').collect();
    let is_name = labels.len() >= 2 && !labels.last().is_some_and(|last| is_number(last));
    is_name && value.len() <= MAX_HOST_BYTES && labels.into_iter().all(is_label)
}

fn check_path(path: &str) -> Result<(), ManifestError> {
    let climbs = path.split('/').any(|part| part == "..");
    if path.starts_with('/') && !climbs && !path.contains('\0') && path.len() > 1 {
        return Ok(());
    }
    Err(ManifestError::BadPath(path.to_owned()))
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::{Value, json};

    use super::*;

    pub(crate) fn sample(name: &str) -> Manifest {
        let blob = |content: &[u8]| Blob { blake3: Digest::of(content), size_bytes: content.len() as u64 };
        let interpreter = Interpreter { path: "/usr/bin/python3".into(), version: "3.13.5".into() };
        Manifest {
            format: FORMAT,
            name: name.into(),
            arch: "x86_64".into(),
            kernel_version: "6.12.117-exec-sandbox".into(),
            kernel: blob(b"kernel"),
            initramfs: blob(b"initramfs"),
            root: blob(b"root"),
            languages: BTreeMap::from([("python".into(), interpreter)]),
            packages: vec![Package { name: "libstdc++6".into(), version: "14.2.0-19".into() }],
            registries: BTreeMap::from([("python".into(), vec!["packages.example.com".into()])]),
            indexes: BTreeMap::from([("python".into(), "https://packages.example.com/simple/".into())]),
            qemu: Some(Qemu {
                version: "10.0.13".into(),
                program: blob(b"qemu"),
                firmware: BTreeMap::from([("pvh.bin".into(), blob(b"pvh"))]),
            }),
        }
    }

    /// The sample with one value replaced, as text.
    fn with(pointer: &str, value: Value) -> Vec<u8> {
        let mut json = serde_json::to_value(sample("standard")).unwrap();
        *json.pointer_mut(pointer).unwrap() = value;
        serde_json::to_vec(&json).unwrap()
    }

    #[test]
    fn a_manifest_reads_back_as_it_was_written() {
        let manifest = sample("standard");
        assert_eq!(Manifest::from_json(&manifest.to_json().unwrap()).unwrap(), manifest);
    }

    #[test]
    fn a_manifest_of_before_there_were_registries_and_indexes_has_none() {
        for field in ["registries", "indexes"] {
            let mut json = serde_json::to_value(sample("standard")).unwrap();
            json.as_object_mut().unwrap().remove(field);
            let manifest = Manifest::from_json(&serde_json::to_vec(&json).unwrap()).unwrap();
            assert_eq!(manifest.registries.is_empty(), field == "registries");
            assert_eq!(manifest.indexes.is_empty(), field == "indexes");
            assert!(!String::from_utf8(manifest.to_json().unwrap()).unwrap().contains(field));
        }
    }

    #[test]
    fn a_manifest_of_before_there_was_a_qemu_has_none() {
        let mut json = serde_json::to_value(sample("standard")).unwrap();
        json.as_object_mut().unwrap().remove("qemu");
        let manifest = Manifest::from_json(&serde_json::to_vec(&json).unwrap()).unwrap();
        assert_eq!((manifest.qemu.as_ref(), manifest.blobs().len()), (None, 3));
        assert!(!String::from_utf8(manifest.to_json().unwrap()).unwrap().contains("qemu"));
    }

    #[test]
    fn firmware_is_a_file_beside_others_and_nowhere_else() {
        for bad in ["", "..", "../pvh.bin", "/etc/passwd", ".hidden", "a/b"] {
            let firmware = json!({ bad: { "blake3": Digest::of(b"pvh"), "size_bytes": 3 } });
            let refused = Manifest::from_json(&with("/qemu/firmware", firmware));
            assert!(matches!(refused, Err(ManifestError::BadName { field: "firmware", .. })), "{bad:?}: {refused:?}");
        }
    }

    #[test]
    fn a_qemu_with_other_files_is_another() {
        let of = |change: fn(&mut Qemu)| {
            let mut qemu = sample("standard").qemu.unwrap();
            change(&mut qemu);
            qemu.digest()
        };
        let own = of(|_| {});
        assert_eq!(of(|qemu| qemu.version = "11".into()), own);
        assert_ne!(of(|qemu| qemu.program.blake3 = Digest::of(b"other")), own);
        assert_ne!(of(|qemu| qemu.firmware.clear()), own);
    }

    #[test]
    fn an_index_is_a_place_that_a_guest_may_ask_and_says_no_secret() {
        for good in ["https://a.example/", "https://a.example/simple/", "https://b.a.example/api/pypi/x%20y/simple/"] {
            let manifest = Manifest::from_json(&with("/indexes/python", json!(good))).unwrap();
            assert_eq!(manifest.indexes["python"], good);
        }
        let long = format!("https://a.example/{}/", "x".repeat(MAX_INDEX_BYTES));
        for bad in [
            "",
            "a.example/simple/",
            "http://a.example/simple/",
            "https://a.example",
            "https://a.example/simple",
            "https://user@a.example/",
            "https://user:word@a.example/simple/",
            "https://a.example/user@b.example/",
            "https://a.example:8443/",
            "https://10.0.0.1/",
            "https://localhost/",
            "https://a.example/?token=x/",
            "https://a.example/#/",
            "https://a.example/a b/",
            "https://a.example/\n/",
            "--index-url=https://a.example/",
            &long,
        ] {
            let refused = Manifest::from_json(&with("/indexes/python", json!(bad)));
            assert!(matches!(refused, Err(ManifestError::BadIndex(_))), "{bad:?}: {refused:?}");
        }
    }

    #[test]
    fn a_registry_is_a_host_and_nothing_else() {
        for bad in ["", "host", "10.0.0.1", "a..b", "Example.com", "example.com.", "https://a.example", "a.example:443"]
        {
            let refused = Manifest::from_json(&with("/registries/python/0", json!(bad)));
            assert!(matches!(refused, Err(ManifestError::BadHost(_))), "{bad:?}: {refused:?}");
        }
    }

    #[test]
    fn a_field_that_nobody_knows_is_refused() {
        let mut json = serde_json::to_value(sample("standard")).unwrap();
        json["surprise"] = json!(1);
        let refused = Manifest::from_json(&serde_json::to_vec(&json).unwrap());
        assert!(matches!(refused, Err(ManifestError::Malformed(_))), "{refused:?}");
    }

    #[test]
    fn another_format_is_refused_by_its_number() {
        let refused = Manifest::from_json(&with("/format", json!(2)));
        assert!(matches!(refused, Err(ManifestError::UnknownFormat(2))), "{refused:?}");
    }

    #[test]
    fn names_that_could_leave_the_store_are_refused() {
        for bad in ["", "..", "../x", "a/b", ".hidden", "-option", "Upper", "sp ace", "nul\0", &"x".repeat(129)] {
            let refused = Manifest::from_json(&with("/name", json!(bad)));
            assert!(matches!(refused, Err(ManifestError::BadName { .. })), "{bad:?}: {refused:?}");
        }
    }

    #[test]
    fn digests_that_are_not_64_hex_digits_are_refused() {
        for bad in ["", "abc", "../../../etc/passwd", &"g".repeat(64), &"A".repeat(64), &"a".repeat(65)] {
            let refused = Manifest::from_json(&with("/kernel/blake3", json!(bad)));
            assert!(matches!(refused, Err(ManifestError::Malformed(_))), "{bad:?}: {refused:?}");
        }
    }

    #[test]
    fn interpreters_outside_an_absolute_path_are_refused() {
        for bad in ["", "/", "bin/sh", "/usr/../bin/sh", "/bin/\0sh"] {
            let refused = Manifest::from_json(&with("/languages/python/path", json!(bad)));
            assert!(matches!(refused, Err(ManifestError::BadPath(_))), "{bad:?}: {refused:?}");
        }
    }

    #[test]
    fn an_image_without_content_language_or_version_is_refused() {
        let cases = [
            (with("/kernel/size_bytes", json!(0)), "the kernel is empty"),
            (with("/qemu/program/size_bytes", json!(0)), "the QEMU is empty"),
            (with("/qemu/version", json!("10 13")), "version of QEMU \"10 13\" is not a version"),
            (with("/languages", json!({})), "it names no language"),
            (with("/kernel_version", json!("")), "kernel_version \"\" is not a version"),
            (with("/packages/0/version", json!("1 2")), "package version \"1 2\" is not a version"),
        ];
        for (json, says) in cases {
            let refused = Manifest::from_json(&json).unwrap_err().to_string();
            assert!(refused.starts_with(says), "{refused}");
        }
    }
}
