//! The boot's identity, as the host and as programs see it.
//!
//! The kernel draws its own when somebody first looks and keeps it for ever, so the copies of a machine where somebody has looked would
//! share it. Hence programs find this one in its place: a file of the agent's, mounted over the kernel's. The agent has it in its memory
//! too, because a copy shows another before its first answer, and a write is much work for a kernel that has just been copied.
#![expect(unsafe_code, reason = "a file in memory")]

use std::{
    fs::{self, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    ptr,
};

use rustix::{
    io::Errno,
    mm::{MapFlags, ProtFlags},
    mount::MountFlags,
    rand::GetRandomFlags,
};

const DIRECTORY: &str = "/run/exec-sandbox";
const FILE: &str = "/run/exec-sandbox/boot_id";
const KERNELS: &str = "/proc/sys/kernel/random/boot_id";

const BYTES: usize = 16;

/// Which byte of a UUID tells its version and which its variant, the bits of each that are given, and their value.
const FIXED: [(usize, u8, u8); 2] = [(6, 0xf0, 0x40), (8, 0xc0, 0x80)];

/// Where a UUID has its hyphens: before these bytes.
const HYPHENS: [usize; 4] = [4, 6, 8, 10];

/// Its digits, its hyphens, and the end of the line.
const LINE_BYTES: usize = 2 * BYTES + HYPHENS.len() + 1;

/// As the kernel writes one.
type Line = [u8; LINE_BYTES];

/// A random UUID, another for each boot and each copy.
#[derive(Debug)]
pub(crate) struct BootId {
    bytes: [u8; BYTES],
    /// The file that programs look into, in memory; nothing before it is shown to them.
    shown: Option<&'static mut Line>,
}

impl BootId {
    /// Draws one.
    pub(crate) fn draw() -> Result<Self, Errno> {
        Ok(Self { bytes: draw()?, shown: None })
    }

    /// Its bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Lets programs see it instead of the kernel's.
    pub(crate) fn publish(&mut self) -> io::Result<()> {
        fs::create_dir_all(DIRECTORY)?;
        self.show_in(Path::new(FILE))?;
        rustix::mount::mount_bind(FILE, KERNELS)?;
        let read_only =
            MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        rustix::mount::mount_remount(KERNELS, read_only, c"")?;
        Ok(())
    }

    /// Draws another, and shows it where this one was shown.
    pub(crate) fn renew(&mut self) -> Result<(), Errno> {
        self.bytes = draw()?;
        if let Some(shown) = &mut self.shown {
            **shown = line(&self.bytes);
        }
        Ok(())
    }

    /// Writes it into a new file, which stays in memory for as long as the agent lives.
    fn show_in(&mut self, path: &Path) -> io::Result<()> {
        let mut file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o444).open(path)?;
        file.write_all(&line(&self.bytes))?;
        let (prot, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
        // SAFETY: the kernel chooses a place where nothing else is.
        let page = unsafe { rustix::mm::mmap(ptr::null_mut(), LINE_BYTES, prot, flags, &file, 0) }?;
        // SAFETY: the mapping is as long as a line, has room for all of it in the file, and is never taken away. Nobody but the agent may
        // write to or shorten the file, and this is the only reference to it.
        let shown = self.shown.insert(unsafe { &mut *page.cast::<Line>() });
        // The first store brings the page in, so that a copy of this machine has it at once.
        **shown = line(&self.bytes);
        Ok(())
    }
}

fn draw() -> Result<[u8; BYTES], Errno> {
    let mut bytes = [0; BYTES];
    rustix::rand::getrandom(&mut bytes[..], GetRandomFlags::empty())?;
    for (index, mask, value) in FIXED {
        if let Some(byte) = bytes.get_mut(index) {
            *byte = *byte & !mask | value;
        }
    }
    Ok(bytes)
}

fn line(bytes: &[u8; BYTES]) -> Line {
    let mut line = [b'\n'; LINE_BYTES];
    let mut places = line.iter_mut();
    let mut put = |byte| {
        if let Some(place) = places.next() {
            *place = byte;
        }
    };
    for (index, byte) in bytes.iter().enumerate() {
        if HYPHENS.contains(&index) {
            put(b'-');
        }
        put(digit(byte >> 4));
        put(digit(byte & 0xf));
    }
    line
}

fn digit(value: u8) -> u8 {
    if value < 10 { b'0' + value } else { b'a' + (value - 10) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_shows_the_identity_as_the_kernel_would_and_another_after_it_was_renewed() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("boot_id");
        let mut boot_id = BootId::draw().expect("random bytes");
        boot_id.show_in(&path).expect("it can be written");
        let read = || fs::read_to_string(&path).expect("it is there");
        let first = read();
        let kernels = fs::read_to_string(KERNELS).expect("the machine has one");
        let shape = |text: &str| text.replace(|c: char| c.is_ascii_hexdigit(), "x");
        assert_eq!(shape(&first), shape(&kernels));
        assert_eq!((first.get(14..15), first.len()), (Some("4"), kernels.len()), "{first}");
        boot_id.renew().expect("random bytes");
        let second = read();
        assert_ne!(first, second);
        assert_eq!((shape(&second), second.as_bytes()), (shape(&first), &line(&boot_id.bytes)[..]));
        let digits: String = boot_id.bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(second.replace(['-', '\n'], ""), digits);
    }
}
