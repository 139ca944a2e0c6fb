//! What was found out about this machine, kept in a file: proving a hypervisor costs a quarter of a second, reading it nothing.
//!
//! A finding holds for one QEMU and one boot of one machine, which are its key. Within that, a hypervisor that works goes on working.
//! One that fails may be mended without a boot (a module loaded, another hypervisor gone), so that is kept for a day; where the
//! machine was merely too busy to tell, for a minute. The file is only a cache: what cannot be read is found out again, and what
//! cannot be written is not an error.

use std::{
    fs, io,
    num::NonZeroU32,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use exec_sandbox_image::KeyBuilder;
use serde::{Deserialize, Serialize};

use super::{Hypervisor, Probes};
use crate::notes;

/// Changes when the probes or the file's form do, so that no older finding is believed.
const FORMAT: u32 = 1;

const FAILURE_HOLDS: Duration = Duration::from_secs(24 * 60 * 60);
const UNSURE_FAILURE_HOLDS: Duration = Duration::from_secs(60);

/// A record is a few hundred bytes.
const MAX_RECORD_BYTES: u64 = 64 * 1024;

/// What a finding depends on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Key {
    format: u32,
    qemu: PathBuf,
    qemu_version: String,
    qemu_size: u64,
    qemu_modified_ns: i128,
    kernel_release: String,
    /// The boot, and so the machine: a home directory may be shared by several, and the counter's frequency is each one's own.
    boot_id: String,
    device: Device,
}

/// The hypervisor's device as this process sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Device {
    /// Major and minor number, if it is there.
    number: Option<u64>,
    writable: bool,
}

/// What is in the file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Record {
    key: Key,
    hypervisor: Option<Finding>,
    tsc_khz: Option<NonZeroU32>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Finding {
    hypervisor: Hypervisor,
    found_at_unix_s: u64,
}

/// Probes that are carried out once and then remembered.
pub(super) struct Cached<P> {
    probes: P,
    file: PathBuf,
    record: Record,
    now_unix_s: u64,
}

impl Key {
    /// The key for this QEMU on this machine as it is now.
    pub(super) fn of(qemu: &Path, qemu_version: &str) -> Self {
        let metadata = fs::metadata(qemu).ok();
        let device = Path::new("/dev/kvm");
        Self {
            format: FORMAT,
            qemu: qemu.to_owned(),
            qemu_version: qemu_version.to_owned(),
            qemu_size: metadata.as_ref().map_or(0, MetadataExt::size),
            qemu_modified_ns: metadata
                .map_or(0, |file| i128::from(file.mtime()) * 1_000_000_000 + i128::from(file.mtime_nsec())),
            kernel_release: rustix::system::uname().release().to_string_lossy().into_owned(),
            boot_id: fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned(),
            device: Device {
                number: fs::metadata(device).ok().map(|file| file.rdev()),
                writable: rustix::fs::access(device, rustix::fs::Access::READ_OK | rustix::fs::Access::WRITE_OK)
                    .is_ok(),
            },
        }
    }

    fn file_name(&self) -> String {
        let digest = KeyBuilder::new("accelerator").with("key", format!("{self:?}").as_bytes()).finish();
        format!("{digest}.json").replace(':', "-")
    }
}

impl<P: Probes> Cached<P> {
    pub(super) fn new(probes: P, key: Key, cache_dir: &Path, now: SystemTime) -> Self {
        let file = cache_dir.join("accel").join(key.file_name());
        let record = read(&file).filter(|record| record.key == key);
        Self {
            probes,
            file,
            record: record.unwrap_or(Record { key, hypervisor: None, tsc_khz: None }),
            now_unix_s: now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs(),
        }
    }

    fn save(&self) {
        if let Err(error) = write(&self.file, &self.record) {
            tracing::debug!(file = %self.file.display(), %error, "the accelerator's verdict is not cached");
        }
    }
}

impl<P: Probes> Probes for Cached<P> {
    fn hypervisor(&mut self) -> Hypervisor {
        if let Some(finding) = self.record.hypervisor.as_ref().filter(|finding| finding.holds_at(self.now_unix_s)) {
            return finding.hypervisor.clone();
        }
        let hypervisor = self.probes.hypervisor();
        self.record.hypervisor = Some(Finding { hypervisor: hypervisor.clone(), found_at_unix_s: self.now_unix_s });
        self.save();
        hypervisor
    }

    fn tsc_khz(&mut self) -> Option<NonZeroU32> {
        if self.record.tsc_khz.is_none() {
            self.record.tsc_khz = self.probes.tsc_khz();
            self.save();
        }
        self.record.tsc_khz
    }
}

