//! File operations: beside an execution, with their callers, and without their connection.

use super::*;

#[tokio::test]
async fn files_go_in_and_out_beside_an_execution() {
    let mut fixture = Fixture::new("exec sleep 1000").await;
    let execution = fixture.execute();
    let running = fixture.guest.program().await;
    let (vm, content) = (Arc::clone(&fixture.vm), vec![7_u8; 400_000]);
    let expected = content.clone();
    let writing =
        tokio::spawn(async move { vm.write_file("dir/a", &content[..], crate::WriteOptions::default()).await });
    let mut received = Vec::new();
    let op = loop {
        if let (op, HostMessage::FileWrite(write)) = fixture.guest.hear().await.expect("the host is there") {
            assert_eq!(write.path, b"dir/a");
            break op;
        }
    };
    let sum = loop {
        match fixture.guest.hear().await.expect("the host is there") {
            (from, HostMessage::FileData(bytes)) if from == op => {
                received.extend_from_slice(&bytes);
                let data_bytes = u32::try_from(bytes.len()).expect("it is a chunk");
                let credit = exec_sandbox_wire::Credit { data_bytes, ..Default::default() };
                fixture.guest.say(op, GuestMessage::Credit(credit)).await;
            }
            (from, HostMessage::FileEnd(sum)) if from == op => break sum,
            _ => {}
        }
    };
    assert_eq!((received, sum.size), (expected, 400_000));
    fixture.guest.say(op, GuestMessage::FileDone(sum)).await;
    assert_eq!(writing.await.expect("no panic").expect("it is written"), 400_000);

    let vm = Arc::clone(&fixture.vm);
    let reading = tokio::spawn(async move {
        let mut bytes = Vec::new();
        vm.read_file("b", &mut bytes).await.map(|size| (size, bytes))
    });
    let op = loop {
        if let (op, HostMessage::FileRead(_)) = fixture.guest.hear().await.expect("the host is there") {
            break op;
        }
    };
    fixture.guest.say(op, GuestMessage::FileData("content".into())).await;
    let mut checksum = exec_sandbox_wire::Checksum::default();
    checksum.add(b"content");
    let sum = exec_sandbox_wire::FileSum { size: 7, checksum: checksum.value() };
    fixture.guest.say(op, GuestMessage::FileDone(sum)).await;
    assert_eq!(reading.await.expect("no panic").expect("it is read"), (7, b"content".to_vec()));

    fixture.guest.done(running, 0).await;
    execution.await.expect("no panic").expect("it ran");
}

#[tokio::test]
async fn a_source_that_fails_costs_the_file_and_not_the_vm() {
    let mut fixture = Fixture::new("exec sleep 1000").await;
    let content = broken();
    let failed = fixture.vm.write_file("a", content, crate::WriteOptions::default()).await.expect_err("it fails");
    assert_eq!(failed.kind(), ErrorKind::Host);
    loop {
        if let (_, HostMessage::Cancel) = fixture.guest.hear().await.expect("the host is there") {
            break;
        }
    }
    let execution = fixture.execute();
    let op = fixture.guest.program().await;
    fixture.guest.done(op, 0).await;
    execution.await.expect("no panic").expect("it ran");
}

#[tokio::test]
async fn a_list_that_is_too_long_in_bytes_is_called_off() {
    let mut fixture = Fixture::new("exec sleep 1000").await;
    let vm = Arc::clone(&fixture.vm);
    let listing = tokio::spawn(async move { vm.list_files("", 1).await });
    let op = loop {
        if let (op, HostMessage::FileList(_)) = fixture.guest.hear().await.expect("the host is there") {
            break op;
        }
    };
    // Each is worth a grant.
    let entry = exec_sandbox_wire::FileEntry { name: vec![b'x'; 128 << 10], ..Default::default() };
    let entries = exec_sandbox_wire::FileEntries { entries: vec![entry] };
    let mut said = 0;
    loop {
        fixture.guest.say(op, GuestMessage::FileEntries(entries.clone())).await;
        said += 1;
        assert!(said <= 32 * 8, "32 MiB are enough");
        if let (_, HostMessage::Cancel) = fixture.guest.hear().await.expect("the host is there") {
            break;
        }
    }
    let error = listing.await.expect("no panic").expect_err("it is too long");
    assert_eq!(error.kind(), ErrorKind::File);
    assert!(error.to_string().contains("32 MiB"), "{error}");
}

/// A source that cannot be read.
fn broken() -> impl tokio::io::AsyncRead + Unpin {
    struct Broken;
    impl tokio::io::AsyncRead for Broken {
        fn poll_read(
            self: std::pin::Pin<&mut Self>,
            _context: &mut std::task::Context<'_>,
            _buffer: &mut tokio::io::ReadBuf<'_>,
        ) -> std::task::Poll<io::Result<()>> {
            std::task::Poll::Ready(Err(io::Error::other("it is broken")))
        }
    }
    Broken
}

#[tokio::test]
async fn a_file_operation_ends_with_its_connection_and_a_refusal_is_told() {
    let mut fixture = Fixture::new("exec sleep 1000").await;
    let vm = Arc::clone(&fixture.vm);
    let removing = tokio::spawn(async move { vm.remove_file("a", false).await });
    let op = loop {
        if let (op, HostMessage::FileChange(_)) = fixture.guest.hear().await.expect("the host is there") {
            break op;
        }
    };
    let refused = exec_sandbox_wire::Refused {
        reason: exec_sandbox_wire::Refusal::NotFound.into(),
        detail: "a: no such file".into(),
    };
    fixture.guest.say(op, GuestMessage::Refused(refused)).await;
    let error = removing.await.expect("no panic").expect_err("it is not there");
    assert_eq!(error.kind(), ErrorKind::FileNotFound);
    assert!(std::error::Error::source(&error).is_some_and(|cause| cause.to_string().contains("a: no such file")));

    let vm = Arc::clone(&fixture.vm);
    let listing = tokio::spawn(async move { vm.list_files("", 1).await });
    while !matches!(fixture.guest.hear().await.expect("the host is there"), (_, HostMessage::FileList(_))) {}
    fixture.vm.channel().close().await.expect("it lives");
    assert_eq!(listing.await.expect("no panic").expect_err("it is cut off").kind(), ErrorKind::File);
}
