//! The configuration: where the remote cache is, and what it may cost, as plain data.
//!
//! Holds no secrets: credentials come from the environment when the cache is opened. What is read here is checked once, in
//! [`Config::check`]; everything behind it takes the numbers as they are.

use std::{path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};

/// Longest prefix, bucket name or region. A name of an object may have 1024 bytes, of which an entry needs less than 128.
const MAX_TEXT_BYTES: usize = 512;

/// Most uploads at once that may be asked for. Each holds up to four parts of 5 MiB.
const MAX_UPLOADS: u8 = 16;

/// No bound may be longer: what takes hours is a mistake in a unit.
const LONGEST_MS: u64 = 3_600_000;

/// A remote cache: where it is, and its bounds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where entries are kept.
    pub place: Place,
    /// Most uploads at once, 1 to 16. 4 unless it is said.
    #[serde(default = "four")]
    pub uploads: u8,
    /// How long anything may take.
    #[serde(default)]
    pub bounds: Bounds,
}

/// Where entries are kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Place {
    /// A bucket of a store that speaks S3.
    Bucket(Bucket),
    /// A directory that several machines see. It has to exist: one that is not mounted is not made.
    Directory(PathBuf),
}

/// A bucket of a store that speaks S3.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bucket {
    /// Its name.
    pub name: String,
    /// Its region; without one `AWS_REGION`, then `AWS_DEFAULT_REGION`, then `us-east-1`.
    #[serde(default)]
    pub region: Option<String>,
    /// The store's URL, such as `https://minio.example:9000`, to which the bucket's name is added as a path. Without one
    /// `AWS_ENDPOINT_URL_S3`, then `AWS_ENDPOINT_URL`, then the region's own. Nothing is encrypted on the way if it begins with `http:`.
    #[serde(default)]
    pub endpoint: Option<String>,
    /// What the name of every object begins with. `snapshots/` unless it is said; a slash at its end is added.
    #[serde(default = "snapshots")]
    pub prefix: String,
}

/// How long anything may take. The times are milliseconds, at least 1 and at most an hour.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Bounds {
    /// Until there is a connection, its name looked up and its TLS agreed: 1 s.
    pub connect_ms: u64,
    /// From a question to its answer, with connecting and a second try: 2 s. A run waits no longer to hear that there is nothing.
    pub answer_ms: u64,
    /// Without a byte while a blob comes: 5 s. Also what a download may waste altogether before its rate counts.
    pub stall_ms: u64,
    /// What a download has to bring in a second, in bytes, on the average: 1 MiB. A store that is slower is slower than making it anew.
    pub least_bytes_per_second: u64,
    /// Until the store has taken a part of an upload, which has 5 MiB at most: 60 s. Nobody waits for it.
    pub part_ms: u64,
    /// How long a store that has failed is left alone: 30 s. Each further failure doubles it.
    pub rest_ms: u64,
    /// How long at most: 10 min.
    pub longest_rest_ms: u64,
}

/// A configuration that cannot be meant.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// A number of uploads out of bounds.
    #[error("{0} uploads at once: 1 to {MAX_UPLOADS} are possible")]
    Uploads(u8),
    /// A bound that is zero or longer than an hour.
    #[error("{field} is {value}: 1 to {LONGEST_MS} is possible")]
    Bound {
        /// Which it is.
        field: &'static str,
        /// Its value.
        value: u64,
    },
    /// A rate of zero, which would bound nothing.
    #[error("least_bytes_per_second is 0, which bounds nothing")]
    NoRate,
    /// A name, region or prefix with other characters than letters, digits, `.`, `_` and `-`, or with none.
    #[error("{field} {value:?} is not a name (letters, digits, '.', '_', '-'; in a prefix also '/' between names)")]
    Name {
        /// Which it is.
        field: &'static str,
        /// What it says.
        value: String,
    },
    /// An endpoint that is no URL of a server.
    #[error(
        "the endpoint {0:?} is not a URL (http://host:port or https://host:port, without user, query and fragment)"
    )]
    Endpoint(String),
    /// A directory that depends on where the program was started.
    #[error("the directory {0:?} is not an absolute path")]
    Relative(PathBuf),
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            connect_ms: 1_000,
            answer_ms: 2_000,
            stall_ms: 5_000,
            least_bytes_per_second: 1 << 20,
            part_ms: 60_000,
            rest_ms: 30_000,
            longest_rest_ms: 600_000,
        }
    }
}

