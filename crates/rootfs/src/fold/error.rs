//! Why a layer cannot be applied.

use crate::tree::{MAX_NAME_BYTES, MAX_SYMLINK_BYTES};

/// A layer has an entry without a meaning, or more than is allowed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("layer {layer}: {path}: {kind}", path = crate::text::printable(path))]
pub struct FoldError {
    /// Which layer, counted from 1 at the bottom.
    pub layer: usize,
    /// The path of the entry as the layer has it, not necessarily UTF-8.
    pub path: Vec<u8>,
    /// What is wrong with it.
    pub kind: FoldErrorKind,
}

/// What is wrong with an entry.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FoldErrorKind {
    /// A whiteout of nothing (`.wh.`), of `.` or of `..`.
    #[error("the whiteout names nothing that a directory can hold")]
    EmptyWhiteout,
    /// A component other than the last begins with `.wh.` ([`Mode::Oci`](super::Mode::Oci); in
    /// [`Mode::Docker`](super::Mode::Docker) such an entry is skipped).
    #[error("a directory cannot have a name that begins with \".wh.\"")]
    WhiteoutDirectory,
    /// The root is to be something else than a directory.
    #[error("the root must be a directory")]
    RootNotDirectory,
    /// A NUL in a path, a hard link's target or a symbolic link's target.
    #[error("a path cannot contain a NUL byte")]
    NulByte,
    /// A component is too long.
    #[error("a name has {length} bytes, {MAX_NAME_BYTES} are possible")]
    NameTooLong {
        /// Its length in bytes.
        length: usize,
    },
    /// A path is too long.
    #[error("the path has {length} bytes, {limit} are allowed")]
    PathTooLong {
        /// Its length in bytes.
        length: usize,
        /// [`FoldLimits::max_path_bytes`](super::FoldLimits::max_path_bytes).
        limit: usize,
    },
    /// A path has too many components, or leads too deep through symbolic links.
    #[error("the path is more than {limit} directories deep")]
    TooDeep {
        /// [`FoldLimits::max_depth`](super::FoldLimits::max_depth).
        limit: usize,
    },
    /// A path leads through too many symbolic links, most likely in a circle.
    #[error("the path leads through more than 40 symbolic links")]
    SymlinkLoop,
    /// A symbolic link without a target, or with one that is too long.
    #[error("a symbolic link's target has {length} bytes, 1 to {MAX_SYMLINK_BYTES} are possible")]
    SymlinkTarget {
        /// Its length in bytes.
        length: usize,
    },
    /// A hard link to something that is neither in this layer nor below it.
    #[error("the hard link's target {} does not exist", crate::text::printable(target))]
    LinkTargetMissing {
        /// The target as the layer has it.
        target: Vec<u8>,
    },
    /// A hard link to a directory or to the root.
    #[error("the hard link's target {} is a directory", crate::text::printable(target))]
    LinkToDirectory {
        /// The target as the layer has it.
        target: Vec<u8>,
    },
    /// A hard link to itself, or hard links in a circle.
    #[error(
        "the hard link's target {} leads back to the link",
        crate::text::printable(target)
    )]
    LinkToItself {
        /// The target as the layer has it.
        target: Vec<u8>,
    },
    /// An inode would have too many names.
    #[error("a file would have more than {limit} names")]
    TooManyLinks {
        /// [`FoldLimits::max_links`](super::FoldLimits::max_links).
        limit: u32,
    },
    /// More entries, or more inodes, than allowed.
    #[error("the image has more than {limit} entries")]
    TooManyEntries {
        /// [`FoldLimits::max_entries`](super::FoldLimits::max_entries).
        limit: u64,
    },
    /// A device number that ext4 and the kernel's user interface cannot express.
    #[error("device {major}:{minor} does not exist: 12 bits and 20 bits are possible")]
    DeviceNumber {
        /// The major number.
        major: u32,
        /// The minor number.
        minor: u32,
    },
}
