//! The file system as it will be: inodes in memory, names apart from them.

use std::{collections::BTreeMap, sync::Arc};

use crate::{DeviceNumber, Metadata, layer::BodyExtent, pack::PackId};

/// Names one inode of a [`Tree`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InodeId(pub(crate) u32);

/// A directory's children by name, in byte order. A name has 1 to 255 bytes and neither `/` nor NUL, and is not `.`
/// or `..`.
pub type Children = BTreeMap<Box<[u8]>, InodeId>;

/// Where a regular file's bytes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// In a pack; what no extent covers is a hole.
    Packed {
        /// Which pack.
        pack: PackId,
        /// Runs of data, ascending, not overlapping, within the file's size.
        extents: Arc<[BodyExtent]>,
    },
    /// Here. For files that builderd adds itself.
    Inline(Arc<[u8]>),
}

/// A regular file's size and content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileContent {
    /// Size in bytes, holes included. For inline content, its length.
    pub size_bytes: u64,
    /// Where the bytes are.
    pub content: Content,
}

/// What an inode is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InodeKind {
    /// A directory.
    Directory(Children),
    /// A regular file.
    File(FileContent),
    /// A symbolic link and its target.
    Symlink(Box<[u8]>),
    /// A character device.
    CharacterDevice(DeviceNumber),
    /// A block device.
    BlockDevice(DeviceNumber),
    /// A named pipe.
    Fifo,
}

/// One inode: what it is, and how many names it has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inode {
    /// Owner, permissions, time, extended attributes.
    pub metadata: Metadata,
    /// What it is.
    pub kind: InodeKind,
    /// Names that lead here. Always 1 for a directory (the root counts as named); a reachable inode has at least 1.
    pub names: u32,
}

/// A file system in memory: a root directory and everything below it.
///
/// Invariants: every inode that can be reached has as many names as `names` says; directories have one parent each
/// and form a tree; nothing else has children.
#[derive(Clone, Debug)]
pub struct Tree {
    inodes: Vec<Option<Inode>>,
    free: Vec<InodeId>,
}

impl Tree {
    /// The root of every tree.
    pub const ROOT: InodeId = InodeId(0);

    /// A tree that has only a root directory, 0755, owned by root, dated 1970.
    #[must_use]
    pub fn new() -> Self {
        let root = Inode { metadata: Metadata::root(0o755), kind: InodeKind::Directory(Children::new()), names: 1 };
        Self { inodes: vec![Some(root)], free: Vec::new() }
    }

    /// The inode of that name.
    ///
    /// # Panics
    /// When the inode was removed since the name was taken.
    #[must_use]
    pub fn inode(&self, id: InodeId) -> &Inode {
        self.inodes[id.0 as usize].as_ref().expect("an inode id is not used after its inode was removed")
    }

    /// The children of a directory; `None` for anything else.
    #[must_use]
    pub fn children(&self, id: InodeId) -> Option<&Children> {
        match &self.inode(id).kind {
            InodeKind::Directory(children) => Some(children),
            _ => None,
        }
    }
}

impl Default for Tree {
    fn default() -> Self {
        Self::new()
    }
}
