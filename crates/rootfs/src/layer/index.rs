//! What a layer says, entry by entry, without the file bodies.

use serde::{Deserialize, Serialize};

use crate::{DeviceNumber, Metadata};

/// A run of a file's bytes that lies in the layer's pack.
///
/// Both offsets are multiples of 4,096. Bytes of the file that no extent covers are zero (a hole).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct BodyExtent {
    /// Where the run starts in the file, in bytes.
    pub logical_offset: u64,
    /// Where the run starts in the pack, in bytes.
    pub pack_offset: u64,
    /// Length in bytes, at least 1. Only a run that ends with the file may be no multiple of 4,096; the pack is then
    /// padded with zeros to the next multiple.
    pub length: u64,
}

/// A regular file's content: its size and where its non-zero bytes lie in the pack.
///
/// Extents are in ascending logical order and do not overlap; all end at or before `size`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Body {
    /// The file's size in bytes, holes included.
    pub size: u64,
    /// Runs of data.
    pub extents: Vec<BodyExtent>,
}

/// What kind of thing an entry is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum EntryKind {
    /// A directory.
    Directory,
    /// A regular file.
    File(Body),
    /// A symbolic link with its target, byte for byte.
    Symlink(Vec<u8>),
    /// A hard link with the raw path that it names.
    HardLink(Vec<u8>),
    /// A character device.
    CharacterDevice(DeviceNumber),
    /// A block device.
    BlockDevice(DeviceNumber),
    /// A named pipe.
    Fifo,
}

/// One entry of a layer, as the tar archive has it. Nothing is interpreted yet: whiteouts are ordinary entries here,
/// and paths are raw bytes that may be absolute or contain `..`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Entry {
    /// The path, byte for byte (not necessarily UTF-8, never with a NUL).
    pub path: Vec<u8>,
    /// What it is.
    pub kind: EntryKind,
    /// Owner, permissions, time, extended attributes. For a hard link, those of the link's own header.
    pub metadata: Metadata,
}

/// Everything that one layer says, in archive order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerIndex {
    /// SHA-256 over all decompressed bytes: the layer's `diff_id`.
    pub diff_id: [u8; 32],
    /// Decompressed bytes of the layer.
    pub uncompressed_size_bytes: u64,
    /// Length of the pack in bytes, a multiple of 4,096. No extent reaches beyond it.
    pub pack_size_bytes: u64,
    /// The entries in archive order.
    pub entries: Vec<Entry>,
}
