//! What is in the cache, as it is told.

use std::{path::PathBuf, time::SystemTime};

use crate::Language;

/// What sort of thing is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Kind {
    /// The memory of a guest that had started its interpreter.
    Snapshot,
    /// What was installed for a set of packages.
    Packages,
    /// What VMs boot.
    Image,
}

/// Something that is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Entry {
    /// What sort of thing it is.
    pub kind: Kind,
    /// By what it is known: 64 digits of base 16, of an image its name.
    pub key: String,
    /// What it takes of the disk. What an image has in common with another counts for each.
    pub bytes: u64,
    /// When it was used last, to the hour. `None`: it is not known, as of images.
    pub last_use: Option<SystemTime>,
    /// Whether it stays whatever the limits say.
    pub is_pinned: bool,
    /// What it is for.
    pub contents: Contents,
    /// Where it is: its directory, of an image the store's.
    pub path: PathBuf,
}

/// What something is for, as its manifest says. What is installed was told by the machine that installed it, which has run what strangers
/// have published: it is for people, and may be any text.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Contents {
    /// A VM that was saved.
    Snapshot {
        /// Whose interpreter is warm.
        language: Option<Language>,
        /// The guest's memory.
        memory_mib: u32,
        /// What is installed in it, as it was asked for.
        packages: Vec<String>,
    },
    /// A set of packages.
    Packages {
        /// Whose they are.
        language: Language,
        /// What was asked for, in the form of the language's installer.
        requested: Vec<String>,
        /// Everything that came of it, with versions.
        installed: Vec<String>,
    },
    /// An image.
    Image {
        /// The guest kernel's release.
        kernel_version: String,
        /// Each language that it runs, with its interpreter's version.
        languages: Vec<(String, String)>,
    },
    /// It cannot be used, and is made anew when somebody needs it.
    Damaged {
        /// What is wrong with it.
        why: String,
    },
    /// A snapshot of which a copy did not work. It is not used, and kept to be looked at.
    SetAside {
        /// What was wrong.
        why: String,
    },
}

impl Kind {
    /// The name in JSON and on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Snapshot => "snapshot",
            Self::Packages => "packages",
            Self::Image => "image",
        }
    }
}
