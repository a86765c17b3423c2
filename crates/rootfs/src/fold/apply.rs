//! One layer onto the tree.
//!
//! Three passes over the entries. The *survey* looks at the lower tree as it is: where whiteouts point, what hard
//! links find there. Then the whiteouts act. Then the entries are placed in archive order, and last the hard links
//! that had to wait ([`super::links`]).
//!
//! What a layer removes stays in memory under its number until the layer is done (see `Tree::detach`): a hard link can
//! still take it up, and no number is used twice within a layer.

use std::collections::{HashMap, HashSet};

use super::{
    FoldError, FoldErrorKind, Folder, LayerChanges, Mode, NoteKind,
    links::{Deferred, Lower},
    path::{AUFS_LINKS, Role, normalise, role},
};
use crate::{
    InodeId, InodeKind, Metadata, Tree, Xattrs,
    layer::{Body, Entry, EntryKind, LayerIndex},
    pack::PackId,
    tree::{Children, Content, FileContent},
};

/// In which layer each inode was made, and in which an entry last named it (0: in none).
#[derive(Debug, Default)]
pub(super) struct Stamps {
    of: Vec<Stamp>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Stamp {
    made: usize,
    named: usize,
}

/// One layer being applied.
pub(super) struct Application<'a> {
    pub(super) folder: &'a mut Folder,
    pub(super) layer: usize,
    pub(super) changes: LayerChanges,
    pub(super) orphans: Vec<InodeId>,
    /// What hard links, by the position of their entries, find in the lower tree.
    pub(super) lower_targets: HashMap<usize, Lower>,
    /// Hard links that wait for the end of the layer.
    pub(super) deferred: Vec<Deferred<'a>>,
    /// The inodes that hold their places.
    pub(super) placeholders: HashMap<InodeId, usize>,
    /// Names that this layer gave to inodes of lower layers.
    pub(super) linked: HashSet<(InodeId, Box<[u8]>)>,
    /// Files below `.wh..wh.plnk`, which have no name in the tree.
    pub(super) aufs_links: HashMap<&'a [u8], InodeId>,
    /// Positions of whiteouts whose path a symbolic link of a lower layer crosses ([`Mode::Docker`]).
    pub(super) shadowing: HashSet<usize>,
    /// The parents of the last entry, if all of them are directories under these names, and where they lead.
    pub(super) last_parents: Option<(Vec<&'a [u8]>, InodeId)>,
    pack: PackId,
}

pub(super) fn apply(folder: &mut Folder, layer: &LayerIndex, pack: PackId) -> Result<(), FoldError> {
    let number = folder.report.layers.len() + 1;
    let mut application = Application {
        folder,
        layer: number,
        changes: LayerChanges::default(),
        orphans: Vec::new(),
        lower_targets: HashMap::new(),
        deferred: Vec::new(),
        placeholders: HashMap::new(),
        linked: HashSet::new(),
        aufs_links: HashMap::new(),
        shadowing: HashSet::new(),
        last_parents: None,
        pack,
    };
    let whiteouts = application.survey(layer)?;
    application.remove(whiteouts);
    application.place_all(layer)?;
    application.link_deferred()?;
    let Application {
        folder,
        changes,
        orphans,
        ..
    } = application;
    folder.tree.release(orphans);
    folder.report.layers.push(changes);
    Ok(())
}

impl Stamps {
    fn at(&mut self, id: InodeId) -> &mut Stamp {
        let position = id.0 as usize;
        if position >= self.of.len() {
            self.of.resize(position + 1, Stamp::default());
        }
        &mut self.of[position]
    }

    fn get(&self, id: InodeId) -> Stamp {
        self.of.get(id.0 as usize).copied().unwrap_or_default()
    }
}

impl<'a> Application<'a> {
    pub(super) fn tree(&self) -> &Tree {
        &self.folder.tree
    }

    pub(super) fn note(&mut self, entry: &Entry, kind: NoteKind) {
        self.folder.report.note(self.layer, &entry.path, kind);
    }

    pub(super) fn error(&self, entry: &Entry, kind: FoldErrorKind) -> FoldError {
        FoldError {
            layer: self.layer,
            path: entry.path.clone(),
            kind,
        }
    }

    /// Whether this layer made that inode.
    pub(super) fn is_made_here(&self, id: InodeId) -> bool {
        self.folder.stamps.get(id).made == self.layer
    }

