//! Credentials and place of a bucket, from the usual variables of the environment.
//!
//! The variables are listed here one by one: none that would weaken a connection (such as one that turns the check of certificates off) is
//! looked at. Files of profiles are not read.

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};

use super::Variables;
use crate::config::{Bucket, ConfigError, check_endpoint};

/// The region if nobody names one.
const USUAL_REGION: &str = "us-east-1";

/// Variables that are passed on as they are.
const PASSED: [(&str, AmazonS3ConfigKey); 10] = [
    ("AWS_ACCESS_KEY_ID", AmazonS3ConfigKey::AccessKeyId),
    ("AWS_SECRET_ACCESS_KEY", AmazonS3ConfigKey::SecretAccessKey),
    ("AWS_SESSION_TOKEN", AmazonS3ConfigKey::Token),
    ("AWS_WEB_IDENTITY_TOKEN_FILE", AmazonS3ConfigKey::WebIdentityTokenFile),
    ("AWS_ROLE_ARN", AmazonS3ConfigKey::RoleArn),
    ("AWS_ROLE_SESSION_NAME", AmazonS3ConfigKey::RoleSessionName),
    ("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", AmazonS3ConfigKey::ContainerCredentialsRelativeUri),
    ("AWS_CONTAINER_CREDENTIALS_FULL_URI", AmazonS3ConfigKey::ContainerCredentialsFullUri),
    ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", AmazonS3ConfigKey::ContainerAuthorizationTokenFile),
    ("AWS_EC2_METADATA_SERVICE_ENDPOINT", AmazonS3ConfigKey::MetadataEndpoint),
];

/// Why a bucket cannot be asked at all.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// One of a pair of variables.
    #[error("{present} is set and {missing} is not")]
    Half {
        /// The one that is set.
        present: &'static str,
        /// The one that is not.
        missing: &'static str,
    },
    /// Nothing names credentials, and the machine's own are turned off.
    #[error("no variable names credentials (AWS_ACCESS_KEY_ID and others), and AWS_EC2_METADATA_DISABLED is true")]
    None,
    /// An endpoint of the environment that is none.
    #[error("{variable} was not understood")]
    Endpoint {
        /// Where it stands.
        variable: &'static str,
        /// What is wrong with it.
        #[source]
        cause: ConfigError,
    },
    /// The client cannot be made.
    #[error("the client of the store cannot be made")]
    Client(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// A bucket that can be opened.
pub(super) struct Found {
    pub(super) builder: AmazonS3Builder,
    /// The server's URL, unless it is the region's own.
    pub(super) endpoint: Option<reqwest::Url>,
    pub(super) region: String,
    /// Where the credentials come from, in words for an error.
    pub(super) credentials: &'static str,
}

pub(super) fn find(bucket: &Bucket, variables: Variables<'_>) -> Result<Found, CredentialsError> {
    let get = |name: &str| variables(name).filter(|value| !value.is_empty());
    let credentials = kind(&get)?;
    let region = bucket.region.clone().or_else(|| get("AWS_REGION")).or_else(|| get("AWS_DEFAULT_REGION"));
    let region = region.unwrap_or_else(|| USUAL_REGION.into());
    let endpoint = endpoint(bucket, &get)?;

    let mut builder = AmazonS3Builder::new().with_bucket_name(&bucket.name).with_region(&region);
    for (name, key) in PASSED {
        if let Some(value) = get(name) {
            builder = builder.with_config(key, value);
        }
    }
    if let Some(endpoint) = &endpoint {
        builder = builder.with_endpoint(endpoint.as_str()).with_allow_http(endpoint.scheme() == "http");
    }
    Ok(Found { builder, endpoint, region, credentials })
}

/// The store's server: what the configuration says, then what the environment says for every program.
fn endpoint(bucket: &Bucket, get: &dyn Fn(&str) -> Option<String>) -> Result<Option<reqwest::Url>, CredentialsError> {
    if let Some(endpoint) = &bucket.endpoint {
        let refuse = |cause| CredentialsError::Endpoint { variable: "endpoint", cause };
        return check_endpoint(endpoint).map(Some).map_err(refuse);
    }
    for variable in ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"] {
        if let Some(endpoint) = get(variable) {
            let refuse = |cause| CredentialsError::Endpoint { variable, cause };
            return check_endpoint(&endpoint).map(Some).map_err(refuse);
        }
    }
    Ok(None)
}

