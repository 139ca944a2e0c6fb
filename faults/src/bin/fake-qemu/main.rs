//! A fake QEMU: answers what is asked of a QEMU before it is used, then plays the scene for the VM that it is told to be.
//!
//! It owns the descriptors that a QEMU is handed and its end of the protocols on them. What it does when is the scene's. It
//! has no clock and no chance: one scene is one behaviour.

mod actor;
mod descriptors;
mod memory;
mod monitor;
mod port;
mod raise;

use std::{
    env,
    ffi::OsString,
    io::{self, Write as _},
    path::Path,
    process::ExitCode,
};

use faults::{Life, Scenes};

use actor::Actor;

/// The only argument of a process that [`Step::Grandchild`](faults::Step::Grandchild) starts.
const GRANDCHILD: &str = "grandchild";

/// The code of a fake that cannot play: neither QEMU's nor a scene's.
const CONFUSED: u8 = 97;

fn main() -> ExitCode {
    let args: Vec<OsString> = env::args_os().collect();
    let args: Vec<_> = args.iter().map(|arg| arg.to_string_lossy()).collect();
    if args.get(1).is_some_and(|arg| arg == GRANDCHILD) {
        actor::hang();
    }
    if let Some(answer) = args.get(1..).and_then(answer) {
        return match io::stdout().write_all(answer.as_bytes()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(_nobody_listens) => ExitCode::from(CONFUSED),
        };
    }
    match play(&args) {
        Ok(code) => code,
        Err(error) => {
            let _ = writeln!(io::stderr(), "fake-qemu: {error}");
            ExitCode::from(CONFUSED)
        }
    }
}

/// What a QEMU says to who only asks.
fn answer(args: &[impl AsRef<str>]) -> Option<&'static str> {
    match args {
        [version] if version.as_ref() == "--version" => Some("QEMU emulator version 10.0.0 (fake)\n"),
        [what, help] if help.as_ref() == "help" => Some(match what.as_ref() {
            "-accel" => "Accelerators supported in QEMU binary:\ntcg\n",
            "-machine" | "-M" => "Supported machines are:\nmicrovm  microvm (i386)\nvirt  ARM Virtual Machine\n",
            _ => "",
        }),
        _ => None,
    }
}

fn play(args: &[impl AsRef<str>]) -> Result<ExitCode, Box<dyn std::error::Error>> {
    let value = |name: &str| args.windows(2).find(|pair| pair[0].as_ref() == name).map(|pair| pair[1].as_ref());
    let memory_mib = value("-m").and_then(|value| value.strip_suffix('M')).ok_or("there is no -m")?.parse()?;
    let own = args.first().ok_or("there is no name")?.as_ref();
    let program = if Path::new(own).is_file() { Path::new(own) } else { Path::new("/proc/self/exe") };
    let scenes = Scenes::of_program(program)?;
    for (option, number) in [("id=agent", "fd=3"), ("id=qmp", "fd=4")] {
        if !has_chardev(args, option, number) {
            return Err(format!("there is no -chardev with {option} and {number}").into());
        }
    }
    let descriptors = descriptors::handed_over(has_chardev(args, "id=console", "fd=5"))?;
    let memory = value("-object").and_then(|object| object.split_once("mem-path="));
    let life = match memory {
        Some(_) => Life::Donor,
        None if args.iter().any(|arg| arg.as_ref() == "-preconfig") => Life::Copy,
        None => Life::Boot,
    };
    let mut actor = Actor::new(own.into(), descriptors, memory.map(|(_options, path)| path.into()));
    Ok(actor.play(&scenes.steps(memory_mib, life))?)
}

fn has_chardev(args: &[impl AsRef<str>], id: &str, fd: &str) -> bool {
    let has = |list: &str| [id, fd].iter().all(|option| list.split(',').any(|it| it == *option));
    args.windows(2).any(|pair| pair[0].as_ref() == "-chardev" && has(pair[1].as_ref()))
}
