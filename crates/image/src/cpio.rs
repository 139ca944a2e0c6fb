//! cpio: the archive that Linux unpacks as its first file system.
//!
//! Writes the "newc" format of the kernel's initramfs: a header of hexadecimal fields, the name, the content, each padded to four bytes.
//! Owner and times are zero and inode numbers count up, so the same entries give the same bytes.

use std::io::{self, Write};

/// Name of the entry that ends an archive.
const TRAILER: &str = "TRAILER!!!";

/// Size of a header: a magic number of 6 digits and 13 fields of 8.
const HEADER_BYTES: usize = 6 + 13 * 8;

/// Headers, names and contents begin at multiples of this.
const ALIGNMENT: usize = 4;

const TYPE_CHAR_DEVICE: u32 = 0o020_000;
const TYPE_DIRECTORY: u32 = 0o040_000;
const TYPE_FILE: u32 = 0o100_000;

/// Writes an archive entry by entry. Parents come before what is in them.
#[derive(Debug)]
pub struct Writer<W> {
    out: W,
    next_inode: u32,
}

/// What an entry's header says beside its name.
#[derive(Clone, Copy, Debug, Default)]
struct Entry<'a> {
    mode: u32,
    links: u32,
    device: (u32, u32),
    content: &'a [u8],
}

impl<W: Write> Writer<W> {
    /// An archive that is written to `out`.
    pub fn new(out: W) -> Self {
        Self { out, next_inode: 1 }
    }

    /// Adds a directory.
    ///
    /// # Errors
    /// A path that is not relative, or a failed write.
    pub fn directory(&mut self, path: &str, permissions: u32) -> io::Result<()> {
        self.named_entry(path, Entry { mode: TYPE_DIRECTORY | permissions, links: 2, ..Entry::default() })
    }

    /// Adds a file.
    ///
    /// # Errors
    /// A path that is not relative, content of 4 GiB or more, or a failed write.
    pub fn file(&mut self, path: &str, permissions: u32, content: &[u8]) -> io::Result<()> {
        self.named_entry(path, Entry { mode: TYPE_FILE | permissions, links: 1, content, ..Entry::default() })
    }

    /// Adds a character device.
    ///
    /// # Errors
    /// A path that is not relative, or a failed write.
    pub fn char_device(&mut self, path: &str, permissions: u32, major: u32, minor: u32) -> io::Result<()> {
        let device = (major, minor);
        self.named_entry(path, Entry { mode: TYPE_CHAR_DEVICE | permissions, links: 1, device, ..Entry::default() })
    }

