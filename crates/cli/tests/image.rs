//! `sbx image` from outside: from a directory and from a server, by two processes at once, what it says when it may not, and what is
//! left of it.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Output, Stdio},
    sync::{Arc, Mutex},
    thread,
};

use assert_cmd::Command;
use serde_json::{Value, json};
use tempfile::TempDir;

/// Blobs of an image that boots nothing, with their digests.
const BLOBS: [(&str, &str, &str); 3] = [
    ("kernel", "kernel", "7b28c281c83b5ff162d9b2a6e697daca7b3b261a4577a619dd0b8689d871830a"),
    ("initramfs", "agent", "363fa6804258ec0314090d1a0238bfeb045ee272c909de19383847694571b5e6"),
    ("root", "root", "92a2b787a06d7272df43eaf87acc3b9c1d315d79d599d61c285983483e431998"),
];

/// A place where an image is published, and a host without one.
struct World {
    dir: TempDir,
}

impl World {
    fn new() -> Self {
        let world = Self { dir: tempfile::tempdir().expect("a directory is made") };
        let mut manifest = json!({
            "format": 1, "name": "standard", "arch": std::env::consts::ARCH, "kernel_version": "6.12.0",
            "languages": { "raw": { "path": "/bin/bash", "version": "5.2" } }, "packages": [],
        });
        fs::create_dir_all(world.base().join("blobs")).expect("it can be made");
        for (role, content, digest) in BLOBS {
            manifest[role] = json!({ "blake3": digest, "size_bytes": content.len() });
            fs::write(world.base().join("blobs").join(digest), content).expect("it can be written");
        }
        fs::write(world.base().join("standard.json"), manifest.to_string()).expect("it can be written");
        world
    }

    fn base(&self) -> std::path::PathBuf {
        self.dir.path().join("published")
    }

    fn images(&self) -> std::path::PathBuf {
        self.dir.path().join("cache/images")
    }

    /// `sbx` with nothing of this user's environment but `variables`.
    fn command(&self, words: &[&str], variables: &[(&str, &str)]) -> std::process::Command {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_sbx"));
        command
            .args(words)
            .env_clear()
            .env("HOME", self.dir.path())
            .env("EXEC_SANDBOX_CACHE_DIR", self.dir.path().join("cache"))
            .env("EXEC_SANDBOX_RUN_DIR", self.dir.path().join("run"))
            .env("EXEC_SANDBOX_QEMU", "/nonexistent/qemu")
            .envs(variables.iter().copied())
            .current_dir(self.dir.path());
        command
    }

    fn sbx(&self, words: &[&str], variables: &[(&str, &str)]) -> (Option<i32>, String, String) {
        let output = Command::from_std(self.command(words, variables)).output().expect("sbx runs");
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("sbx speaks UTF-8");
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    }

    fn json(&self, words: &[&str], variables: &[(&str, &str)]) -> (Option<i32>, Value) {
        let (code, stdout, stderr) = self.sbx(words, variables);
        assert!(stderr.is_empty(), "with --json nothing is said elsewhere: {stderr}");
        (code, serde_json::from_str(&stdout).expect("standard output is JSON"))
    }
}

fn fetched(pulled: &Value) -> Vec<Option<u64>> {
    let blobs = pulled["blobs"].as_array().expect("there are blobs");
    blobs.iter().map(|blob| blob["fetched_bytes"].as_u64()).collect()
}

/// Serves `base` to whoever asks, and notes what was asked for. It ends with the test's process.
fn serve(base: &Path) -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port is free");
    let url = format!("http://{}", listener.local_addr().expect("it is bound"));
    let (asked, base) = (Arc::new(Mutex::new(Vec::new())), base.to_owned());
    let noted = Arc::clone(&asked);
    thread::spawn(move || {
        for stream in listener.incoming() {
            let path = answer(stream.expect("somebody connects"), &base);
            noted.lock().expect("nobody panicked").push(path);
        }
    });
    (url, asked)
}

