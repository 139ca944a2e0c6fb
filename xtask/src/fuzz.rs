//! Fuzzing: every target of `fuzz/`, for a while each, with coverage but without a nightly toolchain.
//!
//! The coverage passes are stable options of the compiler, so nothing has to be installed. `cargo fuzz`, where it is, works on
//! the same directory and adds sanitizers.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result, ensure};

/// What libFuzzer needs to see which code an input reaches.
const COVERAGE: &str = "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
                        -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
                        -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1 -Cdebug-assertions";

/// Runs every target for `seconds`. A finding is a failure, and libFuzzer names the file of the input.
pub(crate) fn run(seconds: u32) -> Result<()> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("fuzz");
    let target = "x86_64-unknown-linux-gnu";
    let built = Command::new("cargo")
        .args(["build", "--release", "--target", target])
        .env("RUSTFLAGS", COVERAGE)
        .current_dir(&dir)
        .status()
        .context("building the fuzz targets")?;
    ensure!(built.success(), "the fuzz targets do not build");
    let targets = fs::read_dir(dir.join("fuzz_targets")).context("listing the fuzz targets")?;
    for source in targets {
        let source = source?.path();
        let name = source.file_stem().context("a fuzz target has a name")?;
        let corpus = dir.join("corpus").join(name);
        fs::create_dir_all(&corpus)?;
        let status = Command::new(dir.join("target").join(target).join("release").join(name))
            .arg(&corpus)
            .args([format!("-max_total_time={seconds}"), "-max_len=4096".into(), "-print_final_stats=1".into()])
            .current_dir(&dir)
            .status()
            .with_context(|| format!("running {}", name.display()))?;
        ensure!(status.success(), "{} has found something: the input is in fuzz/", name.display());
    }
    Ok(())
}
