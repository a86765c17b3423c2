//! Hard links of one layer.
//!
//! A link whose target this layer has already named is made at once. Any other waits until the end of the layer,
//! because the target may still come; a placeholder keeps its name meanwhile, so that a later entry for the same path,
//! or for a directory above it, replaces the link as it would replace any entry. At the end each waiting link finds
//! its target in this layer, or waits for another waiting link, or takes what the lower layers had there before this
//! layer's whiteouts. A link that none of this helps is an error, and so is a circle.

use std::collections::VecDeque;

use super::{
    FoldError, FoldErrorKind, Mode, NoteKind, apply::Application, path::AUFS_LINKS, path::normalise,
};
use crate::{
    InodeId, InodeKind, Metadata,
    layer::Entry,
    tree::{Absent, Follow, Found, ResolveError},
};

/// What the layers below have at the target of a hard link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lower {
    Missing,
    Directory,
    Inode(InodeId),
}

/// A hard link that waits for the end of its layer.
pub(super) struct Deferred<'a> {
    entry: &'a Entry,
    target: &'a [u8],
    lower: Lower,
    parent: InodeId,
    name: Box<[u8]>,
    placeholder: InodeId,
    /// Links that wait for this one.
    waiting: Vec<usize>,
    is_done: bool,
}

/// What this layer has at the target of a hard link.
enum Sighting {
    Nothing,
    Directory,
    Itself,
    Inode(InodeId),
    Placeholder(usize),
}

impl<'a> Application<'a> {
    /// What the lower tree has at a hard link's target. The tree must still be as the lower layers left it.
    pub(super) fn lower_target(&self, target: &[&[u8]]) -> Result<Lower, FoldErrorKind> {
        match self.tree().find(target, Follow::Parents, Absent::IsText) {
            Ok(found) => Ok(match found.id() {
                None => Lower::Missing,
                Some(id) if self.tree().inode(id).kind.is_directory() => Lower::Directory,
                Some(id) => Lower::Inode(id),
            }),
            Err(ResolveError::Loop) => Err(FoldErrorKind::SymlinkLoop),
            Err(ResolveError::Missing | ResolveError::NotDirectory) => Ok(Lower::Missing),
        }
    }

    /// Makes a hard link, or a placeholder when its target is not here yet.
    pub(super) fn place_link(
        &mut self,
        entry: &'a Entry,
        target: &'a [u8],
        lower: Lower,
        parent: InodeId,
        name: &[u8],
    ) -> Result<(), FoldErrorKind> {
        match self.sight(target, parent, name)? {
            Sighting::Directory => Err(FoldErrorKind::LinkToDirectory {
                target: target.to_vec(),
            }),
            Sighting::Itself => Err(FoldErrorKind::LinkToItself {
                target: target.to_vec(),
            }),
            Sighting::Inode(id) => {
                self.adopt_metadata(entry, id);
                self.check_links(id)?;
                self.put(Some(entry), parent, name, id);
                Ok(())
            }
            Sighting::Nothing | Sighting::Placeholder(_) => {
                let placeholder = self.make(Metadata::root(0), InodeKind::Fifo)?;
                self.put(Some(entry), parent, name, placeholder);
                self.placeholders.insert(placeholder, self.deferred.len());
                let name = name.into();
                let waiting = Vec::new();
                self.deferred.push(Deferred {
                    entry,
                    target,
                    lower,
                    parent,
                    name,
                    placeholder,
                    waiting,
                    is_done: false,
                });
                Ok(())
            }
        }
    }

    /// Makes the links that waited. All other entries of the layer are placed.
    pub(super) fn link_deferred(&mut self) -> Result<(), FoldError> {
        let mut ready: VecDeque<usize> = (0..self.deferred.len()).collect();
        while let Some(position) = ready.pop_front() {
            let entry = self.deferred[position].entry;
            let woken = self.link_one(position).map_err(|kind| self.error(entry, kind))?;
            ready.extend(woken);
        }
        // What still waits, waits for itself.
        if let Some(stuck) = self.deferred.iter().find(|deferred| !deferred.is_done) {
            let kind = FoldErrorKind::LinkToItself {
                target: stuck.target.to_vec(),
            };
            return Err(self.error(stuck.entry, kind));
        }
        Ok(())
    }

