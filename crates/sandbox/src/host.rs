//! The host: what this machine offers to VMs, found once and shared by all of them.
//!
//! Each finding is a function of its own, so that `doctor` can report one that fails where the scheduler has to stop at it.

#[cfg(test)]
mod pretend;

use std::{
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use exec_sandbox_image::{Image, ImageError, ImageStore, Manifest, VerifiedImage};
use exec_sandbox_qemu as qemu;
use tokio::sync::Notify;
use tracing::{debug, warn};

use crate::{
    Error, ErrorKind, Language, accel,
    admission::{Budget, Machine},
    assets,
    config::Settings,
    layers::{Indexes, Layers, Sources},
    network::{self, GatewayProgram, Registries},
    process::{Confinement, Subject},
    qemu_program::{self, QemuProgram},
    shared::SharedCache,
    snapshot::{Parts, Shelf},
    vm::Blanks,
};

/// What QEMU may take beside the guest's memory before its control group ends it, in MiB: the whole translation buffer of 256 under
/// emulation, and the rest of it twice. What a VM takes as a rule is less, and is what admission charges.
const EMULATION_CEILING_MIB: u64 = 384;

/// The same without a translation buffer. Not measured under an accelerator.
const ACCELERATION_CEILING_MIB: u64 = 128;

/// What a gateway may take. It needs 4, and what its connections hold when all of them wait for the other end is 144.
const GATEWAY_CEILING_MIB: u64 = 192;

/// What VMs are made of on this machine.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) qemu: QemuProgram,
    pub(crate) arch: qemu::Arch,
    pub(crate) accelerator: qemu::Accelerator,
    pub(crate) image: ImageFiles,
    /// The snapshots that its VMs may be copies of, and where QEMU finds their memories; `None`: VMs are always booted.
    pub(crate) snapshots: Option<Arc<Shelf>>,
    /// Snapshots from which VMs that boot may take translations; `None`: there are none, or nothing is translated.
    pub(crate) relatives: Option<Arc<Shelf>>,
    memories: Option<File>,
    /// QEMUs that wait for their guests.
    pub(crate) blanks: Blanks,
    /// Those that the image has interpreters for.
    pub(crate) languages: Vec<Language>,
    /// Rung when a VM has ended, or something that was kept ready is taken.
    pub(crate) bell: Arc<Notify>,
    confined: Mutex<Confined>,
    /// The gateway that was named, and the one that was found last.
    gateway: (Option<PathBuf>, Mutex<Option<Arc<GatewayProgram>>>),
    /// The hosts that each language installs packages from.
    pub(crate) registries: Registries,
    /// What is shared with other machines, if anything is.
    pub(crate) shared: Option<Arc<SharedCache>>,
    /// What is installed for VMs with packages.
    pub(crate) layers: Arc<Layers>,
    cgroup: Option<PathBuf>,
    pub(crate) run_dir: PathBuf,
    pub(crate) boot_timeout: Duration,
    pub(crate) budget: Budget,
    pub(crate) facts: Facts,
}

/// What confines a QEMU, found for one program: Landlock knows it by its inode, and an update puts another in its place.
#[derive(Debug)]
struct Confined {
    program: Option<Identity>,
    confinement: Arc<Confinement>,
}

/// The files of a verified image, kept open: VMs read these, whatever becomes of their paths, and QEMU needs no
/// right to go where they lie.
#[derive(Debug)]
pub(crate) struct ImageFiles {
    kernel: File,
    initramfs: File,
    root: File,
}

/// What was found on this machine, for people and logs.
#[derive(Clone, Debug, serde::Serialize)]
#[non_exhaustive]
pub struct Facts {
    /// `kvm`, `hvf` or `tcg`.
    pub accelerator: String,
    /// Why it is that one.
    pub accelerator_reason: String,
    /// The QEMU program.
    pub qemu: PathBuf,
    /// Its version.
    pub qemu_version: String,
    /// The image's name.
    pub image: String,
    /// The guest kernel's release.
    pub kernel_version: String,
}

