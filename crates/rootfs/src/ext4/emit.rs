//! The file system's own structures, each made and written once.

use std::convert::Infallible;

use super::{
    checksum::Checksum,
    extent,
    format::{
        BLOCK, BLOCK_BYTES, BLOCKS_PER_GROUP, BlockBytes, INODE_BYTES, INODES_PER_BLOCK, JOURNAL_INODE,
        RESIZE_INODE, ROOT_INODE, index, low_u16, low_u32, mode,
    },
    inode::{self, Record},
    journal,
    output::io_error,
    plan::{Plan, number_of},
    resize,
    sink::ImageSink,
    superblock::{GroupDescriptor, Superblock},
    xattr,
};
use crate::{
    InodeKind,
    image::{ImageError, Profile},
    pack::is_zero,
};

/// Bytes collected before they are written.
const WRITE_BUFFER_BYTES: usize = 1 << 20;

/// Blocks of the inode table that hold only zeros are not written; neither is anything else that is zero.
impl Plan<'_> {
    /// Writes everything but what [`Plan::copies`] lists. The sink has its length already.
    ///
    /// # Errors
    /// `Io` when the sink fails.
    pub fn emit_metadata(&self, sink: &dyn ImageSink) -> Result<(), ImageError> {
        let mut emitter = Emitter {
            plan: self,
            seed: Checksum::of_file_system(&self.uuid),
            writer: BlockWriter {
                sink,
                buffer: Vec::new(),
                start: 0,
            },
        };
        emitter.run()
    }
}

/// Joins neighbouring blocks into large writes and leaves out blocks of zeros.
struct BlockWriter<'a> {
    sink: &'a dyn ImageSink,
    buffer: Vec<u8>,
    /// Block of the buffer's first byte.
    start: u64,
}

impl BlockWriter<'_> {
    /// Writes one block, or less of it when the rest is zero.
    fn put(&mut self, number: u64, bytes: &[u8]) -> Result<(), ImageError> {
        if is_zero(bytes) {
            return Ok(());
        }
        let next = self.start + self.buffer.len() as u64 / BLOCK_BYTES;
        if number != next || self.buffer.len() >= WRITE_BUFFER_BYTES {
            self.flush()?;
            self.start = number;
        }
        self.buffer.extend_from_slice(bytes);
        self.buffer.resize(self.buffer.len().next_multiple_of(BLOCK), 0);
        Ok(())
    }

    /// Writes whole blocks from `number` on.
    fn put_all(&mut self, number: u64, bytes: &[u8]) -> Result<(), ImageError> {
        for (block, nth) in bytes.chunks(BLOCK).zip(0..) {
            self.put(number + nth, block)?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), ImageError> {
        if !self.buffer.is_empty() {
            self.sink
                .write_at(&self.buffer, self.start * BLOCK_BYTES)
                .map_err(io_error("write the file system's structures"))?;
            self.buffer.clear();
        }
        Ok(())
    }
}

struct Emitter<'a> {
    plan: &'a Plan<'a>,
    seed: Checksum,
    writer: BlockWriter<'a>,
}

