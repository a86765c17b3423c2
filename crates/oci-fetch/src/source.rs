//! Where an image comes from: a registry, or files of this machine.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::error::FetchError;
use crate::reference::Reference;

/// An image's place, as one string on a command line.
///
/// | text | meaning |
/// |---|---|
/// | `oci:DIR[:TAG]`, `oci:DIR@DIGEST` | an OCI image layout directory |
/// | `oci-archive:FILE[:TAG]`, `oci-archive:FILE@DIGEST` | the same in an uncompressed tar file |
/// | `docker-archive:FILE[:REFERENCE]` | what `docker save` writes, uncompressed |
/// | anything else | a registry reference |
///
/// A path ends at its first colon, as with skopeo. Without a selector the directory or archive must hold exactly one image
/// (for `oci:` several entries are fine as long as one platform is chosen among them).
///
/// A service that takes references from strangers must parse them as [`Reference`], never as this type: the other kinds
/// read local files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageSource {
    /// An image in a registry.
    Registry(Reference),
    /// An OCI image layout directory.
    OciDirectory {
        /// The directory that holds `oci-layout`, `index.json` and `blobs`.
        path: PathBuf,
        /// The value of `org.opencontainers.image.ref.name`, or the digest of a manifest.
        selector: Option<String>,
    },
    /// An OCI image layout in a tar file.
    OciArchive {
        /// The tar file.
        path: PathBuf,
        /// As for a directory.
        selector: Option<String>,
    },
    /// A file written by `docker save`.
    DockerArchive {
        /// The tar file.
        path: PathBuf,
        /// One of the image's `RepoTags`; a missing tag means `latest`.
        selector: Option<String>,
    },
}

impl FromStr for ImageSource {
    type Err = FetchError;

    /// # Errors
    /// `InvalidInput` for an empty path or a malformed reference.
    fn from_str(text: &str) -> Result<Self, FetchError> {
        // `oci-archive:` before `oci:` is not needed, the colon tells them apart.
        if let Some(rest) = text.strip_prefix("oci:") {
            let (path, selector) = split_layout(rest)?;
            return Ok(Self::OciDirectory { path, selector });
        }
        if let Some(rest) = text.strip_prefix("oci-archive:") {
            let (path, selector) = split_layout(rest)?;
            return Ok(Self::OciArchive { path, selector });
        }
        if let Some(rest) = text.strip_prefix("docker-archive:") {
            let (path, selector) = split_path(rest)?;
            return Ok(Self::DockerArchive { path, selector });
        }
        text.parse().map(Self::Registry)
    }
}

impl From<Reference> for ImageSource {
    fn from(reference: Reference) -> Self {
        Self::Registry(reference)
    }
}

impl fmt::Display for ImageSource {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, path, selector) = match self {
            Self::Registry(reference) => return reference.fmt(formatter),
            Self::OciDirectory { path, selector } => ("oci", path, selector),
            Self::OciArchive { path, selector } => ("oci-archive", path, selector),
            Self::DockerArchive { path, selector } => ("docker-archive", path, selector),
        };
        write!(formatter, "{kind}:{}", path.display())?;
        match selector {
            Some(digest) if is_digest(digest) => write!(formatter, "@{digest}"),
            Some(tag) => write!(formatter, ":{tag}"),
            None => Ok(()),
        }
    }
}

fn is_digest(text: &str) -> bool {
    text.parse::<crate::digest::Digest>().is_ok()
}

fn split_layout(text: &str) -> Result<(PathBuf, Option<String>), FetchError> {
    match text.rsplit_once('@') {
        Some((path, digest)) if is_digest(digest) && !path.is_empty() => {
            Ok((PathBuf::from(path), Some(digest.to_owned())))
        }
        _ => split_path(text),
    }
}

fn split_path(text: &str) -> Result<(PathBuf, Option<String>), FetchError> {
    let (path, selector) = match text.split_once(':') {
        Some((path, selector)) => (path, Some(selector)),
        None => (text, None),
    };
    if path.is_empty() {
        return Err(FetchError::invalid("image source has an empty path"));
    }
    match selector {
        Some("") => Err(FetchError::invalid(
            "image source has an empty tag behind the path",
        )),
        selector => Ok((PathBuf::from(path), selector.map(str::to_owned))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_parse_and_print() {
        let digest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        for text in [
            "oci:images/debian",
            "oci:images/debian:12",
            "oci-archive:/tmp/a.tar",
            "oci-archive:/tmp/a.tar:x",
            "docker-archive:a.tar",
            "docker-archive:a.tar:docker.io/library/nginx:1",
            "docker.io/library/oci:latest",
            &format!("oci:dir@{digest}"),
        ] {
            assert_eq!(text.parse::<ImageSource>().unwrap().to_string(), text);
        }
        for text in ["oci:", "oci::x", "oci:dir:", "docker-archive:", "UPPER"] {
            assert!(text.parse::<ImageSource>().is_err(), "{text}");
        }
        assert!(matches!("oci".parse(), Ok(ImageSource::Registry(_))));
    }
}