    /// Ends the archive.
    ///
    /// # Errors
    /// A failed write.
    pub fn finish(mut self) -> io::Result<W> {
        self.entry(0, TRAILER, Entry { links: 1, ..Entry::default() })?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn named_entry(&mut self, path: &str, entry: Entry<'_>) -> io::Result<()> {
        let is_plain = |part: &str| !matches!(part, "" | "." | "..") && !part.contains('\0');
        if !path.split('/').all(is_plain) || path == TRAILER {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{path:?} is not a relative path")));
        }
        let inode = self.next_inode;
        self.next_inode += 1;
        self.entry(inode, path, entry)
    }

    fn entry(&mut self, inode: u32, name: &str, entry: Entry<'_>) -> io::Result<()> {
        let too_long = || io::Error::new(io::ErrorKind::InvalidInput, format!("{name:?} is too long for cpio"));
        let content_bytes = u32::try_from(entry.content.len()).map_err(|_| too_long())?;
        let name_bytes = u32::try_from(name.len() + 1).map_err(|_| too_long())?;
        let (major, minor) = entry.device;
        let mut header = String::with_capacity(HEADER_BYTES);
        header.push_str("070701");
        // Inode, mode, owner, group, links, time, size, device of the archive (two fields), device itself (two), name's size, checksum.
        for field in [inode, entry.mode, 0, 0, entry.links, 0, content_bytes, 0, 0, major, minor, name_bytes, 0] {
            header.push_str(&format!("{field:08x}"));
        }
        self.out.write_all(header.as_bytes())?;
        self.out.write_all(name.as_bytes())?;
        self.out.write_all(&[0])?;
        self.pad(HEADER_BYTES + name.len() + 1)?;
        self.out.write_all(entry.content)?;
        self.pad(entry.content.len())
    }

    /// Fills up to the alignment after `written` bytes, counted from an aligned place.
    fn pad(&mut self, written: usize) -> io::Result<()> {
        let missing = written.next_multiple_of(ALIGNMENT) - written;
        self.out.write_all(&[0; ALIGNMENT][..missing])
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    /// What a reader of the format makes of an entry.
    #[derive(Debug, PartialEq, Eq)]
    struct Read {
        name: String,
        mode: u32,
        device: (u32, u32),
        content: Vec<u8>,
    }

    /// Reads an archive to its trailer; whatever is misplaced fails the test.
    fn read(archive: &[u8]) -> Vec<Read> {
        let mut entries = Vec::new();
        let mut at = 0;
        loop {
            let header = std::str::from_utf8(&archive[at..at + HEADER_BYTES]).unwrap();
            assert_eq!(&header[..6], "070701");
            let field = |index: usize| u32::from_str_radix(&header[6 + index * 8..][..8], 16).unwrap();
            let (content_bytes, name_bytes) = (field(6) as usize, field(11) as usize);
            let name_at = at + HEADER_BYTES;
            let name = std::str::from_utf8(&archive[name_at..name_at + name_bytes - 1]).unwrap().to_owned();
            assert_eq!(archive[name_at + name_bytes - 1], 0);
            let content_at = (name_at + name_bytes).next_multiple_of(ALIGNMENT);
            let content = archive[content_at..content_at + content_bytes].to_vec();
            at = (content_at + content_bytes).next_multiple_of(ALIGNMENT);
            if name == TRAILER {
                assert_eq!(at, archive.len());
                return entries;
            }
            entries.push(Read { name, mode: field(1), device: (field(9), field(10)), content });
        }
    }

    fn sample() -> Vec<u8> {
        let mut writer = Writer::new(Vec::new());
        writer.directory("dev", 0o755).unwrap();
        writer.char_device("dev/console", 0o600, 5, 1).unwrap();
        writer.file("init", 0o755, b"\x7fELF and a length that is odd").unwrap();
        writer.file("empty", 0o644, b"").unwrap();
        writer.finish().unwrap()
    }

    #[test]
    fn what_is_written_reads_back() {
        let entry = |name: &str, mode, device, content: &[u8]| Read {
            name: name.into(),
            mode,
            device,
            content: content.into(),
        };
        let expected = [
            entry("dev", 0o040_755, (0, 0), b""),
            entry("dev/console", 0o020_600, (5, 1), b""),
            entry("init", 0o100_755, (0, 0), b"\x7fELF and a length that is odd"),
            entry("empty", 0o100_644, (0, 0), b""),
        ];
        assert_eq!(read(&sample()), expected);
    }

    #[test]
    fn names_and_contents_of_every_length_stay_aligned() {
        for length in 0..9 {
            let mut writer = Writer::new(Vec::new());
            writer.file(&"n".repeat(length + 1), 0o644, &vec![b'c'; length]).unwrap();
            writer.file("last", 0o644, b"last").unwrap();
            let entries = read(&writer.finish().unwrap());
            assert_eq!((entries[0].content.len(), &entries[1].content[..]), (length, &b"last"[..]));
        }
    }

    #[test]
    fn the_same_entries_give_the_same_bytes() {
        assert_eq!(sample(), sample());
    }

    #[test]
    fn names_that_leave_the_archive_or_end_it_are_refused() {
        for name in ["", "/init", "a//b", "../x", "a/..", ".", "a/", "nul\0", TRAILER] {
            assert!(Writer::new(Vec::new()).file(name, 0o644, b"").is_err(), "{name:?} was accepted");
        }
    }

    #[test]
    fn the_systems_cpio_lists_the_same_if_there_is_one() {
        let mut cpio = Command::new("cpio");
        cpio.args(["--list", "--verbose", "--numeric-uid-gid", "--quiet"]);
        let Ok(mut child) = cpio.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn() else {
            return;
        };
        child.stdin.take().unwrap().write_all(&sample()).unwrap();
        let listing = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
        let lines: Vec<&str> = listing.lines().collect();
        assert_eq!(lines.len(), 4, "{listing}");
        assert!(lines[0].starts_with("drwxr-xr-x   2 0        0 ") && lines[0].ends_with(" dev"), "{listing}");
        assert!(lines[1].starts_with("crw-------   1 0        0          5,   1"), "{listing}");
        assert!(lines[2].starts_with("-rwxr-xr-x ") && lines[2].ends_with(" init"), "{listing}");
    }
}
