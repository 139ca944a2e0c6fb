//! The checks as data, and the program that tries them in a language. Pure.
//!
//! `checks.txt` is part of this program and read by its tests line by line, so a line that cannot be read is a failure there and left
//! out here.

use exec_sandbox_qemu::Arch;

use super::calls;
use crate::Language;

const CHECKS: &str = include_str!("checks.txt");

/// One check.
#[derive(Clone, Copy, Debug)]
pub(super) struct Check {
    /// What it is among.
    pub(super) group: &'static str,
    /// What shall be true.
    pub(super) name: &'static str,
    /// What is tried.
    pub(super) attempt: &'static str,
    /// What may come of it.
    pub(super) refusals: &'static str,
    /// The same where it comes to something else.
    pub(super) control: &'static str,
    /// What has to come of that.
    pub(super) proofs: &'static str,
}

/// Whether `answer` is one of the words that are `expected`. `=` alone stands for any value.
pub(super) fn fits(expected: &str, answer: &str) -> bool {
    expected.split_whitespace().any(|one| match one {
        "=" => answer.len() > 1 && answer.starts_with('='),
        _ => one == answer,
    })
}

/// The checks that a program in `language` can make on `arch`.
pub(super) fn checks(language: Language, arch: Arch) -> Vec<Check> {
    let knows = |check: &Check| match kind(check.attempt) {
        // Machine code is x86's.
        "stub" => language == Language::Python && arch == Arch::X86_64,
        "python" => language == Language::Python,
        "call" => {
            let has = |probe| words(probe, arch).is_some();
            language != Language::Raw && has(check.attempt) && has(check.control)
        }
        "limit" => language != Language::JavaScript,
        _ => true,
    };
    all().filter(knows).collect()
}

/// The program that makes `checks`, and writes a line for each: what came of the attempt, and of the control.
pub(super) fn program(language: Language, arch: Arch, checks: &[Check]) -> String {
    let pairs: Vec<[Vec<String>; 2]> = checks
        .iter()
        .map(|check| [check.attempt, check.control].map(|probe| words(probe, arch).unwrap_or_default()))
        .collect();
    // JSON within a string of JSON, which is a string of Python's and of JavaScript's as well.
    let text = || serde_json::Value::from(serde_json::json!(pairs).to_string());
    match language {
        Language::Python => format!("CHECKS = {}\n{}", text(), include_str!("probe.py")),
        Language::JavaScript => format!("const CHECKS = {};\n{}", text(), include_str!("probe.js")),
        Language::Raw => {
            let quoted = |words: &[String]| words.iter().map(|word| quote(word)).collect::<Vec<_>>().join(" ");
            let lines: Vec<String> = pairs
                .iter()
                .map(|[attempt, control]| format!("check {} -- {}\n", quoted(attempt), quoted(control)))
                .collect();
            format!("{}\n{}", include_str!("probe.sh"), lines.concat())
        }
    }
}

fn all() -> impl Iterator<Item = Check> {
    let mut group = "";
    CHECKS.lines().filter_map(move |line| {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            group = name;
            return None;
        }
        if line.starts_with('#') { None } else { read(group, line) }
    })
}

fn read(group: &'static str, line: &'static str) -> Option<Check> {
    let mut fields = line.split(" | ").map(str::trim);
    let mut next = || fields.next();
    let (name, attempt, refusals, control) = (next()?, next()?, next()?, next()?);
    let proofs = next().unwrap_or("ok");
    Some(Check { group, name, attempt, refusals, control, proofs })
}

fn kind(probe: &str) -> &str {
    probe.split_whitespace().next().unwrap_or("")
}

/// A probe's words, with the number of the system call that it names; `None`: the machine has no such call.
fn words(probe: &str, arch: Arch) -> Option<Vec<String>> {
    let mut words: Vec<String> = probe.split_whitespace().map(str::to_owned).collect();
    if kind(probe) == "call" {
        let name = words.get_mut(1)?;
        if !name.starts_with("0x") {
            *name = calls::number(arch, name)?.to_string();
        } else if arch != Arch::X86_64 {
            return None;
        }
    }
    Some(words)
}

fn quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Each kind, and how many words follow it at least and at most.
    const KINDS: [(&str, usize, usize); 14] = [
        ("exists", 1, 1),
        ("read", 1, 1),
        ("write", 1, 1),
        ("create", 1, 1),
        ("list", 1, 1),
        ("run", 1, 1),
        ("call", 1, 7),
        ("stub", 1, 1),
        ("kill", 2, 2),
        ("word", 2, 2),
        ("mounted", 2, 2),
        ("status", 1, 1),
        ("limit", 1, 1),
        ("python", 1, 99),
    ];

    #[test]
    fn every_line_is_a_check_whose_control_is_of_its_kind_and_tries_something_else() {
        let lines = CHECKS.lines().filter(|line| !line.is_empty() && !line.starts_with(['#', '[']));
        assert_eq!(all().count(), lines.count());
        for check in all() {
            let name = check.name;
            assert!(!check.group.is_empty(), "{name}");
            assert_eq!(kind(check.attempt), kind(check.control), "{name}");
            assert_ne!(check.attempt, check.control, "{name}: it proves nothing");
            for probe in [check.attempt, check.control] {
                let (count, kind) = (probe.split_whitespace().count() - 1, kind(probe));
                let &(_, least, most) = KINDS.iter().find(|(known, ..)| *known == kind).expect(kind);
                assert!((least..=most).contains(&count), "{name}: {probe}");
                assert!(words(probe, Arch::X86_64).is_some(), "{name}: {probe} names an unknown call");
            }
        }
    }

    #[test]
    fn no_two_checks_have_one_name() {
        let names: BTreeSet<&str> = all().map(|check| check.name).collect();
        assert_eq!(names.len(), all().count());
    }

    #[test]
    fn there_are_200_checks_for_python_and_100_for_each_other_language_at_least() {
        for (language, least) in [(Language::Python, 200), (Language::JavaScript, 100), (Language::Raw, 100)] {
            let count = checks(language, Arch::X86_64).len();
            assert!(count >= least, "{language} has {count}");
        }
        assert!(checks(Language::Python, Arch::Aarch64).len() < checks(Language::Python, Arch::X86_64).len());
    }

    #[test]
    fn an_answer_is_one_of_the_words_or_any_value() {
        for (expected, answer, is_among) in [
            ("=1000 EPERM", "=1000", true),
            ("=1000 EPERM", "EPERM", true),
            ("=1000 EPERM", "=100", false),
            ("=1000 EPERM", "", false),
            ("=", "=17", true),
            ("=", "=", false),
            ("=", "ENOENT", false),
        ] {
            assert_eq!(fits(expected, answer), is_among, "{expected}: {answer}");
        }
    }

    #[test]
    fn words_reach_each_language_as_they_are() {
        let check = read("g", r#"n | python 'a"\ | ok | call getpid"#).expect("it is one");
        let python = program(Language::Python, Arch::X86_64, &[check]);
        let line = python.lines().next().expect("it begins with the checks").strip_prefix("CHECKS = ");
        let inner: String = serde_json::from_str(line.expect("it is a string")).expect("it is JSON");
        assert_eq!(inner, r#"[[["python","'a\"\\"],["call","39"]]]"#);
        let shell = program(Language::Raw, Arch::X86_64, &[check]);
        assert!(shell.ends_with("\ncheck 'python' ''\\''a\"\\' -- 'call' '39'\n"), "{shell}");
    }
}
