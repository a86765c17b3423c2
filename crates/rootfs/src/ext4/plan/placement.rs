//! Where everything lies: the sizes that depend on each other, and one position per kind of thing.
//!
//! In ascending order: superblock, group descriptors and room for more of them; block bitmaps; inode bitmaps; inode
//! tables; directories; long symbolic links; attribute blocks; blocks of extent trees; the journal. Then, from a chunk
//! boundary on, file contents, and then what is free. With the feature `flex_bg` bitmaps and tables may stand anywhere,
//! so all of them stand together and contents are not interrupted by them.
//!
//! The number of groups decides how much of this there is, and how much there is decides the number of groups. So do
//! the journal's size and the blocks of extent trees, since a backup of the superblock cuts a file into one more
//! extent. The search starts with the least and repeats with more until it fits; nothing ever gets less, so it ends.

use super::{Contents, data::Region};
use crate::{
    ext4::{
        format::{BLOCK_BYTES, BLOCKS_PER_GROUP, INODES_PER_BLOCK, MAX_INODES_PER_GROUP},
        journal, resize,
        space::{Backups, Cursor, Run, merge},
    },
    image::{ImageError, ImageOptions, Profile},
    verity,
};

/// Most groups: 128 TiB, whose descriptors take half of the first group. What is larger is refused.
const MAX_GROUPS: u64 = 1 << 20;

/// Groups from which on block numbers may not fit 32 bits.
const GROUPS_64BIT: u64 = 1 << 17;

/// Rounds after which the search gives up. It takes three or four; a group added costs far less than it brings.
const MAX_ROUNDS: usize = 64;

/// Sizes and positions, in blocks.
#[derive(Debug)]
pub(in crate::ext4) struct Placement {
    /// Blocks of the image.
    pub(in crate::ext4) blocks: u64,
    pub(in crate::ext4) groups: u64,
    pub(in crate::ext4) inodes_per_group: u64,
    /// Bytes of one group descriptor, 32 or 64.
    pub(in crate::ext4) descriptor_bytes: usize,
    pub(in crate::ext4) descriptor_blocks: u64,
    pub(in crate::ext4) reserved_descriptor_blocks: u64,
    pub(in crate::ext4) has_resize_inode: bool,
    /// 0 for none.
    pub(in crate::ext4) journal_blocks: u64,
    pub(in crate::ext4) backups: Backups,
    /// First of one block per group.
    pub(in crate::ext4) block_bitmaps: u64,
    /// First of one block per group.
    pub(in crate::ext4) inode_bitmaps: u64,
    /// First block of each group's table.
    pub(in crate::ext4) inode_tables: Vec<u64>,
    pub(in crate::ext4) double_indirect: u64,
    /// First block of the directories, in the order of their rows.
    pub(in crate::ext4) directories: u64,
    /// First of one block per long symbolic link.
    pub(in crate::ext4) symlinks: u64,
    /// First of the attribute blocks.
    pub(in crate::ext4) xattr_blocks: u64,
    /// First of the extent trees' blocks.
    pub(in crate::ext4) trees: u64,
    pub(in crate::ext4) journal: u64,
    /// First block of each region of contents.
    pub(in crate::ext4) regions: Vec<u64>,
    /// Everything in use, ascending, not touching.
    pub(in crate::ext4) used: Vec<Run>,
    /// Blocks in use.
    pub(in crate::ext4) used_blocks: u64,
}

/// The sizes that the search is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Guess {
    groups: u64,
    journal_blocks: u64,
    tree_blocks: u64,
}

impl Placement {
    pub(in crate::ext4) fn is_64bit(&self) -> bool {
        self.descriptor_bytes == 64
    }

    pub(in crate::ext4) fn inodes(&self) -> u64 {
        self.inodes_per_group * self.groups
    }
}

