//! Which crate may name which, and what a crate may not contain.
//!
//! Floors: contracts (wire, qemu, image), and the remote cache beside them ← guest ← sandbox ← faces (cli, python). Siblings never name each other. xtask builds images,
//! vmtests, netbench and faults drive the public API like any caller.

use std::process::Command;

use serde_json::Value;

use crate::{
    assert_none,
    tree::{self, File},
};

/// Every crate of the workspace and the crates of the workspace that it may name.
const MAY_NAME: [(&str, &[&str]); 14] = [
    ("exec-sandbox-wire", &[]),
    ("exec-sandbox-qemu", &[]),
    ("exec-sandbox-image", &[]),
    ("exec-sandbox-gateway", &[]),
    ("exec-sandbox-remote", &[]),
    ("exec-sandbox-guest", &["exec-sandbox-wire"]),
    (
        "exec-sandbox",
        &[
            "exec-sandbox-wire",
            "exec-sandbox-qemu",
            "exec-sandbox-image",
            "exec-sandbox-remote",
            "exec-sandbox-gateway",
        ],
    ),
    ("exec-sandbox-cli", &["exec-sandbox"]),
    ("exec-sandbox-python", &["exec-sandbox"]),
    ("xtask", &["exec-sandbox-image"]),
    ("vmtests", &["exec-sandbox", "exec-sandbox-image"]),
    ("netbench", &["exec-sandbox", "exec-sandbox-gateway"]),
    ("netbench-traffic", &[]),
    ("faults", &["exec-sandbox", "exec-sandbox-wire", "exec-sandbox-image"]),
];

/// Names that say nothing about what is inside, so that everything ends up there.
const EMPTY_NAMES: [&str; 4] = ["common", "util", "core", "types"];

/// Crates kept pure, and what in a source line would break that.
const FOREIGN: [(&str, &[&str]); 5] = [
    ("crates/wire/src/", &["std::net", "std::os", "std::process", "std::fs", "Instant", "SystemTime", "tokio"]),
    ("crates/qemu/src/", &["std::process", "std::net", "std::os::unix::net", "tokio"]),
    ("crates/image/src/", &["std::net", "tokio", "qemu-system"]),
    ("crates/remote/src/", &["std::process", "qemu", "clap"]),
    ("crates/sandbox/src/", &["clap", "pyo3", "anstream", "indicatif"]),
];

/// Dependencies that a crate may not have, whatever it does with them.
const FOREIGN_DEPENDENCIES: [(&str, &[&str]); 3] = [
    ("exec-sandbox-wire", &["tokio", "tokio-util", "rustix", "libc", "mio", "socket2"]),
    ("exec-sandbox-qemu", &["tokio", "tokio-util", "rustix", "libc"]),
    ("exec-sandbox", &["clap", "pyo3", "anstream", "indicatif", "axum", "hyper"]),
];

/// A crate and what it depends on: normally, in build scripts and in tests.
struct Package {
    name: String,
    dependencies: Vec<String>,
}

fn workspace() -> Vec<Package> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--offline", "--no-deps", "--format-version", "1"])
        .current_dir(tree::root())
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    packages(&serde_json::from_slice(&output.stdout).expect("cargo metadata is JSON"))
}

fn packages(metadata: &Value) -> Vec<Package> {
    let name = |value: &Value| value["name"].as_str().expect("it has a name").to_owned();
    let list = |value: &Value| value.as_array().expect("it is a list").clone();
    list(&metadata["packages"])
        .iter()
        .map(|package| Package {
            name: name(package),
            dependencies: list(&package["dependencies"]).iter().map(name).collect(),
        })
        .collect()
}

fn wrong_edges(packages: &[Package]) -> Vec<String> {
    let mut wrong = Vec::new();
    for package in packages {
        let Some((_, allowed)) = MAY_NAME.iter().find(|(name, _)| *name == package.name) else {
            wrong.push(format!("{} is a crate without a place in the table of edges", package.name));
            continue;
        };
        let ours = |name: &&String| packages.iter().any(|other| other.name == **name);
        for dependency in package.dependencies.iter().filter(ours) {
            if !allowed.contains(&dependency.as_str()) {
                wrong.push(format!("{} names {dependency}", package.name));
            }
        }
    }
    wrong
}

