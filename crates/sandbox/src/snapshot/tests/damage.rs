//! Snapshots that are not what was published: none is ever offered.

use std::os::unix::fs::symlink;

use super::*;

/// A published snapshot and where it is.
fn published(dir: &TempDir) -> PathBuf {
    publish_translated(&store(dir), &parts("1"));
    store(dir).template_dir(parts("1").key())
}

/// Changes a file, so that its time of change is another one: the clock of files ticks in milliseconds.
fn change(path: &Path, change: impl Fn(&File)) {
    let before = path.metadata().expect("it is there");
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("it is ours");
    let file = File::options().read(true).write(true).open(path).expect("it is ours");
    change(&file);
    let ctime = |file: &fs::Metadata| (file.ctime(), file.ctime_nsec());
    while ctime(&path.metadata().expect("it is there")) == ctime(&before) {
        fs::set_permissions(path, fs::Permissions::from_mode(0o400)).expect("it is ours");
    }
}

fn flip(path: &Path, at: u64) {
    change(path, |file| {
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).expect("it is that long");
        file.write_all_at(&[byte[0] ^ 1], at).expect("it is ours");
    });
}

/// Panics unless the snapshot is not offered, was set aside with a reason that has this word, and can be made again.
fn check_set_aside(dir: &TempDir, word: &str) {
    let store = store(dir);
    assert!(find(&store, &parts("1")).is_none(), "{word}");
    assert!(fs::symlink_metadata(store.template_dir(parts("1").key())).is_err(), "{word}");
    let aside = names(&store.quarantine_dir());
    assert_eq!(aside.len(), 1, "{word}");
    let reason = fs::read_to_string(store.quarantine_dir().join(&aside[0]).join(REASON)).unwrap_or_default();
    assert!(reason.contains(word), "{word}: {reason:?}");
    publish_translated(&store, &parts("1"));
    check_translated(&store, &find(&super::store(dir), &parts("1")).expect("it was made again"));
}

#[test]
fn one_bit_anywhere_in_memory_state_or_translations_is_found() {
    let last = (1 << 20) - 1;
    let in_memory = [0, 4096, 500_000, last].map(|at| (RAM, at));
    let in_translations = [0, 150_000, TRANSLATED_BYTES - 1].map(|at| (TRANSLATIONS, at));
    for (name, at) in in_memory.into_iter().chain([(STATE, 0), (STATE, 6)]).chain(in_translations) {
        let dir = temporary();
        flip(&published(&dir).join(name), at);
        check_set_aside(&dir, &format!("{name} has another content"));
    }
}

#[test]
fn a_file_that_is_shorter_or_longer_is_found() {
    let of_memory = [(1 << 20) - 1, (1 << 20) + 1, 0].map(|length| (RAM, length));
    let of_translations = [TRANSLATED_BYTES - 1, TRANSLATED_BYTES + 1, 0].map(|length| (TRANSLATIONS, length));
    for (name, length) in of_memory.into_iter().chain([(STATE, 6), (STATE, 8)]).chain(of_translations) {
        let dir = temporary();
        change(&published(&dir).join(name), |file| file.set_len(length).expect("it is ours"));
        check_set_aside(&dir, &format!("{name} has {length} bytes"));
    }
}

