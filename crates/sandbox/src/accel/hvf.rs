//! Whether Apple's hypervisor is there, by what `sysctl -n kern.hv_support` answers. Not yet run on a Mac.

#[cfg(target_os = "macos")]
use super::Hypervisor;
use super::{Accelerator, Fault};

/// Asks the kernel.
#[cfg(target_os = "macos")]
pub(super) fn probe() -> Hypervisor {
    let answer = std::process::Command::new("/usr/sbin/sysctl").args(["-n", "kern.hv_support"]).output();
    match judge(&answer.map(|output| output.stdout).unwrap_or_default()) {
        Ok(accelerator) => Hypervisor::Works { accelerator, proof: "the kernel says that it supports HVF".into() },
        Err(fault) => Hypervisor::Fails(fault),
    }
}

fn judge(answer: &[u8]) -> Result<Accelerator, Fault> {
    let reason = match answer.trim_ascii() {
        b"1" => return Ok(Accelerator::Hvf),
        b"0" => "the kernel says that this machine has no support for HVF (kern.hv_support is 0)",
        _ => "the kernel does not say whether HVF is supported (kern.hv_support)",
    };
    Err(Fault {
        reason: reason.into(),
        remedy: "use macOS 11 or later on a Mac with virtualization; in a VM, enable nested virtualization".into(),
        unsure: false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_yes_and_anything_else_is_no_with_a_reason() {
        assert_eq!(judge(b"1\n"), Ok(Accelerator::Hvf));
        assert!(judge(b"0\n").expect_err("0 is no").reason.contains("is 0"));
        for answer in [&b""[..], b"10", b"sysctl: unknown oid"] {
            assert!(judge(answer).expect_err("it is no answer").reason.contains("does not say"));
        }
    }
}
