//! The contents of files: copied from the packs into the image by this process, and hashed at the same time.
//!
//! The worker that has read the layers' indexes writes the structures of the file system, says which range of which pack
//! belongs where, and is gone when this begins. So nobody but this process writes to the image any more, and its checksum
//! can be computed while the copy is under way: structures from the image, contents from the packs.

use std::{
    fs::File,
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use rootfs::{
    ext4::{BodyCopy, ImageSink as _},
    pack::{Pack, Packs},
};

use super::{
    Work,
    direct::Direct,
    own::counted,
    progress::Phase,
    publish::{self, Draft},
};
use crate::{build::BuildState, error::BuildError, pack_cache::LayerFile};

/// Bytes that are copied between two looks at whether the build is still wanted.
const STEP_BYTES: u64 = 16 << 20;

/// What has yet to be copied into an image.
#[derive(Clone, Debug, Default)]
pub(super) struct Contents {
    /// Ascending in the image, without overlaps, within packs and image.
    pub(super) copies: Vec<BodyCopy>,
    pub(super) packs: Packs,
}

impl Contents {
    /// Checked copies out of the packs of these layers.
    pub(super) fn new(copies: Vec<BodyCopy>, layers: &[LayerFile]) -> io::Result<Self> {
        let mut packs = Packs::new();
        for layer in layers {
            packs.push(Pack::File(Arc::new(layer.file.try_clone()?)));
        }
        Ok(Self { copies, packs })
    }

    /// The pack of one of the copies.
    pub(super) fn pack(&self, copy: &BodyCopy) -> io::Result<&Pack> {
        self.packs
            .get(copy.pack)
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn copy_into(&self, image: &File, given_up: &AtomicBool) -> io::Result<()> {
        let mut direct = Direct::open(image);
        for copy in &self.copies {
            let pack = self.pack(copy)?;
            let mut done = 0;
            while done < copy.length {
                if given_up.load(Ordering::Relaxed) {
                    return Ok(());
                }
                let length = (copy.length - done).min(STEP_BYTES);
                let (from, to) = (copy.pack_offset + done, copy.image_offset + done);
                let is_copied = match &mut direct {
                    Some(direct) => direct.copy(pack, from, to, length)?,
                    None => false,
                };
                if !is_copied {
                    image.copy_from_pack(pack, from, to, length)?;
                }
                done += length;
            }
        }
        Ok(())
    }
}

/// An image whose contents are in it and on the disk.
pub(super) struct Filled {
    /// SHA-256 of the image in hexadecimal.
    pub(super) checksum: String,
    /// When the last content was in it, counted from the start of the build.
    pub(super) copied: Duration,
}

/// Copies the contents into the image, waits until it is on the disk, and hashes it meanwhile.
pub(super) async fn fill(
    work: &Work<'_>,
    contents: Contents,
    draft: &Draft,
    size_bytes: u64,
) -> Result<Filled, BuildError> {
    work.progress.begin(Phase::Hash, size_bytes).await;
    let contents = Arc::new(contents);
    let done = Arc::new(AtomicU64::new(0));
    // Either thread ends when the other fails.
    let given_up = Arc::new(AtomicBool::new(false));
    let writing = |error: io::Error| BuildError::from_io("write the image", error);
    let reading = |error: io::Error| BuildError::from_io("read the image", error);
    let copying = {
        let image = draft.file().try_clone().map_err(writing)?;
        let (contents, given_up) = (Arc::clone(&contents), Arc::clone(&given_up));
        counted(work, move || {
            let copied = contents.copy_into(&image, &given_up);
            if copied.is_err() {
                given_up.store(true, Ordering::Relaxed);
            }
            copied
        })
    };
    let hashing = {
        let image = draft.file().try_clone().map_err(reading)?;
        let (done, given_up) = (Arc::clone(&done), Arc::clone(&given_up));
        counted(work, move || {
            let hashed = publish::hash(&image, &contents, size_bytes, &done, &given_up);
            if hashed.is_err() {
                given_up.store(true, Ordering::Relaxed);
            }
            hashed
        })
    };
    let to_disk = async {
        publish::watched(work, copying, &done, &given_up)
            .await?
            .map_err(writing)?;
        work.progress.enter(BuildState::Optimizing).await;
        let copied = work.progress.elapsed();
        // The disk is busy beside the rest of the hashing with what publishing would have to wait for.
        draft.sync().await?;
        Ok::<_, BuildError>(copied)
    };
    let (copied, checksum) = tokio::join!(to_disk, publish::watched(work, hashing, &done, &given_up));
    let copied = copied?;
    Ok(Filled {
        checksum: checksum?.map_err(reading)?,
        copied,
    })
}
