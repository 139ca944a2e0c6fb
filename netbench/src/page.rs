//! The page: medians behind each network, and how many times better the gateway is than the others. Pure.

use std::fmt::Write as _;

use crate::{
    network::Network,
    sheet::{Line, Sheet, Unit},
};

/// The whole page.
pub(crate) fn page(sheet: &Sheet) -> String {
    let mut page = format!("{}\n", sheet.title);
    for unit in Unit::ALL {
        let lines: Vec<&Line> = sheet.lines.iter().filter(|line| line.row.unit == unit).collect();
        if lines.is_empty() {
            continue;
        }
        let _ = write!(page, "\n{:<60}", unit.heading());
        for network in Network::ALL {
            let _ = write!(page, " {network:>9}");
        }
        page.push_str("   lead: passt  slirp\n");
        for line in lines {
            add(&mut page, line);
        }
    }
    for failure in &sheet.failures {
        let _ = writeln!(page, "failed: {failure}");
    }
    page
}

fn add(page: &mut String, line: &Line) {
    let _ = write!(page, "  {:<58}", line.row.name);
    for network in Network::ALL {
        let _ = write!(page, " {:>9}", line.median(network).map_or_else(|| "–".into(), number));
    }
    for (other, width) in [(Network::Passt, 14), (Network::Slirp, 6)] {
        let lead = line.lead(other).map_or_else(|| "–".into(), |lead| format!("{lead:.2}"));
        let _ = write!(page, " {lead:>width$}");
    }
    page.push('\n');
}

/// Three figures that mean something.
fn number(value: f64) -> String {
    let decimals = match value.abs() {
        value if value >= 99.95 => 0,
        value if value >= 9.995 => 1,
        _ => 2,
    };
    format!("{value:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sheet::Row;

    #[test]
    fn a_line_has_the_medians_and_the_leads() {
        let mut sheet = Sheet::new("tcg".into());
        let row = || Row::new("guest to host", Unit::MegabytesPerSecond);
        sheet.add(row(), Network::Gateway, 300.0);
        sheet.add(row(), Network::Passt, 200.0);
        let page = page(&sheet);
        let line = page.lines().find(|line| line.contains("guest to host")).expect("it is there");
        let words: Vec<&str> = line.split_whitespace().skip(3).collect();
        assert_eq!(words, ["300", "200", "–", "1.50", "–"]);
    }

    #[test]
    fn numbers_have_three_figures() {
        assert_eq!([1234.5, 99.97, 9.996, 0.123].map(number), ["1234", "100", "10.0", "0.12"]);
    }
}
