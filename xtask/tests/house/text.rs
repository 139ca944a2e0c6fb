//! What no tracked text contains: paths of somebody's machine, and hosts from which packages come.
//!
//! The patterns are put together at run time, or this file would be the first to be found.

use crate::{
    assert_none,
    tree::{self, File},
};

/// A text that stays out, and why.
struct Banned {
    pattern: String,
    why: &'static str,
}

fn banned() -> Vec<Banned> {
    let path = |name: &str| Banned { pattern: format!("/{name}/"), why: "a path of one machine" };
    let host =
        |parts: &[&str]| Banned { pattern: parts.join("."), why: "a registry's host: it is configuration, not source" };
    let mut banned: Vec<Banned> = ["work", "root", "farm"].map(path).into();
    banned.extend(
        [
            &["deb", "debian", "org"][..],
            &["security", "debian", "org"],
            &["snapshot", "debian", "org"],
            &["registry", "npmjs", "org"],
            &["files", "pythonhosted", "org"],
            &["pypi", "org"],
            &["static", "crates", "io"],
            &["index", "crates", "io"],
            &["crates", "io/api"],
        ]
        .map(host),
    );
    banned
}

/// Lock files name where packages came from; that is what they are for.
fn is_lock(file: &File) -> bool {
    file.path.ends_with(".lock")
}

fn violations(files: &[File]) -> Vec<String> {
    let banned = banned();
    let mut wrong = Vec::new();
    for file in files.iter().filter(|file| !is_lock(file)) {
        for (number, line) in file.text.lines().enumerate() {
            for Banned { pattern, why } in banned.iter().filter(|it| stands_alone(line, &it.pattern)) {
                wrong.push(format!("{}:{}: {pattern} is {why}", file.path, number + 1));
            }
        }
    }
    wrong
}

/// Whether `pattern` stands in `line` where a path or a host begins: a directory of that name inside another is somebody else's.
fn stands_alone(line: &str, pattern: &str) -> bool {
    line.match_indices(pattern)
        .any(|(at, _)| !line[..at].ends_with(|c: char| c.is_alphanumeric() || "_-.}".contains(c)))
}

#[test]
fn no_text_names_a_machine_or_a_registry() {
    assert_none(&violations(&tree::files()));
}

mod the_rules_can_fail {
    use super::*;

    #[test]
    fn a_path_and_a_host_are_found_and_a_lock_file_may_name_them() {
        let text: String = banned().iter().map(|it| format!("see \"{}\".\n", it.pattern)).collect();
        let files = [File::new("README.md", &text), File::new("Cargo.lock", &text)];
        assert_eq!(violations(&files).len(), banned().len());
    }

    #[test]
    fn a_directory_of_that_name_elsewhere_is_nobodys_machine() {
        let files = [File::new("a.md", &format!("overlay{}here", banned()[0].pattern))];
        assert_none(&violations(&files));
    }
}
