//! Lists and changes.

use std::os::unix::fs::MetadataExt as _;

use super::*;

#[test]
fn a_list_tells_what_is_there_and_as_deep_as_it_was_asked() {
    let mut world = World::new();
    world.write("a/b/c/file", &[1; 5000]);
    symlink("/etc", world.home.join("a/link")).expect("a link");
    world.fifo("a/fifo");
    assert_eq!(world.names("a", 1), ["b", "fifo", "link"]);
    assert_eq!(world.names("a", 2), ["b", "b/c", "fifo", "link"]);
    assert_eq!(world.names("", u32::MAX), ["a", "a/b", "a/b/c", "a/b/c/file", "a/fifo", "a/link"]);
    let (entries, _) = world.list("a", 1).expect("it can be listed");
    let kind = |name: &[u8]| entries.iter().find(|entry| entry.name == name).map(FileEntry::kind);
    assert_eq!(
        [kind(b"b"), kind(b"link"), kind(b"fifo")].map(Option::unwrap),
        [FileKind::Directory, FileKind::Link, FileKind::Other]
    );
    let (itself, _) = world.list("a/b/c/file", 0).expect("it can be described");
    let stat = fs::metadata(world.home.join("a/b/c/file")).expect("it is there");
    assert_eq!(
        itself,
        [FileEntry {
            name: vec![],
            kind: FileKind::File.into(),
            size: 5000,
            mode: 0o644,
            modified_unix_ns: stat.mtime() * 1_000_000_000 + stat.mtime_nsec(),
        }]
    );
    assert_eq!(world.list("a/link", 0).expect("it is described").0[0].kind(), FileKind::Link);
    assert_eq!(world.list("", 0).expect("it is described").0[0].kind(), FileKind::Directory);
    assert_eq!(world.list("nothing", 0).err(), Some(Refusal::NotFound));
}

#[test]
fn a_hole_takes_no_room() {
    let mut world = World::new();
    fs::File::create(world.home.join("sparse")).and_then(|file| file.set_len(1 << 30)).expect("holes are cheap");
    let (entries, _) = world.list("sparse", 0).expect("it can be described");
    assert_eq!(entries.first().map(|entry| entry.size), Some(0));
}

#[test]
fn a_long_list_comes_in_frames_of_a_bounded_size_and_is_whole() {
    let mut world = World::new();
    let name = "x".repeat(200);
    for number in 0..2000 {
        fs::write(world.home.join(format!("{number}{name}")), "").expect("it can be written");
    }
    let (entries, bodies) = world.list("", 1).expect("it can be listed");
    assert!(bodies.len() > 2000 * 200 / WINDOW && bodies.iter().all(|body| *body <= limits::ENTRIES_BYTES as usize));
    let names: std::collections::BTreeSet<Vec<u8>> = entries.into_iter().map(|entry| entry.name).collect();
    assert_eq!(names.len(), 2000);
}

#[test]
fn a_tree_deeper_than_is_followed_is_told_to_be() {
    let mut world = World::new();
    let deep = "d/".repeat(list::MAX_LEVELS + 3);
    assert_eq!(world.make(&deep), done());
    assert_eq!(world.list("", u32::MAX).err(), Some(Refusal::Failed));
    assert_eq!(world.names("d/d/d/d/d", u32::MAX).len(), list::MAX_LEVELS - 2, "from further below it is");
    assert_eq!(reason(world.remove("d", true)), Refusal::Failed);
    assert_eq!(world.remove("d/d/d/d/d", true), done());
    assert_eq!(world.remove("d", true), done());
}

#[test]
fn directories_are_made_with_those_on_the_way_and_files_are_not_taken_for_them() {
    let mut world = World::new();
    assert_eq!([world.make("a/b/c"), world.make("a/b/c/"), world.make(".")], [done(), done(), done()]);
    let mode = fs::metadata(world.home.join("a/b")).expect("it is there").permissions().mode();
    assert_eq!(mode & 0o022, 0, "nobody else writes there");
    world.write("a/file", b"x");
    assert_eq!(reason(world.make("a/file")), Refusal::Exists);
    assert_eq!(reason(world.make("a/file/b")), Refusal::WrongKind);
    assert_eq!(reason(world.change(None)), Refusal::UnknownOperation);
}

#[test]
fn what_is_removed_is_gone_and_what_a_link_led_to_is_not() {
    let mut world = World::new();
    for number in 0..3 * 256 {
        let name = format!("tree/{}/{number}", number % 7);
        fs::create_dir_all(world.home.join(&name).parent().expect("a parent")).expect("a directory");
        fs::write(world.home.join(name), "").expect("it can be written");
    }
    world.write("kept/file", b"x");
    symlink("../kept", world.home.join("tree/link")).expect("a link");
    assert_eq!(reason(world.remove("tree", false)), Refusal::NotEmpty);
    assert_eq!(world.remove("tree/link", true), done());
    symlink("../kept", world.home.join("tree/link")).expect("a link");
    assert_eq!(world.remove("tree", true), done());
    assert_eq!(world.names("", 9), ["kept", "kept/file"]);
    assert_eq!(reason(world.remove("tree", true)), Refusal::NotFound);
    assert_eq!([world.remove("kept/file", false), world.remove("kept", false)], [done(), done()]);
}

#[test]
fn a_move_replaces_a_file_and_no_directory_that_has_something_in_it() {
    let mut world = World::new();
    world.write("a", b"a");
    world.write("b", b"b");
    world.write("dir/file", b"x");
    assert_eq!(world.rename("a", "b"), done());
    assert_eq!((world.read("a"), world.read("b")), (Err(Refusal::NotFound), Ok(b"a".to_vec())));
    assert_eq!(reason(world.rename("b", "dir")), Refusal::WrongKind);
    assert_eq!(reason(world.rename("dir", "dir/in/itself")), Refusal::NotFound);
    assert_eq!(reason(world.rename("dir", "dir/in")), Refusal::BadRequest);
    world.make("other");
    world.write("other/file", b"y");
    assert_eq!(reason(world.rename("dir", "other")), Refusal::NotEmpty);
    assert_eq!(world.rename("dir", "other/dir"), done());
    assert_eq!(world.names("", 9), ["b", "other", "other/dir", "other/dir/file", "other/file"]);
}
