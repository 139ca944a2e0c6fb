//! The doctor: what this machine has and lacks, and how to mend it.
//!
//! Each check stands alone, so that one that fails does not hide the next. Nothing is repaired here.

mod packages;

use exec_sandbox_image::VerifiedImage;
use exec_sandbox_qemu::Accelerator;
use serde::Serialize;

use crate::{
    Error, SchedulerConfig,
    admission::{self, Budget, Kernel, Machine},
    assets,
    config::Settings,
    host::{self, ImageFiles},
    inventory::{self, VmState},
    network,
    paths::Environment,
    process::{Layer, Missing},
    qemu_program::{self, QemuProgram},
};

/// How a check went, from best to worst.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// As it should be.
    Ok,
    /// It works, less well than it could.
    Warning,
    /// Nothing can be run before it is mended.
    Failure,
}

/// One finding.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Check {
    /// What was examined.
    pub name: &'static str,
    /// How it went.
    pub status: Status,
    /// What was found.
    pub detail: String,
    /// What to do about it, if there is something to do.
    pub remedy: Option<String>,
}

/// All findings, in the order in which a run needs what they are about.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Report {
    /// The findings.
    pub checks: Vec<Check>,
}

impl Check {
    /// A finding of a face, which has more to examine than the library.
    #[must_use]
    pub fn new(name: &'static str, status: Status, detail: impl Into<String>, remedy: Option<String>) -> Self {
        Self { name, status, detail: detail.into(), remedy }
    }
}

impl Report {
    /// The worst status of all.
    #[must_use]
    pub fn worst(&self) -> Status {
        self.checks.iter().map(|check| check.status).max().unwrap_or(Status::Ok)
    }
}

/// Examines this machine under `config`.
///
/// # Errors
/// `config` itself is wrong; what is wrong with the machine is in the report.
pub async fn examine(config: SchedulerConfig) -> Result<Report, Error> {
    let settings = config.resolve(&Environment::read())?;
    host::blocking("examining this machine", move || Ok(Report { checks: checks(&settings) })).await
}

