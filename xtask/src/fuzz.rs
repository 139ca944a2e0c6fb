//! Fuzzing: the targets of `fuzz/`, for a while each, with coverage but without a nightly toolchain.
//!
//! The coverage passes are stable options of the compiler, so nothing has to be installed. `cargo fuzz`, where it is, works on
//! the same directory and adds sanitizers. A corpus begins with the target's own seeds and is kept in `fuzz/corpus`; an input that
//! finds something is kept in `fuzz/artifacts`, where it stays until somebody removes it.

use std::{
    env::consts::ARCH,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};

/// What libFuzzer needs to see which code an input reaches.
const COVERAGE: &str = "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
                        -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
                        -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1 -Cdebug-assertions";

/// Longest input. The largest seeds have a few hundred bytes; longer inputs are slower and seldom reach more.
const MAX_INPUT_BYTES: u32 = 4096;

/// An input that takes so many seconds hangs. The slowest takes hundredths of one.
const HANG_SECONDS: u32 = 10;

/// A target that needs so many MiB keeps what it should not. All need less than 100.
const MEMORY_MIB: u32 = 1024;

/// Lines of a target's last words that are shown when it finds something: the panic, and where the input is.
const LAST_LINES: usize = 16;

/// The directories that fuzzing works with.
struct Places {
    root: PathBuf,
    programs: PathBuf,
}

/// How a target's time went.
struct Report {
    executions: Option<u64>,
    corpus: usize,
    /// Inputs that found something, now and before.
    findings: Vec<PathBuf>,
}

/// Runs the named targets, or all, for `seconds` each. A finding is a failure, once all have run.
pub(crate) fn run(seconds: u32, chosen: &[String]) -> Result<()> {
    let places = Places::new();
    let targets = choose(places.targets()?, chosen)?;
    places.build(&targets)?;
    let mut findings = Vec::new();
    for target in &targets {
        let report = places.fuzz(target, seconds)?;
        let executions = report.executions.map_or_else(|| "no".into(), |number| number.to_string());
        let (corpus, found) = (report.corpus, report.findings.len());
        eprintln!("{target:<14} {executions:>9} executions, {corpus:>5} inputs kept, {found} findings");
        findings.extend(report.findings);
    }
    if findings.is_empty() {
        return Ok(());
    }
    let paths: Vec<String> = findings.iter().map(|path| format!("\n  {}", path.display())).collect();
    bail!("inputs have found something (mend it, then remove them):{}", paths.concat());
}

/// The chosen ones of all targets; without a choice, all.
fn choose(all: Vec<String>, chosen: &[String]) -> Result<Vec<String>> {
    if let Some(unknown) = chosen.iter().find(|name| !all.contains(name)) {
        bail!("there is no fuzz target {unknown}: there are {}", all.join(", "));
    }
    Ok(all.into_iter().filter(|name| chosen.is_empty() || chosen.contains(name)).collect())
}

impl Places {
    fn new() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("fuzz");
        let programs = root.join("target").join(triple()).join("release");
        Self { root, programs }
    }

    /// Every target, in alphabetical order.
    fn targets(&self) -> Result<Vec<String>> {
        let mut targets = Vec::new();
        for source in fs::read_dir(self.root.join("fuzz_targets")).context("listing the fuzz targets")? {
            let source = source.context("listing the fuzz targets")?.path();
            targets.extend(source.file_stem().map(|name| name.to_string_lossy().into_owned()));
        }
        targets.sort();
        Ok(targets)
    }

    fn build(&self, targets: &[String]) -> Result<()> {
        let bins = targets.iter().flat_map(|target| ["--bin", target]);
        let built = Command::new("cargo")
            .args(["build", "--quiet", "--release", "--target", &triple()])
            .args(bins)
            .env("RUSTFLAGS", COVERAGE)
            .current_dir(&self.root)
            .status()
            .context("building the fuzz targets")?;
        ensure!(built.success(), "the fuzz targets do not build");
        Ok(())
    }

    fn fuzz(&self, target: &str, seconds: u32) -> Result<Report> {
        let [corpus, artifacts] = ["corpus", "artifacts"].map(|dir| self.root.join(dir).join(target));
        for dir in [&corpus, &artifacts] {
            fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
        }
        let run = Command::new(self.programs.join(target))
            .arg(&corpus)
            .arg(format!("-max_total_time={seconds}"))
            .arg(format!("-max_len={MAX_INPUT_BYTES}"))
            .arg(format!("-timeout={HANG_SECONDS}"))
            .arg(format!("-rss_limit_mb={MEMORY_MIB}"))
            .arg(format!("-artifact_prefix={}/", artifacts.display()))
            .arg("-print_final_stats=1")
            .env("FUZZ_SEEDS_DIR", &corpus)
            // What a panic says is shown; whence it came, running the target on its input tells.
            .env("RUST_BACKTRACE", "0")
            .current_dir(&self.root)
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("running the fuzz target {target}"))?;
        let said = String::from_utf8_lossy(&run.stderr);
        let findings = files(&artifacts)?;
        if !run.status.success() {
            eprintln!("{target}:\n{}", last_lines(&said, LAST_LINES));
            ensure!(!findings.is_empty(), "the fuzz target {target} failed and left no input: {}", run.status);
        }
        Ok(Report { executions: executions(&said), corpus: files(&corpus)?.len(), findings })
    }
}

/// The machine's own target, which has to be named so that the compiler's flags are not those of build scripts too.
fn triple() -> String {
    format!("{ARCH}-unknown-linux-gnu")
}

/// How many inputs libFuzzer says that it has run.
fn executions(said: &str) -> Option<u64> {
    said.lines().find_map(|line| line.strip_prefix("stat::number_of_executed_units:")?.trim().parse().ok())
}

fn last_lines(text: &str, most: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(most)..].join("\n")
}

fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let listed: std::io::Result<Vec<PathBuf>> =
        fs::read_dir(dir).and_then(|entries| entries.map(|entry| entry.map(|entry| entry.path())).collect());
    let mut files = listed.with_context(|| format!("listing {}", dir.display()))?;
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_has_its_program_and_the_other_way_round() {
        let places = Places::new();
        let manifest = fs::read_to_string(places.root.join("Cargo.toml")).expect("it is there");
        let manifest: toml::Table = manifest.parse().expect("it is TOML");
        let bins = manifest["bin"].as_array().expect("they are a list").iter();
        let mut names: Vec<String> = bins.map(|bin| bin["name"].as_str().expect("it has a name").to_owned()).collect();
        names.sort();
        assert_eq!(names, places.targets().expect("they can be listed"));
    }

    #[test]
    fn all_targets_are_run_unless_some_are_chosen() {
        let all = || vec!["a".to_owned(), "b".to_owned()];
        assert_eq!(choose(all(), &[]).expect("they are there"), all());
        assert_eq!(choose(all(), &["b".to_owned()]).expect("it is there"), ["b"]);
        let error = choose(all(), &["c".to_owned()]).expect_err("it is not there");
        assert_eq!(error.to_string(), "there is no fuzz target c: there are a, b");
    }

    #[test]
    fn executions_are_found_in_what_libfuzzer_says() {
        assert_eq!(executions("Done\nstat::number_of_executed_units: 93652\nstat::peak_rss_mb: 31\n"), Some(93652));
        assert_eq!(executions("==1== ERROR: libFuzzer: deadly signal\n"), None);
    }

    #[test]
    fn last_words_are_the_end_of_what_was_said() {
        assert_eq!(last_lines("a\nb\nc\n", 2), "b\nc");
        assert_eq!(last_lines("a\n", 2), "a");
    }
}
