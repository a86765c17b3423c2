//! One layer's bytes: readable in order while they arrive, trusted when digest and size are right.

mod access;
mod deadline;
mod download;
mod hashing;
mod pace;
mod reader;
mod shares;
mod verify;
mod writer;

use std::fmt;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::{Arc, OnceLock};

use tokio::sync::watch;

pub(crate) use crate::blob::deadline::Deadline;
pub(crate) use crate::blob::download::{Download, Job};
pub use crate::blob::reader::BlobReader;
pub(crate) use crate::blob::verify::mismatch;

use crate::cache::Lease;
use crate::digest::Digest;
use crate::error::{FetchError, FetchErrorKind};
use crate::local::LocalBlob;

/// A layer that is being downloaded, or is in the cache or a local file.
///
/// Clones are the same blob. While a clone or a reader of it is alive the download goes on; with the last one it stops, and
/// its slot, connection and memory are free at once. What has arrived is kept for a later download to resume.
#[derive(Clone)]
pub struct Blob {
    shared: Arc<Shared>,
}

/// The proof that a blob had the digest and the size of its descriptor. Only this crate makes one.
///
/// Whatever was made from bytes of a [`BlobReader`] before this was had must be thrown away if it cannot be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    digest: Digest,
    size_bytes: u64,
}

/// Dropped when nobody wants the blob any more.
struct Shared {
    digest: Digest,
    size_bytes: u64,
    is_from_network: bool,
    progress: Arc<Progress>,
    /// Keeps the download running.
    download: Option<Download>,
    /// Until when it has to end for this caller.
    deadline: Deadline,
    /// Stops the hashing of a local file.
    _verification: Option<verify::Verification>,
    /// Keeps the blob in the cache.
    _lease: Option<Lease>,
}

/// What a download, or the hashing of a local file, tells those who wait for it.
pub(crate) struct Progress {
    /// Bytes at the front of the blob that readers may read.
    pub(crate) available: watch::Sender<u64>,
    pub(crate) phase: watch::Sender<Phase>,
    /// Where the bytes are; set before the first becomes available.
    pub(crate) file: OnceLock<LocalBlob>,
}

#[derive(Debug, Clone)]
pub(crate) enum Phase {
    Running,
    Verified,
    Failed(FetchError),
}

impl Blob {
    pub(crate) fn downloading(
        digest: Digest,
        size_bytes: u64,
        download: Download,
        lease: Lease,
        deadline: Deadline,
    ) -> Self {
        let progress = Arc::clone(download.progress());
        Self {
            shared: Arc::new(Shared {
                digest,
                size_bytes,
                is_from_network: true,
                progress,
                download: Some(download),
                deadline,
                _verification: None,
                _lease: Some(lease),
            }),
        }
    }

    /// A blob in a file that has already been hashed by this process.
    pub(crate) fn trusted(digest: Digest, file: &LocalBlob, lease: Lease) -> Self {
        let progress = Arc::new(Progress::complete(file.clone(), Phase::Verified));
        Self::of_file(digest, file, progress, None, Some(lease))
    }

    /// A blob in a file that is hashed while it is read. `report` hears whether the digest was right, waiting callers get
    /// `on_mismatch` when it was not.
    pub(crate) fn unverified(
        digest: Digest,
        file: &LocalBlob,
        lease: Option<Lease>,
        on_mismatch: FetchError,
        report: impl FnOnce(bool) + Send + 'static,
    ) -> Self {
        let progress = Arc::new(Progress::complete(file.clone(), Phase::Running));
        let verification = verify::Verification::start(
            digest.clone(),
            file.clone(),
            Arc::clone(&progress),
            on_mismatch,
            report,
        );
        Self::of_file(digest, file, progress, Some(verification), lease)
    }

    fn of_file(
        digest: Digest,
        file: &LocalBlob,
        progress: Arc<Progress>,
        verification: Option<verify::Verification>,
        lease: Option<Lease>,
    ) -> Self {
        Self {
            shared: Arc::new(Shared {
                digest,
                size_bytes: file.size_bytes,
                is_from_network: false,
                progress,
                download: None,
                deadline: Deadline::starting_now(None),
                _verification: verification,
                _lease: lease,
            }),
        }
    }

    /// The digest that the bytes must have.
    #[must_use]
    pub fn digest(&self) -> &Digest {
        &self.shared.digest
    }

