//! What a layer means to the tree below it, before anything changes; and its whiteouts.

use super::{
    FoldError, FoldErrorKind, Mode, NoteKind,
    apply::Application,
    parents::Plain,
    path::{Role, normalise, role},
};
use crate::{
    InodeId,
    layer::{Entry, EntryKind, LayerIndex},
    tree::{Absent, Follow, MAX_SYMLINK_BYTES, ResolveError},
};

/// What the whiteouts of a layer take away, found before any of them acts.
#[derive(Default)]
pub(super) struct Whiteouts {
    names: Vec<(InodeId, Vec<u8>)>,
    opaque: Vec<InodeId>,
}

impl<'a> Application<'a> {
    /// Verifies every path and finds what whiteouts and hard links mean in the lower tree.
    pub(super) fn survey(&mut self, layer: &'a LayerIndex) -> Result<Whiteouts, FoldError> {
        let limit = self.folder.limits.max_entries;
        self.folder.entries = self.folder.entries.saturating_add(layer.entries.len() as u64);
        if self.folder.entries > limit {
            let path = layer
                .entries
                .last()
                .map(|entry| entry.path.clone())
                .unwrap_or_default();
            return Err(FoldError {
                layer: self.layer,
                path,
                kind: FoldErrorKind::TooManyEntries { limit },
            });
        }
        let mut whiteouts = Whiteouts::default();
        let mut components = Vec::new();
        for (position, entry) in layer.entries.iter().enumerate() {
            self.survey_entry(position, entry, &mut components, &mut whiteouts)
                .map_err(|kind| self.error(entry, kind))?;
        }
        Ok(whiteouts)
    }

    fn survey_entry(
        &mut self,
        position: usize,
        entry: &'a Entry,
        components: &mut Vec<&'a [u8]>,
        whiteouts: &mut Whiteouts,
    ) -> Result<(), FoldErrorKind> {
        if normalise(&entry.path, &self.folder.limits, components)? {
            self.note(entry, NoteKind::ParentReference);
        }
        let role = role(components)?;
        match role {
            Role::Whiteout(_) | Role::Opaque => {
                if !matches!(&entry.kind, EntryKind::File(body) if body.size == 0) {
                    self.note(entry, NoteKind::WhiteoutType);
                }
                let parents = &components[..components.len() - 1];
                if let Some(parent) = self.whiteout_parent(position, entry, parents)? {
                    match role {
                        Role::Whiteout(name) => whiteouts.names.push((parent, name.to_vec())),
                        _ => whiteouts.opaque.push(parent),
                    }
                }
            }
            Role::Root if entry.kind != EntryKind::Directory => return Err(FoldErrorKind::RootNotDirectory),
            Role::InWhiteout if self.folder.mode == Mode::Oci => {
                return Err(FoldErrorKind::WhiteoutDirectory);
            }
            Role::InWhiteout => self.note(entry, NoteKind::InWhiteout),
            Role::AufsRemains => self.note(entry, NoteKind::AufsRemains),
            Role::Root => {}
            Role::Ordinary => self.survey_kind(position, entry, components)?,
        }
        Ok(())
    }

    /// The directory of the lower tree that a whiteout acts in.
    fn whiteout_parent(
        &mut self,
        position: usize,
        entry: &Entry,
        parents: &[&[u8]],
    ) -> Result<Option<InodeId>, FoldErrorKind> {
        match self.plain(parents) {
            Plain::Directory(id) => Ok(Some(id)),
            Plain::Nowhere => Ok(None),
            Plain::Symlink => {
                self.note(entry, NoteKind::WhiteoutThroughSymlink);
                if self.folder.mode == Mode::Docker {
                    self.shadowing.insert(position);
                    return Ok(None);
                }
                match self.tree().find(parents, Follow::All, Absent::IsText) {
                    Ok(found) => Ok(found.id().filter(|&id| self.tree().inode(id).kind.is_directory())),
                    Err(ResolveError::Loop) => Err(FoldErrorKind::SymlinkLoop),
                    Err(ResolveError::Missing | ResolveError::NotDirectory) => Ok(None),
                }
            }
        }
    }

    /// Verifies what an ordinary entry is, and looks up what a hard link finds in the lower tree.
    fn survey_kind(
        &mut self,
        position: usize,
        entry: &'a Entry,
        components: &mut Vec<&'a [u8]>,
    ) -> Result<(), FoldErrorKind> {
        match &entry.kind {
            EntryKind::Symlink(target) if target.contains(&0) => Err(FoldErrorKind::NulByte),
            EntryKind::Symlink(target) if target.is_empty() || target.len() > MAX_SYMLINK_BYTES => {
                Err(FoldErrorKind::SymlinkTarget { length: target.len() })
            }
            EntryKind::CharacterDevice(device) | EntryKind::BlockDevice(device)
                if device.major >= 1 << 12 || device.minor >= 1 << 20 =>
            {
                Err(FoldErrorKind::DeviceNumber {
                    major: device.major,
                    minor: device.minor,
                })
            }
            EntryKind::HardLink(target) => {
                if normalise(target, &self.folder.limits, components)? {
                    self.note(entry, NoteKind::ParentReference);
                }
                if components.is_empty() {
                    return Err(FoldErrorKind::LinkToDirectory {
                        target: target.clone(),
                    });
                }
                let lower = self.lower_target(components)?;
                self.lower_targets.insert(position, lower);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Carries out the whiteouts. Each acts on the lower tree as it was, so their order does not matter: a directory
    /// that another whiteout has removed is empty by now, and nothing is taken from it.
    pub(super) fn remove(&mut self, whiteouts: Whiteouts) {
        let Whiteouts { names, opaque } = whiteouts;
        for directory in opaque {
            let removed = self.folder.tree.detach_all(directory, &mut self.orphans);
            self.changes.entries_removed += removed.names;
            self.changes.bytes_removed += removed.bytes;
        }
        for (parent, name) in names {
            let removed = self.folder.tree.detach(parent, &name, &mut self.orphans);
            self.changes.entries_removed += removed.names;
            self.changes.bytes_removed += removed.bytes;
        }
    }
}
