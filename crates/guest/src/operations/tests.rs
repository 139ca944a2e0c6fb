//! The table, as sequences of what a host may say and a connection may do.

mod files;
mod world;

use exec_sandbox_wire::{Done, Program, Signal};
use prost::Message as _;

use super::*;

const NOTHING: [String; 0] = [];

fn hello(resume: Vec<ResumePoint>) -> HostMessage {
    HostMessage::Hello(Hello { generation: GENERATION, unix_time_ns: 5, resume, ..Hello::default() })
}

fn start(program_bytes: u32) -> HostMessage {
    HostMessage::ExecStart(ExecStart { language: 1, timeout_ms: 1000, program_bytes, ..ExecStart::default() })
}

fn program() -> (u32, HostMessage) {
    let bytes = Program { code: b"pass".to_vec(), env: vec![] }.encode_to_vec();
    (u32::try_from(bytes.len()).expect("it is short"), HostMessage::ExecProgram(bytes.into()))
}

fn credit(stdout_bytes: u32) -> HostMessage {
    HostMessage::Credit(Credit { stdout_bytes, ..Credit::default() })
}

/// A host that has so many bytes of standard output, and of which so many may be sent.
fn point(op: u32, stdout_bytes: u64, stdout_credit: u32) -> ResumePoint {
    ResumePoint { op, stdout_bytes, stdout_credit, ..ResumePoint::default() }
}

/// Operations with a host that has just met this guest.
fn present() -> Operations {
    let mut operations = Operations::default();
    assert_eq!(come(&mut operations, vec![]), ["clock 5"]);
    operations
}

/// A host comes and says how far it has come.
fn come(operations: &mut Operations, resume: Vec<ResumePoint>) -> Vec<String> {
    assert!(operations.greet().is_none());
    hear(operations, 0, hello(resume))
}

/// Effects as text: what is compared below.
fn hear(operations: &mut Operations, op: u32, message: HostMessage) -> Vec<String> {
    described(&operations.hear(op, message, Instant::now()).expect("an honest host"))
}

fn described(effects: &[Effect]) -> Vec<String> {
    effects.iter().map(describe).collect()
}

fn describe(effect: &Effect) -> String {
    match effect {
        Effect::Send(frame) => {
            let op = frame.op;
            match GuestMessage::parse(frame.clone()).expect("the agent is honest") {
                GuestMessage::Refused(refused) => format!("{op} refused {:?}", refused.reason()),
                GuestMessage::Done(done) => format!("{op} done {}", done.exit_code),
                message => format!("{op} says {message:?}"),
            }
        }
        Effect::Tell(Command::Begin(op, ..)) => format!("{op} begins"),
        Effect::Tell(Command::Program(op, program)) => format!("{op} has {} bytes", program.code.len()),
        Effect::Tell(command) => format!("{command:?}"),
        Effect::File(job) => format!("{job:?}"),
        Effect::Clock(time) => format!("clock {time}"),
        Effect::Renew(seed) => format!("renew {seed}"),
        Effect::Network(network) => format!("network of {} bits", network.prefix_bits),
        Effect::Greet => "greet".to_owned(),
    }
}

fn finish(operations: &mut Operations, op: u32) -> Vec<String> {
    let terminal = Some(Terminal::Done(Done { exit_code: 3, ..Done::default() }));
    described(&operations.finish(Finished { op, terminal }))
}

/// Begins an execution; its streams, as the executor gets them.
fn begin(operations: &mut Operations, op: u32) -> Rc<Streams> {
    let effects = operations.hear(op, start(0), Instant::now()).expect("an honest host");
    match effects.into_iter().next() {
        Some(Effect::Tell(Command::Begin(_, _, streams, _))) => streams,
        other => panic!("it does not begin: {other:?}"),
    }
}

/// What the executor does while the program runs.
fn write(streams: &Streams, bytes: &[u8]) -> Vec<u8> {
    streams.stdout.push(bytes);
    std::iter::from_fn(|| streams.next_frame()).flat_map(|frame| frame.body).collect()
}