fn answer(mut stream: TcpStream, base: &Path) -> String {
    let mut lines = BufReader::new(stream.try_clone().expect("it can be cloned")).lines().map_while(Result::ok);
    let first = lines.next().unwrap_or_default();
    lines.take_while(|line| !line.is_empty()).for_each(drop);
    let path = first.split_whitespace().nth(1).unwrap_or_default().to_owned();
    let (status, body) = match fs::read(base.join(path.trim_start_matches('/'))) {
        Ok(body) => ("200 OK", body),
        Err(_) => ("404 Not Found", Vec::new()),
    };
    let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    // A client that goes away is none of the server's business.
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body));
    path
}

#[test]
fn an_image_comes_from_a_directory_is_listed_and_is_not_fetched_again() {
    let world = World::new();
    let (code, pulled) = world.json(&["image", "pull", "--from", "published", "--json"], &[]);
    assert_eq!(code, Some(0), "{pulled}");
    assert_eq!((pulled["name"].as_str(), pulled["from"].as_str()), (Some("standard"), Some("published")));
    assert_eq!(pulled["path"].as_str(), world.images().to_str());
    assert_eq!(fetched(&pulled), [Some(6), Some(5), Some(4)]);
    let (_, listed) = world.json(&["image", "ls", "--json"], &[]);
    assert_eq!(listed[0]["name"], "standard");

    let base = world.base();
    let variables = [("EXEC_SANDBOX_ASSETS_URL", base.to_str().expect("it is text"))];
    let (code, stdout, stderr) = world.sbx(&["image", "pull", "standard"], &variables);
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
    assert_eq!(stdout.matches("there already").count(), 3, "{stdout}");
}

#[test]
fn a_damaged_image_is_mended() {
    let world = World::new();
    world.json(&["image", "pull", "--from", "published", "--json"], &[]);
    let root = world.images().join("blobs").join(BLOBS[2].2);
    fs::remove_file(&root).expect("it is there");
    fs::write(&root, "rOOt").expect("it can be written");
    let (code, mended) = world.json(&["image", "pull", "--from", "published", "--json"], &[]);
    assert_eq!((code, fetched(&mended)), (Some(0), vec![None, None, Some(4)]));
    assert_eq!(fs::read_to_string(root).expect("it is there"), "root");
}

#[test]
fn what_is_left_of_an_image_that_was_replaced_stays_until_somebody_wants_it_gone() {
    let world = World::new();
    let prune = || world.json(&["image", "prune", "--json"], &[]);
    assert_eq!(prune(), (Some(0), json!({ "files": 0, "size_bytes": 0 })));
    assert!(!world.images().exists(), "nor does looking make it");
    world.json(&["image", "pull", "--from", "published", "--json"], &[]);
    let published = world.base().join("standard.json");
    let mut manifest: Value = serde_json::from_slice(&fs::read(&published).expect("it is there")).expect("it is JSON");
    manifest["root"] = manifest["kernel"].clone();
    fs::write(published, manifest.to_string()).expect("it can be written");
    world.json(&["image", "pull", "--from", "published", "--json"], &[]);
    fs::write(world.images().join(".partial-left"), "ro").expect("it can be written");
    let root = world.images().join("blobs").join(BLOBS[2].2);
    assert!(root.exists(), "whoever has started with it may still need it");

    assert_eq!(prune(), (Some(0), json!({ "files": 2, "size_bytes": "root".len() + 2 })));
    assert!(!root.exists());
    assert_eq!(prune(), (Some(0), json!({ "files": 0, "size_bytes": 0 })));
    let (code, pulled) = world.json(&["image", "pull", "--from", "published", "--json"], &[]);
    assert_eq!((code, fetched(&pulled)), (Some(0), vec![None; 3]), "what the image consists of is there");
    fs::write(world.images().join("broken.json"), "{").expect("it can be written");
    let (code, failed) = prune();
    assert_eq!((code, failed["error"]["kind"].as_str()), (Some(125), Some("asset_damaged")));
}

