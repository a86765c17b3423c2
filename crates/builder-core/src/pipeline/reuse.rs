//! The image that an earlier build of the same made, copied instead of made again.
//!
//! This comes after all layers are there: a build that may not use one of its blobs has failed by then as any other.
//! What is hashed is what goes into the new file, so that nothing which happens to the old one meanwhile matters.

use std::{
    fs::File,
    io::{self, Seek},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64},
    },
};

use super::{
    Work,
    assemble::{Written, identity_of},
    blocking,
    contents::Contents,
    copy,
    layers::entry_name,
    own::counted,
    progress::{Phase, megabytes},
    publish::{self, Draft},
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
        let transfer = Box::pin(self.transfer(work, &record, source, draft));
        let (way, checksum) = match transfer.await? {
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

    /// Copies the image and hashes what goes into the copy; then it is also on the disk. Gives the way in words, and the hash. The outer
    /// error ends the build, the inner one this attempt.
    ///
    /// Blocks are shared where both lie on one file system that can (ioctl_ficlone(2)). Nothing of the copy is linked to
    /// the old image in a way that a later write to either would show in the other.
    async fn transfer(
        &self,
        work: &Work<'_>,
        record: &ImageRecord,
        source: File,
        draft: &Draft,
    ) -> Result<io::Result<(&'static str, String)>, BuildError> {
        let target = draft
            .file()
            .try_clone()
            .map_err(|error| BuildError::internal("copy an image", error))?;
        let size_bytes = record.size_bytes;
        let prepared = counted(work, move || {
            if rustix::fs::ioctl_ficlone(&target, &source).is_ok() {
                // It may have grown since it was looked at.
                target.set_len(size_bytes)?;
                return Ok(Prepared::Shared(target));
            }
            copy::prepare(source, target, size_bytes).map(Prepared::Copy)
        });
        let writing = |error| BuildError::from_io("write the image", error);
        match prepared.await?.map_err(writing)? {
            Prepared::Shared(image) => {
                let hash = hash_shared(work, size_bytes, image, draft).await?;
                Ok(hash.map(|hash| ("its blocks are shared", hash)))
            }
            Prepared::Copy(parts) => {
                let (read, written, hash) = run(work, parts).await?;
                written.map_err(writing)?;
                if let Err(error) = read {
                    return Ok(Err(error));
                }
                draft.sync().await?;
                Ok(Ok(("copied", hash)))
            }
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

/// How an image becomes another one.
enum Prepared {
    /// It has all blocks already.
    Shared(File),
    Copy((copy::Reader, copy::Writer, copy::Hasher)),
}

/// Runs the parts of a copy side by side. Gives what came of reading and of writing, and the hash.
async fn run(
    work: &Work<'_>,
    (reader, writer, hasher): (copy::Reader, copy::Writer, copy::Hasher),
) -> Result<(io::Result<()>, io::Result<()>, String), BuildError> {
    let done = Arc::new(AtomicU64::new(0));
    let given_up = Arc::new(AtomicBool::new(false));
    let reading = {
        let given_up = Arc::clone(&given_up);
        counted(work, move || reader.run(&given_up))
    };
    let writing = {
        let given_up = Arc::clone(&given_up);
        counted(work, move || writer.run(&given_up))
    };
    let hashing = {
        let (done, given_up) = (Arc::clone(&done), Arc::clone(&given_up));
        counted(work, move || hasher.run(&done, &given_up))
    };
    let all = async {
        let (read, written, hash) = tokio::join!(reading, writing, hashing);
        Ok((read?, written?, hash?))
    };
    publish::watched(work, all, &done, &given_up).await
}

/// Hashes an image while it goes to the disk.
async fn hash_shared(
    work: &Work<'_>,
    size_bytes: u64,
    image: File,
    draft: &Draft,
) -> Result<io::Result<String>, BuildError> {
    let done = Arc::new(AtomicU64::new(0));
    let given_up = Arc::new(AtomicBool::new(false));
    let hashing = {
        let (done, given_up) = (Arc::clone(&done), Arc::clone(&given_up));
        counted(work, move || {
            publish::hash(&image, &Contents::default(), size_bytes, &done, &given_up)
        })
    };
    let hashing = publish::watched(work, hashing, &done, &given_up);
    let (synced, hash) = tokio::join!(draft.sync(), hashing);
    synced?;
    hash
}
