//! Packages: installed once for each set, from an index of the test's own, and found by every VM that asks for the set.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use exec_sandbox::{Error, ErrorKind, Language, Origin, Outcome, RunRequest, Scheduler, SchedulerConfig};
use vmtests::{World, processes, stderr, stdout};

use crate::{internet::Internet, site};

/// A host with an index that this test has, and an empty store of layers.
pub(crate) struct Shop {
    pub(crate) world: World,
    pub(crate) internet: Internet,
    site: PathBuf,
    layers: tempfile::TempDir,
    pub(crate) authority: PathBuf,
}

impl Shop {
    /// The index is at `good.example`, and only it says that its files are at `files.other.example`.
    pub(crate) fn open(parts: usize) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let site = dir.path().to_owned();
        site::make(&site, "other.example");
        site::add_parts(&site, "other.example", parts);
        site::add_npm(&site, "other.example");
        let layers = tempfile::tempdir().expect("a temporary directory");
        let internet = Internet::serving(&[("good.example", 1), ("other.example", 2), ("third.example", 3)], Some(dir));
        let authority = layers.path().join("authority.pem");
        fs::write(&authority, &internet.authority).expect("there is room");
        Self { world: World::new(), internet, site, layers, authority }
    }

    fn store(&self) -> PathBuf {
        self.layers.path().join("layers")
    }

    fn config(&self) -> SchedulerConfig {
        let index = |path: &str| format!("https://good.example/{path}/");
        SchedulerConfig {
            resolvers: Some(vec![self.internet.resolver]),
            package_indexes: [(Language::Python, index("simple")), (Language::JavaScript, index("npm"))].into(),
            package_ca: Some(self.authority.clone()),
            package_validation: false,
            registries: [
                (Language::Python, vec!["good.example".into()]),
                (Language::JavaScript, vec!["good.example".into()]),
            ]
            .into(),
            layer_dir: Some(self.store()),
            ..self.world.networked()
        }
    }

    async fn scheduler(&self) -> Scheduler {
        start(self.config()).await
    }

    /// How often the index was asked for what contains this.
    fn asked(&self, path: &str) -> usize {
        let log = fs::read_to_string(self.site.join(site::REQUESTS)).unwrap_or_default();
        log.lines().filter(|line| line.contains(path)).count()
    }

    /// How often a package of Python was installed: each time its index is asked where its files are, and then for its versions.
    pub(crate) fn installations(&self, name: &str) -> usize {
        let asked = self.asked(&format!("/simple/{name}/"));
        assert_eq!(asked % 2, 0, "an installation was broken off");
        asked / 2
    }

    /// The layers that are there, and what lies beside them half made.
    fn kept(&self) -> (usize, usize) {
        let count = |dir: &Path, is: fn(&str) -> bool| {
            let Ok(entries) = fs::read_dir(dir) else { return 0 };
            entries.filter(|entry| is(&entry.as_ref().expect("it can be read").file_name().to_string_lossy())).count()
        };
        (count(&self.store(), |name| name.len() == 64), count(&self.store().join("drafts"), |_| true))
    }
}

async fn start(config: SchedulerConfig) -> Scheduler {
    Scheduler::start(config).await.unwrap_or_else(|error| panic!("{error}: {:?}", error.remedy()))
}

async fn run_with(scheduler: &Scheduler, language: Language, packages: &[&str], code: &str) -> Result<Outcome, Error> {
    let packages = packages.iter().map(|package| (*package).to_owned()).collect();
    scheduler.run(RunRequest { packages, ..RunRequest::new(language, code) }).await
}

fn told(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(reason) = cause {
        text = format!("{text}: {reason}");
        cause = reason.source();
    }
    text
}

const GREET: &str = "import greeting\nprint(greeting.WORDS)";

#[tokio::test]
async fn a_set_is_installed_once_and_every_later_vm_finds_it() {
    let shop = Shop::open(0);
    let scheduler = shop.scheduler().await;
    let run = async || run_with(&scheduler, Language::Python, &["Greeting==1.0"], GREET).await;
    let (first, beside) = tokio::join!(run(), run());
    for outcome in [first, beside] {
        let outcome = outcome.unwrap_or_else(|error| panic!("{}", told(&error)));
        assert_eq!((stdout(&outcome), stderr(&outcome)), (format!("{}\n", site::GREETING), String::new()));
        assert!(outcome.timing.packages.is_some_and(|took| took > Duration::from_millis(500)), "it was installed");
    }
    assert_eq!((shop.installations("greeting"), shop.kept()), (1, (1, 0)));
    scheduler.close().await.expect("everything ends");
    // In another scheduler, which has never heard of it, and from a snapshot with the package loaded.
    let scheduler = shop.scheduler().await;
    let code = "import sys, subprocess\nprint('greeting' in sys.modules)\nimport greeting\nprint(greeting.__file__)\n\
                print(subprocess.run([sys.executable, '-c', 'import greeting; print(greeting.WORDS)'], capture_output=True, text=True).stdout)";
    let again = run_with(&scheduler, Language::Python, &["greeting==1.0"], code).await.expect("it is there");
    let expected = format!("True\n/usr/local/lib/python3.13/dist-packages/greeting.py\n{}\n\n", site::GREETING);
    assert_eq!((stdout(&again), again.timing.origin), (expected, Origin::Snapshot));
    assert!(again.timing.packages.is_some_and(|took| took < Duration::from_millis(500)), "{:?}", again.timing);
    // What its variables say, a package is loaded with.
    let env = vec![("GREETING_MODE".to_owned(), "loud".to_owned())];
    let request = RunRequest { env, packages: vec!["greeting==1.0".into()], ..RunRequest::new(Language::Python, code) };
    let fresh = scheduler.run(request).await.expect("it is there");
    assert!(stdout(&fresh).starts_with("False\n"), "{}", stdout(&fresh));
    assert_eq!(shop.installations("greeting"), 1);
    scheduler.close().await.expect("everything ends");
    shop.world.assert_empty([""; 0]);
}

