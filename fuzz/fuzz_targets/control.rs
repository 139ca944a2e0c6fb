//! The guest's control lines: what a program that has taken over its wrapper writes to the agent.
//!
//! The oracle is in the guest's own `fuzzing` module, which reads the lines a second time in a way of its own: of each line
//! that is not empty one thing is heard, in order: the report that it is, or that it is none.
#![no_main]

use exec_sandbox_guest::fuzzing::control;
use libfuzzer_sys::fuzz_target;

fuzz_target!(init: fuzz::sow(seeds()), |said: &[u8]| control(said));

fn seeds() -> Vec<Vec<u8>> {
    let done = |code: &str| format!("done {} {code}\n", "a0".repeat(16));
    let long = format!("done {} 7\n", "b".repeat(80));
    [
        format!("ready\n{}{}", done("0"), done("255")),
        format!("ready\n{}", done("007")),
        format!("{}ready\n", done("256")),
        format!("{long}ready\n"),
        format!("ready\n{}", "x".repeat(200)),
        done("1 2"),
        format!("\nseeded {}\nseeded\nseeded a b\n{}", "0f".repeat(16), done("1")),
    ]
    .map(String::into_bytes)
    .into()
}
