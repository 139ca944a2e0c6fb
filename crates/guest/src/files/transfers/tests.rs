//! The table, beside a model of an honest worker, with hosts of both kinds.

use exec_sandbox_wire::{Change, Credit, FileChange, FileList, FileRead, FileSum, FileWrite, limits};
use proptest::prelude::*;

use super::*;

const WINDOW: u32 = limits::STREAM_WINDOW_BYTES;

fn write() -> HostMessage {
    HostMessage::FileWrite(FileWrite { path: b"file".to_vec(), ..FileWrite::default() })
}

fn read() -> HostMessage {
    HostMessage::FileRead(FileRead { path: b"file".to_vec() })
}

fn data(bytes: u32) -> HostMessage {
    HostMessage::FileData(vec![0; bytes as usize].into())
}

fn credit(data_bytes: u32) -> HostMessage {
    HostMessage::Credit(Credit { data_bytes, ..Credit::default() })
}

fn end() -> HostMessage {
    HostMessage::FileEnd(FileSum::default())
}

fn begin(transfers: &mut Transfers, op: u32, message: HostMessage) -> Gate {
    match transfers.begin(op, message).expect("there is room") {
        Some(Job::Write(_, _, gate) | Job::Read(_, _, gate) | Job::List(_, _, gate)) => gate,
        Some(Job::Change(..)) => Gate::default(),
        other => panic!("it does not begin: {other:?}"),
    }
}

#[test]
fn a_host_may_send_what_was_granted_and_not_a_byte_more() {
    let mut transfers = Transfers::default();
    let gate = begin(&mut transfers, 1, write());
    assert!(matches!(transfers.hear(1, data(WINDOW)), Ok(Some(Job::Data(1, _)))));
    assert!(matches!(transfers.hear(1, data(0)), Ok(None)), "nothing is no job");
    assert_eq!(transfers.hear(1, data(1)).err(), Some(TransferError::Data { bytes: 1, granted: 0 }));
    gate.grant(5).expect("it was taken");
    assert!(matches!(transfers.hear(1, data(5)), Ok(Some(_))));
}

#[test]
fn a_grant_beyond_the_window_and_one_for_nothing_are_no_honest_hosts() {
    let mut transfers = Transfers::default();
    let gate = begin(&mut transfers, 1, read());
    assert!(matches!(transfers.hear(1, credit(1)), Err(TransferError::Credit { .. })));
    assert_eq!(gate.take(7), 7);
    assert!(matches!(transfers.hear(1, credit(7)), Ok(Some(Job::More(1)))));
    begin(&mut transfers, 2, write());
    begin(&mut transfers, 3, HostMessage::FileChange(FileChange { change: Some(Change::MakeDirectory(vec![])) }));
    for op in [2, 3] {
        assert!(matches!(transfers.hear(op, credit(1)), Err(TransferError::Credit { .. })), "{op}");
        assert!(matches!(transfers.hear(op, credit(0)), Ok(None)), "{op}");
    }
}

#[test]
fn bytes_for_what_takes_none_and_a_second_end_are_no_honest_hosts() {
    let mut transfers = Transfers::default();
    begin(&mut transfers, 1, read());
    begin(&mut transfers, 2, write());
    assert!(matches!(transfers.hear(2, end()), Ok(Some(Job::End(2, _)))));
    for op in [1, 2] {
        assert!(matches!(transfers.hear(op, data(1)), Err(TransferError::Data { .. })), "{op}");
        assert_eq!(transfers.hear(op, end()).err(), Some(TransferError::End), "{op}");
    }
}

#[test]
fn one_more_than_can_be_under_way_is_refused_until_one_is_over() {
    let mut transfers = Transfers::default();
    for op in 1..=16 {
        begin(&mut transfers, op, HostMessage::FileList(FileList::default()));
    }
    let refused = transfers.begin(17, read()).expect_err("there is no room");
    assert_eq!(refused.reason(), Refusal::Busy);
    let over = GuestMessage::FileDone(FileSum::default());
    assert_eq!(transfers.finish(4, over.clone()), Some(over.clone()));
    assert_eq!(transfers.finish(4, over), None, "it is over once");
    begin(&mut transfers, 17, read());
}

