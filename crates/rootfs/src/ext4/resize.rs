//! Room for more group descriptors, so that the image can grow (feature `resize_inode`).
//!
//! After the group descriptors, and after each backup of them, blocks are kept free for descriptors of groups to come.
//! They belong to inode 7, by a tree of old-style block pointers that `fs/ext4/resize.c` (`verify_reserved_gdb`,
//! `add_new_gdb`) and `resize2fs` expect exactly so: the inode's double-indirect block points to the reserved blocks
//! after the primary descriptors, at the positions that these will have among all descriptor blocks; and each of those
//! is at the same time an indirect block that points to its own copies in the backups, in ascending order of groups.

use super::{
    format::{BLOCK, BLOCKS_PER_GROUP, BlockBytes, index, low_u32, mode, put_u32},
    inode::Record,
};

/// Pointers of one block; also the most descriptor blocks that a file system with this feature has.
pub(super) const POINTERS: u64 = 1024;

/// The file system can grow by this factor.
const GROWTH: u64 = 1024;

/// The size that the inode claims: as if all direct, indirect and double-indirect blocks were there
/// (`ext2fs_create_resize_inode` in e2fsprogs).
const SIZE_BYTES: u64 = (12 + POINTERS + POINTERS * POINTERS) * BLOCK as u64;

/// How many blocks to reserve for a file system of so many groups whose descriptors take `descriptor_blocks`.
pub(super) fn reserved_blocks(groups: u64, descriptor_blocks: u64) -> u64 {
    const DESCRIPTORS_PER_BLOCK: u64 = BLOCK as u64 / 32;
    let grown = groups
        .saturating_mul(GROWTH)
        .div_ceil(DESCRIPTORS_PER_BLOCK)
        .min(POINTERS);
    grown.saturating_sub(descriptor_blocks)
}

/// The block of pointers after descriptor block `nth` counted from the start of the descriptors: where its copies are.
pub(super) fn copies(nth: u64, backup_groups: &[u64]) -> BlockBytes {
    let mut block = [0; BLOCK];
    for (slot, group) in block.as_chunks_mut::<4>().0.iter_mut().zip(backup_groups) {
        *slot = low_u32(1 + nth + group * BLOCKS_PER_GROUP).to_le_bytes();
    }
    block
}

/// The double-indirect block: `descriptor_blocks` are in use, `reserved` follow.
pub(super) fn double_indirect(descriptor_blocks: u64, reserved: u64) -> BlockBytes {
    let mut block = [0; BLOCK];
    for nth in descriptor_blocks..descriptor_blocks + reserved {
        put_u32(&mut block, index(nth % POINTERS) * 4, low_u32(1 + nth));
    }
    block
}

/// Inode 7.
pub(super) fn record(double_indirect: u64, reserved: u64, backups: u64) -> Record {
    const DOUBLE_INDIRECT: usize = 13;
    let mut content = [0; 60];
    put_u32(&mut content, DOUBLE_INDIRECT * 4, low_u32(double_indirect));
    Record::reserved(
        mode::REGULAR | 0o600,
        SIZE_BYTES,
        1 + reserved * (1 + backups),
        0,
        content,
    )
}
