//! Sessions: what is kept, what ends them, and what goes on beside an execution.

use std::time::Duration;

use exec_sandbox::{
    ErrorKind, ExecRequest, Exit, FileType, Language, Output, Scheduler, Session, SessionRequest, WriteOptions,
};
use tokio::sync::mpsc;
use vmtests::{World, stderr, stdout};

async fn session(scheduler: &Scheduler, language: Language) -> Session {
    let session = scheduler.session(SessionRequest::new(language)).await;
    session.unwrap_or_else(|error| panic!("{error}: {:?}", error.remedy()))
}

async fn exec(session: &Session, code: &str) -> (Exit, String) {
    let outcome = session.exec(ExecRequest::new(code)).await.unwrap_or_else(|error| panic!("{code}: {error}"));
    (outcome.exit, stdout(&outcome) + &stderr(&outcome))
}

async fn read(session: &Session, path: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    session.read_file(path, &mut bytes).await.unwrap_or_else(|error| panic!("{path}: {error}"));
    bytes
}

/// Bytes that no compression and no pattern makes small, the same every time.
fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut noise = Vec::with_capacity(bytes + 8);
    while noise.len() < bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        noise.extend_from_slice(&state.to_le_bytes());
    }
    noise.truncate(bytes);
    noise
}

#[tokio::test]
async fn a_session_keeps_its_state_until_it_is_closed() {
    let world = World::new();
    let scheduler = world.scheduler().await;
    let session = session(&scheduler, Language::Python).await;
    assert_eq!(exec(&session, "x = 41").await, (Exit::Code(0), String::new()));
    assert_eq!(exec(&session, "print(x + 1)").await, (Exit::Code(0), "42\n".into()));
    assert_eq!(exec(&session, "raise SystemExit(3)").await.0, Exit::Code(3));
    assert_eq!(exec(&session, "print(x)").await, (Exit::Code(0), "41\n".into()));
    let refused = session.exec(ExecRequest::new("")).await.expect_err("it is blank");
    assert_eq!(refused.kind(), ErrorKind::InvalidCode);
    assert_eq!(exec(&session, "import os; os._exit(7)").await.0, Exit::Code(7));
    let (exit, said) = exec(&session, "print(x)").await;
    assert!(exit == Exit::Code(1) && said.contains("NameError"), "the interpreter is fresh: {said}");
    assert_eq!(session.exec_count(), 6, "what was refused was not sent");
    let id = session.vm_id().to_owned();
    session.close().await.expect("it dies");
    session.close().await.expect("it may be closed again");
    assert!(session.is_closed());
    let late = session.exec(ExecRequest::new("1")).await.expect_err("it is over");
    assert_eq!(late.kind(), ErrorKind::SessionClosed);
    assert!(late.to_string().contains("it was closed"), "{late}");
    world.assert_empty([id]);
}

#[tokio::test]
async fn what_is_killed_for_good_closes_the_session() {
    let world = World::new();
    let scheduler = world.scheduler().await;
    for code in ["kill -9 $$", "exit 137"] {
        let session = session(&scheduler, Language::Raw).await;
        assert_eq!(exec(&session, code).await.0.code(), 137, "{code}");
        assert!(session.is_closed());
        let late = session.exec(ExecRequest::new("true")).await.expect_err("it is over");
        assert_eq!(late.kind(), ErrorKind::SessionClosed);
        world.assert_empty([session.vm_id()]);
    }
}

