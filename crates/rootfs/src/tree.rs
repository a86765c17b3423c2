//! The file system as it will be: inodes in memory, names apart from them.
//!
//! Nothing here recurses: trees are as deep as a hostile layer can make them, and a removal or a walk that used the
//! call stack would let it choose how much of that is used.

mod resolve;
mod walk;

use std::{collections::BTreeMap, fmt, mem::take, sync::Arc};

pub(crate) use resolve::{Absent, Follow, Found, MAX_SYMLINK_HOPS, ResolveError};
pub use walk::Walk;

use crate::{DeviceNumber, Metadata, layer::BodyExtent, pack::PackId};

/// Longest name of a directory entry in bytes (ext4's `EXT4_NAME_LEN`).
pub const MAX_NAME_BYTES: usize = 255;

/// Longest target of a symbolic link in bytes: one 4 KiB block less the NUL that the kernel appends.
pub const MAX_SYMLINK_BYTES: usize = 4095;

/// Most names that one inode other than a directory can have (ext4's `EXT4_LINK_MAX`).
pub const MAX_LINKS: u32 = 65_000;

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
/// and form a tree; nothing else has children. [`Tree::check`] verifies them.
#[derive(Clone, Debug)]
pub struct Tree {
    inodes: Vec<Option<Inode>>,
    free: Vec<InodeId>,
}

/// What a tree holds, in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Inodes, the root included.
    pub inodes: u64,
    /// Names: every entry of every directory. The root has none.
    pub names: u64,
    /// Sizes of all regular files in bytes, holes included; a file with several names counts once.
    pub file_bytes: u64,
}

/// What a removal took away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Removed {
    /// Names that are gone, the removed one included.
    pub(crate) names: u64,
    /// Sizes of the regular files that lost their last name, in bytes.
    pub(crate) bytes: u64,
}

/// A broken invariant of a [`Tree`], in words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the tree is inconsistent: {0}")]
pub struct InvariantError(String);

impl InodeKind {
    /// Whether this is a directory.
    #[must_use]
    pub const fn is_directory(&self) -> bool {
        matches!(self, Self::Directory(_))
    }

    /// Size in bytes of a regular file's content; 0 for anything else.
    #[must_use]
    pub const fn file_size(&self) -> u64 {
        match self {
            Self::File(content) => content.size_bytes,
            _ => 0,
        }
    }
}

impl FileContent {
    /// Content that is held in memory.
    #[must_use]
    pub fn inline(bytes: impl Into<Arc<[u8]>>) -> Self {
        let bytes = bytes.into();
        Self {
            size_bytes: bytes.len() as u64,
            content: Content::Inline(bytes),
        }
    }
}

impl Tree {
    /// The root of every tree.
    pub const ROOT: InodeId = InodeId(0);

    /// A tree that has only a root directory, 0755, owned by root, dated 1970.
    #[must_use]
    pub fn new() -> Self {
        let root = Inode {
            metadata: Metadata::root(0o755),
            kind: InodeKind::Directory(Children::new()),
            names: 1,
        };
        Self {
            inodes: vec![Some(root)],
            free: Vec::new(),
        }
    }

    /// The inode of that name.
    ///
    /// # Panics
    /// When the inode was removed since the name was taken.
    #[must_use]
    pub fn inode(&self, id: InodeId) -> &Inode {
        self.inodes[id.0 as usize]
            .as_ref()
            .expect("an inode id is not used after its inode was removed")
    }

    /// The children of a directory; `None` for anything else.
    #[must_use]
    pub fn children(&self, id: InodeId) -> Option<&Children> {
        match &self.inode(id).kind {
            InodeKind::Directory(children) => Some(children),
            _ => None,
        }
    }

    /// The child of that name; `None` when there is none, or when `parent` is no directory.
    #[must_use]
    pub fn child(&self, parent: InodeId, name: &[u8]) -> Option<InodeId> {
        self.children(parent)?.get(name).copied()
    }

