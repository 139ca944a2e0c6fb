//! The command line from outside, as far as no VM is needed: help, refusals, exit codes, JSON.

use std::process::Output;

use assert_cmd::Command;

/// `sbx` where there is no QEMU and no image, with nothing of this user's environment.
fn sbx(words: &[&str]) -> Output {
    let home = tempfile::tempdir().expect("a directory is made");
    Command::new(env!("CARGO_BIN_EXE_sbx"))
        .args(words)
        .env_clear()
        .env("HOME", home.path())
        .env("EXEC_SANDBOX_CACHE_DIR", home.path().join("cache"))
        .env("EXEC_SANDBOX_RUN_DIR", home.path().join("run"))
        .env("EXEC_SANDBOX_QEMU", "/nonexistent/qemu")
        .current_dir(home.path())
        .output()
        .expect("sbx runs")
}

/// Exit code, standard output and standard error on one page.
fn page(words: &[&str]) -> String {
    let output = sbx(words);
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("sbx speaks UTF-8");
    format!(
        "exit {}\n--- stdout\n{}--- stderr\n{}",
        output.status.code().expect("it exits"),
        text(&output.stdout),
        text(&output.stderr)
    )
}

fn json(words: &[&str]) -> (i32, serde_json::Value) {
    let output = sbx(words);
    assert!(
        output.stderr.is_empty(),
        "with --json nothing is said elsewhere: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let value = serde_json::from_slice(&output.stdout).expect("standard output is JSON");
    (output.status.code().expect("it exits"), value)
}

#[test]
fn help_is_what_was_agreed() {
    insta::assert_snapshot!("help", page(&["--help"]));
    insta::assert_snapshot!("help_run", page(&["run", "--help"]));
    insta::assert_snapshot!("help_shell", page(&["shell", "--help"]));
    insta::assert_snapshot!("help_up", page(&["up", "--help"]));
    insta::assert_snapshot!("help_down", page(&["down", "--help"]));
    insta::assert_snapshot!("help_ps", page(&["ps", "--help"]));
    insta::assert_snapshot!("help_kill", page(&["kill", "--help"]));
    insta::assert_snapshot!("help_gc", page(&["gc", "--help"]));
    insta::assert_snapshot!("help_cache", page(&["cache", "--help"]));
    insta::assert_snapshot!("help_cache_ls", page(&["cache", "ls", "--help"]));
    insta::assert_snapshot!("help_cache_gc", page(&["cache", "gc", "--help"]));
    insta::assert_snapshot!("help_cache_rm", page(&["cache", "rm", "--help"]));
    insta::assert_snapshot!("help_cache_pin", page(&["cache", "pin", "--help"]));
    insta::assert_snapshot!("help_image_pull", page(&["image", "pull", "--help"]));
    insta::assert_snapshot!("help_image_prune", page(&["image", "prune", "--help"]));
    insta::assert_snapshot!("help_bench_cold", page(&["bench", "cold", "--help"]));
    insta::assert_snapshot!("help_bench_concurrency", page(&["bench", "concurrency", "--help"]));
}

#[test]
fn a_wrong_command_line_is_refused_with_a_reason() {
    insta::assert_snapshot!("unknown_option", page(&["run", "--wat"]));
    insta::assert_snapshot!("unknown_language", page(&["-l", "ruby", "1"]));
    insta::assert_snapshot!("variable_without_value", page(&["-e", "NAME", "1"]));
    insta::assert_snapshot!(
        "package_index_without_language",
        page(&["--package-index", "https://mirror.example", "1"])
    );
    insta::assert_snapshot!("cache_size_that_is_none", page(&["cache", "gc", "--max-size", "much"]));
    insta::assert_snapshot!("cache_rm_of_nothing", page(&["cache", "rm"]));
    insta::assert_snapshot!("unknown_accelerator", page(&["doctor", "--accel", "xen"]));
}

#[test]
fn a_source_that_cannot_be_meant_is_refused() {
    insta::assert_snapshot!("missing_file", page(&["run", "scirpt.py"]));
    insta::assert_snapshot!("directory", page(&["."]));
    insta::assert_snapshot!("standard_input_twice", page(&["-", "-"]));
}

#[test]
fn files_that_cannot_be_meant_are_refused_before_anything_is_started() {
    insta::assert_snapshot!("upload_missing", page(&["--upload", "no/such.csv", "1"]));
    insta::assert_snapshot!("upload_leads_out", page(&["--upload", "a:../b", "1"]));
    insta::assert_snapshot!("download_absolute", page(&["--download", "/etc/passwd", "1"]));
    insta::assert_snapshot!("download_of_several", page(&["--download", "a", "-c", "1", "-c", "2"]));
    insta::assert_snapshot!("download_nowhere", page(&["--download", "a:no/such/b", "1"]));
}

#[test]
fn refusals_are_json_when_json_was_asked_for() {
    let (code, value) = json(&["--json", "scirpt.py"]);
    assert_eq!((code, value["error"]["kind"].as_str()), (2, Some("usage")));
    assert_eq!(value["error"]["message"], "no such file: scirpt.py");
    assert!(value["error"]["remedy"].is_string());

    let (code, value) = json(&["--json", "--wat"]);
    assert_eq!((code, value["error"]["message"].as_str()), (2, Some("unexpected argument '--wat' found")));
}

#[test]
fn a_host_without_qemu_is_told_so() {
    let output = sbx(&["print(1)"]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(125), "{stderr}");
    assert!(output.stdout.is_empty());
    assert!(stderr.starts_with("error: ") && stderr.contains("/nonexistent/qemu"), "{stderr}");
    assert!(stderr.contains("\nhelp: "), "{stderr}");

    let (code, value) = json(&["--json", "print(1)"]);
    assert_eq!((code, value["error"]["kind"].as_str()), (125, Some("dependency")));
    assert!(value["error"]["remedy"].is_string());
}

#[test]
fn the_doctor_fails_where_nothing_would_run() {
    let (code, value) = json(&["doctor", "--json"]);
    assert_eq!(code, 125, "{value}");
    let checks = value["checks"].as_array().expect("there are checks");
    let failed: Vec<_> = checks.iter().filter(|check| check["status"] == "failure").collect();
    assert!(!failed.is_empty(), "{value}");
    assert!(failed.iter().all(|check| check["remedy"].is_string()), "{value}");
}

#[test]
fn a_service_that_cannot_start_says_why_as_a_run_would() {
    let output = sbx(&["up"]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(125), "{stderr}");
    assert!(output.stdout.is_empty());
    assert!(stderr.contains("/nonexistent/qemu") && stderr.contains("\nhelp: "), "{stderr}");
    let output = sbx(&["up", "--pool", "65"]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("warm_pool_size must be at most 64"), "{stderr}");
}

#[test]
fn a_service_that_is_not_up_is_down() {
    let output = sbx(&["down"]);
    assert_eq!((output.status.code(), &output.stdout[..]), (Some(0), &b"No service is up.\n"[..]));
    let (_, report) = json(&["doctor", "--json"]);
    let checks = report["checks"].as_array().expect("there are checks");
    let service = checks.iter().find(|check| check["name"] == "service").expect("it is one of them");
    assert_eq!(service["status"], "ok", "{service}");
}

#[test]
fn one_service_is_enough() {
    let dir = tempfile::tempdir().expect("a directory is made");
    let lock = std::fs::File::create(dir.path().join("service.lock")).expect("it is new");
    lock.lock().expect("it is free");
    let output = Command::new(env!("CARGO_BIN_EXE_sbx"))
        .args(["up", "--foreground"])
        .env("EXEC_SANDBOX_RUN_DIR", dir.path())
        .output()
        .expect("sbx runs");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(125), "{stderr}");
    assert!(stderr.contains("service.lock is locked") && stderr.contains("`sbx down` ends"), "{stderr}");
}