impl Emitter<'_> {
    fn run(&mut self) -> Result<(), ImageError> {
        let plan = self.plan;
        let placement = &plan.placement;
        let descriptors = self.group_descriptors();
        let superblock = self.superblock();

        let mut first = [0; BLOCK];
        first[1024..2048].copy_from_slice(&superblock.encode(0));
        self.writer.put(0, &first)?;
        self.writer.put_all(1, &descriptors)?;
        for nth in
            placement.descriptor_blocks..placement.descriptor_blocks + placement.reserved_descriptor_blocks
        {
            self.writer
                .put(1 + nth, &resize::copies(nth, placement.backups.groups()))?;
        }
        for group in 0..placement.groups {
            let number = placement.backups.nth(placement.block_bitmaps, group);
            self.writer.put(number, &self.block_bitmap(group))?;
        }
        for group in 0..placement.groups {
            let number = placement.backups.nth(placement.inode_bitmaps, group);
            self.writer.put(number, &self.inode_bitmap(group))?;
        }
        self.inode_tables()?;
        if placement.has_resize_inode {
            let block =
                resize::double_indirect(placement.descriptor_blocks, placement.reserved_descriptor_blocks);
            self.writer.put(placement.double_indirect, &block)?;
        }
        self.directories()?;
        self.symlinks()?;
        self.xattr_blocks()?;
        self.extent_trees()?;
        if placement.journal_blocks > 0 {
            self.writer.put(
                placement.journal,
                &journal::superblock(placement.journal_blocks, &plan.uuid),
            )?;
        }
        for (number, bytes) in plan.inline_pieces() {
            self.writer.put_all(number, bytes)?;
        }
        for group in placement.backups.groups() {
            let start = group * BLOCKS_PER_GROUP;
            self.writer.put(start, &superblock.encode(*group))?;
            self.writer.put_all(start + 1, &descriptors)?;
        }
        self.writer.flush()
    }

    fn superblock(&self) -> Superblock {
        let plan = self.plan;
        let placement = &plan.placement;
        let journal = (placement.journal_blocks > 0)
            .then(|| (self.journal_content(), placement.journal_blocks * BLOCK_BYTES));
        Superblock {
            inodes: low_u32(placement.inodes()),
            blocks: placement.blocks,
            free_blocks: plan.free_blocks(),
            free_inodes: low_u32(plan.free_inodes()),
            inodes_per_group: low_u32(placement.inodes_per_group),
            reserved_descriptor_blocks: low_u16(placement.reserved_descriptor_blocks),
            uuid: plan.uuid,
            hash_seed: plan.hash_seed,
            journal,
            has_resize_inode: placement.has_resize_inode,
            is_64bit: placement.is_64bit(),
            is_read_only: plan.profile == Profile::ReadOnly,
        }
    }

    fn group_descriptors(&self) -> Vec<u8> {
        let placement = &self.plan.placement;
        let mut bytes = vec![0; index(placement.descriptor_blocks) * BLOCK];
        let directories = self.directories_per_group();
        for (slot, group) in bytes
            .chunks_mut(placement.descriptor_bytes)
            .zip(0..placement.groups)
        {
            let blocks = BLOCKS_PER_GROUP.min(placement.blocks - group * BLOCKS_PER_GROUP);
            let used_inodes = self.used_inodes(group);
            let unused_inodes = placement.inodes_per_group - used_inodes;
            let inode_bitmap = self.inode_bitmap(group);
            let block_bitmap = self.block_bitmap(group);
            let descriptor = GroupDescriptor {
                block_bitmap: placement.backups.nth(placement.block_bitmaps, group),
                inode_bitmap: placement.backups.nth(placement.inode_bitmaps, group),
                inode_table: placement.inode_tables[index(group)],
                free_blocks: blocks
                    - self
                        .used_blocks(group)
                        .map(|(first, end)| end - first)
                        .sum::<u64>(),
                free_inodes: unused_inodes,
                directories: directories[index(group)],
                block_bitmap_sum: self.seed.over(&block_bitmap).value(),
                inode_bitmap_sum: self
                    .seed
                    .over(&inode_bitmap[..index(placement.inodes_per_group / 8)])
                    .value(),
                unused_inodes,
            };
            descriptor.encode(group, self.seed, slot);
        }
        bytes
    }

    fn directories_per_group(&self) -> Vec<u64> {
        let placement = &self.plan.placement;
        let mut counts = vec![0; index(placement.groups)];
        for directory in &self.plan.contents.directories {
            let number = u64::from(number_of(directory.row)) - 1;
            counts[index(number / placement.inodes_per_group)] += 1;
        }
        counts
    }

    /// Inodes of a group that are in use: the numbers are given out in order, so they come first.
    fn used_inodes(&self, group: u64) -> u64 {
        let per_group = self.plan.placement.inodes_per_group;
        self.plan
            .inodes_used()
            .saturating_sub(group * per_group)
            .min(per_group)
    }

    /// Used blocks of a group, as ranges of numbers within it.
    fn used_blocks(&self, group: u64) -> impl Iterator<Item = (u64, u64)> + '_ {
        let used = &self.plan.placement.used;
        let start = group * BLOCKS_PER_GROUP;
        let end = start + BLOCKS_PER_GROUP;
        let first = used.partition_point(|run| run.end() <= start);
        used[first..]
            .iter()
            .take_while(move |run| run.start < end)
            .map(move |run| (run.start.max(start) - start, run.end().min(end) - start))
    }

    /// One bit per block, set for those in use and for those beyond the end of the image.
    fn block_bitmap(&self, group: u64) -> BlockBytes {
        let mut bitmap = [0; BLOCK];
        for (first, end) in self.used_blocks(group) {
            set_bits(&mut bitmap, first, end);
        }
        let blocks = self.plan.placement.blocks - group * BLOCKS_PER_GROUP;
        set_bits(&mut bitmap, blocks.min(BLOCKS_PER_GROUP), BLOCKS_PER_GROUP);
        bitmap
    }

    /// One bit per inode, set for those in use and for those beyond the group's number of inodes.
    fn inode_bitmap(&self, group: u64) -> BlockBytes {
        let mut bitmap = [0; BLOCK];
        set_bits(&mut bitmap, 0, self.used_inodes(group));
        set_bits(&mut bitmap, self.plan.placement.inodes_per_group, 8 * BLOCK_BYTES);
        bitmap
    }

    fn inode_tables(&mut self) -> Result<(), ImageError> {
        let placement = &self.plan.placement;
        let mut block = [0; BLOCK];
        for group in 0..placement.groups {
            let first = group * placement.inodes_per_group;
            let table = placement.inode_tables[index(group)];
            for nth in 0..self.used_inodes(group).div_ceil(INODES_PER_BLOCK) {
                for (slot, offset) in block.as_chunks_mut::<INODE_BYTES>().0.iter_mut().zip(1..) {
                    let number = low_u32(first + nth * INODES_PER_BLOCK + offset);
                    *slot = self
                        .record(number)
                        .map_or([0; INODE_BYTES], |record| record.encode(number, self.seed));
                }
                self.writer.put(table + nth, &block)?;
            }
        }
        Ok(())
    }

    /// What stands in the inode of that number; `None` for unused and reserved ones, which are zero.
    fn record(&self, number: u32) -> Option<Record> {
        let placement = &self.plan.placement;
        match number {
            ROOT_INODE => Some(self.record_of_row(0)),
            RESIZE_INODE if placement.has_resize_inode => Some(resize::record(
                placement.double_indirect,
                placement.reserved_descriptor_blocks,
                placement.backups.groups().len() as u64,
            )),
            JOURNAL_INODE if placement.journal_blocks > 0 => {
                let extents = self.plan.journal_extents();
                let blocks = placement.journal_blocks + extent::tree_blocks(extents.len()) as u64;
                let size = placement.journal_blocks * BLOCK_BYTES;
                let content = self.journal_content();
                Some(Record::reserved(
                    mode::REGULAR | 0o600,
                    size,
                    blocks,
                    inode::FLAG_EXTENTS,
                    content,
                ))
            }
            _ => {
                let row = number.checked_sub(number_of(1) - 1)?;
                ((row as usize) < self.plan.contents.inodes.len() && row > 0).then(|| self.record_of_row(row))
            }
        }
    }

    fn record_of_row(&self, row: u32) -> Record {
        let contents = &self.plan.contents;
        let planned = &contents.inodes[row as usize];
        let metadata = &planned.inode.metadata;
        let (type_bits, _) = type_of(&planned.inode.kind);
        let mut record = Record {
            uid: metadata.uid,
            gid: metadata.gid,
            links: low_u16(u64::from(planned.names)),
            mtime: metadata.mtime,
            ..Record::reserved(type_bits | metadata.mode & 0o7777, 0, 0, 0, [0; 60])
        };
        match &planned.inode.kind {
            InodeKind::Directory(_) => {
                let (is_indexed, blocks) = contents
                    .directory_of(row)
                    .map_or((false, 1), |(_, is_indexed, blocks)| (is_indexed, blocks));
                record.size = blocks * BLOCK_BYTES;
                if is_indexed {
                    record.flags |= inode::FLAG_INDEX;
                }
                // Feature `dir_nlink`: a directory with more links than can be counted has 1.
                let links = 2 + planned.subdirectories;
                record.links = if links > inode::MAX_LINKS {
                    1
                } else {
                    low_u16(u64::from(links))
                };
                self.add_extents(&mut record, row);
            }
            InodeKind::File(content) => {
                record.size = content.size_bytes;
                self.add_extents(&mut record, row);
            }
            InodeKind::Symlink(target) => {
                record.size = target.len() as u64;
                if planned.long_link().is_some() {
                    self.add_extents(&mut record, row);
                } else {
                    record.content[..target.len()].copy_from_slice(target);
                }
            }
            InodeKind::CharacterDevice(device) | InodeKind::BlockDevice(device) => {
                record.content =
                    inode::encode_device(*device).expect("the plan refuses devices that do not fit");
            }
            InodeKind::Fifo => {}
        }
        if !metadata.xattrs.is_empty() {
            record.xattrs = encode_xattrs(&metadata.xattrs).inode;
        }
        if let Some(number) = self.xattr_block_number(planned.xattr_block) {
            record.xattr_block = number;
            record.blocks += 1;
        }
        record
    }

    fn add_extents(&self, record: &mut Record, row: u32) {
        let (extents, first) = self.plan.extents_of(row);
        let blocks: u64 = extents.iter().map(|extent| u64::from(extent.length)).sum();
        record.flags |= inode::FLAG_EXTENTS;
        record.blocks += blocks + extent::tree_blocks(extents.len()) as u64;
        let seed = self.seed.of_inode(number_of(row));
        record.content = self.extent_root(&extents, seed, first);
    }

    /// The root of an extent tree. Its blocks are written in their own turn.
    fn extent_root(&self, extents: &[extent::Extent], seed: Checksum, first: u64) -> [u8; 60] {
        let placement = &self.plan.placement;
        let place = |nth| placement.backups.nth(placement.trees, first + nth);
        let root = extent::build(extents, seed, place, |_, _| Ok::<(), Infallible>(()));
        match root {
            Ok(root) => root,
            Err(never) => match never {},
        }
    }

    fn journal_content(&self) -> [u8; 60] {
        let seed = self.seed.of_inode(JOURNAL_INODE);
        self.extent_root(&self.plan.journal_extents(), seed, self.plan.journal_tree)
    }

    fn directories(&mut self) -> Result<(), ImageError> {
        let contents = &self.plan.contents;
        let placement = &self.plan.placement;
        let child = |row: u32| {
            (
                number_of(row),
                type_of(&contents.inodes[row as usize].inode.kind).1,
            )
        };
        let mut next = 0;
        for directory in &contents.directories {
            contents.directory(directory, self.seed).encode(child, |block| {
                let number = placement.backups.nth(placement.directories, next);
                next += 1;
                self.writer.put(number, block)
            })?;
        }
        Ok(())
    }

    fn symlinks(&mut self) -> Result<(), ImageError> {
        let placement = &self.plan.placement;
        for (row, nth) in self.plan.contents.symlinks.iter().zip(0..) {
            if let InodeKind::Symlink(target) = &self.plan.contents.inodes[*row as usize].inode.kind {
                self.writer
                    .put(placement.backups.nth(placement.symlinks, nth), target)?;
            }
        }
        Ok(())
    }

    fn xattr_block_number(&self, row: u32) -> Option<u64> {
        let placement = &self.plan.placement;
        ((row as usize) < self.plan.contents.xattr_blocks.len())
            .then(|| placement.backups.nth(placement.xattr_blocks, u64::from(row)))
    }

    fn xattr_blocks(&mut self) -> Result<(), ImageError> {
        let contents = &self.plan.contents;
        for (planned, row) in contents.xattr_blocks.iter().zip(0..) {
            let xattrs = &contents.inodes[planned.owner as usize].inode.metadata.xattrs;
            if let (Some(mut block), Some(number)) =
                (encode_xattrs(xattrs).block, self.xattr_block_number(row))
            {
                xattr::finish_block(&mut block, number, planned.references, self.seed);
                self.writer.put(number, &block[..])?;
            }
        }
        Ok(())
    }

    fn extent_trees(&mut self) -> Result<(), ImageError> {
        let plan = self.plan;
        for (row, _) in &plan.trees {
            let (extents, first) = plan.extents_of(*row);
            self.extent_tree(&extents, number_of(*row), first)?;
        }
        self.extent_tree(&plan.journal_extents(), JOURNAL_INODE, plan.journal_tree)
    }

    fn extent_tree(&mut self, extents: &[extent::Extent], number: u32, first: u64) -> Result<(), ImageError> {
        let placement = &self.plan.placement;
        let place = |nth| placement.backups.nth(placement.trees, first + nth);
        let seed = self.seed.of_inode(number);
        extent::build(extents, seed, place, |number, block| {
            self.writer.put(number, block)
        })
        .map(|_root| ())
    }
}

