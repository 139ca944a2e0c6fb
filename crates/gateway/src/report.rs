//! What the gateway counts, and the line in which it tells its parent.
//!
//! One JSON object a line, from the gateway to the parent, on the report channel: when it has started, whenever the parent sends a
//! byte, at most once a second while refusals are being counted, and at the end. The parent does not believe the gateway: a line is
//! bounded before it is read, and a name in it is only a name.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{link::Malformed, policy::Refusals};

/// The form of a report. A parent refuses another.
pub const VERSION: u32 = 1;

/// Longest line of a report, its end included: every name there is with the largest count stays below half of it.
pub const MAX_LINE_BYTES: usize = 8192;

/// What has been counted since the gateway started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Bytes of programs that went out, in TCP and UDP.
    pub bytes_from_guest: u64,
    /// Bytes that went to programs of the guest, in TCP and UDP.
    pub bytes_to_guest: u64,
    /// Connections that the guest made outside.
    pub connections: u64,
    /// Connections that were made from outside to exposed ports.
    pub accepted: u64,
    /// Connections and datagrams that were permitted and reached nobody.
    pub unreachable: u64,
    /// Connections that were given up because nothing happened.
    pub timed_out: u64,
    /// Questions of the guest for names.
    pub questions: u64,
    /// Segments of no connection, and errors that the guest's kernel tells.
    pub strays: u64,
    /// Packets for the guest for which there was no room.
    pub lost: u64,
    /// What was refused, by name.
    pub refusals: Refusals,
    /// Frames that were none, in the order of [`Malformed::ALL`].
    pub malformed: [u64; Malformed::ALL.len()],
}

impl Counters {
    pub(crate) fn malformed(&mut self, why: Malformed) {
        if let Some(count) = self.malformed.get_mut(why as usize) {
            *count += 1;
        }
    }

    /// Everything that was refused or was malformed.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.refusals.iter().map(|(_, count)| count).chain(self.malformed).fold(0, u64::saturating_add)
    }
}

/// One report. What was counted under no name is left out of the maps.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// [`VERSION`].
    pub version: u32,
    /// It is the last one.
    pub is_last: bool,
    /// Bytes of programs that went out, in TCP and UDP.
    pub bytes_from_guest: u64,
    /// Bytes that went to programs of the guest, in TCP and UDP.
    pub bytes_to_guest: u64,
    /// Connections that the guest made outside.
    pub connections: u64,
    /// Connections that were made from outside to exposed ports.
    pub accepted: u64,
    /// Connections and datagrams that were permitted and reached nobody.
    pub unreachable: u64,
    /// Connections that were given up because nothing happened.
    pub timed_out: u64,
    /// Questions of the guest for names.
    pub questions: u64,
    /// Segments of no connection, and errors that the guest's kernel tells.
    pub strays: u64,
    /// Packets for the guest for which there was no room.
    pub lost: u64,
    /// What was refused, by name.
    pub refusals: Refusals,
    /// Frames that were none, by what was wrong.
    pub malformed: BTreeMap<String, u64>,
    /// Layers of the jail that this machine lacks.
    pub missing_layers: Vec<String>,
}

impl Report {
    /// The report of these counts.
    #[must_use]
    pub fn new(counters: &Counters, missing_layers: &[String], is_last: bool) -> Self {
        let malformed = Malformed::ALL.iter().map(|why| why.name().to_owned()).zip(counters.malformed);
        Self {
            version: VERSION,
            is_last,
            bytes_from_guest: counters.bytes_from_guest,
            bytes_to_guest: counters.bytes_to_guest,
            connections: counters.connections,
            accepted: counters.accepted,
            unreachable: counters.unreachable,
            timed_out: counters.timed_out,
            questions: counters.questions,
            strays: counters.strays,
            lost: counters.lost,
            refusals: counters.refusals.clone(),
            malformed: malformed.filter(|(_, count)| *count > 0).collect(),
            missing_layers: missing_layers.to_vec(),
        }
    }

