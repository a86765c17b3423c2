//! How large an image that `mke2fs` fills has to be.
//!
//! The figure is an upper bound, block by block (4 KiB), of what e2fsprogs 1.43 to 1.47 allocate:
//!
//! - a file: its data blocks, and extent tree blocks for as many extents as its runs of data plus two for every
//!   32 MiB (where a group's metadata breaks a run), in half-filled nodes;
//! - a directory: entries of 8 bytes plus the name rounded up to 4, in blocks of which a checksum takes 12 bytes and an
//!   entry that did not fit up to 263 more, and one block to spare;
//! - a symbolic link of 60 bytes or more: one block; an inode with extended attributes: one block; each of them for
//!   every name, because the program does not see that two symbolic links are one;
//! - `lost+found`: 5 blocks; the journal; what is to stay free;
//! - each group of 32,768 blocks: two bitmaps, its inode table, and where it can have a copy, the superblock, the group
//!   descriptors and the blocks reserved for more of them (1,024 at most);
//! - one percent and 128 blocks for the extents of journal, resize inode and such.
//!
//! A last group that would have no room for data is left out by the program, so the image is made large enough for it
//! to have some.

use crate::{
    InodeKind, Tree,
    image::{ImageOptions, Profile},
    pack::BLOCK_SIZE,
    tree::{Children, Content, FileContent},
};

const BLOCKS_PER_GROUP: u64 = 32_768;
const INODES_PER_TABLE_BLOCK: u64 = 16;
const DESCRIPTORS_PER_BLOCK: u64 = BLOCK_SIZE / 32;
const MAX_RESERVED_DESCRIPTOR_BLOCKS: u64 = 1024;
const LOST_AND_FOUND_BLOCKS: u64 = 5;
/// Inodes 1 to 10 are reserved and 11 is `lost+found`; the root is number 2.
const OWN_INODES: u64 = 11;
/// Extents in a half-filled node of the extent tree, of the 340 it can hold.
const EXTENTS_PER_NODE: u64 = 170;
const FAST_SYMLINK_BYTES: usize = 60;

/// What to tell the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) blocks: u64,
    pub(super) inodes: u64,
    pub(super) journal_blocks: u64,
}

pub(super) fn plan(tree: &Tree, options: &ImageOptions) -> Plan {
    let mut content_blocks = LOST_AND_FOUND_BLOCKS;
    let mut inodes = OWN_INODES - 1;
    for inode in tree.inodes() {
        inodes += 1;
        content_blocks = content_blocks.saturating_add(match &inode.kind {
            InodeKind::File(content) => file_blocks(content),
            InodeKind::Directory(children) => directory_blocks(children),
            InodeKind::Symlink(target) => {
                // The program makes a link of its own for every name.
                inodes += u64::from(inode.names - 1);
                u64::from(inode.names) * u64::from(target.len() >= FAST_SYMLINK_BYTES)
            }
            InodeKind::CharacterDevice(_) | InodeKind::BlockDevice(_) | InodeKind::Fifo => 0,
        });
        content_blocks += u64::from(!inode.metadata.xattrs.is_empty()) * u64::from(inode.names);
    }
    let mut journal_blocks = 0;
    if options.profile == Profile::ReadWrite {
        inodes += options.free_inodes;
        content_blocks = content_blocks.saturating_add(options.free_space_bytes.div_ceil(BLOCK_SIZE));
        journal_blocks = journal_size(content_blocks);
        content_blocks += journal_blocks;
    }
    content_blocks = content_blocks.saturating_add(content_blocks / 100 + 128);
    Plan {
        blocks: with_groups(content_blocks, inodes),
        inodes,
        journal_blocks,
    }
}

/// 4, 16 or 64 MiB: what the program would choose for such sizes by itself, at most.
fn journal_size(content_blocks: u64) -> u64 {
    match content_blocks {
        0..32_768 => 1024,
        32_768..262_144 => 4096,
        _ => 16_384,
    }
}

fn file_blocks(file: &FileContent) -> u64 {
    let (blocks, runs) = match &file.content {
        Content::Inline(bytes) => ((bytes.len() as u64).div_ceil(BLOCK_SIZE), 1),
        Content::Packed { extents, .. } => (
            extents
                .iter()
                .map(|extent| extent.length.div_ceil(BLOCK_SIZE))
                .sum(),
            extents.len() as u64,
        ),
    };
    let extents = runs + 2 * (blocks / (BLOCKS_PER_GROUP / 4) + 1);
    // Four extents fit into the inode itself.
    let nodes = if extents <= 4 {
        0
    } else {
        extents / EXTENTS_PER_NODE + 1
    };
    let upper_nodes = if nodes <= 4 {
        0
    } else {
        nodes / EXTENTS_PER_NODE + 2
    };
    blocks + nodes + upper_nodes
}

fn directory_blocks(children: &Children) -> u64 {
    let entry = |name: &[u8]| 8 + name.len().next_multiple_of(4) as u64;
    // `.` and `..` first.
    let bytes = 24 + children.keys().map(|name| entry(name)).sum::<u64>();
    bytes.div_ceil(BLOCK_SIZE - 12 - 263) + 1
}

/// Adds what the groups themselves take. More groups take more, so the sum is repeated until it holds; each round
/// adds a small fraction of the last, which ends.
fn with_groups(content_blocks: u64, inodes: u64) -> u64 {
    // Half of the inodes that a group can count, so that its table never fills it.
    let mut groups = inodes.div_ceil(BLOCKS_PER_GROUP / 2).max(1);
    loop {
        let descriptor_blocks = groups.div_ceil(DESCRIPTORS_PER_BLOCK) + MAX_RESERVED_DESCRIPTOR_BLOCKS;
        let table_blocks = inodes.div_ceil(groups).div_ceil(INODES_PER_TABLE_BLOCK) + 1;
        let group_overhead = 2 + table_blocks;
        let copies = superblock_copies(groups) * (1 + descriptor_blocks);
        let needed = content_blocks
            .saturating_add(groups.saturating_mul(group_overhead))
            .saturating_add(copies)
            .max((groups - 1) * BLOCKS_PER_GROUP + group_overhead + descriptor_blocks + 256);
        let needed_groups = needed.div_ceil(BLOCKS_PER_GROUP);
        if needed_groups <= groups {
            return needed;
        }
        groups = needed_groups;
    }
}

/// Groups that carry a copy of the superblock under `sparse_super`: 0, 1 and the powers of 3, 5 and 7.
fn superblock_copies(groups: u64) -> u64 {
    let powers = |base: u64| {
        std::iter::successors(Some(base), |power| power.checked_mul(base))
            .take_while(|&power| power < groups)
            .count()
    };
    2 + [3, 5, 7].map(|base| powers(base) as u64).iter().sum::<u64>()
}

#[cfg(test)]
mod tests {
    use super::{superblock_copies, with_groups};

    #[test]
    fn copies_stand_where_sparse_super_puts_them() {
        for (groups, copies) in [(1, 2), (2, 2), (4, 3), (8, 5), (10, 6), (28, 8), (50, 9)] {
            assert_eq!(superblock_copies(groups), copies, "{groups}");
        }
    }

    #[test]
    fn groups_have_room_for_their_inodes() {
        for inodes in [12, 20_000, 2_000_000, 30_000_000] {
            let blocks = with_groups(1000, inodes);
            assert!(
                blocks.div_ceil(32_768) * 32_768 >= inodes,
                "{inodes} inodes in {blocks} blocks"
            );
        }
    }
}
