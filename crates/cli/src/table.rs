//! Tables for people: a line of titles, a line for each thing, columns as wide as they have to be.

use std::fmt::Write as _;

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
}
