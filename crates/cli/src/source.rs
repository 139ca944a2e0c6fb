//! Sources: what was typed → code with a language.
//!
//! `-` is standard input, a file that exists is read, everything else is code. A word that looks like the name of a file and
//! is none is refused: running `scirpt.py` as Python helps nobody.

use std::{
    ffi::OsStr,
    fs,
    io::{self, Read},
    path::Path,
};

use exec_sandbox::Language;

use crate::{args::Typed, failure::Failure};

/// The language of code that says nothing about itself.
pub(crate) const DEFAULT_LANGUAGE: Language = Language::Python;

/// Most bytes that are read of one source: more than the longest program that is accepted, so that the library says what is
/// wrong with a long one, and little enough that an endless one (`/dev/zero`) is noticed.
const MAX_BYTES: u64 = 8 * 1024 * 1024;

/// Longest label, in characters: a header stays on one line.
const MAX_LABEL_CHARS: usize = 60;

/// Code that can be run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Source {
    /// What it is called in headers, notes and JSON.
    pub(crate) label: String,
    pub(crate) language: Language,
    pub(crate) code: String,
}

/// What `typed` means, in the order in which it was typed. Nothing typed is standard input.
pub(crate) fn resolve(
    typed: &[Typed],
    language: Option<Language>,
    stdin: &mut dyn Read,
) -> Result<Vec<Source>, Failure> {
    let nothing = [Typed::Word("-".into())];
    let typed = if typed.is_empty() { &nothing } else { typed };
    if typed.iter().filter(|typed| is_stdin(typed)).count() > 1 {
        return Err(Failure::usage("standard input can be a source only once", "put the programs into files"));
    }
    typed.iter().map(|typed| resolve_one(typed, language, stdin)).collect()
}

/// Whether some source is read from standard input.
pub(crate) fn reads_stdin(typed: &[Typed]) -> bool {
    typed.is_empty() || typed.iter().any(is_stdin)
}

fn is_stdin(typed: &Typed) -> bool {
    matches!(typed, Typed::Word(word) if word == "-")
}

fn resolve_one(typed: &Typed, language: Option<Language>, stdin: &mut dyn Read) -> Result<Source, Failure> {
    match typed {
        Typed::Code(code) => Ok(code_source(code, language)),
        Typed::Word(word) if word == "-" => {
            let label = "standard input";
            Ok(text_source(label, read(label, stdin)?, language.unwrap_or(DEFAULT_LANGUAGE)))
        }
        Typed::Word(word) => match fs::metadata(word) {
            Ok(metadata) if metadata.is_dir() => {
                let name = word.display();
                Err(Failure::usage(
                    format!("{name} is a directory"),
                    format!("name a file, or run it as code with -c '{name}'"),
                ))
            }
            Ok(_) => file_source(Path::new(word), language),
            Err(error) => word_source(word, language, &error),
        },
    }
}

fn code_source(code: &str, language: Option<Language>) -> Source {
    text_source(&label_of(code), code.to_owned(), language.unwrap_or(DEFAULT_LANGUAGE))
}

fn text_source(label: &str, code: String, language: Language) -> Source {
    Source { label: label.to_owned(), language, code }
}

fn file_source(path: &Path, language: Option<Language>) -> Result<Source, Failure> {
    let label = path.display().to_string();
    let mut file = fs::File::open(path).map_err(|error| unreadable(&label, &error))?;
    let code = read(&label, &mut file)?;
    let language = match language {
        Some(language) => language,
        None => language_of(path, &code)?,
    };
    Ok(text_source(&label, code, language))
}

/// A word that names no file: code, unless it was meant to name one.
fn word_source(word: &OsStr, language: Option<Language>, error: &io::Error) -> Result<Source, Failure> {
    let Some(code) = word.to_str() else {
        return Err(Failure::Usage {
            message: format!("{} is neither a file nor UTF-8 text", word.display()),
            help: None,
        });
    };
    if !looks_like_a_path(code, language) {
        return Ok(code_source(code, language));
    }
    let help = format!("check its name, or run it as code with -c '{code}'");
    match error.kind() {
        io::ErrorKind::NotFound => Err(Failure::usage(format!("no such file: {code}"), help)),
        _ => Err(Failure::usage(format!("looking for the file {code}: {error}"), help)),
    }
}

