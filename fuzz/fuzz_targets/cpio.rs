//! The writer of the initramfs, whatever names and contents it is given.
//!
//! The oracle is a reader of the format that shares nothing with the writer: it finds the entries that were accepted, in their order
//! and with their content, each at an aligned place, and nothing after the trailer. A name that is accepted stays below the root.
#![no_main]

use std::path::{Component, Path};

use exec_sandbox_image::cpio::Writer;
use libfuzzer_sys::fuzz_target;

/// An entry, as far as it can be chosen.
#[derive(Debug, PartialEq, Eq)]
struct Entry {
    name: String,
    mode: u32,
    device: (u32, u32),
    content: Vec<u8>,
}

// Steps: 0 a directory and 1 a device of this name, 2 this content for the next file, 3 a file of this name.
fuzz_target!(init: fuzz::sow(seeds()), |script: &[u8]| {
    let (mut writer, mut expected) = (Writer::new(Vec::new()), Vec::new());
    let mut content: &[u8] = b"";
    for (choice, argument) in fuzz::steps(script) {
        let (name, permissions) = (String::from_utf8_lossy(argument).into_owned(), u32::from(choice) & 0o777);
        let entry = |kind| Entry { name: name.clone(), mode: kind | permissions, device: (0, 0), content: Vec::new() };
        let (written, entry) = match choice % 4 {
            0 => (writer.directory(&name, permissions), entry(0o040_000)),
            1 => {
                let device = (name.len() as u32, choice.into());
                let written = writer.char_device(&name, permissions, device.0, device.1);
                (written, Entry { device, ..entry(0o020_000) })
            }
            2 => {
                content = argument;
                continue;
            }
            _ => (writer.file(&name, permissions, content), Entry { content: content.into(), ..entry(0o100_000) }),
        };
        assert_eq!(written.is_ok(), may_be_named(&name), "{name:?}");
        if written.is_ok() {
            expected.push(entry);
        }
    }
    let archive = writer.finish().expect("memory can be written to");
    assert_eq!(read(&archive), expected);
});

/// Whether a name is a path that goes down only, written in the one way there is, and ends no archive.
fn may_be_named(name: &str) -> bool {
    let parts: Vec<Component<'_>> = Path::new(name).components().collect();
    let texts: Vec<&str> = parts.iter().filter_map(|part| part.as_os_str().to_str()).collect();
    let goes_down = parts.iter().all(|part| matches!(part, Component::Normal(_)));
    goes_down && !parts.is_empty() && texts.join("/") == name && !name.contains('\0') && name != "TRAILER!!!"
}

/// Reads an archive as the kernel does, field by field.
fn read(archive: &[u8]) -> Vec<Entry> {
    let (mut rest, mut entries) = (archive, Vec::new());
    let mut take = |length: usize| {
        let (taken, tail) = rest.split_at(length);
        rest = tail;
        taken
    };
    let padding = |length: usize| (4 - length % 4) % 4;
    loop {
        assert_eq!(take(6), b"070701");
        let fields: [u32; 13] = std::array::from_fn(|_| {
            let digits = std::str::from_utf8(take(8)).expect("they are digits");
            u32::from_str_radix(digits, 16).expect("they are digits")
        });
        let [inode, mode, owner, group, _links, time, size, _, _, major, minor, name_size, checksum] = fields;
        assert_eq!((owner, group, time, checksum), (0, 0, 0, 0), "nothing of this machine is in it");
        let (size, name_size) = (size as usize, name_size as usize);
        let name = take(name_size).strip_suffix(&[0]).expect("a name ends in NUL");
        assert!(take(padding(6 + 13 * 8 + name_size)).iter().all(|byte| *byte == 0));
        let content = take(size).to_vec();
        assert!(take(padding(size)).iter().all(|byte| *byte == 0));
        let name = String::from_utf8(name.to_vec()).expect("names were texts");
        if name == "TRAILER!!!" {
            break;
        }
        entries.push(Entry { name, mode, device: (major, minor), content });
        assert_eq!(inode as usize, entries.len(), "inodes count up");
    }
    assert!(rest.is_empty(), "nothing follows the trailer");
    entries
}

fn seeds() -> [Vec<u8>; 2] {
    [
        fuzz::script([(0, &b"dev"[..]), (1, b"dev/console"), (2, b"\x7fELF odd"), (3, b"init"), (7, b"empty")]),
        fuzz::script([(3, &b"../a"[..]), (0, b"/"), (3, b"a//b"), (3, b"TRAILER!!!"), (0, b"./a"), (4, b"a/.")]),
    ]
}
