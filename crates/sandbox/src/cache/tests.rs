//! The care of a cache, with snapshots and layers of a few kilobytes.

use std::fs;

use tempfile::TempDir;

use super::*;
use crate::{Language, cache_dir::set_modified, layers::store_tests as layers, snapshot::tests as snapshots};

const HOUR: Duration = Duration::from_secs(60 * 60);

/// A cache with two snapshots and two layers, of which the second ones were not used for longer.
struct World {
    dir: TempDir,
    config: SchedulerConfig,
    /// Keys: snapshots, then layers.
    keys: [String; 4],
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let cache_dir = Some(dir.path().join("cache"));
        let (images_dir, run_dir) = (Some(dir.path().join("images")), Some(dir.path().join("run")));
        let config = SchedulerConfig { cache_dir, images_dir, run_dir, ..SchedulerConfig::default() };
        let settings = config.clone().resolve(&crate::paths::Environment::default()).expect("it is valid");
        let snapshot =
            |version| snapshots::publish(&settings.snapshots(), &snapshots::parts(version)).key().to_string();
        let layer = |package| layers::publish(&settings.layers(), &layers::parts(package)).to_string();
        let keys = [snapshot("1"), snapshot("2"), layer("idna==3.10"), layer("left==1")];
        let world = Self { dir, config, keys };
        for (key, hours) in world.keys.iter().zip([2, 40, 3, 30]) {
            set_modified(&world.path(key).join("used"), SystemTime::now() - hours * HOUR).expect("it is ours");
        }
        world
    }

    fn path(&self, key: &str) -> std::path::PathBuf {
        let cache = self.dir.path().join("cache");
        let places = ["memory-snapshots", "package-layers"].map(|store| cache.join(store).join(key));
        places.into_iter().find(|path| path.exists()).unwrap_or_else(|| cache.join("gone"))
    }

    /// Which of the four are there.
    fn there(&self) -> [bool; 4] {
        self.keys.each_ref().map(|key| self.path(key).exists())
    }

    fn collect(&self, how: &Collect) -> Collected {
        collect(&self.config, how).expect("the cache works")
    }
}

fn keys(entries: &[Entry]) -> Vec<&str> {
    entries.iter().map(|entry| entry.key.as_str()).collect()
}

#[test]
fn what_is_kept_is_listed_by_kind_and_use_with_what_it_is_for() {
    let world = World::new();
    let all = list(&world.config).expect("the cache works");
    assert_eq!(keys(&all), world.keys.each_ref().map(String::as_str));
    let snapshot = Contents::Snapshot {
        language: Some(Language::Python),
        memory_mib: 1,
        packages: vec!["b==2".into(), "a==1".into()],
    };
    assert_eq!((all[0].kind, &all[0].contents, all[0].is_pinned), (Kind::Snapshot, &snapshot, false));
    let layer = Contents::Packages {
        language: Language::Python,
        requested: vec!["idna==3.10".into()],
        installed: vec!["idna 3.10".into()],
    };
    assert_eq!((all[2].kind, &all[2].contents), (Kind::Packages, &layer));
    for (entry, hours) in all.iter().zip([2, 40, 3, 30]) {
        let age = entry.last_use.expect("it is known").elapsed().expect("it was before");
        assert!((hours * HOUR..(hours + 1) * HOUR).contains(&age), "{age:?}");
        assert!(entry.bytes > 0 && entry.path == world.path(&entry.key));
    }
}