    /// Makes one link that waited, and names those that waited for it.
    fn link_one(&mut self, position: usize) -> Result<Vec<usize>, FoldErrorKind> {
        let Deferred {
            entry,
            target,
            lower,
            parent,
            placeholder,
            ..
        } = self.deferred[position];
        let name = self.deferred[position].name.clone();
        if self.tree().inode(placeholder).names == 0 {
            // A later entry took its place.
            self.deferred[position].is_done = true;
            return Ok(Vec::new());
        }
        let (id, note) = match self.sight(target, parent, &name)? {
            Sighting::Directory => {
                return Err(FoldErrorKind::LinkToDirectory {
                    target: target.to_vec(),
                });
            }
            Sighting::Itself => {
                return Err(FoldErrorKind::LinkToItself {
                    target: target.to_vec(),
                });
            }
            Sighting::Placeholder(other) => {
                self.deferred[other].waiting.push(position);
                return Ok(Vec::new());
            }
            Sighting::Inode(id) => (id, NoteKind::LinkBeforeTarget),
            Sighting::Nothing => match lower {
                Lower::Missing => {
                    return Err(FoldErrorKind::LinkTargetMissing {
                        target: target.to_vec(),
                    });
                }
                Lower::Directory => {
                    return Err(FoldErrorKind::LinkToDirectory {
                        target: target.to_vec(),
                    });
                }
                Lower::Inode(id) if self.tree().inode(id).names == 0 => (id, NoteKind::LinkToRemoved),
                Lower::Inode(id) => (id, NoteKind::LinkToLowerLayer),
            },
        };
        self.note(entry, note);
        self.adopt_metadata(entry, id);
        self.check_links(id)?;
        self.folder.tree.detach(parent, &name, &mut self.orphans);
        self.placeholders.remove(&placeholder);
        self.attach(parent, &name, id);
        self.deferred[position].is_done = true;
        Ok(std::mem::take(&mut self.deferred[position].waiting))
    }

    /// What this layer has at a target, seen from the link at `name` in `parent`.
    fn sight(&self, target: &[u8], parent: InodeId, name: &[u8]) -> Result<Sighting, FoldErrorKind> {
        let mut components = Vec::new();
        normalise(target, &self.folder.limits, &mut components)?;
        if let [AUFS_LINKS, file] = components[..] {
            return Ok(self
                .aufs_links
                .get(file)
                .map_or(Sighting::Nothing, |&id| Sighting::Inode(id)));
        }
        let found = match self.tree().find(&components, Follow::Parents, Absent::IsText) {
            Ok(found) => found,
            Err(ResolveError::Loop) => return Err(FoldErrorKind::SymlinkLoop),
            Err(ResolveError::Missing | ResolveError::NotDirectory) => return Ok(Sighting::Nothing),
        };
        let Found::Name {
            parent: target_parent,
            name: target_name,
            id,
        } = found
        else {
            return Ok(Sighting::Directory);
        };
        let Some(id) = id.filter(|&id| self.is_of_this_layer(target_parent, target_name, id)) else {
            return Ok(Sighting::Nothing);
        };
        if (target_parent, target_name) == (parent, name) {
            return Ok(Sighting::Itself);
        }
        if let Some(&position) = self.placeholders.get(&id) {
            return Ok(Sighting::Placeholder(position));
        }
        if self.tree().inode(id).kind.is_directory() {
            return Ok(Sighting::Directory);
        }
        Ok(Sighting::Inode(id))
    }

    /// Gives the shared inode the link's own header, or says that it differs.
    fn adopt_metadata(&mut self, entry: &Entry, id: InodeId) {
        let Metadata {
            mode,
            uid,
            gid,
            mtime,
            ref xattrs,
        } = entry.metadata;
        let applied = self.folder.mode == Mode::Docker;
        let inode = self.folder.tree.inode_mut(id);
        let mut merged = Metadata {
            mode: mode & 0o7777,
            uid,
            gid,
            mtime,
            xattrs: inode.metadata.xattrs.clone(),
        };
        if matches!(inode.kind, InodeKind::Symlink(_)) {
            merged.mode = inode.metadata.mode;
        }
        let takes_user_xattrs = matches!(inode.kind, InodeKind::File(_));
        for (name, value) in xattrs {
            if super::apply::is_kept(name, takes_user_xattrs) {
                merged.xattrs.insert(name.clone(), value.clone());
            }
        }
        if merged != inode.metadata {
            if applied {
                inode.metadata = merged;
            }
            self.note(entry, NoteKind::LinkMetadata { applied });
        }
    }

    fn check_links(&self, id: InodeId) -> Result<(), FoldErrorKind> {
        let limit = self.folder.limits.max_links;
        if self.tree().inode(id).names >= limit {
            return Err(FoldErrorKind::TooManyLinks { limit });
        }
        Ok(())
    }
}
