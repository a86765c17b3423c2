//! Leaf hashes: computing them, and keeping those of a pack in a file beside it.
//!
//! ```text
//! length  content                                   all numbers little endian
//!      8  magic "rfsleafs"
//!      4  FORMAT_VERSION
//!     32  the salt
//!      8  number of blocks
//!     32  for each block: its hash
//!     32  SHA-256 over everything before
//! ```

use std::{
    fmt,
    io::{self, Read, Write},
    num::NonZero,
    sync::{LazyLock, Mutex},
    thread,
};

use sha2::{Digest, Sha256};

use super::{HASH_BYTES, Hash, SALT, tree::Leaves};
use crate::pack::{BLOCK_SIZE, Pack, is_zero};

const MAGIC: [u8; 8] = *b"rfsleafs";
const HEADER_BYTES: usize = 8 + 4 + 32 + 8;
const BLOCK_BYTES: usize = 4096;

/// Blocks that one thread reads and hashes at a time: 1 MiB.
const SPAN_BLOCKS: usize = 256;

/// Threads that hash one pack, at most. More do not help: the pack is read through the page cache.
const MAX_THREADS: usize = 8;

/// Blocks that are hashed before their hashes are passed on: 64 MiB, enough for all threads.
const BATCH_BLOCKS: usize = 16 << 10;

/// Hashes that are read at a time, so that a header that promises too much costs no memory.
const HASHES_PER_READ: u64 = 4096;

/// The hasher with the salt in it.
fn salted() -> Sha256 {
    static SALTED: LazyLock<Sha256> = LazyLock::new(|| Sha256::new_with_prefix(SALT));
    SALTED.clone()
}

/// The hash of one block. A shorter one counts as padded with zeros.
pub(crate) fn hash_block(block: &[u8]) -> Hash {
    const ZEROS: [u8; BLOCK_BYTES] = [0; BLOCK_BYTES];
    let mut hasher = salted();
    hasher.update(block);
    hasher.update(&ZEROS[..BLOCK_BYTES - block.len()]);
    hasher.finalize().into()
}

/// The hashes of the blocks of `bytes`, the last of which may be short.
pub(crate) fn hash_blocks(bytes: &[u8]) -> impl Iterator<Item = Hash> {
    bytes.chunks(BLOCK_BYTES).map(|block| {
        if is_zero(block) {
            zero_hash()
        } else {
            hash_block(block)
        }
    })
}

/// The hash of a block of zeros.
pub(crate) fn zero_hash() -> Hash {
    static ZERO: LazyLock<Hash> = LazyLock::new(|| hash_block(&[]));
    *ZERO
}

