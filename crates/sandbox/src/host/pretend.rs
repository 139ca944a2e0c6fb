//! A host for tests: in QEMU's place is a script that waits to be killed.

use std::os::unix::fs::PermissionsExt as _;

use exec_sandbox_image::Digest;
use exec_sandbox_qemu::QemuVersion;

use super::*;
use crate::{SchedulerConfig, paths::Environment, process::Missing};

impl Host {
    /// All that it has is in the directory `root`: its VMs in `run`. `blanks` QEMUs may wait for their guests, and no languages are
    /// known of which VMs could be made ready.
    pub(crate) fn pretend(root: &Path, blanks: usize) -> Self {
        let config = SchedulerConfig { cache_dir: Some(root.into()), ..SchedulerConfig::default() };
        let settings = config.resolve(&Environment::default()).expect("it is valid");
        let (run_dir, path, bell) = (root.join("run"), root.join("qemu"), Arc::<Notify>::default());
        fs::create_dir(&run_dir).expect("it is new");
        fs::write(&path, "#!/bin/sh\nexec sleep 1000\n").expect("it can be written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).expect("it is ours");
        let version = QemuVersion::parse("QEMU emulator version 10.0.0").expect("it is QEMU's");
        let (accelerator, nothing) = (qemu::Accelerator::Tcg { tsc_khz: None }, || File::open("/dev/null"));
        let confinement = Confinement {
            landlock: Err(Missing::Script),
            own_user: Err(Missing::Script),
            namespaces: Err(Missing::Script),
            calls: Err(Missing::Script),
            groups: Err(Missing::Script),
        };
        let facts = Facts {
            accelerator: accelerator.name().into(),
            accelerator_reason: String::new(),
            qemu: path.clone(),
            qemu_version: version.to_string(),
            image: settings.config.image.clone(),
            kernel_version: String::new(),
        };
        let image = ImageFiles {
            kernel: nothing().expect("it is there"),
            initramfs: nothing().expect("it is there"),
            root: nothing().expect("it is there"),
        };
        let indexes = (Indexes::default(), Indexes::default());
        let sources = Sources::new(indexes, settings.registries.clone(), &settings.config, None);
        Self {
            arch: arch().expect("tests run on a machine that has guests"),
            image,
            snapshots: None,
            relatives: None,
            memories: Some(File::open(root).expect("it is there")),
            blanks: Blanks::new(blanks, settings.config.default_memory_mib, Arc::clone(&bell)),
            languages: Vec::new(),
            bell,
            confined: Mutex::new(Confined { program: identity(&path), confinement: Arc::new(confinement) }),
            qemu: QemuProgram { path, version, own: None },
            gateway: (None, Mutex::default()),
            layers: Arc::new(Layers::new(settings.layers(), Digest::of(b"root"), sources, None)),
            registries: settings.registries,
            shared: None,
            cgroup: None,
            run_dir,
            boot_timeout: settings.config.boot_timeout,
            budget: Budget::of(&settings.config, Machine { memory_mib: None, cpu_millis: 1000 }, &accelerator),
            accelerator,
            facts,
        }
    }
}
