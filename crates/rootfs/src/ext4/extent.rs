//! Extent trees: where a file's blocks lie.
//!
//! Layout (`fs/ext4/ext4_extents.h`). Every node starts with a header of 12 bytes: magic 0xF30A, entries in use,
//! entries that fit (u16 each), depth (0 for leaves, u16), generation (u32, 0). Entries have 12 bytes:
//!
//! | leaf (`ext4_extent`) | inner node (`ext4_extent_idx`) |
//! |---|---|
//! | `ee_block` u32: first logical block | `ei_block` u32: first logical block below |
//! | `ee_len` u16: blocks, at most 32,768 (more would mean "unwritten") | `ei_leaf_lo` u32 |
//! | `ee_start_hi` u16 | `ei_leaf_hi` u16 |
//! | `ee_start_lo` u32 | unused u16 |
//!
//! The root stands in the inode's `i_block` and holds 4 entries; a block holds 340 and ends with a checksum over
//! everything before it, seeded by the inode (`struct ext4_extent_tail`). Trees here are packed: all nodes but the last
//! of a level are full, and no level is more than needed, so that e2fsck has nothing to improve.

use super::{
    checksum::Checksum,
    format::{BLOCK, BlockBytes, high_u32, low_u16, low_u32, put_u16, put_u32},
    space::Run,
};

/// Most blocks of one extent (`EXT_INIT_MAX_LEN`).
const MAX_EXTENT_BLOCKS: u64 = 32_768;
/// Entries of the root in the inode.
const ROOT_ENTRIES: usize = 4;
/// Entries of a block.
const NODE_ENTRIES: usize = (BLOCK - 12) / 12;
/// Where a block's checksum stands.
const TAIL: usize = 12 + NODE_ENTRIES * 12;

/// A run of a file's blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    /// First block within the file.
    pub(super) logical: u32,
    /// `1..=32_768`.
    pub(super) length: u16,
    /// First block of the file system.
    pub(super) physical: u64,
}

/// Collects runs in logical order, joins those that continue each other, and cuts what is too long.
#[derive(Debug, Default)]
pub(super) struct ExtentList {
    extents: Vec<Extent>,
    pending: Option<(u64, Run)>,
}

impl ExtentList {
    /// Adds a run that starts at the file's block `logical`. Runs come in ascending order.
    pub(super) fn push(&mut self, logical: u64, run: Run) {
        match &mut self.pending {
            Some((start, pending)) if *start + pending.length == logical && pending.end() == run.start => {
                pending.length += run.length;
            }
            pending => {
                if let Some((start, whole)) = pending.replace((logical, run)) {
                    cut(&mut self.extents, start, whole);
                }
            }
        }
    }

    /// The finished extents.
    pub(super) fn finish(mut self) -> Vec<Extent> {
        if let Some((start, whole)) = self.pending {
            cut(&mut self.extents, start, whole);
        }
        self.extents
    }
}

fn cut(extents: &mut Vec<Extent>, logical: u64, run: Run) {
    let mut done = 0;
    while done < run.length {
        let length = (run.length - done).min(MAX_EXTENT_BLOCKS);
        extents.push(Extent {
            logical: low_u32(logical + done),
            length: low_u16(length),
            physical: run.start + done,
        });
        done += length;
    }
}

/// How many blocks the tree over so many extents takes, beside the root in the inode.
pub(super) fn tree_blocks(extents: usize) -> usize {
    let mut entries = extents;
    let mut blocks = 0;
    while entries > ROOT_ENTRIES {
        entries = entries.div_ceil(NODE_ENTRIES);
        blocks += entries;
    }
    blocks
}

/// Builds the tree over `extents`: calls `write` for every block of it in ascending order, the leaves first, and
/// returns what stands in the inode's `i_block`. `place` says where the tree's n-th block lies.
pub(super) fn build<E>(
    extents: &[Extent],
    inode: Checksum,
    place: impl Fn(u64) -> u64,
    mut write: impl FnMut(u64, &BlockBytes) -> Result<(), E>,
) -> Result<[u8; 60], E> {
    let mut entries: Vec<[u8; 12]> = extents.iter().map(|extent| leaf_entry(*extent)).collect();
    let mut depth = 0;
    let mut next = 0;
    while entries.len() > ROOT_ENTRIES {
        let mut above = Vec::with_capacity(entries.len().div_ceil(NODE_ENTRIES));
        for children in entries.chunks(NODE_ENTRIES) {
            let mut block = [0; BLOCK];
            write_node(&mut block, children, NODE_ENTRIES, depth);
            let sum = inode.over(&block[..TAIL]).value();
            put_u32(&mut block, TAIL, sum);
            let number = place(next);
            next += 1;
            write(number, &block)?;
            let first_logical = [children[0][0], children[0][1], children[0][2], children[0][3]];
            above.push(inner_entry(u32::from_le_bytes(first_logical), number));
        }
        entries = above;
        depth += 1;
    }
    let mut root = [0; 60];
    write_node(&mut root, &entries, ROOT_ENTRIES, depth);
    Ok(root)
}

fn leaf_entry(extent: Extent) -> [u8; 12] {
    let mut entry = [0; 12];
    put_u32(&mut entry, 0, extent.logical);
    put_u16(&mut entry, 4, extent.length);
    put_u16(&mut entry, 6, low_u16(u64::from(high_u32(extent.physical))));
    put_u32(&mut entry, 8, low_u32(extent.physical));
    entry
}

fn inner_entry(logical: u32, number: u64) -> [u8; 12] {
    let mut entry = [0; 12];
    put_u32(&mut entry, 0, logical);
    put_u32(&mut entry, 4, low_u32(number));
    put_u16(&mut entry, 8, low_u16(u64::from(high_u32(number))));
    entry
}

fn write_node(node: &mut [u8], entries: &[[u8; 12]], capacity: usize, depth: u16) {
    put_u16(node, 0, 0xF30A);
    put_u16(node, 2, low_u16(entries.len() as u64));
    put_u16(node, 4, low_u16(capacity as u64));
    put_u16(node, 6, depth);
    for (slot, entry) in node[12..].as_chunks_mut::<12>().0.iter_mut().zip(entries) {
        *slot = *entry;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_joined_and_cut() {
        let mut list = ExtentList::default();
        list.push(
            0,
            Run {
                start: 100,
                length: 10,
            },
        );
        list.push(
            10,
            Run {
                start: 110,
                length: 32_768,
            },
        );
        list.push(
            40_000,
            Run {
                start: 40_090,
                length: 1,
            },
        );
        let extent = |logical, length, physical| Extent {
            logical,
            length,
            physical,
        };
        assert_eq!(
            list.finish(),
            [
                extent(0, 32_768, 100),
                extent(32_768, 10, 32_868),
                extent(40_000, 1, 40_090)
            ]
        );
    }

    #[test]
    fn the_tree_has_as_many_blocks_as_announced() {
        for count in [0, 1, 4, 5, 340, 341, 1360, 1361, 200_000] {
            let extents: Vec<Extent> = (0..count)
                .map(|index| Extent {
                    logical: index * 2,
                    length: 1,
                    physical: 7,
                })
                .collect();
            let mut written = 0;
            let root = build(
                &extents,
                Checksum::START,
                |nth| 1000 + nth,
                |number, _| {
                    assert_eq!(number, 1000 + written);
                    written += 1;
                    Ok::<(), ()>(())
                },
            )
            .unwrap();
            assert_eq!(written, tree_blocks(extents.len()) as u64, "{count} extents");
            assert_eq!(root[..2], [0x0A, 0xF3]);
        }
    }
}
