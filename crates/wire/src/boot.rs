//! What a host tells a guest before there is a channel: words on the kernel's command line.
//!
//! The guest reads them in `/proc/cmdline` while it mounts. Their names have a dot, so the kernel takes them for parameters of modules that
//! it does not have: it neither complains nor hands them to PID 1. A word of this family that is not known is no error, for an agent may
//! be older than its host; one whose value means nothing changes nothing, and is reported.

/// The host has attached a disk with packages: `exec_sandbox.layer=1`.
pub const LAYER_WORD: &str = "exec_sandbox.layer";

/// How many files each memory file system has room for: `exec_sandbox.files=65536`.
pub const FILES_WORD: &str = "exec_sandbox.files";

/// The words of one boot. What is not said is the default: no layer, and [`FileLimit::MIN`] files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BootWords {
    /// There is a disk with packages, and a guest that cannot mount it shall not come up.
    pub has_layer: bool,
    /// What each memory file system has room for.
    pub files: FileLimit,
}

/// Files, directories and links in one memory file system: between [`FileLimit::MIN`] and [`FileLimit::MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FileLimit(u32);

impl FileLimit {
    /// What a guest that runs programs has: enough for an environment of packages, and at a kilobyte of the kernel's memory each no way to
    /// use that up.
    pub const MIN: Self = Self(16_384);
    /// Beyond this the kernel's own memory for files, a kilobyte each, would be more than guests have.
    pub const MAX: Self = Self(1_048_576);

    /// So many files; `None` if that is out of bounds.
    #[must_use]
    pub const fn new(files: u32) -> Option<Self> {
        if files >= Self::MIN.0 && files <= Self::MAX.0 { Some(Self(files)) } else { None }
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl Default for FileLimit {
    fn default() -> Self {
        Self::MIN
    }
}

impl BootWords {
    /// The words for the kernel's command line, without what goes without saying.
    #[must_use]
    pub fn to_args(self) -> Vec<String> {
        let layer = self.has_layer.then(|| format!("{LAYER_WORD}=1"));
        let files = (self.files != FileLimit::MIN).then(|| format!("{FILES_WORD}={}", self.files.get()));
        layer.into_iter().chain(files).collect()
    }

    /// Reads a kernel's command line, and the words of these names in it whose values mean nothing. The last of a name counts.
    #[must_use]
    pub fn read(command_line: &str) -> (Self, Vec<&str>) {
        let (mut words, mut meaningless) = (Self::default(), Vec::new());
        for word in command_line.split_ascii_whitespace() {
            let Some((name, value)) = word.split_once('=') else { continue };
            match (name, value) {
                (LAYER_WORD, "1") => words.has_layer = true,
                (FILES_WORD, number) => match number.parse().ok().and_then(FileLimit::new) {
                    Some(files) => words.files = files,
                    None => meaningless.push(word),
                },
                (LAYER_WORD, _) => meaningless.push(word),
                _ => {}
            }
        }
        (words, meaningless)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_a_host_says_is_what_a_guest_reads(
            has_layer in any::<bool>(),
            files in FileLimit::MIN.get()..=FileLimit::MAX.get(),
            before in "[a-z_.= \"0-9]{0,40}",
        ) {
            let words = BootWords { has_layer, files: FileLimit::new(files).expect("it is in bounds") };
            let line = format!("quiet {before} {}\n", words.to_args().join(" "));
            prop_assert_eq!(BootWords::read(&line), (words, vec![]));
        }

        #[test]
        fn no_command_line_makes_a_limit_that_is_out_of_bounds(line in ".{0,80}") {
            let (words, _) = BootWords::read(&line);
            prop_assert!(FileLimit::new(words.files.get()).is_some());
        }
    }

    #[test]
    fn a_guest_that_is_told_nothing_has_the_defaults() {
        assert_eq!(BootWords::default().to_args(), Vec::<String>::new());
        assert_eq!(BootWords::read("quiet panic=-1 reboot=t\n"), (BootWords::default(), vec![]));
    }

    #[test]
    fn a_value_that_means_nothing_changes_nothing_and_is_reported() {
        let meaningless = [
            "exec_sandbox.files=16383",
            "exec_sandbox.files=1048577",
            "exec_sandbox.files=-1",
            "exec_sandbox.files=99999999999999999999",
            "exec_sandbox.files=many",
            "exec_sandbox.files=",
            "exec_sandbox.layer=0",
            "exec_sandbox.layer=",
        ];
        for word in meaningless {
            assert_eq!(BootWords::read(word), (BootWords::default(), vec![word]));
        }
        let (words, reported) = BootWords::read("exec_sandbox.files=20000 exec_sandbox.files=1");
        assert_eq!((words.files.get(), reported), (20_000, vec!["exec_sandbox.files=1"]));
    }

    #[test]
    fn a_word_of_a_newer_host_is_passed_over() {
        assert_eq!(BootWords::read("exec_sandbox.more=1 exec_sandbox.layer"), (BootWords::default(), vec![]));
    }

    #[test]
    fn the_bounds_themselves_are_in_bounds() {
        for (files, is_one) in [(16_383, false), (16_384, true), (1_048_576, true), (1_048_577, false)] {
            assert_eq!(FileLimit::new(files).is_some(), is_one, "{files}");
        }
    }
}
