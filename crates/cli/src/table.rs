//! Tables for people: a line of titles, a line for each thing, columns as wide as they have to be.

use std::{fmt::Write as _, time::Duration};

use crate::print::HEADER;

/// What a cell says of what is not known.
pub(crate) const UNKNOWN: &str = "-";

/// `rows` under `titles`.
pub(crate) fn table<const COLUMNS: usize>(titles: [&str; COLUMNS], rows: &[[String; COLUMNS]]) -> String {
    let mut widths = titles.map(str::len);
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: [&str; COLUMNS]| {
        let padded: Vec<String> = cells.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        padded.join("  ").trim_end().to_owned()
    };
    let mut table = format!("{HEADER}{}{HEADER:#}\n", line(titles));
    for row in rows {
        let _ = writeln!(table, "{}", line(row.each_ref().map(String::as_str)));
    }
    table
}

/// What is in a record or a manifest is not ours alone to choose, and must not steer a terminal.
pub(crate) fn cell(text: Option<&str>) -> String {
    let keep = |c: char| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c };
    text.map_or_else(|| UNKNOWN.to_owned(), |text| text.chars().map(keep).collect())
}

/// An age in its largest unit.
pub(crate) fn rounded(age: Duration) -> String {
    match age.as_secs() {
        seconds @ 0..60 => format!("{seconds} s"),
        seconds @ 60..3600 => format!("{} min", seconds / 60),
        seconds @ 3600..86_400 => format!("{} h", seconds / 3600),
        seconds => format!("{} d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell_and_lines_end_without_blanks() {
        let rows = [["a", "bb"], ["ééé", ""]].map(|row| row.map(str::to_owned));
        let shown = anstream::adapter::strip_str(&table(["X", "Y"], &rows)).to_string();
        assert_eq!(shown, "X    Y\na    bb\nééé\n");
        assert_eq!(anstream::adapter::strip_str(&table(["X", "Y"], &[])).to_string(), "X  Y\n");
    }

    #[test]
    fn an_age_is_told_in_its_largest_unit() {
        let of = |seconds| rounded(Duration::from_secs(seconds));
        assert_eq!([of(0), of(59), of(60), of(7199), of(86_400 * 3)], ["0 s", "59 s", "1 min", "1 h", "3 d"]);
    }

    #[test]
    fn nothing_in_a_record_steers_a_terminal() {
        assert_eq!(cell(Some("a\u{1b}[31m\nb")), "a\u{fffd}[31m\u{fffd}b");
        assert_eq!(cell(None), "-");
    }
}
