//! Blocks: what is executed at once of the lines of an input.
//!
//! On a terminal a block of Python ends with an empty line. In a script it ends before the first line that does not belong to it, so
//! that a function may have empty lines in it. A line that begins with `:` and a letter is a command of the shell's own, if it stands
//! where a block would begin.

use exec_sandbox::Language;

use super::scan::Scanner;

/// Takes lines and gives blocks.
#[derive(Debug)]
pub(super) struct Blocks {
    language: Language,
    scanner: Scanner,
    text: String,
}

impl Blocks {
    pub(super) fn new(language: Language) -> Self {
        Self { language, scanner: Scanner::new(language), text: String::new() }
    }

    /// Takes a line, without its newline; returns the blocks that it completes.
    pub(super) fn line(&mut self, line: &str) -> Vec<String> {
        let mut complete = Vec::new();
        if self.scanner.is_block() && !self.scanner.is_open() && !self.scanner.continues(line) {
            complete.extend(self.end());
        }
        if self.text.is_empty() && line.trim().is_empty() {
            return complete;
        }
        if self.text.is_empty() && is_command(line) {
            complete.push(line.to_owned());
            return complete;
        }
        self.scanner.line(line);
        self.text.push_str(line);
        self.text.push('\n');
        if !self.scanner.is_open() && !self.scanner.is_block() {
            complete.extend(self.end());
        }
        complete
    }

    /// The input is over: what is left.
    pub(super) fn end(&mut self) -> Option<String> {
        self.scanner = Scanner::new(self.language);
        let text = std::mem::take(&mut self.text);
        (!text.is_empty()).then_some(text)
    }

    /// Bytes that wait for the rest of their block.
    pub(super) fn waiting_bytes(&self) -> usize {
        self.text.len()
    }
}

/// Whether what was typed on a terminal can be executed, or needs another line.
pub(super) fn is_complete(language: Language, typed: &str) -> bool {
    if is_command(typed) {
        return true;
    }
    let mut scanner = Scanner::new(language);
    typed.split('\n').for_each(|line| scanner.line(line));
    let last_is_empty = || typed.rsplit_once('\n').is_some_and(|(_, last)| last.trim().is_empty());
    !scanner.is_open() && (!scanner.is_block() || last_is_empty())
}

/// Whether `line` is meant for the shell itself. In bash `: word` is a program that does nothing.
pub(super) fn is_command(line: &str) -> bool {
    line.strip_prefix(':').is_some_and(|rest| rest.starts_with(char::is_alphabetic))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocks(language: Language, script: &str) -> Vec<String> {
        let mut blocks = Blocks::new(language);
        let mut all: Vec<String> = script.lines().flat_map(|line| blocks.line(line)).collect();
        all.extend(blocks.end());
        all
    }

    #[test]
    fn a_script_of_python_is_taken_apart_where_indentation_ends() {
        let script =
            "x = 1\n\ndef f():\n    a = x\n\n    return a\nif f():\n    y = 2\nelse:\n    y = 3\nprint(y,\n  x)\n:ls\n";
        let parts = [
            "x = 1\n",
            "def f():\n    a = x\n\n    return a\n",
            "if f():\n    y = 2\nelse:\n    y = 3\n",
            "print(y,\n  x)\n",
            ":ls",
        ];
        assert_eq!(blocks(Language::Python, script), parts);
    }

    #[test]
    fn scripts_of_the_other_languages_are_taken_apart_where_nothing_is_open() {
        let script = "let x = {\n  a: 1,\n}\nconsole.log(x)\n";
        assert_eq!(blocks(Language::JavaScript, script), ["let x = {\n  a: 1,\n}\n", "console.log(x)\n"]);
        let script = "x=1\nfor i in 1 2; do\n  echo $i\ndone\n: ${x}\n:quit\n";
        let parts = ["x=1\n", "for i in 1 2; do\n  echo $i\ndone\n", ": ${x}\n", ":quit"];
        assert_eq!(blocks(Language::Raw, script), parts);
    }

    #[test]
    fn no_line_of_a_script_is_lost_even_if_something_stays_open() {
        assert_eq!(blocks(Language::Python, "f(1,\n2"), ["f(1,\n2\n"]);
        assert_eq!(blocks(Language::Raw, "echo 'a\n:ls\n"), ["echo 'a\n:ls\n"]);
    }

    #[test]
    fn on_a_terminal_a_block_of_python_ends_with_an_empty_line() {
        let complete = |typed| is_complete(Language::Python, typed);
        assert!(complete("x = 1") && complete(":help") && complete("f(1,\n2)"));
        assert!(!complete("def f():") && !complete("def f():\n  return 1") && !complete("f(1,\n"));
        assert!(complete("def f():\n  return 1\n"));
        assert!(is_complete(Language::JavaScript, "f()") && !is_complete(Language::JavaScript, "f("));
    }
}
