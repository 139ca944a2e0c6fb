//! Packages from the registries that the image names, as they are on this machine's network.

use exec_sandbox::{Language, Origin, RunRequest, SchedulerConfig};
use vmtests::{World, stderr, stdout};

/// A set, a program that uses it, and what it says.
struct Case {
    language: Language,
    packages: &'static [&'static str],
    code: &'static str,
    says: &'static str,
}

const CASES: [Case; 2] = [
    // A wheel of Python alone, and one with native code.
    Case {
        language: Language::Python,
        packages: &["six==1.17.0", "MarkupSafe==3.0.2"],
        code: "import markupsafe, six\nfrom markupsafe import _speedups\n\
               print(six.__version__, markupsafe.escape('<b>'), _speedups.__file__.endswith('.so'))",
        says: "1.17.0 &lt;b&gt; True\n",
    },
    Case {
        language: Language::JavaScript,
        packages: &["left-pad@1.3.0"],
        code: "import pad from 'left-pad';\nconsole.log(pad('7', 3, '0'));",
        says: "007\n",
    },
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wheels_with_native_code_and_packages_of_npm_come_from_their_registries() {
    let (world, layers) = (World::new(), tempfile::tempdir().expect("a temporary directory"));
    let config = SchedulerConfig { layer_dir: Some(layers.path().join("layers")), ..world.networked() };
    let scheduler = exec_sandbox::Scheduler::start(config).await;
    let scheduler = scheduler.unwrap_or_else(|error| panic!("{error}: {:?}", error.remedy()));
    for Case { language, packages, code, says } in CASES {
        let packages: Vec<String> = packages.iter().map(|package| (*package).to_owned()).collect();
        let run =
            async || scheduler.run(RunRequest { packages: packages.clone(), ..RunRequest::new(language, code) }).await;
        for is_first in [true, false] {
            let outcome = run().await;
            let outcome = outcome.unwrap_or_else(|error| panic!("{error}: {:?}", std::error::Error::source(&error)));
            assert_eq!((stdout(&outcome), stderr(&outcome)), (says.to_owned(), String::new()));
            // Snapshots of the same layer may have been there before.
            assert!(is_first || outcome.timing.origin == Origin::Snapshot, "{:?}", outcome.timing);
        }
    }
    scheduler.close().await.expect("everything ends");
    world.assert_empty([""; 0]);
}
