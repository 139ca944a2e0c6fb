//! Places: where images are published, and each file there, on a server or in a directory.
//!
//! Owns the layout below a base, which is that of a store, and how a place is shown: without user, password and query, which may be
//! secrets. Pure.

use std::{fmt, path::PathBuf};

use exec_sandbox_image::Digest;
use reqwest::Url;

use crate::{Error, ErrorKind};

/// A base, or a file below one.
#[derive(Clone)]
pub(super) enum Place {
    /// In the file system, which may be a share.
    File(PathBuf),
    /// On a server.
    Url(Url),
}

impl Place {
    /// The base that `text` means: an `https`, `http` or `file` URL, or the path of a directory.
    pub(super) fn parse(text: &str) -> Result<Self, Error> {
        let Some((scheme, _)) = text.split_once("://") else {
            return if text.is_empty() { Err(refuse("it is empty")) } else { Ok(Self::File(text.into())) };
        };
        // What is refused is not repeated: there may be a password in it.
        let url = Url::parse(text).map_err(|error| refuse("it is no URL").because(error))?;
        match scheme.to_ascii_lowercase().as_str() {
            "https" | "http" => Ok(Self::Url(url)),
            "file" => url.to_file_path().map(Self::File).map_err(|()| refuse("it names a file on another machine")),
            _ => Err(refuse("it is neither https, http nor file")),
        }
    }

    /// The manifest of the image `name`, which must be one that a store accepts.
    pub(super) fn manifest(&self, name: &str) -> Self {
        self.below(&[&format!("{name}.json")])
    }

    /// The blob with this digest.
    pub(super) fn blob(&self, digest: Digest) -> Self {
        self.below(&["blobs", &digest.to_string()])
    }

    fn below(&self, parts: &[&str]) -> Self {
        match self {
            Self::File(dir) => Self::File(parts.iter().fold(dir.clone(), |path, part| path.join(part))),
            Self::Url(base) => {
                let mut url = base.clone();
                // A URL with a host always has segments; the query stays, for it may be what gives access.
                if let Ok(mut segments) = url.path_segments_mut() {
                    segments.pop_if_empty().extend(parts);
                }
                Self::Url(url)
            }
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Url(url) => {
                let mut shown = url.clone();
                // Neither fails for a URL with a host.
                let _ = shown.set_username("").and_then(|()| shown.set_password(None));
                shown.set_query(None);
                shown.set_fragment(None);
                f.write_str(shown.as_str())
            }
        }
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Place({self})")
    }
}

fn refuse(why: &'static str) -> Error {
    Error::new(ErrorKind::InvalidArgument, format!("reading the place where images are published: {why}"))
        .remedied_by("give an https, http or file URL, or the path of a directory")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(text: &str) -> Place {
        Place::parse(text).expect(text)
    }

    #[test]
    fn files_lie_below_the_base_as_in_a_store() {
        let digest = Digest::of(b"root");
        for (base, below) in [
            ("https://images.example.com", "https://images.example.com/"),
            ("https://images.example.com/v1", "https://images.example.com/v1/"),
            ("HTTP://images.example.com/v1/", "http://images.example.com/v1/"),
            ("file:///srv/my%20images", "/srv/my images/"),
            ("/srv/images/", "/srv/images/"),
            ("images", "images/"),
        ] {
            assert_eq!(place(base).manifest("standard").to_string(), format!("{below}standard.json"));
            assert_eq!(place(base).blob(digest).to_string(), format!("{below}blobs/{digest}"));
        }
    }

    #[test]
    fn what_gives_access_is_sent_and_not_shown() {
        let base = place("https://user:secret@images.example.com/v1?token=secret#secret");
        let Place::Url(sent) = base.manifest("standard") else { panic!("it is a URL") };
        assert_eq!((sent.password(), sent.query()), (Some("secret"), Some("token=secret")));
        assert_eq!(base.manifest("standard").to_string(), "https://images.example.com/v1/standard.json");
    }

    #[test]
    fn what_is_no_place_is_refused_without_repeating_it() {
        for bad in ["", "ftp://user:secret@example.com/", "https://", "https://user:secret@:x/", "file://host/images"] {
            let refused = Place::parse(bad).expect_err(bad);
            assert_eq!(refused.kind(), ErrorKind::InvalidArgument, "{bad}");
            assert!(!format!("{refused:?}").contains("secret"), "{refused:?}");
        }
    }
}
