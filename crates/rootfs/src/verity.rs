//! dm-verity: a hash tree after the file system, so that a guest reads no block that is not the one that was built.
//!
//! The kernel checks each 4 KiB block against the tree when it is read, and the tree against its root hash. Whoever
//! trusts the root hash (from the build's metadata, on the kernel's command line) trusts the whole image, wherever it
//! was stored in between.
//!
//! # Format
//!
//! What `veritysetup format --salt=SALT --uuid=UUID` makes with the hash area in the same file, and `veritysetup
//! verify` accepts: on-disk superblock version 1 (`struct verity_sb` of cryptsetup's `lib/verity/verity.c`), hash type
//! 1 (the salt comes before the data), SHA-256, data and hash blocks of 4,096 bytes.
//!
//! ```text
//! 0                  the ext4 file system, a multiple of 4,096 bytes: the data blocks
//! hash_offset        one block: the superblock, 512 bytes, then zeros
//! hash_offset+4096   the tree's levels, the one with the single top block first
//! size_bytes         the end of the file
//! ```
//!
//! The salt is the same for all images ([`SALT`]), so that a block has the same hash in every image that it is part of:
//! the leaf hashes of a layer's pack ([`LeafHashes`]) are computed once and kept beside it, and the tree of an image
//! with that layer is made without reading the layer again. A salt of each image's own would only make it harder to
//! find one block that two images share; images here are meant to share blocks.
//!
//! The UUID in the superblock is derived from the root hash. It is not the file system's.
//!
//! A block of 128 hashes in the lowest level stands for 512 KiB of the image, aligned to 512 KiB: what
//! [`chunks`](crate::chunks) compares is the hashes of these blocks.
//!
//! # Using it
//!
//! [`Verity::kernel_argument`] gives the argument that sets the device up before the root file system is mounted
//! (`Documentation/admin-guide/device-mapper/dm-init.rst`), for a kernel with `CONFIG_DM_INIT`, `CONFIG_DM_VERITY` and
//! `CONFIG_CRYPTO_SHA256` built in:
//!
//! ```text
//! dm-mod.create="rootfs,,,ro,0 SECTORS verity 1 /dev/vda /dev/vda 4096 4096 BLOCKS START sha256 ROOT SALT"
//! root=/dev/dm-0 ro
//! ```
//!
//! where `SECTORS` are those of 512 bytes of the file system, `BLOCKS` its blocks of 4 KiB, and `START` the block of the
//! tree's top: one after the superblock, which the kernel does not read. Where the disk is probed late, kernels from
//! 6.3 on wait for it with `dm-mod.waitfor=/dev/vda`.

#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
mod leaves;
mod superblock;
mod tree;

use std::{fs::File, io, os::unix::fs::FileExt as _};

pub use self::leaves::{LeafHashes, LeafHashesError};
pub(crate) use self::{
    leaves::{hash_block, hash_blocks, read_and_hash, zero_hash},
    tree::{Geometry, Leaves, TreeWriter},
};
use crate::{ext4::ImageSink, pack::BLOCK_SIZE};

/// Length of a hash in bytes: SHA-256.
pub const HASH_BYTES: usize = 32;

/// Hashes in one block of the tree, and so data blocks below one block of its lowest level.
pub const HASHES_PER_BLOCK: u64 = 128;

/// A SHA-256 over the salt and one block.
pub type Hash = [u8; HASH_BYTES];

/// The salt of all images: the SHA-256 of `builderd dm-verity salt 1`. It has no need to be secret (module
/// documentation).
pub const SALT: Hash = [
    0x9b, 0x70, 0x88, 0xcb, 0xfa, 0x85, 0x0a, 0xc1, 0x87, 0x96, 0x1a, 0xdd, 0xb6, 0x4e, 0xd0, 0xc9, 0x95,
    0x40, 0xc3, 0xb1, 0xed, 0xf3, 0xd5, 0x9e, 0x20, 0xc5, 0x4f, 0xff, 0x55, 0x4b, 0xd3, 0x18,
];

