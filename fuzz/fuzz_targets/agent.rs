//! The agent, from a hostile host: bytes in pieces become frames, messages and operations, while programs write and end.
//!
//! The oracle is in the guest's own `fuzzing` module: one program at a time, no byte beyond what was granted, each end told once on a
//! connection, what is kept stays within its bounds, and an honest host that comes afterwards is told all of it and is served.
#![no_main]

use bytes::BytesMut;
use exec_sandbox_guest::fuzzing::{Step, agent};
use exec_sandbox_wire::{
    CONNECTION_OP, Credit, ExecStart, FileRead, FileSum, FileWrite, GENERATION, Hello, HostMessage, Network, Program,
    ResumePoint, Signal,
};
use libfuzzer_sys::fuzz_target;
use prost::Message as _;

const ARRIVES: u8 = 0;
const WRITES: u8 = 4;
const ENDS: u8 = 6;
const RECONNECTS: u8 = 7;

// Steps: 0 to 3 bytes arrive, 4 and 5 the program writes so much, 6 it ends, 7 the host goes and comes.
fuzz_target!(init: fuzz::sow(seeds()), |script: &[u8]| {
    agent(fuzz::steps(script).map(|(choice, argument)| match choice % 8 {
        ARRIVES..WRITES => Step::Arrives(argument),
        WRITES..ENDS => Step::Writes {
            stdout: 4 * fuzz::number(argument),
            stderr: fuzz::number(argument.get(2..).unwrap_or_default()),
        },
        ENDS => Step::Ends,
        _ => Step::Reconnects,
    }));
});

fn says(op: u32, messages: impl IntoIterator<Item = HostMessage>) -> Vec<u8> {
    let mut bytes = BytesMut::new();
    for message in messages {
        message.into_frame(op).encode(&mut bytes).expect("it is short");
    }
    bytes.to_vec()
}

fn hello(resume: Vec<ResumePoint>) -> Vec<u8> {
    says(CONNECTION_OP, [HostMessage::Hello(Hello { generation: GENERATION, resume, ..Hello::default() })])
}

fn begins(op: u32) -> Vec<u8> {
    let program = Program { code: b"true".to_vec(), env: Vec::new() }.encode_to_vec();
    let program_bytes = program.len() as u32;
    let start = ExecStart { language: 3, timeout_ms: 1000, program_bytes, ..ExecStart::default() };
    says(op, [HostMessage::ExecStart(start), HostMessage::ExecProgram(program.into())])
}

fn seeds() -> Vec<Vec<u8>> {
    let (met, one, two) = (hello(Vec::new()), begins(1), begins(2));
    let credit = says(1, [HostMessage::Credit(Credit { stdout_bytes: 1000, stderr_bytes: 7, ..Credit::default() })]);
    let point =
        ResumePoint { op: 1, stdout_bytes: 1000, stderr_bytes: 7, stdout_credit: 200_000, stderr_credit: 262_144 };
    let (returned, unknown) = (hello(vec![point]), hello(vec![ResumePoint { op: 9, ..point }]));
    let network = Network { address: 2, prefix_bits: 24, gateway: 1, resolver: 1, mtu: 65_520, ..Network::default() };
    let network = Some(network);
    let named = HostMessage::Hello(Hello { generation: GENERATION, resume: vec![point], network, ..Hello::default() });
    let named = says(CONNECTION_OP, [named]);
    let copied = HostMessage::Hello(Hello { generation: GENERATION, seed: vec![7; 32], ..Hello::default() });
    let copied = says(CONNECTION_OP, [copied]);
    let ack = says(1, [HostMessage::Ack]);
    let calls_off = says(1, [HostMessage::ExecSignal(Signal { number: 2 }), HostMessage::Cancel]);
    let files = says(
        3,
        [
            HostMessage::FileWrite(FileWrite { path: "a".into(), mode: 0o644, size: Some(1) }),
            HostMessage::FileData("x".into()),
            HostMessage::FileEnd(FileSum { size: 1, checksum: 0 }),
            HostMessage::FileRead(FileRead { path: "a".into() }),
            HostMessage::Ping("?".into()),
        ],
    );
    let (some, much): (&[u8], &[u8]) = (&[250, 0, 7, 0], &[255, 255, 255, 255]);
    vec![
        fuzz::script([(ARRIVES, &met[..]), (1, &one), (WRITES, some), (2, &credit), (ENDS, &[]), (3, &ack), (0, &two)]),
        fuzz::script([
            (0, &met[..]),
            (0, &one),
            (4, some),
            (0, &credit),
            (7, &[]),
            (0, &returned),
            (6, &[]),
            (0, &ack),
        ]),
        fuzz::script([(0, &met[..]), (0, &one), (WRITES, much), (WRITES, much), (0, &calls_off), (RECONNECTS, &[])]),
        fuzz::script([(0, &met[..]), (0, &one[..12]), (7, &[]), (0, &met), (0, &two), (4, much), (0, &unknown)]),
        fuzz::script([(0, &met[..]), (0, &files), (0, &met), (0, &met), (0, &one), (0, &two)]),
        fuzz::script([(0, &one[..]), (4, much), (6, &[]), (0, &two), (4, much), (6, &[]), (0, &met)]),
        fuzz::script([(0, &named[..]), (0, &one), (4, some), (7, &[]), (0, &named), (6, &[]), (0, &named)]),
        fuzz::script([
            (0, &met[..]),
            (0, &one),
            (6, &[]),
            (0, &copied),
            (0, &met),
            (0, &two),
            (0, &copied),
            (0, &named),
        ]),
    ]
}
