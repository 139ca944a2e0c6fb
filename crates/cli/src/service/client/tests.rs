//! Tests of the client's end, against services that fail, lie and go at every point of the way.

use std::path::PathBuf;

use exec_sandbox::{Exit, Language};
use tokio::{io::AsyncReadExt as _, net::UnixListener};

use super::*;

/// A socket at which a test plays the service.
struct Stage {
    dir: tempfile::TempDir,
    listener: UnixListener,
}

/// One conversation of the pretended service.
struct Conversation {
    stream: UnixStream,
    inlet: Inlet,
}

impl Stage {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let listener = UnixListener::bind(dir.path().join("service")).expect("it is new");
        Self { dir, listener }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("service")
    }

    async fn taken(&self) -> Conversation {
        let (stream, _) = self.listener.accept().await.expect("a client comes");
        Conversation { stream, inlet: Inlet::new(MAX_REQUEST_BYTES) }
    }

    /// The next client, greeted as one of this program.
    async fn greeted(&self) -> Conversation {
        let mut conversation = self.taken().await;
        conversation.greet("here").await;
        conversation
    }
}

impl Conversation {
    async fn say(&mut self, kind: Kind, body: &[u8]) {
        frame::send(&mut self.stream, kind, body).await.expect("the client reads");
    }

    async fn greet(&mut self, program: &str) {
        let greeting = Greeting {
            identity: Identity::pretend(program),
            pid: 1,
            accelerator: "tcg".into(),
            pool: 1,
            memory_mib: 192,
        };
        self.say(Kind::Greeting, &message::body(&greeting).expect("it is JSON")).await;
    }

    /// What the client sends next; `None`: it has hung up, or ended its half.
    async fn heard(&mut self) -> Option<Frame> {
        self.inlet.next(&mut self.stream).await.expect("a client sends frames")
    }
}

fn own() -> Result<Identity, Alone> {
    Ok(Identity::pretend("here"))
}

fn request(code: &str) -> RunRequest {
    in_full(RunRequest::new(Language::Python, code), &SchedulerConfig::default())
}

fn outcome() -> Vec<u8> {
    let ms = |ms: u32| serde_json::json!({ "secs": 0, "nanos": ms * 1_000_000 });
    let timing = serde_json::json!({
        "origin": "Ready", "admission": ms(0), "prepare": ms(3), "gateway_start": null, "spawn": ms(0), "guest_wait": ms(0),
        "snapshot": null, "execute": ms(9), "teardown": ms(4), "total": ms(16), "first_output": ms(12),
    });
    let usage = serde_json::json!({
        "interpreter_start": null, "process": ms(8), "guest_cpu": null, "guest_memory_peak_bytes": 1, "qemu_cpu": null,
        "qemu_memory_peak_bytes": null,
    });
    let outcome = serde_json::json!({
        "exit": { "Code": 3 }, "timing": timing, "usage": usage, "network": null, "refusals": {}, "exposed_ports": [],
        "vm_id": "vm-1",
    });
    message::body(&outcome).expect("it is JSON")
}

/// Hands one run over while `service` plays its part.
async fn one<T>(stage: &Stage, service: impl Future<Output = T>) -> (Result<HandedOver, Alone>, T) {
    let socket = stage.socket();
    futures_util::future::join(hand_over_at(&socket, own, vec![request("1")]), service).await
}

/// The run that was handed over, to its end: what was written in pieces, and the result.
async fn ran(handed_over: &mut HandedOver) -> (Vec<Output>, Result<Outcome, Failure>) {
    let (pieces, mut arriving) = mpsc::channel(64);
    let remote = handed_over.runs[0].as_mut().expect("it was handed over");
    let result = remote.run(pieces).await;
    let mut all = Vec::new();
    while let Some(piece) = arriving.recv().await {
        all.push(piece);
    }
    (all, result)
}

fn assert_may_have_run(result: Result<Outcome, Failure>) {
    let failure = result.expect_err("it was lost");
    let told = failure.explain();
    assert_eq!((&*told.kind, failure.status()), ("outcome_unknown", Status::SANDBOX));
    assert!(told.message.contains("may have run") && told.remedy.is_some(), "{told:?}");
}

