//! Images in files of this machine: OCI layouts, as directory or tar, and `docker save` archives.
//!
//! An archive is never unpacked. Its entries are indexed by name once and read by seeking, so a name in it is only ever
//! compared with other names and never reaches the host's file system.

mod archive;
mod docker;
mod layout;

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use crate::digest::Digest;
use crate::error::{FetchError, FetchErrorKind};
use crate::image::Image;
use crate::platform::Platform;
use crate::source::ImageSource;

/// Why a directory, a device or a FIFO was not read; found again by type.
#[derive(Debug)]
struct NotRegular;

impl std::fmt::Display for NotRegular {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("not a regular file")
    }
}

impl std::error::Error for NotRegular {}

/// A range of a local file that holds one blob.
#[derive(Debug, Clone)]
pub(crate) struct LocalBlob {
    pub(crate) file: Arc<File>,
    pub(crate) offset: u64,
    pub(crate) size_bytes: u64,
}

impl LocalBlob {
    /// Reads the whole blob, which must not be larger than `limit`.
    fn read_all(&self, limit: u64, what: &str) -> Result<Vec<u8>, FetchError> {
        if self.size_bytes > limit {
            return Err(FetchError::limit(format!("{what} is larger than {limit} bytes")));
        }
        let length = usize::try_from(self.size_bytes)
            .map_err(|_| FetchError::limit(format!("{what} is larger than memory")))?;
        let mut bytes = vec![0; length];
        self.file
            .read_exact_at(&mut bytes, self.offset)
            .map_err(|error| FetchError::io(format!("failed to read {what}"), error))?;
        Ok(bytes)
    }

    /// Reads a document that must have this digest.
    fn read_verified(&self, digest: &Digest, limit: u64, what: &str) -> Result<Vec<u8>, FetchError> {
        let bytes = self.read_all(limit, what)?;
        if Digest::of(digest.algorithm(), &bytes) != *digest {
            return Err(FetchError::new(
                FetchErrorKind::DigestMismatch,
                format!("{what} does not have the digest {digest}"),
            ));
        }
        Ok(bytes)
    }
}

/// Resolves a source other than a registry. Blocking.
pub(crate) fn resolve(source: &ImageSource, platform: &Platform) -> Result<Image, FetchError> {
    let name = source.to_string();
    match source {
        ImageSource::Registry(_) => Err(FetchError::invalid("a registry reference is not a local image")),
        ImageSource::OciDirectory { path, selector } => layout::resolve(
            &layout::Directory::open(path)?,
            name,
            selector.as_deref(),
            platform,
        ),
        ImageSource::OciArchive { path, selector } => layout::resolve(
            &archive::Archive::open(path)?,
            name,
            selector.as_deref(),
            platform,
        ),
        ImageSource::DockerArchive { path, selector } => docker::resolve(
            &archive::Archive::open(path)?,
            name,
            selector.as_deref(),
            platform,
        ),
    }
}

/// Opens a regular file. A FIFO or a device, which could block or have side effects, is refused after an open that does
/// not wait.
fn open_regular(path: &Path) -> io::Result<(File, u64)> {
    let nonblocking = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).map_err(io::Error::other)?;
    let file = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(nonblocking)
        .open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, NotRegular));
    }
    Ok((file, metadata.len()))
}

/// The path is named as the caller gave it; `PermissionDenied` can be found again in the source.
fn open_error(path: &Path, error: io::Error) -> FetchError {
    if error.get_ref().is_some_and(|inner| inner.is::<NotRegular>()) {
        return FetchError::invalid(format!("{} is {NotRegular}", path.display()));
    }
    let kind = if error.kind() == io::ErrorKind::NotFound {
        FetchErrorKind::NotFound
    } else {
        FetchErrorKind::Io
    };
    FetchError::with_source(kind, format!("failed to open {}", path.display()), error)
}

#[cfg(test)]
mod tests;
