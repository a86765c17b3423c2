//! The image that an earlier build of the same made, copied instead of made again.
//!
//! This comes after all layers are there: a build that may not use one of its blobs has failed by then as any other.
//! What is copied is hashed as it lies in the new file, so that nothing which happens to the old one meanwhile matters.

use std::{
    fs::File,
    io::{self, Seek},
    os::unix::fs::FileExt,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{self, Receiver, Sender},
    },
};

use rustix::io::Errno;

use super::{
    Work,
    assemble::{Written, identity_of},
    blocking,
    contents::Contents,
    layers::entry_name,
    own::counted,
    progress::{Phase, megabytes},
    publish::{self, Draft, ImageDigest},
};
use crate::{
    error::BuildError,
    event::{Component, Level},
    image_cache::{Found, ImageCache, ImageKey, ImageRecord},
    pack_cache::LayerFile,
    request::{Backend, InitStrategy},
    shape::Shape,
    worker::HashTree,
};

/// Bytes that are copied between two looks at whether the build is still wanted.
const STEP_BYTES: u64 = 16 << 20;

/// Where a build looks for its image, and notes it.
pub(super) struct Reuse {
    cache: ImageCache,
    key: ImageKey,
}

/// A copied image.
pub(super) struct Reused {
    pub(super) written: Written,
    pub(super) checksum: String,
}

impl Reuse {
    /// `None` when images are not reused: as configured, or because the backend is a program of which this one does not
    /// know whether it is still the same.
    pub(super) fn new(work: &Work<'_>, layers: &[LayerFile], shape: &Shape) -> Option<Self> {
        let cache = work.config.images.clone()?;
        if work.config.backend != Backend::Native {
            return None;
        }
        // What was saved, and which init was found, is known to the one who makes the image, and to nobody else.
        if !shape.optimization.is_nothing() || work.request.target.init == InitStrategy::Custom {
            return None;
        }
        let blobs: Vec<String> = work
            .image
            .layers
            .iter()
            .map(|layer| entry_name(work, layer))
            .collect();
        let key = cache.key(
            work.isolation_key,
            blobs.iter().map(String::as_str),
            &identity_of(work, layers, shape),
            work.request.target.has_verity(),
        );
        Some(Self { cache, key })
    }

    /// Copies the image into `draft`, which is empty, and is so again when there is none that can be used.
    pub(super) async fn copy(&self, work: &Work<'_>, draft: &Draft) -> Result<Option<Reused>, BuildError> {
        let (cache, key) = (self.cache.clone(), self.key.clone());
        let (record, source) = match blocking(move || cache.find(&key)).await? {
            Found::Candidate(record, source) => (record, source),
            Found::Nothing => return Ok(None),
            Found::Changed => {
                self.refuse(work, Level::Info, "was written to since").await;
                return Ok(None);
            }
        };
        // An image that is too large is refused by its writer, in its own words.
        if work
            .config
            .limits
            .max_image_bytes
            .is_some_and(|limit| record.size_bytes > limit)
        {
            return Ok(None);
        }
        work.progress.begin(Phase::Copy, record.size_bytes).await;
        let (way, checksum) = match self.transfer(work, &record, source, draft).await? {
            Ok(transferred) => transferred,
            Err(error) => {
                self.refuse(work, Level::Warn, &format!("cannot be read: {}", error.kind()))
                    .await;
                return empty(draft).map(|()| None);
            }
        };
        if checksum != hex::encode(record.sha256) {
            self.refuse(
                work,
                Level::Warn,
                "does not have the checksum any more that it had",
            )
            .await;
            return empty(draft).map(|()| None);
        }
        let found = draft
            .file()
            .metadata()
            .map_err(|error| BuildError::from_io("look at the image", error))?;
        let written = Written::new(record.size_bytes, &found, record.verity);
        work.check_image(written.allocated_bytes)?;
        let message = format!(
            "Reused the image that an earlier build made of the same layers and options: {}, {way}, checksum verified",
            megabytes(record.size_bytes)
        );
        work.events()
            .log_with(
                Level::Info,
                Component::Writer,
                message,
                [("image.reused", "true".to_owned())],
            )
            .await;
        Ok(Some(Reused { written, checksum }))
    }

