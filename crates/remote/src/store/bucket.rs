//! A bucket of a store that speaks S3.
//!
//! Owns the client: its TLS, its credentials, one quick second try. Puts are unconditional, because some servers ignore conditions without a word;
//! what is put twice is the same twice.

use std::{fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{StreamExt as _, stream::BoxStream};
use object_store::{
    BackoffConfig, ClientOptions, MultipartUpload, ObjectStoreExt as _, RetryConfig,
    aws::AmazonS3,
    client::{HttpClient, HttpConnector},
    path::Path,
};
use reqwest::{Client, redirect};
use rustls::{ClientConfig, RootCertStore, client::danger::ServerCertVerifier, crypto::ring};
use rustls_platform_verifier::Verifier;
use tokio::time::{Instant, timeout, timeout_at};

use super::{
    Cause, StoreError, Variables,
    credentials::{CredentialsError, Found, find},
};
use crate::config::{self, Bounds};

/// Tries after the first. A store that fails twice within moments is left alone.
const RETRIES: usize = 1;

/// Pause before the second try.
const PAUSE: Duration = Duration::from_millis(100);

/// By how much a further pause may be longer. The client draws from what lies between, and there has to be something.
const GROWTH: f64 = 2.0;

/// What is read or put that began longer ago is not tried again: somebody waits for it.
const TRY_AGAIN_WITHIN: Duration = Duration::from_secs(10);

pub(crate) struct Bucket {
    store: AmazonS3,
    prefix: String,
    description: String,
    credentials: &'static str,
}

pub(crate) struct Body {
    stream: BoxStream<'static, object_store::Result<Bytes>>,
    credentials: &'static str,
}

pub(crate) struct Parts {
    upload: Box<dyn MultipartUpload>,
    credentials: &'static str,
}

/// Gives the client of this file to whatever of the store's wants to connect.
#[derive(Debug)]
struct Connector(Client);

impl HttpConnector for Connector {
    fn connect(&self, _options: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.0.clone()))
    }
}

impl fmt::Debug for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The client holds credentials.
        f.debug_tuple("Bucket").field(&self.description).finish()
    }
}

impl Bucket {
    pub(crate) fn open(
        bucket: &config::Bucket,
        bounds: &Bounds,
        variables: Variables<'_>,
    ) -> Result<Self, CredentialsError> {
        let Found { builder, endpoint, region, credentials } = find(bucket, variables)?;
        let client = client(endpoint.as_ref(), bounds).map_err(CredentialsError::Client)?;
        let store = builder
            .with_http_connector(Connector(client))
            .with_retry(RetryConfig {
                backoff: BackoffConfig { init_backoff: PAUSE, max_backoff: PAUSE, base: GROWTH },
                max_retries: RETRIES,
                retry_timeout: TRY_AGAIN_WITHIN,
            })
            .build()
            .map_err(|error| CredentialsError::Client(error.into()))?;
        let at = endpoint.map_or_else(|| format!("in {region}"), |endpoint| format!("at {endpoint}"));
        let mut prefix = bucket.prefix.trim_end_matches('/').to_owned();
        if !prefix.is_empty() {
            prefix.push('/');
        }
        Ok(Self { store, prefix, description: format!("the bucket {:?} {at}", bucket.name), credentials })
    }

    pub(crate) fn describe(&self) -> String {
        self.description.clone()
    }

    pub(crate) async fn get(&self, name: &str, patience: Duration) -> Result<Option<(u64, Body)>, StoreError> {
        let path = self.path(name);
        let found = self.ask(patience, self.store.get(&path)).await?;
        Ok(found.map(|object| {
            let stored_bytes = object.meta.size;
            (stored_bytes, Body { stream: object.into_stream(), credentials: self.credentials })
        }))
    }

    pub(crate) async fn length(&self, name: &str, patience: Duration) -> Result<Option<u64>, StoreError> {
        let path = self.path(name);
        Ok(self.ask(patience, self.store.head(&path)).await?.map(|meta| meta.size))
    }

    pub(crate) async fn put(&self, name: &str, bytes: Bytes, patience: Duration) -> Result<(), StoreError> {
        let path = self.path(name);
        let done = self.ask(patience, self.store.put(&path, bytes.into())).await?;
        done.map(|_| ()).ok_or_else(not_found)
    }