#[test]
fn an_execution_goes_from_its_start_to_its_acknowledgement() {
    let mut operations = present();
    let (bytes, piece) = program();
    assert_eq!(hear(&mut operations, 1, start(bytes)), ["1 begins"]);
    assert_eq!(hear(&mut operations, 1, piece), ["1 has 4 bytes"]);
    assert_eq!(finish(&mut operations, 1), ["1 done 3"]);
    assert_eq!(come(&mut operations, vec![]), ["clock 5", "1 done 3"], "it is said again until it is acknowledged");
    hear(&mut operations, 1, HostMessage::Ack);
    assert_eq!(come(&mut operations, vec![]), ["clock 5"]);
    assert_eq!(hear(&mut operations, 1, start(bytes)), ["1 begins"], "its number may be used again");
}

#[test]
fn a_second_execution_is_refused_while_one_is_under_way_and_not_after_it() {
    let mut operations = present();
    hear(&mut operations, 1, start(0));
    assert_eq!(hear(&mut operations, 2, start(0)), ["2 refused Busy"]);
    finish(&mut operations, 1);
    assert_eq!(hear(&mut operations, 3, start(0)), ["3 begins", "3 has 0 bytes"]);
}

#[test]
fn a_ping_is_answered_whatever_is_under_way() {
    let mut operations = present();
    hear(&mut operations, 1, start(9));
    assert_eq!(hear(&mut operations, 0, HostMessage::Ping("hi".into())), ["0 says Pong(b\"hi\")"]);
}

#[test]
fn what_comes_for_an_operation_that_is_over_is_ignored() {
    let mut operations = present();
    let (bytes, piece) = program();
    hear(&mut operations, 1, start(bytes));
    hear(&mut operations, 1, piece.clone());
    finish(&mut operations, 1);
    let late = [
        piece,
        HostMessage::Cancel,
        HostMessage::ExecSignal(Signal { number: 2 }),
        credit(0),
        HostMessage::Unknown(Kind(0x77)),
    ];
    for message in late {
        assert_eq!(hear(&mut operations, 1, message.clone()), NOTHING, "{message:?}");
    }
}

#[test]
fn an_execution_under_way_is_signalled_credited_and_cancelled() {
    let mut operations = present();
    hear(&mut operations, 1, start(0));
    assert_eq!(hear(&mut operations, 1, HostMessage::ExecSignal(Signal { number: 2 })), ["Signal(1, 2)"]);
    assert_eq!(hear(&mut operations, 1, HostMessage::ExecSignal(Signal { number: 65 })), NOTHING);
    assert_eq!(hear(&mut operations, 1, HostMessage::Cancel), ["Cancel(1)"]);
    assert_eq!(hear(&mut operations, 1, credit(0)), NOTHING, "the executor sees it in the streams");
}

#[test]
fn a_program_longer_than_announced_is_refused_once_the_executor_has_let_go_of_it() {
    let mut operations = present();
    let (bytes, piece) = program();
    hear(&mut operations, 1, start(bytes - 1));
    assert_eq!(hear(&mut operations, 1, piece.clone()), ["Abandon(1)"]);
    assert_eq!(come(&mut operations, vec![]), ["clock 5"], "the executor has not let go yet");
    let effects = operations.finish(Finished { op: 1, terminal: None });
    assert_eq!(described(&effects), ["1 refused BadRequest"]);
    assert_eq!(hear(&mut operations, 3, start(bytes)), ["3 begins"]);
}

#[test]
fn kinds_from_the_future_are_refused_once_and_skipped_for_the_connection() {
    let mut operations = present();
    assert_eq!(hear(&mut operations, 9, HostMessage::Unknown(Kind(0x77))), ["9 refused UnknownOperation"]);
    assert_eq!(hear(&mut operations, 9, HostMessage::Unknown(Kind(0x78))), NOTHING);
    assert_eq!(hear(&mut operations, 0, HostMessage::Unknown(Kind(0x77))), NOTHING);
}

#[test]
fn a_hello_answers_ours_or_asks_for_it() {
    let mut operations = Operations::default();
    operations.greet();
    assert_eq!(hear(&mut operations, 0, hello(vec![])), ["clock 5"]);
    assert_eq!(hear(&mut operations, 0, hello(vec![])), ["clock 5", "greet"], "somebody else took over the port");
    let other = HostMessage::Hello(Hello { generation: GENERATION + 1, ..Hello::default() });
    assert_eq!(operations.hear(0, other, Instant::now()).err(), Some(Violation::Generation(GENERATION + 1)));
}

