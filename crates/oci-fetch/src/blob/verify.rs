//! Hashing a blob that is already in a file.

use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::blob::{Phase, Progress};
use crate::digest::{Digest, Hasher};
use crate::error::{FetchError, FetchErrorKind};
use crate::local::LocalBlob;

/// Stops with its drop.
pub(super) struct Verification {
    is_cancelled: Arc<AtomicBool>,
}

impl Verification {
    pub(super) fn start(
        digest: Digest,
        file: LocalBlob,
        progress: Arc<Progress>,
        on_mismatch: FetchError,
        report: impl FnOnce(bool) + Send + 'static,
    ) -> Self {
        let is_cancelled = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&is_cancelled);
        tokio::task::spawn_blocking(move || {
            let phase = match hash(&digest, &file, &flag) {
                Ok(Some(found)) => {
                    report(found == digest);
                    if found == digest {
                        Phase::Verified
                    } else {
                        Phase::Failed(on_mismatch)
                    }
                }
                Ok(None) => Phase::Failed(FetchError::transient("verification was given up")),
                Err(error) => Phase::Failed(FetchError::io(format!("failed to read layer {digest}"), error)),
            };
            progress.phase.send_replace(phase);
        });
        Self { is_cancelled }
    }
}

impl Drop for Verification {
    fn drop(&mut self) {
        self.is_cancelled.store(true, Ordering::Relaxed);
    }
}

pub(crate) fn mismatch(digest: &Digest) -> FetchError {
    FetchError::new(
        FetchErrorKind::DigestMismatch,
        format!("layer does not have the digest {digest}"),
    )
}

/// `None` when cancelled.
fn hash(digest: &Digest, blob: &LocalBlob, is_cancelled: &AtomicBool) -> std::io::Result<Option<Digest>> {
    let mut hasher = Hasher::new(digest.algorithm());
    let mut buffer = vec![0; 256 * 1024];
    let mut position = 0;
    while position < blob.size_bytes {
        if is_cancelled.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let left = usize::try_from(blob.size_bytes - position).unwrap_or(usize::MAX);
        let wanted = buffer.len().min(left);
        let read = blob.file.read_at(&mut buffer[..wanted], blob.offset + position)?;
        if read == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        hasher.update(&buffer[..read]);
        position += read as u64;
    }
    Ok(Some(hasher.finish()))
}
