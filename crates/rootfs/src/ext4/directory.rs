//! Directories: one block as a list, more than one as an index by hash.
//!
//! An entry (`struct ext4_dir_entry_2` in `fs/ext4/ext4.h`) is `inode` u32, `rec_len` u16, `name_len` u8, `file_type`
//! u8 and the name, padded to 4 bytes; `rec_len` of the last entry reaches to the checksum. Each block of entries ends
//! with a fake entry of 12 bytes (`struct ext4_dir_entry_tail`: inode 0, `rec_len` 12, file type 0xDE) that holds the
//! checksum over everything before it, seeded by the directory's inode.
//!
//! A directory that needs more than one block is a tree (`struct dx_root`, `dx_node` in `fs/ext4/namei.c`) of two or
//! three levels. Block 0 has `.`, a `..` that reaches to the end so that readers without the feature see an ordinary
//! list, 8 bytes of parameters (hash version 1 = half MD4, length 8, levels below) and the index; the blocks after it
//! are inner nodes, if there are more than 507 leaves, then the leaves. An index is a row of (hash u32, block u32), of
//! which the first hash is not stored: its place holds how many fit and how many there are (u16 each). A checksum
//! over header and used rows (`struct dx_tail`) follows the last row that would fit.
//!
//! Leaves are filled in hash order to the brim. Where a run of equal hashes continues from one leaf into the next, the
//! hash in the index has its lowest bit set, so that a look-up reads on.

use super::{
    checksum::Checksum,
    format::{BLOCK, BlockBytes, low_u16, position, put_u16, put_u32},
    hash::{self, NameHash},
};

/// Blocks of the `lost+found` that is made when the tree has none: 16 KiB, so that e2fsck can put files there without
/// having to find blocks first. As `mke2fs` does it.
pub(super) const LOST_AND_FOUND_BLOCKS: u32 = 4;

/// Where a block's checksum entry starts.
const TAIL: usize = BLOCK - 12;
/// Rows of the index in block 0: what is left after `.`, `..`, the parameters and the checksum.
const ROOT_ROWS: usize = (BLOCK - 12 - 12 - 8 - 8) / 8;
/// Rows of an inner node.
const NODE_ROWS: usize = (BLOCK - 8 - 8) / 8;
/// Most leaves without the feature `largedir`, which old kernels do not mount: 258,570, or 1 GiB of names.
const MAX_LEAVES: usize = ROOT_ROWS * NODE_ROWS;
/// `EXT4_FT_DIR`.
pub(super) const TYPE_DIRECTORY: u8 = 2;

/// One name of a directory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry<'tree> {
    pub(super) name: &'tree [u8],
    /// Row of the inode in the plan.
    pub(super) child: u32,
    /// In an indexed directory the name's hash, else 0.
    hash: u32,
}

impl<'tree> Entry<'tree> {
    pub(super) fn new(name: &'tree [u8], child: u32) -> Self {
        Self { name, child, hash: 0 }
    }

    fn size(&self) -> usize {
        8 + self.name.len().next_multiple_of(4)
    }
}

/// How a directory's entries are divided into blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    /// A list in the first block; the others, if any, are empty.
    List {
        /// At least 1.
        blocks: u32,
    },
    /// A tree. Holds the position of each leaf's first entry.
    Index(Vec<u32>),
}

impl Layout {
    /// Blocks in total.
    pub(super) fn blocks(&self) -> u32 {
        match self {
            Self::List { blocks } => *blocks,
            Self::Index(leaves) => position(1 + inner_nodes(leaves.len()) + leaves.len()),
        }
    }

    /// Whether the inode is marked as indexed.
    pub(super) fn is_indexed(&self) -> bool {
        matches!(self, Self::Index(_))
    }
}

/// There are more names than two levels of index can hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TooManyNames;

/// Divides entries, which come in byte order and stay so in a list; for an index they are sorted by hash.
pub(super) fn lay_out(entries: &mut [Entry<'_>], seed: [u32; 4]) -> Result<Layout, TooManyNames> {
    let size: usize = entries.iter().map(Entry::size).sum();
    if 24 + size <= TAIL {
        return Ok(Layout::List { blocks: 1 });
    }
    let mut hashed: Vec<(NameHash, Entry<'_>)> = entries
        .iter()
        .map(|entry| (hash::half_md4(entry.name, seed), *entry))
        .collect();
    hashed.sort_unstable_by(|(a_hash, a), (b_hash, b)| a_hash.cmp(b_hash).then_with(|| a.name.cmp(b.name)));
    let mut leaves = Vec::new();
    let mut filled = TAIL;
    for (index, (slot, (hash, entry))) in entries.iter_mut().zip(hashed).enumerate() {
        *slot = Entry {
            hash: hash.major,
            ..entry
        };
        filled += slot.size();
        if filled > TAIL {
            leaves.push(position(index));
            filled = slot.size();
        }
    }
    if leaves.len() > MAX_LEAVES {
        Err(TooManyNames)
    } else {
        Ok(Layout::Index(leaves))
    }
}

/// What a directory's blocks are made from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Directory<'a> {
    /// Its inode number.
    pub(super) number: u32,
    /// Its parent's inode number; the root is its own parent.
    pub(super) parent: u32,
    pub(super) entries: &'a [Entry<'a>],
    pub(super) layout: &'a Layout,
    /// The inode's seed.
    pub(super) seed: Checksum,
}

