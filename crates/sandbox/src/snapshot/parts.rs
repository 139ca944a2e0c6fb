//! The key of a snapshot: everything that shapes the state of a VM when it is saved.

use std::{fmt, fs, io, num::NonZeroU32, os::unix::fs::MetadataExt as _, str::FromStr};

use exec_sandbox_image::{Digest, KeyBuilder, Manifest, NotADigest};
use exec_sandbox_qemu::Accelerator;
use serde::{Deserialize, Serialize};

use crate::{Language, qemu_program::QemuProgram};

/// Changes when what is kept of a VM, or what it means, does: no older snapshot is found then.
pub(crate) const FORMAT: u32 = 3;

/// What a VM is made of. A snapshot is of use only to a VM that agrees in every part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Parts {
    /// [`FORMAT`].
    pub(crate) format: u32,
    /// [`GENERATION`](exec_sandbox_wire::GENERATION): what the agent in the snapshot speaks.
    pub(crate) generation: u32,
    pub(crate) kernel: Digest,
    pub(crate) initramfs: Digest,
    pub(crate) root: Digest,
    pub(crate) qemu: QemuBuild,
    pub(crate) accelerator: Accelerator,
    /// What the host's processor is and can, where the guest's is the same one; `None` under software emulation.
    pub(crate) host_cpu: Option<String>,
    /// The arguments of QEMU that shape its list of devices, in their order.
    pub(crate) machine: Vec<String>,
    pub(crate) memory_mib: u32,
    /// The language whose interpreter is warm.
    pub(crate) language: Option<Language>,
    /// What is installed, in any order, and what came of that.
    pub(crate) packages: Vec<String>,
    pub(crate) layer: Option<Digest>,
    /// Whether the interpreter has loaded it.
    pub(crate) is_preloaded: bool,
}

/// One build of QEMU: its device state is no other's. One that came with an image is the same on every machine, and known by content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct QemuBuild {
    /// The version with the package's, as the program says them.
    pub(crate) version: String,
    /// The digest of one that came with an image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) content: Option<Digest>,
    /// Of any other, size and modification time of the program's file: a build that calls itself as the one before it.
    pub(crate) size_bytes: u64,
    pub(crate) modified_s: i64,
    pub(crate) modified_ns: i64,
}

/// The name of a snapshot: a digest of its [`Parts`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Key(Digest);

impl Parts {
    /// What all VMs of a host have in common. Machine, memory, language and packages are each VM's own.
    pub(crate) fn common(program: &QemuProgram, accelerator: &Accelerator, image: &Manifest) -> io::Result<Self> {
        let host_cpu = match accelerator {
            Accelerator::Tcg { .. } => None,
            Accelerator::Kvm { .. } | Accelerator::Hvf => Some(host_cpu()?),
        };
        Ok(Self {
            format: FORMAT,
            generation: exec_sandbox_wire::GENERATION,
            kernel: image.kernel.blake3,
            initramfs: image.initramfs.blake3,
            root: image.root.blake3,
            qemu: QemuBuild::of(program)?,
            accelerator: steady(accelerator),
            host_cpu,
            machine: Vec::new(),
            memory_mib: 0,
            language: None,
            packages: Vec::new(),
            layer: None,
            is_preloaded: false,
        })
    }

    /// The name of the snapshot that is made of these. Each part goes in with its length, each list with its count.
    pub(crate) fn key(&self) -> Key {
        // Taken apart, so that a part that is added is not forgotten here.
        let Self {
            format,
            generation,
            kernel,
            initramfs,
            root,
            qemu,
            accelerator,
            host_cpu,
            machine,
            memory_mib,
            language,
            packages,
            layer,
            is_preloaded,
        } = self;
        let mut packages = packages.clone();
        packages.sort_unstable();
        let number = |key: KeyBuilder, label, number: u32| key.with(label, &number.to_be_bytes());
        let mut key = number(KeyBuilder::new("memory snapshot"), "format", *format);
        key = number(key, "generation", *generation);
        for (label, digest) in [("kernel", kernel), ("initramfs", initramfs), ("root", root)] {
            key = key.with(label, digest.to_string().as_bytes());
        }
        key = qemu.add_to(key);
        key = add_accelerator(key, accelerator);
        key = list(key, "host cpu", host_cpu.as_slice());
        key = list(key, "machine", machine);
        key = number(key, "memory", *memory_mib);
        key = list(key, "language", language.map(Language::name).as_slice());
        key = list(key, "packages", &packages);
        key = list(key, "layer", layer.map(|layer| layer.to_string()).as_slice());
        Key(number(key, "preloaded", u32::from(*is_preloaded)).finish())
    }
}

impl QemuBuild {
    /// The build of this program as its file is now.
    pub(crate) fn of(program: &QemuProgram) -> io::Result<Self> {
        let version = program.version.to_string();
        if let Some(own) = &program.own {
            return Ok(Self { version, content: Some(own.digest), size_bytes: 0, modified_s: 0, modified_ns: 0 });
        }
        let file = fs::metadata(&program.path)?;
        Ok(Self {
            version,
            content: None,
            size_bytes: file.size(),
            modified_s: file.mtime(),
            modified_ns: file.mtime_nsec(),
        })
    }

