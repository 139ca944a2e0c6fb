//! The shape of a file: its head, its length, its name.

use crate::{
    assert_none,
    tree::{self, File},
};

/// Longest file without its unit tests. Beyond it a room has become two.
const MAX_LINES: usize = 500;

/// Lines of `text` before and after its unit tests, which stand in a module that opens and closes at the left margin.
fn lines_without_tests(text: &str) -> usize {
    let lines: Vec<&str> = text.lines().collect();
    let opens = |pair: &[&str]| pair[0] == "#[cfg(test)]" && pair[1].starts_with("mod ") && pair[1].ends_with('{');
    let Some(start) = lines.windows(2).position(opens) else { return lines.len() };
    let length = lines[start..].iter().position(|line| *line == "}").map_or(lines.len() - start, |end| end + 1);
    lines.len() - length
}

fn too_long(files: &[File]) -> Vec<String> {
    files
        .iter()
        .map(|file| (&file.path, lines_without_tests(&file.text)))
        .filter(|(_, lines)| *lines > MAX_LINES)
        .map(|(path, lines)| format!("{path} has {lines} lines without its tests, {MAX_LINES} are enough"))
        .collect()
}

fn without_head(files: &[File]) -> Vec<String> {
    files
        .iter()
        .filter(|file| !file.text.starts_with("//! "))
        .map(|file| format!("{} does not open with what it owns (//! …)", file.path))
        .collect()
}

fn named_mod(files: &[File]) -> Vec<String> {
    files
        .iter()
        .filter(|file| file.path.rsplit('/').next() == Some("mod.rs"))
        .map(|file| format!("{} should have the name of its module", file.path))
        .collect()
}

#[test]
fn no_file_is_too_long() {
    assert_none(&too_long(&tree::rust_files()));
}

#[test]
fn every_file_opens_with_what_it_owns() {
    assert_none(&without_head(&tree::rust_files()));
}

#[test]
fn every_module_has_a_file_of_its_name() {
    assert_none(&named_mod(&tree::rust_files()));
}

mod the_rules_can_fail {
    use super::*;

    #[test]
    fn a_long_file_and_one_whose_tests_are_long() {
        let code = "//! Head.\n".repeat(MAX_LINES);
        let tests = format!("#[cfg(test)]\nmod tests {{\n{}}}\n", "    // A line.\n".repeat(MAX_LINES));
        let good = File::new("good.rs", &format!("{code}{tests}"));
        let bad = File::new("bad.rs", &format!("{code}{tests}// One more.\n"));
        assert_eq!(too_long(&[good, bad]), ["bad.rs has 501 lines without its tests, 500 are enough"]);
    }

    #[test]
    fn a_file_that_begins_with_code_or_with_an_empty_head() {
        let files = [File::new("a.rs", "use std::fmt;\n"), File::new("b.rs", "//!\n"), File::new("c.rs", "//! C.\n")];
        assert_eq!(without_head(&files).len(), 2);
    }

    #[test]
    fn a_module_called_mod() {
        let files = [File::new("src/a/mod.rs", ""), File::new("src/amod.rs", "")];
        assert_eq!(named_mod(&files), ["src/a/mod.rs should have the name of its module"]);
    }
}
