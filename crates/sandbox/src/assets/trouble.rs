//! Troubles: every way for a file not to come, each with a name, and which of them pass by themselves.

use std::{error::Error as StdError, io};

use exec_sandbox_image::{ImageError, ManifestError};
use reqwest::StatusCode;

use crate::{Error, ErrorKind};

/// Why a file did not come.
#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
    /// No client could be made: the system has no certificates, for example.
    #[error("cannot speak TLS")]
    Tls(#[source] Box<dyn StdError + Send + Sync>),
    /// There was no connection, or it broke.
    #[error("the connection failed")]
    Connection(#[source] reqwest::Error),
    /// The server is there, and nothing came for so long as the terms allow.
    #[error("nothing came for too long")]
    Stalled(#[source] reqwest::Error),
    /// The server's certificate, or a request that cannot be made.
    #[error("the request was refused")]
    Refused(#[source] reqwest::Error),
    /// Redirections without end, or one that leads from `https` to `http`. Its cause would show where to, which may be a secret.
    #[error("the server leads on, without end or to where nothing is protected")]
    Redirection,
    /// Another status than that of a file.
    #[error("the server answered {0}")]
    Status(StatusCode),
    /// The file's end came too early, though nobody said that it is shorter.
    #[error("it ended after {received_bytes} of {expected_bytes} bytes")]
    Cut {
        /// What there is.
        received_bytes: u64,
        /// The manifest's length.
        expected_bytes: u64,
    },
    /// The server says that its file has another length than the manifest says.
    #[error("it has {announced_bytes} bytes there instead of {expected_bytes}")]
    WrongLength {
        /// The server's word.
        announced_bytes: u64,
        /// The manifest's.
        expected_bytes: u64,
    },
    /// A file of the base cannot be read.
    #[error("it cannot be read")]
    Unreadable(#[source] io::Error),
    /// More than a manifest needs.
    #[error("the manifest has more than {limit_bytes} bytes")]
    ManifestTooLong {
        /// What one may have.
        limit_bytes: usize,
    },
    /// What came as a manifest breaks a rule.
    #[error("what is there is no manifest that can be used")]
    BadManifest(#[source] ManifestError),
    /// The manifest of one image lies under the name of another.
    #[error("the manifest there is of image {0:?}")]
    WrongName(String),
    /// The image is for other machines.
    #[error("the image there is for {found} and this machine is {wanted}")]
    WrongArch {
        /// The manifest's architecture.
        found: String,
        /// This machine's.
        wanted: &'static str,
    },
    /// The store refused: what came is wrong, or the file system said no.
    #[error(transparent)]
    Store(#[from] ImageError),
    /// A thread of this process ended before its time.
    #[error("this process is ending")]
    Interrupted,
}

impl Trouble {
    /// What `error` of the client means.
    pub(super) fn of_client(error: reqwest::Error) -> Self {
        // The caller shows where it was, without what must not be shown.
        let error = error.without_url();
        if error.is_timeout() {
            return Self::Stalled(error);
        }
        if error.is_redirect() {
            return Self::Redirection;
        }
        if error.is_builder() || is_about_certificates(&error) {
            return Self::Refused(error);
        }
        Self::Connection(error)
    }

    /// Whether it may be gone at the next try.
    pub(super) fn is_transient(&self) -> bool {
        match self {
            Self::Connection(_) | Self::Stalled(_) | Self::Cut { .. } => true,
            Self::Status(status) => {
                status.is_server_error()
                    || matches!(*status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS)
            }
            _ => false,
        }
    }

    /// The error of the library that says `doing` was in vain because of this.
    pub(super) fn into_error(self, doing: String) -> Error {
        let remedy = self.remedy();
        Error::new(self.kind(), doing).because(self).remedied_by(remedy)
    }

    fn kind(&self) -> ErrorKind {
        match self {
            Self::WrongLength { .. } | Self::ManifestTooLong { .. } | Self::BadManifest(_) | Self::WrongName(_) => {
                ErrorKind::AssetDamaged
            }
            Self::Store(error) if !matches!(error, ImageError::Io { .. }) => ErrorKind::AssetDamaged,
            _ => ErrorKind::AssetDownload,
        }
    }

    fn remedy(&self) -> &'static str {
        match self {
            Self::Tls(_) => "install the system's certificates (the package ca-certificates)",
            Self::Connection(_) | Self::Stalled(_) | Self::Cut { .. } => {
                "try again: what has arrived is kept; or look at the network and HTTPS_PROXY"
            }
            Self::Status(status) if status.is_server_error() => "try again later: what has arrived is kept",
            Self::Refused(_) | Self::Redirection | Self::Status(_) => "check the URL, and what gives access to it",
            Self::Unreadable(_) => "check the directory, and who may read it",
            Self::WrongArch { .. } => "name a place with images for this machine",
            Self::Store(ImageError::Io { source, .. }) => match source.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                    "make room for the image and try again: what has arrived is kept"
                }
                _ => "name a directory that may be written to in EXEC_SANDBOX_IMAGES_DIR",
            },
            Self::Interrupted => "try again: what has arrived is kept",
            Self::WrongLength { .. }
            | Self::ManifestTooLong { .. }
            | Self::BadManifest(_)
            | Self::WrongName(_)
            | Self::Store(_) => {
                "what is published there is damaged, or its parts are not of one image: publish it again"
            }
        }
    }
}

/// Whether the server's certificate was refused, which another try does not change.
fn is_about_certificates(error: &(dyn StdError + 'static)) -> bool {
    if matches!(error.downcast_ref(), Some(rustls::Error::InvalidCertificate(_))) {
        return true;
    }
    // An error of I/O carries another beside the chain, which may be one of I/O in turn.
    let carried =
        error.downcast_ref::<io::Error>().and_then(io::Error::get_ref).map(|inner| inner as &(dyn StdError + 'static));
    carried.or_else(|| error.source()).is_some_and(is_about_certificates)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn store(kind: io::ErrorKind) -> Trouble {
        ImageError::Io { doing: "write", path: PathBuf::from("/images"), source: kind.into() }.into()
    }

    #[test]
    fn what_passes_by_itself_is_tried_again_and_nothing_else() {
        let status = |code| Trouble::Status(StatusCode::from_u16(code).expect("it is a status"));
        for code in [408, 429, 500, 502, 503, 504] {
            assert!(status(code).is_transient(), "{code}");
        }
        for code in [204, 301, 400, 401, 403, 404, 410, 416] {
            assert!(!status(code).is_transient(), "{code}");
        }
        assert!(Trouble::Cut { received_bytes: 1, expected_bytes: 2 }.is_transient());
        assert!(!Trouble::WrongLength { announced_bytes: 1, expected_bytes: 2 }.is_transient());
        assert!(!store(io::ErrorKind::StorageFull).is_transient());
    }

    #[test]
    fn a_certificate_that_is_refused_is_found_however_deep_it_lies() {
        let refused = rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
        assert!(is_about_certificates(&io::Error::other(io::Error::other(refused))));
        assert!(!is_about_certificates(&io::Error::other(io::Error::other(rustls::Error::DecryptError))));
        assert!(!is_about_certificates(&io::Error::from(io::ErrorKind::ConnectionReset)));
    }

    #[test]
    fn a_full_disk_is_told_apart_from_a_directory_that_is_not_ours() {
        let full = store(io::ErrorKind::StorageFull).into_error("fetching".into());
        let theirs = store(io::ErrorKind::PermissionDenied).into_error("fetching".into());
        assert_eq!((full.kind(), theirs.kind()), (ErrorKind::AssetDownload, ErrorKind::AssetDownload));
        assert!(full.remedy().is_some_and(|text| text.starts_with("make room")), "{full:?}");
        assert!(theirs.remedy().is_some_and(|text| text.contains("EXEC_SANDBOX_IMAGES_DIR")), "{theirs:?}");
    }

    #[test]
    fn what_is_published_wrongly_is_damaged_and_what_cannot_be_had_is_not() {
        let damaged = Trouble::WrongName("other".into()).into_error("fetching".into());
        let absent = Trouble::Status(StatusCode::NOT_FOUND).into_error("fetching".into());
        assert_eq!((damaged.kind(), absent.kind()), (ErrorKind::AssetDamaged, ErrorKind::AssetDownload));
        assert!(!absent.kind().is_transient());
    }
}
