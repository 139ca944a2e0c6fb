//! Eviction: what of a store goes because all of it takes too much of the disk, or because one thing was not used for too long.
//!
//! Decides, and has things taken away by whoever asks; a look at what would go is the same with nothing taken away.

use std::{
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use super::{allocated_bytes, last_use};

/// Its presence in a thing's directory keeps that whatever the limits say.
pub(crate) const PINNED: &str = "pinned";

/// What was used more recently is never removed for a limit: whoever made it has not had the time to use it.
const NEVER_BEFORE: Duration = Duration::from_secs(60);

/// How much is kept, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    /// What all things of a store together may take of the disk.
    pub(crate) max_bytes: u64,
    /// After so long without use one is removed.
    pub(crate) max_age: Duration,
}

/// How it is about a thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It goes when a limit says so.
    Kept,
    /// It stays whatever the limits say.
    Pinned,
    /// It is of no use, and kept to be looked at.
    SetAside,
}

/// Something that could go.
#[derive(Clone, Debug)]
pub(crate) struct Candidate {
    pub(crate) path: PathBuf,
    /// Where it goes through.
    pub(crate) trash: PathBuf,
    pub(crate) bytes: u64,
    /// When it was used last.
    pub(crate) used: SystemTime,
    /// After so long without use it goes.
    pub(crate) max_age: Duration,
    pub(crate) standing: Standing,
}

/// How much goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rule {
    /// What is too old, and what is too much: all of it together takes no more than this afterwards.
    Within { max_bytes: u64 },
    /// Everything that is not pinned.
    Everything,
}

/// What came of it.
#[derive(Debug)]
pub(crate) struct Evicted {
    pub(crate) gone: Vec<Candidate>,
    pub(crate) kept: Vec<Candidate>,
    /// What is kept takes of the disk.
    pub(crate) kept_bytes: u64,
}

impl Candidate {
    /// The thing at `path`, whose file `used` tells of its last use.
    pub(crate) fn at(path: PathBuf, trash: &Path, used: &str, max_age: Duration, now: SystemTime) -> Self {
        let is_pinned = path.join(PINNED).symlink_metadata().is_ok();
        let standing = if is_pinned { Standing::Pinned } else { Standing::Kept };
        let (bytes, used) = (allocated_bytes(&path), last_use(&path, used, now));
        Self { path, trash: trash.to_owned(), bytes, used, max_age, standing }
    }

    /// The same, which is of no use.
    pub(crate) fn set_aside(self) -> Self {
        Self { standing: Standing::SetAside, ..self }
    }

    fn is_over(&self, rule: Rule, total_bytes: u64, now: SystemTime) -> bool {
        let age = now.duration_since(self.used).unwrap_or_default();
        match (self.standing, rule) {
            (Standing::Pinned, _) => false,
            (_, Rule::Everything) => true,
            (Standing::Kept, Rule::Within { .. }) if age < NEVER_BEFORE => false,
            (_, Rule::Within { max_bytes }) => total_bytes > max_bytes || age > self.max_age,
        }
    }
}

