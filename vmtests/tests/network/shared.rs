//! The remote cache: what one machine has made another takes, from a server that speaks S3; and what cannot be had is made.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Output,
};

use crate::{
    packages::Shop,
    proxy::{Mode, Proxy},
    server::{ACCESS_KEY, BUCKET, SECRET, Server},
    site,
};

/// Bytes of all downloads after which the server is gone: a layer, and the beginning of a snapshot.
const BEGINNING: usize = 1_000_000;

/// Machines that share a bucket, each with a cache directory of its own.
struct Machines {
    shop: Shop,
    server: Server,
    proxy: Proxy,
    images: PathBuf,
}

/// How a run ended.
struct Ended {
    stdout: String,
    origin: String,
    /// What its log says from warnings up.
    warnings: Vec<String>,
}

impl Machines {
    async fn new() -> Self {
        // The server is in the shop's network.
        let shop = Shop::open(0);
        let server = Server::start().await;
        let proxy = Proxy::start(server.address).await;
        let images = fs::canonicalize(images_dir()).expect("the image has been built");
        Self { shop, server, proxy, images }
    }

    /// Greets on the machine whose cache is `cache`.
    async fn greet(&self, cache: &Path) -> Ended {
        let mut command = self.shop.world.sbx();
        let resolver = self.shop.internet.resolver.to_string();
        command.args(["run", "--json", "--no-service", "--no-validation", "--network", "--resolver", &resolver]);
        command.args(["--registry", "python=good.example", "--package-index", "python=https://good.example/simple/"]);
        command.arg("--package-ca").arg(&self.shop.authority).args(["-p", "greeting==1.0"]);
        command.args(["-c", "import greeting; print(greeting.WORDS)"]);
        command.env("EXEC_SANDBOX_CACHE_DIR", cache).env("EXEC_SANDBOX_IMAGES_DIR", &self.images);
        command.env("EXEC_SANDBOX_REMOTE_CACHE", format!("s3://{BUCKET}/of-a-test"));
        command.env("EXEC_SANDBOX_LOG_LEVEL", "warn").env("NO_COLOR", "1");
        command.env("AWS_ENDPOINT_URL", format!("http://{}", self.proxy.address)).env("AWS_REGION", "here");
        command.env("AWS_ACCESS_KEY_ID", ACCESS_KEY).env("AWS_SECRET_ACCESS_KEY", SECRET);
        let ended = tokio::task::spawn_blocking(move || command.output().expect("it can be run")).await;
        let Output { stdout, stderr, status } = ended.expect("it was run");
        let (stdout, stderr) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
        assert!(status.success(), "{stdout}\n{stderr}");
        let said: serde_json::Value = serde_json::from_str(&stdout).expect("it is JSON");
        let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
        Ended {
            stdout: text(&said["stdout"]),
            origin: text(&said["timing"]["origin"]),
            warnings: stderr.lines().filter(|line| line.contains("WARN")).map(str::to_owned).collect(),
        }
    }

    /// The objects whose names contain this.
    fn objects(&self, part: &str) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut dirs = vec![self.server.objects("")];
        while let Some(dir) = dirs.pop() {
            for entry in fs::read_dir(dir).expect("it is there").flatten() {
                let path = entry.path();
                if path.is_dir() {
                    dirs.push(path);
                } else if path.to_string_lossy().contains(part) {
                    found.push(path);
                }
            }
        }
        found
    }
}

/// Where the images are that all tests use.
fn images_dir() -> PathBuf {
    let named = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let cache = named("EXEC_SANDBOX_CACHE_DIR").or_else(|| Some(named("HOME")?.join(".cache/exec-sandbox")));
    named("EXEC_SANDBOX_IMAGES_DIR").unwrap_or_else(|| cache.expect("there is a home").join("images"))
}

#[tokio::test]
async fn what_one_machine_has_installed_and_saved_another_takes_and_what_is_damaged_or_cut_off_is_made() {
    let machines = Machines::new().await;
    let greeting = format!("{}\n", site::GREETING);
    let caches: Vec<tempfile::TempDir> = (0..4).map(|_| tempfile::tempdir().expect("a directory")).collect();
    let first = machines.greet(caches[0].path()).await;
    assert_eq!((first.stdout.as_str(), first.origin.as_str()), (greeting.as_str(), "cold"));
    assert_eq!(first.warnings, [""; 0]);
    assert_eq!(machines.shop.installations("greeting"), 1);
    for kind in ["of-a-test/layer/", "of-a-test/snapshot/"] {
        assert_eq!(machines.objects(kind).len(), 1, "{kind}: {:?}", machines.objects(""));
    }
    let second = machines.greet(caches[1].path()).await;
    assert_eq!((second.stdout.as_str(), second.origin.as_str()), (greeting.as_str(), "snapshot"), "it is new here");
    assert_eq!((second.warnings.len(), machines.shop.installations("greeting")), (0, 1));
    // The server is gone in the middle of the snapshot; the layer is so small that it has come before.
    machines.proxy.set(Mode::CutAfter(BEGINNING));
    let third = machines.greet(caches[2].path()).await;
    assert_eq!((third.stdout.as_str(), third.origin.as_str()), (greeting.as_str(), "cold"));
    assert_eq!(machines.shop.installations("greeting"), 1);
    let of_fetches: Vec<&String> = third.warnings.iter().filter(|line| line.contains("fetches")).collect();
    assert_eq!(of_fetches.len(), 1, "{:?}", third.warnings);
    machines.proxy.set(Mode::Pass);
    for blob in machines.objects("of-a-test/blobs/") {
        let mut bytes = fs::read(&blob).expect("it can be read");
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&blob, bytes).expect("it is ours");
    }
    let fourth = machines.greet(caches[3].path()).await;
    assert_eq!((fourth.stdout.as_str(), fourth.origin.as_str()), (greeting.as_str(), "cold"));
    assert_eq!(machines.shop.installations("greeting"), 2);
    assert_eq!(fourth.warnings.iter().filter(|line| line.contains("not used")).count(), 2, "{:?}", fourth.warnings);
    machines.shop.world.assert_empty([""; 0]);
}
