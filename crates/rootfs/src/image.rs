//! What every image backend takes and gives.

use std::{fs::File, io, os::unix::fs::FileExt as _};

use sha2::{Digest as _, Sha256};

use crate::{
    chunks::ChunkList,
    pack::{PackId, Packs},
    tree::Tree,
    verity::Verity,
};

/// How an image will be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Profile {
    /// Written to by the guest: journal, free space and inodes as asked, growable.
    #[default]
    ReadWrite,
    /// Never written to: no journal, nothing free.
    ReadOnly,
}

/// Default of [`ImageOptions::free_space_bytes`]: 256 MiB, sparse.
pub const DEFAULT_FREE_SPACE_BYTES: u64 = 256 << 20;

/// Default of [`ImageOptions::free_inodes`].
pub const DEFAULT_FREE_INODES: u64 = 16_384;

/// What to make of a tree.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ImageOptions {
    /// How the image will be used.
    pub profile: Profile,
    /// Free bytes that the guest finds ([`Profile::ReadWrite`] only).
    pub free_space_bytes: u64,
    /// Free inodes that the guest finds ([`Profile::ReadWrite`] only).
    pub free_inodes: u64,
    /// The image may have at most so many bytes, free space included; `None` for no limit. Checked before the first
    /// write.
    pub max_image_bytes: Option<u64>,
    /// Whether a dm-verity hash tree follows the file system ([`verity`](crate::verity)). [`Profile::ReadOnly`] only.
    pub verity: bool,
    /// What to find out beside. The image is the same whatever is asked for.
    pub findings: Findings,
    /// What UUID and directory hash seed are derived from: a SHA-256 over everything that decides the content (layers,
    /// edits, options). Equal input must give an equal value; the backend mixes in its own name and version.
    pub identity: [u8; 32],
}

impl ImageOptions {
    /// Read-write, with the default free space and inodes, no size limit and no hash tree.
    #[must_use]
    pub fn new(identity: [u8; 32]) -> Self {
        Self {
            profile: Profile::ReadWrite,
            free_space_bytes: DEFAULT_FREE_SPACE_BYTES,
            free_inodes: DEFAULT_FREE_INODES,
            max_image_bytes: None,
            verity: false,
            findings: Findings::default(),
            identity,
        }
    }

    /// Refuses what contradicts itself.
    pub(crate) fn check(&self) -> Result<(), ImageError> {
        if self.verity && self.profile != Profile::ReadOnly {
            return Err(ImageError::Options {
                reason: "a hash tree is for read-only images: the first write of a guest would break it",
            });
        }
        Ok(())
    }
}

/// What to find out while an image is written, because that costs less than reading it again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Findings {
    /// [`ImageSummary::sha256`].
    pub sha256: bool,
    /// [`ImageSummary::chunks`].
    pub chunks: bool,
}

impl Findings {
    /// Finds it out from a finished image, by reading it once for each.
    pub(crate) fn of_file(self, image: &File) -> io::Result<(Option<[u8; 32]>, Option<ChunkList>)> {
        let chunks = self.chunks.then(|| ChunkList::of_file(image)).transpose()?;
        if !self.sha256 {
            return Ok((None, chunks));
        }
        let mut digest = Sha256::new();
        let mut buffer = vec![0; 256 << 10];
        let mut offset = 0;
        loop {
            match image.read_at(&mut buffer, offset) {
                Ok(0) => return Ok((Some(digest.finalize().into()), chunks)),
                Ok(count) => {
                    digest.update(&buffer[..count]);
                    offset += count as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// What became of a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ImageSummary {
    /// Size of the image in bytes, holes and the hash tree included.
    pub size_bytes: u64,
    /// The file system's UUID.
    pub uuid: [u8; 16],
    /// Inodes in use, the reserved ones included.
    pub inodes_used: u64,
    /// The hash tree, with [`ImageOptions::verity`].
    pub verity: Option<Verity>,
    /// SHA-256 of the whole file, with [`Findings::sha256`].
    pub sha256: Option<[u8; 32]>,
    /// Chunks of the whole file, with [`Findings::chunks`].
    pub chunks: Option<ChunkList>,
}

/// Why an image could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// Reading a pack or writing the image failed.
    #[error("failed to {action}")]
    Io {
        /// What was being done, as `write the image`.
        action: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The options contradict each other.
    #[error("the options contradict each other: {reason}")]
    Options {
        /// Which, and why.
        reason: &'static str,
    },
    /// The image would be larger than allowed.
    #[error("the image needs {needed_bytes} bytes, {limit_bytes} are allowed")]
    TooLarge {
        /// What it would take.
        needed_bytes: u64,
        /// [`ImageOptions::max_image_bytes`].
        limit_bytes: u64,
    },
    /// ext4 cannot hold what the tree says.
    #[error("ext4 cannot hold {path}: {reason}", path = crate::text::printable(path))]
    Unrepresentable {
        /// Where in the tree.
        path: Vec<u8>,
        /// What is too much, with the limit.
        reason: String,
    },
    /// A file names a pack that was not given, or a range outside it.
    #[error("a file refers to pack {} that was not given", pack.0)]
    MissingPack {
        /// The pack.
        pack: PackId,
    },
    /// The backend needs something that this host or this user does not have.
    #[error("the {backend} backend cannot run here: {reason}")]
    Unavailable {
        /// The backend's name.
        backend: &'static str,
        /// What is missing, and how to get it.
        reason: String,
    },
    /// An external program failed.
    #[error("{program} failed with {status}: {message}")]
    Program {
        /// Which program.
        program: &'static str,
        /// Its exit status in words.
        status: String,
        /// The end of what it printed.
        message: String,
    },
}

/// A way to turn a tree into an ext4 image.
pub trait ImageBackend: Send + Sync {
    /// The name users choose it by: `native`, `mke2fs`.
    fn name(&self) -> &'static str;

    /// Writes the image into `output`, which is empty and opened for reading and writing. On an error the content of
    /// `output` is undefined and the caller discards it.
    ///
    /// # Errors
    /// See [`ImageError`].
    fn write(
        &self,
        tree: &Tree,
        packs: &Packs,
        options: &ImageOptions,
        output: &File,
    ) -> Result<ImageSummary, ImageError>;
}