fn checks(settings: &Settings) -> Vec<Check> {
    let image = host::image_fully(settings);
    let program = host::arch().and_then(|arch| qemu_program::find(arch, settings, image.as_ref().ok()));
    let accelerator = program.as_ref().ok().map(|program| accelerator(settings, program));
    [
        Some(qemu(settings, program.as_ref())),
        accelerator,
        Some(self::image(settings, image)),
        Some(run_directory(settings)),
        Some(capacity(settings)),
        Some(descriptors()),
        program.as_ref().ok().map(|program| jail(settings, program)),
        Some(gateway(settings)),
        Some(packages::check(settings)),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn qemu(settings: &Settings, program: Result<&QemuProgram, &Error>) -> Check {
    match program {
        Ok(QemuProgram { path, version, own }) => {
            let why = match (&settings.qemu, own) {
                (Some(_), _) => "as it was named",
                (None, Some(_)) => "the image's own",
                (None, None) => "from the PATH",
            };
            ok("qemu", format!("{} {version}, {why}", path.display()))
        }
        Err(error) => failed("qemu", error),
    }
}

fn accelerator(settings: &Settings, program: &QemuProgram) -> Check {
    match host::accelerator(settings, program) {
        Ok(verdict) => {
            let detail = format!("{}: {}", verdict.accelerator.name(), verdict.reason);
            match verdict.accelerator {
                Accelerator::Tcg { .. } => Check {
                    status: Status::Warning,
                    remedy: Some("it works, slower; a machine with KVM runs guests at full speed".into()),
                    ..ok("accelerator", detail)
                },
                Accelerator::Kvm { .. } | Accelerator::Hvf => ok("accelerator", detail),
            }
        }
        Err(error) => failed("accelerator", &error),
    }
}

fn image(settings: &Settings, image: Result<VerifiedImage, Error>) -> Check {
    match image {
        Ok(image) => {
            let manifest = image.manifest();
            let languages: Vec<_> =
                manifest.languages.iter().map(|(name, it)| format!("{name} {}", it.version)).collect();
            ok("image", format!("{}, kernel {}, {}", manifest.name, manifest.kernel_version, languages.join(", ")))
        }
        // A run would do that first, and not fail.
        Err(_) if assets::would_be_fetched(settings) => Check {
            status: Status::Warning,
            remedy: Some(assets::remedy(settings, true)),
            ..ok("image", format!("{} is not there yet, and fetched by the first start", settings.config.image))
        },
        Err(error) => failed("image", &error),
    }
}

fn run_directory(settings: &Settings) -> Check {
    let vms = match inventory::look(&settings.run_dir) {
        Ok(vms) => vms,
        Err(error) => return failed("run directory", &error),
    };
    let of = |state| vms.iter().filter(|vm| vm.state == state).map(|vm| vm.id.as_str()).collect::<Vec<_>>();
    let (abandoned, undead) = (of(VmState::Abandoned), of(VmState::Undead));
    let mut detail = format!("{}: {} VMs running", settings.run_dir.display(), of(VmState::Running).len());
    let mut remedies = Vec::new();
    if !abandoned.is_empty() {
        detail += &format!("; left by processes that are gone: {}", inventory::listed(&abandoned));
        remedies.push("`sbx gc`, or the next start of any sandbox, ends and removes what is left");
    }
    if !undead.is_empty() {
        detail += &format!("; not confirmed dead although killed: {}", inventory::listed(&undead));
        remedies.push("`sbx kill ID` tries again to end what resisted");
    }
    if remedies.is_empty() {
        return ok("run directory", detail);
    }
    Check { status: Status::Warning, remedy: Some(remedies.join("; ")), ..ok("run directory", detail) }
}

fn capacity(settings: &Settings) -> Check {
    // Emulation is what takes most beside the guest, so an accelerated VM fits where this one does.
    let budget = Budget::of(&settings.config, Machine::read(), &Accelerator::Tcg { tsc_khz: None });
    match admission::outlook(&budget, &Kernel::of_this_machine(), settings.config.default_memory_mib) {
        (detail, None) => ok("capacity", detail),
        (detail, Some(shut)) => Check {
            status: Status::Warning,
            remedy: Some("VMs wait for memory, but for a first one; stop something, or give this machine more".into()),
            ..ok("capacity", format!("{detail}; {shut}"))
        },
    }
}

/// Descriptors that a VM takes on the host, and how many VMs a machine should be able to have.
const DESCRIPTORS_PER_VM: u64 = 10;
const EXPECTED_VMS: u64 = 400;

fn descriptors() -> Check {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum.unwrap_or(u64::MAX);
    let detail = format!("at most {limit} open files, for about {} VMs", limit / DESCRIPTORS_PER_VM);
    if limit >= DESCRIPTORS_PER_VM * EXPECTED_VMS {
        return ok("open files", detail);
    }
    let remedy = "raise the hard limit (ulimit -Hn, or LimitNOFILE of the service) to run more VMs at once";
    Check { status: Status::Warning, remedy: Some(remedy.into()), ..ok("open files", detail) }
}

/// Each layer that VMs are confined by, or why it is missing.
fn jail(settings: &Settings, program: &QemuProgram) -> Check {
    // Without these VMs do not run, which is said elsewhere; the layers are examined all the same.
    let accelerator = host::accelerator(settings, program).map(|verdict| verdict.accelerator);
    let accelerator = accelerator.unwrap_or(Accelerator::Tcg { tsc_khz: None });
    let image = host::image(settings).ok().and_then(|image| ImageFiles::open(&image).ok());
    let confinement =
        host::confinement(program, &accelerator, image.as_ref().map(|image| (image, None)), settings.cgroup.as_deref());
    let layers = confinement.layers();
    let describe = |layer: &Layer<'_>| match layer.missing {
        None => layer.name.clone(),
        Some(missing) => format!("{} missing: {}", layer.name, with_causes(missing)),
    };
    let detail = layers.iter().map(describe).collect::<Vec<_>>().join("; ");
    let mut remedies: Vec<_> = layers.iter().filter_map(|layer| layer.missing).map(Missing::remedy).collect();
    remedies.dedup();
    if remedies.is_empty() {
        return ok("jail", detail);
    }
    Check { status: Status::Warning, remedy: Some(remedies.join("; ")), ..ok("jail", detail) }
}

/// The program that VMs with a network need, and its user. Without it all other VMs run.
fn gateway(settings: &Settings) -> Check {
    match network::find(settings.gateway.as_deref()) {
        Ok(program) => {
            let detail = program.path.display().to_string();
            match program.missing {
                None => ok("gateway", format!("{detail}, with a uid of its own")),
                Some(missing) => Check {
                    status: Status::Warning,
                    remedy: Some(missing.remedy().into()),
                    ..ok("gateway", format!("{detail}, own uid missing: {}", with_causes(&missing)))
                },
            }
        }
        Err(error) => Check { status: Status::Warning, ..failed("gateway", &error) },
    }
}

fn ok(name: &'static str, detail: String) -> Check {
    Check { name, status: Status::Ok, detail, remedy: None }
}

fn failed(name: &'static str, error: &Error) -> Check {
    Check { name, status: Status::Failure, detail: with_causes(error), remedy: error.remedy().map(str::to_owned) }
}

fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
