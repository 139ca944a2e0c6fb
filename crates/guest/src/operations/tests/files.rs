//! Operations on files beside an execution: numbers, ends and connections. What may be said of each is the table's of transfers.

use exec_sandbox_wire::{FileRead, FileSum, FileWrite};

use super::*;

fn write() -> HostMessage {
    HostMessage::FileWrite(FileWrite { path: b"file".to_vec(), ..FileWrite::default() })
}

fn read() -> HostMessage {
    HostMessage::FileRead(FileRead { path: b"file".to_vec() })
}

/// What follows from a message, by the kind of job.
fn jobs(operations: &mut Operations, op: u32, message: HostMessage) -> Vec<String> {
    let words = |effect: String| effect.split(['(', ',', ')']).take(2).collect::<Vec<_>>().join(" ");
    hear(operations, op, message).into_iter().map(words).collect()
}

fn over() -> GuestMessage {
    GuestMessage::FileDone(FileSum::default())
}

#[test]
fn files_are_written_and_read_beside_an_execution_and_each_is_told_its_own_end_once() {
    let mut operations = present();
    assert_eq!(hear(&mut operations, 1, start(9)), ["1 begins"]);
    assert_eq!(jobs(&mut operations, 2, write()), ["Write 2"]);
    assert_eq!(jobs(&mut operations, 3, read()), ["Read 3"]);
    assert_eq!(jobs(&mut operations, 2, HostMessage::FileData("x".into())), ["Data 2"]);
    assert_eq!(jobs(&mut operations, 3, HostMessage::Cancel), ["Cancel 3"]);
    assert_eq!(jobs(&mut operations, 2, HostMessage::FileEnd(FileSum::default())), ["End 2"]);
    assert_eq!(described(&operations.finish_file(2, over())), ["2 says FileDone(FileSum { size: 0, checksum: 0 })"]);
    assert_eq!(described(&operations.finish_file(2, over())), NOTHING);
    assert_eq!(hear(&mut operations, 1, HostMessage::Cancel), ["Cancel(1)"], "the execution hears its own");
}

#[test]
fn what_comes_for_a_file_operation_that_is_over_is_skipped() {
    let mut operations = present();
    jobs(&mut operations, 2, write());
    operations.finish_file(2, over());
    let late = [
        HostMessage::FileData("x".into()),
        HostMessage::FileEnd(FileSum::default()),
        HostMessage::Credit(Credit { data_bytes: 9, ..Credit::default() }),
        HostMessage::Cancel,
    ];
    for message in late {
        assert_eq!(hear(&mut operations, 2, message.clone()), NOTHING, "{message:?}");
    }
}

#[test]
fn executions_and_file_operations_share_the_numbers() {
    let mut operations = present();
    begin(&mut operations, 1);
    jobs(&mut operations, 2, read());
    for (op, message) in [(1, read()), (2, read()), (2, start(9)), (0, write())] {
        assert_eq!(operations.hear(op, message, Instant::now()).err(), Some(Violation::Number(op)), "{op}");
    }
}

#[test]
fn bytes_that_were_not_granted_are_no_honest_hosts() {
    let mut operations = present();
    jobs(&mut operations, 2, read());
    let violation = operations.hear(2, HostMessage::FileData("x".into()), Instant::now()).err();
    assert!(matches!(violation, Some(Violation::Transfer { op: 2, .. })), "{violation:?}");
}

#[test]
fn a_file_operation_ends_with_its_connection_and_is_not_told_to_the_next_one() {
    let mut operations = present();
    jobs(&mut operations, 2, write());
    operations.lose();
    assert!(operations.drop_files());
    assert!(!operations.drop_files(), "there are none any more");
    assert_eq!(come(&mut operations, vec![]), ["clock 5"]);
    assert_eq!(described(&operations.finish_file(2, over())), NOTHING);
    assert_eq!(jobs(&mut operations, 2, write()), ["Write 2"], "its number is free");
}

#[test]
fn a_host_that_has_not_answered_begins_nothing_of_which_it_could_not_be_told() {
    let mut operations = present();
    operations.greet();
    assert_eq!(hear(&mut operations, 2, read()), NOTHING);
}

#[test]
fn more_file_operations_than_can_be_under_way_are_refused_and_not_kept() {
    let mut operations = present();
    for op in 1..=16 {
        jobs(&mut operations, op, read());
    }
    assert_eq!(hear(&mut operations, 17, read()), ["17 refused Busy"]);
    assert_eq!(hear(&mut operations, 18, start(0)), ["18 begins", "18 has 0 bytes"]);
    assert_eq!(come(&mut operations, vec![]), ["clock 5"]);
}
