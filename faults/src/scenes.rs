//! Scenes: which steps are played for which VM, and how they travel in the program's file.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read as _, Seek as _, SeekFrom},
    path::Path,
};

use crate::step::{Step, StepError};

/// What stands before the scenes in the file. In the program itself it stands too, further up.
const MARK: &str = "\n== the scenes of a fake QEMU ==\n";

/// Scenes are looked for in so many bytes at the file's end. A scene is a few lines.
const MOST_BYTES: u64 = 64 * 1024;

/// What a QEMU and a guest in good order do: they serve one program after another, each of which writes its own source.
const HONEST: &[&str] = &["greet", "accept", "hello", "serve"];

/// What they do to be saved, and then go on as any other.
const HONEST_DONOR: &[&str] = &["greet", "accept", "hello", "rehearse", "save", "await-seed", "hello", "serve"];

/// What they do to become a copy.
const HONEST_COPY: &[&str] = &["greet", "accept", "answer 6", "load", "await-seed", "hello", "serve"];

/// How a guest is to come to life, as its QEMU's command line has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Life {
    /// It boots.
    #[default]
    Boot,
    /// It boots with a file as its memory, so that it can be saved.
    Donor,
    /// It waits to be told whose copy it is.
    Copy,
}

/// What a fake QEMU plays for a VM of which memory and life. For every other VM it is in good order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scenes(BTreeMap<(u32, Life), Vec<Step>>);

/// Why a program's scenes are not known.
#[derive(Debug, thiserror::Error)]
pub enum ScenesError {
    /// The file cannot be read.
    #[error("reading the program's own file")]
    Io(#[from] io::Error),
    /// A step in it is none.
    #[error("reading the scenes")]
    Step(#[from] StepError),
}

impl Scenes {
    /// Reads scenes from text: a line `[MIB]`, `[MIB donor]` or `[MIB copy]` begins the scene for VMs of so much memory and
    /// this life, and a step is a line.
    ///
    /// # Errors
    /// A line is no step, or stands in no scene.
    pub fn parse(text: &str) -> Result<Self, StepError> {
        let (mut scenes, mut current) = (BTreeMap::new(), None);
        for line in text.lines() {
            let title = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
            if let Some(vm) = title.and_then(vm) {
                current = Some(scenes.entry(vm).or_insert_with(Vec::new));
                continue;
            }
            current.as_mut().ok_or_else(|| StepError { line: line.into() })?.push(line.parse()?);
        }
        Ok(Self(scenes))
    }

    /// What is appended to the program so that it plays the scenes of `text`.
    ///
    /// # Errors
    /// As for [`parse`](Self::parse).
    pub fn appendix(text: &str) -> Result<String, StepError> {
        Self::parse(text).map(|_valid| format!("{MARK}{text}"))
    }

    /// The scenes that were appended to `program`; none if nothing was.
    ///
    /// # Errors
    /// The file cannot be read, or what was appended is no scenes.
    pub fn of_program(program: &Path) -> Result<Self, ScenesError> {
        let mut file = File::open(program)?;
        let length = file.seek(SeekFrom::End(0))?;
        file.seek(SeekFrom::Start(length.saturating_sub(MOST_BYTES)))?;
        let mut end = Vec::new();
        file.read_to_end(&mut end)?;
        let end = String::from_utf8_lossy(&end);
        let text = end.rsplit_once(MARK).map_or("", |(_program, text)| text);
        Ok(Self::parse(text)?)
    }

    /// The steps for a VM of `memory_mib` and this life.
    #[must_use]
    pub fn steps(&self, memory_mib: u32, life: Life) -> Vec<Step> {
        let honest = || life.honest().iter().filter_map(|line| line.parse().ok()).collect();
        self.0.get(&(memory_mib, life)).cloned().unwrap_or_else(honest)
    }
}

impl Life {
    /// What is played in good order.
    fn honest(self) -> &'static [&'static str] {
        match self {
            Self::Boot => HONEST,
            Self::Donor => HONEST_DONOR,
            Self::Copy => HONEST_COPY,
        }
    }
}

/// The VM that a title names.
fn vm(title: &str) -> Option<(u32, Life)> {
    let (memory_mib, life) = title.split_once(' ').unwrap_or((title, ""));
    let life = match life {
        "" => Life::Boot,
        "donor" => Life::Donor,
        "copy" => Life::Copy,
        _ => return None,
    };
    Some((memory_mib.parse().ok()?, life))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_scenes_that_were_appended_last_are_played_and_all_other_vms_are_in_good_order() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let program = dir.path().join("program");
        let appendix = Scenes::appendix("[129]\naccept\nexit 3\n[130 copy]\nhang\n").expect("they are scenes");
        fs::write(&program, format!("\u{7f}ELF {MARK} more of it{appendix}")).expect("it is new");
        let scenes = Scenes::of_program(&program).expect("it has scenes");
        assert_eq!(scenes.steps(129, Life::Boot), [Step::Accept, Step::Exit(3)]);
        assert_eq!(scenes.steps(130, Life::Copy), [Step::Hang]);
        for life in [Life::Boot, Life::Donor] {
            assert_eq!(scenes.steps(130, life), Scenes::default().steps(0, life));
        }
    }

    #[test]
    fn good_order_is_made_of_steps() {
        for life in [Life::Boot, Life::Donor, Life::Copy] {
            let steps = Scenes::default().steps(0, life);
            assert_eq!((steps.len(), steps.last()), (life.honest().len(), Some(&Step::Serve)), "{life:?}");
        }
    }

    #[test]
    fn a_step_in_no_scene_and_one_that_is_none_are_refused() {
        assert!(Scenes::parse("accept").is_err());
        assert!(Scenes::parse("[129 twin]\naccept").is_err());
        assert!(Scenes::appendix("[129]\nacept").is_err());
    }
}
