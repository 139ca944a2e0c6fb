//! Progress: what the build tells the person who waits for it.
//!
//! Plain lines on stderr, each with its step, so that a log reads the same as a terminal; a terminal also gets a line that counts the
//! seconds. A step that did no work says "cached", any other its wall time.

#![expect(clippy::print_stderr, reason = "this module is the one that talks to the terminal")]

use std::io::{self, IsTerminal};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use exec_sandbox_image::{Qemu, VerifiedImage};

/// Between two signs of life in a log. A compile of minutes should not look dead, nor fill the log.
const LOG_BEAT: Duration = Duration::from_secs(30);

/// Clears the line that counts seconds.
const CLEAR_LINE: &str = "\r\x1b[K";

/// The steps so far.
#[derive(Debug)]
pub(crate) struct Report {
    started: Instant,
    steps: Vec<(&'static str, String)>,
}

/// A running step's voice.
#[derive(Debug)]
pub(crate) struct Ui {
    step: &'static str,
    started: Instant,
    worked: bool,
    doing: String,
    doing_since: Instant,
    last_beat: Instant,
    is_terminal: bool,
}

impl Report {
    /// No steps yet.
    pub(crate) fn new() -> Self {
        Self { started: Instant::now(), steps: Vec::new() }
    }

    /// Runs one step and notes how long it took.
    pub(crate) fn step<T>(&mut self, name: &'static str, work: impl FnOnce(&mut Ui) -> Result<T>) -> Result<T> {
        let mut ui = Ui::new(name);
        let done =
            work(&mut ui).with_context(|| format!("the step {name:?} failed after {}", seconds(ui.started.elapsed())));
        ui.clear();
        let value = done?;
        let took = seconds(ui.started.elapsed());
        let result = if ui.worked { format!("done in {took}") } else { format!("cached ({took})") };
        eprintln!("{name}: {result}");
        self.steps.push((name, result));
        Ok(value)
    }

    /// All steps in a table.
    pub(crate) fn summary(&self) {
        let width = self.steps.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        eprintln!("\nassets:");
        self.steps.iter().for_each(|(name, result)| eprintln!("  {name:width$}  {result}"));
        eprintln!("  {:width$}  {}\n", "all", seconds(self.started.elapsed()));
    }
}

impl Ui {
    fn new(step: &'static str) -> Self {
        let now = Instant::now();
        let is_terminal = io::stderr().is_terminal();
        Self {
            step,
            started: now,
            worked: false,
            doing: "working".into(),
            doing_since: now,
            last_beat: now,
            is_terminal,
        }
    }

    /// The step's name.
    pub(crate) fn step(&self) -> &'static str {
        self.step
    }

    /// Says what begins now. The step counts as not cached.
    pub(crate) fn work(&mut self, doing: &str) {
        self.clear();
        eprintln!("{}: {doing}", self.step);
        self.worked = true;
        doing.clone_into(&mut self.doing);
        self.doing_since = Instant::now();
        self.last_beat = self.doing_since;
    }

    /// Says something that should not be missed.
    pub(crate) fn note(&self, text: &str) {
        self.clear();
        eprintln!("{}: {text}", self.step);
    }

    /// Shows that the work goes on. To be called about once a second; `at` is the last thing the work said.
    pub(crate) fn beat(&mut self, at: &str) {
        let elapsed = seconds(self.doing_since.elapsed());
        if self.is_terminal {
            let at: String = at.chars().filter(|c| !c.is_control()).take(60).collect();
            eprint!("{CLEAR_LINE}{}: {} … {elapsed}  {at}", self.step, self.doing);
        } else if self.last_beat.elapsed() >= LOG_BEAT {
            self.last_beat = Instant::now();
            eprintln!("{}: {} … {elapsed}", self.step, self.doing);
        }
    }

    fn clear(&self) {
        if self.is_terminal {
            eprint!("{CLEAR_LINE}");
        }
    }
}

/// Shows a published image.
pub(crate) fn show_image(images: &Path, image: &VerifiedImage) {
    let manifest = image.manifest();
    eprintln!("image {} for {} in {}", manifest.name, manifest.arch, images.display());
    eprintln!("  kernel {}, {} packages", manifest.kernel_version, manifest.packages.len());
    for (language, interpreter) in &manifest.languages {
        eprintln!("  {language}: {} {}", interpreter.path, interpreter.version);
    }
    for (role, blob) in manifest.blobs() {
        eprintln!(
            "  {role}: {} KiB, {}",
            blob.size_bytes / 1024,
            images.join("blobs").join(blob.blake3.to_string()).display()
        );
    }
    if let (Some(Qemu { version, .. }), Some(program)) = (&manifest.qemu, image.qemu()) {
        eprintln!("  QEMU {version}, laid out as {}", program.display());
    }
}

/// Lines that must not be overlooked, framed by empty ones.
pub(crate) fn warn(lines: &[String]) {
    eprintln!();
    lines.iter().for_each(|line| eprintln!("warning: {line}"));
    eprintln!();
}

fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}
