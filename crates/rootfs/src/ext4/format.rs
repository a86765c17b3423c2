//! Sizes and little-endian fields that every structure of the format shares.
//!
//! The layouts are those of the kernel's `fs/ext4/ext4.h`; each structure is described where it is written.

/// Bytes of one block. Fixed: it is the page size of every guest, the alignment of packs, and the largest block size
/// that every kernel mounts.
pub(super) const BLOCK_BYTES: u64 = crate::pack::BLOCK_SIZE;

/// [`BLOCK_BYTES`] as an index.
pub(super) const BLOCK: usize = 4096;

/// Blocks of one group: as many as one block has bits, since a group's bitmap is one block (128 MiB).
pub(super) const BLOCKS_PER_GROUP: u64 = 8 * BLOCK_BYTES;

/// Most inodes of one group, for the same reason.
pub(super) const MAX_INODES_PER_GROUP: u64 = 8 * BLOCK_BYTES;

/// Blocks of one chunk: 512 KiB, the unit in which images share data.
pub(super) const CHUNK_BLOCKS: u64 = 128;

/// Bytes of one inode (`s_inode_size`): 128 of the old form, 32 of extra fields, 96 for extended attributes.
pub(super) const INODE_BYTES: usize = 256;

/// Inodes of one block of an inode table.
pub(super) const INODES_PER_BLOCK: u64 = BLOCK_BYTES / 256;

/// `i_extra_isize`: the extra fields up to and including `i_projid`.
pub(super) const EXTRA_INODE_BYTES: u16 = 32;

/// The root directory (`EXT4_ROOT_INO`).
pub(super) const ROOT_INODE: u32 = 2;
/// The inode that holds the blocks reserved for more group descriptors (`EXT4_RESIZE_INO`).
pub(super) const RESIZE_INODE: u32 = 7;
/// The journal (`EXT4_JOURNAL_INO`).
pub(super) const JOURNAL_INODE: u32 = 8;
/// The first inode that is not reserved (`EXT4_GOOD_OLD_FIRST_INO`): by convention `lost+found`.
pub(super) const FIRST_INODE: u32 = 11;

/// `S_IFIFO` and its siblings, the type bits of `i_mode`.
pub(super) mod mode {
    pub(in crate::ext4) const FIFO: u16 = 0o010_000;
    pub(in crate::ext4) const CHARACTER_DEVICE: u16 = 0o020_000;
    pub(in crate::ext4) const DIRECTORY: u16 = 0o040_000;
    pub(in crate::ext4) const BLOCK_DEVICE: u16 = 0o060_000;
    pub(in crate::ext4) const REGULAR: u16 = 0o100_000;
    pub(in crate::ext4) const SYMLINK: u16 = 0o120_000;
}

/// One block's bytes.
pub(super) type BlockBytes = [u8; BLOCK];

/// Writes a little-endian 16-bit field.
pub(super) fn put_u16(bytes: &mut [u8], offset: usize, value: u16) {
    bytes[offset..offset + 2].copy_from_slice(&value.to_le_bytes());
}

/// Writes a little-endian 32-bit field.
pub(super) fn put_u32(bytes: &mut [u8], offset: usize, value: u32) {
    bytes[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
}

/// Bits 0 to 31.
pub(super) fn low_u32(value: u64) -> u32 {
    let [a, b, c, d, ..] = value.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

/// Bits 32 to 63.
pub(super) fn high_u32(value: u64) -> u32 {
    low_u32(value >> 32)
}

/// Bits 0 to 15.
pub(super) fn low_u16(value: u64) -> u16 {
    let [a, b, ..] = value.to_le_bytes();
    u16::from_le_bytes([a, b])
}

/// Bits 16 to 31.
pub(super) fn high_u16(value: u32) -> u16 {
    low_u16(u64::from(value >> 16))
}

/// A count or a position that is known to fit into memory.
pub(super) fn index(value: u64) -> usize {
    usize::try_from(value).expect("a position in a structure that is held in memory fits usize")
}

/// A position in one of the plan's tables. All of them are bounded by the number of inodes and names, which
/// [`super::plan`] checks against 2^32 first.
pub(super) fn position(value: usize) -> u32 {
    u32::try_from(value).expect("the plan's tables have fewer than 2^32 rows")
}