    /// Whether this layer says something of that name.
    pub(super) fn is_of_this_layer(&self, parent: InodeId, name: &[u8], id: InodeId) -> bool {
        let stamp = self.folder.stamps.get(id);
        stamp.made == self.layer
            || stamp.named == self.layer
            || (!self.linked.is_empty() && self.linked.contains(&(parent, name.into())))
    }

    fn place_all(&mut self, layer: &'a LayerIndex) -> Result<(), FoldError> {
        let mut components = Vec::new();
        for (position, entry) in layer.entries.iter().enumerate() {
            self.place_entry(position, entry, &mut components)
                .map_err(|kind| self.error(entry, kind))?;
        }
        Ok(())
    }

    fn place_entry(
        &mut self,
        position: usize,
        entry: &'a Entry,
        components: &mut Vec<&'a [u8]>,
    ) -> Result<(), FoldErrorKind> {
        normalise(&entry.path, &self.folder.limits, components)?;
        match role(components)? {
            Role::Root => {
                self.set_root(entry);
                return Ok(());
            }
            Role::AufsRemains => return self.keep_aufs_link(entry, components),
            Role::Whiteout(_) | Role::Opaque => {
                if self.shadowing.contains(&position) {
                    self.parent_directory(entry, &components[..components.len() - 1])?;
                }
                return Ok(());
            }
            Role::InWhiteout => return Ok(()),
            Role::Ordinary => {}
        }
        let (&name, parents) = components.split_last().expect("an ordinary entry has a name");
        let parent = self.parent_directory(entry, parents)?;
        match &entry.kind {
            EntryKind::Directory => self.place_directory(entry, parent, name),
            EntryKind::HardLink(target) => {
                let lower = self.lower_targets.remove(&position).unwrap_or(Lower::Missing);
                self.place_link(entry, target, lower, parent, name)
            }
            EntryKind::File(body) => {
                let kind = InodeKind::File(self.content(body));
                self.place_new(entry, parent, name, kind)
            }
            EntryKind::Symlink(target) => {
                self.place_new(entry, parent, name, InodeKind::Symlink(target.as_slice().into()))
            }
            EntryKind::CharacterDevice(device) => {
                if device.major == 0 && device.minor == 0 {
                    self.note(entry, NoteKind::WhiteoutDevice);
                }
                self.place_new(entry, parent, name, InodeKind::CharacterDevice(*device))
            }
            EntryKind::BlockDevice(device) => {
                self.place_new(entry, parent, name, InodeKind::BlockDevice(*device))
            }
            EntryKind::Fifo => self.place_new(entry, parent, name, InodeKind::Fifo),
        }
    }

    fn set_root(&mut self, entry: &Entry) {
        let metadata = self.metadata(entry, true);
        let applied = self.folder.mode == Mode::Oci;
        let root = self.folder.tree.inode_mut(Tree::ROOT);
        if root.metadata != metadata {
            if applied {
                root.metadata = metadata;
            }
            self.note(entry, NoteKind::Root { applied });
        }
    }

    /// Remembers a file of `.wh..wh.plnk` for the hard links that name it. It gets no name of its own, so it is gone
    /// at the end of the layer if none does.
    fn keep_aufs_link(&mut self, entry: &'a Entry, components: &[&'a [u8]]) -> Result<(), FoldErrorKind> {
        if let ([AUFS_LINKS, name], EntryKind::File(body)) = (components, &entry.kind) {
            let metadata = self.metadata(entry, true);
            let content = self.content(body);
            let id = self.make(metadata, InodeKind::File(content))?;
            self.aufs_links.insert(name, id);
        }
        Ok(())
    }

    fn place_directory(&mut self, entry: &Entry, parent: InodeId, name: &[u8]) -> Result<(), FoldErrorKind> {
        let existing = self.tree().child(parent, name);
        let Some(id) = existing.filter(|&id| self.tree().inode(id).kind.is_directory()) else {
            if let Some(id) = existing
                && matches!(self.tree().inode(id).kind, InodeKind::Symlink(_))
                && !self.is_of_this_layer(parent, name, id)
            {
                self.note(entry, NoteKind::SymlinkReplaced);
            }
            return self.place_new(entry, parent, name, InodeKind::Directory(Children::new()));
        };
        let metadata = self.metadata(entry, true);
        let stamp = *self.folder.stamps.at(id);
        self.folder.stamps.at(id).named = self.layer;
        let inode = self.folder.tree.inode_mut(id);
        let is_changed = inode.metadata != metadata;
        inode.metadata = metadata;
        if stamp.named == self.layer {
            self.note(entry, NoteKind::Duplicate);
        } else if is_changed && stamp.made != self.layer {
            self.changes.entries_replaced += 1;
        }
        Ok(())
    }

