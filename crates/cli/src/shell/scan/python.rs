//! Python: brackets, strings, backslashes, and blocks by their indentation.

/// What begins a block, also when all of it stands on one line: `else` may follow.
const BLOCKS: [&str; 8] = ["async", "class", "def", "for", "if", "try", "while", "with"];

/// What goes on with a block at its own indentation.
const CLAUSES: [&str; 4] = ["elif", "else", "except", "finally"];

#[derive(Debug, Default)]
pub(in crate::shell) struct Scanner {
    depth: u32,
    /// The quote of the string that is open, and whether it is tripled.
    string: Option<(char, bool)>,
    /// The last line ended with a backslash.
    is_continued: bool,
    is_block: bool,
    is_decorated: bool,
    /// The last character that says something, of the statement that is being read.
    last: Option<char>,
}

impl Scanner {
    pub(super) fn line(&mut self, line: &str) {
        if !self.is_open() && self.begins_nothing(line) {
            return;
        }
        if !self.is_open() {
            self.last = None;
            self.is_decorated = line.starts_with('@');
            self.is_block |= self.is_decorated || BLOCKS.contains(&first_word(line));
        }
        self.is_continued = false;
        let mut rest = line;
        while let Some(c) = rest.chars().next() {
            if self.string.is_none() && c == '#' {
                break;
            }
            rest = rest.get(self.step(c, rest)..).unwrap_or_default();
        }
        // Only a backslash carries a string with single quotes over the end of its line.
        if matches!(self.string, Some((_, false))) && !self.is_continued {
            self.string = None;
        }
        self.is_block |= !self.is_open() && self.last == Some(':');
    }

    pub(super) fn is_open(&self) -> bool {
        self.depth > 0 || self.string.is_some() || self.is_continued
    }

    pub(super) fn is_block(&self) -> bool {
        self.is_block
    }

    pub(super) fn continues(&self, line: &str) -> bool {
        self.is_decorated
            || self.begins_nothing(line)
            || line.starts_with([' ', '\t'])
            || CLAUSES.contains(&first_word(line))
    }

    fn begins_nothing(&self, line: &str) -> bool {
        let text = line.trim_start();
        text.is_empty() || text.starts_with('#')
    }

    /// Reads what `rest` begins with, `c`; returns how many bytes that were.
    fn step(&mut self, c: char, rest: &str) -> usize {
        let is_tripled = |quote: char| rest.starts_with(&String::from(quote).repeat(3));
        match (self.string, c) {
            (_, '\\') => {
                let escaped = rest.chars().nth(1);
                self.is_continued = escaped.is_none();
                return 1 + escaped.map_or(0, char::len_utf8);
            }
            (Some((quote, true)), c) if c == quote && is_tripled(quote) => {
                self.string = None;
                return 3;
            }
            (Some((quote, false)), c) if c == quote => self.string = None,
            (Some(_), _) => {}
            (None, '\'' | '"') => {
                self.last = Some(c);
                self.string = Some((c, is_tripled(c)));
                return if is_tripled(c) { 3 } else { 1 };
            }
            (None, '(' | '[' | '{') => self.depth += 1,
            (None, ')' | ']' | '}') => self.depth = self.depth.saturating_sub(1),
            (None, _) => {}
        }
        if self.string.is_none() && !c.is_whitespace() {
            self.last = Some(c);
        }
        c.len_utf8()
    }
}

fn first_word(line: &str) -> &str {
    let end = line.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(line.len());
    line.get(..end).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Scanner {
        let mut scanner = Scanner::default();
        text.split('\n').for_each(|line| scanner.line(line));
        scanner
    }

    #[test]
    fn brackets_strings_and_backslashes_keep_a_statement_open() {
        for open in ["f(1,", "x = [", "{'a':\n 1,", "s = '''a", "\"\"\"a\nb", "x = 1 + \\", "f('(',", "'a\\"] {
            assert!(read(open).is_open(), "{open}");
        }
        for closed in
            ["f(1)", "x = '('", "# (", "x = '''a\nb'''", "'\\''", "x = 1 + \\\n 2", "'unclosed", "\"#\" + ')'"]
        {
            assert!(!read(closed).is_open(), "{closed}");
        }
    }

    #[test]
    fn what_ends_with_a_colon_or_begins_like_a_block_is_one() {
        for block in
            ["def f():", "if x: y", "match x:", "@cached", "class A: # why", "with a(\n b):", "async def f(): pass"]
        {
            assert!(read(block).is_block(), "{block}");
        }
        for none in ["x = 1", "print(':')", "x = {1: 2}", "matched = 2", "iffy()", "d[1:]"] {
            assert!(!read(none).is_block(), "{none}");
        }
    }

    #[test]
    fn a_block_goes_on_with_indentation_and_its_clauses() {
        let scanner = read("if x:\n    y");
        for more in ["    z", "else:", "elif y:", "", "# remark", "\tz"] {
            assert!(scanner.continues(more), "{more}");
        }
        assert!(!scanner.continues("z") && !scanner.continues("elsewhere()"));
        assert!(read("@cached").continues("def f():"));
    }
}
