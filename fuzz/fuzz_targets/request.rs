//! Requests of a caller, and the program that the agent reads of them.
//!
//! The oracle joins both ends: what the host takes is within the wire's limit and is taken by the agent, whatever pieces it is sent in;
//! and the code arrives as it was given, but for a byte order mark. The encoded program is given to the agent broken, too.
#![no_main]

use exec_sandbox_guest::fuzzing::program;
use exec_sandbox_wire::{Program, limits::MAX_PROGRAM_BYTES};
use libfuzzer_sys::fuzz_target;
use prost::Message as _;

// Steps: 0 adds code, 1 begins a variable of this name, 2 adds to its value, 3 breaks a byte of what is sent.
fuzz_target!(init: fuzz::sow(seeds()), |script: &[u8]| {
    let (mut code, mut env, mut damage) = (String::new(), Vec::<(String, String)>::new(), None);
    for (choice, argument) in fuzz::steps(script) {
        let text = String::from_utf8_lossy(argument);
        match choice % 4 {
            0 => code.push_str(&text),
            1 => env.push((text.into(), String::new())),
            2 => env.iter_mut().for_each(|(_, value)| value.push_str(&text)),
            _ => damage = Some((fuzz::number(argument), choice)),
        }
    }
    let Some(mut encoded) = exec_sandbox::fuzzing::request(&code, env.clone()) else { return };
    assert!(encoded.len() <= MAX_PROGRAM_BYTES as usize);
    let piece_bytes = script.len() % 90 + 1;
    assert_eq!(program(&encoded, piece_bytes), Ok(()), "the agent takes what the host does");
    let read = Program::decode(&encoded[..]).expect("it is whole");
    assert_eq!(read.code, code.strip_prefix('\u{feff}').unwrap_or(&code).as_bytes());
    let read_env = read.env.into_iter().map(|variable| (variable.name, variable.value));
    assert!(read_env.eq(env.into_iter().map(|(name, value)| (name.into_bytes(), value.into_bytes()))));
    if let Some((place, byte)) = damage {
        let place = place % encoded.len();
        encoded[place] = byte;
        let pieces_matter = program(&encoded, piece_bytes) != program(&encoded, usize::MAX);
        assert!(!pieces_matter);
    }
});

fn seeds() -> [Vec<u8>; 4] {
    let long = "v".repeat(250);
    [
        fuzz::script([(0, &b"print(1)"[..]), (1, b"NAME"), (2, "w\u{e9}rt\t=".as_bytes()), (3, &[3, 0])]),
        fuzz::script([(0, "\u{feff}true".as_bytes()), (1, b"A"), (1, b"B"), (2, long.as_bytes()), (7, &[40, 0])]),
        fuzz::script([(0, &b"true"[..]), (1, b"LD_PRELOAD"), (1, b"a=b"), (1, b"")]),
        fuzz::script([(0, &b"a\0b"[..])]),
    ]
}
