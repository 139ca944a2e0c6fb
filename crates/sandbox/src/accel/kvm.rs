//! Whether KVM runs guests: what the test guest's end proves.
//!
//! A device that opens and creates VMs is no proof. There are hosts whose KVM interprets 64-bit kernel code at a thousandth of the
//! processor's speed, and hosts where the first instruction fails. So the guest must answer right, and within [`DEADLINE`].
//!
//! On a busy machine the deadline may pass without the guest having had a processor. Its thread's processor time tells the two apart:
//! only a guest that used its time and was not done is proof of a slow KVM; one that starved gets a second chance.

use std::{fmt, io, time::Duration};

use super::{
    Fault, guest,
    vcpu::{End, Run},
};

/// Time for the whole proof. Hardware needs about 10 ms, of which the guest 3 to 5; the rest is for a busy machine.
pub(super) const DEADLINE: Duration = Duration::from_millis(200);

/// A guest that had a processor for this part of the deadline had its chance: ten times what hardware needs.
const FAIR_SHARE: Duration = Duration::from_millis(30);

/// The guest ran on KVM and was right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Proof {
    /// From opening the device to the last descriptor closed.
    pub(super) wall: Duration,
}

/// Why KVM is not used.
#[derive(Debug, thiserror::Error)]
pub(super) enum KvmFault {
    #[error("there is no /dev/kvm")]
    Absent,
    #[error("this user may not use /dev/kvm")]
    Forbidden,
    #[error("KVM failed at {step}")]
    Refused { step: Step, source: io::Error },
    #[error("KVM did not come back from {step} and cannot be interrupted")]
    Stuck { step: Step },
    #[error("KVM interprets guests instead of running them: after {} ms of processor time the test guest was still {doing}, which takes hardware 5 ms", cpu.as_millis())]
    TooSlow { doing: &'static str, cpu: Duration },
    #[error("KVM's test guest had only {} ms of processor time in {} ms, twice, and was still {doing}", cpu.as_millis(), DEADLINE.as_millis())]
    Starved { doing: &'static str, cpu: Duration },
    #[error("KVM ended the test guest while it was {doing}: {how}")]
    Ended { doing: &'static str, how: String },
    #[error("KVM runs 64-bit guests wrongly: the test guest failed when it was {doing}")]
    WrongAnswer { doing: &'static str },
}

/// What is done with KVM, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Thread,
    Open,
    CreateVm,
    Memory,
    CreateVcpu,
    Features,
    Registers,
    Run,
}

/// Proves KVM by what `run` does with the test guest.
pub(super) fn prove(mut run: impl FnMut() -> Result<Run, KvmFault>) -> Result<Proof, KvmFault> {
    match run().and_then(judge) {
        Err(KvmFault::Starved { .. }) => run().and_then(judge),
        verdict => verdict,
    }
}

fn judge(run: Run) -> Result<Proof, KvmFault> {
    let doing = doing(&run.output);
    match run.end {
        End::Exited(0) if run.output == guest::EXPECTED => Ok(Proof { wall: run.wall }),
        End::Exited(_) => Err(KvmFault::WrongAnswer { doing }),
        End::Interrupted if run.cpu >= FAIR_SHARE => Err(KvmFault::TooSlow { doing, cpu: run.cpu }),
        End::Interrupted => Err(KvmFault::Starved { doing, cpu: run.cpu }),
        End::Failed(how) => Err(KvmFault::Ended { doing, how }),
    }
}

impl Step {
    const fn name(self) -> &'static str {
        match self {
            Self::Thread => "starting a thread for it",
            Self::Open => "opening /dev/kvm",
            Self::CreateVm => "creating a VM",
            Self::Memory => "giving the VM its memory",
            Self::CreateVcpu => "creating a processor",
            Self::Features => "setting the processor's features",
            Self::Registers => "setting the processor's registers",
            Self::Run => "running the guest",
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

impl KvmFault {
    /// A system call that failed at `step`.
    pub(super) fn refused(step: Step, source: io::Error) -> Self {
        match (step, source.raw_os_error()) {
            (Step::Open, Some(libc::ENOENT | libc::ENODEV | libc::ENXIO)) => Self::Absent,
            (Step::Open, Some(libc::EACCES | libc::EPERM)) => Self::Forbidden,
            _ => Self::Refused { step, source },
        }
    }

    fn remedy(&self) -> &'static str {
        match self {
            Self::Absent => {
                "enable virtualization in the firmware, or nested virtualization if this is a VM, and load kvm_intel or kvm_amd"
            }
            Self::Forbidden => {
                "add the user to the group that owns /dev/kvm (`sudo usermod -aG kvm $USER`) and log in again"
            }
            Self::Refused { step: Step::CreateVm, source } if source.raw_os_error() == Some(libc::EBUSY) => {
                "stop the other hypervisor that holds the processor"
            }
            Self::Starved { .. } => "try again when the machine is less busy",
            Self::Refused { .. } | Self::Stuck { .. } => {
                "look for kvm in the kernel's log (`dmesg`), or use software emulation"
            }
            Self::TooSlow { .. } | Self::Ended { .. } | Self::WrongAnswer { .. } => {
                "use software emulation, or a host with hardware virtualization"
            }
        }
    }
}

impl From<KvmFault> for Fault {
    fn from(fault: KvmFault) -> Self {
        // One text, because it is kept in the cache, where errors have no sources.
        let reason = match &fault {
            KvmFault::Refused { source, .. } => format!("{fault}: {source}"),
            _ => fault.to_string(),
        };
        Self { reason, remedy: fault.remedy().into(), unsure: matches!(fault, KvmFault::Starved { .. }) }
    }
}

/// What the guest did when it wrote no more.
fn doing(output: &[u8]) -> &'static str {
    let reached = guest::STAGES.iter().zip(output).take_while(|((mark, _), byte)| mark == *byte).last();
    reached.map_or("starting", |((_, doing), _)| doing)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(output: &[u8], end: End, cpu_ms: u64) -> Run {
        Run { output: output.to_vec(), end, wall: Duration::from_millis(7), cpu: Duration::from_millis(cpu_ms) }
    }

    fn fault_of(run: Run) -> Fault {
        judge(run).expect_err("it proves nothing").into()
    }

    #[test]
    fn the_right_answer_is_the_proof() {
        let proof = prove(|| Ok(run(&guest::EXPECTED, End::Exited(0), 5))).expect("the answer is right");
        assert_eq!(proof.wall, Duration::from_millis(7));
    }

    #[test]
    fn a_wrong_checksum_or_a_missing_one_is_no_proof() {
        let mut wrong = guest::EXPECTED;
        wrong[9] ^= 1;
        for output in [&wrong[..], &guest::EXPECTED[..14], b""] {
            assert!(fault_of(run(output, End::Exited(0), 5)).reason.contains("wrongly"));
        }
        assert!(matches!(judge(run(&guest::EXPECTED, End::Exited(1), 5)), Err(KvmFault::WrongAnswer { .. })));
    }

    #[test]
    fn the_reason_says_how_far_the_guest_came() {
        let reason = |output: &[u8]| fault_of(run(output, End::Interrupted, 190)).reason;
        assert!(reason(b"pglxmf").contains("190 ms of processor time the test guest was still computing"));
        assert!(reason(b"p").contains("building page tables"));
        assert!(reason(b"").contains("starting"));
        assert!(reason(b"\xff\xff").contains("starting"));
    }

    #[test]
    fn a_guest_that_starved_is_tried_once_more() {
        let mut runs = vec![run(&guest::EXPECTED, End::Exited(0), 5), run(b"p", End::Interrupted, 20)];
        prove(|| Ok(runs.pop().expect("it is tried twice"))).expect("the second run was right");
        assert!(runs.is_empty());
    }

    #[test]
    fn a_guest_that_starved_twice_leaves_the_question_open() {
        let mut count = 0;
        let verdict = prove(|| {
            count += 1;
            Ok(run(b"p", End::Interrupted, 20))
        });
        assert!(Fault::from(verdict.expect_err("it starved")).unsure);
        assert_eq!(count, 2);
    }

    #[test]
    fn a_guest_that_used_its_time_is_not_tried_again() {
        let mut count = 0;
        let verdict = prove(|| {
            count += 1;
            Ok(run(b"pglxmf", End::Interrupted, 190))
        });
        assert!(!Fault::from(verdict.expect_err("it was slow")).unsure);
        assert_eq!(count, 1);
    }

    #[test]
    fn an_end_by_kvm_names_its_reason() {
        let fault = fault_of(run(b"pg", End::Failed("internal error 1".into()), 1));
        assert_eq!(fault.reason, "KVM ended the test guest while it was entering long mode: internal error 1");
    }

    #[test]
    fn a_device_that_does_not_open_is_absent_forbidden_or_broken() {
        let at = |step, code| KvmFault::refused(step, io::Error::from_raw_os_error(code));
        assert!(matches!(at(Step::Open, libc::ENOENT), KvmFault::Absent));
        assert!(matches!(at(Step::Open, libc::EACCES), KvmFault::Forbidden));
        assert!(matches!(at(Step::CreateVm, libc::EACCES), KvmFault::Refused { .. }));
        let fault = Fault::from(at(Step::CreateVm, libc::EBUSY));
        assert!(fault.reason.starts_with("KVM failed at creating a VM: "), "{}", fault.reason);
        assert!(fault.remedy.contains("other hypervisor"));
    }
}
