//! How much is kept and for how long.

use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

const HOUR: Duration = Duration::from_secs(60 * 60);

/// Snapshots of these versions with a megabyte of content each, used so many hours ago.
fn publish_all(store: &Store, all: &[(&str, u32)], now: SystemTime) {
    for (version, hours) in all {
        let draft = store.begin(&parts(version)).expect("the store works").expect("it is new");
        draft.ram().write_all_at(&vec![7; 1 << 20], 0).expect("there is room");
        fill(&draft);
        let made = draft.publish().expect("the store works");
        // Until then blocks are only promised.
        made.ram().sync_all().expect("it is a file");
        let used = store.template_dir(parts(version).key()).join(USED);
        set_modified(&used, now - *hours * HOUR).expect("it is ours");
    }
}

fn limited(dir: &TempDir, max_bytes: u64, max_age: Duration) -> Store {
    Store { limits: Limits { max_bytes, max_age }, ..store(dir) }
}

/// Which of these versions are there.
fn kept<'a>(store: &Store, versions: &[&'a str]) -> Vec<&'a str> {
    versions.iter().copied().filter(|version| store.template_dir(parts(version).key()).exists()).collect()
}

#[test]
fn over_the_size_what_was_not_used_for_longest_goes_first() {
    let (dir, now) = (temporary(), SystemTime::now());
    let store = limited(&dir, 5 << 19, LIMITS.max_age);
    publish_all(&store, &[("a", 3), ("b", 5), ("c", 1), ("d", 4)], now);
    let report = tidy::tidy(&store, now);
    assert_eq!(kept(&store, &["a", "b", "c", "d"]), ["a", "c"]);
    assert_eq!((report.kept, report.evicted), (2, 2));
    assert!((2 << 20..=5 << 19).contains(&report.kept_bytes), "{report:?}");
    assert_eq!(tidy::tidy(&store, now), Report { evicted: 0, ..report });
    assert_eq!(names(&store.trash_dir()), [""; 0]);
    check(&find(&store, &parts("c")).map_or_else(|| panic!("it is whole"), |_| publish(&store, &parts("e"))));
}

#[test]
fn what_was_not_used_for_too_long_goes() {
    let (dir, now) = (temporary(), SystemTime::now());
    let store = limited(&dir, LIMITS.max_bytes, 4 * HOUR);
    publish_all(&store, &[("a", 3), ("b", 5), ("c", 4)], now);
    assert_eq!(tidy::tidy(&store, now).evicted, 1);
    assert_eq!(kept(&store, &["a", "b", "c"]), ["a", "c"]);
}

#[test]
fn what_is_younger_than_a_minute_stays_whatever_the_limits_are() {
    let (dir, now) = (temporary(), SystemTime::now());
    let store = limited(&dir, 0, Duration::ZERO);
    publish_all(&store, &[("a", 1), ("b", 0)], now);
    assert_eq!(tidy::tidy(&store, now).evicted, 1);
    assert_eq!(kept(&store, &["a", "b"]), ["b"]);
    assert_eq!(tidy::tidy(&store, now + Duration::from_secs(59)).evicted, 0);
    assert_eq!(tidy::tidy(&store, now + Duration::from_secs(60)).evicted, 1);
}

#[test]
fn a_snapshot_whose_time_is_in_the_future_ages_from_now_on() {
    let (dir, now) = (temporary(), SystemTime::now());
    let store = limited(&dir, LIMITS.max_bytes, 4 * HOUR);
    publish_all(&store, &[("a", 0)], now + 1000 * HOUR);
    assert_eq!(tidy::tidy(&store, now).evicted, 0);
    assert_eq!(tidy::tidy(&store, now + 4 * HOUR).evicted, 0);
    assert_eq!(tidy::tidy(&store, now + 5 * HOUR).evicted, 1);
}

