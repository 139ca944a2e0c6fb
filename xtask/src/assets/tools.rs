//! Other programs: running them, and saying what to do when one is missing or fails.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};

use super::progress::Ui;

/// How often a running program is looked at. Short against the quickest of them, so that short ones do not add up.
const POLL: Duration = Duration::from_millis(20);

/// Between two looks at the program's log.
const BEAT: Duration = Duration::from_secs(1);

/// How much of a log's end is read: enough for the lines that are shown.
const TAIL_BYTES: u64 = 8 * 1024;

/// Lines of a log that an error shows.
const TAIL_LINES: usize = 20;

/// Length to which each of them is cut: a package manager's command line has thousands of characters.
const LINE_CHARS: usize = 300;

/// Runs a program to its end. What it prints goes to the step's log, whose end is shown if it fails.
pub(crate) fn run(command: &mut Command, logs: &Path, ui: &mut Ui) -> Result<()> {
    let name = name_of(command);
    let log_path = logs.join(format!("{}.log", ui.step()));
    let log = open_log(&log_path).with_context(|| format!("cannot write {}", log_path.display()))?;
    let stdout = log.try_clone().context("cannot share the log")?;
    let child = command.stdin(Stdio::null()).stdout(stdout).stderr(log).spawn().map_err(|e| cannot_start(&name, e))?;
    let status = wait(child, &log_path, ui).with_context(|| format!("cannot wait for {name}"))?;
    if !status.success() {
        let tail = tail(&log_path);
        bail!("{name} failed ({status}); the end of {}:\n{}", log_path.display(), indent(&tail));
    }
    Ok(())
}

/// Runs a program that answers at once and returns what it prints.
pub(crate) fn capture(command: &mut Command) -> Result<String> {
    let name = name_of(command);
    let output = command.stdin(Stdio::null()).output().map_err(|e| cannot_start(&name, e))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{name} failed ({}):\n{}", output.status, indent(&last_lines(&said)));
    }
    String::from_utf8(output.stdout).with_context(|| format!("what {name} printed is not text"))
}

/// Empties the log of a step that begins its work.
pub(crate) fn start_log(logs: &Path, ui: &Ui) -> Result<()> {
    let path: PathBuf = logs.join(format!("{}.log", ui.step()));
    File::create(&path).map(drop).with_context(|| format!("cannot write {}", path.display()))
}

fn wait(mut child: Child, log: &Path, ui: &mut Ui) -> io::Result<ExitStatus> {
    let mut beat = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        thread::sleep(POLL);
        if beat.elapsed() >= BEAT {
            beat = Instant::now();
            ui.beat(tail(log).lines().last().unwrap_or(""));
        }
    }
}

fn cannot_start(name: &str, error: io::Error) -> anyhow::Error {
    if error.kind() == io::ErrorKind::NotFound {
        return anyhow!("{name} is not installed: `sudo scripts/system-packages.sh` installs what the build needs");
    }
    anyhow::Error::new(error).context(format!("cannot start {name}"))
}

fn open_log(path: &Path) -> io::Result<File> {
    File::options().create(true).append(true).open(path)
}

fn name_of(command: &Command) -> String {
    Path::new(command.get_program()).file_name().unwrap_or_else(|| command.get_program()).to_string_lossy().into_owned()
}

/// The last lines of a log; nothing if it cannot be read, for there is an error to tell already.
fn tail(path: &Path) -> String {
    let read = || -> io::Result<String> {
        let mut file = File::open(path)?;
        let start = fs::metadata(path)?.len().saturating_sub(TAIL_BYTES);
        file.seek(SeekFrom::Start(start))?;
        let mut bytes = Vec::new();
        file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    last_lines(&read().unwrap_or_default())
}

fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}

fn indent(text: &str) -> String {
    text.lines().map(|line| format!("    {line:.LINE_CHARS$}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_leads_to_the_script_that_installs_it() {
        let refused = capture(&mut Command::new("no-such-program-anywhere")).unwrap_err().to_string();
        assert!(refused.contains("scripts/system-packages.sh"), "{refused}");
    }

    #[test]
    fn a_failure_shows_what_the_program_said() {
        let refused =
            capture(Command::new("sh").args(["-c", "echo why it failed >&2; exit 3"])).unwrap_err().to_string();
        assert!(refused.starts_with("sh failed (exit status: 3)") && refused.contains("why it failed"), "{refused}");
    }

    #[test]
    fn lines_that_are_shown_are_cut() {
        assert_eq!(indent(&"x".repeat(LINE_CHARS + 1)), format!("    {}\n", "x".repeat(LINE_CHARS)));
    }

    #[test]
    fn only_the_last_lines_are_shown() {
        let text: String = (0..100).map(|n| format!("{n}\n")).collect();
        let last = last_lines(&text);
        assert!(last.starts_with("80\n") && last.ends_with("\n99"), "{last}");
    }
}
