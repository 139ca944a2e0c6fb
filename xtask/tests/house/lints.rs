//! Lints are policy: every crate has them, clippy knows the house's numbers, and unsafe code is admitted by name.

use crate::{
    assert_none,
    tree::{self, File},
};

/// The files that admit unsafe code. A new one is a decision, and this is where it is seen in review.
const UNSAFE_ROOMS: [&str; 28] = [
    "crates/cli/src/service/descriptors.rs",
    "crates/gateway/src/descriptors.rs",
    "crates/gateway/src/jail/linux.rs",
    "crates/gateway/src/memory.rs",
    "crates/guest/src/boot_id.rs",
    "crates/guest/src/files/identity.rs",
    "crates/guest/src/main.rs",
    "crates/guest/src/network/interface.rs",
    "crates/guest/src/port/watched.rs",
    "crates/guest/src/random.rs",
    "crates/guest/src/spawn.rs",
    "crates/guest/tests/wrappers/harness.rs",
    "crates/sandbox/src/accel/guest.rs",
    "crates/sandbox/src/accel/models.rs",
    "crates/sandbox/src/accel/tsc.rs",
    "crates/sandbox/src/accel/vcpu.rs",
    "crates/sandbox/src/maker/tests.rs",
    "crates/sandbox/src/process/child.rs",
    "crates/sandbox/src/process/landlock.rs",
    "crates/sandbox/src/process/namespaces.rs",
    "crates/sandbox/src/process/pidfd.rs",
    "crates/sandbox/src/process/spawn.rs",
    "crates/sandbox/src/process/spawner.rs",
    "faults/src/bin/fake-qemu/descriptors.rs",
    "faults/src/bin/fake-qemu/memory.rs",
    "faults/src/bin/fake-qemu/raise.rs",
    "faults/tests/suite/fork.rs",
    "vmtests/src/puppet.rs",
];

/// Lints that the rules of this house lean on.
const LEANED_ON: [&str; 6] = [
    "unsafe_code = \"deny\"",
    "undocumented_unsafe_blocks = \"deny\"",
    "allow_attributes = \"warn\"",
    "allow_attributes_without_reason = \"warn\"",
    "too_many_lines = \"warn\"",
    "mod_module_files = \"warn\"",
];

/// What `file` says in attributes about unsafe code, white space removed, with the line on which the attribute begins.
fn unsafe_attributes(file: &File) -> Vec<(usize, String)> {
    let lines: Vec<&str> = file.text.lines().collect();
    let mut found = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        if !line.trim_start().starts_with("#[") && !line.trim_start().starts_with("#![") {
            continue;
        }
        let end =
            lines[at..].iter().position(|line| line.trim_end().ends_with(']')).map_or(lines.len(), |end| at + end + 1);
        let attribute: String = lines[at..end].concat().split_whitespace().collect();
        if attribute.contains("unsafe_code") {
            found.push((at + 1, attribute));
        }
    }
    found
}

fn unexplained_unsafe(files: &[File]) -> Vec<String> {
    let explains =
        |attribute: &str| attribute.contains("expect(unsafe_code,reason=\"") && !attribute.contains("reason=\"\"");
    files
        .iter()
        .flat_map(|file| unsafe_attributes(file).into_iter().map(move |(line, attribute)| (file, line, attribute)))
        .filter(|(_, _, attribute)| !explains(attribute))
        .map(|(file, line, attribute)| format!("{}:{line}: {attribute} is not an expect with a reason", file.path))
        .collect()
}

fn unlisted_unsafe(files: &[File], rooms: &[&str]) -> Vec<String> {
    let admitting: Vec<&str> =
        files.iter().filter(|file| !unsafe_attributes(file).is_empty()).map(|file| file.path.as_str()).collect();
    let unlisted = admitting.iter().filter(|path| !rooms.contains(path));
    let stale = rooms.iter().filter(|path| !admitting.contains(path));
    unlisted
        .map(|path| format!("{path} admits unsafe code and is not on the list"))
        .chain(stale.map(|path| format!("{path} is on the list and admits no unsafe code")))
        .collect()
}