fn encode_xattrs(xattrs: &crate::Xattrs) -> xattr::Encoded {
    xattr::encode(xattrs).expect("the plan refuses attributes that cannot be stored")
}

/// Type bits of the mode, and the type in directory entries (`EXT4_FT_*`).
fn type_of(kind: &InodeKind) -> (u16, u8) {
    match kind {
        InodeKind::File(_) => (mode::REGULAR, 1),
        InodeKind::Directory(_) => (mode::DIRECTORY, super::directory::TYPE_DIRECTORY),
        InodeKind::CharacterDevice(_) => (mode::CHARACTER_DEVICE, 3),
        InodeKind::BlockDevice(_) => (mode::BLOCK_DEVICE, 4),
        InodeKind::Fifo => (mode::FIFO, 5),
        InodeKind::Symlink(_) => (mode::SYMLINK, 7),
    }
}

/// Sets the bits from `first` to before `end`.
fn set_bits(bitmap: &mut BlockBytes, first: u64, end: u64) {
    let (first, end) = (index(first), index(end));
    let mut bit = first;
    while bit < end {
        if bit.is_multiple_of(8) && end - bit >= 8 {
            let whole = (end - bit) / 8;
            bitmap[bit / 8..bit / 8 + whole].fill(0xff);
            bit += whole * 8;
        } else {
            bitmap[bit / 8] |= 1 << (bit % 8);
            bit += 1;
        }
    }
}
