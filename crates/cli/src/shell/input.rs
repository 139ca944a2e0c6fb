//! Where the shell's input comes from: a person at a terminal, or a script through a pipe.
//!
//! Reading blocks, so a thread does it. Between two readings the terminal is as it was found, and Ctrl-C is a signal again.

use std::{
    borrow::Cow,
    collections::VecDeque,
    fs,
    io::{self, BufRead as _, Read as _},
    os::{fd::AsFd as _, unix::fs::OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use exec_sandbox::Language;
use reedline::{
    FileBackedHistory, Prompt, PromptEditMode, PromptHistorySearch, Reedline, Signal, ValidationResult, Validator,
};
use rustix::termios::{OptionalActions, Termios};

use super::blocks::{self, Blocks};
use crate::failure::Failure;

/// Inputs that are remembered: months of somebody's typing, and a file of some hundred kilobytes.
const MAX_HISTORY: usize = 1000;

/// Most bytes of one block: more than the longest program that is accepted, so that the library says what is wrong with a long
/// one, and little enough that an endless one is noticed.
const MAX_BLOCK_BYTES: usize = 8 * 1024 * 1024;

/// What was read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Read {
    Block(String),
    /// Ctrl-C: what was typed is not meant any more.
    Nothing,
    End,
}

/// The source of blocks.
pub(super) enum Input {
    /// `None` while a thread has it.
    Terminal(Option<Box<Reedline>>, Language, #[expect(dead_code, reason = "its end is its use")] Restored),
    Script(Blocks, VecDeque<String>),
}

/// Puts the terminal's settings back when the shell ends in the middle of a line.
pub(super) struct Restored(Option<Termios>);

impl Input {
    /// A person who types `language`.
    pub(super) fn terminal(language: Language) -> Self {
        let restored = Restored(rustix::termios::tcgetattr(io::stdin().as_fd()).ok());
        let mut editor = Reedline::create().with_validator(Box::new(Completeness(language)));
        // Without a place for it, history lasts as long as the shell.
        if let Some(history) = history(language) {
            editor = editor.with_history(Box::new(history));
        }
        Self::Terminal(Some(Box::new(editor)), language, restored)
    }

    /// Lines on standard input.
    pub(super) fn script(language: Language) -> Self {
        Self::Script(Blocks::new(language), VecDeque::new())
    }

    /// The next block.
    pub(super) async fn next(&mut self) -> Result<Read, Failure> {
        match self {
            Self::Terminal(editor, language, _) => edit(editor, *language).await,
            Self::Script(blocks, ready) => loop {
                if let Some(block) = ready.pop_front() {
                    return Ok(Read::Block(block));
                }
                let Some(line) = read_line().await? else {
                    return Ok(blocks.end().map_or(Read::End, Read::Block));
                };
                ready.extend(blocks.line(&line));
                if blocks.waiting_bytes() > MAX_BLOCK_BYTES {
                    return Err(too_long());
                }
            },
        }
    }
}

async fn edit(editor: &mut Option<Box<Reedline>>, language: Language) -> Result<Read, Failure> {
    let reading = |error| Failure::host("reading from the terminal", error);
    let Some(mut borrowed) = editor.take() else { return Ok(Read::End) };
    let typed = tokio::task::spawn_blocking(move || {
        let typed = borrowed.read_line(&Named(language));
        // What cannot be remembered is forgotten.
        let _ = borrowed.sync_history();
        (borrowed, typed)
    });
    let (returned, typed) = typed.await.map_err(|error| reading(io::Error::other(error)))?;
    *editor = Some(returned);
    Ok(match typed.map_err(reading)? {
        Signal::Success(typed) if typed.trim().is_empty() => Read::Nothing,
        Signal::Success(typed) => Read::Block(typed),
        Signal::CtrlD => Read::End,
        _ => Read::Nothing,
    })
}

async fn read_line() -> Result<Option<String>, Failure> {
    let reading = |error| Failure::host("reading standard input", error);
    let read = tokio::task::spawn_blocking(|| {
        let mut line = Vec::new();
        io::stdin().lock().take(MAX_BLOCK_BYTES as u64 + 1).read_until(b'\n', &mut line).map(|_| line)
    });
    let mut line = read.await.map_err(|error| reading(io::Error::other(error)))?.map_err(reading)?;
    if line.is_empty() {
        return Ok(None);
    }
    if line.len() > MAX_BLOCK_BYTES {
        return Err(too_long());
    }
    if line.ends_with(b"\n") {
        line.pop();
    }
    let text =
        String::from_utf8(line).map_err(|_| Failure::usage("standard input is not UTF-8 text", "save it as UTF-8"))?;
    Ok(Some(text))
}

fn too_long() -> Failure {
    let message =
        format!("standard input has a block longer than {} MiB, which no program may be", MAX_BLOCK_BYTES >> 20);
    Failure::Usage { message, help: None }
}

fn history(language: Language) -> Option<FileBackedHistory> {
    let path = cache_dir(|name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from))?
        .join(format!("shell-{language}.history"));
    private(&path).ok()?;
    FileBackedHistory::with_file(MAX_HISTORY, path).ok()
}

/// Makes the file at `path` if it is not there: what people type is nobody else's business.
fn private(path: &Path) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::OpenOptions::new().create(true).append(true).mode(0o600).open(path).map(drop)
}

