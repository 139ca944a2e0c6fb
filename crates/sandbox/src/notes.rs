//! Notes: small files with what was found out by trying, which can be found out again.

use std::{
    fs::{self, DirEntry},
    io::{self, Write as _},
    path::Path,
    time::SystemTime,
};

use crate::cache_dir::{entries, remove};

/// As many are kept in a directory, the newest: every update of QEMU or of the kernel leaves one behind.
const MOST: usize = 64;

/// Writes a note whole or not at all.
pub(crate) fn write(file: &Path, content: &[u8]) -> io::Result<()> {
    let dir = file.parent().unwrap_or_else(|| Path::new("."));
    fs::create_dir_all(dir)?;
    let mut temporary = tempfile::NamedTempFile::new_in(dir)?;
    temporary.write_all(content)?;
    temporary.persist(file)?;
    forget_the_oldest(dir);
    Ok(())
}

fn forget_the_oldest(dir: &Path) {
    let written = |entry: DirEntry| Some((entry.metadata().ok()?.modified().ok()?, entry.path()));
    let mut notes: Vec<(SystemTime, _)> = entries(dir).into_iter().filter_map(written).collect();
    notes.sort_unstable();
    for (_, path) in notes.iter().rev().skip(MOST) {
        remove(path);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_newest_are_kept_and_a_note_may_be_written_again() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let note = |number: usize| dir.path().join(format!("notes/{number}"));
        for number in 0..MOST + 3 {
            write(&note(number), b"old").expect("there is room");
            let age = Duration::from_secs(3600 - number as u64);
            let file = fs::File::open(note(number)).expect("it is there");
            file.set_modified(SystemTime::now() - age).expect("it is ours");
        }
        write(&note(MOST), b"new").expect("there is room");
        let kept = (0..MOST + 3).filter(|number| note(*number).exists());
        assert_eq!(kept.collect::<Vec<_>>(), (3..MOST + 3).collect::<Vec<_>>());
        assert_eq!(fs::read(note(MOST)).expect("it is there"), b"new");
    }
}