impl Config {
    /// The cache in `place`, with the usual bounds.
    #[must_use]
    pub fn new(place: Place) -> Self {
        Self { place, uploads: four(), bounds: Bounds::default() }
    }

    /// Whether it can be meant.
    ///
    /// # Errors
    /// The first value that cannot.
    pub fn check(&self) -> Result<(), ConfigError> {
        if self.uploads == 0 || self.uploads > MAX_UPLOADS {
            return Err(ConfigError::Uploads(self.uploads));
        }
        self.bounds.check()?;
        match &self.place {
            Place::Bucket(bucket) => bucket.check(),
            Place::Directory(path) if path.is_absolute() => Ok(()),
            Place::Directory(path) => Err(ConfigError::Relative(path.clone())),
        }
    }
}

impl Bucket {
    /// The bucket `name`, with everything else as usual.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), region: None, endpoint: None, prefix: snapshots() }
    }

    fn check(&self) -> Result<(), ConfigError> {
        check_name("bucket", &self.name)?;
        self.region.as_deref().map_or(Ok(()), |region| check_name("region", region))?;
        let prefix = self.prefix.trim_end_matches('/');
        if prefix.len() > MAX_TEXT_BYTES || !prefix.is_empty() && !prefix.split('/').all(is_name) {
            return Err(ConfigError::Name { field: "prefix", value: self.prefix.clone() });
        }
        self.endpoint.as_deref().map_or(Ok(()), |endpoint| check_endpoint(endpoint).map(|_| ()))
    }
}

impl Bounds {
    fn check(&self) -> Result<(), ConfigError> {
        let times = [
            ("connect_ms", self.connect_ms),
            ("answer_ms", self.answer_ms),
            ("stall_ms", self.stall_ms),
            ("part_ms", self.part_ms),
            ("rest_ms", self.rest_ms),
            ("longest_rest_ms", self.longest_rest_ms),
        ];
        if let Some((field, value)) = times.into_iter().find(|(_, value)| *value == 0 || *value > LONGEST_MS) {
            return Err(ConfigError::Bound { field, value });
        }
        if self.least_bytes_per_second == 0 { Err(ConfigError::NoRate) } else { Ok(()) }
    }

    pub(crate) fn connect(&self) -> Duration {
        Duration::from_millis(self.connect_ms)
    }

    pub(crate) fn answer(&self) -> Duration {
        Duration::from_millis(self.answer_ms)
    }

    pub(crate) fn stall(&self) -> Duration {
        Duration::from_millis(self.stall_ms)
    }

    pub(crate) fn part(&self) -> Duration {
        Duration::from_millis(self.part_ms)
    }

    /// How long a download of so many bytes may wait for the store altogether.
    pub(crate) fn download(&self, bytes: u64) -> Duration {
        self.stall() + Duration::from_secs(bytes / self.least_bytes_per_second.max(1))
    }
}

/// The URL of an endpoint, if it is one.
pub(crate) fn check_endpoint(endpoint: &str) -> Result<reqwest::Url, ConfigError> {
    let refuse = || ConfigError::Endpoint(endpoint.to_owned());
    let url: reqwest::Url = endpoint.parse().map_err(|_| refuse())?;
    let is_plain = matches!(url.scheme(), "http" | "https")
        && url.has_host()
        && url.username().is_empty()
        && url.password().is_none()
        && url.query().is_none()
        && url.fragment().is_none();
    if is_plain { Ok(url) } else { Err(refuse()) }
}