/// Where credentials come from, in the order in which the client of the store looks.
fn kind(get: &dyn Fn(&str) -> Option<String>) -> Result<&'static str, CredentialsError> {
    let pair = |one: &'static str, other: &'static str| match (get(one), get(other)) {
        (Some(_), Some(_)) => Ok(true),
        (None, None) => Ok(false),
        (Some(_), None) => Err(CredentialsError::Half { present: one, missing: other }),
        (None, Some(_)) => Err(CredentialsError::Half { present: other, missing: one }),
    };
    if pair("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")? {
        return Ok("AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY");
    }
    if get("AWS_WEB_IDENTITY_TOKEN_FILE").is_some() && pair("AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_ROLE_ARN")? {
        return Ok("AWS_WEB_IDENTITY_TOKEN_FILE and AWS_ROLE_ARN");
    }
    if get("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI").is_some() {
        return Ok("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI");
    }
    if pair("AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE")? {
        return Ok("AWS_CONTAINER_CREDENTIALS_FULL_URI");
    }
    if get("AWS_EC2_METADATA_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true")) {
        return Err(CredentialsError::None);
    }
    Ok("the machine's metadata service (no variable such as AWS_ACCESS_KEY_ID names others)")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(bucket: &Bucket, set: &[(&str, &str)]) -> Result<Found, CredentialsError> {
        find(bucket, &|name| set.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned()))
    }

    const KEYS: [(&str, &str); 2] = [("AWS_ACCESS_KEY_ID", "id"), ("AWS_SECRET_ACCESS_KEY", "secret")];

    #[test]
    fn half_a_pair_is_a_mistake_that_is_named() {
        let half = |set: &[(&str, &str)]| found(&Bucket::new("b"), set).err().map(|error| error.to_string());
        let said = half(&KEYS[..1]);
        assert_eq!(said.as_deref(), Some("AWS_ACCESS_KEY_ID is set and AWS_SECRET_ACCESS_KEY is not"));
        let said = half(&KEYS[1..]);
        assert_eq!(said.as_deref(), Some("AWS_SECRET_ACCESS_KEY is set and AWS_ACCESS_KEY_ID is not"));
        let said = half(&[("AWS_WEB_IDENTITY_TOKEN_FILE", "/token")]);
        assert_eq!(said.as_deref(), Some("AWS_WEB_IDENTITY_TOKEN_FILE is set and AWS_ROLE_ARN is not"));
    }

    #[test]
    fn where_credentials_come_from_is_known_before_they_are_used() {
        let kind = |set: &[(&str, &str)]| found(&Bucket::new("b"), set).unwrap().credentials;
        assert!(kind(&KEYS).starts_with("AWS_ACCESS_KEY_ID"));
        let relative = ("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "/c");
        assert_eq!(kind(&[relative]), relative.0);
        assert!(kind(&[relative, KEYS[0], KEYS[1]]).starts_with("AWS_ACCESS_KEY_ID"), "keys come first");
        assert!(kind(&[]).contains("metadata service"));
        let off = found(&Bucket::new("b"), &[("AWS_EC2_METADATA_DISABLED", "true")]);
        assert!(matches!(off, Err(CredentialsError::None)));
    }

    #[test]
    fn the_configuration_is_asked_before_the_environment() {
        let set = [KEYS[0], KEYS[1], ("AWS_ENDPOINT_URL", "http://env.example"), ("AWS_REGION", "eu-west-1")];
        let of_environment = found(&Bucket::new("b"), &set).unwrap();
        assert_eq!(of_environment.endpoint.unwrap().as_str(), "http://env.example/");
        assert_eq!(of_environment.region, "eu-west-1");
        let mut bucket = Bucket::new("b");
        bucket.endpoint = Some("https://config.example".into());
        bucket.region = Some("eu-central-1".into());
        let of_config = found(&bucket, &set).unwrap();
        assert_eq!(of_config.endpoint.unwrap().as_str(), "https://config.example/");
        assert_eq!(of_config.region, "eu-central-1");
        assert_eq!(found(&Bucket::new("b"), &KEYS).unwrap().region, USUAL_REGION);
    }

    #[test]
    fn an_endpoint_of_the_environment_is_checked_and_its_variable_named() {
        let error = found(&Bucket::new("b"), &[KEYS[0], KEYS[1], ("AWS_ENDPOINT_URL_S3", "ftp://x.example")]);
        assert_eq!(error.err().unwrap().to_string(), "AWS_ENDPOINT_URL_S3 was not understood");
    }
}
