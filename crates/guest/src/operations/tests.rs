//! The table, as sequences of what a host may say.

use exec_sandbox_wire::{Credit, Done, Program, Signal};
use prost::Message as _;

use super::*;

fn hello(generation: u32) -> HostMessage {
    HostMessage::Hello(Hello { generation, unix_time_ns: 5, ..Hello::default() })
}

fn start(program_bytes: u32) -> HostMessage {
    HostMessage::ExecStart(ExecStart { language: 1, timeout_ms: 1000, program_bytes })
}

fn program() -> (u32, HostMessage) {
    let bytes = Program { code: b"pass".to_vec(), env: vec![] }.encode_to_vec();
    (u32::try_from(bytes.len()).expect("it is short"), HostMessage::ExecProgram(bytes.into()))
}

/// Effects as text: what is compared below.
fn hear(operations: &mut Operations, op: u32, message: HostMessage) -> Vec<String> {
    let effects = operations.hear(op, message, Instant::now()).expect("an honest host");
    effects.iter().map(describe).collect()
}

fn describe(effect: &Effect) -> String {
    match effect {
        Effect::Send(op, GuestMessage::Refused(refused)) => format!("{op} refused {:?}", refused.reason()),
        Effect::Send(op, GuestMessage::Done(done)) => format!("{op} done {}", done.exit_code),
        Effect::Send(op, message) => format!("{op} says {message:?}"),
        Effect::Tell(Command::Begin(op, ..)) => format!("{op} begins"),
        Effect::Tell(Command::Program(op, program)) => format!("{op} has {} bytes", program.code.len()),
        Effect::Tell(command) => format!("{command:?}"),
        Effect::Clock(time) => format!("clock {time}"),
        Effect::Greet => "greet".to_owned(),
    }
}

fn finish(operations: &mut Operations, op: u32) {
    let terminal = Some(Terminal::Done(Done { exit_code: 3, ..Done::default() }));
    assert!(operations.finish(Finished { op, terminal }).is_some());
}

#[test]
fn an_execution_goes_from_its_start_to_its_acknowledgement() {
    let mut operations = Operations::default();
    let (bytes, piece) = program();
    assert_eq!(hear(&mut operations, 1, start(bytes)), ["1 begins"]);
    assert_eq!(hear(&mut operations, 1, piece), ["1 has 4 bytes"]);
    finish(&mut operations, 1);
    assert_eq!(operations.greet().len(), 1, "it is said again until it is acknowledged");
    hear(&mut operations, 1, HostMessage::Ack);
    assert!(operations.greet().is_empty());
    assert_eq!(hear(&mut operations, 1, start(bytes)), ["1 begins"], "its number may be used again");
}

#[test]
fn a_second_execution_is_refused_while_one_is_under_way_and_not_after_it() {
    let mut operations = Operations::default();
    hear(&mut operations, 1, start(0));
    assert_eq!(hear(&mut operations, 2, start(0)), ["2 refused Busy"]);
    finish(&mut operations, 1);
    assert_eq!(hear(&mut operations, 3, start(0)), ["3 begins", "3 has 0 bytes"]);
}

#[test]
fn a_ping_is_answered_whatever_is_under_way() {
    let mut operations = Operations::default();
    hear(&mut operations, 1, start(9));
    assert_eq!(hear(&mut operations, 0, HostMessage::Ping("hi".into())), ["0 says Pong(b\"hi\")"]);
}

#[test]
fn what_comes_for_an_operation_that_is_over_is_ignored() {
    let mut operations = Operations::default();
    let (bytes, piece) = program();
    hear(&mut operations, 1, start(bytes));
    hear(&mut operations, 1, piece.clone());
    finish(&mut operations, 1);
    let late = [
        piece,
        HostMessage::ExecCancel,
        HostMessage::ExecSignal(Signal { number: 2 }),
        HostMessage::Credit(Credit { stdout_bytes: 1, stderr_bytes: 0 }),
        HostMessage::Unknown(Kind(0x77)),
    ];
    for message in late {
        assert_eq!(hear(&mut operations, 1, message.clone()), Vec::<String>::new(), "{message:?}");
    }
}

#[test]
fn an_execution_under_way_is_signalled_credited_and_cancelled() {
    let mut operations = Operations::default();
    hear(&mut operations, 1, start(0));
    assert_eq!(hear(&mut operations, 1, HostMessage::ExecSignal(Signal { number: 2 })), ["Signal(1, 2)"]);
    assert_eq!(hear(&mut operations, 1, HostMessage::ExecSignal(Signal { number: 65 })), Vec::<String>::new());
    assert_eq!(hear(&mut operations, 1, HostMessage::ExecCancel), ["Cancel(1)"]);
    let credit = Credit { stdout_bytes: 7, stderr_bytes: 0 };
    assert_eq!(hear(&mut operations, 1, HostMessage::Credit(credit)), [format!("{:?}", Command::Credit(1, credit))]);
}

#[test]
fn a_program_longer_than_announced_is_refused_once_the_executor_has_let_go_of_it() {
    let mut operations = Operations::default();
    let (bytes, piece) = program();
    hear(&mut operations, 1, start(bytes - 1));
    assert_eq!(hear(&mut operations, 1, piece.clone()), ["Abandon(1)"]);
    assert!(operations.greet().is_empty(), "the executor has not let go yet");
    let (op, message) = operations.finish(Finished { op: 1, terminal: None }).expect("it is refused now");
    assert_eq!(describe(&Effect::Send(op, message)), "1 refused BadRequest");
    assert_eq!(hear(&mut operations, 3, start(bytes)), ["3 begins"]);
}

#[test]
fn kinds_from_the_future_are_refused_once_and_skipped_for_the_connection() {
    let mut operations = Operations::default();
    assert_eq!(hear(&mut operations, 9, HostMessage::Unknown(Kind(0x77))), ["9 refused UnknownOperation"]);
    assert_eq!(hear(&mut operations, 9, HostMessage::Unknown(Kind(0x78))), Vec::<String>::new());
    assert_eq!(hear(&mut operations, 0, HostMessage::Unknown(Kind(0x77))), Vec::<String>::new());
}

#[test]
fn a_hello_answers_ours_or_asks_for_it() {
    let mut operations = Operations::default();
    operations.greet();
    assert_eq!(hear(&mut operations, 0, hello(GENERATION)), ["clock 5"]);
    assert_eq!(hear(&mut operations, 0, hello(GENERATION)), ["clock 5", "greet"], "somebody else took over the port");
    let other = operations.hear(0, hello(GENERATION + 1), Instant::now());
    assert_eq!(other.err(), Some(Violation::Generation(GENERATION + 1)));
}

#[test]
fn a_number_in_use_cannot_begin_again() {
    let mut operations = Operations::default();
    hear(&mut operations, 1, start(0));
    assert_eq!(operations.hear(1, start(0), Instant::now()).err(), Some(Violation::Number(1)));
    assert_eq!(operations.hear(0, start(0), Instant::now()).err(), Some(Violation::Number(0)));
}

#[test]
fn refusals_that_nobody_acknowledges_do_not_fill_the_memory() {
    let mut operations = Operations::default();
    hear(&mut operations, 1, start(0));
    for op in 2..500 {
        assert_eq!(hear(&mut operations, op, start(0)), [format!("{op} refused Busy")]);
    }
    assert!(operations.greet().len() < limits::MAX_OPERATIONS);
}