fn check_name(field: &'static str, value: &str) -> Result<(), ConfigError> {
    let fits = value.len() <= MAX_TEXT_BYTES && is_name(value);
    if fits { Ok(()) } else { Err(ConfigError::Name { field, value: value.to_owned() }) }
}

fn is_name(text: &str) -> bool {
    let known = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    !text.is_empty() && text.bytes().all(known) && !text.bytes().all(|byte| byte == b'.')
}

fn four() -> u8 {
    4
}

fn snapshots() -> String {
    "snapshots/".into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bucket(change: impl FnOnce(&mut Bucket)) -> Result<(), ConfigError> {
        let mut bucket = Bucket::new("b");
        change(&mut bucket);
        Config::new(Place::Bucket(bucket)).check()
    }

    #[test]
    fn a_bucket_needs_its_name_only() {
        let config: Config = serde_json::from_str(r#"{"place":{"bucket":{"name":"cache"}}}"#).unwrap();
        assert_eq!(config, Config::new(Place::Bucket(Bucket::new("cache"))));
        assert_eq!(config.check(), Ok(()));
        assert_eq!((config.uploads, config.bounds.answer_ms), (4, 2_000));
        let Place::Bucket(bucket) = config.place else { panic!("it is a bucket") };
        assert_eq!(bucket.prefix, "snapshots/");
    }

    #[test]
    fn a_word_that_nobody_knows_is_refused_wherever_it_stands() {
        for text in [
            r#"{"place":{"bucket":{"name":"b"}},"upload":1}"#,
            r#"{"place":{"bucket":{"name":"b","secret":"s"}}}"#,
            r#"{"place":{"tape":"/dev/st0"}}"#,
            r#"{"place":{"bucket":{"name":"b"}},"bounds":{"answer_s":2}}"#,
        ] {
            assert!(serde_json::from_str::<Config>(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_cannot_be_meant_is_named() {
        let mut config = Config::new(Place::Directory("/shared".into()));
        assert_eq!(config.check(), Ok(()));
        for uploads in [0, 17] {
            config.uploads = uploads;
            assert_eq!(config.check(), Err(ConfigError::Uploads(uploads)));
        }
        config.uploads = 16;
        config.bounds.rest_ms = 0;
        assert_eq!(config.check(), Err(ConfigError::Bound { field: "rest_ms", value: 0 }));
        config.bounds = Bounds { least_bytes_per_second: 0, ..Bounds::default() };
        assert_eq!(config.check(), Err(ConfigError::NoRate));
        let relative = Config::new(Place::Directory("shared".into()));
        assert_eq!(relative.check(), Err(ConfigError::Relative("shared".into())));
    }

    #[test]
    fn a_name_that_would_reach_elsewhere_is_refused() {
        assert_eq!(bucket(|bucket| bucket.prefix = "a/b/".into()), Ok(()));
        assert_eq!(bucket(|bucket| bucket.prefix = String::new()), Ok(()));
        for prefix in ["/a", "a//b", "../a", "a/./b", "a b", "a?b"] {
            assert!(bucket(|bucket| bucket.prefix = prefix.into()).is_err(), "{prefix}");
        }
        assert!(bucket(|bucket| bucket.name = "a/b".into()).is_err());
        assert!(bucket(|bucket| bucket.region = Some("eu@elsewhere.example".into())).is_err());
    }

    #[test]
    fn an_endpoint_is_a_url_of_a_server_and_nothing_more() {
        for good in ["http://127.0.0.1:9000", "https://minio.example", "https://minio.example:9000/s3/"] {
            assert_eq!(bucket(|bucket| bucket.endpoint = Some(good.into())), Ok(()), "{good}");
        }
        for bad in
            ["minio.example:9000", "ftp://minio.example", "https://u:p@minio.example", "https://minio.example/?a", ""]
        {
            assert!(bucket(|bucket| bucket.endpoint = Some(bad.into())).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_large_download_may_take_longer_than_a_small_one() {
        let bounds = Bounds::default();
        assert_eq!(bounds.download(0), Duration::from_secs(5));
        assert_eq!(bounds.download(10 << 20), Duration::from_secs(15));
    }
}