#[tokio::test]
async fn where_nobody_listens_a_run_is_the_processes_own_at_once() {
    let stage = Stage::new();
    let socket = stage.socket();
    // What a service leaves that was killed.
    let Stage { dir, listener } = stage;
    drop(listener);
    assert!(socket.exists());
    for socket in [socket, dir.path().join("nothing")] {
        let asked = || -> Result<Identity, Alone> { panic!("nobody needs to know who this is") };
        let alone = hand_over_at(&socket, asked, vec![request("1")]).await.expect_err("nobody is there");
        assert!(matches!(alone, Alone::NotUp), "{alone:?}");
    }
}

#[tokio::test]
async fn a_service_that_would_do_otherwise_gets_no_request() {
    let stage = Stage::new();
    let (alone, heard) = one(&stage, async {
        let mut conversation = stage.taken().await;
        conversation.greet("elsewhere").await;
        conversation.heard().await
    })
    .await;
    assert!(matches!(alone, Err(Alone::Differs(what)) if what.contains("build")));
    assert_eq!(heard, None);
}

#[tokio::test]
async fn a_service_that_is_silent_is_left() {
    let stage = Stage::new();
    let (alone, _silent) = one(&stage, stage.taken()).await;
    assert!(matches!(alone, Err(Alone::Lost(error)) if error.kind() == io::ErrorKind::TimedOut));
}

#[tokio::test]
async fn what_does_not_greet_as_a_service_gets_no_request() {
    for (kind, body) in [(Kind::Done, &b""[..]), (Kind::Greeting, b"{"), (Kind::Greeting, b"\xff")] {
        let stage = Stage::new();
        let (alone, heard) = one(&stage, async {
            let mut conversation = stage.taken().await;
            conversation.say(kind, body).await;
            conversation.heard().await
        })
        .await;
        assert!(matches!(alone, Err(Alone::Lost(_))), "{alone:?}");
        assert_eq!(heard, None);
    }
    let stage = Stage::new();
    let (alone, ()) = one(&stage, async { drop(stage.taken().await) }).await;
    assert!(matches!(alone, Err(Alone::Lost(_))), "{alone:?}");
}

#[tokio::test]
async fn a_run_is_handed_over_whole_and_comes_back_as_it_was_told() {
    let stage = Stage::new();
    let (handed_over, (mut conversation, asked)) = one(&stage, async {
        let mut conversation = stage.greeted().await;
        let asked = conversation.heard().await.expect("a request");
        (conversation, asked)
    })
    .await;
    let mut handed_over = handed_over.expect("it fits");
    assert_eq!((handed_over.accelerator.as_str(), handed_over.pid), ("tcg", 1));
    assert_eq!(asked.kind, Kind::Run);
    let asked: RunRequest = message::read(&asked.body).expect("it is a request");
    let config = SchedulerConfig::default();
    assert_eq!((asked.code.as_str(), asked.memory_mib), ("1", Some(config.default_memory_mib)));
    assert_eq!(asked.timeout, Some(config.default_timeout));

    for (kind, body) in [(Kind::BootLog, "boot"), (Kind::Stdout, "out"), (Kind::Stderr, "err"), (Kind::Stdout, "put")] {
        conversation.say(kind, body.as_bytes()).await;
    }
    conversation.say(Kind::Outcome, &outcome()).await;
    let (pieces, result) = ran(&mut handed_over).await;
    let said = |text: &'static str| bytes::Bytes::from_static(text.as_bytes());
    let expected = [
        Output::BootLog(said("boot")),
        Output::Stdout(said("out")),
        Output::Stderr(said("err")),
        Output::Stdout(said("put")),
    ];
    assert_eq!(pieces, expected);
    let outcome = result.expect("it ran");
    assert_eq!((outcome.exit, &outcome.stdout[..], &outcome.stderr[..]), (Exit::Code(3), &b"output"[..], &b"err"[..]));
    assert_eq!(outcome.timing.origin, exec_sandbox::Origin::Ready);
}