#[tokio::test]
async fn a_package_that_ends_its_interpreter_keeps_nobody_from_a_snapshot() {
    let shop = Shop::open(0);
    let scheduler = shop.scheduler().await;
    for _ in 0..2 {
        let outcome = run_with(&scheduler, Language::Python, &["ends==1.0"], "print('here')").await;
        assert_eq!(stdout(&outcome.unwrap_or_else(|error| panic!("{}", told(&error)))), "here\n");
    }
    let outcome = run_with(&scheduler, Language::Python, &["ends==1.0"], "import ends").await.expect("it runs");
    assert_eq!((outcome.exit.code(), outcome.timing.origin), (3, Origin::Snapshot));
    scheduler.close().await.expect("everything ends");
}

#[tokio::test]
async fn packages_of_javascript_are_found_by_require_and_import() {
    let shop = Shop::open(0);
    let scheduler = shop.scheduler().await;
    // Its installation script, which would leave a file, has not been run.
    let code = "import hail from 'hail';\nconst again = require('hail');\n\
                const ran = require('fs').existsSync('/node_modules/hail/ran.txt');\nconsole.log(hail('you'), again('them'), ran);";
    let mut origins = Vec::new();
    for _ in 0..2 {
        let outcome = run_with(&scheduler, Language::JavaScript, &["hail@1.0.0"], code).await;
        let outcome = outcome.unwrap_or_else(|error| panic!("{}", told(&error)));
        assert_eq!((stdout(&outcome), stderr(&outcome)), ("hail, you hail, them false\n".into(), String::new()));
        origins.push(outcome.timing.origin);
    }
    // The first may be one, too: equal sets are equal layers, whoever has installed them.
    assert_eq!(origins.last(), Some(&Origin::Snapshot));
    assert_eq!(shop.asked("/hail.tgz"), 1);
    scheduler.close().await.expect("everything ends");
}

#[tokio::test]
async fn what_cannot_be_installed_is_told_in_the_installers_words_and_leaves_nothing() {
    let shop = Shop::open(0);
    let scheduler = shop.scheduler().await;
    let fails = async |scheduler: &Scheduler, package: &str| {
        let error = run_with(scheduler, Language::Python, &[package], "1").await.expect_err(package);
        (error.kind(), told(&error), error.remedy().unwrap_or_default().to_owned())
    };
    let (kind, text, remedy) = fails(&scheduler, "greeting==2.0").await;
    assert_eq!(kind, ErrorKind::PackageInstall, "{text}");
    assert!(
        text.contains("installing greeting==2.0") && text.contains("greeting==2.0") && remedy.contains("versions"),
        "{text}"
    );
    let (kind, text, _) = fails(&scheduler, "nobodys==1.0").await;
    assert_eq!(kind, ErrorKind::PackageInstall, "{text}");
    assert!(text.contains("nobodys"), "{text}");
    // Nothing is built from source.
    let (kind, text, _) = fails(&scheduler, "source==1.0").await;
    assert_eq!(kind, ErrorKind::PackageInstall, "{text}");
    // What it needs is at a host that its index has not named when it was asked for what was wanted.
    let (_, text, remedy) = fails(&scheduler, "leads==1.0").await;
    assert!(text.contains("its network refused: name_not_allowed"), "{text}");
    assert!(remedy.contains("EXEC_SANDBOX_REGISTRIES"), "{remedy}");
    assert_eq!((shop.asked("/stray-1.0"), shop.kept()), (0, (0, 0)));
    scheduler.close().await.expect("everything ends");
    // There is no such host.
    let nowhere = "https://index.nowhere.example/simple/".to_owned();
    let down = SchedulerConfig { package_indexes: [(Language::Python, nowhere)].into(), ..shop.config() };
    let strange = SchedulerConfig { package_ca: Some("/etc/ssl/certs/ca-certificates.crt".into()), ..shop.config() };
    for (config, expected, word) in [
        (down, ErrorKind::PackageInstallTransient, ""),
        (strange, ErrorKind::PackageInstall, "EXEC_SANDBOX_PACKAGE_CA"),
    ] {
        let scheduler = start(config).await;
        let begun = Instant::now();
        let (kind, text, remedy) = fails(&scheduler, "greeting==1.0").await;
        assert_eq!(kind, expected, "{text}");
        assert!(remedy.contains(word), "{text} {remedy}");
        assert!(begun.elapsed() < Duration::from_secs(120), "{:?}", begun.elapsed());
        scheduler.close().await.expect("everything ends");
    }
    assert_eq!(shop.kept(), (0, 0));
    shop.world.assert_empty([""; 0]);
}