    /// The size that the blob must have.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.shared.size_bytes
    }

    /// Whether the bytes come over the network, for this caller or for another that asked first; not from the cache or a
    /// local file.
    #[must_use]
    pub fn from_network(&self) -> bool {
        self.shared.is_from_network
    }

    /// A reader from the blob's first byte. Any number may read at one time, each at its own pace.
    #[must_use]
    pub fn reader(&self) -> BlobReader {
        BlobReader::new(Arc::clone(&self.shared))
    }

    /// How many bytes at the blob's front have arrived; it grows to the size. For progress, not for trust.
    #[must_use]
    pub fn downloaded(&self) -> watch::Receiver<u64> {
        self.shared.progress.available.subscribe()
    }

    /// Waits until all bytes are here and were found right.
    ///
    /// A dropped future leaves everything as it was.
    ///
    /// # Errors
    /// What ended the download: any [`FetchErrorKind`] but `InvalidInput` and `Unsupported`; `DigestMismatch` when the bytes
    /// are wrong.
    pub async fn verified(&self) -> Result<Verified, FetchError> {
        let mut phase = self.shared.progress.phase.subscribe();
        let ended = tokio::select! {
            biased;
            refusal = self.shared.refused() => return Err(refusal),
            ended = phase.wait_for(|phase| !matches!(phase, Phase::Running)) => ended.map(|phase| phase.clone()),
            late = self.shared.deadline.passed() => return Err(late),
        };
        let ended = ended.map_err(|_| given_up())?;
        match ended {
            Phase::Failed(error) => Err(error),
            Phase::Verified | Phase::Running => Ok(Verified {
                digest: self.shared.digest.clone(),
                size_bytes: self.shared.size_bytes,
            }),
        }
    }

    /// Waits for [`verified`](Self::verified), then opens the file that holds the blob: a read-only descriptor with a
    /// position of its own, at which the blob begins.
    ///
    /// # Errors
    /// As for `verified`; `Unsupported` for a blob inside an archive, which is only a part of a file and must be read with a
    /// [`reader`](Self::reader); `Io` when `/proc` is not mounted.
    pub async fn complete_file(&self) -> Result<File, FetchError> {
        self.verified().await?;
        let Some(blob) = self.shared.progress.file.get().cloned() else {
            return Err(given_up());
        };
        tokio::task::spawn_blocking(move || open_anew(&blob))
            .await
            .map_err(|error| {
                FetchError::with_source(FetchErrorKind::Io, "failed to open a blob of the cache", error)
            })?
    }

    /// Whether bytes of it are still to come over the network.
    pub(crate) fn is_on_its_way(&self) -> bool {
        self.shared.download.is_some() && !matches!(*self.shared.progress.phase.borrow(), Phase::Verified)
    }

    /// Opens the file that holds the blob if all of it is at hand: in the cache, or in a local file. A read-only descriptor
    /// with a position of its own, at which the blob begins. `None` for a blob of which bytes are still on their way, and for one
    /// inside an archive: both have a [`reader`](Self::reader).
    ///
    /// Whether the bytes are right may not be known yet. As with a reader, what was made from them before
    /// [`verified`](Self::verified) must be thrown away if the proof cannot be had; and no more than
    /// [`size_bytes`](Self::size_bytes) of the file are the blob, should somebody write to it.
    pub async fn file_at_hand(&self) -> Option<File> {
        if self.is_on_its_way() || self.shared.refusal().is_some() {
            return None;
        }
        let blob = self.shared.progress.file.get().cloned()?;
        tokio::task::spawn_blocking(move || open_anew(&blob).ok())
            .await
            .ok()
            .flatten()
    }
}

/// The file of a blob that fills it, opened for reading. Blocking.
fn open_anew(blob: &LocalBlob) -> Result<File, FetchError> {
    let length = blob.file.metadata().map(|metadata| metadata.len());
    if blob.offset != 0 || length.is_ok_and(|length| length != blob.size_bytes) {
        return Err(FetchError::unsupported(
            "layer is part of an archive and has no file of its own",
        ));
    }
    // Through /proc the file is opened anew, even if it has just been renamed or removed from the cache.
    File::open(format!("/proc/self/fd/{}", blob.file.as_raw_fd()))
        .map_err(|error| FetchError::io("failed to open a blob of the cache", error))
}

impl Shared {
    /// Why the caller gets nothing, although others may.
    fn refusal(&self) -> Option<FetchError> {
        self.download
            .as_ref()
            .and_then(|download| download.refusal().borrow().clone())
    }

    /// Waits for the refusal; for ever when there is none.
    async fn refused(&self) -> FetchError {
        if let Some(download) = &self.download
            && let Ok(refusal) = download.refusal().clone().wait_for(Option::is_some).await
            && let Some(error) = refusal.as_ref()
        {
            return error.clone();
        }
        std::future::pending().await
    }
}

fn given_up() -> FetchError {
    FetchError::transient("download was given up")
}

impl Verified {
    /// The digest that the blob has.
    #[must_use]
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// The size that the blob has.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }
}

impl Progress {
    pub(crate) fn new() -> Self {
        Self {
            available: watch::Sender::new(0),
            phase: watch::Sender::new(Phase::Running),
            file: OnceLock::new(),
        }
    }

    fn complete(file: LocalBlob, phase: Phase) -> Self {
        let progress = Self {
            available: watch::Sender::new(file.size_bytes),
            phase: watch::Sender::new(phase),
            file: OnceLock::new(),
        };
        // The cell is new and empty.
        let _ = progress.file.set(file);
        progress
    }
}

impl fmt::Debug for Blob {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Blob")
            .field("digest", &self.shared.digest)
            .field("size_bytes", &self.shared.size_bytes)
            .field("is_from_network", &self.shared.is_from_network)
            .finish_non_exhaustive()
    }
}
