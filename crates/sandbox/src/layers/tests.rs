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
