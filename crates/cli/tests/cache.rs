//! `sbx cache` from outside: what is listed, what goes and what stays. What is in the cache here is of no use, and says so; what is of
//! use is made by VMs.

use std::{
    fs::{self, DirBuilder, File},
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use assert_cmd::Command;
use serde_json::{Value, json};
use tempfile::TempDir;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Each with the store it is in, the digit that its key consists of, how much it takes in KiB, and the days since its last use.
const ENTRIES: [(&str, char, usize, u32); 3] =
    [("memory-snapshots", 'a', 64, 1), ("package-layers", 'b', 64, 3), ("package-layers", 'c', 64, 9)];

/// A host with a cache.
struct World {
    dir: TempDir,
}

impl World {
    fn new() -> Self {
        let world = Self { dir: tempfile::tempdir().expect("a directory is made") };
        for (store, digit, kib, days) in ENTRIES {
            let path = world.path(store, digit);
            DirBuilder::new().recursive(true).mode(0o700).create(&path).expect("it is new");
            let content = File::create(path.join("content")).expect("it is new");
            std::io::Write::write_all(&mut &content, &vec![7; kib << 10]).expect("there is room");
            // Until then blocks are only promised.
            content.sync_all().expect("it is a file");
            let used = File::create(path.join("used")).expect("it is new");
            used.set_modified(SystemTime::now() - days * DAY).expect("it is ours");
        }
        world
    }

    fn path(&self, store: &str, digit: char) -> PathBuf {
        self.dir.path().join("cache").join(store).join(key(digit))
    }

    /// The digits of the keys that are there.
    fn there(&self) -> String {
        ENTRIES.iter().filter(|(store, digit, ..)| self.path(store, *digit).exists()).map(|entry| entry.1).collect()
    }

    fn sbx(&self, words: &[&str]) -> (Option<i32>, String, String) {
        let output = Command::new(env!("CARGO_BIN_EXE_sbx"))
            .args(words)
            .env_clear()
            .env("HOME", self.dir.path())
            .env("EXEC_SANDBOX_CACHE_DIR", self.dir.path().join("cache"))
            .env("EXEC_SANDBOX_RUN_DIR", self.dir.path().join("run"))
            .output()
            .expect("sbx runs");
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("sbx speaks UTF-8");
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    }

    fn json(&self, words: &[&str]) -> Value {
        let (code, stdout, stderr) = self.sbx(words);
        assert_eq!((code, &*stderr), (Some(0), ""));
        serde_json::from_str(&stdout).expect("standard output is JSON")
    }
}

fn key(digit: char) -> String {
    digit.to_string().repeat(64)
}

fn keys(entries: &Value) -> Vec<&str> {
    entries.as_array().expect("it is a list").iter().map(|entry| entry["key"].as_str().expect("it has one")).collect()
}

#[test]
fn what_is_kept_is_listed_for_people_and_for_programs() {
    let world = World::new();
    let (code, stdout, _) = world.sbx(&["cache", "ls"]);
    assert_eq!(code, Some(0));
    let lines: Vec<Vec<&str>> = stdout.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["KIND", "KEY", "SIZE", "LAST", "USE", "PINNED", "WHAT"]);
    assert_eq!(lines[1][..2], ["snapshot", "aaaaaaaaaaaa"]);
    assert_eq!(lines[3][..2], ["packages", "cccccccccccc"]);
    assert_eq!(lines[3][4..9], ["9", "d", "ago", "no", "damaged:"]);
    let all = world.json(&["cache", "ls", "--json"]);
    assert_eq!(keys(&all), [key('a'), key('b'), key('c')]);
    let mut entry = all[1].clone();
    assert!(entry["size_bytes"].as_u64().is_some_and(|bytes| bytes >= 64 << 10), "{entry}");
    assert!(entry["last_use_unix_s"].is_u64(), "{entry}");
    for (name, value) in [("size_bytes", json!(0)), ("last_use_unix_s", json!(0))] {
        entry[name] = value;
    }
    let expected = json!({
        "kind": "packages", "key": key('b'), "size_bytes": 0, "last_use_unix_s": 0, "pinned": false, "state": "damaged",
        "why": "manifest.json is missing", "language": null, "memory_mib": null, "packages": null, "installed": null,
        "path": world.path("package-layers", 'b'),
    });
    assert_eq!(entry, expected);
}

#[test]
fn what_is_too_old_or_too_much_goes_and_a_dry_run_tells_it_before() {
    let world = World::new();
    let told = world.json(&["cache", "gc", "--max-age", "7d", "--dry-run", "--json"]);
    assert_eq!((keys(&told["removed"]), &told["kept"], &told["dry_run"]), (vec![&*key('c')], &json!(2), &json!(true)));
    assert_eq!(world.there(), "abc");
    let (code, stdout, _) = world.sbx(&["cache", "gc", "--max-age", "7d"]);
    assert_eq!((code, world.there().as_str()), (Some(0), "ab"));
    let lines: Vec<&str> = stdout.lines().collect();
    assert!(lines[0].starts_with("removed packages cccccccccccc, "), "{stdout}");
    assert!(lines[1].starts_with("Freed ") && lines[1].contains("; 2 are kept, "), "{stdout}");
    assert_eq!(world.sbx(&["cache", "gc", "--max-size", "100K"]).0, Some(0));
    assert_eq!(world.there(), "a", "what was not used for longest went first");
}

#[test]
fn what_is_pinned_stays_until_it_is_unpinned() {
    let world = World::new();
    let (code, stdout, stderr) = world.sbx(&["cache", "pin", "cccc"]);
    assert_eq!((code, stdout, &*stderr), (Some(0), key('c') + "\n", ""));
    assert_eq!(world.json(&["cache", "ls", "--json"])[2]["pinned"], true);
    world.json(&["cache", "gc", "--all", "--json"]);
    assert_eq!(world.there(), "c");
    assert_eq!(world.sbx(&["cache", "unpin", &key('c')]).0, Some(0));
    world.json(&["cache", "gc", "--all", "--json"]);
    assert_eq!(world.there(), "");
}

#[test]
fn a_key_that_is_none_is_refused_with_those_there_are_and_nothing_goes() {
    let world = World::new();
    let (code, stdout, stderr) = world.sbx(&["cache", "rm", "a", "d"]);
    assert_eq!((code, &*stdout, world.there().as_str()), (Some(2), "", "abc"));
    assert!(stderr.contains("\"d\"") && stderr.contains("nothing in the cache has it"), "{stderr}");
    assert!(stderr.contains("help: `sbx cache ls` lists what is there: aaaaaaaaaaaa, bbbbbbbbbbbb"), "{stderr}");
    let (code, stdout, _) = world.sbx(&["cache", "rm", "a", "c"]);
    assert_eq!((code, stdout, world.there().as_str()), (Some(0), format!("{}\n{}\n", key('a'), key('c')), "b"));
    assert!(!has_trash(world.dir.path()));
}

fn has_trash(dir: &Path) -> bool {
    ["memory-snapshots", "package-layers"]
        .iter()
        .any(|store| fs::read_dir(dir.join("cache").join(store).join("trash")).is_ok_and(|entries| entries.count() > 0))
}
