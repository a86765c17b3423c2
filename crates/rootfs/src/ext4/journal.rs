//! The journal: an empty JBD2 log of which only the first block is not zero.
//!
//! That block (`struct journal_superblock_s` in `include/linux/jbd2.h`) is big-endian, unlike everything else:
//!
//! | offset | field | here |
//! |---|---|---|
//! | 0 | `h_magic` | 0xC03B3998 |
//! | 4 | `h_blocktype` | 4: superblock, version 2 |
//! | 8 | `h_sequence` | 0 |
//! | 12 | `s_blocksize`, `s_maxlen`, `s_first` | 4096, blocks of the journal, 1 |
//! | 24 | `s_sequence`, `s_start`, `s_errno` | 1, 0 (nothing to replay), 0 |
//! | 36 | features: compatible, incompatible, read-only | 0: the kernel adds those it wants when it mounts |
//! | 48 | `s_uuid` | the file system's |
//! | 64 | `s_nr_users` | 1 |

use super::format::{BLOCK, BLOCK_BYTES, BlockBytes, low_u32};

/// Smallest journal that the kernel accepts (`JBD2_MIN_JOURNAL_BLOCKS`).
const SMALLEST: u64 = 1024;

/// Blocks of the journal of a file system with so many blocks: `mke2fs`'s table, from 4 MiB to 1 GiB.
pub(super) fn blocks_for(file_system_blocks: u64) -> u64 {
    const GIB: u64 = (1 << 30) / BLOCK_BYTES;
    // The image is smaller than the first number of blocks: the journal has the second.
    const TABLE: [(u64, u64); 7] = [
        (GIB / 8, SMALLEST),
        (GIB, 4096),
        (2 * GIB, 8192),
        (16 * GIB, 16_384),
        (32 * GIB, 32_768),
        (64 * GIB, 65_536),
        (128 * GIB, 131_072),
    ];
    TABLE
        .iter()
        .find(|(below, _)| file_system_blocks < *below)
        .map_or(262_144, |(_, blocks)| *blocks)
}

/// The journal's first block.
pub(super) fn superblock(blocks: u64, uuid: &[u8; 16]) -> BlockBytes {
    let mut block = [0; BLOCK];
    let mut put = |offset: usize, value: u32| block[offset..offset + 4].copy_from_slice(&value.to_be_bytes());
    put(0, 0xC03B_3998);
    put(4, 4);
    put(12, low_u32(BLOCK_BYTES));
    put(16, low_u32(blocks));
    put(20, 1);
    put(24, 1);
    put(64, 1);
    block[48..64].copy_from_slice(uuid);
    block
}
