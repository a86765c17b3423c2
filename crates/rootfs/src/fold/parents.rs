//! The directories that an entry's path leads through.

use super::{FoldErrorKind, Mode, NoteKind, apply::Application, path::is_whiteout_name};
use crate::{
    InodeId, InodeKind, Metadata, Tree,
    layer::Entry,
    tree::{Children, MAX_NAME_BYTES, MAX_SYMLINK_HOPS},
};

/// Where a path leads without symbolic links.
pub(super) enum Plain {
    Directory(InodeId),
    Symlink,
    Nowhere,
}

/// The directories from the root to a place, by name, and by number as far as they are there.
type Way = Vec<(Box<[u8]>, Option<InodeId>)>;

impl<'a> Application<'a> {
    /// Where a path leads as long as it needs no symbolic link.
    pub(super) fn plain(&self, components: &[&[u8]]) -> Plain {
        let mut here = Tree::ROOT;
        for name in components {
            let Some(id) = self.tree().child(here, name) else {
                return Plain::Nowhere;
            };
            match self.tree().inode(id).kind {
                InodeKind::Directory(_) => here = id,
                InodeKind::Symlink(_) => return Plain::Symlink,
                _ => return Plain::Nowhere,
            }
        }
        Plain::Directory(here)
    }

    /// The directory that an entry's parents lead to. Missing ones are made.
    pub(super) fn parent_directory(
        &mut self,
        entry: &Entry,
        parents: &[&'a [u8]],
    ) -> Result<InodeId, FoldErrorKind> {
        // Archives go directory by directory, so most entries have the parents of the one before. A name that leads
        // to a directory leads elsewhere only after something was taken from the tree, and `put` forgets the parents
        // then. (A cache that outlived such a change was CVE-2025-47290.)
        if let Some((known, id)) = &self.last_parents
            && known == parents
        {
            return Ok(*id);
        }
        if let Plain::Directory(id) = self.plain(parents) {
            self.last_parents = Some((parents.to_vec(), id));
            return Ok(id);
        }
        // First where the path leads, then what is missing there: a link to `x/..` does not bring `x` into being.
        let way = self.way(entry, parents)?;
        // The entry itself comes below.
        let limit = self.folder.limits.max_depth;
        if way.len() >= limit {
            return Err(FoldErrorKind::TooDeep { limit });
        }
        let mut here = Tree::ROOT;
        for (name, directory) in way {
            here = match directory {
                Some(id) => id,
                None => {
                    let existing = self
                        .tree()
                        .child(here, &name)
                        .map(|id| &self.tree().inode(id).kind);
                    if existing.is_some_and(|kind| !matches!(kind, InodeKind::Symlink(_))) {
                        self.note(entry, NoteKind::ParentReplaced);
                    }
                    self.imply(here, &name)?
                }
            };
        }
        Ok(here)
    }

    /// The directories from the root to where parents lead, by name, and by number as far as they are there.
    fn way(&mut self, entry: &Entry, parents: &[&[u8]]) -> Result<Way, FoldErrorKind> {
        let mut way = Way::new();
        let mut remaining: Vec<Box<[u8]>> = parents.iter().rev().map(|&name| name.into()).collect();
        let mut hops = 0;
        let mut is_noted = false;
        while let Some(name) = remaining.pop() {
            match &*name {
                b"" | b"." => continue,
                b".." => {
                    way.pop();
                    continue;
                }
                _ => {}
            }
            let here = way.last().map_or(Some(Tree::ROOT), |(_, directory)| *directory);
            let existing = here.and_then(|here| self.tree().child(here, &name));
            match existing.map(|id| (id, &self.tree().inode(id).kind)) {
                Some((id, InodeKind::Directory(_))) => way.push((name, Some(id))),
                Some((id, InodeKind::Symlink(target))) => {
                    let is_ours = self.is_made_here(id);
                    let followed = is_ours || self.folder.mode == Mode::Oci;
                    let target = target.clone();
                    if !is_ours && !is_noted {
                        is_noted = true;
                        self.note(entry, NoteKind::ParentIsSymlink { followed });
                    }
                    if !followed {
                        way.push((name, None));
                        continue;
                    }
                    hops += 1;
                    if hops > MAX_SYMLINK_HOPS {
                        return Err(FoldErrorKind::SymlinkLoop);
                    }
                    if target.first() == Some(&b'/') {
                        way.clear();
                    }
                    remaining.extend(target.split(|&byte| byte == b'/').rev().map(Box::from));
                }
                _ => way.push((name, None)),
            }
        }
        Ok(way)
    }

    /// Makes a directory that a path implies, in place of whatever has its name.
    fn imply(&mut self, parent: InodeId, name: &[u8]) -> Result<InodeId, FoldErrorKind> {
        // Names from entries were verified; this one may come from a symbolic link's target.
        if name.len() > MAX_NAME_BYTES {
            return Err(FoldErrorKind::NameTooLong { length: name.len() });
        }
        if is_whiteout_name(name) {
            return Err(FoldErrorKind::WhiteoutDirectory);
        }
        let id = self.make(Metadata::root(0o755), InodeKind::Directory(Children::new()))?;
        self.put(None, parent, name, id);
        Ok(id)
    }
}
