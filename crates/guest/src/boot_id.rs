//! The boot's identity, as the host and as programs see it.
//!
//! The kernel draws its own when somebody first looks and keeps it for ever, so the copies of a machine where somebody has looked would
//! share it. Hence programs find this one in its place: a file of the agent's, mounted over the kernel's.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::Path,
};

use rustix::{io::Errno, mount::MountFlags, rand::GetRandomFlags};

const DIRECTORY: &str = "/run/exec-sandbox";
const FILE: &str = "/run/exec-sandbox/boot_id";
const KERNELS: &str = "/proc/sys/kernel/random/boot_id";

const BYTES: usize = 16;

/// Which byte of a UUID tells its version and which its variant, the bits of each that are given, and their value.
const FIXED: [(usize, u8, u8); 2] = [(6, 0xf0, 0x40), (8, 0xc0, 0x80)];

/// Where a UUID has its hyphens: before these bytes.
const HYPHENS: [usize; 4] = [4, 6, 8, 10];

/// A random UUID, another for each boot and each copy.
#[derive(Debug)]
pub(crate) struct BootId {
    bytes: [u8; BYTES],
    /// What programs look into; nothing before it is shown to them.
    file: Option<File>,
}

impl BootId {
    /// Draws one.
    pub(crate) fn draw() -> Result<Self, Errno> {
        Ok(Self { bytes: draw()?, file: None })
    }

    /// Its bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Lets programs see it instead of the kernel's.
    pub(crate) fn publish(&mut self) -> io::Result<()> {
        fs::create_dir_all(DIRECTORY)?;
        self.write_to(Path::new(FILE))?;
        rustix::mount::mount_bind(FILE, KERNELS)?;
        let read_only =
            MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        rustix::mount::mount_remount(KERNELS, read_only, c"")?;
        Ok(())
    }

    /// Draws another, and shows it where this one was shown.
    pub(crate) fn renew(&mut self) -> io::Result<()> {
        self.bytes = draw()?;
        match &self.file {
            // It has the length of the one before.
            Some(file) => file.write_all_at(line(&self.bytes).as_bytes(), 0),
            None => Ok(()),
        }
    }

    fn write_to(&mut self, path: &Path) -> io::Result<()> {
        let file = OpenOptions::new().write(true).create_new(true).mode(0o444).open(path)?;
        file.write_all_at(line(&self.bytes).as_bytes(), 0)?;
        self.file = Some(file);
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

/// As the kernel writes one.
fn line(bytes: &[u8; BYTES]) -> String {
    let mut text = String::with_capacity(2 * BYTES + HYPHENS.len() + 1);
    for (index, byte) in bytes.iter().enumerate() {
        if HYPHENS.contains(&index) {
            text.push('-');
        }
        for digit in [byte >> 4, byte & 0xf] {
            text.extend(char::from_digit(digit.into(), 16));
        }
    }
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_shows_the_identity_as_the_kernel_would_and_another_after_it_was_renewed() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("boot_id");
        let mut boot_id = BootId::draw().expect("random bytes");
        boot_id.write_to(&path).expect("it can be written");
        let read = || fs::read_to_string(&path).expect("it is there");
        let first = read();
        let kernels = fs::read_to_string(KERNELS).expect("the machine has one");
        let shape = |text: &str| text.replace(|c: char| c.is_ascii_hexdigit(), "x");
        assert_eq!(shape(&first), shape(&kernels));
        assert_eq!((first.get(14..15), first.len()), (Some("4"), kernels.len()), "{first}");
        boot_id.renew().expect("it can be written");
        let second = read();
        assert_ne!(first, second);
        assert_eq!((shape(&second), &second), (shape(&first), &line(&boot_id.bytes)));
    }
}
