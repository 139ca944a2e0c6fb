//! What is in hand, beside a store of a few kilobytes.

use std::{collections::BTreeMap, path::Path, time::SystemTime};

use super::{store_tests::parts, *};
use crate::{cache_dir::Limits, network::Registries};

const HOUR: Duration = Duration::from_secs(60 * 60);

/// Those of a store in `dir`.
fn layers(dir: &Path) -> Layers {
    let store = Store::at(dir.join("layers"), Limits { max_bytes: 1 << 20, max_age: 24 * HOUR });
    let registries = Registries::configured(&BTreeMap::new(), None).expect("it is the default");
    let sources = Sources::new(Default::default(), registries, &crate::SchedulerConfig::default(), None);
    Layers::new(store, Digest::of(b"root"), sources, None)
}

/// Makes the layer of `package`, used so many `hours` ago, and has it in hand.
fn have(layers: &Layers, package: &str, hours: u32) -> LayerKey {
    let key = store_tests::publish(&layers.store, &parts(package));
    let layer = layers.store.find(&parts(package)).expect("the store works").expect("it is there");
    store_tests::used(&layers.store, &parts(package), hours);
    layers.places().insert(key, Place::There(layer));
    key
}

#[test]
fn what_is_in_hand_is_used_whenever_it_is_asked_for() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let layers = layers(dir.path());
    let key = have(&layers, "a==1", 5);
    let age = || {
        let now = SystemTime::now();
        let all = layers.store.candidates(now).expect("the store works");
        now.duration_since(all.first().expect("it is there").used).expect("it is past")
    };
    assert!(age() >= 5 * HOUR);
    assert!(matches!(layers.reserve(key), Reserved::There(_)));
    assert!(age() < HOUR);
}

#[test]
fn what_is_removed_for_room_is_in_hand_no_more_when_room_is_looked_for_again() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let layers = layers(dir.path());
    let (old, new) = (have(&layers, "a==1", 5), have(&layers, "b==1", 0));
    let is_in_hand = |key| layers.places().contains_key(&key);
    let draft = layers.store.begin(&parts("c==1")).expect("the store works").expect("it is new");
    let short = draft.make_room(u64::MAX, || layers.let_go_of_removed()).expect_err("no disk has so much");
    assert!(short.is_no_room());
    assert_eq!((is_in_hand(old), is_in_hand(new)), (false, true), "one is used now");
}