    pub(crate) async fn begin(&self, name: &str, patience: Duration) -> Result<Parts, StoreError> {
        let path = self.path(name);
        let upload = self.ask(patience, self.store.put_multipart(&path)).await?.ok_or_else(not_found)?;
        Ok(Parts { upload, credentials: self.credentials })
    }

    fn path(&self, name: &str) -> Path {
        Path::from(format!("{}{name}", self.prefix))
    }

    /// The answer to a question, if it comes in time. Credentials are had first, so that their lack is told from a silent store.
    async fn ask<T>(
        &self,
        patience: Duration,
        question: impl Future<Output = object_store::Result<T>>,
    ) -> Result<Option<T>, StoreError> {
        let deadline = Instant::now() + patience;
        let none = |cause| StoreError::NoCredentials { credentials: self.credentials, cause };
        match timeout_at(deadline, self.store.credentials().get_credential()).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return Err(none(Some(error.into()))),
            Err(_) => return Err(none(None)),
        }
        match timeout_at(deadline, question).await {
            Ok(Ok(answer)) => Ok(Some(answer)),
            Ok(Err(error)) => absent(error, self.credentials),
            Err(_) => Err(StoreError::Silent(patience)),
        }
    }
}

impl Body {
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, StoreError> {
        self.stream.next().await.transpose().map_err(|error| trouble(error, self.credentials))
    }
}

impl Parts {
    pub(crate) async fn add(&mut self, bytes: Bytes, patience: Duration) -> Result<(), StoreError> {
        let done = timeout(patience, self.upload.put_part(bytes.into())).await;
        done.map_err(|_| StoreError::Silent(patience))?.map_err(|error| trouble(error, self.credentials))
    }

    pub(crate) async fn finish(&mut self, patience: Duration) -> Result<(), StoreError> {
        let done = timeout(patience, self.upload.complete()).await;
        done.map_err(|_| StoreError::Silent(patience))?.map(|_| ()).map_err(|error| trouble(error, self.credentials))
    }

    pub(crate) async fn abort(&mut self, patience: Duration) {
        // What stays behind is removed by the bucket's own rules; nothing names it.
        if let Ok(Err(error)) = timeout(patience, self.upload.abort()).await {
            tracing::debug!(%error, "an upload could not be taken back");
        }
    }
}

/// A client whose TLS is this library's own, whatever the process uses elsewhere.
fn client(endpoint: Option<&reqwest::Url>, bounds: &Bounds) -> Result<Client, Cause> {
    let is_http = endpoint.is_some_and(|endpoint| endpoint.scheme() == "http");
    let provider = Arc::new(ring::default_provider());
    let config = ClientConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions()?;
    let config = match Verifier::new(provider) {
        Ok(verifier) => {
            let verifier: Arc<dyn ServerCertVerifier> = Arc::new(verifier);
            config.dangerous().with_custom_certificate_verifier(verifier)
        }
        // A system without certificates still reaches a server without TLS.
        Err(_) if is_http => config.with_root_certificates(RootCertStore::empty()),
        Err(error) => return Err(error.into()),
    };
    let builder = Client::builder()
        .tls_backend_preconfigured(config.with_no_client_auth())
        .http1_only()
        // A redirect leads where nobody has said that credentials may go.
        .redirect(redirect::Policy::none())
        .user_agent(concat!("exec-sandbox/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(bounds.connect());
    // No proxy leads back to this machine.
    let builder = if endpoint.is_some_and(is_loopback) { builder.no_proxy() } else { builder };
    Ok(builder.build()?)
}

fn is_loopback(url: &reqwest::Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse().is_ok_and(|address: std::net::IpAddr| address.is_loopback())
}

/// Nothing, if that is what the error says.
fn absent<T>(error: object_store::Error, credentials: &'static str) -> Result<Option<T>, StoreError> {
    match error {
        // The client of the store keeps the answer's body in its text only.
        object_store::Error::NotFound { ref source, .. } if !source.to_string().contains("NoSuchBucket") => Ok(None),
        error => Err(trouble(error, credentials)),
    }
}

fn trouble(error: object_store::Error, credentials: &'static str) -> StoreError {
    use object_store::Error;
    match error {
        Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => {
            StoreError::Denied { credentials, cause: error.into() }
        }
        Error::NotFound { .. } => StoreError::NoBucket(error.into()),
        error => StoreError::Failed(error.into()),
    }
}

/// A put is answered with this only where there is no bucket.
fn not_found() -> StoreError {
    StoreError::NoBucket("the store has answered that it is not found".into())
}
