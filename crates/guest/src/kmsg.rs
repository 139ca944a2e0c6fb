//! The kernel log, PID 1's only voice, and its last word.
//!
//! The kernel limits how fast `/dev/kmsg` may be written (ten lines in five seconds), so what a program or a host can trigger needs
//! no second limit here.

use std::{error::Error, ffi::CStr, fmt::Write as _};

use rustix::{
    fs::{Mode, OFlags},
    system::RebootCommand,
};

const KMSG: &CStr = c"/dev/kmsg";

/// Longest line: the kernel refuses longer ones whole (its own limit is 1 KiB less a prefix).
const MAX_LINE_BYTES: usize = 900;

/// Something is wrong that the agent gets over.
pub(crate) fn warn(text: &str) {
    write(4, text);
}

/// Something is wrong that the agent gets over, with its causes.
pub(crate) fn warn_about(error: &dyn Error) {
    write(4, &chain(error));
}

/// Says why there is no going on, and resets the machine.
pub(crate) fn fatal(error: &dyn Error) -> ! {
    write(2, &chain(error));
    reset()
}

/// Turns a panic into a line on the kernel log and a reset: an unwinding PID 1 would be a kernel panic without a reason.
pub(crate) fn report_panics() {
    std::panic::set_hook(Box::new(|info| {
        write(2, &info.to_string());
        reset();
    }));
}

/// An error and its causes in one line.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let _ = write!(text, ": {error}");
        cause = error.source();
    }
    text
}

fn write(level: u8, text: &str) {
    let line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let mut line = format!("<{level}>exec-sandbox: {line}");
    line.truncate(line.floor_char_boundary(MAX_LINE_BYTES));
    // Nobody is left to tell if even this fails.
    if let Ok(kmsg) = rustix::fs::open(KMSG, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()) {
        let _ = rustix::io::write(kmsg, line.as_bytes());
    }
}

fn reset() -> ! {
    // QEMU runs with -no-reboot, so a reset ends it. Only root of the first PID namespace gets past this call with an error.
    let _ = rustix::system::reboot(RebootCommand::Restart);
    std::process::abort()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot mount the root")]
    struct Outer {
        source: std::io::Error,
    }

    #[test]
    fn a_chain_names_every_cause_once() {
        let error = Outer { source: std::io::Error::other("no such device") };
        assert_eq!(chain(&error), "cannot mount the root: no such device");
    }
}