/// Reads the blocks from `first` on, as many as `hashes` has room for, and hashes them in as many threads as there are
/// processors (at most 8), or in the caller's alone where no thread can be had.
fn hash_into(
    read_at: &(dyn Fn(&mut [u8], u64) -> io::Result<()> + Sync),
    first: u64,
    hashes: &mut [Hash],
) -> io::Result<()> {
    let helpers = threads()
        .min(hashes.len().div_ceil(SPAN_BLOCKS))
        .saturating_sub(1);
    let spans = Mutex::new(hashes.chunks_mut(SPAN_BLOCKS).zip(0u64..));
    let failure = Mutex::new(None);
    let work = || {
        let mut bytes = vec![0; SPAN_BLOCKS * BLOCK_BYTES];
        // Ends because each round takes a span, of which there is a fixed number.
        loop {
            let span = spans.lock().expect("taking a span does not panic").next();
            let Some((span, nth)) = span else { break };
            if failure
                .lock()
                .expect("looking at an error does not panic")
                .is_some()
            {
                break;
            }
            let bytes = &mut bytes[..span.len() * BLOCK_BYTES];
            let offset = (first + nth * SPAN_BLOCKS as u64) * BLOCK_SIZE;
            if let Err(error) = read_at(bytes, offset) {
                *failure.lock().expect("keeping an error does not panic") = Some(error);
                break;
            }
            for (slot, hash) in span.iter_mut().zip(hash_blocks(bytes)) {
                *slot = hash;
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..helpers {
            // A sandbox may allow only one thread: then the others' work is done here.
            let spawned = thread::Builder::new()
                .name("leaf-hashes".to_owned())
                .spawn_scoped(scope, work);
            if spawned.is_err() {
                break;
            }
        }
        work();
    });
    match failure.into_inner().expect("keeping an error does not panic") {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

/// Reads `blocks` blocks from `first` on and passes on their hashes, some at a time.
pub(crate) fn read_and_hash(
    read_at: &(dyn Fn(&mut [u8], u64) -> io::Result<()> + Sync),
    first: u64,
    blocks: u64,
    take: &mut dyn FnMut(Leaves<'_>) -> io::Result<()>,
) -> io::Result<()> {
    let mut hashes = vec![
        [0; HASH_BYTES];
        usize::try_from(blocks).map_or(BATCH_BLOCKS, |blocks| blocks.min(BATCH_BLOCKS))
    ];
    let mut done = 0;
    while done < blocks {
        let count = usize::try_from(blocks - done).map_or(hashes.len(), |rest| rest.min(hashes.len()));
        hash_into(read_at, first + done, &mut hashes[..count])?;
        take(Leaves::Hashes(&hashes[..count]))?;
        done += count as u64;
    }
    Ok(())
}

/// The leaf hashes of a pack's blocks, in order: 32 bytes for 4,096.
#[derive(Clone, PartialEq, Eq)]
pub struct LeafHashes {
    hashes: Vec<Hash>,
}

impl fmt::Debug for LeafHashes {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("LeafHashes")
            .field("blocks", &self.hashes.len())
            .finish()
    }
}

/// Why kept leaf hashes could not be read. They are then computed again from the pack.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LeafHashesError {
    /// Reading failed.
    #[error("failed to read the leaf hashes")]
    Io(#[source] io::Error),
    /// The file does not begin as kept leaf hashes do.
    #[error("these are no leaf hashes")]
    NotLeafHashes,
    /// Another format, or hashes with another salt.
    #[error(
        "the leaf hashes have format version {found}, expected {}",
        LeafHashes::FORMAT_VERSION
    )]
    Version {
        /// The version it names.
        found: u32,
    },
    /// The salt is not the one of this version.
    #[error("the leaf hashes were made with another salt")]
    Salt,
    /// Made for a pack of another size.
    #[error("the leaf hashes are of {found} blocks, the pack has {expected}")]
    Blocks {
        /// Blocks that the file names.
        found: u64,
        /// Blocks of the pack.
        expected: u64,
    },
    /// The file ends too early.
    #[error("the leaf hashes end too early")]
    Truncated,
    /// The digest at the end is not that of the content.
    #[error("the leaf hashes are damaged: their digest is wrong")]
    Digest,
    /// Something follows the digest.
    #[error("something follows the end of the leaf hashes")]
    TrailingBytes,
}

impl LeafHashes {
    /// Version of the byte form. Counts up with every change of it or of what is hashed.
    pub const FORMAT_VERSION: u32 = 1;

    /// Hashes the first `size_bytes` bytes of a pack, in as many threads as there are processors (at most 8), or in the
    /// caller's alone where no thread can be had.
    ///
    /// # Errors
    /// `InvalidInput` when `size_bytes` is no multiple of 4,096; `UnexpectedEof` when the pack is shorter; whatever
    /// reading reports.
    pub fn of_pack(pack: &Pack, size_bytes: u64) -> io::Result<Self> {
        Self::of_blocks(size_bytes, |buffer, offset| pack.read_exact_at(buffer, offset))
    }

    /// The same of what `read` fills its buffer with from an offset on. It is called in several threads at once, and its
    /// first error ends the work: the way to leave the pack of a layer that nobody wants any more.
    ///
    /// # Errors
    /// `InvalidInput` when `size_bytes` is no multiple of 4,096, and that of `read`.
    pub fn of_blocks(
        size_bytes: u64,
        read: impl Fn(&mut [u8], u64) -> io::Result<()> + Sync,
    ) -> io::Result<Self> {
        let blocks = blocks_of(size_bytes)?;
        let count = usize::try_from(blocks).map_err(|_| io::ErrorKind::OutOfMemory)?;
        let mut hashes = vec![[0; HASH_BYTES]; count];
        hash_into(&read, 0, &mut hashes)?;
        Ok(Self { hashes })
    }

    /// Blocks of 4,096 bytes that these are the hashes of.
    #[must_use]
    pub fn blocks(&self) -> u64 {
        self.hashes.len() as u64
    }

    /// All hashes in order.
    #[must_use]
    pub fn hashes(&self) -> &[Hash] {
        &self.hashes
    }

    /// Whether the pack still holds the bytes that were hashed. All of it is read.
    ///
    /// # Errors
    /// Whatever reading the pack reports; a pack that is too short is one that differs.
    pub fn verify(&self, pack: &Pack) -> io::Result<bool> {
        match Self::of_pack(pack, self.blocks() * BLOCK_SIZE) {
            Ok(actual) => Ok(actual == *self),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Writes the byte form: 84 bytes and 32 for each block.
    ///
    /// # Errors
    /// Whatever the writer reports.
    pub fn write_to(&self, mut writer: impl Write) -> io::Result<()> {
        let mut digest = Sha256::new();
        let mut put = |bytes: &[u8]| {
            digest.update(bytes);
            writer.write_all(bytes)
        };
        put(&MAGIC)?;
        put(&Self::FORMAT_VERSION.to_le_bytes())?;
        put(&SALT)?;
        put(&self.blocks().to_le_bytes())?;
        put(self.hashes.as_flattened())?;
        let digest = digest.finalize();
        writer.write_all(&digest)?;
        writer.flush()
    }

    /// Reads the byte form of the leaf hashes of a pack of `pack_size_bytes`, to the end of the reader, and no more than
    /// these need.
    ///
    /// The digest finds damage. It proves nothing about who made the file: keep it where only its maker can write.
    ///
    /// # Errors
    /// See [`LeafHashesError`].
    pub fn read_from(mut reader: impl Read, pack_size_bytes: u64) -> Result<Self, LeafHashesError> {
        let mut digest = Sha256::new();
        let mut header = [0; HEADER_BYTES];
        read_exact(&mut reader, &mut header)?;
        digest.update(header);
        let (magic, rest) = header.split_at(8);
        let (version, rest) = rest.split_at(4);
        let (salt, blocks) = rest.split_at(32);
        if magic != MAGIC {
            return Err(LeafHashesError::NotLeafHashes);
        }
        let found = u32::from_le_bytes(version.try_into().expect("four bytes"));
        if found != Self::FORMAT_VERSION {
            return Err(LeafHashesError::Version { found });
        }
        if salt != SALT {
            return Err(LeafHashesError::Salt);
        }
        let found = u64::from_le_bytes(blocks.try_into().expect("eight bytes"));
        let expected = pack_size_bytes / BLOCK_SIZE;
        if found != expected || !pack_size_bytes.is_multiple_of(BLOCK_SIZE) {
            return Err(LeafHashesError::Blocks { found, expected });
        }
        let mut hashes: Vec<Hash> = Vec::new();
        let mut left = found;
        while left > 0 {
            let count = left.min(HASHES_PER_READ);
            let start = hashes.len();
            hashes.resize(
                start + usize::try_from(count).expect("at most 4096"),
                [0; HASH_BYTES],
            );
            let bytes = hashes[start..].as_flattened_mut();
            read_exact(&mut reader, bytes)?;
            digest.update(bytes);
            left -= count;
        }
        let mut expected = [0; 32];
        read_exact(&mut reader, &mut expected)?;
        if digest.finalize()[..] != expected {
            return Err(LeafHashesError::Digest);
        }
        match reader.read(&mut [0]) {
            Ok(0) => Ok(Self { hashes }),
            Ok(_) => Err(LeafHashesError::TrailingBytes),
            Err(error) => Err(LeafHashesError::Io(error)),
        }
    }
}

fn read_exact(reader: &mut impl Read, buffer: &mut [u8]) -> Result<(), LeafHashesError> {
    reader.read_exact(buffer).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => LeafHashesError::Truncated,
        _ => LeafHashesError::Io(error),
    })
}

fn blocks_of(size_bytes: u64) -> io::Result<u64> {
    if size_bytes.is_multiple_of(BLOCK_SIZE) {
        return Ok(size_bytes / BLOCK_SIZE);
    }
    Err(io::Error::new(
        io::ErrorKind::InvalidInput,
        format!("a pack of {size_bytes} bytes is not a number of blocks of 4096 bytes"),
    ))
}

fn threads() -> usize {
    thread::available_parallelism()
        .map_or(1, NonZero::get)
        .min(MAX_THREADS)
}