#[test]
fn two_processes_at_once_fetch_once() {
    let world = World::new();
    let (url, asked) = serve(&world.base());
    let start = || {
        let mut command = world.command(&["image", "pull", "--json"], &[("EXEC_SANDBOX_ASSETS_URL", &url)]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("sbx runs")
    };
    let outputs: Vec<Output> =
        [start(), start(), start()].map(|child| child.wait_with_output().expect("it ends")).into();
    let mut blobs = 0;
    for output in &outputs {
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let pulled = serde_json::from_slice(&output.stdout).expect("standard output is JSON");
        blobs += fetched(&pulled).iter().flatten().count();
    }
    let asked = asked.lock().expect("nobody panicked");
    assert_eq!(blobs, 3, "each blob was fetched by one of them");
    assert_eq!(asked.iter().filter(|path| path.starts_with("/blobs/")).count(), 3, "{asked:?}");
}

#[test]
fn what_cannot_be_had_is_an_error_with_the_url_and_a_remedy() {
    let world = World::new();
    let (url, _) = serve(&world.base());
    let from = format!("{}?token=secret", url.replace("http://", "http://user:secret@"));
    let (code, failed) = world.json(&["image", "pull", "other", "--from", &from, "--json"], &[]);
    assert_eq!((code, failed["error"]["kind"].as_str()), (Some(125), Some("asset_download")));
    let text = failed.to_string();
    assert!(text.contains(&format!("{url}/other.json")) && text.contains("404"), "{text}");
    assert!(!text.contains("secret") && failed["error"]["remedy"].is_string(), "{text}");
}

#[test]
fn what_may_not_be_fetched_is_refused_with_the_reason() {
    let world = World::new();
    let offline = ("EXEC_SANDBOX_OFFLINE", "1");
    let (code, _, stderr) = world.sbx(&["image", "pull"], &[]);
    assert_eq!(code, Some(125), "{stderr}");
    assert!(stderr.contains("--from URL_OR_DIR") && stderr.contains("EXEC_SANDBOX_ASSETS_URL"), "{stderr}");
    let (code, _, stderr) = world.sbx(&["image", "pull", "--from", "https://images.example.com"], &[offline]);
    assert_eq!(code, Some(125), "{stderr}");
    assert!(stderr.contains("offline mode is on") && stderr.contains("https://images.example.com"), "{stderr}");
    let (code, _, stderr) = world.sbx(&["image", "pull", "--from", "ftp://images.example.com"], &[]);
    assert_eq!(code, Some(2), "{stderr}");
    let (code, _, stderr) = world.sbx(&["image", "pull", "../standard", "--from", "published"], &[]);
    assert_eq!(code, Some(2), "{stderr}");
    let (code, _, stderr) = world.sbx(&["image", "pull", "--from", "published"], &[offline]);
    assert_eq!(code, Some(0), "a directory is on no network: {stderr}");
}

#[test]
fn the_doctor_says_how_an_image_comes_here() {
    let world = World::new();
    let image = |variables: &[(&str, &str)]| {
        let (_, report) = world.json(&["doctor", "--json"], variables);
        let checks = report["checks"].as_array().expect("there are checks");
        checks.iter().find(|check| check["name"] == "image").expect("it is examined").clone()
    };
    let place = ("EXEC_SANDBOX_ASSETS_URL", "https://images.example.com");
    let without = image(&[]);
    assert_eq!(without["status"], "failure");
    assert!(without["remedy"].as_str().is_some_and(|text| text.contains("sbx image pull --from")), "{without}");
    let fetched_by_itself = image(&[place]);
    assert_eq!(fetched_by_itself["status"], "warning", "a start would fetch it");
    let offline = image(&[place, ("EXEC_SANDBOX_OFFLINE", "yes")]);
    assert_eq!(offline["status"], "failure");
    assert!(offline["remedy"].as_str().is_some_and(|text| text.contains("offline mode is on")), "{offline}");
}