/// Where an image's hash tree is, and what is at its top.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Verity {
    /// Hash of the tree's top block: what has to be trusted.
    pub root_hash: Hash,
    /// The salt: [`SALT`].
    pub salt: Hash,
    /// The UUID in the superblock.
    pub uuid: [u8; 16],
    /// Where the superblock starts, in bytes: the size of the file system.
    pub hash_offset: u64,
    /// Data blocks of 4,096 bytes.
    pub data_blocks: u64,
    /// Bytes of superblock and tree, a multiple of 4,096. The file ends after them.
    pub hash_area_bytes: u64,
}

impl Verity {
    /// Block of 4,096 bytes, from the start of the file, where the tree begins: `hash_start_block` of the kernel's table.
    #[must_use]
    pub fn hash_start_block(&self) -> u64 {
        self.hash_offset / BLOCK_SIZE + 1
    }

    /// The device-mapper table of one line (`Documentation/admin-guide/device-mapper/verity.rst`), as `dmsetup create
    /// --readonly --table` takes it. `device` is the path or `MAJOR:MINOR` of the disk in the guest, such as `/dev/vda`.
    #[must_use]
    pub fn table(&self, device: &str) -> String {
        table(device, self.hash_offset, &self.root_hash, &self.salt)
    }

    /// What to append to the kernel's command line so that the image is the root file system and every block is checked
    /// as it is read. It replaces other `root=` arguments. See [`Verity::table`] for `device`.
    #[must_use]
    pub fn kernel_argument(&self, device: &str) -> String {
        kernel_argument(&self.table(device))
    }
}

/// [`Verity::table`] for whoever has only what the metadata of an image say: a file system of `file_system_bytes`, a
/// multiple of 4,096, with its hash tree behind it.
#[must_use]
pub fn table(device: &str, file_system_bytes: u64, root_hash: &Hash, salt: &Hash) -> String {
    let blocks = file_system_bytes / BLOCK_SIZE;
    format!(
        "0 {sectors} verity 1 {device} {device} {BLOCK_SIZE} {BLOCK_SIZE} {blocks} {start} sha256 {root} {salt}",
        sectors = blocks * (BLOCK_SIZE / 512),
        start = blocks + 1,
        root = hex::encode(root_hash),
        salt = hex::encode(salt),
    )
}

/// [`Verity::kernel_argument`] for a [`table`].
#[must_use]
pub fn kernel_argument(table: &str) -> String {
    format!("dm-mod.create=\"rootfs,,,ro,{table}\" root=/dev/dm-0 ro")
}

/// Bytes that a hash area adds to a file system of that size, superblock included.
///
/// `None` unless `file_system_bytes` is a multiple of 4,096 and not 0.
#[must_use]
pub fn hash_area_bytes(file_system_bytes: u64) -> Option<u64> {
    Geometry::of(file_system_bytes).map(|geometry| geometry.area_bytes())
}

/// Appends a hash area to the file system that `image` holds, of `file_system_bytes` from its start, by reading all of
/// it. The file is cut or extended to `file_system_bytes` plus the area.
///
/// The native writer does not need this: it knows most hashes without reading, and the bytes are the same.
///
/// # Errors
/// `InvalidInput` when `file_system_bytes` is 0 or no multiple of 4,096; `UnexpectedEof` when the file is shorter;
/// whatever reading and writing report.
pub fn append(image: &File, file_system_bytes: u64) -> io::Result<Verity> {
    let geometry = Geometry::of(file_system_bytes).ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("a file system of {file_system_bytes} bytes is not a number of blocks of 4096 bytes"),
        )
    })?;
    // What is left of an earlier hash area goes.
    if image.metadata()?.len() < file_system_bytes {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    image.set_len(file_system_bytes)?;
    image.set_len(file_system_bytes + geometry.area_bytes())?;
    let mut tree = TreeWriter::new(geometry, image);
    read_and_hash(
        &|buffer: &mut [u8], offset| image.read_exact_at(buffer, offset),
        0,
        file_system_bytes / BLOCK_SIZE,
        &mut |run| tree.push(run),
    )?;
    tree.finish()
}

/// A sink that takes an image of which a hash area is made.
pub(crate) type Sink<'a> = &'a dyn ImageSink;

#[cfg(test)]
mod tests;