impl Finding {
    fn holds_at(&self, now_unix_s: u64) -> bool {
        let holds = match &self.hypervisor {
            Hypervisor::Works { .. } => return true,
            Hypervisor::Fails(fault) if fault.unsure => UNSURE_FAILURE_HOLDS,
            Hypervisor::Fails(_) => FAILURE_HOLDS,
        };
        // A finding from the future is one from before the clock was set.
        now_unix_s.checked_sub(self.found_at_unix_s).is_some_and(|age| age < holds.as_secs())
    }
}

fn read(file: &Path) -> Option<Record> {
    let metadata = fs::metadata(file).ok()?;
    if metadata.len() > MAX_RECORD_BYTES {
        return None;
    }
    serde_json::from_slice(&fs::read(file).ok()?).ok()
}

fn write(file: &Path, record: &Record) -> io::Result<()> {
    notes::write(file, &serde_json::to_vec_pretty(record)?)
}

#[cfg(test)]
mod tests {
    use exec_sandbox_qemu::Accelerator;

    use super::{super::Fault, *};

    /// Counts how often it is asked.
    struct Fake {
        answer: Hypervisor,
        asked: usize,
    }

    impl Probes for &mut Fake {
        fn hypervisor(&mut self) -> Hypervisor {
            self.asked += 1;
            self.answer.clone()
        }

        fn tsc_khz(&mut self) -> Option<NonZeroU32> {
            self.asked += 1;
            NonZeroU32::new(2_300_000)
        }
    }

    fn works() -> Hypervisor {
        Hypervisor::Works { accelerator: Accelerator::Kvm { cpu_model: "host".into() }, proof: "it ran".into() }
    }

    fn fails(unsure: bool) -> Hypervisor {
        Hypervisor::Fails(Fault { reason: "it did not run".into(), remedy: "none".into(), unsure })
    }

    fn key(version: &str) -> Key {
        Key::of(Path::new("/bin/sh"), version)
    }

    fn after(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000 + seconds)
    }

    /// How often the probe is asked by schedulers that start at these times, in seconds.
    fn asked(answer: Hypervisor, times: &[u64]) -> usize {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut fake = Fake { answer, asked: 0 };
        for &time in times {
            let found = Cached::new(&mut fake, key("10.0.2"), dir.path(), after(time)).hypervisor();
            assert_eq!(found, fake.answer);
        }
        fake.asked
    }

    #[test]
    fn a_hypervisor_that_works_is_proven_once() {
        assert_eq!(asked(works(), &[0, 1, 1_000_000]), 1);
    }

    #[test]
    fn a_failure_holds_for_a_day_and_an_unsure_one_for_a_minute() {
        assert_eq!(asked(fails(false), &[0, 86_399]), 1);
        assert_eq!(asked(fails(false), &[0, 86_400]), 2);
        assert_eq!(asked(fails(true), &[0, 59]), 1);
        assert_eq!(asked(fails(true), &[0, 60]), 2);
    }

    #[test]
    fn a_failure_from_the_future_does_not_hold() {
        assert_eq!(asked(fails(false), &[10, 0]), 2);
    }

    #[test]
    fn another_qemu_is_another_finding() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut fake = Fake { answer: works(), asked: 0 };
        for version in ["10.0.2", "10.1.0", "10.0.2"] {
            Cached::new(&mut fake, key(version), dir.path(), after(0)).hypervisor();
        }
        assert_eq!(fake.asked, 2);
    }

    #[test]
    fn the_counters_frequency_is_kept_beside_the_hypervisor() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut fake = Fake { answer: works(), asked: 0 };
        for _ in 0..2 {
            let mut cached = Cached::new(&mut fake, key("10.0.2"), dir.path(), after(0));
            assert_eq!(cached.tsc_khz(), NonZeroU32::new(2_300_000));
            assert_eq!(cached.hypervisor(), works());
        }
        assert_eq!(fake.asked, 2);
    }

    #[test]
    fn a_damaged_file_is_found_out_again_and_mended() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut fake = Fake { answer: works(), asked: 0 };
        let file = Cached::new(&mut fake, key("10.0.2"), dir.path(), after(0)).file;
        for damage in ["", "{", "null"] {
            fs::create_dir_all(dir.path().join("accel")).expect("making the directory");
            fs::write(&file, damage).expect("damaging the file");
            let before = fake.asked;
            for _ in 0..2 {
                Cached::new(&mut fake, key("10.0.2"), dir.path(), after(0)).hypervisor();
            }
            assert_eq!(fake.asked, before + 1);
        }
    }

    #[test]
    fn a_cache_that_cannot_be_written_is_no_error() {
        let mut fake = Fake { answer: works(), asked: 0 };
        let found = Cached::new(&mut fake, key("10.0.2"), Path::new("/proc/nowhere"), after(0)).hypervisor();
        assert_eq!(found, works());
    }
}