    /// Copies the image and hashes the copy as it grows; then it is also on the disk. Gives the way in words, and the hash.
    /// The outer error ends the build, the inner one this attempt.
    async fn transfer(
        &self,
        work: &Work<'_>,
        record: &ImageRecord,
        source: File,
        draft: &Draft,
    ) -> Result<io::Result<(&'static str, String)>, BuildError> {
        let file = || {
            draft
                .file()
                .try_clone()
                .map_err(|error| BuildError::internal("copy an image", error))
        };
        let done = Arc::new(AtomicU64::new(0));
        // Either thread ends when the other fails.
        let given_up = Arc::new(AtomicBool::new(false));
        let size_bytes = record.size_bytes;
        let (copied, grown) = mpsc::channel();
        let copying = {
            let (target, given_up) = (file()?, Arc::clone(&given_up));
            counted(work, move || {
                copy(&source, &target, size_bytes, &copied, &given_up)
            })
        };
        let hashing = {
            let (target, done, given_up) = (file()?, Arc::clone(&done), Arc::clone(&given_up));
            counted(work, move || {
                let hashed = hash_growing(&target, &grown, &done, &given_up);
                if hashed.is_err() {
                    given_up.store(true, Ordering::Relaxed);
                }
                hashed
            })
        };
        let to_disk = async {
            let way = publish::watched(work, copying, &done, &given_up).await?;
            if way.is_ok() {
                draft.sync().await?;
            }
            Ok::<_, BuildError>(way)
        };
        let (way, checksum) = tokio::join!(to_disk, publish::watched(work, hashing, &done, &given_up));
        match way? {
            Err(error) if is_of_target(&error) => Err(BuildError::from_io("write the image", error)),
            Err(error) => Ok(Err(error)),
            Ok(way) => Ok(checksum?.map(|checksum| (way, checksum))),
        }
    }

    async fn refuse(&self, work: &Work<'_>, level: Level, reason: &str) {
        let message = format!("The image that an earlier build made {reason}: it is made anew");
        work.events().log(level, Component::Writer, message).await;
        let (cache, key) = (self.cache.clone(), self.key.clone());
        if let Err(error) = blocking(move || cache.forget(&key)).await {
            tracing::warn!(%error, "Failed to forget an image");
        }
    }

    /// Notes a published image for later builds. That they cannot use it is not worth failing this one for.
    pub(super) async fn remember(self, path: &Path, checksum: &str, verity: Option<HashTree>) {
        let mut sha256 = [0; 32];
        if hex::decode_to_slice(checksum, &mut sha256).is_err() {
            return;
        }
        let path = path.to_owned();
        let noted = blocking(move || self.cache.remember(&self.key, &path, sha256, verity)).await;
        match noted {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "Failed to note an image for later builds"),
            Err(error) => tracing::warn!(%error, "Failed to note an image for later builds"),
        }
    }
}

fn empty(draft: &Draft) -> Result<(), BuildError> {
    let mut file = draft.file();
    file.set_len(0)
        .and_then(|()| file.rewind())
        .map_err(|error| BuildError::from_io("empty the image", error))
}

/// Whether it was certainly not the old image that failed.
fn is_of_target(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
    )
}

/// Hashes a copy as far as `grown` says that it has come, until nobody says so any more. What is hashed is the copy as it lies in
/// its own file: whatever happens to the old one meanwhile does not matter.
fn hash_growing(
    target: &File,
    grown: &Receiver<u64>,
    done: &AtomicU64,
    given_up: &AtomicBool,
) -> io::Result<String> {
    let nothing = Contents::default();
    let mut digest = ImageDigest::new(target, &nothing);
    for end in grown {
        digest.advance(end, done, given_up)?;
    }
    Ok(digest.finish())
}

