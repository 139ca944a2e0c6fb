//! Programs that fetch things, through an allow-list: each fetches from a name that is on it, and the same from another is refused.

use exec_sandbox::{NetworkPolicy, WriteOptions};

use vmtests::World;

use crate::{
    Online,
    internet::Internet,
    python,
    site::{self, GREETING},
};

/// Lets a shell run a line in the session's directory, and says how it ended and what it wrote.
const SHELL: &str = r#"
import subprocess

def shell(line):
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True)
    print(done.returncode, done.stdout.strip(), done.stderr.strip()[-1000:])
"#;

/// Programs, and how each fetches from a host.
const TOOLS: [(&str, &str); 3] = [
    ("curl", "curl -sS --cacert authority.pem https://HOST/greeting.txt"),
    (
        "git",
        "rm -rf clone; GIT_SSL_CAINFO=$PWD/authority.pem git clone --quiet https://HOST/greeting.git clone && \
         cat clone/greeting.txt",
    ),
    (
        "uv",
        "rm -rf uv; SSL_CERT_FILE=authority.pem UV_HTTP_RETRIES=0 uv pip install --quiet --no-cache \
         --index-url https://HOST/simple/ --target uv greeting && \
         PYTHONPATH=uv python3 -c 'import greeting; print(greeting.WORDS)'",
    ),
];

/// Looks for a package at a host that it may reach, and at one that it may not: once, because Python compiles all of pip first, which is
/// most of the time under emulation.
const PIP: &str = "PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=pip.zip python3 -m pip --quiet --disable-pip-version-check \
     --no-cache-dir --retries 0 --cert authority.pem install --index-url https://good.example/simple/ \
     --extra-index-url https://other.example/simple/ --target pip greeting 2>pip.log; \
     PYTHONPATH=pip python3 -c 'import greeting; print(greeting.WORDS)' || cat pip.log";

/// A VM that may reach `good.example` and not `other.example`; both have the same.
async fn online() -> Online {
    let dir = tempfile::tempdir().expect("a temporary directory");
    site::make(dir.path(), "good.example");
    let names = [("good.example", 1), ("other.example", 2)];
    let list = NetworkPolicy::AllowList(vec!["good.example".into()]);
    let online = Online::within(World::new(), Internet::serving(&names, Some(dir)), python(list), &[]).await;
    online.prepare().await;
    assert_eq!(online.attempt(SHELL).await, (String::new(), vec![]));
    online
}

#[tokio::test]
async fn curl_git_and_uv_fetch_through_an_allow_list_and_from_nowhere_else() {
    let online = online().await;
    for (name, line) in TOOLS {
        let fetch = |host: &str| format!("shell({:?})", line.replace("HOST", host));
        assert_eq!(online.attempt(&fetch("good.example")).await, (format!("0 {GREETING}"), vec![]), "{name}");
        let (came, met) = online.attempt(&fetch("other.example")).await;
        assert!(!came.starts_with("0 ") && met == ["name_not_allowed"], "{name}: {came} {met:?}");
    }
    online.end().await;
}

#[tokio::test]
async fn pip_installs_from_the_host_that_it_may_reach_although_it_is_told_another_too() {
    let online = online().await;
    let pip = site::pip();
    online.session.write_file("pip.zip", &pip[..], WriteOptions::default()).await.expect("there is room");
    let (came, met) = online.attempt(&format!("shell({PIP:?})")).await;
    assert_eq!((came, met), (format!("0 {GREETING}"), vec!["name_not_allowed"]));
    online.end().await;
}