#[test]
fn what_is_damaged_or_set_aside_is_listed_as_such() {
    let world = World::new();
    fs::remove_file(world.path(&world.keys[2]).join("layer")).expect("it is there");
    fs::write(world.path(&world.keys[3]).join("manifest.json.new"), "{").expect("there is room");
    fs::rename(world.path(&world.keys[3]).join("manifest.json.new"), world.path(&world.keys[3]).join("manifest.json"))
        .expect("it is ours");
    let settings = world.config.clone().resolve(&crate::paths::Environment::default()).expect("it is valid");
    settings.snapshots().quarantine(&world.keys[0].parse().expect("it is one"), "the guest was silent");
    let all = list(&world.config).expect("the cache works");
    let of = |key: &String| &all.iter().find(|entry| entry.key == *key).expect("it is listed").contents;
    assert_eq!(*of(&world.keys[0]), Contents::SetAside { why: "the guest was silent".into() });
    assert!(matches!(of(&world.keys[1]), Contents::Snapshot { .. }));
    assert_eq!(*of(&world.keys[2]), Contents::Damaged { why: "layer is missing".into() });
    assert!(matches!(of(&world.keys[3]), Contents::Damaged { why } if why.starts_with("its manifest cannot be used")));
    let refused = pin(&world.config, &world.keys[..1]).expect_err("it is of no use");
    assert!(cache_dir::chain(&refused).ends_with("it is of no use and was set aside"), "{refused:?}");
    assert_eq!(remove(&world.config, &world.keys[..1]).expect("it is there").len(), 1);
}

#[test]
fn a_cache_that_is_not_there_is_empty_and_is_not_made() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let cache_dir = Some(dir.path().join("cache"));
    let config = SchedulerConfig { images_dir: cache_dir.clone(), cache_dir, ..SchedulerConfig::default() };
    assert_eq!(list(&config).expect("nothing is wrong"), []);
    let collected = collect(&config, &Collect { everything: true, ..Collect::default() }).expect("nothing is wrong");
    assert_eq!((collected.removed.len(), collected.kept), (0, 0));
    assert!(!dir.path().join("cache").exists());
}

#[test]
fn within_the_configurations_limits_nothing_goes() {
    let world = World::new();
    let collected = world.collect(&Collect::default());
    assert_eq!((collected.removed.len(), collected.kept, world.there()), (0, 4, [true; 4]));
}

#[test]
fn the_configurations_limits_are_each_stores_own() {
    let mut world = World::new();
    world.config.layer_max_age = 20 * HOUR;
    let collected = world.collect(&Collect::default());
    assert_eq!((keys(&collected.removed), world.there()), (vec![&*world.keys[3]], [true, true, true, false]));
}

#[test]
fn an_age_that_is_named_holds_for_both_and_what_is_pinned_stays() {
    let world = World::new();
    pin(&world.config, &world.keys[1..2]).expect("it is there");
    let collected = world.collect(&Collect { max_age: Some(24 * HOUR), ..Collect::default() });
    assert_eq!((collected.kept, world.there()), (3, [true, true, true, false]));
    assert!(collected.removed_bytes > 0 && collected.kept_bytes > 0);
}

#[test]
fn a_size_that_is_named_is_that_of_both_together_and_what_was_not_used_for_longest_goes_first() {
    let world = World::new();
    let all = list(&world.config).expect("the cache works");
    let bytes = |key: &String| all.iter().find(|entry| entry.key == *key).expect("it is listed").bytes;
    let max_bytes = Some(bytes(&world.keys[0]) + bytes(&world.keys[2]));
    world.collect(&Collect { max_bytes, ..Collect::default() });
    assert_eq!(world.there(), [true, false, true, false]);
}

#[test]
fn a_dry_run_tells_the_same_and_does_nothing() {
    let world = World::new();
    let how = |dry_run| Collect { everything: true, dry_run, ..Collect::default() };
    let trash = world.dir.path().join("cache/package-layers/trash");
    fs::create_dir(&trash).expect("it is new");
    fs::write(trash.join("left"), "by one who was killed").expect("there is room");
    let told = world.collect(&how(true));
    assert_eq!((world.there(), trash.join("left").exists()), ([true; 4], true));
    let done = world.collect(&how(false));
    assert_eq!((keys(&told.removed), told.removed_bytes), (keys(&done.removed), done.removed_bytes));
    assert_eq!((world.there(), trash.join("left").exists()), ([false; 4], false));
    let memories = world.dir.path().join("cache/memory-snapshots/memories");
    assert_eq!(fs::read_dir(memories).expect("it is there").count(), 0, "their second names are gone, too");
}

