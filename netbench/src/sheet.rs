//! The sheet: every sample, by what was measured and behind which network. Pure.

use serde::Serialize;

use crate::network::Network;

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Unit {
    MegabytesPerSecond,
    CpuSecondsPerGigabyte,
    Microseconds,
    ConnectionsPerSecond,
    ResidentMebibytes,
    PercentOfCore,
}

/// What is measured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) unit: Unit,
}

/// What was measured, behind each network. None of what a network has not.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Line {
    #[serde(flatten)]
    pub(crate) row: Row,
    gateway: Vec<f64>,
    passt: Vec<f64>,
    slirp: Vec<f64>,
}

/// All samples.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Sheet {
    pub(crate) title: String,
    pub(crate) lines: Vec<Line>,
    /// Trials of which nothing came, and why.
    pub(crate) failures: Vec<String>,
}

impl Unit {
    /// All of them, in the order of the page.
    pub(crate) const ALL: [Self; 6] = [
        Self::MegabytesPerSecond,
        Self::Microseconds,
        Self::ConnectionsPerSecond,
        Self::CpuSecondsPerGigabyte,
        Self::ResidentMebibytes,
        Self::PercentOfCore,
    ];

    /// Its heading.
    pub(crate) fn heading(self) -> &'static str {
        match self {
            Self::MegabytesPerSecond => "throughput, MB/s",
            Self::CpuSecondsPerGigabyte => "CPU, s/GB",
            Self::Microseconds => "round trip of a byte, µs",
            Self::ConnectionsPerSecond => "connections made and closed, 1/s",
            Self::ResidentMebibytes => "resident memory, MiB",
            Self::PercentOfCore => "CPU, % of a core",
        }
    }

    pub(crate) fn more_is_better(self) -> bool {
        matches!(self, Self::MegabytesPerSecond | Self::ConnectionsPerSecond)
    }
}

impl Row {
    pub(crate) fn new(name: impl Into<String>, unit: Unit) -> Self {
        Self { name: name.into(), unit }
    }
}

impl Line {
    fn samples_mut(&mut self, network: Network) -> &mut Vec<f64> {
        match network {
            Network::Gateway => &mut self.gateway,
            Network::Passt => &mut self.passt,
            Network::Slirp => &mut self.slirp,
        }
    }

    /// The median behind `network`.
    pub(crate) fn median(&self, network: Network) -> Option<f64> {
        quantile(
            match network {
                Network::Gateway => &self.gateway,
                Network::Passt => &self.passt,
                Network::Slirp => &self.slirp,
            },
            0.5,
        )
    }

    /// How many times better the gateway is than `other`.
    pub(crate) fn lead(&self, other: Network) -> Option<f64> {
        let (ours, others) = (self.median(Network::Gateway)?, self.median(other)?);
        let lead = if self.row.unit.more_is_better() { ours / others } else { others / ours };
        lead.is_finite().then_some(lead)
    }
}

impl Sheet {
    pub(crate) fn new(title: String) -> Self {
        Self { title, lines: Vec::new(), failures: Vec::new() }
    }

    /// Adds a sample.
    pub(crate) fn add(&mut self, row: Row, network: Network, sample: f64) {
        if let Some(line) = self.lines.iter_mut().find(|line| line.row == row) {
            line.samples_mut(network).push(sample);
        } else {
            let mut line = Line { row, gateway: Vec::new(), passt: Vec::new(), slirp: Vec::new() };
            line.samples_mut(network).push(sample);
            self.lines.push(line);
        }
    }

    /// The whole sheet as JSON, with the end of a line.
    pub(crate) fn json(&self) -> serde_json::Result<String> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }
}

/// The sample below which this share of all lies, or between the two next to it.
pub(crate) fn quantile(samples: &[f64], share: f64) -> Option<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let place = sorted.len().checked_sub(1)? as f64 * share;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a place in the list")]
    let (below, above) = (place.floor() as usize, place.ceil() as usize);
    let (low, high) = (*sorted.get(below)?, *sorted.get(above)?);
    Some(low + (high - low) * place.fract())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_lies_where_it_should() {
        assert_eq!(quantile(&[], 0.5), None);
        assert_eq!(quantile(&[4.0, 1.0, 3.0, 2.0], 0.5), Some(2.5));
        let hundred: Vec<f64> = (0..=100).map(f64::from).collect();
        assert_eq!(quantile(&hundred, 0.95), Some(95.0));
    }

    #[test]
    fn a_lead_is_above_one_where_the_gateway_is_better_whatever_better_means() {
        let mut sheet = Sheet::new(String::new());
        for (unit, ours, others) in [(Unit::MegabytesPerSecond, 30.0, 10.0), (Unit::Microseconds, 10.0, 30.0)] {
            let row = || Row::new("row", unit);
            sheet.add(row(), Network::Gateway, ours);
            sheet.add(row(), Network::Passt, others);
        }
        assert_eq!(sheet.lines.iter().map(|line| line.lead(Network::Passt)).collect::<Vec<_>>(), [Some(3.0); 2]);
        assert_eq!(sheet.lines[0].lead(Network::Slirp), None);
    }
}
