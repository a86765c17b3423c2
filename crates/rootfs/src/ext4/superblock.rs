//! The superblock and the group descriptors.
//!
//! The superblock (`struct ext4_super_block` in `fs/ext4/ext4.h`) has 1,024 bytes, stands at byte 1,024 of the image and
//! at the start of every backup. Its fields are written in the order of their offsets in [`Superblock::encode`].
//!
//! What could hold a clock is 0: times of making, mounting, writing and checking. e2fsck takes 0 as "unknown". The
//! counters of written bytes and of mounts are 0, the volume has no name, and nothing is reserved for root.
//!
//! A group descriptor (`struct ext4_group_desc`) has 32 bytes, or 64 in images beyond 16 TiB: positions of block bitmap,
//! inode bitmap and inode table; free blocks, free inodes, directories; flags; checksums of both bitmaps; inodes never
//! used at the end of the table; its own checksum, seeded by the group's number.

use super::{
    checksum::Checksum,
    format::{
        BLOCKS_PER_GROUP, EXTRA_INODE_BYTES, FIRST_INODE, INODE_BYTES, JOURNAL_INODE, high_u16, high_u32,
        low_u16, low_u32, put_u16, put_u32,
    },
};

/// What an old kernel may ignore: `ext_attr`, `dir_index`; `has_journal` and `resize_inode` where they apply.
const COMPATIBLE: u32 = 0x8 | 0x20;
const COMPATIBLE_JOURNAL: u32 = 0x4;
const COMPATIBLE_RESIZE_INODE: u32 = 0x10;
/// What it must know: `filetype`, `extent`, `flex_bg`; `64bit` where blocks need more than 32 bits.
const INCOMPATIBLE: u32 = 0x2 | 0x40 | 0x200;
const INCOMPATIBLE_64BIT: u32 = 0x80;
/// What it must know to write: `sparse_super`, `large_file`, `huge_file`, `dir_nlink`, `extra_isize`, `metadata_csum`.
const READ_ONLY_COMPATIBLE: u32 = 0x1 | 0x2 | 0x8 | 0x20 | 0x40 | 0x400;
/// `EXT4_FEATURE_RO_COMPAT_READONLY`: the kernel never writes to this image, whatever the mount options say, so a
/// guest that mounts it `rw` by mistake cannot change blocks that are shared or covered by a hash tree.
const READ_ONLY_COMPATIBLE_READONLY: u32 = 0x1000;

/// 2^4 groups share their bitmaps' place for the kernel's allocator: `mke2fs`'s default.
const LOG_GROUPS_PER_FLEX: u8 = 4;

/// The inode table's unused part is zero (`EXT4_BG_INODE_ZEROED`), so the kernel does not clear it in the background.
const GROUP_INODE_TABLE_ZEROED: u16 = 0x4;

/// Everything that differs between images.
#[derive(Clone, Debug)]
pub(super) struct Superblock {
    pub(super) inodes: u32,
    pub(super) blocks: u64,
    pub(super) free_blocks: u64,
    pub(super) free_inodes: u32,
    pub(super) inodes_per_group: u32,
    pub(super) reserved_descriptor_blocks: u16,
    pub(super) uuid: [u8; 16],
    pub(super) hash_seed: [u32; 4],
    /// Content and size of the journal's inode, kept here as well (`s_jnl_blocks`); `None` without a journal.
    pub(super) journal: Option<([u8; 60], u64)>,
    pub(super) has_resize_inode: bool,
    pub(super) is_64bit: bool,
    pub(super) is_read_only: bool,
}

