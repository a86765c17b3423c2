//! The superblock before the tree.
//!
//! ```text
//! offset  length                                        all numbers little endian
//!      0       8  "verity\0\0"
//!      8       4  version of the superblock: 1
//!     12       4  hash type: 1, the salt comes before the data
//!     16      16  UUID
//!     32      32  algorithm: "sha256", padded with zeros
//!     64       4  data block size
//!     68       4  hash block size
//!     72       8  number of data blocks
//!     80       2  length of the salt
//!     82       6  zeros
//!     88     256  salt, padded with zeros
//!    344     168  zeros
//! ```

use sha2::{Digest, Sha256};

use super::{Hash, SALT};
use crate::pack::BLOCK_SIZE;

const BYTES: usize = 512;

/// Encodes the superblock of a tree.
pub(super) fn encode(uuid: &[u8; 16], data_blocks: u64) -> [u8; BYTES] {
    let mut bytes = [0; BYTES];
    let mut put = |offset: usize, field: &[u8]| bytes[offset..offset + field.len()].copy_from_slice(field);
    let block_size = u32::try_from(BLOCK_SIZE).expect("4096 fits").to_le_bytes();
    put(0, b"verity\0\0");
    put(8, &1u32.to_le_bytes());
    put(12, &1u32.to_le_bytes());
    put(16, uuid);
    put(32, b"sha256");
    put(64, &block_size);
    put(68, &block_size);
    put(72, &data_blocks.to_le_bytes());
    put(80, &u16::try_from(SALT.len()).expect("32 fits").to_le_bytes());
    put(88, &SALT);
    bytes
}

/// A UUID from the root hash. Version 8 (RFC 9562, section 5.8): its bits mean nothing to others.
pub(super) fn uuid(root_hash: &Hash) -> [u8; 16] {
    let digest = Sha256::new()
        .chain_update(b"builderd dm-verity uuid 1\0")
        .chain_update(root_hash)
        .finalize();
    let mut uuid = [0; 16];
    uuid.copy_from_slice(&digest[..16]);
    uuid[6] = uuid[6] & 0x0f | 0x80;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    uuid
}
