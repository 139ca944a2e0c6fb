//! The accelerator: what runs the guests' instructions on this machine, proven before anything relies on it.
//!
//! A hypervisor that answers its door may still not run guests, and a processor model that it offers may still make QEMU abort. So
//! each is tried once, under a deadline, and what was found is kept in the cache for this QEMU on this boot of this machine. What
//! cannot be accelerated is emulated, unless a hypervisor was asked for by name.
//!
//! ```text
//! request ─▶ choose ─▶ Cached ─▶ HostProbes ─▶ kvm (a guest under a deadline) ─▶ models (QEMU with -cpu …)
//!               │                    └───────▶ tsc (the counter that an emulated guest reads)
//!               └─▶ Verdict { accelerator, reason } or an error with its remedy
//! ```
//! It does not own VMs: the guests and QEMUs of the probes are gone when [`choose`] returns.

mod cache;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod guest;
#[cfg(any(test, target_os = "macos"))]
mod hvf;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod kvm;
#[cfg(target_os = "linux")]
mod models;
mod tsc;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod vcpu;

use std::{fmt, num::NonZeroU32, path::Path, str::FromStr, time::SystemTime};

use exec_sandbox_qemu::Accelerator;
use serde::{Deserialize, Serialize};

use self::cache::{Cached, Key};
use crate::{Error, ErrorKind, qemu_program::QemuProgram};

/// Which accelerator is wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum AccelRequest {
    /// The machine's hypervisor if it is proven to work, else software emulation.
    #[default]
    Auto,
    /// Linux's hypervisor, or an error.
    Kvm,
    /// Apple's hypervisor, or an error.
    Hvf,
    /// Software emulation.
    Tcg,
}

/// A name that is no [`AccelRequest`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an accelerator; there are auto, kvm, hvf and tcg")]
pub struct UnknownAccelerator(String);

/// The accelerator to use, and why this one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Verdict {
    pub(crate) accelerator: Accelerator,
    pub(crate) reason: String,
}

/// What is known of this machine's hypervisor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Hypervisor {
    /// Guests run on it.
    Works { accelerator: Accelerator, proof: String },
    /// They do not.
    Fails(Fault),
}

/// Why guests do not run on the hypervisor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{reason}")]
struct Fault {
    reason: String,
    /// What a person can do about it.
    remedy: String,
    /// Whether the machine may merely have been too busy to tell.
    unsure: bool,
}

/// What takes time to find out. Tests have their own.
trait Probes {
    fn hypervisor(&mut self) -> Hypervisor;
    /// Frequency of the counter that an emulated guest reads, if it has one.
    fn tsc_khz(&mut self) -> Option<NonZeroU32>;
}

/// Probes of this machine, with this QEMU.
struct HostProbes<'a> {
    #[cfg_attr(not(target_os = "linux"), expect(dead_code, reason = "only KVM has processor models to try"))]
    qemu: &'a Path,
}

/// Chooses the accelerator for `program`. Blocks: the first time on a boot for up to a second, later for a file read.
///
/// # Errors
/// A hypervisor was asked for by name and does not run guests.
pub(crate) fn choose(request: AccelRequest, program: &QemuProgram, cache_dir: &Path) -> Result<Verdict, Error> {
    let probes = HostProbes { qemu: &program.path };
    let key = Key::of(&program.path, &program.version.to_string());
    decide(request, &mut Cached::new(probes, key, cache_dir, SystemTime::now()))
}

fn decide(request: AccelRequest, probes: &mut impl Probes) -> Result<Verdict, Error> {
    let emulated = |tsc_khz, reason| Ok(Verdict { accelerator: Accelerator::Tcg { tsc_khz }, reason });
    if request == AccelRequest::Tcg {
        return emulated(probes.tsc_khz(), "software emulation was asked for".into());
    }
    match probes.hypervisor() {
        Hypervisor::Works { accelerator, proof } if request.accepts(&accelerator) => {
            Ok(Verdict { accelerator, reason: proof })
        }
        Hypervisor::Fails(fault) if request == AccelRequest::Auto => {
            emulated(probes.tsc_khz(), format!("software emulation, because {fault}"))
        }
        Hypervisor::Fails(fault) if request.is_of_this_system() => {
            let remedy = fault.remedy.clone();
            Err(Error::new(ErrorKind::Dependency, format!("using {request} as the accelerator"))
                .because(fault)
                .remedied_by(remedy))
        }
        Hypervisor::Works { .. } | Hypervisor::Fails(_) => {
            Err(Error::new(ErrorKind::Dependency, format!("using {request}: it is not this system's hypervisor"))
                .remedied_by("choose auto or tcg as the accelerator"))
        }
    }
}