#[test]
fn a_copy_of_a_machine_becomes_one_of_its_own_before_it_greets_and_its_interpreters_after_it_whatever_it_thought_of_its_host()
 {
    let seed = vec![0xa5; limits::SEED_BYTES];
    let copied = || {
        let hello = Hello { generation: GENERATION, unix_time_ns: 6, seed: seed.clone(), ..Hello::default() };
        HostMessage::Hello(hello)
    };
    let renew = format!("renew {}", "a5".repeat(limits::SEED_BYTES));
    let renewal = ["clock 6", &renew, "greet", "Reseed"];
    let mut greeted = Operations::default();
    greeted.greet();
    for (was, mut operations) in [("present", present()), ("greeted", greeted), ("away", Operations::default())] {
        assert_eq!(hear(&mut operations, 0, copied()), renewal, "{was}");
        assert!(operations.greet().is_none(), "{was}");
        assert_eq!(hear(&mut operations, 0, copied()), renewal, "{was}: a copy may be copied before it is met");
        operations.greet();
        assert_eq!(hear(&mut operations, 0, hello(vec![])), ["clock 5"], "{was}");
        assert_eq!(hear(&mut operations, 1, start(0)), ["1 begins", "1 has 0 bytes"], "{was}");
    }
}

#[test]
fn what_was_left_when_a_machine_was_copied_is_told_to_the_copys_host_as_to_any_that_knows_nothing_of_it() {
    let mut operations = present();
    let streams = begin(&mut operations, 1);
    assert_eq!(write(&streams, b"one "), b"one ");
    let seed = vec![1; limits::SEED_BYTES];
    let copied = HostMessage::Hello(Hello { generation: GENERATION, seed, ..Hello::default() });
    assert!(hear(&mut operations, 0, copied).ends_with(&["greet".to_owned(), "Reseed".to_owned()]));
    operations.greet();
    assert_eq!(write(&streams, b"two"), b"");
    assert_eq!(hear(&mut operations, 0, hello(vec![])), ["clock 5"]);
    assert_eq!(write(&streams, b""), b"one two");
    assert_eq!(finish(&mut operations, 1), ["1 done 3"]);
}

#[test]
fn a_seed_of_another_length_is_no_honest_hosts_and_changes_nothing() {
    let mut operations = present();
    for bytes in [1, limits::SEED_BYTES - 1, limits::SEED_BYTES + 1] {
        let seed = vec![1; bytes];
        let hello = HostMessage::Hello(Hello { generation: GENERATION, seed, ..Hello::default() });
        assert_eq!(operations.hear(0, hello, Instant::now()).err(), Some(Violation::Seed(bytes)));
    }
    assert_eq!(hear(&mut operations, 1, start(0)), ["1 begins", "1 has 0 bytes"]);
}

#[test]
fn a_network_is_set_up_before_anything_of_an_execution_is_said() {
    let mut operations = present();
    begin(&mut operations, 1);
    operations.lose();
    operations.greet();
    let network = Some(Network { prefix_bits: 24, ..Network::default() });
    let named =
        HostMessage::Hello(Hello { generation: GENERATION, resume: vec![point(2, 0, 9)], network, ..Hello::default() });
    let effects = hear(&mut operations, 0, named);
    assert_eq!(effects[..2], ["clock 0", "network of 24 bits"]);
    assert_eq!(effects[2..], ["2 refused UnknownOperation"]);
}

#[test]
fn a_number_in_use_cannot_begin_again() {
    let mut operations = present();
    hear(&mut operations, 1, start(0));
    assert_eq!(operations.hear(1, start(0), Instant::now()).err(), Some(Violation::Number(1)));
    assert_eq!(operations.hear(0, start(0), Instant::now()).err(), Some(Violation::Number(0)));
}

#[test]
fn refusals_that_nobody_acknowledges_do_not_fill_the_memory() {
    let mut operations = present();
    hear(&mut operations, 1, start(0));
    for op in 2..500 {
        assert_eq!(hear(&mut operations, op, start(0)), [format!("{op} refused Busy")]);
    }
    assert!(come(&mut operations, vec![]).len() <= limits::MAX_OPERATIONS);
}

