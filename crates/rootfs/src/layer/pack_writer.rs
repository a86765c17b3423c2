//! Writes bodies into a pack: aligned, zero blocks left out.

use std::io::Write;

use super::{
    BodyExtent, LayerError, LayerLimits,
    budget::{Budget, EXTENT_BYTES},
    error::Fault,
    limits::Limit,
};
use crate::pack::{BLOCK_SIZE, is_zero};

const BLOCK_BYTES: usize = 4096;
const _: () = assert!(BLOCK_BYTES as u64 == BLOCK_SIZE);

/// Small writes are collected up to this size.
const BUFFER_BYTES: usize = 256 * 1024;

/// Writes of this size and more go through as they are.
const DIRECT_BYTES: usize = 128 * 1024;

/// Why a body could not be written.
pub(super) enum WriteFault {
    /// For the layer's entry, whose place the caller knows.
    Entry(Fault),
    /// For the pack.
    Pack(LayerError),
}

/// Appends to a pack. What was not [`finish`](Self::finish)ed is not complete.
pub(super) struct PackWriter<'w, W> {
    output: &'w mut W,
    buffer: Vec<u8>,
    position: u64,
    max_bytes: u64,
    /// Where blocks are put together that come in pieces.
    staging: Box<[u8; BLOCK_BYTES]>,
}

impl<'w, W: Write> PackWriter<'w, W> {
    pub(super) fn new(output: &'w mut W, limits: &LayerLimits) -> Self {
        Self {
            output,
            buffer: Vec::with_capacity(BUFFER_BYTES),
            position: 0,
            max_bytes: limits.max_output_bytes,
            staging: Box::new([0; BLOCK_BYTES]),
        }
    }

    /// Starts a body of `size` bytes, whose extents are charged to `budget`.
    pub(super) fn body<'p>(&'p mut self, size: u64, budget: &'p mut Budget) -> BodyWriter<'p, 'w, W> {
        BodyWriter {
            pack: self,
            size,
            budget,
            extents: Vec::new(),
            staged: None,
        }
    }

    /// Writes what is left and says how long the pack is.
    pub(super) fn finish(mut self) -> Result<u64, LayerError> {
        self.flush()?;
        self.output.flush().map_err(LayerError::Pack)?;
        Ok(self.position)
    }

    /// Appends whole blocks.
    fn append(&mut self, blocks: &[u8]) -> Result<(), WriteFault> {
        debug_assert_eq!(blocks.len() % BLOCK_BYTES, 0);
        let value = self.position + blocks.len() as u64;
        if value > self.max_bytes {
            return Err(WriteFault::Entry(Fault::Limit {
                limit: Limit::OutputBytes,
                value,
                allowed: self.max_bytes,
                attribute: None,
            }));
        }
        self.position = value;
        let is_large = blocks.len() >= DIRECT_BYTES;
        if is_large || self.buffer.len() + blocks.len() > BUFFER_BYTES {
            self.flush().map_err(WriteFault::Pack)?;
        }
        if is_large {
            return self
                .output
                .write_all(blocks)
                .map_err(|error| WriteFault::Pack(LayerError::Pack(error)));
        }
        self.buffer.extend_from_slice(blocks);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), LayerError> {
        self.output.write_all(&self.buffer).map_err(LayerError::Pack)?;
        self.buffer.clear();
        Ok(())
    }
}

/// Takes one file's bytes in ascending order and makes extents of them.
pub(super) struct BodyWriter<'p, 'w, W> {
    pack: &'p mut PackWriter<'w, W>,
    size: u64,
    budget: &'p mut Budget,
    extents: Vec<BodyExtent>,
    /// Logical offset of the block that is being put together, if there is one.
    staged: Option<u64>,
}

impl<W: Write> BodyWriter<'_, '_, W> {
    /// Takes `bytes` as those of the file from `offset` on. Offsets ascend from call to call, and what lies between is
    /// zero.
    pub(super) fn write(&mut self, mut offset: u64, mut bytes: &[u8]) -> Result<(), WriteFault> {
        while !bytes.is_empty() {
            let start = offset - offset % BLOCK_SIZE;
            if self.staged.is_some_and(|staged| staged != start) {
                self.put_staged()?;
            }
            let count = if offset == start && self.staged.is_none() && bytes.len() >= BLOCK_BYTES {
                let count = bytes.len() - bytes.len() % BLOCK_BYTES;
                self.put_blocks(start, &bytes[..count])?;
                count
            } else {
                if self.staged.is_none() {
                    self.pack.staging.fill(0);
                    self.staged = Some(start);
                }
                let within = usize::try_from(offset - start).expect("less than one block");
                let count = bytes.len().min(BLOCK_BYTES - within);
                self.pack.staging[within..within + count].copy_from_slice(&bytes[..count]);
                if within + count == BLOCK_BYTES {
                    self.put_staged()?;
                }
                count
            };
            offset += count as u64;
            bytes = &bytes[count..];
        }
        Ok(())
    }

    /// The body's extents, after its last byte.
    pub(super) fn finish(mut self) -> Result<Vec<BodyExtent>, WriteFault> {
        self.put_staged()?;
        // Most files have one extent, and there are many files.
        self.extents.shrink_to_fit();
        Ok(self.extents)
    }

    fn put_staged(&mut self) -> Result<(), WriteFault> {
        let Some(start) = self.staged.take() else {
            return Ok(());
        };
        if is_zero(&self.pack.staging[..]) {
            return Ok(());
        }
        let pack_offset = self.pack.position;
        // A copy of one block, so that `append` may borrow the writer.
        let block = *self.pack.staging;
        self.pack.append(&block)?;
        self.push(BodyExtent {
            logical_offset: start,
            pack_offset,
            length: BLOCK_SIZE.min(self.size - start),
        })
    }

    /// Appends the blocks that are not zero, in runs as long as possible.
    fn put_blocks(&mut self, start: u64, blocks: &[u8]) -> Result<(), WriteFault> {
        let mut run_start = None;
        let count = blocks.len() / BLOCK_BYTES;
        for index in 0..=count {
            let at = index * BLOCK_BYTES;
            let is_data = index < count && !is_zero(&blocks[at..at + BLOCK_BYTES]);
            match (run_start, is_data) {
                (None, true) => run_start = Some(at),
                (Some(from), false) => {
                    run_start = None;
                    let pack_offset = self.pack.position;
                    self.pack.append(&blocks[from..at])?;
                    self.push(BodyExtent {
                        logical_offset: start + from as u64,
                        pack_offset,
                        length: (at - from) as u64,
                    })?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Adds an extent, or makes the last one longer where both lie together in file and pack.
    fn push(&mut self, extent: BodyExtent) -> Result<(), WriteFault> {
        if let Some(last) = self.extents.last_mut()
            && last.logical_offset + last.length == extent.logical_offset
            && last.pack_offset + last.length == extent.pack_offset
        {
            last.length += extent.length;
            return Ok(());
        }
        self.budget.charge(EXTENT_BYTES).map_err(WriteFault::Entry)?;
        self.extents.push(extent);
        Ok(())
    }
}