impl Superblock {
    /// The superblock as it stands in `group`: 0 for the original.
    pub(super) fn encode(&self, group: u64) -> [u8; 1024] {
        let mut bytes = [0; 1024];
        let put_16 = |bytes: &mut [u8; 1024], offset, value| put_u16(bytes, offset, value);
        let put_32 = |bytes: &mut [u8; 1024], offset, value| put_u32(bytes, offset, value);
        let flag = |condition: bool, value: u32| if condition { value } else { 0 };

        put_32(&mut bytes, 0x00, self.inodes);
        put_32(&mut bytes, 0x04, low_u32(self.blocks));
        put_32(&mut bytes, 0x0c, low_u32(self.free_blocks));
        put_32(&mut bytes, 0x10, self.free_inodes);
        // Block and cluster size: 2^(10 + 2).
        put_32(&mut bytes, 0x18, 2);
        put_32(&mut bytes, 0x1c, 2);
        put_32(&mut bytes, 0x20, low_u32(BLOCKS_PER_GROUP));
        put_32(&mut bytes, 0x24, low_u32(BLOCKS_PER_GROUP));
        put_32(&mut bytes, 0x28, self.inodes_per_group);
        // Never checked because of the number of mounts.
        put_16(&mut bytes, 0x36, 0xffff);
        put_16(&mut bytes, 0x38, 0xef53);
        // Cleanly unmounted; go on after errors, as `mke2fs` has it.
        put_16(&mut bytes, 0x3a, 1);
        put_16(&mut bytes, 0x3c, 1);
        // Revision 1: variable inode size and features.
        put_32(&mut bytes, 0x4c, 1);
        put_32(&mut bytes, 0x54, FIRST_INODE);
        put_16(&mut bytes, 0x58, low_u16(INODE_BYTES as u64));
        put_16(&mut bytes, 0x5a, low_u16(group));
        let compatible = COMPATIBLE
            | flag(self.journal.is_some(), COMPATIBLE_JOURNAL)
            | flag(self.has_resize_inode, COMPATIBLE_RESIZE_INODE);
        put_32(&mut bytes, 0x5c, compatible);
        put_32(
            &mut bytes,
            0x60,
            INCOMPATIBLE | flag(self.is_64bit, INCOMPATIBLE_64BIT),
        );
        put_32(
            &mut bytes,
            0x64,
            READ_ONLY_COMPATIBLE | flag(self.is_read_only, READ_ONLY_COMPATIBLE_READONLY),
        );
        bytes[0x68..0x78].copy_from_slice(&self.uuid);
        put_16(&mut bytes, 0xce, self.reserved_descriptor_blocks);
        for (word, value) in self.hash_seed.iter().enumerate() {
            put_32(&mut bytes, 0xec + word * 4, *value);
        }
        // Half MD4.
        bytes[0xfc] = 1;
        if let Some((content, size)) = &self.journal {
            put_32(&mut bytes, 0xe0, JOURNAL_INODE);
            // The copy of the journal's inode is valid.
            bytes[0xfd] = 1;
            bytes[0x10c..0x10c + 60].copy_from_slice(content);
            put_32(&mut bytes, 0x148, high_u32(*size));
            put_32(&mut bytes, 0x14c, low_u32(*size));
        }
        put_16(&mut bytes, 0xfe, if self.is_64bit { 64 } else { 0 });
        // Mount options: user_xattr, acl.
        put_32(&mut bytes, 0x100, 0x4 | 0x8);
        put_32(&mut bytes, 0x150, high_u32(self.blocks));
        put_32(&mut bytes, 0x158, high_u32(self.free_blocks));
        put_16(&mut bytes, 0x15c, EXTRA_INODE_BYTES);
        put_16(&mut bytes, 0x15e, EXTRA_INODE_BYTES);
        // Names are hashed as unsigned bytes.
        put_32(&mut bytes, 0x160, 0x2);
        bytes[0x174] = LOG_GROUPS_PER_FLEX;
        // CRC32C.
        bytes[0x175] = 1;
        let sum = Checksum::START.over(&bytes[..0x3fc]).value();
        put_32(&mut bytes, 0x3fc, sum);
        bytes
    }
}

/// What a group's descriptor says.
#[derive(Clone, Copy, Debug)]
pub(super) struct GroupDescriptor {
    pub(super) block_bitmap: u64,
    pub(super) inode_bitmap: u64,
    pub(super) inode_table: u64,
    pub(super) free_blocks: u64,
    pub(super) free_inodes: u64,
    pub(super) directories: u64,
    pub(super) block_bitmap_sum: u32,
    pub(super) inode_bitmap_sum: u32,
    /// Inodes at the end of the table that were never used.
    pub(super) unused_inodes: u64,
}

impl GroupDescriptor {
    /// Writes the descriptor of `group` into `bytes`, which has 32 or 64.
    pub(super) fn encode(&self, group: u64, file_system: Checksum, bytes: &mut [u8]) {
        put_u32(bytes, 0x00, low_u32(self.block_bitmap));
        put_u32(bytes, 0x04, low_u32(self.inode_bitmap));
        put_u32(bytes, 0x08, low_u32(self.inode_table));
        // None of these counts exceeds 32,768, so 16 bits are enough and the upper halves stay 0.
        put_u16(bytes, 0x0c, low_u16(self.free_blocks));
        put_u16(bytes, 0x0e, low_u16(self.free_inodes));
        put_u16(bytes, 0x10, low_u16(self.directories));
        put_u16(bytes, 0x12, GROUP_INODE_TABLE_ZEROED);
        put_u16(bytes, 0x18, low_u16(u64::from(self.block_bitmap_sum)));
        put_u16(bytes, 0x1a, low_u16(u64::from(self.inode_bitmap_sum)));
        put_u16(bytes, 0x1c, low_u16(self.unused_inodes));
        if bytes.len() > 32 {
            put_u32(bytes, 0x20, high_u32(self.block_bitmap));
            put_u32(bytes, 0x24, high_u32(self.inode_bitmap));
            put_u32(bytes, 0x28, high_u32(self.inode_table));
            put_u16(bytes, 0x38, high_u16(self.block_bitmap_sum));
            put_u16(bytes, 0x3a, high_u16(self.inode_bitmap_sum));
        }
        // Over the group's number and the descriptor with a zero checksum (`ext4_group_desc_csum`).
        let number = low_u32(group).to_le_bytes();
        put_u16(bytes, 0x1e, 0);
        let sum = file_system.over(&number).over(bytes).value();
        put_u16(bytes, 0x1e, low_u16(u64::from(sum)));
    }
}