fn looks_like_a_path(word: &str, language: Option<Language>) -> bool {
    let is_plain = |c: char| c.is_alphanumeric() || "._-+/~@,".contains(c);
    if word.is_empty() || !word.chars().all(is_plain) {
        return false;
    }
    let is_source = Language::of_file(Path::new(word)).is_some();
    // `/bin/true` is a whole shell program.
    let begins_like_one = ["./", "../", "/", "~/"].iter().any(|start| word.starts_with(start));
    is_source || begins_like_one && language != Some(Language::Raw)
}

fn language_of(path: &Path, code: &str) -> Result<Language, Failure> {
    if let Some(language) = Language::of_file(path).or_else(|| language_of_interpreter(code)) {
        return Ok(language);
    }
    if path.extension().is_none() {
        return Ok(DEFAULT_LANGUAGE);
    }
    Err(Failure::usage(
        format!("the name of {} does not say what language it is in", path.display()),
        "name the language: -l python, -l javascript or -l raw",
    ))
}

/// The language that a `#!` line asks for.
fn language_of_interpreter(code: &str) -> Option<Language> {
    let mut words = code.lines().next()?.strip_prefix("#!")?.split_whitespace();
    let program = |word: &str| word.rsplit('/').next().unwrap_or_default().to_owned();
    let mut name = program(words.next()?);
    if name == "env" {
        name = program(words.find(|word| !word.starts_with('-'))?);
    }
    match name.as_str() {
        name if name.starts_with("python") => Some(Language::Python),
        "bun" | "node" | "deno" => Some(Language::JavaScript),
        "bash" | "sh" | "dash" => Some(Language::Raw),
        _ => None,
    }
}

fn read(label: &str, from: &mut dyn Read) -> Result<String, Failure> {
    let mut bytes = Vec::new();
    from.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(|error| unreadable(label, &error))?;
    if bytes.len() as u64 > MAX_BYTES {
        let message = format!("{label} is longer than {} MiB, which no program may be", MAX_BYTES >> 20);
        return Err(Failure::Usage { message, help: None });
    }
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        Failure::usage(format!("{label} is not UTF-8 text: byte {at} is not part of a character"), "save it as UTF-8")
    })
}

fn unreadable(label: &str, error: &io::Error) -> Failure {
    Failure::Usage { message: format!("reading {label}: {error}"), help: None }
}

