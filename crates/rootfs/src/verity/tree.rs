//! The tree's levels: where they lie, and writing them while leaves come in.

use std::io;

use super::{HASH_BYTES, HASHES_PER_BLOCK, Hash, SALT, Sink, Verity, hash_block, superblock, zero_hash};
use crate::pack::BLOCK_SIZE;

/// Blocks of a level are collected to this size before they are written.
const BUFFER_BYTES: usize = 256 << 10;

const BLOCK_BYTES: usize = 4096;

/// Where everything lies, known from the size of the data.
#[derive(Clone, Debug)]
pub(crate) struct Geometry {
    pub(crate) data_blocks: u64,
    /// Blocks of each level, the lowest first; none when there is one data block, whose hash is the root hash then.
    levels: Vec<u64>,
}

impl Geometry {
    /// `None` for a size that is 0 or no multiple of a block.
    pub(crate) fn of(file_system_bytes: u64) -> Option<Self> {
        if file_system_bytes == 0 || !file_system_bytes.is_multiple_of(BLOCK_SIZE) {
            return None;
        }
        let data_blocks = file_system_bytes / BLOCK_SIZE;
        let mut levels = Vec::new();
        let mut below = data_blocks;
        while below > 1 {
            below = below.div_ceil(HASHES_PER_BLOCK);
            levels.push(below);
        }
        Some(Self { data_blocks, levels })
    }

    /// Bytes of superblock and tree.
    pub(crate) fn area_bytes(&self) -> u64 {
        (1 + self.levels.iter().sum::<u64>()) * BLOCK_SIZE
    }

    pub(crate) fn hash_offset(&self) -> u64 {
        self.data_blocks * BLOCK_SIZE
    }

    /// Offset of a level: after the superblock and all higher levels.
    fn level_offset(&self, level: usize) -> u64 {
        let higher: u64 = self.levels[level + 1..].iter().sum();
        self.hash_offset() + (1 + higher) * BLOCK_SIZE
    }
}

/// One run of leaves.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Leaves<'a> {
    /// So many blocks of zeros.
    Zeros(u64),
    /// The hashes of blocks in order.
    Hashes(&'a [Hash]),
}

/// Takes the leaves in order and writes each block of the tree once.
///
/// It holds some hundred KiB, however large the image.
pub(crate) struct TreeWriter<'a> {
    geometry: Geometry,
    sink: Sink<'a>,
    levels: Vec<Level>,
    /// Leaves taken so far.
    taken: u64,
    /// The last hash that went beyond the highest level.
    root: Option<Hash>,
    zero_blocks: ZeroBlocks,
}

/// What is collected of one level.
struct Level {
    /// Where the buffer's first byte goes.
    offset: u64,
    buffer: Vec<u8>,
}

/// A block of hashes of zero blocks, and its hash: holes are a good part of many images.
struct ZeroBlocks {
    block: Box<[u8; BLOCK_BYTES]>,
    hash: Hash,
}

impl<'a> TreeWriter<'a> {
    /// The sink has its length already.
    pub(crate) fn new(geometry: Geometry, sink: Sink<'a>) -> Self {
        let levels = (0..geometry.levels.len())
            .map(|level| Level {
                offset: geometry.level_offset(level),
                buffer: Vec::new(),
            })
            .collect();
        let mut block = Box::new([0; BLOCK_BYTES]);
        for slot in block.as_chunks_mut::<HASH_BYTES>().0 {
            *slot = zero_hash();
        }
        let hash = hash_block(&block[..]);
        Self {
            geometry,
            sink,
            levels,
            taken: 0,
            root: None,
            zero_blocks: ZeroBlocks { block, hash },
        }
    }

    /// Takes the next leaves.
    pub(crate) fn push(&mut self, leaves: Leaves<'_>) -> io::Result<()> {
        match leaves {
            Leaves::Hashes(hashes) => {
                for hash in hashes {
                    self.push_to(0, hash)?;
                }
                self.taken += hashes.len() as u64;
            }
            Leaves::Zeros(mut count) => {
                while count > 0 {
                    let whole = count >= HASHES_PER_BLOCK
                        && self.taken.is_multiple_of(HASHES_PER_BLOCK)
                        && !self.levels.is_empty();
                    let step = if whole {
                        self.levels[0]
                            .buffer
                            .extend_from_slice(&self.zero_blocks.block[..]);
                        let hash = self.zero_blocks.hash;
                        self.flush_if_full(0)?;
                        self.push_to(1, &hash)?;
                        HASHES_PER_BLOCK
                    } else {
                        self.push_to(0, &zero_hash())?;
                        1
                    };
                    self.taken += step;
                    count -= step;
                }
            }
        }
        Ok(())
    }

    /// Adds a hash to a level, and what becomes full by it to the levels above.
    fn push_to(&mut self, level: usize, hash: &Hash) -> io::Result<()> {
        let mut level = level;
        let mut hash = *hash;
        loop {
            let Some(current) = self.levels.get_mut(level) else {
                self.root = Some(hash);
                return Ok(());
            };
            current.buffer.extend_from_slice(&hash);
            if !current.buffer.len().is_multiple_of(BLOCK_BYTES) {
                return Ok(());
            }
            hash = last_block_hash(&current.buffer);
            self.flush_if_full(level)?;
            level += 1;
        }
    }

    fn flush_if_full(&mut self, level: usize) -> io::Result<()> {
        if self.levels[level].buffer.len() >= BUFFER_BYTES {
            self.flush(level)?;
        }
        Ok(())
    }

    fn flush(&mut self, level: usize) -> io::Result<()> {
        let level = &mut self.levels[level];
        if !level.buffer.is_empty() {
            self.sink.write_at(&level.buffer, level.offset)?;
            level.offset += level.buffer.len() as u64;
            level.buffer.clear();
        }
        Ok(())
    }

    /// Completes the levels and writes the superblock.
    ///
    /// # Panics
    /// Unless exactly as many leaves came as there are data blocks.
    pub(crate) fn finish(mut self) -> io::Result<Verity> {
        assert_eq!(self.taken, self.geometry.data_blocks, "every block has one leaf");
        for level in 0..self.levels.len() {
            let buffer = &mut self.levels[level].buffer;
            let hash = if buffer.len().is_multiple_of(BLOCK_BYTES) {
                None
            } else {
                buffer.resize(buffer.len().next_multiple_of(BLOCK_BYTES), 0);
                Some(last_block_hash(buffer))
            };
            self.flush(level)?;
            if let Some(hash) = hash {
                self.push_to(level + 1, &hash)?;
            }
        }
        let root_hash = self
            .root
            .expect("the top level has one block, and it was completed");
        let uuid = superblock::uuid(&root_hash);
        let hash_offset = self.geometry.hash_offset();
        self.sink
            .write_at(&superblock::encode(&uuid, self.geometry.data_blocks), hash_offset)?;
        Ok(Verity {
            root_hash,
            salt: SALT,
            uuid,
            hash_offset,
            data_blocks: self.geometry.data_blocks,
            hash_area_bytes: self.geometry.area_bytes(),
        })
    }
}

/// The hash of the last block of a buffer that holds whole blocks.
fn last_block_hash(buffer: &[u8]) -> Hash {
    let block = buffer
        .last_chunk::<BLOCK_BYTES>()
        .expect("a hash was just added that completed a block");
    hash_block(block)
}
