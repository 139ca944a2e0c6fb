//! What the servers of a test's internet have: an index of packages, a repository, and files beside them.

use std::{
    fs,
    io::{self, BufRead as _, BufReader, Read, Write},
    path::{Component, Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

/// What the package, the repository and the file beside them say.
pub(crate) const GREETING: &str = "good day from the allow-list";

/// What was asked for, a line for each request, beside the files.
pub(crate) const REQUESTS: &str = "requests";

/// How long what is called slow is waited for.
const SLOW: Duration = Duration::from_secs(2);

/// Answers the HTTP request that begins with `begun`: with a file below `site`, or with `said` where there is no site.
pub(crate) fn answer(mut stream: impl Read + Write, begun: [u8; 5], site: Option<&Path>, said: &str) -> io::Result<()> {
    let (mut line, mut header) = (String::from_utf8_lossy(&begun).into_owned(), String::new());
    let mut request = BufReader::new(&mut stream);
    request.read_line(&mut line)?;
    while request.read_line(&mut header)? > 2 {
        header.clear();
    }
    let path = line.split(' ').nth(1).unwrap_or_default();
    if path.contains("slow") {
        thread::sleep(SLOW);
    }
    if let Some(site) = site {
        let mut log = fs::File::options().create(true).append(true).open(site.join(REQUESTS))?;
        writeln!(log, "{path}")?;
    }
    let found = match site {
        Some(site) => file(site, path).and_then(|file| fs::read(file).ok()),
        None => Some(said.as_bytes().to_vec()),
    };
    let status = if found.is_some() { "200 OK" } else { "404 Not Found" };
    let (body, kind) = (found.unwrap_or_default(), if path.ends_with('/') { "text/html" } else { "text/plain" });
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    )?;
    if line.starts_with("GET") { stream.write_all(&body) } else { Ok(()) }
}

/// The file below `site` that `path` means.
fn file(site: &Path, path: &str) -> Option<PathBuf> {
    let path = Path::new(path.split('?').next()?.trim_start_matches('/'));
    let is_below = path.components().all(|component| matches!(component, Component::Normal(_)));
    let file = site.join(path);
    is_below.then(|| if file.is_dir() { file.join("index.html") } else { file })
}

/// Makes a site in `dir`: `simple/` is an index with the package `greeting`, whose file is at `files.<host>`; `greeting.git` is a
/// repository with `greeting.txt`, which stands beside it, too.
pub(crate) fn make(dir: &Path, host: &str) {
    let wheel = "greeting-1.0-py3-none-any.whl";
    let write = |path: &str, text: &str| {
        let path = dir.join(path);
        fs::create_dir_all(path.parent().expect("it is below")).expect("there is room");
        fs::write(path, text).expect("there is room");
    };
    write("greeting.txt", &format!("{GREETING}\n"));
    write("simple/greeting/index.html", &format!("<a href=\"https://files.{host}/{wheel}\">{wheel}</a>\n"));
    write("wheel/greeting.py", &format!("WORDS = {GREETING:?}\n"));
    let about = "wheel/greeting-1.0.dist-info";
    write(&format!("{about}/METADATA"), "Metadata-Version: 2.1\nName: greeting\nVersion: 1.0\n");
    write(
        &format!("{about}/WHEEL"),
        "Wheel-Version: 1.0\nGenerator: a test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    );
    let members = ["METADATA", "WHEEL", "RECORD"].map(|name| format!("greeting-1.0.dist-info/{name},,\n")).concat();
    write(&format!("{about}/RECORD"), &format!("greeting.py,,\n{members}"));
    let zip = format!("cd wheel && python3 -m zipfile --create ../{wheel} greeting.py greeting-1.0.dist-info");
    shell(dir, &zip);
    shell(
        dir,
        "git init --quiet clone && cp greeting.txt clone && cd clone && git add greeting.txt && \
         git -c user.name=test -c user.email=test@localhost commit --quiet --message greeting && \
         git clone --quiet --bare . ../greeting.git && git -C ../greeting.git update-server-info",
    );
}

/// Adds so many packages `part0` and so on to the index of a site that [`make`] has made for `host`, one that is slow, one
/// that ends whoever loads it, one that needs what is at a third host, and one of which there is only the source.
pub(crate) fn add_parts(dir: &Path, host: &str, count: usize) {
    fs::write(dir.join("parts.py"), PARTS).expect("there is room");
    shell(dir, &format!("python3 parts.py {host} {count}"));
}

const PARTS: &str = r#"
import sys, zipfile
from pathlib import Path

host, count = sys.argv[1], int(sys.argv[2])
for name in [*(f"part{n}" for n in range(count)), "slow", "ends", "stray", "leads"]:
    wheel, about = f"{name}-1.0-py3-none-any.whl", f"{name}-1.0.dist-info"
    files = {
        f"{name}.py": f"NAME = {name!r}\n" if name != "ends" else "import os\n\nos._exit(3)\n",
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
        + ("Requires-Dist: stray==1.0\n" if name == "leads" else ""),
        f"{about}/WHEEL": "Wheel-Version: 1.0\nGenerator: a test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{about}/RECORD"] = "".join(f"{path},,\n" for path in [*files, f"{about}/RECORD"])
    with zipfile.ZipFile(wheel, "w") as made:
        for path, text in files.items():
            made.writestr(path, text)
    page = Path("simple", name, "index.html")
    page.parent.mkdir(parents=True)
    # One that is needed by another is at a host of its own, which is asked for nothing else.
    place = "third.example" if name == "stray" else f"files.{host}"
    page.write_text(f'<a href="https://{place}/{wheel}">{wheel}</a>\n')

# One of which there is only the source.
page = Path("simple", "source", "index.html")
page.parent.mkdir(parents=True)
page.write_text(f'<a href="https://files.{host}/source-1.0.tar.gz">source-1.0.tar.gz</a>\n')
"#;

/// Adds the JavaScript package `hail` to a site: `npm/hail` is what its registry says, and its file is at `files.<host>`.
pub(crate) fn add_npm(dir: &Path, host: &str) {
    fs::write(dir.join("npm.py"), NPM).expect("there is room");
    shell(dir, &format!("python3 npm.py {host}"));
}

const NPM: &str = r#"
import base64, hashlib, io, json, sys, tarfile
from pathlib import Path

about = {"name": "hail", "version": "1.0.0", "main": "index.js", "scripts": {"postinstall": "echo ran >ran.txt"}}
files = {"package.json": json.dumps(about), "index.js": "module.exports = (name) => `hail, ${name}`;\n"}
packed = io.BytesIO()
with tarfile.open(fileobj=packed, mode="w:gz") as tar:
    for name, text in files.items():
        entry = tarfile.TarInfo(f"package/{name}")
        entry.size = len(text)
        tar.addfile(entry, io.BytesIO(text.encode()))
Path("hail.tgz").write_bytes(packed.getvalue())
integrity = "sha512-" + base64.b64encode(hashlib.sha512(packed.getvalue()).digest()).decode()
dist = {"tarball": f"https://files.{sys.argv[1]}/hail.tgz", "integrity": integrity}
said = {"name": "hail", "dist-tags": {"latest": "1.0.0"}, "versions": {"1.0.0": {**about, "dist": dist}}}
Path("npm").mkdir()
Path("npm/hail").write_text(json.dumps(said))
"#;

/// The host's pip as an archive of its package: the guest's image has none.
pub(crate) fn pip() -> Vec<u8> {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let dir = dir.path();
    let find = "import os, pip; print(os.path.dirname(pip.__file__))";
    // Its compiled files are another Python's.
    shell(
        dir,
        &format!(
            "cp -r \"$(python3 -c '{find}')\" pip && find pip -name __pycache__ -prune -exec rm -r {{}} + && python3 -m zipfile --create pip.zip pip"
        ),
    );
    fs::read(dir.join("pip.zip")).expect("it was made")
}

fn shell(dir: &Path, script: &str) {
    let mut command = Command::new("sh");
    command.args(["-ec", script]).current_dir(dir);
    // What the user of this machine has configured is no matter of the test.
    command.env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_NOSYSTEM", "1");
    let output = command.output().expect("there is a shell");
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
}
