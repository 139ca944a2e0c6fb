//! The guest's posture: what a program in it finds and may do, tried from inside by a program like any other.
//!
//! The checks are a list (`checks.txt`) that three small programs can work off, one in each language. Each check tries something that has
//! to be refused, and its control tries the same thing where it has another outcome, so that no check holds because its probe is broken.

mod calls;
mod table;

use exec_sandbox_qemu::Arch;
use serde::Serialize;

use crate::{Error, Exit, Language, Outcome, RunRequest, Scheduler, host};

/// What came of all checks in one language.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Posture {
    /// The language of the program that tried them.
    pub language: Language,
    /// Where its guest came from, as [`Origin::name`] has it.
    pub origin: &'static str,
    /// By what they are about.
    pub groups: Vec<Group>,
    /// How the program ended and what it said on standard error, if it did not end well after the last check.
    pub broken: Option<String>,
}

/// What came of the checks about one thing.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Group {
    /// What they are about.
    pub name: &'static str,
    /// How many hold.
    pub passed: usize,
    /// Those that do not.
    pub failed: Vec<Finding>,
}

/// A check that does not hold.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Finding {
    /// What should be true.
    pub name: &'static str,
    /// What was tried.
    pub attempt: Trial,
    /// What was tried to prove that the attempt could have succeeded.
    pub control: Trial,
}

/// One thing that was tried.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Trial {
    /// A kind of probe, and its words.
    pub probe: &'static str,
    /// What should have come of it: one of these words.
    pub expected: &'static str,
    /// What came of it. Empty: the program did not come so far.
    pub found: String,
    /// Whether that is what should have come of it.
    pub holds: bool,
}

impl Posture {
    /// How many checks hold.
    #[must_use]
    pub fn passed(&self) -> usize {
        self.groups.iter().map(|group| group.passed).sum()
    }

    /// How many do not.
    #[must_use]
    pub fn failed(&self) -> usize {
        self.groups.iter().map(|group| group.failed.len()).sum()
    }

    /// Whether all hold, and the program ended well.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.failed() == 0 && self.broken.is_none()
    }
}

impl Trial {
    fn of(probe: &'static str, expected: &'static str, found: &str) -> Self {
        Self { probe, expected, found: found.to_owned(), holds: table::fits(expected, found) }
    }
}

/// Tries everything in a fresh VM of `scheduler`, by a program in `language`.
///
/// # Errors
/// As for [`Scheduler::run`]. What is wrong with the guest is in the posture.
pub async fn examine(scheduler: &Scheduler, language: Language) -> Result<Posture, Error> {
    let arch = host::arch()?;
    let program = table::program(language, arch, &table::checks(language, arch));
    let outcome = scheduler.run(RunRequest::new(language, program)).await?;
    Ok(judge(language, arch, &outcome))
}

/// The guest is not believed: what it writes is compared with words, line by line.
fn judge(language: Language, arch: Arch, outcome: &Outcome) -> Posture {
    let (groups, rest) = compare(&table::checks(language, arch), &String::from_utf8_lossy(&outcome.stdout));
    let said = String::from_utf8_lossy(&outcome.stderr);
    let broken = if outcome.exit != Exit::Code(0) || !said.is_empty() {
        Some(format!("{:?}: {}", outcome.exit, said.trim_end()))
    } else {
        (rest > 0).then(|| format!("{rest} lines of output belong to no check"))
    };
    Posture { language, origin: outcome.timing.origin.name(), groups, broken }
}

/// What the lines of `text` say of `checks`, and how many lines are left.
fn compare(checks: &[table::Check], text: &str) -> (Vec<Group>, usize) {
    let mut lines = text.lines();
    let mut groups: Vec<Group> = Vec::new();
    for check in checks {
        let (came, control) = lines.next().and_then(|line| line.split_once(' ')).unwrap_or(("", ""));
        if groups.last().is_none_or(|group| group.name != check.group) {
            groups.push(Group { name: check.group, passed: 0, failed: Vec::new() });
        }
        let Some(group) = groups.last_mut() else { continue };
        let attempt = Trial::of(check.attempt, check.refusals, came);
        let control = Trial::of(check.control, check.proofs, control);
        if attempt.holds && control.holds {
            group.passed += 1;
        } else {
            group.failed.push(Finding { name: check.name, attempt, control });
        }
    }
    (groups, lines.count())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_guest_says_is_compared_line_by_line_and_what_it_does_not_say_fails() {
        let checks = table::checks(Language::Raw, Arch::X86_64);
        let right = |check: &table::Check| {
            let first = |words: &'static str| words.split(' ').next().filter(|word| *word != "=").unwrap_or("=1");
            format!("{} {}\n", first(check.refusals), first(check.proofs))
        };
        let text: String = checks.iter().map(right).collect();
        let failed = |text: &str| {
            let (groups, rest) = compare(&checks, text);
            (groups.iter().map(|group| group.failed.len()).sum::<usize>(), rest)
        };
        assert_eq!(failed(&text), (0, 0));
        assert_eq!(failed(&format!("{text}more\n")), (0, 1));
        assert_eq!(failed(""), (checks.len(), 0));
        let (_, without_first) = text.split_once('\n').expect("it has lines");
        assert_eq!(failed(&format!("ok ok\n{without_first}")), (1, 0));
        assert_eq!(failed("\u{0}\u{fffd} \n"), (checks.len(), 0));
    }
}
