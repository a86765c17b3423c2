//! An image on its way into a bucket, in parts.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use futures_util::{StreamExt, TryStreamExt, stream};
use object_store::{
    MultipartId, PutPayload,
    multipart::{MultipartStore, PartId},
    path::Path as ObjectPath,
};
use sha2::{Digest as _, Sha256};

use crate::artifact::{ArtifactError, StagedImage};

/// Bytes of a part, of images that are not so large that they would have too many. S3 wants 5 MiB at least (Amazon S3
/// User Guide, "Amazon S3 multipart upload limits").
const PART_BYTES: u64 = 8 << 20;

/// Parts of an object, at most (ibid.).
const MAX_PARTS: u64 = 10_000;

/// Parts in memory at the same time: those on their way, and the one that is being read.
const PARTS_AT_ONCE: usize = 4;

const ACTION: &str = "upload the image";

/// Sends the image part by part. The image is not there before the parts are put together; nothing is undone when this
/// fails or is dropped.
///
/// What is sent is hashed as it is read: an image that does not have its checksum any more is not put together.
pub(super) async fn send_parts(
    uploads: &Arc<dyn MultipartStore>,
    object: &ObjectPath,
    id: &MultipartId,
    staged: &StagedImage,
    failed: impl Fn(object_store::Error) -> ArtifactError + Send + Sync,
) -> Result<Vec<PartId>, ArtifactError> {
    let reader = Reader::open(&staged.image)
        .await
        .map_err(|error| ArtifactError::new("read the image", error))?;
    let hasher = Arc::clone(&reader.hasher);
    let read = stream::try_unfold(reader, |reader| async move {
        reader
            .next()
            .await
            .map_err(|error| ArtifactError::new("read the image", error))
    });
    let mut parts: Vec<(usize, PartId)> = read
        .map_ok(|(index, bytes)| {
            let sent = uploads.put_part(object, id, index, PutPayload::from(bytes));
            let failed = &failed;
            async move { Ok((index, sent.await.map_err(failed)?)) }
        })
        .try_buffer_unordered(PARTS_AT_ONCE)
        .boxed()
        .try_collect()
        .await?;
    let found = hex::encode(
        hasher
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
            .finalize(),
    );
    if found != staged.checksum {
        let message = format!("its SHA-256 is {found} and was {}", staged.checksum);
        return Err(ArtifactError::new(ACTION, message));
    }
    parts.sort_unstable_by_key(|(index, _)| *index);
    Ok(parts.into_iter().map(|(_, part)| part).collect())
}

/// Reads a file part by part, and hashes it.
struct Reader {
    file: Arc<File>,
    hasher: Arc<Mutex<Sha256>>,
    size_bytes: u64,
    part_bytes: u64,
    offset: u64,
}

impl Reader {
    async fn open(path: &Path) -> io::Result<Self> {
        let path = path.to_owned();
        let opened = tokio::task::spawn_blocking(move || {
            let file = File::open(path)?;
            let size_bytes = file.metadata()?.len();
            io::Result::Ok((file, size_bytes))
        });
        let (file, size_bytes) = opened.await??;
        Ok(Self {
            file: Arc::new(file),
            hasher: Arc::default(),
            size_bytes,
            part_bytes: part_bytes(size_bytes),
            offset: 0,
        })
    }

    /// The next part with its number, and who reads on; `None` at the end.
    async fn next(mut self) -> io::Result<Option<((usize, Vec<u8>), Self)>> {
        let length = (self.size_bytes - self.offset).min(self.part_bytes);
        if length == 0 {
            return Ok(None);
        }
        let index = usize::try_from(self.offset / self.part_bytes).map_err(io::Error::other)?;
        let mut bytes = vec![0; usize::try_from(length).map_err(io::Error::other)?];
        let (file, hasher, offset) = (Arc::clone(&self.file), Arc::clone(&self.hasher), self.offset);
        let read = tokio::task::spawn_blocking(move || {
            file.read_exact_at(&mut bytes, offset)?;
            let mut hasher = hasher.lock().unwrap_or_else(PoisonError::into_inner);
            hasher.update(&bytes);
            io::Result::Ok(bytes)
        });
        let bytes = read.await??;
        self.offset += length;
        Ok(Some(((index, bytes), self)))
    }
}

/// All parts but the last have the same size, in whole mebibytes.
fn part_bytes(size_bytes: u64) -> u64 {
    let least = size_bytes.div_ceil(MAX_PARTS).next_multiple_of(1 << 20);
    least.max(PART_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_small_and_not_too_many() {
        for (size, expected) in [
            (1, PART_BYTES),
            (PART_BYTES * MAX_PARTS, PART_BYTES),
            (PART_BYTES * MAX_PARTS + 1, 9 << 20),
            (1 << 40, 105 << 20),
        ] {
            assert_eq!(part_bytes(size), expected, "{size}");
            assert!(size.div_ceil(part_bytes(size)) <= MAX_PARTS);
        }
    }
}
