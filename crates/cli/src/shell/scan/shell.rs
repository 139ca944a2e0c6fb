//! Shell code: quotes, backslashes, here-documents, and the words that open and close compound commands.

use std::collections::VecDeque;

#[derive(Debug, Default)]
pub(in crate::shell) struct Scanner {
    quote: Option<char>,
    is_continued: bool,
    /// Compound commands that are open.
    depth: u32,
    /// The ends of here-documents that are to come, and whether tabs may stand before them.
    documents: VecDeque<(String, bool)>,
    /// The word that is read, and whether some of it is quoted.
    word: String,
    is_quoted: bool,
    /// The word would be a command's name, or a word of the shell.
    past_command: bool,
}

impl Scanner {
    pub(super) fn line(&mut self, line: &str) {
        if self.quote.is_none()
            && !self.is_continued
            && let Some((end, may_indent)) = self.documents.front()
        {
            let text = if *may_indent { line.trim_start_matches('\t') } else { line };
            if text == end {
                self.documents.pop_front();
            }
            return;
        }
        self.is_continued = false;
        let mut rest = line;
        while let Some(c) = rest.chars().next() {
            rest = rest.get(self.step(c, rest)..).unwrap_or_default();
        }
        if self.quote.is_none() && !self.is_continued {
            self.end_word();
            self.past_command = false;
        }
    }

    pub(super) fn is_open(&self) -> bool {
        self.quote.is_some() || self.is_continued || self.depth > 0 || !self.documents.is_empty()
    }

    /// Reads what `rest` begins with, `c`; returns how many bytes that were.
    fn step(&mut self, c: char, rest: &str) -> usize {
        match (self.quote, c) {
            (Some('\''), '\'') => self.quote = None,
            (Some('\''), _) => {}
            (_, '\\') => {
                let escaped = rest.chars().nth(1);
                self.is_continued = escaped.is_none();
                self.is_quoted |= escaped.is_some();
                return 1 + escaped.map_or(0, char::len_utf8);
            }
            (Some(quote), c) if c == quote => self.quote = None,
            (Some(_), _) => {}
            (None, '\'' | '"' | '`') => {
                self.quote = Some(c);
                self.is_quoted = true;
            }
            (None, '#') if self.word.is_empty() && !self.is_quoted => return rest.len(),
            (None, '<') if rest.starts_with("<<") && !rest.starts_with("<<<") => return self.document(rest),
            (None, '<' | '>') => {
                self.end_word();
                return rest.len() - rest.trim_start_matches(['<', '>']).len();
            }
            (None, ';' | '|' | '&' | '(' | ')') => {
                self.end_word();
                self.past_command = false;
            }
            (None, c) if c.is_whitespace() => self.end_word(),
            (None, c) => self.word.push(c),
        }
        c.len_utf8()
    }

    /// The head of a here-document. What begins with neither a letter nor a quote is arithmetic.
    fn document(&mut self, rest: &str) -> usize {
        self.end_word();
        let tail = rest.trim_start_matches('<');
        let (may_indent, tail) = tail.strip_prefix('-').map_or((false, tail), |tail| (true, tail));
        let tail = tail.trim_start();
        let length = tail.find(|c: char| c.is_whitespace() || ";|&()<>".contains(c)).unwrap_or(tail.len());
        let name = tail.get(..length).unwrap_or_default();
        let end: String = name.chars().filter(|c| !['\'', '"', '\\'].contains(c)).collect();
        if end.starts_with(|c: char| c.is_alphabetic() || c == '_') {
            self.documents.push_back((end, may_indent));
        }
        rest.len() - tail.len() + length
    }

    fn end_word(&mut self) {
        let (word, is_quoted) = (std::mem::take(&mut self.word), std::mem::take(&mut self.is_quoted));
        if word.is_empty() && !is_quoted || self.past_command {
            return;
        }
        self.past_command = true;
        match word.as_str() {
            _ if is_quoted => {}
            "if" | "while" | "until" | "{" => {
                self.depth += 1;
                self.past_command = false;
            }
            "for" | "case" | "select" => self.depth += 1,
            "fi" | "done" | "esac" | "}" => self.depth = self.depth.saturating_sub(1),
            "then" | "do" | "else" | "elif" | "!" => self.past_command = false,
            _ => {}
        }
    }
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
    fn quotes_backslashes_documents_and_compound_commands_keep_code_open() {
        for open in [
            "echo 'a",
            "echo \"a\nb",
            "echo a \\",
            "for i in 1 2; do",
            "if true\nthen",
            "f() {",
            "case x in\na) echo a;;",
            "cat <<EOF\na",
            "cat <<-'E'\n\ta",
            "while read x; do if a; then b; fi",
        ] {
            assert!(is_open(open), "{open}");
        }
    }

    #[test]
    fn what_is_whole_is_closed() {
        for closed in [
            "echo if for {",
            "for i in 1 2; do\necho $i\ndone",
            "if true; then echo a; else echo b; fi",
            "f() {\n  echo a\n}",
            "case x in\nx) echo a;;\nesac",
            "cat <<EOF\nif 'a\nEOF",
            "cat <<-E\n\ta\n\tE",
            "echo \"${x#a}\" # 'remark",
            "echo $((1 << 2)) <<< word",
            "echo it\\'s",
            "'if' x",
            "a | while read x; do b; done > c",
        ] {
            assert!(!is_open(closed), "{closed}");
        }
    }
}