    /// The report as its line, the end of the line included.
    #[must_use]
    pub fn line(&self) -> Vec<u8> {
        // Numbers, flags and texts as keys: there is nothing in it that JSON cannot say.
        let mut line = serde_json::to_vec(self).unwrap_or_default();
        line.push(b'\n');
        line
    }
}

/// Why what a gateway told was no report.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// A line is over [`MAX_LINE_BYTES`].
    #[error("a line of a gateway's report is over {MAX_LINE_BYTES} bytes")]
    TooLong,
    /// A line is no report.
    #[error("reading a gateway's report")]
    Json(#[from] serde_json::Error),
    /// A report has another form.
    #[error("a gateway's report has the form {found}, not {VERSION}")]
    Version {
        /// The form it has.
        found: u32,
    },
}

/// Reports out of pieces of any size: the parent's end.
#[derive(Debug, Default)]
pub struct Reports {
    line: Vec<u8>,
}

impl Reports {
    /// Takes bytes of the channel. Returns the newest report that ended in them: counts only grow, so older ones say nothing more.
    ///
    /// # Errors
    /// [`ReportError`] if they are no reports. The channel cannot be used after it.
    pub fn take(&mut self, bytes: &[u8]) -> Result<Option<Report>, ReportError> {
        let mut newest = None;
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            if self.line.len() + piece.len() > MAX_LINE_BYTES {
                return Err(ReportError::TooLong);
            }
            self.line.extend_from_slice(piece);
            if piece.ends_with(b"\n") {
                let report: Report = serde_json::from_slice(&self.line)?;
                self.line.clear();
                if report.version != VERSION {
                    return Err(ReportError::Version { found: report.version });
                }
                newest = Some(report);
            }
        }
        Ok(newest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Refusal;

    fn counted() -> Counters {
        let mut counters = Counters { bytes_to_guest: 7, ..Counters::default() };
        counters.refusals.count(Refusal::Fragment);
        counters.malformed(Malformed::BadChecksum);
        counters
    }

    #[test]
    fn a_report_is_read_as_it_was_told_whatever_the_pieces() {
        let older = Report::new(&Counters::default(), &[], false);
        let report = Report::new(&counted(), &["landlock".to_owned()], true);
        assert_eq!(report.malformed, BTreeMap::from([("bad_checksum".to_owned(), 1)]));
        assert_eq!(report.refusals.get(Refusal::Fragment), 1);
        let told = [older.line(), report.line()].concat();
        assert_eq!(Reports::default().take(&told).expect("they are reports"), Some(report.clone()));
        let mut reports = Reports::default();
        let seen: Vec<Report> = told.iter().filter_map(|byte| reports.take(&[*byte]).expect("it is one")).collect();
        assert_eq!(seen, [older, report]);
    }

    #[test]
    fn what_is_no_report_is_refused() {
        let mut endless = Reports::default();
        assert!(matches!(endless.take(&[b' '; MAX_LINE_BYTES]), Ok(None)));
        assert!(matches!(endless.take(b" "), Err(ReportError::TooLong)));
        assert!(matches!(Reports::default().take(b"{}\n"), Err(ReportError::Json(_))));
        let newer = Report { version: 2, ..Report::default() };
        assert!(matches!(Reports::default().take(&newer.line()), Err(ReportError::Version { found: 2 })));
    }

    #[test]
    fn every_name_with_the_largest_count_fits_into_a_line() {
        let mut full = Counters { malformed: [u64::MAX; Malformed::ALL.len()], ..Counters::default() };
        let names = Refusal::ALL.iter().map(|why| (why.name().to_owned(), u64::MAX));
        full.refusals = names.collect::<BTreeMap<_, _>>().into();
        (full.bytes_from_guest, full.bytes_to_guest) = (u64::MAX, u64::MAX);
        (full.connections, full.accepted) = (u64::MAX, u64::MAX);
        let mut report = Report::new(&full, &[], false);
        assert_eq!(report.malformed.len(), Malformed::ALL.len());
        report.missing_layers = vec!["a layer of the jail with a long name".to_owned(); 8];
        assert!(report.line().len() < MAX_LINE_BYTES / 2, "{}", report.line().len());
    }
}