/// Has `discard` take away what `rule` says: what is of no use first, then what was not used for longest. `discard` tells whether it is
/// gone; what is not, is kept.
pub(crate) fn evict(
    mut candidates: Vec<Candidate>,
    rule: Rule,
    now: SystemTime,
    mut discard: impl FnMut(&Candidate) -> bool,
) -> Evicted {
    candidates.sort_by_key(|candidate| (candidate.standing != Standing::SetAside, candidate.used));
    let mut kept_bytes = candidates.iter().map(|candidate| candidate.bytes).fold(0, u64::saturating_add);
    let (mut gone, mut kept) = (Vec::new(), Vec::new());
    for candidate in candidates {
        if candidate.is_over(rule, kept_bytes, now) && discard(&candidate) {
            kept_bytes = kept_bytes.saturating_sub(candidate.bytes);
            gone.push(candidate);
        } else {
            kept.push(candidate);
        }
    }
    Evicted { gone, kept, kept_bytes }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*, sample::select};

    use super::*;

    const HOUR: Duration = Duration::from_secs(60 * 60);

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + 1_000_000 * HOUR
    }

    fn candidate(name: &str, bytes: u64, age: Duration, standing: Standing) -> Candidate {
        let (path, trash) = (name.into(), "trash".into());
        Candidate { path, trash, bytes, used: now() - age, max_age: 100 * HOUR, standing }
    }

    fn names(candidates: &[Candidate]) -> Vec<&str> {
        candidates.iter().filter_map(|candidate| candidate.path.to_str()).collect()
    }

    fn any_candidates() -> impl Strategy<Value = Vec<Candidate>> {
        let standing = select(vec![Standing::Kept, Standing::Kept, Standing::Pinned, Standing::SetAside]);
        vec((0..5_u64, 0..200_u32, standing), 0..12).prop_map(|all| {
            let of = |(number, (bytes, hours, standing)): (usize, (u64, u32, Standing))| {
                candidate(&number.to_string(), bytes, hours * HOUR, standing)
            };
            all.into_iter().enumerate().map(of).collect()
        })
    }

    proptest! {
        #[test]
        fn what_is_kept_is_within_the_limits_or_may_not_go(candidates in any_candidates(), max_bytes in 0..30_u64) {
            let count = candidates.len();
            let evicted = evict(candidates, Rule::Within { max_bytes }, now(), |_| true);
            prop_assert_eq!(evicted.gone.len() + evicted.kept.len(), count);
            prop_assert_eq!(evicted.kept_bytes, evicted.kept.iter().map(|kept| kept.bytes).sum::<u64>());
            let may_go = |kept: &&Candidate| kept.standing == Standing::SetAside
                || kept.standing == Standing::Kept && now() - NEVER_BEFORE >= kept.used;
            let too_old = |kept: &Candidate| now() - kept.max_age > kept.used;
            prop_assert!(!evicted.kept.iter().filter(may_go).any(too_old));
            prop_assert!(evicted.kept_bytes <= max_bytes || !evicted.kept.iter().any(|kept| may_go(&kept)));
            prop_assert!(evicted.gone.iter().all(|gone| may_go(&gone)));
            // Nothing young went for size while something that was not used for longer stayed.
            let (kept, gone) = (evicted.kept.iter().filter(may_go), evicted.gone.iter().filter(|gone| !too_old(gone)));
            let oldest = kept.filter(|kept| kept.standing == Standing::Kept).map(|kept| kept.used).min();
            let youngest = gone.filter(|gone| gone.standing == Standing::Kept).map(|gone| gone.used).max();
            prop_assert!(oldest.zip(youngest).is_none_or(|(oldest, youngest)| oldest >= youngest));
        }

        #[test]
        fn of_everything_only_what_is_pinned_stays(candidates in any_candidates()) {
            let evicted = evict(candidates, Rule::Everything, now(), |_| true);
            prop_assert!(evicted.kept.iter().all(|kept| kept.standing == Standing::Pinned));
            prop_assert!(evicted.gone.iter().all(|gone| gone.standing != Standing::Pinned));
        }
    }

    #[test]
    fn what_cannot_be_taken_away_counts_and_the_next_one_goes_instead() {
        let all = ["a", "b", "c"].map(|name| candidate(name, 1, 2 * HOUR, Standing::Kept)).to_vec();
        let evicted = evict(all, Rule::Within { max_bytes: 2 }, now(), |candidate| candidate.path != Path::new("a"));
        assert_eq!((names(&evicted.gone), names(&evicted.kept), evicted.kept_bytes), (vec!["b"], vec!["a", "c"], 2));
    }

    #[test]
    fn a_thing_is_pinned_by_a_file_and_says_what_it_takes_and_when_it_was_used() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("thing");
        std::fs::create_dir(&path).expect("it is new");
        std::fs::write(path.join("used"), [7; 4096]).expect("it can be written");
        super::super::set_modified(&path.join("used"), now()).expect("it is ours");
        let found = || Candidate::at(path.clone(), dir.path(), "used", HOUR, now() + HOUR);
        assert_eq!((found().standing, found().used), (Standing::Kept, now()));
        assert!(found().bytes >= 4096);
        std::fs::write(path.join(PINNED), "").expect("it can be written");
        assert_eq!((found().standing, found().set_aside().standing), (Standing::Pinned, Standing::SetAside));
    }
}
