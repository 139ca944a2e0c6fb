//! The guest kernel's command line, a function of the machine.

use crate::machine::{Accelerator, Arch, Machine};

/// The kernel's command line: what the machine needs, then `last`.
#[must_use]
pub fn kernel_command_line(machine: &Machine, last: &[String]) -> String {
    let mut words: Vec<String> = Vec::new();
    let mut add = |word: &str| words.push(word.to_owned());
    match machine.console {
        // Each line on the serial port costs 0.1 to 5 ms of exits to QEMU.
        None => add("quiet"),
        Some(_) => add(match machine.arch {
            Arch::X86_64 => "console=ttyS0",
            Arch::Aarch64 => "console=ttyAMA0",
        }),
    }
    // A panic resets at once, and `-no-reboot` turns the reset into the end of QEMU.
    add("panic=-1");
    if machine.arch == Arch::X86_64 {
        // Reset by triple fault: the other ways ask ports and firmware that this machine does not have.
        add("reboot=t");
        match &machine.accelerator {
            // kvmclock gives the frequency of the counter and makes it trusted.
            Accelerator::Kvm { .. } => {}
            Accelerator::Hvf => emulated_timers(None, &mut add),
            Accelerator::Tcg { tsc_khz } => {
                emulated_timers(tsc_khz.map(Into::into), &mut add);
                // A kernel for several processors keeps its `lock` prefixes: patching them out of its text costs emulation 55 ms of
                // re-translation. Ours has none, and ignores the word.
                add("noreplace-smp");
            }
        }
    }
    words.extend(last.iter().cloned());
    words.join(" ")
}

/// What an x86 kernel cannot learn by itself when QEMU emulates the interrupt controllers and no paravirtual clock exists.
fn emulated_timers(tsc_khz: Option<u32>, add: &mut impl FnMut(&str)) {
    if let Some(khz) = tsc_khz {
        // The guest reads the host's counter, so the host's measurement holds; calibrating against the PIT under load fails at
        // random, and then the clock has a resolution of 10 ms.
        add(&format!("tsc_early_khz={khz}"));
        // The counter needs no watchdog, which on a busy host would declare it unstable.
        add("tsc=reliable");
    }
    // The PIT is there and wired through the I/O APIC: the boot-time proof of it costs 100 ms.
    add("no_timer_check");
    // QEMU's local APIC timer runs at 1 GHz. Our kernel takes it from here and spares itself 230 ms of calibration; a stock kernel
    // ignores the word.
    add("lapic_timer_khz=1000000");
}