impl Probes for HostProbes<'_> {
    #[cfg(target_os = "linux")]
    fn hypervisor(&mut self) -> Hypervisor {
        let proof = match kvm_runs_a_guest() {
            Ok(proof) => proof,
            Err(fault) => return Hypervisor::Fails(fault),
        };
        match models::first_that_starts(models::LADDER, |model| models::start(self.qemu, model)) {
            Ok(model) => Hypervisor::Works {
                accelerator: Accelerator::Kvm { cpu_model: model.into() },
                proof: format!("{proof}, and QEMU starts on it with the processor model {model}"),
            },
            Err(refusals) => Hypervisor::Fails(refusals.into()),
        }
    }

    #[cfg(target_os = "macos")]
    fn hypervisor(&mut self) -> Hypervisor {
        hvf::probe()
    }

    #[cfg(not(any(target_os = "linux", target_os = "macos")))]
    fn hypervisor(&mut self) -> Hypervisor {
        let (reason, remedy) = ("this system has no hypervisor that is supported".into(), "use Linux or macOS".into());
        Hypervisor::Fails(Fault { reason, remedy, unsure: false })
    }

    fn tsc_khz(&mut self) -> Option<NonZeroU32> {
        tsc::khz()
    }
}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
fn kvm_runs_a_guest() -> Result<String, Fault> {
    let proof = kvm::prove(|| vcpu::run(kvm::DEADLINE))?;
    Ok(format!("KVM ran a 64-bit test guest in {} ms", proof.wall.as_millis()))
}

/// There is no test guest for this architecture yet, so what is proven is what QEMU's own start proves.
#[cfg(all(target_os = "linux", not(target_arch = "x86_64")))]
fn kvm_runs_a_guest() -> Result<String, Fault> {
    Ok("KVM was not tried with a test guest, for which there is none on this architecture".into())
}

impl AccelRequest {
    const ALL: [Self; 4] = [Self::Auto, Self::Kvm, Self::Hvf, Self::Tcg];

    fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Kvm => "kvm",
            Self::Hvf => "hvf",
            Self::Tcg => "tcg",
        }
    }

    fn accepts(self, accelerator: &Accelerator) -> bool {
        self == Self::Auto || self.name() == accelerator.name()
    }

    fn is_of_this_system(self) -> bool {
        match self {
            Self::Auto | Self::Tcg => true,
            Self::Kvm => cfg!(target_os = "linux"),
            Self::Hvf => cfg!(target_os = "macos"),
        }
    }
}

impl fmt::Display for AccelRequest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

impl FromStr for AccelRequest {
    type Err = UnknownAccelerator;

    fn from_str(text: &str) -> Result<Self, UnknownAccelerator> {
        Self::ALL.into_iter().find(|request| request.name() == text).ok_or_else(|| UnknownAccelerator(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use super::*;

    struct Fake(Hypervisor);

    impl Probes for Fake {
        fn hypervisor(&mut self) -> Hypervisor {
            self.0.clone()
        }

        fn tsc_khz(&mut self) -> Option<NonZeroU32> {
            NonZeroU32::new(2_300_000)
        }
    }

    /// Probes that must not be needed.
    struct NoHypervisorProbe;

    impl Probes for NoHypervisorProbe {
        fn hypervisor(&mut self) -> Hypervisor {
            panic!("the hypervisor is not asked for")
        }

        fn tsc_khz(&mut self) -> Option<NonZeroU32> {
            None
        }
    }

    fn native() -> (AccelRequest, Accelerator) {
        if cfg!(target_os = "macos") {
            (AccelRequest::Hvf, Accelerator::Hvf)
        } else {
            (AccelRequest::Kvm, Accelerator::Kvm { cpu_model: "host".into() })
        }
    }

    fn works() -> Fake {
        Fake(Hypervisor::Works { accelerator: native().1, proof: "a guest ran".into() })
    }

    fn fails() -> Fake {
        Fake(Hypervisor::Fails(Fault { reason: "no guest ran".into(), remedy: "mend it".into(), unsure: false }))
    }

    #[test]
    fn a_hypervisor_that_works_is_used_when_any_or_this_one_is_wanted() {
        for request in [AccelRequest::Auto, native().0] {
            let verdict = decide(request, &mut works()).expect("it works");
            assert_eq!(verdict, Verdict { accelerator: native().1, reason: "a guest ran".into() });
        }
    }

    #[test]
    fn one_that_fails_is_replaced_by_emulation_with_the_reason() {
        let verdict = decide(AccelRequest::Auto, &mut fails()).expect("emulation always works");
        assert_eq!(verdict.accelerator, Accelerator::Tcg { tsc_khz: NonZeroU32::new(2_300_000) });
        assert_eq!(verdict.reason, "software emulation, because no guest ran");
    }

    #[test]
    fn one_that_fails_and_was_asked_for_by_name_is_an_error_with_reason_and_remedy() {
        let error = decide(native().0, &mut fails()).expect_err("it does not work");
        assert_eq!(error.kind(), ErrorKind::Dependency);
        assert_eq!(error.source().map(ToString::to_string).as_deref(), Some("no guest ran"));
        assert_eq!(error.remedy(), Some("mend it"));
    }

    #[test]
    fn another_systems_hypervisor_is_an_error_whatever_this_ones_does() {
        let other = if native().0 == AccelRequest::Kvm { AccelRequest::Hvf } else { AccelRequest::Kvm };
        for mut probes in [works(), fails()] {
            let error = decide(other, &mut probes).expect_err("it is not there");
            assert!(error.to_string().contains("not this system's"), "{error}");
        }
    }

    #[test]
    fn forced_emulation_does_not_touch_the_hypervisor() {
        let verdict = decide(AccelRequest::Tcg, &mut NoHypervisorProbe).expect("emulation always works");
        assert_eq!(verdict.accelerator, Accelerator::Tcg { tsc_khz: None });
    }

    #[test]
    fn requests_are_read_back_from_their_names() {
        for request in AccelRequest::ALL {
            assert_eq!(request.to_string().parse(), Ok(request));
        }
        assert!("KVM".parse::<AccelRequest>().is_err());
    }
}