#[test]
fn a_file_that_is_missing_or_no_file_is_found() {
    for name in [RAM, STATE, TRANSLATIONS, MANIFEST] {
        let dir = temporary();
        fs::remove_file(published(&dir).join(name)).expect("it is there");
        check_set_aside(&dir, &format!("{name} is missing"));

        let dir = temporary();
        let path = published(&dir).join(name);
        fs::rename(&path, dir.path().join("elsewhere")).expect("it is ours");
        symlink(dir.path().join("elsewhere"), &path).expect("the name is free");
        check_set_aside(&dir, &format!("{name} is not a file"));

        let dir = temporary();
        let path = published(&dir).join(name);
        fs::remove_file(&path).expect("it is there");
        fs::create_dir(&path).expect("the name is free");
        check_set_aside(&dir, &format!("{name} is not a file"));
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_pipe_in_the_place_of_a_file_is_found_without_waiting_for_a_writer() {
    for name in [RAM, TRANSLATIONS] {
        let dir = temporary();
        let path = published(&dir).join(name);
        fs::remove_file(&path).expect("it is there");
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0)
            .expect("the name is free");
        check_set_aside(&dir, &format!("{name} is not a file"));
    }
}

#[test]
fn a_link_or_a_file_in_the_place_of_a_snapshot_is_found() {
    let dir = temporary();
    let path = published(&dir);
    fs::rename(&path, dir.path().join("elsewhere")).expect("it is ours");
    symlink(dir.path().join("elsewhere"), &path).expect("the name is free");
    assert!(find(&store(&dir), &parts("1")).is_none());
    assert!(fs::symlink_metadata(&path).is_err(), "it was set aside");
    fs::write(&path, "").expect("the name is free");
    assert!(find(&store(&dir), &parts("1")).is_none());
    publish(&store(&dir), &parts("1"));
    check(&find(&store(&dir), &parts("1")).expect("it was made again"));
}

#[test]
fn a_manifest_with_any_bit_changed_is_found_or_says_the_same() {
    let dir = temporary();
    let path = published(&dir).join(MANIFEST);
    let whole = fs::read(&path).expect("it is there");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("it is ours");
    let key = parts("1").key();
    let (mut same, mut other) = (0, 0);
    for at in 0..whole.len() {
        let mut changed = whole.clone();
        changed[at] ^= 1;
        fs::write(&path, changed).expect("it is ours");
        // What is for people is not proven: when it was made, and by what.
        match store(&dir).open(key) {
            Ok(Some(template)) => {
                check_translated(&store(&dir), &template);
                same += 1;
            }
            Err(Trouble::Damaged(_)) => other += 1,
            unexpected => panic!("{unexpected:?}"),
        }
    }
    assert!(same < 120 && other > 500, "{same} and {other} of {}", whole.len());
}

#[test]
fn a_manifest_of_another_format_memory_or_snapshot_is_found() {
    let rewrite = |dir: &TempDir, pointer: &str, value: serde_json::Value| {
        let path = published(dir).join(MANIFEST);
        let mut json: serde_json::Value = serde_json::from_slice(&fs::read(&path).expect("it is there")).expect("so");
        *json.pointer_mut(pointer).expect("it has that") = value;
        fs::remove_file(&path).expect("it is there");
        fs::write(&path, json.to_string()).expect("the name is free");
    };
    for (pointer, value, word) in [
        ("/format", 9.into(), "format is 9"),
        ("/parts/format", 7.into(), "format is 7"),
        ("/parts/memory_mib", 2.into(), "its key is not that of its parts"),
        ("/parts/qemu/version", "2".into(), "its key is not that of its parts"),
        ("/key", Digest::of(b"x").to_string().into(), "its key is not that of its parts"),
        ("/ram/size_bytes", 5.into(), "its memory has 5 bytes"),
        ("/state/size_bytes", 5.into(), "state has 7 bytes instead of 5"),
        ("/ram/digest", Digest::of(b"x").to_string().into(), "ram has another content"),
        ("/state/digest", Digest::of(b"x").to_string().into(), "state has another content"),
        ("/state/digest", "x".into(), "it is not one"),
        ("/translations/size_bytes", 5.into(), "translations has 300001 bytes instead of 5"),
        ("/translations/digest", Digest::of(b"x").to_string().into(), "translations has another content"),
        ("/translations/digest", "x".into(), "it is not one"),
        ("/translations", 5.into(), "it is not one"),
    ] {
        let dir = temporary();
        rewrite(&dir, pointer, value);
        check_set_aside(&dir, word);
    }
    let dir = temporary();
    published(&dir);
    let from = store(&dir).template_dir(parts("1").key());
    fs::rename(from, store(&dir).template_dir(parts("2").key())).expect("it is ours");
    assert!(find(&store(&dir), &parts("2")).is_none(), "it has another's name");
    assert_eq!(names(&store(&dir).quarantine_dir()).len(), 1);
}

#[test]
fn a_manifest_without_end_is_not_read_to_its_end() {
    let dir = temporary();
    change(&published(&dir).join(MANIFEST), |file| file.set_len(1 << 40).expect("it has holes"));
    check_set_aside(&dir, "it has more than 262144 bytes");
}

#[test]
fn a_stamp_is_believed_in_this_boot_of_the_machine_and_in_no_other() {
    let dir = temporary();
    let snapshot = published(&dir);
    let key = parts("1").key();
    flip(&snapshot.join(RAM), 4096);
    let claimed = || Claimed::open(&snapshot, key).expect("its lengths are right").expect("it is there");
    let stamp = claimed().stamp().expect("it is open");
    store(&dir).stamped(stamp).expect("this boot has a name").leave_at(&snapshot.join(VERIFIED)).expect("it is ours");
    assert!(find(&store(&dir), &parts("1")).is_some(), "nothing was read");
    let rebooted = |boot_id: Option<&str>| Store {
        known: Arc::new(Known { boot_id: boot_id.map(str::to_owned), ..Known::default() }),
        ..store(&dir)
    };
    for boot_id in [Some("another"), None] {
        assert!(matches!(rebooted(boot_id).open(key), Err(Trouble::Damaged(Damage::Content { file: RAM }))));
    }
}

#[test]
fn a_snapshot_is_read_once_in_a_boot_and_then_only_if_it_was_touched() {
    let dir = temporary();
    let snapshot = published(&dir);
    let verified = snapshot.join(VERIFIED);
    let stamp = || fs::read_to_string(&verified).expect("it was read");
    let by_the_maker = stamp();
    fs::remove_file(&verified).expect("it is there");
    check(&find(&store(&dir), &parts("1")).expect("it is whole"));
    assert_eq!(stamp(), by_the_maker);
    for name in [RAM, STATE, TRANSLATIONS] {
        let before = stamp();
        change(&snapshot.join(name), |_file| {});
        check(&find(&store(&dir), &parts("1")).expect("it is whole"));
        assert_ne!(stamp(), before, "{name}");
    }
}

#[test]
fn without_stamps_a_process_reads_a_snapshot_once() {
    let dir = temporary();
    let snapshot = published(&dir);
    let store = Store { known: Arc::default(), ..store(&dir) };
    fs::remove_file(snapshot.join(VERIFIED)).expect("it is there");
    check(&find(&store, &parts("1")).expect("it is whole"));
    assert!(!snapshot.join(VERIFIED).exists());
    let proven = store.known.proven.lock().expect("nobody panicked").clone();
    let claimed = Claimed::open(&snapshot, parts("1").key()).expect("it is whole").expect("it is there");
    assert_eq!(proven.get(&parts("1").key()), Some(&claimed.stamp().expect("it is open")));
}

#[test]
fn what_was_set_aside_is_never_offered_again_and_the_newest_two_are_kept() {
    let dir = temporary();
    let store = store(&dir);
    for round in 1..=4 {
        let template = publish(&store, &parts("1"));
        store.quarantine(&parts("1").key(), &format!("the guest of round {round} was silent"));
        assert!(find(&store, &parts("1")).is_none());
        check(&template);
    }
    let reasons: Vec<String> = names(&store.quarantine_dir())
        .iter()
        .map(|name| fs::read_to_string(store.quarantine_dir().join(name).join(REASON)).expect("it has one"))
        .collect();
    assert_eq!(reasons, ["the guest of round 3 was silent", "the guest of round 4 was silent"]);
    store.quarantine(&parts("2").key(), "there is no such snapshot");
    assert_eq!(names(&store.quarantine_dir()).len(), 2);
}

#[test]
fn what_cannot_be_set_aside_is_not_offered_either() {
    let dir = temporary();
    let store = store(&dir);
    publish(&store, &parts("1"));
    fs::write(store.quarantine_dir(), "").expect("the name is free");
    store.quarantine(&parts("1").key(), "the guest was silent");
    assert!(find(&store, &parts("1")).is_none());
    assert!(store.begin(&parts("1")).expect("the store works").is_none(), "it would have no place");
}

#[test]
fn what_is_being_removed_is_not_there_and_not_damaged() {
    let dir = temporary();
    let snapshot = published(&dir);
    let opened = Claimed::open(&snapshot, parts("1").key()).expect("it is whole").expect("it is there");
    fs::rename(&snapshot, dir.path().join("trash")).expect("it is ours");
    fs::remove_file(dir.path().join("trash").join(RAM)).expect("it is there");
    check(&opened.into_template());
    assert!(find(&store(&dir), &parts("1")).is_none());
    assert_eq!(names(&store(&dir).quarantine_dir()), [""; 0]);
}