#[derive(Clone, Debug)]
enum Step {
    Begin(u32, bool),
    Data(u32, u32),
    Credit(u32, u32),
    End(u32),
    Cancel(u32),
    /// The worker sends or grants so much.
    Work(u32, u32),
    Over(u32),
    Lose,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let op = || 1_u32..20;
    let step = prop_oneof![
        4 => (op(), any::<bool>()).prop_map(|(op, writes)| Step::Begin(op, writes)),
        4 => (op(), 0_u32..200_000).prop_map(|(op, bytes)| Step::Data(op, bytes)),
        4 => (op(), 0_u32..200_000).prop_map(|(op, bytes)| Step::Credit(op, bytes)),
        1 => op().prop_map(Step::End),
        1 => op().prop_map(Step::Cancel),
        4 => (op(), 0_u32..200_000).prop_map(|(op, bytes)| Step::Work(op, bytes)),
        2 => op().prop_map(Step::Over),
        1 => Just(Step::Lose),
    ];
    prop::collection::vec(step, 1..80)
}

/// A transfer as the model sees it: how much is on its way to the side that does not grant.
#[derive(Debug)]
struct Model {
    writes: bool,
    ended: bool,
    in_flight: u32,
    gate: Gate,
}

proptest! {
    #[test]
    fn no_host_puts_more_than_a_window_of_a_transfer_on_its_way_and_an_honest_one_is_never_refused(steps in steps()) {
        let (mut transfers, mut model) = (Transfers::default(), BTreeMap::<u32, Model>::new());
        for step in steps {
            match step {
                Step::Begin(op, writes) if !model.contains_key(&op) => {
                    match transfers.begin(op, if writes { write() } else { read() }) {
                        Ok(Some(Job::Write(_, _, gate) | Job::Read(_, _, gate))) => {
                            model.insert(op, Model { writes, ended: false, in_flight: 0, gate });
                        }
                        Ok(other) => prop_assert!(false, "{other:?}"),
                        Err(_) => prop_assert_eq!(model.len(), MAX_TRANSFERS),
                    }
                }
                Step::Data(op, bytes) => {
                    let heard = transfers.hear(op, data(bytes));
                    match model.get_mut(&op) {
                        None => prop_assert!(matches!(heard, Ok(None))),
                        Some(one) => {
                            let honest = one.writes && !one.ended && one.in_flight + bytes <= WINDOW;
                            prop_assert_eq!(heard.is_ok(), honest);
                            // One that breaks the contract is not listened to again.
                            if !honest { break }
                            prop_assert_eq!(matches!(heard, Ok(Some(_))), bytes > 0);
                            one.in_flight += bytes;
                        }
                    }
                }
                Step::Credit(op, bytes) => {
                    let heard = transfers.hear(op, credit(bytes));
                    match model.get_mut(&op) {
                        None => prop_assert!(matches!(heard, Ok(None))),
                        Some(one) => {
                            let honest = bytes == 0 || !one.writes && bytes <= one.in_flight;
                            prop_assert_eq!(heard.is_ok(), honest);
                            if !honest { break }
                            one.in_flight -= if one.writes { 0 } else { bytes };
                        }
                    }
                }
                Step::End(op) => {
                    let heard = transfers.hear(op, end());
                    if let Some(one) = model.get_mut(&op) {
                        prop_assert_eq!(heard.is_ok(), one.writes && !one.ended);
                        if heard.is_err() { break }
                        one.ended = true;
                    }
                }
                Step::Cancel(op) => {
                    let told = matches!(transfers.hear(op, HostMessage::Cancel), Ok(Some(Job::Cancel(_))));
                    prop_assert_eq!(told, model.contains_key(&op));
                }
                Step::Work(op, bytes) => if let Some(one) = model.get_mut(&op) {
                    if one.writes {
                        let written = bytes.min(one.in_flight);
                        prop_assert!(one.gate.grant(written).is_ok());
                        one.in_flight -= written;
                    } else {
                        one.in_flight += u32::try_from(one.gate.take(bytes as usize)).expect("it is small");
                    }
                },
                Step::Over(op) => {
                    let told = transfers.finish(op, GuestMessage::FileDone(FileSum::default()));
                    prop_assert_eq!(told.is_some(), model.remove(&op).is_some());
                }
                Step::Lose => prop_assert_eq!(transfers.clear(), !std::mem::take(&mut model).is_empty()),
                Step::Begin(..) => {}
            }
            prop_assert!(model.values().all(|one| one.in_flight <= WINDOW));
            prop_assert!(model.keys().all(|op| transfers.has(*op)));
        }
    }
}