#[test]
fn of_everything_what_is_pinned_stays_and_what_was_made_just_now_goes() {
    let world = World::new();
    set_modified(&world.path(&world.keys[0]).join("used"), SystemTime::now()).expect("it is ours");
    pin(&world.config, &[&world.keys[2][..12]]).expect("it is there");
    world.collect(&Collect { everything: true, ..Collect::default() });
    assert_eq!(world.there(), [false, false, true, false]);
    assert!(list(&world.config).expect("the cache works")[0].is_pinned);
    unpin(&world.config, &world.keys[2..3]).expect("it is there");
    unpin(&world.config, &world.keys[2..3]).expect("once more is as good");
    world.collect(&Collect { everything: true, ..Collect::default() });
    assert_eq!(world.there(), [false; 4]);
}

#[test]
fn a_snapshot_that_is_pinned_outlives_its_age() {
    let mut world = World::new();
    world.config.snapshot_max_age = HOUR;
    pin(&world.config, &world.keys[1..2]).expect("it is there");
    let settings = world.config.clone().resolve(&crate::paths::Environment::default()).expect("it is valid");
    settings.snapshots().tidy();
    assert_eq!(world.there(), [false, true, true, true]);
}

#[test]
fn what_is_removed_is_what_was_named_and_each_once() {
    let world = World::new();
    pin(&world.config, &world.keys[3..]).expect("it is there");
    let named = [&world.keys[0][..8], &world.keys[0], &world.keys[3]];
    let removed = remove(&world.config, &named).expect("they are there");
    assert_eq!((keys(&removed), world.there()), (vec![&*world.keys[0], &*world.keys[3]], [false, true, true, false]));
}

#[test]
fn a_key_that_is_none_is_told_with_those_there_are_and_nothing_is_removed() {
    let world = World::new();
    for (typed, why) in [("zz", "nothing in the cache has it"), ("", "it stands for ")] {
        let error = remove(&world.config, &[&world.keys[0], typed]).expect_err("it is none");
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        assert_eq!(error.to_string(), format!("removing from the cache what has the key {typed:?}"));
        assert!(cache_dir::chain(&error).contains(why), "{error:?}");
        let remedy = error.remedy().expect("there is something to do");
        assert!(world.keys.iter().all(|key| remedy.contains(&shown(key)) && !remedy.contains(key)), "{remedy}");
    }
    assert_eq!(world.there(), [true; 4]);
}

#[test]
fn an_image_is_listed_and_is_not_the_caches_to_remove() {
    let world = World::new();
    let images = world.dir.path().join("images");
    fs::create_dir(&images).expect("it is new");
    fs::write(images.join("standard.json"), "{").expect("there is room");
    let all = list(&world.config).expect("the cache works");
    let image = all.last().expect("there is one");
    assert_eq!((image.kind, &*image.key, image.last_use), (Kind::Image, "standard", None));
    assert!(matches!(&image.contents, Contents::Damaged { why } if why.contains("standard.json")), "{image:?}");
    let error = remove(&world.config, &["standard"]).expect_err("it is no cache's");
    assert!(cache_dir::chain(&error).ends_with("it is an image"), "{error:?}");
    world.collect(&Collect { everything: true, ..Collect::default() });
    assert!(images.join("standard.json").exists());
}

#[test]
fn a_cache_that_others_may_write_to_is_not_cared_for() {
    use std::os::unix::fs::PermissionsExt as _;
    let world = World::new();
    let store = world.dir.path().join("cache/package-layers");
    fs::set_permissions(&store, fs::Permissions::from_mode(0o777)).expect("it is ours");
    let error = list(&world.config).expect_err("anybody could have put something there");
    assert_eq!(error.kind(), ErrorKind::Host);
    assert!(cache_dir::chain(&error).contains("only this user"), "{error:?}");
}
