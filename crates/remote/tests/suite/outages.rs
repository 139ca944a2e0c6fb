//! Stores that are dead, slow, silent or not ours: nobody waits beyond the bounds, it is said once, and they come back.

use std::{
    error::Error,
    io::{self, Write},
    net::TcpListener,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use exec_sandbox_remote::{Fetch, FetchError, Remote, StoreError};
use tokio::io::AsyncReadExt as _;
use tracing_subscriber::fmt::MakeWriter;

use crate::{
    proxy::Mode,
    shelf::{Shelf, entry, fetch, fetch_after_rest, is_hit, names, noise},
};

/// Much longer than any bound here, much shorter than a test may take.
const GENEROUS: Duration = Duration::from_secs(8);

/// A rest that no test outlasts.
const LONG_REST_MS: u64 = 600_000;

/// What a server of others says of a bucket that is not there.
const NO_BUCKET: &str = "HTTP/1.1 404 Not Found\r\ncontent-type: application/xml\r\ncontent-length: 108\r\n\r\n\
    <?xml version=\"1.0\" encoding=\"UTF-8\"?><Error><Code>NoSuchBucket</Code><BucketName>cache</BucketName></Error>";

/// A bucket with an entry of 3 MB in it.
async fn filled() -> Shelf {
    let shelf = Shelf::bucket().await;
    shelf.fill(&entry(1), &[("ram", &noise(1, 3_000_000))]).await;
    shelf
}

fn store_error(fetched: Result<Fetch, FetchError>) -> StoreError {
    match fetched {
        Err(FetchError::Store { cause, .. }) => cause,
        other => panic!("the store has not failed: {other:?}"),
    }
}

fn chain(error: &StoreError) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// What is logged while it lasts.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

impl Log {
    /// Everything of this thread from now on, from information upwards.
    fn start(&self) -> tracing::subscriber::DefaultGuard {
        let subscriber = tracing_subscriber::fmt()
            .with_writer(self.clone())
            .with_ansi(false)
            .with_max_level(tracing::Level::INFO)
            .finish();
        tracing::subscriber::set_default(subscriber)
    }

    fn lines(&self, level: &str) -> Vec<String> {
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        let ours = |line: &&str| line.contains("exec_sandbox_remote") && line.contains(level);
        text.lines().filter(ours).map(str::to_owned).collect()
    }
}

#[tokio::test]
async fn a_silent_store_costs_a_run_seconds_once_and_then_nothing() {
    let shelf = filled().await.with(|bounds| bounds.rest_ms = LONG_REST_MS);
    shelf.proxy().set(Mode::Silent);
    let (remote, into) = (shelf.open(), tempfile::tempdir().unwrap());
    let start = Instant::now();
    let error = store_error(fetch(&remote, &entry(1), &["ram"], into.path()).await);
    assert!(matches!(error, StoreError::Silent(_)), "{error:?}");
    assert!(start.elapsed() < GENEROUS, "{:?} with a bound of 2 s", start.elapsed());

    let connections = shelf.proxy().connections();
    for _ in 0..1000 {
        assert!(matches!(fetch(&remote, &entry(1), &["ram"], into.path()).await, Ok(Fetch::Resting)));
    }
    assert_eq!(shelf.proxy().connections(), connections, "nothing was asked");
    let report = remote.report();
    assert_eq!((report.failed, report.rested, report.fetches_rest), (1, 1000, true));
    assert!(names(into.path()).is_empty());
}

#[tokio::test]
async fn a_store_that_nobody_listens_for_is_found_out_at_once() {
    let mut shelf = Shelf::bucket().await;
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    shelf.bucket_mut().endpoint = Some(format!("http://{nobody}"));
    let (remote, into) = (shelf.open(), tempfile::tempdir().unwrap());
    let start = Instant::now();
    let error = store_error(fetch(&remote, &entry(1), &["ram"], into.path()).await);
    assert!(matches!(error, StoreError::Failed(_)), "{error:?}");
    assert!(start.elapsed() < GENEROUS);
    assert!(matches!(fetch(&remote, &entry(1), &["ram"], into.path()).await, Ok(Fetch::Resting)));
}

#[tokio::test]
async fn a_server_that_dies_in_the_middle_leaves_nothing() {
    let shelf = filled().await;
    for most in [100, 2_000, 20_000, 1_500_000, 2_999_000] {
        shelf.proxy().set(Mode::CutAfter(most));
        let (remote, into) = (shelf.open(), tempfile::tempdir().unwrap());
        let error = store_error(fetch(&remote, &entry(1), &["ram"], into.path()).await);
        assert!(matches!(error, StoreError::Failed(_)), "after {most} bytes: {error:?}");
        assert!(names(into.path()).is_empty(), "after {most} bytes");
        assert!(remote.report().fetches_rest);
    }
}

#[tokio::test]
async fn a_connection_that_breaks_once_is_tried_again() {
    let shelf = filled().await;
    let (remote, into) = (shelf.open(), tempfile::tempdir().unwrap());
    // The first connection is idle when it is broken, which only its next use tells.
    let first = tempfile::tempdir().unwrap();
    assert!(is_hit(&fetch(&remote, &entry(1), &["ram"], first.path()).await));
    shelf.proxy().set(Mode::Pass);
    assert!(is_hit(&fetch(&remote, &entry(1), &["ram"], into.path()).await));
    assert_eq!(remote.report().failed, 0);
}

#[tokio::test]
async fn a_download_that_stalls_is_given_up() {
    let shelf = filled().await.with(|bounds| bounds.stall_ms = 300);
    shelf.proxy().set(Mode::StallAfter(1_000_000));
    let (remote, into) = (shelf.open(), tempfile::tempdir().unwrap());
    let start = Instant::now();
    let error = store_error(fetch(&remote, &entry(1), &["ram"], into.path()).await);
    assert!(matches!(error, StoreError::Stalled(_)), "{error:?}");
    assert!(start.elapsed() < GENEROUS);
    assert!(names(into.path()).is_empty());
}

#[tokio::test]
async fn a_download_that_drips_is_given_up_though_it_never_stalls() {
    let shelf = filled().await.with(|bounds| {
        bounds.stall_ms = 1_000;
        bounds.least_bytes_per_second = 1 << 30;
    });
    shelf.proxy().set(Mode::DripAfter(500_000));
    let (remote, into) = (shelf.open(), tempfile::tempdir().unwrap());
    let start = Instant::now();
    let error = store_error(fetch(&remote, &entry(1), &["ram"], into.path()).await);
    assert!(matches!(error, StoreError::TooSlow { announced, came, .. } if came < announced), "{error:?}");
    assert!(start.elapsed() < GENEROUS);
    assert!(names(into.path()).is_empty());
}

#[tokio::test]
async fn a_fetch_that_is_dropped_removes_what_it_has_made() {
    let shelf = filled().await;
    shelf.proxy().set(Mode::StallAfter(1_000_000));
    let (remote, into) = (shelf.open(), tempfile::tempdir().unwrap());
    {
        let (name, files) = (entry(1), ["ram"]);
        let mut fetching = Box::pin(fetch(&remote, &name, &files, into.path()));
        // It has begun: its file is there.
        while names(into.path()).is_empty() {
            tokio::select! {
                done = &mut fetching => panic!("{done:?}"),
                () = tokio::time::sleep(Duration::from_millis(5)) => {}
            }
        }
    }
    while !names(into.path()).is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(!remote.report().fetches_rest, "nobody has said that it failed");
}

#[tokio::test]
async fn an_outage_is_said_once_and_its_end_once() {
    let shelf = filled().await.with(|bounds| bounds.rest_ms = 20);
    let (remote, into, log) = (shelf.open(), tempfile::tempdir().unwrap(), Log::default());
    let _logging = log.start();
    shelf.proxy().set(Mode::Dead);
    // Down, resting, still down, resting longer, still down.
    for _ in 0..3 {
        let fetched = fetch_after_rest(&remote, &entry(1), &["ram"], into.path()).await;
        assert!(matches!(store_error(fetched), StoreError::Failed(_)));
    }
    assert_eq!(remote.report().failed, 3);
    assert_eq!(log.lines("WARN").len(), 1, "{:?}", log.lines("WARN"));
    assert!(log.lines("INFO").is_empty());

    shelf.proxy().set(Mode::Pass);
    assert!(is_hit(&fetch_after_rest(&remote, &entry(1), &["ram"], into.path()).await));
    let [warned, back] = [log.lines("WARN"), log.lines("INFO")];
    assert_eq!((warned.len(), back.len()), (1, 1), "{warned:?} {back:?}");
    assert!(warned[0].contains(r#"the bucket "cache" at http://127.0.0.1"#), "{}", warned[0]);
    assert!(back[0].contains("the remote cache is back"), "{}", back[0]);
    assert!(!remote.report().fetches_rest);
}

#[tokio::test]
async fn wrong_credentials_say_what_to_check() {
    let mut shelf = filled().await;
    shelf.secret = "another-secret";
    let (remote, into) = (shelf.open(), tempfile::tempdir().unwrap());
    let error = store_error(fetch(&remote, &entry(1), &["ram"], into.path()).await);
    assert!(matches!(error, StoreError::Denied { .. }), "{error:?}");
    assert_eq!(
        error.to_string(),
        "access is denied: check that AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY are right, and may get, put and list the \
         bucket's objects"
    );
    assert!(chain(&error).contains("SignatureDoesNotMatch"), "{}", chain(&error));
    assert!(!chain(&error).contains("another-secret"));
    assert!(matches!(fetch(&remote, &entry(1), &["ram"], into.path()).await, Ok(Fetch::Resting)));
}

#[tokio::test]
async fn a_machine_without_credentials_is_told_so_within_the_bound() {
    let shelf = Shelf::bucket().await;
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let metadata = format!("http://{nobody}");
    let variables = |name: &str| (name == "AWS_EC2_METADATA_SERVICE_ENDPOINT").then(|| metadata.clone());
    let (remote, into) = (Remote::open_with(&shelf.config, &variables).unwrap(), tempfile::tempdir().unwrap());
    let start = Instant::now();
    let error = store_error(fetch(&remote, &entry(1), &["ram"], into.path()).await);
    assert!(matches!(error, StoreError::NoCredentials { .. }), "{error:?}");
    assert!(error.to_string().contains("AWS_ACCESS_KEY_ID"), "{error}");
    assert!(start.elapsed() < GENEROUS);
    assert_eq!(shelf.proxy().connections(), 0, "the store was not asked");
}

#[tokio::test]
async fn a_bucket_that_is_not_there_is_no_empty_cache() {
    let shelf = Shelf::bucket().await;
    // The server of these tests answers as if the object alone were missing; others say it so.
    shelf.proxy().set(Mode::Answer(NO_BUCKET));
    let (remote, into) = (shelf.open(), tempfile::tempdir().unwrap());
    let error = store_error(fetch(&remote, &entry(1), &["ram"], into.path()).await);
    assert!(matches!(error, StoreError::NoBucket(_)), "{error:?}");
}

#[tokio::test]
async fn a_directory_that_is_not_mounted_is_no_empty_cache() {
    let shelf = Shelf::directory();
    let (remote, into) = (shelf.open(), tempfile::tempdir().unwrap());
    std::fs::remove_dir(&shelf.objects).unwrap();
    let error = store_error(fetch(&remote, &entry(1), &["ram"], into.path()).await);
    assert!(matches!(error, StoreError::NoDirectory), "{error:?}");
    assert_eq!(remote.offer(crate::shelf::offer(&entry(1), &[("ram", b"r")])), exec_sandbox_remote::Offered::Queued);
    assert_eq!(remote.drain(GENEROUS).await.given_up, []);
    assert_eq!(remote.report().uploads_failed, 1);
    assert!(!shelf.objects.exists(), "it was not made");
}

/// Whether a fetch ended as it should.
type IsRight = fn(&Result<Fetch, FetchError>) -> bool;

#[tokio::test]
async fn an_error_of_the_server_is_its_failure_and_not_found_is_none() {
    let answers: [(&str, IsRight); 5] = [
        ("HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\n\r\n", |it| failed(it)),
        ("HTTP/1.1 503 Slow Down\r\ncontent-length: 0\r\n\r\n", |it| failed(it)),
        ("HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n", |it| {
            matches!(it, Err(FetchError::Store { cause: StoreError::Denied { .. }, .. }))
        }),
        ("HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n", |it| matches!(it, Ok(Fetch::Absent))),
        // Where it leads, nobody has allowed credentials to go.
        ("HTTP/1.1 307 Temporary\r\nlocation: http://127.0.0.1:1/elsewhere\r\ncontent-length: 0\r\n\r\n", |it| {
            failed(it)
        }),
    ];
    for (answer, is_right) in answers {
        let shelf = Shelf::bucket().await;
        shelf.proxy().set(Mode::Answer(answer));
        let (remote, into) = (shelf.open(), tempfile::tempdir().unwrap());
        let fetched = fetch(&remote, &entry(1), &["ram"], into.path()).await;
        assert!(is_right(&fetched), "{answer}: {fetched:?}");
    }
}

fn failed(fetched: &Result<Fetch, FetchError>) -> bool {
    matches!(fetched, Err(FetchError::Store { cause: StoreError::Failed(_), .. }))
}

#[tokio::test]
async fn an_endpoint_with_tls_is_spoken_to_in_tls_alone() {
    let mut shelf = Shelf::bucket().await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    shelf.bucket_mut().endpoint = Some(format!("https://{}", listener.local_addr().unwrap()));
    let (remote, into) = (shelf.open(), tempfile::tempdir().unwrap());
    let hello = async {
        let (mut client, _) = listener.accept().await.unwrap();
        let mut record = [0; 6];
        client.read_exact(&mut record).await.unwrap();
        record
    };
    let name = entry(1);
    let (fetched, record) = tokio::join!(fetch(&remote, &name, &["ram"], into.path()), hello);
    assert!(fetched.is_err());
    // A handshake record whose message is a ClientHello.
    assert_eq!((record[0], record[1], record[5]), (22, 3, 1));
}
