//! The host's side of an execution, from a hostile guest: frames in pieces, a caller who takes, connections that are lost.
//!
//! The oracle is in the sandbox's own `fuzzing` module: exactly what was granted and is kept is accepted, what is granted and what is
//! held for the caller come to a window, the caller gets the bytes that came and then the end, and nothing is believed after it.
#![no_main]

use bytes::BytesMut;
use exec_sandbox::fuzzing::{Step, execution};
use exec_sandbox_wire::{Done, End, GuestMessage, Refused, Usage};
use libfuzzer_sys::fuzz_target;

// Steps: 0 and 1 bytes arrive, 2 and 3 so much output arrives, 4 the program ends, 5 and 6 the caller takes, 7 the connection is lost.
fuzz_target!(init: fuzz::sow(seeds()), |script: &[u8]| {
    execution(fuzz::steps(script).map(|(choice, argument)| match choice % 8 {
        0 | 1 => Step::Arrives(argument),
        2 => Step::Writes { to_stderr: false, bytes: fuzz::number(argument) },
        3 => Step::Writes { to_stderr: true, bytes: fuzz::number(argument) },
        4 => Step::Ends(fuzz::number(argument) as u64),
        5 | 6 => Step::Takes,
        _ => Step::Reconnects,
    }));
});

fn says(message: GuestMessage) -> Vec<u8> {
    let mut bytes = BytesMut::new();
    message.into_frame(1).encode(&mut bytes).expect("it is short");
    bytes.to_vec()
}

fn seeds() -> Vec<Vec<u8>> {
    let (out, err) = (says(GuestMessage::Stdout("out".into())), says(GuestMessage::Stderr("err\n".into())));
    let usage = Usage { spawn_us: 1, run_us: 2, cpu_us: Some(3), memory_peak_bytes: Some(4) };
    let done = |end: End, stdout_bytes| {
        let (exit_code, usage) = (3, Some(usage));
        says(GuestMessage::Done(Done { end: end.into(), exit_code, signal: 9, stdout_bytes, stderr_bytes: 4, usage }))
    };
    let refused = says(GuestMessage::Refused(Refused { reason: 3, detail: "busy\u{1b}[0m".into() }));
    let most: &[u8] = &[0, 250];
    let mut floods: Vec<(u8, &[u8])> = vec![(2, most); 4];
    for _ in 0..20 {
        floods.extend([(5, &[][..]), (2, most)]);
    }
    let mut errors: Vec<(u8, &[u8])> = vec![(3, most), (3, &[160, 140]), (5, &[])];
    errors.push((4, &[9, 0]));
    vec![
        fuzz::script([(0, &out[..]), (1, &err), (5, &[]), (0, &done(End::Exited, 3))]),
        fuzz::script([(0, &out[..]), (0, &err[..5]), (7, &[]), (0, &err), (0, &done(End::TimedOut, 3))]),
        fuzz::script([(0, &err[..]), (0, &done(End::OutOfMemory, 0))]),
        fuzz::script([(0, &out[..]), (0, &done(End::Signalled, 4))]),
        fuzz::script([(0, &refused[..]), (0, &out)]),
        fuzz::script([(2, &[1, 0][..]), (3, &[2, 0]), (7, &[]), (6, &[]), (4, &[])]),
        fuzz::script(floods),
        fuzz::script(errors),
    ]
}