#[test]
fn nothing_is_said_of_an_operation_before_a_host_has_said_how_far_it_has_come() {
    let mut operations = present();
    let streams = begin(&mut operations, 1);
    assert_eq!(write(&streams, b"one "), b"one ");
    operations.lose();
    assert_eq!(write(&streams, b"two "), b"", "nobody is there");
    operations.greet();
    assert_eq!(write(&streams, b"three"), b"", "it has not answered");
    assert_eq!(finish(&mut operations, 1), NOTHING);
    let again = hear(&mut operations, 0, hello(vec![point(1, 2, 100)]));
    assert_eq!(again, ["clock 5", "1 says Stdout(b\"e two three\")", "1 done 3"]);
}

#[test]
fn a_program_that_still_runs_goes_on_from_where_the_host_is() {
    let mut operations = present();
    let streams = begin(&mut operations, 1);
    assert_eq!(write(&streams, b"lost on the way"), b"lost on the way");
    operations.lose();
    assert_eq!(come(&mut operations, vec![point(1, 5, 7)]), ["clock 5"], "its frames are the executor's to send");
    assert_eq!(write(&streams, b"!"), b"on the ");
    assert_eq!(hear(&mut operations, 1, credit(3)), NOTHING);
    assert_eq!(write(&streams, b""), b"way");
    assert_eq!(finish(&mut operations, 1), NOTHING, "the end follows all output");
    assert_eq!(hear(&mut operations, 1, credit(3)), ["1 says Stdout(b\"!\")", "1 done 3"]);
}

#[test]
fn the_end_of_an_operation_follows_its_output_as_the_host_grants_for_it() {
    let mut operations = present();
    let streams = begin(&mut operations, 1);
    write(&streams, &vec![b'x'; limits::STREAM_WINDOW_BYTES as usize]);
    assert_eq!(write(&streams, b"the rest"), b"");
    assert_eq!(finish(&mut operations, 1), NOTHING);
    assert_eq!(hear(&mut operations, 2, start(0)), ["2 begins", "2 has 0 bytes"], "it holds up no other");
    assert_eq!(hear(&mut operations, 1, credit(4)), ["1 says Stdout(b\"the \")"]);
    assert_eq!(hear(&mut operations, 1, credit(9)), ["1 says Stdout(b\"rest\")", "1 done 3"]);
    assert_eq!(hear(&mut operations, 1, credit(9)), NOTHING, "it is said once");
}

#[test]
fn who_calls_off_what_is_over_hears_no_more_of_it_than_its_end() {
    let mut operations = present();
    let streams = begin(&mut operations, 1);
    streams.stdout.push(&[b'x'; 900_000]);
    while streams.next_frame().is_some() {}
    assert_eq!(finish(&mut operations, 1), NOTHING);
    assert_eq!(hear(&mut operations, 1, HostMessage::Cancel), ["1 done 3"]);
    assert_eq!(operations.kept_bytes(), 0);
    assert_eq!(streams.stdout.total(), 900_000);
    assert_eq!(hear(&mut operations, 1, HostMessage::Cancel), NOTHING);
    assert_eq!(come(&mut operations, vec![point(1, 0, 9)]), ["clock 5", "1 done 3"]);
}

#[test]
fn a_cancel_that_crosses_with_the_programs_end_still_drops_its_output() {
    let mut operations = present();
    let streams = begin(&mut operations, 1);
    streams.stdout.push(&[b'x'; 900_000]);
    while streams.next_frame().is_some() {}
    assert_eq!(hear(&mut operations, 1, HostMessage::Cancel), ["Cancel(1)"]);
    assert!(operations.kept_bytes() > 0, "it may still say farewell");
    assert_eq!(finish(&mut operations, 1), ["1 done 3"]);
    assert_eq!(operations.kept_bytes(), 0);
}