#[tokio::test]
async fn an_installing_machine_that_is_killed_is_replaced_and_no_half_layer_is_seen() {
    let shop = Shop::open(0);
    let scheduler = shop.scheduler().await;
    let run = run_with(&scheduler, Language::Python, &["slow==1.0"], "import slow\nprint(slow.NAME)");
    let kill = async {
        // The index is asked, by a machine that is there for that alone, and then again by the one that installs.
        while shop.asked("/simple/slow") < 2 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let vms = shop.world.vms();
        assert_eq!((vms.len(), shop.kept()), (1, (0, 1)), "it is being made");
        for pid in vms.iter().flat_map(|id| processes(id)) {
            let pid = rustix::process::Pid::from_raw(pid.try_into().expect("it is a pid")).expect("it is one");
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("it is ours");
        }
    };
    let (outcome, ()) = tokio::join!(run, kill);
    let outcome = outcome.unwrap_or_else(|error| panic!("{}", told(&error)));
    assert_eq!((stdout(&outcome), shop.kept()), ("slow\n".into(), (1, 0)));
    scheduler.close().await.expect("everything ends");
    shop.world.assert_empty([""; 0]);
}

#[tokio::test]
async fn two_processes_install_a_set_once() {
    let shop = Shop::open(0);
    // Their own schedulers, as two processes have: what is shared is the directory.
    let (one, other) = (shop.scheduler().await, shop.scheduler().await);
    let code = "import slow\nprint(slow.NAME)";
    let run = async |scheduler: &Scheduler| {
        run_with(scheduler, Language::Python, &["slow==1.0"], code).await.map(|outcome| stdout(&outcome))
    };
    let (first, second) = tokio::join!(run(&one), run(&other));
    for said in [first, second] {
        assert_eq!(said.unwrap_or_else(|error| panic!("{}", told(&error))), "slow\n");
    }
    assert_eq!((shop.installations("slow"), shop.kept()), (1, (1, 0)));
    // A damaged one is made anew.
    let layer = fs::read_dir(shop.store()).expect("it is there").flatten().find(|entry| entry.file_name().len() == 64);
    let layer = layer.expect("there is one").path().join("layer");
    let mut bytes = fs::read(&layer).expect("it can be read");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    let mut mode = fs::metadata(&layer).expect("it is there").permissions();
    std::os::unix::fs::PermissionsExt::set_mode(&mut mode, 0o644);
    fs::set_permissions(&layer, mode).expect("it is ours");
    fs::write(&layer, bytes).expect("it is ours");
    let third = shop.scheduler().await;
    assert_eq!(run(&third).await.unwrap_or_else(|error| panic!("{}", told(&error))), "slow\n");
    assert_eq!((shop.installations("slow"), shop.kept()), (2, (1, 0)));
    for scheduler in [one, other, third] {
        scheduler.close().await.expect("everything ends");
    }
}

#[tokio::test]
async fn fifty_packages_are_one_layer_and_a_full_disk_is_told_with_what_helps() {
    let shop = Shop::open(50);
    let names: Vec<String> = (0..50).map(|n| format!("part{n}==1.0")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let code =
        "import importlib\nprint(sum(importlib.import_module(f'part{n}').NAME == f'part{n}' for n in range(50)))";
    let full = Full::mounted_at(&shop.store());
    let scheduler = shop.scheduler().await;
    let error = run_with(&scheduler, Language::Python, &names[..1], code).await.expect_err("there is no room");
    assert_eq!(error.kind(), ErrorKind::Host, "{}", told(&error));
    assert!(error.remedy().is_some_and(|remedy| remedy.contains("sbx cache gc")), "{}", told(&error));
    assert_eq!(shop.kept(), (0, 0));
    scheduler.close().await.expect("everything ends");
    drop(full);
    let scheduler = shop.scheduler().await;
    let outcome = run_with(&scheduler, Language::Python, &names, code).await;
    assert_eq!(stdout(&outcome.unwrap_or_else(|error| panic!("{}", told(&error)))), "50\n");
    assert_eq!(shop.kept(), (1, 0));
    scheduler.close().await.expect("everything ends");
}

/// A file system with room for next to nothing.
struct Full(PathBuf);

impl Full {
    fn mounted_at(dir: &Path) -> Self {
        fs::create_dir(dir).expect("there is room");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=8k,mode=0700", "tmpfs"]).arg(dir).status();
        assert!(mounted.expect("there is mount").success(), "mounting takes root");
        Self(dir.to_owned())
    }
}

impl Drop for Full {
    fn drop(&mut self) {
        let _ = Command::new("umount").args(["--lazy"]).arg(&self.0).status();
        let _ = fs::remove_dir(&self.0);
    }
}