impl Host {
    /// Finds everything, or says what is missing and how to get it. Blocks: it reads files, and the first time runs QEMU.
    pub(crate) fn examine(settings: &Settings) -> Result<Self, Error> {
        raise_descriptor_limit();
        let arch = arch()?;
        let (program, image) = match &settings.qemu {
            Some(_) => (qemu_program::find(arch, settings, None)?, image(settings)?),
            None => {
                let image = image(settings)?;
                (qemu_program::find(arch, settings, Some(&image))?, image)
            }
        };
        let verdict = accelerator(settings, &program)?;
        let facts = Facts {
            accelerator: verdict.accelerator.name().into(),
            accelerator_reason: verdict.reason.clone(),
            qemu: program.path.clone(),
            qemu_version: program.version.to_string(),
            image: settings.config.image.clone(),
            kernel_version: image.manifest().kernel_version.clone(),
        };
        let shared = match settings.remote_cache.as_ref().filter(|_| !settings.offline) {
            Some(remote) => Some(Arc::new(SharedCache::open(remote)?)),
            None => None,
        };
        let (shelf, memories) = match shelf(settings, &program, &verdict.accelerator, image.manifest()) {
            Some((shelf, memories)) => (Some(Arc::new(shelf.sharing(shared.clone()))), Some(memories)),
            None => (None, None),
        };
        let snapshots = shelf.clone().filter(|_| settings.config.snapshots);
        let relatives = shelf.filter(|_| verdict.accelerator.translates() && program.own.is_some());
        let bell = Arc::<Notify>::default();
        // Without snapshots there is nothing that a blank could be told.
        let config = &settings.config;
        let wanted = config.blank_pool_size.unwrap_or(config.warm_pool_size);
        let blanks = if snapshots.is_some() { wanted } else { 0 };
        let has = |language: &Language| image.manifest().languages.contains_key(language.name());
        let languages: Vec<Language> = Language::ALL.into_iter().filter(has).collect();
        let registries = settings.registries.clone().or_those_of(&image.manifest().registries)?;
        let by_default = Indexes::of_image(&image.manifest().indexes);
        let indexes = (settings.indexes.clone(), by_default);
        let sources = Sources::new(indexes, registries.clone(), config, settings.package_ca.clone());
        let layers = Arc::new(Layers::new(settings.layers(), image.manifest().root.blake3, sources, shared.clone()));
        let image = ImageFiles::open(&image).map_err(|error| {
            Error::new(ErrorKind::AssetNotFound, format!("opening image {:?}", settings.config.image)).because(error)
        })?;
        let read = Some((&image, memories.as_ref()));
        let confinement = confinement(&program, &verdict.accelerator, read, settings.cgroup.as_deref());
        let budget = Budget::of(&settings.config, Machine::read(), &verdict.accelerator);
        for layer in confinement.layers() {
            debug!(layer = layer.name, missing = ?layer.missing, "examined");
        }
        debug!(?facts, ?budget, "examined");
        Ok(Self {
            arch,
            accelerator: verdict.accelerator,
            image,
            snapshots,
            relatives,
            memories,
            blanks: Blanks::new(blanks, settings.config.default_memory_mib, Arc::clone(&bell)),
            languages,
            bell,
            confined: Mutex::new(Confined { program: identity(&program.path), confinement: Arc::new(confinement) }),
            qemu: program,
            gateway: (settings.gateway.clone(), Mutex::default()),
            registries,
            shared,
            layers,
            cgroup: settings.cgroup.clone(),
            run_dir: settings.run_dir.clone(),
            boot_timeout: settings.config.boot_timeout,
            budget,
            facts,
        })
    }
}

impl Host {
    /// What confines the QEMU that is there now. Blocks for a moment if it is not the one that was there last.
    pub(crate) fn confinement(&self) -> Arc<Confinement> {
        let mut confined = self.confined.lock().unwrap_or_else(PoisonError::into_inner);
        let program = identity(&self.qemu.path);
        // One that is kept open stays the one that it was.
        if self.qemu.own.is_none() && program.is_some() && program != confined.program {
            debug!(qemu = %self.qemu.path.display(), "the program has been replaced");
            let read = Some((&self.image, self.memories.as_ref()));
            let found = confinement(&self.qemu, &self.accelerator, read, self.cgroup.as_deref());
            *confined = Confined { program, confinement: Arc::new(found) };
        }
        Arc::clone(&confined.confinement)
    }