#[test]
fn what_is_in_use_may_be_evicted_and_stays_whole() {
    let (dir, now) = (temporary(), SystemTime::now());
    let store = limited(&dir, 0, LIMITS.max_age);
    let template = publish(&store, &parts("a"));
    assert_eq!(tidy::tidy(&store, now + HOUR).evicted, 1);
    check(&template);
    assert!(find(&store, &parts("a")).is_none());
    check(&publish(&store, &parts("a")));
}

#[test]
fn what_goes_while_others_look_for_it_is_never_taken_for_damaged() {
    const ROUNDS: usize = 100;
    let dir = temporary();
    let shared = limited(&dir, 0, LIMITS.max_age);
    let (later, is_over) = (SystemTime::now() + HOUR, AtomicBool::new(false));
    let while_it_lasts = |work: &dyn Fn()| {
        while !is_over.load(Ordering::Relaxed) {
            work();
        }
    };
    // None of them is written down as read, so that the files are.
    let unstamped = Store { known: Arc::default(), ..shared.clone() };
    let look = |store: &Store| {
        find(store, &parts("1")).iter().for_each(|template| check(template));
        store.known.proven.lock().expect("nobody panicked").clear();
    };
    std::thread::scope(|scope| {
        scope.spawn(|| while_it_lasts(&|| assert_eq!(tidy::tidy(&shared, later).quarantined, 0)));
        scope.spawn(|| while_it_lasts(&|| look(&shared)));
        scope.spawn(|| while_it_lasts(&|| look(&unstamped)));
        let mut made = 0;
        while made < ROUNDS {
            if let Some(draft) = shared.begin(&parts("1")).expect("the store works") {
                fill(&draft);
                check(&draft.publish().expect("the store works"));
                made += 1;
            }
        }
        is_over.store(true, Ordering::Relaxed);
    });
    assert_eq!(names(&shared.quarantine_dir()), [""; 0]);
}

#[test]
fn a_stamp_is_not_left_where_a_snapshot_was() {
    let dir = temporary();
    let store = store(&dir);
    publish(&store, &parts("a"));
    let snapshot = store.template_dir(parts("a").key());
    let claimed = Claimed::open(&snapshot, parts("a").key()).expect("it is whole").expect("it is there");
    fs::remove_dir_all(&snapshot).expect("it is ours");
    store.prove(&claimed, parts("a").key(), &snapshot.join(VERIFIED)).expect("it is whole");
    assert!(!snapshot.exists());
}

#[test]
fn what_was_set_aside_goes_before_what_is_of_use_and_after_its_time() {
    let (dir, now) = (temporary(), SystemTime::now());
    let store = limited(&dir, 5 << 19, LIMITS.max_age);
    publish_all(&store, &[("a", 9), ("b", 9), ("c", 0)], now);
    store.quarantine(&parts("c").key(), "the guest was silent");
    let report = tidy::tidy(&store, now + HOUR);
    assert_eq!((report.evicted, report.quarantined, kept(&store, &["a", "b"])), (0, 1, vec!["a", "b"]));
    assert_eq!(names(&store.quarantine_dir()), [""; 0]);
}

#[test]
fn what_is_not_the_stores_is_left_alone() {
    let (dir, now) = (temporary(), SystemTime::now());
    let store = limited(&dir, 0, Duration::ZERO);
    publish_all(&store, &[("a", 1)], now);
    fs::write(store.dir.join("README"), "mine").expect("it is ours");
    fs::create_dir(store.trash_dir()).expect("it is new");
    fs::write(store.trash_dir().join("left"), "by one who was killed").expect("it is ours");
    tidy::tidy(&store, now + HOUR);
    assert_eq!(names(&store.dir), ["README", "drafts", "locks", "memories", "trash"]);
    assert_eq!(names(&store.trash_dir()), [""; 0]);
    assert_eq!(names(&store.locks_dir()), [parts("a").key().to_string()], "a lock is never removed");
}

#[test]
fn a_store_that_is_not_there_has_nothing_to_tidy() {
    let dir = temporary();
    assert_eq!(store(&dir).tidy(), Report::default());
    assert!(!store(&dir).dir.exists());
}
