//! A link that is closed and opened again, and agents that answer oddly.

use super::*;

#[tokio::test]
async fn a_program_outlives_the_connection_and_its_caller_misses_nothing() {
    let mut fixture = Fixture::new("exec sleep 1000").await;
    let execution = fixture.execute();
    let op = fixture.guest.program().await;
    fixture.guest.say(op, GuestMessage::Stdout("be".into())).await;
    fixture.guest.say(op, GuestMessage::Pong("".into())).await;
    fixture.vm.channel().close().await.expect("it lives");
    while fixture.guest.hear().await.is_some() {}
    fixture.vm.channel().close().await.expect("closing what is closed does nothing");
    let channel = fixture.vm.channel();
    let (opened, mut guest) = tokio::join!(channel.open(), async {
        let mut guest = Guest::accept(&fixture.listener).await;
        let points = guest.greet(BOOT_ID).await;
        assert_eq!(points.len(), 1);
        assert!(points[0].op == op && points[0].stdout_bytes <= 2, "{points:?}");
        let rest = &b"before and after"[usize::try_from(points[0].stdout_bytes).expect("it is small")..];
        guest.say(op, GuestMessage::Stdout(rest.into())).await;
        guest
    });
    opened.expect("the agent answers");
    guest.done(op, 16).await;
    let outcome = execution.await.expect("no panic").expect("it ran");
    assert_eq!(&outcome.stdout[..], b"before and after");
    // Nothing is resumed once nothing is under way.
    fixture.vm.channel().close().await.expect("it lives");
    let (opened, points) = tokio::join!(channel.open(), async {
        let mut guest = Guest::accept(&fixture.listener).await;
        (guest.greet(BOOT_ID).await, guest)
    });
    opened.expect("the agent answers");
    assert_eq!(points.0, []);
}

#[tokio::test]
async fn an_execution_opens_the_channel_that_it_needs() {
    let fixture = Fixture::new("exec sleep 1000").await;
    fixture.vm.channel().close().await.expect("it lives");
    let execution = fixture.execute();
    let mut guest = Guest::accept(&fixture.listener).await;
    assert_eq!(guest.greet(BOOT_ID).await, []);
    let op = guest.program().await;
    guest.done(op, 0).await;
    execution.await.expect("no panic").expect("it ran");
}

#[tokio::test]
async fn a_connection_without_a_clean_hello_is_given_up_for_another() {
    let fixture = Fixture::new("exec sleep 1000").await;
    fixture.vm.channel().close().await.expect("it lives");
    let execution = fixture.execute();
    // What was meant for an earlier host.
    let mut first = Guest::accept(&fixture.listener).await;
    first.say_bytes(&[0xff; 100]).await;
    assert!(first.hear().await.is_none(), "it is not listened to");
    let mut second = Guest::accept(&fixture.listener).await;
    second.greet(BOOT_ID).await;
    let op = second.program().await;
    second.done(op, 0).await;
    execution.await.expect("no panic").expect("it ran");
}

#[tokio::test]
async fn the_end_of_an_operation_that_nobody_waits_for_is_acknowledged() {
    let mut fixture = Fixture::new("exec sleep 1000").await;
    fixture.guest.done(77, 0).await;
    loop {
        if let (77, HostMessage::Ack) = fixture.guest.hear().await.expect("the host is there") {
            break;
        }
    }
}

#[tokio::test]
async fn a_guest_that_repeats_ends_and_does_not_read_makes_no_answers_pile_up() {
    let mut fixture = Fixture::new("exec sleep 1000").await;
    let execution = fixture.execute();
    let op = fixture.guest.program().await;
    for _ in 0..3 * MAX_UNASKED {
        fixture.guest.done(77, 0).await;
    }
    fixture.guest.done(op, 0).await;
    execution.await.expect("no panic").expect("it ran");
    let mut answers = 0;
    while fixture.guest.hear().await.expect("the host is there") != (op, HostMessage::Ack) {
        answers += 1;
    }
    assert_eq!(answers, MAX_UNASKED);
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_does_not_answer_costs_the_execution_and_not_the_vm() {
    let fixture = Fixture::new("exec sleep 1000").await;
    fixture.vm.channel().close().await.expect("it lives");
    let lost = error_of(fixture.execute()).await;
    assert!(lost.kind().is_transient(), "{lost}");
    let silent = fixture.vm.channel().open().await.expect_err("it says nothing");
    assert!(std::error::Error::source(&silent).is_some_and(|cause| cause.to_string().contains("nothing for 30 s")));
    assert!(fixture.vm.process().is_alive());
}

#[tokio::test]
async fn a_guest_that_has_started_anew_has_lost_what_ran_in_it() {
    let mut fixture = Fixture::new("exec sleep 1000").await;
    let execution = fixture.execute();
    fixture.guest.program().await;
    fixture.vm.channel().close().await.expect("it lives");
    let vm = Arc::clone(&fixture.vm);
    let opening = tokio::spawn(async move { vm.channel().open().await });
    let mut guest = Guest::accept(&fixture.listener).await;
    let hello = exec_sandbox_wire::Hello {
        generation: exec_sandbox_wire::GENERATION,
        boot_id: b"another".to_vec(),
        ..Default::default()
    };
    guest.say(CONNECTION_OP, GuestMessage::Hello(hello)).await;
    let lost = error_of(execution).await;
    assert_eq!(lost.kind(), ErrorKind::OutcomeUnknown);
    assert!(std::error::Error::source(&lost).is_some_and(|cause| cause.to_string().contains("started anew")));
    opening.await.expect("no panic").expect_err("the VM is gone");
    fixture.ends_by_itself().await;
}