    /// Whether QEMU writes down what it has translated: the image's does, and only under emulation.
    pub(crate) fn keeps_translations(&self) -> bool {
        self.accelerator.translates() && self.qemu.own.is_some()
    }

    /// The directory in which a QEMU finds the memory that it copies.
    pub(crate) fn memories(&self) -> io::Result<OwnedFd> {
        let memories = self.memories.as_ref().ok_or(io::ErrorKind::NotFound)?;
        memories.as_fd().try_clone_to_owned()
    }

    /// The gateway that is there now. Blocks for a moment if it is not the one that was there last.
    pub(crate) fn gateway(&self) -> Result<Arc<GatewayProgram>, Error> {
        let (named, found) = &self.gateway;
        let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(gateway) = found.as_ref().filter(|gateway| gateway.is_current()) {
            return Ok(Arc::clone(gateway));
        }
        let gateway = Arc::new(network::find(named.as_deref())?);
        debug!(gateway = %gateway.path.display(), missing = ?gateway.missing, "found");
        *found = Some(Arc::clone(&gateway));
        Ok(gateway)
    }

    /// The most of the host's memory that a VM with a guest of `memory_mib` may take.
    pub(crate) fn memory_ceiling_bytes(&self, memory_mib: u32, has_network: bool) -> u64 {
        let gateway_mib = if has_network { GATEWAY_CEILING_MIB } else { 0 };
        let ceiling_mib = match self.accelerator {
            qemu::Accelerator::Tcg { .. } => EMULATION_CEILING_MIB,
            qemu::Accelerator::Kvm { .. } | qemu::Accelerator::Hvf => ACCELERATION_CEILING_MIB,
        };
        (u64::from(memory_mib) + ceiling_mib + gateway_mib) << 20
    }
}

impl ImageFiles {
    pub(crate) fn open(image: &VerifiedImage) -> io::Result<Self> {
        let open = |path: PathBuf| File::open(path);
        Ok(Self { kernel: open(image.kernel())?, initramfs: open(image.initramfs())?, root: open(image.root())? })
    }

    /// Kernel, initramfs and root file system, to be passed to one QEMU.
    pub(crate) fn duplicate(&self) -> io::Result<[OwnedFd; 3]> {
        let [kernel, initramfs, root] = self.each().map(|file| file.as_fd().try_clone_to_owned());
        Ok([kernel?, initramfs?, root?])
    }

    fn each(&self) -> [&File; 3] {
        [&self.kernel, &self.initramfs, &self.root]
    }
}

/// What confines the QEMU `program` that reads an image, and memories in a directory, with control groups in `cgroup` if one is named.
pub(crate) fn confinement(
    program: &QemuProgram,
    accelerator: &qemu::Accelerator,
    read: Option<(&ImageFiles, Option<&File>)>,
    cgroup: Option<&Path>,
) -> Confinement {
    let own = program.own.as_deref();
    let files = read.into_iter().flat_map(|(image, _)| image.each()).chain(own.map(|own| &own.firmware));
    let files: Vec<&File> = files.collect();
    let directory = read.and_then(|(_, memories)| memories);
    let kvm = matches!(accelerator, qemu::Accelerator::Kvm { .. });
    let (program, opened) = (&*program.path, own.map(|own| &own.program));
    Confinement::find(&Subject { id: &new_vm_id(), program, opened, files: &files, directory, kvm }, cgroup)
}