/// Finds the smallest image that holds `contents` and what `options` ask for.
pub(in crate::ext4) fn find(
    contents: &Contents<'_>,
    options: &ImageOptions,
) -> Result<Placement, ImageError> {
    let limit = options
        .max_image_bytes
        .unwrap_or(u64::MAX)
        .min(MAX_GROUPS * BLOCKS_PER_GROUP * BLOCK_BYTES);
    let too_large = |needed_bytes| ImageError::TooLarge {
        needed_bytes,
        limit_bytes: limit,
    };
    let (free_blocks, free_inodes) = match options.profile {
        Profile::ReadWrite => (
            options.free_space_bytes.div_ceil(BLOCK_BYTES),
            options.free_inodes,
        ),
        Profile::ReadOnly => (0, 0),
    };
    let inodes = contents.inode_numbers().saturating_add(free_inodes);
    let bodies: u64 = contents.bodies.regions.iter().map(|region| region.blocks).sum();
    let least_blocks = bodies.saturating_add(free_blocks);
    let least_groups = least_blocks
        .div_ceil(BLOCKS_PER_GROUP)
        .max(inodes.div_ceil(MAX_INODES_PER_GROUP))
        .max(1);
    if least_groups > MAX_GROUPS {
        return Err(too_large(
            least_groups.saturating_mul(BLOCKS_PER_GROUP * BLOCK_BYTES),
        ));
    }
    let mut guess = Guess {
        groups: least_groups,
        journal_blocks: match options.profile {
            Profile::ReadWrite => journal::blocks_for(least_blocks),
            Profile::ReadOnly => 0,
        },
        tree_blocks: 0,
    };
    for _ in 0..MAX_ROUNDS {
        if guess.groups > MAX_GROUPS {
            return Err(too_large(
                guess.groups.saturating_mul(BLOCKS_PER_GROUP * BLOCK_BYTES),
            ));
        }
        let mut placement = place(contents, options.profile, inodes, guess);
        placement.blocks = total_blocks(&placement, free_blocks);
        let tree_blocks = contents.tree_blocks(&placement);
        let next = Guess {
            groups: guess.groups.max(placement.blocks.div_ceil(BLOCKS_PER_GROUP)),
            journal_blocks: match options.profile {
                Profile::ReadWrite => guess.journal_blocks.max(journal::blocks_for(placement.blocks)),
                Profile::ReadOnly => 0,
            },
            tree_blocks: guess.tree_blocks.max(tree_blocks),
        };
        if next == guess {
            let file_system_bytes = placement.blocks * BLOCK_BYTES;
            let verity_bytes = match options.verity {
                true => verity::hash_area_bytes(file_system_bytes).unwrap_or(0),
                false => 0,
            };
            let needed_bytes = file_system_bytes + verity_bytes;
            if needed_bytes > limit {
                return Err(too_large(needed_bytes));
            }
            if placement.inodes() > u64::from(u32::MAX) {
                return Err(too_large(u64::MAX));
            }
            return Ok(placement);
        }
        guess = next;
    }
    Err(too_large(guess.groups * BLOCKS_PER_GROUP * BLOCK_BYTES))
}

/// Lays everything out for one guess. The size of the image is still missing.
fn place(contents: &Contents<'_>, profile: Profile, inodes: u64, guess: Guess) -> Placement {
    let Guess {
        groups,
        journal_blocks,
        tree_blocks,
    } = guess;
    let is_64bit = groups >= GROUPS_64BIT;
    let descriptor_bytes: usize = if is_64bit { 64 } else { 32 };
    let descriptor_blocks = (groups * descriptor_bytes as u64).div_ceil(BLOCK_BYTES);
    // The reserved blocks' pointers have 32 bits. Beyond, the kernel grows images without them.
    let has_resize_inode = profile == Profile::ReadWrite && !is_64bit;
    let reserved_descriptor_blocks = if has_resize_inode {
        resize::reserved_blocks(groups, descriptor_blocks)
    } else {
        0
    };
    // Whole blocks of the table, so that no inode that there is room for is missing.
    let inodes_per_group = inodes.div_ceil(groups).next_multiple_of(INODES_PER_BLOCK);
    let head = 1 + descriptor_blocks + reserved_descriptor_blocks;
    let backups = Backups::new(groups, head);

    let mut cursor = Cursor::new(&backups);
    cursor.take(head);
    let block_bitmaps = cursor.take(groups);
    let inode_bitmaps = cursor.take(groups);
    let inode_tables = (0..groups)
        .map(|_| cursor.take_contiguous(inodes_per_group / INODES_PER_BLOCK))
        .collect();
    let double_indirect = if has_resize_inode { cursor.take(1) } else { 0 };
    let directories = cursor.take(contents.directory_blocks);
    let symlinks = cursor.take(contents.symlinks.len() as u64);
    let xattr_blocks = cursor.take(contents.xattr_blocks.len() as u64);
    let trees = cursor.take(tree_blocks);
    let journal = cursor.take(journal_blocks);
    let regions = contents
        .bodies
        .regions
        .iter()
        .map(|region| place_region(contents, &mut cursor, region))
        .collect();

    let mut used = cursor.finish();
    used.extend(backups.used_runs());
    let used = merge(used);
    let used_blocks = used.iter().map(|run| run.length).sum();
    Placement {
        blocks: 0,
        groups,
        inodes_per_group,
        descriptor_bytes,
        descriptor_blocks,
        reserved_descriptor_blocks,
        has_resize_inode,
        journal_blocks,
        backups: backups.clone(),
        block_bitmaps,
        inode_bitmaps,
        inode_tables,
        double_indirect,
        directories,
        symlinks,
        xattr_blocks,
        trees,
        journal,
        regions,
        used,
        used_blocks,
    }
}

fn place_region(contents: &Contents<'_>, cursor: &mut Cursor<'_>, region: &Region) -> u64 {
    cursor.align();
    let start = cursor.reserve(region.blocks);
    for row in &region.runs {
        let run = &contents.bodies.runs[*row as usize];
        cursor.mark_within(start, run.place, run.blocks());
    }
    start
}

/// The least size that has everything and is free as asked. All groups of the guess are there, the last one at least
/// as far as its backup goes.
fn total_blocks(placement: &Placement, free_blocks: u64) -> u64 {
    let last_used = placement.used.last().map_or(0, |run| run.end());
    let last_group = (placement.groups - 1) * BLOCKS_PER_GROUP + 1;
    last_used
        .max(last_group)
        .max(placement.used_blocks.saturating_add(free_blocks))
}