fn without_workspace_lints(manifests: &[File]) -> Vec<String> {
    let inherits = |text: &str| {
        let mut lines = text.lines().skip_while(|line| line.trim() != "[lints]").skip(1);
        lines.by_ref().take_while(|line| !line.starts_with('[')).any(|line| line.trim() == "workspace = true")
    };
    manifests
        .iter()
        .filter(|file| !inherits(&file.text))
        .map(|file| format!("{} does not inherit the workspace's lints", file.path))
        .collect()
}

fn missing_lints(workspace: &str, clippy: &str) -> Vec<String> {
    let missing = |text: &str, line: &str| !text.lines().any(|it| it.trim() == line);
    let mut wrong: Vec<String> = LEANED_ON
        .iter()
        .filter(|line| missing(workspace, line))
        .map(|line| format!("Cargo.toml lacks {line}"))
        .collect();
    for line in ["too-many-lines-threshold = 100", "too-many-arguments-threshold = 6"] {
        if missing(clippy, line) {
            wrong.push(format!("clippy.toml lacks {line}"));
        }
    }
    wrong
}

#[test]
fn unsafe_code_is_expected_with_a_reason() {
    assert_none(&unexplained_unsafe(&tree::rust_files()));
}

#[test]
fn the_rooms_with_unsafe_code_are_the_listed_ones() {
    assert_none(&unlisted_unsafe(&tree::rust_files(), &UNSAFE_ROOMS));
}

#[test]
fn every_crate_inherits_the_lints() {
    let is_crate = |file: &File| file.path.ends_with("/Cargo.toml") && file.text.contains("version.workspace = true");
    let manifests: Vec<File> = tree::files().into_iter().filter(is_crate).collect();
    assert!(!manifests.is_empty(), "the workspace has crates");
    assert_none(&without_workspace_lints(&manifests));
}

#[test]
fn clippy_knows_the_numbers_of_the_house() {
    let read = |name: &str| std::fs::read_to_string(tree::root().join(name)).expect("it is there");
    assert_none(&missing_lints(&read("Cargo.toml"), &read("clippy.toml")));
}

mod the_rules_can_fail {
    use super::*;

    fn room(path: &str, attribute: &str) -> File {
        File::new(path, &format!("//! Head.\n{attribute}\nmod inside {{}}\n"))
    }

    #[test]
    fn unsafe_code_that_is_allowed_or_has_no_reason() {
        let files = [
            room("good.rs", "#![expect(\n    unsafe_code,\n    reason = \"calls clone3, which no crate wraps\"\n)]"),
            room("allowed.rs", "#[allow(unsafe_code, reason = \"because\")]"),
            room("silent.rs", "#[expect(unsafe_code)]"),
            room("empty.rs", "#[expect(unsafe_code, reason = \"\")]"),
        ];
        let found = unexplained_unsafe(&files);
        assert_eq!(found.len(), 3, "{found:?}");
        assert!(found.iter().all(|line| !line.contains("good.rs")));
    }

    #[test]
    fn a_room_that_nobody_listed_and_one_that_is_gone() {
        let files = [room("new.rs", "#[expect(unsafe_code, reason = \"new\")]"), room("old.rs", "#[derive(Debug)]")];
        assert_eq!(
            unlisted_unsafe(&files, &["old.rs"]),
            ["new.rs admits unsafe code and is not on the list", "old.rs is on the list and admits no unsafe code"]
        );
    }

    #[test]
    fn a_crate_with_lints_of_its_own() {
        let manifests = [
            File::new("a/Cargo.toml", "[package]\n\n[lints]\nworkspace = true\n"),
            File::new("b/Cargo.toml", "[package]\n\n[lints]\n\n[dependencies]\nworkspace = true\n"),
            File::new("c/Cargo.toml", "[package]\n"),
        ];
        assert_eq!(without_workspace_lints(&manifests).len(), 2);
    }

    #[test]
    fn a_lint_that_was_turned_off() {
        let workspace = LEANED_ON.join("\n").replace("\"deny\"", "\"warn\"");
        assert_eq!(missing_lints(&workspace, "too-many-lines-threshold = 100").len(), 3);
    }
}