/// The snapshots of a host, if it shall have any, or there are some to take translations from. That there can be none is no error: VMs
/// boot.
fn shelf(
    settings: &Settings,
    program: &QemuProgram,
    accelerator: &qemu::Accelerator,
    image: &Manifest,
) -> Option<(Shelf, File)> {
    let has_some = || accelerator.translates() && settings.snapshot_dir.is_dir();
    if !(settings.config.snapshots || has_some()) {
        return None;
    }
    let store = settings.snapshots();
    let common = Parts::common(program, accelerator, image);
    let made = common.and_then(|common| {
        let memories = store.memories()?;
        Ok((Shelf::new(store, memories.try_clone()?, common, settings.config.snapshot_retry_after), memories))
    });
    made.inspect_err(|error| warn!(dir = %settings.snapshot_dir.display(), %error, "there can be no snapshots")).ok()
}

/// Device and inode of a file, and when it was last changed, in seconds and nanoseconds.
type Identity = (u64, u64, i64, i64);

/// By what a file is known, whatever its name.
fn identity(path: &Path) -> Option<Identity> {
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino(), metadata.ctime(), metadata.ctime_nsec()))
}

/// The architecture of this machine, which is the guest's too.
pub(crate) fn arch() -> Result<qemu::Arch, Error> {
    qemu::Arch::of_host().ok_or_else(|| {
        Error::new(ErrorKind::Dependency, "choosing a guest: this machine is neither x86_64 nor aarch64")
    })
}

/// The accelerator that the settings ask for, proven.
pub(crate) fn accelerator(settings: &Settings, program: &QemuProgram) -> Result<accel::Verdict, Error> {
    accel::choose(settings.accel, program, &settings.cache_dir)
}

/// The image that the settings name, verified; what was verified before and has not been touched since is not read again.
pub(crate) fn image(settings: &Settings) -> Result<VerifiedImage, Error> {
    let stamps = settings.stamp_dir();
    find_image(settings, |image| image.verify(Some(&stamps)))
}

/// The image that the settings name, every byte of it read.
pub(crate) fn image_fully(settings: &Settings) -> Result<VerifiedImage, Error> {
    find_image(settings, Image::verify_fully)
}

fn find_image(
    settings: &Settings,
    verify: impl FnOnce(&Image) -> Result<VerifiedImage, ImageError>,
) -> Result<VerifiedImage, Error> {
    let name = &settings.config.image;
    ImageStore::at(&settings.images_dir).load(name).and_then(|image| verify(&image)).map_err(|error| {
        let kind = match &error {
            ImageError::NotFound { .. } | ImageError::BlobMissing { .. } => ErrorKind::AssetNotFound,
            ImageError::BadName(_) => ErrorKind::InvalidConfig,
            ImageError::Io { .. } => ErrorKind::Host,
            _ => ErrorKind::AssetDamaged,
        };
        let (is_missing, is_mended) = (matches!(error, ImageError::NotFound { .. }), error.is_mended_by_rebuilding());
        let failed = Error::new(kind, format!("using image {name:?}")).because(error);
        if is_mended { failed.remedied_by(assets::remedy(settings, is_missing)) } else { failed }
    })
}

/// A name that no other VM has: 48 random bits are enough for directories that live for seconds.
pub(crate) fn new_vm_id() -> String {
    let mut bytes = [0; 6];
    // The kernel's generator is ready long before a program like this one runs; a short read leaves zeroes, and the run
    // directory refuses a name that exists.
    let _ = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    bytes.iter().fold(String::from("vm-"), |id, byte| id + &format!("{byte:02x}"))
}

/// Runs what blocks beside the runtime's threads.
pub(crate) async fn blocking<T: Send + 'static>(
    doing: &'static str,
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.map_err(|error| Error::new(ErrorKind::Host, doing).because(error))?
}

/// Each VM holds about ten descriptors, and the usual soft limit of 1024 ends at a hundred VMs.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        let raised = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
        debug!(from = limit.current, to = limit.maximum, ?raised, "raised the limit of open files");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_short_and_differ() {
        let (one, other) = (new_vm_id(), new_vm_id());
        assert_ne!(one, other);
        assert_eq!(one.len(), 15);
    }

    #[test]
    fn the_agents_port_has_one_name_in_both_contracts() {
        assert_eq!(qemu::AGENT_PORT_NAME, exec_sandbox_wire::PORT_NAME);
    }
}