    fn add_to(&self, key: KeyBuilder) -> KeyBuilder {
        let Self { version, content, size_bytes, modified_s, modified_ns } = self;
        let key = key.with("qemu", version.as_bytes());
        let key = content.iter().fold(key, |key, content| key.with("qemu content", content.to_string().as_bytes()));
        key.with("qemu size", &size_bytes.to_be_bytes())
            .with("qemu mtime", &modified_s.to_be_bytes())
            .with("qemu mtime ns", &modified_ns.to_be_bytes())
    }
}

impl Key {
    pub(crate) fn digest(self) -> Digest {
        self.0
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Key {
    type Err = NotADigest;

    fn from_str(text: &str) -> Result<Self, NotADigest> {
        text.parse().map(Self)
    }
}

/// The accelerator without what a host measures a little differently each time that it boots. A copy's clock is set by its host, and runs
/// by the rest of its template's figure well enough in between.
fn steady(accelerator: &Accelerator) -> Accelerator {
    match accelerator {
        Accelerator::Tcg { tsc_khz } => {
            let round = |khz: NonZeroU32| NonZeroU32::new((khz.get() + 500) / 1000 * 1000);
            Accelerator::Tcg { tsc_khz: tsc_khz.and_then(round) }
        }
        Accelerator::Kvm { .. } | Accelerator::Hvf => accelerator.clone(),
    }
}

/// What this machine's processor is: what the kernel says of the first, without what changes from moment to moment.
fn host_cpu() -> io::Result<String> {
    let all = fs::read_to_string("/proc/cpuinfo")?;
    let first = all.split("\n\n").next().unwrap_or_default();
    let is_steady = |line: &&str| !["cpu MHz", "bogomips", "BogoMIPS"].iter().any(|moment| line.starts_with(moment));
    Ok(first.lines().filter(is_steady).collect::<Vec<_>>().join("\n"))
}

fn add_accelerator(key: KeyBuilder, accelerator: &Accelerator) -> KeyBuilder {
    match accelerator {
        Accelerator::Kvm { cpu_model } => list(key, "accelerator", &["kvm", cpu_model]),
        Accelerator::Hvf => list(key, "accelerator", &["hvf"]),
        Accelerator::Tcg { tsc_khz } => {
            let frequency = tsc_khz.map(|khz| khz.to_string());
            list(list(key, "accelerator", &["tcg"]), "counter", frequency.as_slice())
        }
    }
}

fn list<T: AsRef<str>>(key: KeyBuilder, label: &str, items: &[T]) -> KeyBuilder {
    let count = key.with(label, &(items.len() as u64).to_be_bytes());
    items.iter().fold(count, |key, item| key.with("item", item.as_ref().as_bytes()))
}

#[cfg(test)]
pub(super) mod tests {
    use std::num::NonZeroU32;

    use exec_sandbox_qemu::QemuVersion;
    use proptest::{collection::vec, option, prelude::*, sample::select};

    use super::*;
    use crate::qemu_program::OwnQemu;

    /// Texts that run together in many ways.
    fn text() -> impl Strategy<Value = String> {
        select(vec!["", "a", "b", "ab", "kvm", "tcg", "item", "1"]).prop_map(str::to_owned)
    }

    fn digest() -> impl Strategy<Value = Digest> {
        select(vec![Digest::of(b"a"), Digest::of(b"b")])
    }

    fn accelerator() -> impl Strategy<Value = Accelerator> {
        let tcg = option::of((1..3_u32).prop_map(|khz| NonZeroU32::new(khz).expect("it is not 0")));
        prop_oneof![
            text().prop_map(|cpu_model| Accelerator::Kvm { cpu_model }),
            Just(Accelerator::Hvf),
            tcg.prop_map(|tsc_khz| Accelerator::Tcg { tsc_khz }),
        ]
    }

    /// Few values of each part, so that two of them often differ in one.
    pub(in super::super) fn any_parts() -> impl Strategy<Value = Parts> {
        let file = (0..2_u64, 0..2_i64, 0..2_i64);
        let qemu = (text(), option::of(digest()), file).prop_map(
            |(version, content, (size_bytes, modified_s, modified_ns))| QemuBuild {
                version,
                content,
                size_bytes,
                modified_s,
                modified_ns,
            },
        );
        let numbers = (0..2_u32, 0..2_u32, 0..2_u32);
        let language = option::of(select(Language::ALL.to_vec()));
        let lists = (vec(text(), 0..4), vec(text(), 0..4), option::of(digest()), any::<bool>());
        (numbers, (digest(), digest(), digest()), qemu, accelerator(), option::of(text()), language, lists).prop_map(
            |(
                (format, generation, memory_mib),
                (kernel, initramfs, root),
                qemu,
                accelerator,
                host_cpu,
                language,
                (machine, mut packages, layer, is_preloaded),
            )| {
                packages.sort_unstable();
                Parts {
                    format,
                    generation,
                    kernel,
                    initramfs,
                    root,
                    qemu,
                    accelerator,
                    host_cpu,
                    machine,
                    memory_mib,
                    language,
                    packages,
                    layer,
                    is_preloaded,
                }
            },
        )
    }

    /// Both with all parts of one, but for the part with this number.
    fn with_one_part_of(one: &Parts, other: &Parts, number: usize) -> Parts {
        let (mut mixed, other) = (one.clone(), other.clone());
        match number {
            0 => mixed.format = other.format,
            1 => mixed.generation = other.generation,
            2 => mixed.kernel = other.kernel,
            3 => mixed.initramfs = other.initramfs,
            4 => mixed.root = other.root,
            5 => mixed.qemu = other.qemu,
            6 => mixed.accelerator = other.accelerator,
            7 => mixed.host_cpu = other.host_cpu,
            8 => mixed.machine = other.machine,
            9 => mixed.memory_mib = other.memory_mib,
            10 => mixed.language = other.language,
            11 => mixed.packages = other.packages,
            12 => mixed.layer = other.layer,
            _ => mixed.is_preloaded = other.is_preloaded,
        }
        mixed
    }

    proptest! {
        #[test]
        fn the_keys_of_two_are_equal_if_and_only_if_all_parts_are(one in any_parts(), other in any_parts()) {
            prop_assert_eq!(one.key() == other.key(), one == other);
        }

        #[test]
        fn one_part_that_differs_is_enough(one in any_parts(), other in any_parts(), number in 0..14_usize) {
            let mixed = with_one_part_of(&one, &other, number);
            prop_assert_eq!(one.key() == mixed.key(), one == mixed);
        }

        #[test]
        fn what_moves_from_one_list_to_the_next_makes_another_key(parts in any_parts(), item in text()) {
            let in_machine = Parts { machine: [&parts.machine[..], std::slice::from_ref(&item)].concat(), ..parts.clone() };
            let in_packages = Parts { packages: [&parts.packages[..], &[item]].concat(), ..parts };
            prop_assert_ne!(in_machine.key(), in_packages.key());
        }

        #[test]
        fn the_order_of_packages_means_nothing_and_that_of_arguments_does(
            (parts, shuffled) in any_parts()
                .prop_flat_map(|parts| (Just(parts.clone()), (Just(parts.packages).prop_shuffle(), Just(parts.machine).prop_shuffle()))),
        ) {
            let (packages, machine) = shuffled;
            prop_assert_eq!(Parts { packages, ..parts.clone() }.key(), parts.key());
            let reordered = Parts { machine, ..parts.clone() };
            prop_assert_eq!(reordered.key() == parts.key(), reordered.machine == parts.machine);
        }

        #[test]
        fn parts_read_back_as_they_are_written(parts in any_parts()) {
            let json = serde_json::to_vec(&parts).expect("it is data");
            let read: Parts = serde_json::from_slice(&json).expect("it was written by us");
            prop_assert_eq!(read, parts);
        }
    }

    #[test]
    fn a_key_reads_back_as_it_is_written_and_is_one_name() {
        let key = Key(Digest::of(b"a"));
        assert_eq!(key.to_string().parse(), Ok(key));
        assert!("../a".parse::<Key>().is_err());
    }

    #[test]
    fn an_updated_qemu_is_another_build_though_it_calls_itself_the_same() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("qemu");
        let version = QemuVersion::parse("QEMU emulator version 10.0.2").expect("it is one");
        let program = QemuProgram { path: path.clone(), version, own: None };
        assert!(QemuBuild::of(&program).is_err(), "it is not there");
        fs::write(&path, "a").expect("it can be written");
        let file = fs::File::options().write(true).open(&path).expect("it is there");
        let mut builds = vec![QemuBuild::of(&program).expect("it is there")];
        let time = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::new(1000, 5);
        file.set_modified(time).expect("it is ours");
        builds.push(QemuBuild::of(&program).expect("it is there"));
        file.set_len(2).expect("it is ours");
        file.set_modified(time).expect("it is ours");
        builds.push(QemuBuild::of(&program).expect("it is there"));
        let longer =
            QemuBuild { version: "10.0.2".into(), content: None, size_bytes: 2, modified_s: 1000, modified_ns: 5 };
        assert_eq!(builds[2], longer);
        assert!(builds[0] != builds[1] && builds[1] != builds[2]);
    }

    #[test]
    fn a_qemu_that_came_with_an_image_is_the_same_build_on_every_machine() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let own = |name: &str, digest| {
            let path = dir.path().join(name);
            fs::write(&path, name).expect("it can be written");
            let open = || fs::File::open(&path).expect("it is there");
            let own = OwnQemu { digest, program: open(), firmware: open() };
            let version = QemuVersion::parse("QEMU emulator version 10.0.13").expect("it is one");
            QemuBuild::of(&QemuProgram { path, version, own: Some(own.into()) }).expect("it is there")
        };
        let (one, other) = (Digest::of(b"one"), Digest::of(b"other"));
        assert_eq!(own("here", one), own("elsewhere", one));
        assert_ne!(own("here", one), own("here", other));
    }
}