#[test]
fn a_program_that_was_not_whole_when_its_host_left_is_refused() {
    let mut operations = present();
    assert_eq!(hear(&mut operations, 1, start(9)), ["1 begins"]);
    assert!(matches!(operations.lose(), Some(Command::Abandon(1))));
    assert!(operations.lose().is_none());
    assert_eq!(described(&operations.finish(Finished { op: 1, terminal: None })), NOTHING);
    assert_eq!(come(&mut operations, vec![point(1, 0, 0)]), ["clock 5", "1 refused BadRequest"]);
    assert_eq!(hear(&mut operations, 2, start(9)), ["2 begins"]);
}

#[test]
fn a_start_that_was_lost_on_the_way_is_refused_to_the_host_that_waits_for_it() {
    let mut operations = present();
    assert_eq!(come(&mut operations, vec![point(4, 0, 9)]), ["clock 5", "4 refused UnknownOperation"]);
}

#[test]
fn a_host_that_lies_about_how_far_it_has_come_changes_nothing() {
    let mut operations = present();
    let streams = begin(&mut operations, 1);
    write(&streams, b"one two three");
    hear(&mut operations, 1, credit(4));
    finish(&mut operations, 1);
    let over = limits::STREAM_WINDOW_BYTES + 1;
    for lie in [vec![point(1, 14, 0)], vec![point(1, 3, 0)], vec![point(1, 5, over)], vec![point(1, 5, 9); 2]] {
        operations.greet();
        assert!(operations.hear(0, hello(lie.clone()), Instant::now()).is_err(), "{lie:?}");
        assert_eq!(hear(&mut operations, 1, credit(1)), NOTHING, "it has no say, and is told nothing");
    }
    let many = (0..=limits::MAX_OPERATIONS).map(|op| point(u32::try_from(op).expect("it is small"), 0, 0)).collect();
    operations.greet();
    assert_eq!(operations.hear(0, hello(many), Instant::now()).err(), Some(Violation::Points(65)));
    let honest = come(&mut operations, vec![point(1, 8, 100)]);
    assert_eq!(honest, ["clock 5", "1 says Stdout(b\"three\")", "1 done 3"]);
}

#[test]
fn a_grant_over_the_window_is_no_honest_hosts() {
    let mut operations = present();
    begin(&mut operations, 1);
    let violation = operations.hear(1, credit(1), Instant::now()).err();
    assert!(matches!(violation, Some(Violation::Credit { op: 1, .. })), "{violation:?}");
}

#[test]
fn a_grant_over_one_window_opens_the_other_no_wider() {
    let mut operations = present();
    let streams = begin(&mut operations, 1);
    streams.stdout.push(&vec![0; limits::STREAM_WINDOW_BYTES as usize + 7]);
    while streams.next_frame().is_some() {}
    let grant = Credit { stdout_bytes: 7, stderr_bytes: 1, ..Credit::default() };
    let violation = operations.hear(1, HostMessage::Credit(grant), Instant::now()).err();
    assert!(matches!(violation, Some(Violation::Credit { op: 1, .. })), "{violation:?}");
    assert_eq!(streams.next_frame(), None);
}

#[test]
fn a_host_that_acknowledges_nothing_is_refused_before_its_output_fills_the_memory() {
    let mut operations = present();
    for op in 1..=4 {
        let streams = begin(&mut operations, op);
        streams.stdout.push(&vec![0; 2_000_000]);
        streams.stderr.push(&vec![0; 2_000_000]);
        finish(&mut operations, op);
        assert!(operations.kept_bytes() <= MAX_KEPT_BYTES);
    }
    assert_eq!(hear(&mut operations, 5, start(0)), ["5 refused Busy"]);
    hear(&mut operations, 2, HostMessage::Ack);
    assert_eq!(hear(&mut operations, 6, start(0)), ["6 begins", "6 has 0 bytes"]);
}

#[test]
fn another_host_on_the_same_port_hears_nothing_of_what_the_first_one_began_until_it_is_greeted_and_answers() {
    let mut operations = present();
    let streams = begin(&mut operations, 1);
    assert_eq!(hear(&mut operations, 0, hello(vec![])), ["clock 5", "greet"]);
    operations.greet();
    assert_eq!(write(&streams, b"x"), b"");
    assert_eq!(hear(&mut operations, 0, hello(vec![point(1, 0, 1)])), ["clock 5"]);
    assert_eq!(write(&streams, b"y"), b"x");
}
