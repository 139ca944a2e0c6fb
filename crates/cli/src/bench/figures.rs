//! What is said of many values: their middle, and where the slow ones begin. Pure.

/// Median and 95th percentile of something that was measured in every run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Figures {
    pub(super) median: f64,
    pub(super) p95: f64,
}

/// The figures of `values`; none of no values.
pub(super) fn figures(mut values: Vec<f64>) -> Option<Figures> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let median = if values.len().is_multiple_of(2) {
        f64::midpoint(*values.get(middle.checked_sub(1)?)?, *values.get(middle)?)
    } else {
        *values.get(middle)?
    };
    // Nearest rank: a value that was measured. Of fewer than twenty it is the largest.
    let rank = (values.len() * 95).div_ceil(100);
    Some(Figures { median, p95: *values.get(rank.checked_sub(1)?)? })
}

/// What one more takes: by how much a sum has grown since there were fewer, for each that was added.
pub(super) fn marginal((fewer, before): (u32, f64), (more, after): (u32, f64)) -> Option<f64> {
    let added = more.checked_sub(fewer).filter(|added| *added > 0)?;
    Some((after - before) / f64::from(added))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_lies_between_the_middle_two_and_the_percentile_was_measured() {
        assert_eq!(figures(vec![4.0, 1.0, 3.0, 2.0]), Some(Figures { median: 2.5, p95: 4.0 }));
        assert_eq!(figures(vec![3.0]), Some(Figures { median: 3.0, p95: 3.0 }));
        let hundred: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(figures(hundred), Some(Figures { median: 50.5, p95: 95.0 }));
        assert_eq!(figures(Vec::new()), None);
    }

    #[test]
    fn one_more_takes_its_share_of_the_growth() {
        assert_eq!(marginal((1, 40.0), (4, 100.0)), Some(20.0));
        assert_eq!(marginal((0, 0.0), (1, 40.0)), Some(40.0), "the first has nobody to share with");
        assert_eq!(marginal((4, 100.0), (8, 96.0)), Some(-1.0));
        assert_eq!(marginal((4, 100.0), (4, 100.0)), None);
    }
}
