//! Whether code goes on: quotes, brackets and blocks, just as far as that takes.
//!
//! This is no parser. Lines go in one after the other, and out comes whether another belongs to them. A wrong guess costs an early
//! or a late execution, never a wrong one: what is sent is what was typed, and the interpreter has the last word.

use exec_sandbox::Language;

mod javascript;
mod python;
mod shell;

/// Reads the lines of one block.
#[derive(Debug)]
pub(super) enum Scanner {
    Python(python::Scanner),
    JavaScript(javascript::Scanner),
    Shell(shell::Scanner),
}

impl Scanner {
    pub(super) fn new(language: Language) -> Self {
        match language {
            Language::Python => Self::Python(python::Scanner::default()),
            Language::JavaScript => Self::JavaScript(javascript::Scanner::default()),
            Language::Raw => Self::Shell(shell::Scanner::default()),
        }
    }

    /// Reads a line, without its newline.
    pub(super) fn line(&mut self, line: &str) {
        match self {
            Self::Python(scanner) => scanner.line(line),
            Self::JavaScript(scanner) => scanner.line(line),
            Self::Shell(scanner) => scanner.line(line),
        }
    }

    /// Something is open that only another line can close.
    pub(super) fn is_open(&self) -> bool {
        match self {
            Self::Python(scanner) => scanner.is_open(),
            Self::JavaScript(scanner) => scanner.is_open(),
            Self::Shell(scanner) => scanner.is_open(),
        }
    }

    /// It is a block that lines of code may be added to, which ends where nothing more is.
    pub(super) fn is_block(&self) -> bool {
        matches!(self, Self::Python(scanner) if scanner.is_block())
    }

    /// `line` belongs to the block before it.
    pub(super) fn continues(&self, line: &str) -> bool {
        matches!(self, Self::Python(scanner) if scanner.continues(line))
    }
}