#[test]
fn no_images_is_an_empty_list() {
    assert_eq!(json(&["image", "ls", "--json"]), (0, serde_json::json!([])));
}

#[test]
fn a_cache_that_is_not_there_is_an_empty_list() {
    assert_eq!(json(&["cache", "ls", "--json"]), (0, serde_json::json!([])));
    let (code, collected) = json(&["cache", "gc", "--all", "--json"]);
    assert_eq!((code, &collected["removed"], &collected["kept"]), (0, &serde_json::json!([]), &serde_json::json!(0)));
}

#[test]
fn an_index_that_no_guest_reaches_is_refused_whoever_would_run_it() {
    for words in [&["print(1)"][..], &["doctor"], &["up"], &["shell"]] {
        let output = sbx(&[words, &["--package-index", "python=http://user:secret@mirror.example/"]].concat());
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{words:?}: {stderr}");
        assert!(stderr.contains("\"http://mirror.example/\" is not HTTPS"), "{words:?}: {stderr}");
    }
}

#[test]
fn a_log_level_that_is_none_is_refused() {
    let output = Command::new(env!("CARGO_BIN_EXE_sbx"))
        .arg("1")
        .env("EXEC_SANDBOX_LOG_LEVEL", "loud")
        .output()
        .expect("sbx runs");
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("EXEC_SANDBOX_LOG_LEVEL is \"loud\""));
}

#[test]
fn both_names_are_the_same_program() {
    let version = |name: &str| Command::new(name).arg("--version").output().expect("it runs").stdout;
    let short = version(env!("CARGO_BIN_EXE_sbx"));
    assert!(short.starts_with(b"sbx "));
    assert_eq!(short, version(env!("CARGO_BIN_EXE_exec-sandbox")));
}

#[test]
fn every_shell_is_completed() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = sbx(&["completions", shell]);
        assert!(output.status.success());
        let script = String::from_utf8(output.stdout).expect("it is a script");
        assert!(
            ["language", "doctor", "kill", "cache", "unpin", "package-index"].iter().all(|word| script.contains(word)),
            "{shell}"
        );
    }
}

#[test]
fn completions_into_a_pipe_that_closes_end_quietly() {
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_sbx"))
        .args(["completions", "zsh"])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("sbx runs");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("it ends");
    // It may have written everything into the pipe's buffer before the reader was gone.
    assert!(matches!(output.status.code(), Some(0 | 141)), "{:?}", output.status);
    assert!(output.stderr.is_empty());
}