fn empty_names(packages: &[Package]) -> Vec<String> {
    packages
        .iter()
        .filter(|package| package.name.split('-').any(|part| EMPTY_NAMES.contains(&part)))
        .map(|package| format!("the name of {} says nothing", package.name))
        .collect()
}

fn foreign_dependencies(packages: &[Package]) -> Vec<String> {
    let mut wrong = Vec::new();
    for (name, foreign) in FOREIGN_DEPENDENCIES {
        for package in packages.iter().filter(|package| package.name == name) {
            for dependency in package.dependencies.iter().filter(|it| foreign.contains(&it.as_str())) {
                wrong.push(format!("{name} depends on {dependency}"));
            }
        }
    }
    wrong
}

fn foreign_code(files: &[File]) -> Vec<String> {
    let mut wrong = Vec::new();
    for (directory, foreign) in FOREIGN {
        for file in files.iter().filter(|file| file.path.starts_with(directory)) {
            for (number, line) in file.text.lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with("//"))
            {
                for word in foreign.iter().filter(|word| has_word(line, word)) {
                    wrong.push(format!("{}:{}: {directory} may not contain {word}", file.path, number + 1));
                }
            }
        }
    }
    wrong
}

/// Whether `line` contains `word` with no identifier going on at either end of it.
fn has_word(line: &str, word: &str) -> bool {
    let is_identifier = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word)
        .any(|(at, _)| !line[..at].ends_with(is_identifier) && !line[at + word.len()..].starts_with(is_identifier))
}

#[test]
fn crates_name_only_the_crates_below_them() {
    assert_none(&wrong_edges(&workspace()));
}

#[test]
fn the_table_names_no_crate_that_is_gone() {
    let packages = workspace();
    let gone = MAY_NAME.iter().filter(|(name, _)| packages.iter().all(|package| package.name != *name));
    assert_none(&gone.map(|(name, _)| format!("{name} is in the table of edges only")).collect::<Vec<_>>());
}

#[test]
fn no_crate_has_an_empty_name() {
    assert_none(&empty_names(&workspace()));
}

#[test]
fn pure_crates_stay_pure() {
    assert_none(&foreign_dependencies(&workspace()));
    assert_none(&foreign_code(&tree::rust_files()));
}

mod the_rules_can_fail {
    use serde_json::json;

    use super::*;

    fn bad_workspace() -> Vec<Package> {
        let crate_of = |name: &str, dependencies: &[&str]| {
            let dependencies: Vec<Value> = dependencies.iter().map(|name| json!({ "name": name })).collect();
            json!({ "name": name, "dependencies": dependencies })
        };
        packages(&json!({ "packages": [
            crate_of("exec-sandbox", &["exec-sandbox-wire", "clap"]),
            crate_of("exec-sandbox-cli", &["exec-sandbox", "exec-sandbox-wire"]),
            crate_of("exec-sandbox-util", &[]),
            crate_of("exec-sandbox-wire", &["bytes", "tokio"]),
        ]}))
    }

    #[test]
    fn an_edge_to_the_wrong_floor_and_an_unknown_crate() {
        assert_eq!(
            wrong_edges(&bad_workspace()),
            [
                "exec-sandbox-cli names exec-sandbox-wire",
                "exec-sandbox-util is a crate without a place in the table of edges"
            ]
        );
    }

    #[test]
    fn a_crate_for_everything() {
        assert_eq!(empty_names(&bad_workspace()), ["the name of exec-sandbox-util says nothing"]);
    }

    #[test]
    fn a_dependency_that_brings_sockets() {
        assert_eq!(
            foreign_dependencies(&bad_workspace()),
            ["exec-sandbox-wire depends on tokio", "exec-sandbox depends on clap"]
        );
    }

    #[test]
    fn a_clock_in_the_contract() {
        let files = [
            File::new("crates/wire/src/a.rs", "//! Knows no Instant.\nuse std::time::Instant;\nstruct Instantly;"),
            File::new("crates/guest/src/a.rs", "use std::time::Instant;"),
        ];
        assert_eq!(foreign_code(&files), ["crates/wire/src/a.rs:2: crates/wire/src/ may not contain Instant"]);
    }
}
