//! The wire's surface, compared with a checked-in copy: whoever changes it sees that an agent in a snapshot will meet it.

use exec_sandbox_wire::{
    Change, Credit, Done, End, EnvVar, ExecStart, FileChange, FileEntries, FileEntry, FileKind, FileList, FileRead,
    FileSum, FileWrite, GENERATION, Hello, Kind, Language, Move, Network, NetworkState, PORT_NAME, Program, Refusal,
    Refused, Remove, ResumePoint, Signal, Usage,
    boot::{BootWords, FileLimit},
    limits,
};
use prost::Message;
use std::fmt::Write as _;

/// One line a field: an encoding in which every field has a value shows numbers and wire types.
fn encoding(name: &str, message: &impl Message) -> String {
    let bytes: String = message.encode_to_vec().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{name} {bytes}\n")
}

#[test]
fn the_surface_is_the_one_that_was_agreed() {
    let mut surface = format!("generation {GENERATION}, port {PORT_NAME}\n\n");
    for (kind, name) in Kind::KNOWN {
        let _ = writeln!(surface, "kind 0x{:02x} {name}", kind.0);
    }
    surface.push('\n');
    for language in [Language::Unspecified, Language::Python, Language::JavaScript, Language::Raw] {
        let _ = writeln!(surface, "language {} {language:?}", language as i32);
    }
    for end in 0..16 {
        if let Ok(end) = End::try_from(end) {
            let _ = writeln!(surface, "end {} {end:?}", end as i32);
        }
    }
    for kind in 0..16 {
        if let Ok(kind) = FileKind::try_from(kind) {
            let _ = writeln!(surface, "file kind {} {kind:?}", kind as i32);
        }
    }
    for refusal in 0..16 {
        if let Ok(refusal) = Refusal::try_from(refusal) {
            let _ = writeln!(surface, "refusal {} {refusal:?}", refusal as i32);
        }
    }
    surface.push('\n');
    let point = ResumePoint { op: 1, stdout_bytes: 1, stderr_bytes: 1, stdout_credit: 1, stderr_credit: 1 };
    let hello = Hello {
        generation: 1,
        boot_id: vec![0xb0; 2],
        agent_version: "v".into(),
        unix_time_ns: 1,
        resume: vec![point],
        network: Some(Network {
            address: 1,
            prefix_bits: 1,
            gateway: 1,
            resolver: 1,
            mtu: 1,
            card: 1,
            gateway_card: 1,
        }),
        seed: vec![0x5e; 2],
    };
    surface += &encoding("Hello", &hello);
    surface += &encoding("NetworkState", &NetworkState { failure: "f".into() });
    let start =
        ExecStart { language: 1, timeout_ms: 1, program_bytes: 1, is_last: true, rehearsal: true, unix_time_ns: 1 };
    surface += &encoding("ExecStart", &start);
    let variable = EnvVar { name: b"n".into(), value: b"v".into() };
    surface += &encoding("Program", &Program { code: b"c".into(), env: vec![variable] });
    surface += &encoding("Signal", &Signal { number: 1 });
    surface += &encoding("Credit", &Credit { stdout_bytes: 1, stderr_bytes: 1, data_bytes: 1 });
    let usage = Usage { spawn_us: 1, run_us: 1, cpu_us: Some(1), memory_peak_bytes: Some(1) };
    surface += &encoding("Usage", &usage);
    let done = Done { end: 1, exit_code: 1, signal: 1, stdout_bytes: 1, stderr_bytes: 1, usage: Some(usage) };
    surface += &encoding("Done", &done);
    surface += &encoding("Refused", &Refused { reason: 1, detail: "d".into() });
    surface += &encoding("FileWrite", &FileWrite { path: b"p".into(), mode: 1, size: Some(1) });
    surface += &encoding("FileRead", &FileRead { path: b"p".into() });
    surface += &encoding("FileSum", &FileSum { size: 1, checksum: 1 });
    surface += &encoding("FileList", &FileList { path: b"p".into(), depth: 1 });
    let entry = FileEntry { name: b"n".into(), kind: 1, size: 1, mode: 1, modified_unix_ns: 1 };
    surface += &encoding("FileEntries", &FileEntries { entries: vec![entry] });
    for change in [
        Change::MakeDirectory(b"p".into()),
        Change::Remove(Remove { path: b"p".into(), recursive: true }),
        Change::Move(Move { from: b"f".into(), to: b"t".into() }),
    ] {
        surface += &encoding("FileChange", &FileChange { change: Some(change) });
    }
    let _ = writeln!(
        surface,
        "\nbody {} chunk {} window {} program {} stdout {} stderr {}",
        limits::MAX_BODY_BYTES,
        limits::CHUNK_BYTES,
        limits::STREAM_WINDOW_BYTES,
        limits::MAX_PROGRAM_BYTES,
        limits::MAX_STDOUT_BYTES,
        limits::MAX_STDERR_BYTES,
    );
    let _ = writeln!(
        surface,
        "file {} path {} name {} entries {} seed {}",
        limits::MAX_FILE_BYTES,
        limits::MAX_PATH_BYTES,
        limits::MAX_NAME_BYTES,
        limits::ENTRIES_BYTES,
        limits::SEED_BYTES,
    );
    let boot = BootWords { has_layer: true, files: FileLimit::MAX };
    let _ = writeln!(surface, "boot {}, at least {} files", boot.to_args().join(" "), FileLimit::MIN.get());
    insta::assert_snapshot!(surface);
}