    fn place_new(
        &mut self,
        entry: &Entry,
        parent: InodeId,
        name: &[u8],
        kind: InodeKind,
    ) -> Result<(), FoldErrorKind> {
        let takes_user_xattrs = matches!(kind, InodeKind::Directory(_) | InodeKind::File(_));
        let mut metadata = self.metadata(entry, takes_user_xattrs);
        if matches!(kind, InodeKind::Symlink(_)) {
            metadata.mode = 0o777;
        }
        let id = self.make(metadata, kind)?;
        self.folder.stamps.at(id).named = self.layer;
        self.put(Some(entry), parent, name, id);
        Ok(())
    }

    fn content(&self, body: &Body) -> FileContent {
        let extents = body.extents.as_slice().into();
        FileContent {
            size_bytes: body.size,
            content: Content::Packed {
                pack: self.pack,
                extents,
            },
        }
    }

    /// An entry's metadata as an inode can have it.
    fn metadata(&mut self, entry: &Entry, takes_user_xattrs: bool) -> Metadata {
        let Metadata {
            mode,
            uid,
            gid,
            mtime,
            ref xattrs,
        } = entry.metadata;
        let mut kept = Xattrs::new();
        for (name, value) in xattrs {
            if is_kept(name, takes_user_xattrs) {
                kept.insert(name.clone(), value.clone());
            } else {
                self.note(entry, NoteKind::XattrDropped { name: name.clone() });
            }
        }
        Metadata {
            mode: mode & 0o7777,
            uid,
            gid,
            mtime,
            xattrs: kept,
        }
    }

    /// Makes an inode of this layer. It is freed at the end of the layer if it has no name by then.
    pub(super) fn make(&mut self, metadata: Metadata, kind: InodeKind) -> Result<InodeId, FoldErrorKind> {
        let limit = self.folder.limits.max_entries;
        if self.tree().len() as u64 > limit {
            return Err(FoldErrorKind::TooManyEntries { limit });
        }
        let id = self.folder.tree.allocate(metadata, kind);
        *self.folder.stamps.at(id) = Stamp {
            made: self.layer,
            named: 0,
        };
        self.orphans.push(id);
        Ok(id)
    }

    /// Gives an inode a name, in place of whatever has it. `entry` is absent for implied directories.
    pub(super) fn put(&mut self, entry: Option<&Entry>, parent: InodeId, name: &[u8], id: InodeId) {
        match self.tree().child(parent, name) {
            None => self.changes.entries_added += 1,
            Some(old) => {
                if let Some(entry) = entry
                    && self.is_of_this_layer(parent, name, old)
                {
                    self.note(entry, NoteKind::Duplicate);
                }
                self.last_parents = None;
                let removed = self.folder.tree.detach(parent, name, &mut self.orphans);
                self.changes.entries_replaced += 1;
                self.changes.entries_removed += removed.names - 1;
                self.changes.bytes_replaced += removed.bytes;
            }
        }
        self.attach(parent, name, id);
    }

    /// Gives an inode a free name and counts its bytes if it had none.
    pub(super) fn attach(&mut self, parent: InodeId, name: &[u8], id: InodeId) {
        let inode = self.tree().inode(id);
        if inode.names == 0 {
            self.changes.bytes_added += inode.kind.file_size();
        }
        self.folder.tree.attach(parent, name, id);
        if !self.is_made_here(id) {
            self.linked.insert((parent, name.into()));
        }
    }
}

/// Whether an extended attribute becomes part of the image. See the rules in the [module documentation](super).
pub(super) fn is_kept(name: &[u8], takes_user_xattrs: bool) -> bool {
    if name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.") {
        return false;
    }
    let has_suffix = |prefix: &[u8]| name.strip_prefix(prefix).is_some_and(|rest| !rest.is_empty());
    (takes_user_xattrs && has_suffix(b"user."))
        || has_suffix(b"trusted.")
        || has_suffix(b"security.")
        || matches!(name, b"system.posix_acl_access" | b"system.posix_acl_default")
}
