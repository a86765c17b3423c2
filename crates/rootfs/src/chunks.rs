//! Chunks: which 512 KiB of one image are also in another.
//!
//! The writer puts each layer's contents on 512 KiB boundaries, so that images with a layer in common have its chunks in
//! common. Storage that keeps each chunk once, and hosts that load images by chunks, keep and load such a layer once.
//!
//! A chunk is named by the hash of the block of leaf hashes that dm-verity has for it ([`verity`](crate::verity)):
//! SHA-256 over the salt and the 128 hashes of the chunk's blocks, each of which is SHA-256 over the salt and the block.
//! Two chunks have the same name exactly if they have the same bytes, as with a SHA-256 over the bytes themselves; but
//! this one follows from the leaf hashes that are kept beside each pack, so that the chunks of an image are known
//! without reading its contents.
//!
//! A chunk of zeros takes no space and no transfer. It has no name, and is counted apart.

use std::{collections::BTreeSet, fs::File, io, os::unix::fs::FileExt as _};

use crate::{
    pack::BLOCK_SIZE,
    verity::{HASH_BYTES, HASHES_PER_BLOCK, Hash, Leaves, hash_block, read_and_hash, zero_hash},
};

/// Bytes of a chunk: as many as one block of dm-verity's lowest level stands for. The last chunk of a file may be
/// shorter.
pub const CHUNK_BYTES: u64 = HASHES_PER_BLOCK * BLOCK_SIZE;

/// The chunks of an image, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChunkList {
    size_bytes: u64,
    /// `None` for a chunk of zeros.
    chunks: Vec<Option<Hash>>,
}

/// How many chunks there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ChunkCount {
    /// Different chunks that are not all zero.
    pub chunks: u64,
    /// Their bytes: a chunk that occurs twice counts once.
    pub bytes: u64,
}

/// What two images share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Comparison {
    /// Of the first image.
    pub first: ChunkCount,
    /// Of the second image.
    pub second: ChunkCount,
    /// In both.
    pub shared: ChunkCount,
    /// Chunks of zeros in the first image.
    pub first_zero_chunks: u64,
    /// Chunks of zeros in the second image.
    pub second_zero_chunks: u64,
}

impl Comparison {
    /// How much of the second image is in the first, too: chunks in percent, `0.0..=100.0`. An image of nothing but
    /// zeros is there altogether.
    #[must_use]
    #[expect(
        clippy::cast_precision_loss,
        reason = "a percentage, and counts far below 2^52"
    )]
    pub fn percent_of_second(&self) -> f64 {
        if self.second.chunks == 0 {
            return 100.0;
        }
        100.0 * self.shared.chunks as f64 / self.second.chunks as f64
    }
}

impl ChunkList {
    /// The chunks of a file, all of which is read, by as many threads as there are processors (at most 8).
    ///
    /// # Errors
    /// `InvalidData` when the file's size is no multiple of 4,096; whatever reading reports.
    pub fn of_file(file: &File) -> io::Result<Self> {
        let size_bytes = file.metadata()?.len();
        if !size_bytes.is_multiple_of(BLOCK_SIZE) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("an image has a multiple of 4096 bytes, this file has {size_bytes}"),
            ));
        }
        let mut chunks = ChunkWriter::new(size_bytes);
        read_and_hash(
            &|bytes: &mut [u8], offset| file.read_exact_at(bytes, offset),
            0,
            size_bytes / BLOCK_SIZE,
            &mut |leaves| chunks.push(leaves),
        )?;
        Ok(chunks.finish())
    }

    /// Bytes of the image.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Each chunk's name in order, `None` for a chunk of zeros.
    #[must_use]
    pub fn chunks(&self) -> &[Option<Hash>] {
        &self.chunks
    }

    /// What `self`, the first, and `second` have in common.
    #[must_use]
    pub fn compare(&self, second: &Self) -> Comparison {
        let (first_chunks, second_chunks) = (self.distinct(), second.distinct());
        let shared = first_chunks.intersection(&second_chunks);
        Comparison {
            first: ChunkCount::of(first_chunks.iter()),
            second: ChunkCount::of(second_chunks.iter()),
            shared: ChunkCount::of(shared),
            first_zero_chunks: self.zero_chunks(),
            second_zero_chunks: second.zero_chunks(),
        }
    }

    fn zero_chunks(&self) -> u64 {
        self.chunks.iter().filter(|chunk| chunk.is_none()).count() as u64
    }

    /// Names with lengths. Chunks of different length have different names, since the missing hashes count as zeros.
    fn distinct(&self) -> BTreeSet<(Hash, u64)> {
        self.chunks
            .iter()
            .zip(0..)
            .filter_map(|(chunk, nth)| {
                Some(((*chunk)?, CHUNK_BYTES.min(self.size_bytes - nth * CHUNK_BYTES)))
            })
            .collect()
    }
}

impl ChunkCount {
    fn of<'a>(chunks: impl Iterator<Item = &'a (Hash, u64)>) -> Self {
        chunks.fold(Self::default(), |count, (_, bytes)| Self {
            chunks: count.chunks + 1,
            bytes: count.bytes + bytes,
        })
    }
}

/// Takes leaf hashes in order.
pub(crate) struct ChunkWriter {
    list: ChunkList,
    /// The hashes of the chunk that is not complete.
    block: Vec<Hash>,
}

impl ChunkWriter {
    pub(crate) fn new(size_bytes: u64) -> Self {
        Self {
            list: ChunkList {
                size_bytes,
                chunks: Vec::new(),
            },
            block: Vec::with_capacity(HASH_BLOCK_LENGTH),
        }
    }

    /// Never fails: the result is that of other takers of leaves.
    pub(crate) fn push(&mut self, leaves: Leaves<'_>) -> io::Result<()> {
        match leaves {
            Leaves::Hashes(mut hashes) => {
                while !hashes.is_empty() {
                    let (head, rest) =
                        hashes.split_at(hashes.len().min(HASH_BLOCK_LENGTH - self.block.len()));
                    self.block.extend_from_slice(head);
                    self.end_chunk_if(HASH_BLOCK_LENGTH);
                    hashes = rest;
                }
            }
            Leaves::Zeros(mut count) => {
                while count > 0 {
                    if self.block.is_empty() && count >= HASHES_PER_BLOCK {
                        self.list.chunks.push(None);
                        count -= HASHES_PER_BLOCK;
                        continue;
                    }
                    self.block.push(zero_hash());
                    self.end_chunk_if(HASH_BLOCK_LENGTH);
                    count -= 1;
                }
            }
        }
        Ok(())
    }

    pub(crate) fn finish(mut self) -> ChunkList {
        self.end_chunk_if(1);
        self.list
    }

    /// Ends the chunk when it has at least so many blocks.
    fn end_chunk_if(&mut self, length: usize) {
        if self.block.len() < length {
            return;
        }
        let zero = zero_hash();
        let is_zero = self.block.iter().all(|hash| *hash == zero);
        let chunk = (!is_zero).then(|| hash_block(self.block.as_flattened()));
        self.list.chunks.push(chunk);
        self.block.clear();
    }
}

/// Hashes in a block of them.
const HASH_BLOCK_LENGTH: usize = 4096 / HASH_BYTES;

#[cfg(test)]
mod tests;
