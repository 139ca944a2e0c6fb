//! JavaScript and TypeScript: brackets, templates and comments. What is complete is executed, so `else` goes on its brace's line.

/// Words after which a slash begins a regular expression.
const BEFORE_REGEX: [&str; 12] =
    ["await", "case", "delete", "do", "else", "in", "of", "return", "throw", "typeof", "void", "yield"];

/// Signs after which a slash begins a regular expression.
const SIGNS_BEFORE_REGEX: &str = "(,=:[!&|?{};+-*%<>~^";

#[derive(Debug, Default)]
pub(in crate::shell) struct Scanner {
    /// What is open, the outermost first.
    open: Vec<Open>,
    in_comment: bool,
    /// The last sign that says something, and the word before the place that is read, if a word is.
    last: Option<char>,
    word: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Open {
    Bracket,
    /// Between backquotes.
    Template,
}

impl Scanner {
    pub(super) fn line(&mut self, line: &str) {
        let mut rest = line;
        while let Some(c) = rest.chars().next() {
            let length = if self.in_comment {
                self.in_comment = !rest.starts_with("*/");
                if self.in_comment { c.len_utf8() } else { 2 }
            } else if self.open.last() == Some(&Open::Template) {
                self.template(c, rest)
            } else if rest.starts_with("//") {
                rest.len()
            } else {
                self.code(c, rest)
            };
            rest = rest.get(length..).unwrap_or_default();
        }
        self.word.clear();
    }

    pub(super) fn is_open(&self) -> bool {
        self.in_comment || !self.open.is_empty()
    }

    fn template(&mut self, c: char, rest: &str) -> usize {
        match c {
            '\\' => return 1 + rest.chars().nth(1).map_or(0, char::len_utf8),
            '`' => drop(self.open.pop()),
            '$' if rest.starts_with("${") => {
                self.open.push(Open::Bracket);
                return 2;
            }
            _ => {}
        }
        c.len_utf8()
    }

    fn code(&mut self, c: char, rest: &str) -> usize {
        let mut length = c.len_utf8();
        match c {
            '/' if rest.starts_with("/*") => {
                self.in_comment = true;
                return 2;
            }
            '/' if self.begins_regex() => length = regex(rest),
            '\'' | '"' => length = quoted(c, rest),
            '`' => self.open.push(Open::Template),
            '(' | '[' | '{' => self.open.push(Open::Bracket),
            ')' | ']' | '}' => drop(self.open.pop()),
            c if c.is_alphanumeric() || c == '_' || c == '$' => {
                self.word.push(c);
                self.last = Some(c);
                return length;
            }
            c if c.is_whitespace() => return length,
            _ => {}
        }
        self.word.clear();
        self.last = Some(c);
        length
    }

    fn begins_regex(&self) -> bool {
        let sign = self.last.is_none_or(|last| SIGNS_BEFORE_REGEX.contains(last));
        sign && self.word.is_empty() || BEFORE_REGEX.contains(&self.word.as_str())
    }
}

/// How long the string is that `rest` begins with: to its quote, or to the end of the line.
fn quoted(quote: char, rest: &str) -> usize {
    let mut is_escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        if !is_escaped && c == quote {
            return at + 1;
        }
        is_escaped = !is_escaped && c == '\\';
    }
    rest.len()
}

/// How long the regular expression is that `rest` begins with: to its slash, or to the end of the line.
fn regex(rest: &str) -> usize {
    let (mut is_escaped, mut in_class) = (false, false);
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            _ if is_escaped => {}
            '[' => in_class = true,
            ']' => in_class = false,
            '/' if !in_class => return at + 1,
            _ => {}
        }
        is_escaped = !is_escaped && c == '\\';
    }
    rest.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_open(text: &str) -> bool {
        let mut scanner = Scanner::default();
        text.split('\n').for_each(|line| scanner.line(line));
        scanner.is_open()
    }

    #[test]
    fn brackets_templates_and_comments_keep_code_open() {
        for open in ["function f() {", "f(1,", "[1, [2]", "`a", "`${f(", "`${`a`}", "/* a", "if (x) { // }", "({a: '}'"]
        {
            assert!(is_open(open), "{open}");
        }
    }

    #[test]
    fn brackets_in_strings_comments_and_regular_expressions_are_none() {
        for closed in [
            "f('(')",
            "\"\\\"(\"",
            "x // (",
            "/* ( */ x",
            "`(${f(`{`)}`",
            "s.replace(/[(/]\\(/g, '')",
            "return /(/",
            "a / b / (c)",
            "x = 4 / 2",
            "function f() {\n  return 1\n}",
        ] {
            assert!(!is_open(closed), "{closed}");
        }
    }
}