#[tokio::test]
async fn an_error_of_the_service_is_the_runs_own() {
    let stage = Stage::new();
    let (handed_over, ()) = one(&stage, async {
        let mut conversation = stage.greeted().await;
        conversation.heard().await.expect("a request");
        let told = Told::from(&Failure::usage("Code cannot be empty", "write some"));
        conversation.say(Kind::Failed, &message::body(&told).expect("it is JSON")).await;
    })
    .await;
    let failure = ran(&mut handed_over.expect("it fits")).await.1.expect_err("it was refused");
    assert_eq!((failure.explain().message.as_str(), failure.status()), ("Code cannot be empty", Status::USAGE));
}

#[tokio::test]
async fn a_service_that_is_lost_with_a_request_is_an_error_and_nothing_is_tried_again() {
    // Gone, gone within a frame, out of place, and no outcome.
    let ends: [&[u8]; 4] = [b"", &[0, 0, 0, 9, 5, b'x'], &[0, 0, 0, 0, 10], &[0, 0, 0, 2, 8, b'{', b'}']];
    for end in ends {
        let stage = Stage::new();
        let (handed_over, ()) = one(&stage, async {
            let mut conversation = stage.greeted().await;
            conversation.heard().await.expect("a request");
            conversation.say(Kind::Stdout, b"begun").await;
            conversation.stream.write_all(end).await.expect("the client reads");
        })
        .await;
        let (pieces, result) = ran(&mut handed_over.expect("it fits")).await;
        assert_eq!(pieces.len(), 1, "what came before is shown");
        assert_may_have_run(result);
        let again = timeout(Duration::from_millis(1), stage.listener.accept()).await;
        assert!(again.is_err(), "nobody comes a second time");
    }
}

#[tokio::test]
async fn a_service_that_sends_more_than_a_program_may_write_is_not_believed() {
    let stage = Stage::new();
    let (handed_over, mut conversation) = one(&stage, async {
        let mut conversation = stage.greeted().await;
        conversation.heard().await.expect("a request");
        conversation
    })
    .await;
    let mut handed_over = handed_over.expect("it fits");
    let flooding = async move {
        let piece = vec![0; MAX_ANSWER_BYTES];
        while frame::send(&mut conversation.stream, Kind::Stdout, &piece).await.is_ok() {}
    };
    let running = async {
        let result = ran(&mut handed_over).await.1;
        drop(handed_over);
        result
    };
    let (result, ()) = futures_util::future::join(running, flooding).await;
    assert_may_have_run(result);
}

#[tokio::test]
async fn a_run_that_is_called_off_is_waited_for() {
    let stage = Stage::new();
    let (handed_over, mut conversation) = one(&stage, async {
        let mut conversation = stage.greeted().await;
        conversation.heard().await.expect("a request");
        conversation
    })
    .await;
    let mut handed_over = handed_over.expect("it fits");
    let remote = handed_over.runs[0].as_mut().expect("it was handed over");
    let service = async {
        assert_eq!(conversation.stream.read(&mut [0]).await.expect("the client's half ends"), 0);
        conversation.say(Kind::Stdout, b"nobody's").await;
        conversation.say(Kind::Failed, &message::body(&Told::from(&Failure::BrokenPipe)).expect("it is JSON")).await;
        conversation
    };
    let ((), conversation) = futures_util::future::join(remote.call_off(), service).await;
    // Ended is ended: it is not waited for again.
    remote.call_off().await;
    drop(conversation);
}

#[tokio::test]
async fn several_runs_go_by_lines_of_their_own() {
    let stage = Stage::new();
    let (socket, requests) = (stage.socket(), ["1", "2", "3"].map(request).to_vec());
    let handing_over = hand_over_at(&socket, own, requests);
    let service = async {
        let mut conversations = Vec::new();
        for _ in 0..3 {
            conversations.push(stage.greeted().await);
        }
        let mut codes = Vec::new();
        for conversation in &mut conversations {
            let asked = conversation.heard().await.expect("a request");
            codes.push(message::read::<RunRequest>(&asked.body).expect("it is a request").code);
        }
        codes
    };
    let (handed_over, codes) = futures_util::future::join(handing_over, service).await;
    assert_eq!(codes, ["1", "2", "3"]);
    assert!(handed_over.expect("it fits").runs.iter().all(Option::is_some));
}
