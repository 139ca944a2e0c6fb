//! Relatives: which snapshot's translations another guest may take.

use super::*;

/// Parts of a machine whose processor is `cpu`.
fn of(cpu: &str, change: impl FnOnce(&mut Parts)) -> Parts {
    let machine = ["-M", "microvm", "-cpu", cpu, "-m", "192M"].map(str::to_owned).into();
    let mut parts = Parts { machine, packages: Vec::new(), ..parts("1") };
    change(&mut parts);
    parts
}

fn relative(store: &Store, parts: &Parts) -> Option<Key> {
    store.relative(parts).map(|template| template.key())
}

#[test]
fn a_guest_of_another_size_or_with_packages_is_one_and_of_another_program_or_processor_is_none() {
    let dir = temporary();
    let store = store(&dir);
    assert_eq!(relative(&store, &of("max", |_| ())), None);
    let known = publish_translated(&store, &of("max", |_| ())).key();
    let relatives: [fn(&mut Parts); 5] = [
        |_| (),
        |parts| parts.memory_mib += 1,
        |parts| parts.packages = vec!["six".into()],
        |parts| parts.initramfs = Digest::of(b"another"),
        |parts| parts.machine.push("-device".into()),
    ];
    for change in relatives {
        assert_eq!(relative(&store, &of("max", change)), Some(known));
    }
    let strangers: [fn(&mut Parts); 6] = [
        |parts| parts.qemu.version = "11.0.0".into(),
        |parts| parts.qemu.content = Some(Digest::of(b"another")),
        |parts| parts.kernel = Digest::of(b"another"),
        |parts| parts.root = Digest::of(b"another"),
        |parts| parts.language = None,
        |parts| parts.accelerator = Accelerator::Hvf,
    ];
    for change in strangers {
        assert_eq!(relative(&store, &of("max", change)), None);
    }
    assert_eq!(relative(&store, &of("max,-svm", |_| ())), None);
}

#[test]
fn where_packages_have_run_only_who_has_the_same_takes_translations() {
    let with: [fn(&mut Parts); 3] = [
        |parts| parts.packages = vec!["six".into()],
        |parts| parts.layer = Some(Digest::of(b"six")),
        |parts| parts.is_preloaded = true,
    ];
    for packaged in with {
        let dir = temporary();
        let store = store(&dir);
        let known = publish_translated(&store, &of("max", packaged)).key();
        assert_eq!(relative(&store, &of("max", |_| ())), None);
        let larger = |parts: &mut Parts| {
            packaged(parts);
            parts.memory_mib += 1;
        };
        assert_eq!(relative(&store, &of("max", larger)), Some(known));
    }
}

#[test]
fn one_that_is_damaged_is_set_aside_and_the_next_is_taken() {
    let dir = temporary();
    let sized = |memory_mib| of("max", |parts| parts.memory_mib = memory_mib);
    let [first, second] = [1, 2].map(|memory_mib| publish_translated(&store(&dir), &sized(memory_mib)).key());
    let (damaged, whole) = (first.min(second), first.max(second));
    let path = store(&dir).template_dir(damaged).join(TRANSLATIONS);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("it is ours");
    let file = File::options().write(true).open(&path).expect("it is ours");
    file.write_all_at(b"other", 0).expect("there is room");
    assert_eq!(relative(&store(&dir), &sized(3)), Some(whole));
    assert_eq!(names(&store(&dir).quarantine_dir()).len(), 1);
}

#[test]
fn of_several_the_one_with_the_fewest_is_taken_and_one_without_translations_is_none() {
    let dir = temporary();
    let store = store(&dir);
    let sized = |memory_mib| of("max", |parts| parts.memory_mib = memory_mib);
    let file = tempfile::tempfile().expect("a file");
    file.set_len(8192).expect("there is room");
    let publish_of = |parts: &Parts, length| {
        let draft = store.begin(parts).expect("the store works").expect("it is new");
        let draft = save(draft, Some((&file, length))).expect("there is room");
        draft.publish().expect("the store works").key()
    };
    publish(&store, &sized(1));
    assert_eq!(relative(&store, &sized(4)), None);
    let large = publish_of(&sized(2), 8192);
    assert_eq!(relative(&store, &sized(4)), Some(large));
    let small = publish_of(&sized(3), 4096);
    assert_eq!(relative(&store, &sized(4)), Some(small));
}