/// The first line of code that says something, made fit for a header.
fn label_of(code: &str) -> String {
    let line = code.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or("(nothing)");
    let mut label: String = line.chars().filter(|c| !c.is_control()).take(MAX_LABEL_CHARS).collect();
    if label.len() < code.trim().len() {
        label.push('…');
    }
    label
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolved(words: &[&str], language: Option<Language>) -> Result<Vec<Source>, String> {
        let typed: Vec<Typed> = words.iter().map(|word| Typed::Word(word.into())).collect();
        resolve(&typed, language, &mut "print('typed')".as_bytes()).map_err(|failure| match failure {
            Failure::Usage { message, .. } => message,
            other => panic!("{other:?} is no usage error"),
        })
    }

    fn one(word: &str, language: Option<Language>) -> Result<Source, String> {
        resolved(&[word], language).map(|mut sources| sources.remove(0))
    }

    fn file(name: &str, content: &[u8]) -> (tempfile::TempDir, String) {
        let directory = tempfile::tempdir().expect("a directory is made");
        let path = directory.path().join(name);
        fs::write(&path, content).expect("the file is written");
        let path = path.to_str().expect("the path is UTF-8").to_owned();
        (directory, path)
    }

    #[test]
    fn code_is_python_unless_said_otherwise() {
        let source = one("print(1)", None).expect("it is code");
        assert_eq!((source.language, source.code.as_str()), (Language::Python, "print(1)"));
        assert_eq!(one("1/2", Some(Language::JavaScript)).expect("it is code").language, Language::JavaScript);
    }

    #[test]
    fn a_word_that_looks_like_a_missing_file_is_refused() {
        for word in ["scirpt.py", "./hello", "../x", "/no/such/file", "~/x", "a-b/c.test.ts", "run.sh"] {
            assert_eq!(one(word, None), Err(format!("no such file: {word}")));
        }
        assert_eq!(one("run.sh", Some(Language::Raw)), Err("no such file: run.sh".into()));
    }

    #[test]
    fn code_that_resembles_a_path_is_still_code() {
        for word in ["1/2", "/a/.test('a')", "import sys; sys.path", "x.py = 1", "os.path", "print", ""] {
            assert_eq!(one(word, None).map(|source| source.code), Ok(word.to_owned()));
        }
        assert_eq!(
            one("/no/such/program", Some(Language::Raw)).map(|source| source.code),
            Ok("/no/such/program".into())
        );
    }

    #[test]
    fn a_files_language_is_that_of_its_extension_unless_said_otherwise() {
        let (_directory, path) = file("a.mjs", b"1");
        assert_eq!(one(&path, None).expect("it is a file").language, Language::JavaScript);
        assert_eq!(one(&path, Some(Language::Raw)).expect("it is a file").language, Language::Raw);
    }

    #[test]
    fn a_file_without_extension_may_name_its_interpreter() {
        for (head, language) in [
            ("#!/usr/bin/env -S python3 -u\n", Language::Python),
            ("#!/bin/bash -e\n", Language::Raw),
            ("#! /usr/bin/env bun\n", Language::JavaScript),
            ("x = 1\n", Language::Python),
        ] {
            let (_directory, path) = file("tool", head.as_bytes());
            assert_eq!(one(&path, None).expect("it is a file").language, language, "{head}");
        }
    }

    #[test]
    fn a_file_of_another_kind_needs_a_language() {
        let (_directory, path) = file("a.rb", b"puts 1");
        assert!(one(&path, None).expect_err("nobody said Ruby").contains("does not say what language"));
        assert!(one(&path, Some(Language::Raw)).is_ok());
    }

    #[test]
    fn a_file_that_is_not_text_is_refused_with_the_place() {
        let (_directory, path) = file("a.py", b"ok\xff");
        assert!(
            one(&path, None)
                .expect_err("it is not UTF-8")
                .ends_with("not UTF-8 text: byte 2 is not part of a character")
        );
    }

    #[test]
    fn an_endless_file_is_noticed() {
        let error = one("/dev/zero", Some(Language::Python)).expect_err("it has no end");
        assert_eq!(error, "/dev/zero is longer than 8 MiB, which no program may be");
    }

    #[test]
    fn a_directory_is_no_source() {
        let (directory, _) = file("a", b"");
        assert!(
            one(directory.path().to_str().expect("UTF-8"), None).expect_err("no source").ends_with("is a directory")
        );
    }

    #[test]
    fn standard_input_is_a_source_once() {
        assert_eq!(one("-", None).expect("it is read").code, "print('typed')");
        assert_eq!(resolved(&[], None).expect("it is read")[0].code, "print('typed')");
        assert!(resolved(&["-", "print(1)", "-"], None).is_err());
    }

    #[test]
    fn a_label_is_one_short_line() {
        assert_eq!(label_of("\n  print(1)\nprint(2)"), "print(1)…");
        assert_eq!(label_of("print(1)\n"), "print(1)");
        assert_eq!(label_of("a\u{1b}[31m"), "a[31m…");
        assert_eq!(label_of(&"x".repeat(100)).chars().count(), MAX_LABEL_CHARS + 1);
    }
}