impl Directory<'_> {
    /// Calls `write` for each block, in order. `child` gives inode number and file type of an entry's row.
    pub(super) fn encode<E>(
        &self,
        child: impl Fn(u32) -> (u32, u8),
        mut write: impl FnMut(&BlockBytes) -> Result<(), E>,
    ) -> Result<(), E> {
        let resolve = |entry: &Entry<'_>| child(entry.child);
        match self.layout {
            Layout::List { blocks } => {
                let mut block = [0; BLOCK];
                let mut writer = ListWriter {
                    block: &mut block,
                    next: 0,
                    last: None,
                };
                writer.put(self.number, TYPE_DIRECTORY, b".");
                writer.put(self.parent, TYPE_DIRECTORY, b"..");
                for entry in self.entries {
                    let (number, file_type) = resolve(entry);
                    writer.put(number, file_type, entry.name);
                }
                writer.finish(self.seed);
                write(&block)?;
                for _ in 1..*blocks {
                    let mut block = [0; BLOCK];
                    ListWriter {
                        block: &mut block,
                        next: 0,
                        last: None,
                    }
                    .finish(self.seed);
                    write(&block)?;
                }
                Ok(())
            }
            Layout::Index(leaves) => {
                for block in self.index_blocks(leaves) {
                    write(&block)?;
                }
                for (index, first) in leaves.iter().enumerate() {
                    let end = leaves
                        .get(index + 1)
                        .map_or(self.entries.len(), |next| *next as usize);
                    let mut block = [0; BLOCK];
                    let mut writer = ListWriter {
                        block: &mut block,
                        next: 0,
                        last: None,
                    };
                    for entry in &self.entries[*first as usize..end] {
                        let (number, file_type) = resolve(entry);
                        writer.put(number, file_type, entry.name);
                    }
                    writer.finish(self.seed);
                    write(&block)?;
                }
                Ok(())
            }
        }
    }

    /// Block 0 and the inner nodes.
    fn index_blocks(&self, leaves: &[u32]) -> Vec<BlockBytes> {
        let inner = inner_nodes(leaves.len());
        let rows: Vec<(u32, u32)> = leaves
            .iter()
            .enumerate()
            .map(|(index, first)| (self.index_hash(*first as usize), position(1 + inner + index)))
            .collect();

        let mut root = [0; BLOCK];
        put_entry(&mut root, 0, 12, self.number, TYPE_DIRECTORY, b".");
        put_entry(&mut root, 12, BLOCK - 12, self.parent, TYPE_DIRECTORY, b"..");
        root[28] = 1;
        root[29] = 8;
        root[30] = u8::from(inner > 0);
        if inner == 0 {
            write_rows(&mut root, 32, ROOT_ROWS, &rows, self.seed);
            return vec![root];
        }
        let mut blocks = vec![root];
        let mut upper = Vec::with_capacity(inner);
        for (index, rows) in rows.chunks(NODE_ROWS).enumerate() {
            let mut node = [0; BLOCK];
            put_u16(&mut node, 4, low_u16(BLOCK as u64));
            write_rows(&mut node, 8, NODE_ROWS, rows, self.seed);
            blocks.push(node);
            upper.push((rows[0].0, position(1 + index)));
        }
        write_rows(&mut blocks[0], 32, ROOT_ROWS, &upper, self.seed);
        blocks
    }

    /// The hash by which the index leads to the leaf that starts with that entry.
    fn index_hash(&self, first: usize) -> u32 {
        let hash = self.entries[first].hash;
        let continues = first
            .checked_sub(1)
            .is_some_and(|before| self.entries[before].hash == hash);
        hash | u32::from(continues)
    }
}

fn inner_nodes(leaves: usize) -> usize {
    if leaves <= ROOT_ROWS {
        0
    } else {
        leaves.div_ceil(NODE_ROWS)
    }
}

/// Writes an index and its checksum. The first row's hash is not stored.
fn write_rows(block: &mut BlockBytes, start: usize, capacity: usize, rows: &[(u32, u32)], seed: Checksum) {
    for (slot, (hash, target)) in block[start..].as_chunks_mut::<8>().0.iter_mut().zip(rows) {
        put_u32(slot, 0, *hash);
        put_u32(slot, 4, *target);
    }
    put_u16(block, start, low_u16(capacity as u64));
    put_u16(block, start + 2, low_u16(rows.len() as u64));
    // The reserved word of the tail and a zero in place of the checksum belong to the sum (`ext4_dx_csum`).
    let sum = seed.over(&block[..start + rows.len() * 8]).over(&[0; 8]).value();
    put_u32(block, start + capacity * 8 + 4, sum);
}

fn put_entry(block: &mut BlockBytes, at: usize, length: usize, inode: u32, file_type: u8, name: &[u8]) {
    put_u32(block, at, inode);
    put_u16(block, at + 4, low_u16(length as u64));
    block[at + 6] = u8::try_from(name.len()).expect("the plan takes no name beyond 255 bytes");
    block[at + 7] = file_type;
    block[at + 8..at + 8 + name.len()].copy_from_slice(name);
}

/// Fills one block with entries.
struct ListWriter<'a> {
    block: &'a mut BlockBytes,
    next: usize,
    last: Option<usize>,
}

impl ListWriter<'_> {
    fn put(&mut self, inode: u32, file_type: u8, name: &[u8]) {
        let length = 8 + name.len().next_multiple_of(4);
        put_entry(self.block, self.next, length, inode, file_type, name);
        self.last = Some(self.next);
        self.next += length;
    }

    /// Stretches the last entry over the free space, or makes an unused one of it, and adds the checksum.
    fn finish(self, seed: Checksum) {
        let last = self.last.unwrap_or(0);
        put_u16(self.block, last + 4, low_u16((TAIL - last) as u64));
        put_u16(self.block, TAIL + 4, 12);
        self.block[TAIL + 7] = 0xDE;
        let sum = seed.over(&self.block[..TAIL]).value();
        put_u32(self.block, TAIL + 8, sum);
    }
}

#[cfg(test)]
mod tests;
