//! A server that speaks S3, with objects in a directory, behind credentials, on this machine only.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto::Builder,
};
use s3s::{
    S3Result,
    access::{S3Access, S3AccessContext},
    auth::SimpleAuth,
    s3_error,
    service::{S3Service, S3ServiceBuilder},
};
use s3s_fs::FileSystem;
use tempfile::TempDir;
use tokio::{net::TcpListener, task::JoinSet};

/// The bucket that is there.
pub(crate) const BUCKET: &str = "cache";

/// Who may read and write.
pub(crate) const ACCESS_KEY: &str = "an-id";

/// The secret of both.
pub(crate) const SECRET: &str = "a-secret";

/// Who may read only.
pub(crate) const READER: &str = "a-reader";

/// A server, until it is dropped.
pub(crate) struct Server {
    root: TempDir,
    pub(crate) address: SocketAddr,
    _tasks: JoinSet<()>,
}

struct Rights;

#[async_trait::async_trait]
impl S3Access for Rights {
    async fn check(&self, request: &mut S3AccessContext<'_>) -> S3Result<()> {
        let Some(credentials) = request.credentials() else { return Err(s3_error!(AccessDenied)) };
        let is_reading = ["GET", "HEAD"].contains(&request.method().as_str());
        if is_reading || credentials.access_key == ACCESS_KEY { Ok(()) } else { Err(s3_error!(AccessDenied)) }
    }
}

impl Server {
    pub(crate) async fn start() -> Self {
        let root = tempfile::tempdir().expect("a test has what it needs");
        std::fs::create_dir(root.path().join(BUCKET)).expect("a test has what it needs");
        let mut auth = SimpleAuth::new();
        for key in [ACCESS_KEY, READER] {
            auth.register(key.into(), SECRET.into());
        }
        let mut builder = S3ServiceBuilder::new(FileSystem::new(root.path()).expect("a test has what it needs"));
        builder.set_auth(auth);
        builder.set_access(Rights);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a test has what it needs");
        let address = listener.local_addr().expect("a test has what it needs");
        let mut tasks = JoinSet::new();
        tasks.spawn(serve(listener, builder.build()));
        Self { root, address, _tasks: tasks }
    }

    /// Where it keeps the objects whose names begin with `prefix`.
    pub(crate) fn objects(&self, prefix: &str) -> PathBuf {
        self.root.path().join(BUCKET).join(prefix)
    }

    /// Everything that it keeps.
    pub(crate) fn root(&self) -> &Path {
        self.root.path()
    }
}

async fn serve(listener: TcpListener, service: S3Service) {
    let mut connections = JoinSet::new();
    loop {
        let Ok((connection, _)) = listener.accept().await else { return };
        let service = service.clone();
        connections.spawn(async move {
            let http = Builder::new(TokioExecutor::new());
            // A client that goes away is no failure of the server.
            http.serve_connection(TokioIo::new(connection), service).await.unwrap_or_default();
        });
    }
}