#[tokio::test]
async fn a_session_that_nobody_uses_closes_after_its_time() {
    let world = World::new();
    let scheduler = world.scheduler().await;
    let request = SessionRequest { idle_timeout: Some(Duration::from_secs(10)), ..SessionRequest::new(Language::Raw) };
    let session = scheduler.session(request).await.expect("it starts");
    // Twelve seconds of work are no idleness.
    assert_eq!(exec(&session, "sleep 12").await.0, Exit::Code(0));
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(!session.is_closed());
    let begun = std::time::Instant::now();
    while !session.is_closed() {
        assert!(begun.elapsed() < Duration::from_secs(20), "it is idle for more than its time");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let late = session.exec(ExecRequest::new("true")).await.expect_err("it is over");
    assert!(late.kind() == ErrorKind::SessionClosed && late.to_string().contains("idle"), "{late}");
    scheduler.close().await.expect("nothing is left");
    world.assert_empty([session.vm_id()]);
}

#[tokio::test]
async fn an_execution_is_signalled_or_called_off_and_the_session_lives_on() {
    let world = World::new();
    let scheduler = world.scheduler().await;
    let session = session(&scheduler, Language::Python).await;
    // Nothing but sleep after the word, and short ones: Python loses an interrupt that meets it in a callback, such as those of an import, and
    // does not wake for one that comes when it is about to sleep.
    for (cancel, expected) in [(true, Exit::Cancelled), (false, Exit::Code(130))] {
        let execution =
            session.begin(ExecRequest::new("import time\nprint('begun')\nwhile True: time.sleep(0.05)")).await;
        let execution = execution.expect("it is valid");
        let control = execution.control();
        let (sender, mut output) = mpsc::channel(1);
        let (outcome, ()) = tokio::join!(session.settle(execution, Some(sender)), async {
            assert_eq!(output.recv().await, Some(Output::Stdout("begun\n".into())));
            session.ping().await.expect("the agent answers while a program runs");
            if cancel {
                control.cancel().await;
            } else {
                control.signal(2).await;
            }
            while output.recv().await.is_some() {}
        });
        assert_eq!(outcome.expect("it is an outcome").exit, expected);
        assert_eq!(exec(&session, "print('next')").await, (Exit::Code(0), "next\n".into()));
    }
    session.close().await.expect("it dies");
}

#[tokio::test]
async fn files_are_byte_exact_at_every_boundary() {
    let world = World::new();
    let scheduler = world.scheduler().await;
    let session = session(&scheduler, Language::Raw).await;
    let chunk = 64 * 1024;
    for size in [0, 1, chunk - 1, chunk, chunk + 1, 4 * chunk - 1, 4 * chunk, 4 * chunk + 1, 3_000_000] {
        let bytes = noise(size);
        let written = session.write_file("dir/ü 1", &bytes[..], WriteOptions::default()).await.expect("it is written");
        assert_eq!(written, size as u64);
        assert!(read(&session, "dir/ü 1").await == bytes, "{size} bytes come back changed");
    }
    let (_, said) = exec(&session, "wc -c < 'dir/ü 1'; stat -c '%a %U:%G' 'dir/ü 1' dir").await;
    assert_eq!(said, "3000000\n644 user:user\n755 user:user\n");
    let options = WriteOptions { mode: Some(0o755), size: Some(10) };
    session.write_file("run.sh", &b"echo it ran"[..10], options).await.expect("it is written");
    let listed = session.list_files("", 2).await.expect("it is a directory");
    let names: Vec<_> = listed.iter().map(|info| (info.name.as_str(), info.kind, info.size)).collect();
    let expected =
        [("dir", FileType::Directory, 0), ("dir/ü 1", FileType::File, 3_000_000), ("run.sh", FileType::File, 10)];
    assert_eq!(names, expected);
    assert_eq!(session.stat("run.sh").await.expect("it is there").mode, 0o755);
    session.rename("dir/ü 1", "dir/b").await.expect("it is there");
    session.make_dir("new/deep").await.expect("it can be made");
    session.remove_file("dir", true).await.expect("it is there");
    let gone = session.read_file("dir/b", &mut Vec::new()).await.expect_err("it is gone");
    assert_eq!(gone.kind(), ErrorKind::FileNotFound);
    for path in ["../etc/passwd", "/etc/passwd", "a\nb", ""] {
        let refused = session.write_file(path, &b"x"[..], WriteOptions::default()).await.expect_err(path);
        assert_eq!(refused.kind(), ErrorKind::InvalidPath);
    }
    assert_eq!(exec(&session, "ln -s /etc out; mkfifo fifo; ls").await.1, "fifo\nnew\nout\nrun.sh\n");
    for path in ["out/passwd", "out/new", "fifo"] {
        let refused = session.read_file(path, &mut Vec::new()).await.expect_err(path);
        assert_eq!(refused.kind(), ErrorKind::File, "{path}: {:?}", std::error::Error::source(&refused));
    }
    session.close().await.expect("it dies");
}

#[tokio::test]
async fn five_files_go_at_once_beside_an_execution() {
    let world = World::new();
    let scheduler = world.scheduler().await;
    let session = session(&scheduler, Language::Python).await;
    let execution =
        session.exec(ExecRequest::new("import time\nfor n in range(20):\n    print(n)\n    time.sleep(0.05)"));
    let transfers = [1, 2, 3, 4, 5].map(|number| {
        let session = &session;
        async move {
            let (path, bytes) = (format!("file-{number}"), noise(2_000_000 + number));
            session.write_file(&path, &bytes[..], WriteOptions::default()).await.expect("it is written");
            assert!(read(session, &path).await == bytes, "{path} comes back changed");
        }
    });
    let [a, b, c, d, e] = transfers;
    let (outcome, ..) = tokio::join!(execution, a, b, c, d, e);
    let expected: String = (0..20).map(|n| format!("{n}\n")).collect();
    assert_eq!(stdout(&outcome.expect("it runs")), expected);
    session.close().await.expect("it dies");
}

/// The most memory that belongs to processes and not to files, until a file says that it is enough. The agent's is in it, and its process is
/// not to be seen.
const WATCH: &str = "most=0
while [[ ! -e done ]]; do
    while read -r key kib _; do [[ $key == AnonPages: ]] && ((kib > most)) && most=$kib; done </proc/meminfo
    sleep 0.5
done
rm done
echo $most";

#[tokio::test]
async fn the_largest_file_goes_in_and_out_and_the_agent_stays_small() {
    let world = World::new();
    let scheduler = world.scheduler().await;
    let mut request = SessionRequest::new(Language::Raw);
    // Four tenths of it are the home directory.
    request.vm.memory_mib = Some(1400);
    let session = scheduler.session(request).await.expect("it starts");
    let largest = 500 << 20;
    let bytes = noise(largest);
    let watch = ExecRequest { timeout: Some(Duration::from_secs(300)), ..ExecRequest::new(WATCH) };
    let transfers = async {
        session.write_file("large", &bytes[..], WriteOptions::default()).await.expect("it is written");
        assert!(read(&session, "large").await == bytes, "500 MiB come back changed");
        session.write_file("done", &b""[..], WriteOptions::default()).await.expect("it is written");
    };
    let (watched, ()) = tokio::join!(session.exec(watch), transfers);
    let most_kib: u32 = stdout(&watched.expect("it runs")).trim().parse().expect("the kernel says it");
    assert!((100..8 * 1024).contains(&most_kib), "agent and shell have held {most_kib} KiB");
    let over = WriteOptions { size: Some(largest as u64 + 1), ..WriteOptions::default() };
    let refused = session.write_file("larger", &bytes[..], over).await.expect_err("it is too large");
    assert_eq!(refused.kind(), ErrorKind::InvalidArgument);
    assert_eq!(exec(&session, "ls").await.1, "large\n", "nothing else has been written");
    session.close().await.expect("it dies");
}