/// Copies the first `size_bytes` of `source` into the empty `target`, holes as holes; says in words how. `copied` hears
/// how far it has come.
///
/// Blocks are shared where both lie on one file system that can (ioctl_ficlone(2)), else copied by the kernel
/// (copy_file_range(2)), else through memory. Nothing of `target` is linked to `source` in a way that a later write to
/// either would show in the other.
fn copy(
    source: &File,
    target: &File,
    size_bytes: u64,
    copied: &Sender<u64>,
    given_up: &AtomicBool,
) -> io::Result<&'static str> {
    // Nobody listens any more when hashing has failed, which ends this too.
    let tell = |end| {
        let _ = copied.send(end);
    };
    if rustix::fs::ioctl_ficlone(target, source).is_ok() {
        // It may have grown since it was looked at.
        target.set_len(size_bytes)?;
        tell(size_bytes);
        return Ok("its blocks are shared");
    }
    target.set_len(size_bytes)?;
    let mut offset = 0;
    while offset < size_bytes && !given_up.load(Ordering::Relaxed) {
        let data = publish::next_data(source, offset, size_bytes)?;
        offset = data.start;
        while offset < data.end && !given_up.load(Ordering::Relaxed) {
            let length = (data.end - offset).min(STEP_BYTES);
            offset += copy_range(source, target, offset, length)?;
            tell(offset);
        }
    }
    tell(size_bytes);
    Ok("copied")
}

/// Copies at most `length` bytes at `offset`, at least one.
fn copy_range(source: &File, target: &File, offset: u64, length: u64) -> io::Result<u64> {
    let wanted = usize::try_from(length).unwrap_or(usize::MAX);
    let (mut from, mut to) = (offset, offset);
    match rustix::fs::copy_file_range(source, Some(&mut from), target, Some(&mut to), wanted) {
        // It was cut off since it was looked at.
        Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
        Ok(copied) => Ok(copied as u64),
        // Two file systems, or one that does not know the call.
        Err(Errno::XDEV | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {
            let mut buffer = vec![0; wanted.min(1 << 20)];
            source.read_exact_at(&mut buffer, offset)?;
            target.write_all_at(&buffer, offset)?;
            Ok(buffer.len() as u64)
        }
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use sha2::{Digest as _, Sha256};

    use super::*;

    #[test]
    fn a_copy_has_the_same_bytes_and_holes() {
        let directory = tempfile::tempdir().unwrap();
        let open = |name: &str| {
            File::options()
                .read(true)
                .write(true)
                .create_new(true)
                .open(directory.path().join(name))
                .unwrap()
        };
        let (source, target) = (open("source"), open("target"));
        let size = 40 << 20;
        source.set_len(size).unwrap();
        source.write_all_at(&[1; 5000], 0).unwrap();
        source.write_all_at(&vec![2; 20 << 20], 10 << 20).unwrap();
        source.write_all_at(b"end", size - 3).unwrap();

        let (done, given_up) = (AtomicU64::new(0), AtomicBool::new(false));
        let (copied, grown) = mpsc::channel();
        let hash = std::thread::scope(|scope| {
            let hashing = {
                let (target, done, given_up) = (&target, &done, &given_up);
                scope.spawn(move || hash_growing(target, &grown, done, given_up))
            };
            copy(&source, &target, size, &copied, &given_up).unwrap();
            drop(copied);
            hashing.join().unwrap().unwrap()
        });
        assert_eq!(done.load(Ordering::Relaxed), size);
        let read = |file: &File| {
            let mut bytes = vec![0; usize::try_from(size).unwrap()];
            file.read_exact_at(&mut bytes, 0).unwrap();
            bytes
        };
        assert!(read(&source) == read(&target));
        assert_eq!(hash, hex::encode(Sha256::digest(read(&target))));
        assert_eq!(target.metadata().unwrap().len(), size);
        let allocated = |file: &File| {
            file.sync_all().unwrap();
            file.metadata().unwrap().blocks() * 512
        };
        assert!(allocated(&target) <= allocated(&source) + (1 << 20));
        // Not the same file: a write to one is none to the other.
        source.write_all_at(b"x", 0).unwrap();
        assert_eq!(read(&target)[0], 1);
    }

    #[test]
    fn a_source_that_is_cut_off_meanwhile_ends_in_an_error() {
        let (source, target) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        source.write_all_at(&[1; 8192], 0).unwrap();
        let error = copy_range(&source, &target, 8192, 4096).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