/// The library's cache directory, by the rules of the library.
fn cache_dir(variable: impl Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
    let in_home = if cfg!(target_os = "macos") { "Library/Caches/exec-sandbox" } else { ".cache/exec-sandbox" };
    variable("EXEC_SANDBOX_CACHE_DIR")
        .or_else(|| Some(variable("XDG_CACHE_HOME")?.join("exec-sandbox")))
        .or_else(|| Some(variable("HOME")?.join(in_home)))
}

impl Drop for Restored {
    fn drop(&mut self) {
        if let Some(settings) = &self.0 {
            // The terminal may be gone.
            let _ = rustix::termios::tcsetattr(io::stdin().as_fd(), OptionalActions::Now, settings);
        }
    }
}

/// Decides whether Enter executes or begins a line.
struct Completeness(Language);

impl Validator for Completeness {
    fn validate(&self, typed: &str) -> ValidationResult {
        if blocks::is_complete(self.0, typed) { ValidationResult::Complete } else { ValidationResult::Incomplete }
    }
}

/// The prompt: the language's name.
struct Named(Language);

impl Prompt for Named {
    fn render_prompt_left(&self) -> Cow<'_, str> {
        self.0.name().into()
    }

    fn render_prompt_right(&self) -> Cow<'_, str> {
        "".into()
    }

    fn render_prompt_indicator(&self, _: PromptEditMode) -> Cow<'_, str> {
        "> ".into()
    }

    fn render_prompt_multiline_indicator(&self) -> Cow<'_, str> {
        "... ".into()
    }

    fn render_prompt_history_search_indicator(&self, search: PromptHistorySearch) -> Cow<'_, str> {
        format!(" search {}> ", search.term).into()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn history_lies_in_the_cache_and_is_the_users_alone() {
        let place = |set: &[(&str, &str)]| {
            cache_dir(|name| set.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into()))
        };
        assert_eq!(place(&[("EXEC_SANDBOX_CACHE_DIR", "/c"), ("HOME", "/h")]), Some("/c".into()));
        assert_eq!(place(&[("XDG_CACHE_HOME", "/x"), ("HOME", "/h")]), Some("/x/exec-sandbox".into()));
        assert_eq!(place(&[]), None);
        let root = tempfile::tempdir().expect("a directory is made");
        let path = root.path().join("new/shell-python.history");
        private(&path).expect("it is made");
        assert_eq!(fs::metadata(path).expect("it is there").permissions().mode() & 0o777, 0o600);
    }
}
