//! The guest: PID 1 of a microVM, and the agent that runs programs in it for the host.
//!
//! One static binary. [`run`] brings the machine up ([`init`], plain system calls, no runtime) and then serves the host for as long
//! as the VM lives ([`agent`], one thread for everything, and one that touches files as the user).
//!
//! Nothing here may panic on what the host, a program or a device says: PID 1 that ends takes the kernel with it. What cannot go on
//! says so in one line on the kernel log and resets the machine, which ends QEMU.

use std::convert::Infallible;

mod agent;
mod boot_id;
mod cgroup;
mod clock;
mod exec;
mod files;
#[cfg(fuzzing)]
pub mod fuzzing;
mod init;
mod interpreter;
mod kmsg;
mod network;
mod operations;
mod output;
mod port;
mod program;
mod random;
mod reaper;
mod spawn;

/// Brings the machine up and serves it. Never returns: what ends it resets the machine.
pub fn run() -> ! {
    kmsg::report_panics();
    let ground = match init::bring_up() {
        Ok(ground) => ground,
        Err(error) => kmsg::fatal(&error),
    };
    match agent::serve(ground) {
        Ok::<Infallible, _>(never) => match never {},
        Err(error) => kmsg::fatal(&error),
    }
}