    /// Every inode and name that can be reached, as `(path, inode)` in byte order of the paths.
    ///
    /// Paths have no leading slash; the root comes first and its path is empty. An inode with several names comes once
    /// for each. The order is that of the whole paths: `a-b` stands between `a` and `a/b`.
    #[must_use]
    pub fn walk(&self) -> Walk<'_> {
        Walk::new(self)
    }

    /// How much the tree holds. Takes time in proportion to the number of inodes.
    #[must_use]
    pub fn usage(&self) -> Usage {
        let mut usage = Usage::default();
        for inode in self.inodes() {
            usage.inodes += 1;
            usage.file_bytes = usage.file_bytes.saturating_add(inode.kind.file_size());
            if let InodeKind::Directory(children) = &inode.kind {
                usage.names += children.len() as u64;
            }
        }
        usage
    }

    /// Every inode that can be reached, once, the root included, in no particular order.
    pub fn inodes(&self) -> impl Iterator<Item = &Inode> {
        self.inodes.iter().flatten().filter(|inode| inode.names > 0)
    }

    /// Inodes that the tree holds at this moment, removed ones that await [`Tree::release`] included.
    pub(crate) fn len(&self) -> usize {
        self.inodes.len() - self.free.len()
    }

    /// One past the highest inode number in use: the length of a table that is indexed by [`InodeId`].
    #[cfg(test)]
    pub(crate) fn capacity(&self) -> usize {
        self.inodes.len()
    }

    /// The inode of that name, to be changed. Callers keep the invariants: they do not touch `names`, and change
    /// children through [`Tree::attach`] and [`Tree::detach`] only.
    pub(crate) fn inode_mut(&mut self, id: InodeId) -> &mut Inode {
        self.inodes[id.0 as usize]
            .as_mut()
            .expect("an inode id is not used after its inode was removed")
    }

    /// Makes an inode that has no name yet. It counts as removed until it is attached.
    ///
    /// # Panics
    /// Beyond 2^32 inodes.
    pub(crate) fn allocate(&mut self, metadata: Metadata, kind: InodeKind) -> InodeId {
        let inode = Inode {
            metadata,
            kind,
            names: 0,
        };
        if let Some(id) = self.free.pop() {
            self.inodes[id.0 as usize] = Some(inode);
            return id;
        }
        let id = InodeId(u32::try_from(self.inodes.len()).expect("fewer than 2^32 inodes"));
        self.inodes.push(Some(inode));
        id
    }

    /// Gives an inode a name in `parent`, which is a directory and has no child of that name. A directory must not
    /// have a name already.
    pub(crate) fn attach(&mut self, parent: InodeId, name: &[u8], id: InodeId) {
        let inode = self.inode_mut(id);
        debug_assert!(
            inode.names == 0 || !inode.kind.is_directory(),
            "a directory has one parent"
        );
        inode.names += 1;
        let InodeKind::Directory(children) = &mut self.inode_mut(parent).kind else {
            unreachable!("only directories are given children");
        };
        let before = children.insert(name.into(), id);
        debug_assert!(before.is_none(), "the name was free");
    }

    /// Takes a name away, with everything below it. Inodes that lose their last name are appended to `orphans`: they
    /// keep their number and their content (a directory is empty by then) until [`Tree::release`], so that a hard link
    /// of the same layer can still give them a new name.
    pub(crate) fn detach(&mut self, parent: InodeId, name: &[u8], orphans: &mut Vec<InodeId>) -> Removed {
        let InodeKind::Directory(children) = &mut self.inode_mut(parent).kind else {
            return Removed::default();
        };
        let first = children.remove(name);
        self.unname(first.into_iter().collect(), orphans)
    }

    /// [`Tree::detach`] for every name in a directory.
    pub(crate) fn detach_all(&mut self, parent: InodeId, orphans: &mut Vec<InodeId>) -> Removed {
        let InodeKind::Directory(children) = &mut self.inode_mut(parent).kind else {
            return Removed::default();
        };
        let all = take(children).into_values().collect();
        self.unname(all, orphans)
    }

    /// Takes one name from each inode of `pending`, and from everything below those that have none left.
    fn unname(&mut self, mut pending: Vec<InodeId>, orphans: &mut Vec<InodeId>) -> Removed {
        let mut removed = Removed::default();
        while let Some(id) = pending.pop() {
            removed.names += 1;
            let inode = self.inode_mut(id);
            inode.names -= 1;
            if inode.names > 0 {
                continue;
            }
            removed.bytes = removed.bytes.saturating_add(inode.kind.file_size());
            if let InodeKind::Directory(children) = &mut inode.kind {
                pending.extend(take(children).into_values());
            }
            orphans.push(id);
        }
        removed
    }

    /// Frees those of `orphans` that still have no name. Their numbers may be used again from now on.
    pub(crate) fn release(&mut self, orphans: impl IntoIterator<Item = InodeId>) {
        for id in orphans {
            let slot = &mut self.inodes[id.0 as usize];
            // An inode may be listed twice: orphaned, linked again, and orphaned once more.
            if slot.as_ref().is_some_and(|inode| inode.names == 0) {
                *slot = None;
                self.free.push(id);
            }
        }
    }

    /// The tree as text, one line per name, in byte order of the paths: what tests compare. File contents do not
    /// appear; [`crate::listing::Listing`] shows them too.
    #[must_use]
    pub fn dump(&self) -> String {
        crate::listing::Listing::of_tree(self).to_string()
    }

    /// Verifies the invariants of the type: link counts, one parent per directory, valid names, nothing unreachable.
    ///
    /// # Errors
    /// Names the first invariant that does not hold.
    pub fn check(&self) -> Result<(), InvariantError> {
        let fail = |what: fmt::Arguments<'_>| Err(InvariantError(what.to_string()));
        let mut names_found = vec![0_u32; self.inodes.len()];
        names_found[Self::ROOT.0 as usize] = 1;
        let mut pending = vec![Self::ROOT];
        while let Some(directory) = pending.pop() {
            for (name, &id) in self.children(directory).into_iter().flatten() {
                if name.is_empty() || name.len() > MAX_NAME_BYTES || matches!(&**name, b"." | b"..") {
                    return fail(format_args!("invalid name {:?}", String::from_utf8_lossy(name)));
                }
                if name.iter().any(|&byte| byte == 0 || byte == b'/') {
                    return fail(format_args!(
                        "name with slash or NUL {:?}",
                        String::from_utf8_lossy(name)
                    ));
                }
                let Some(Some(inode)) = self.inodes.get(id.0 as usize) else {
                    return fail(format_args!(
                        "{:?} names a removed inode",
                        String::from_utf8_lossy(name)
                    ));
                };
                let found = &mut names_found[id.0 as usize];
                *found += 1;
                if inode.kind.is_directory() {
                    if *found > 1 {
                        return fail(format_args!("directory {id:?} has two parents"));
                    }
                    pending.push(id);
                }
            }
        }
        for (slot, &found) in self.inodes.iter().zip(&names_found) {
            let expected = slot.as_ref().map_or(0, |inode| inode.names);
            if expected != found {
                return fail(format_args!("an inode says {expected} names and has {found}"));
            }
            if slot.is_some() && found == 0 {
                return fail(format_args!("an inode without a name was not freed"));
            }
        }
        if self.free.len() != self.inodes.iter().filter(|slot| slot.is_none()).count() {
            return fail(format_args!("the list of free inode numbers is wrong"));
        }
        Ok(())
    }
}

impl Default for Tree {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests;
