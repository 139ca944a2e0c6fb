//! A QEMU whose monitor lies, floods or falls silent. It decides nothing, so what it says only explains an end.

use exec_sandbox::{ErrorKind, Exit};

use crate::world::{failure_of, outcome_of};

#[tokio::test]
async fn the_event_that_tells_of_the_end_is_in_the_error() {
    for (event, said) in [
        (r#"monitor {"event": "GUEST_PANICKED", "data": {"action": "pause"}}"#, "after a panic of the guest"),
        (r#"monitor {"event": "SHUTDOWN", "data": {"reason": "guest-reset"}}"#, "after a shutdown (guest-reset)"),
    ] {
        let failure = failure_of(&["greet", event, r#"monitor {"event": "STOP"}"#, "exit 0"]).await;
        failure.is_transient(ErrorKind::Vm, &["QEMU ended although nobody asked it to", said]);
        let failure = failure_of(&["greet", "accept", "hello", "await-exec", event, "exit 0"]).await;
        failure.is_final(ErrorKind::OutcomeUnknown, &["QEMU ended although nobody asked it to", said]);
    }
}

#[tokio::test]
async fn lines_that_are_no_messages_hide_no_event() {
    let nonsense = ["monitor nonsense", "monitor []", r#"monitor {"event": 1}"#, r#"monitor {"return": {}, "id": 77}"#];
    let panicked = [r#"monitor {"event": "GUEST_PANICKED"}"#, "monitor }", "exit 0"];
    let failure = failure_of(&[&nonsense[..], &["greet"], &nonsense, &panicked].concat()).await;
    failure.is_transient(ErrorKind::Vm, &["after a panic of the guest"]);
}

#[tokio::test]
async fn a_reason_without_end_or_that_steers_a_terminal_is_not_passed_on() {
    let event = format!(r#"monitor {{"event": "SHUTDOWN", "data": {{"reason": "\u001b[2J{}"}}}}"#, "x".repeat(9000));
    let failure = failure_of(&["greet", &event, "exit 0"]).await;
    failure.is_transient(ErrorKind::Vm, &[&format!("after a shutdown (\u{fffd}[2J{})", "x".repeat(56))]);
}

#[tokio::test]
async fn a_monitor_that_floods_closes_or_says_nothing_does_not_disturb_a_program() {
    for monitor in [&["monitor-flood 1000000"][..], &["close-monitor"], &["greet", "close-monitor"], &[]] {
        let program = ["accept", "hello", "await-exec", "stdout all", "done exit=5"];
        let outcome = outcome_of(&[monitor, &program].concat()).await;
        assert_eq!((outcome.exit, &outcome.stdout[..]), (Exit::Code(5), &b"all"[..]), "{monitor:?}");
    }
}
