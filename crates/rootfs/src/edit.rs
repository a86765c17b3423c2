//! Edits on a finished tree: look things up, add files, replace or remove them, leave out what patterns name.
//!
//! Paths are bytes; a leading slash makes no difference, and every path starts at the root of the tree. Symbolic links
//! are followed inside the tree as a kernel rooted there would follow them: absolute targets start at the tree's root,
//! `..` never leads above it, and after 40 links the path is an error. So a file that builderd adds at `/etc/motd`
//! goes where the image's own `/etc` leads, and nowhere else.
//!
//! ```
//! use rootfs::{Metadata, Tree, tree::FileContent};
//!
//! # fn main() -> Result<(), rootfs::edit::EditError> {
//! let mut tree = Tree::new();
//! tree.create_directories(b"/usr/bin", &Metadata::root(0o755))?;
//! tree.put_symlink(b"/bin", Metadata::root(0o777), b"usr/bin")?;
//! let init = tree.put_file(b"/bin/init", Metadata::root(0o755), FileContent::inline(*b"#!/bin/sh\n"))?;
//! assert_eq!(tree.lookup(b"/usr/bin/init"), Some(init));
//! # Ok(())
//! # }
//! ```

mod exclude;

use crate::{
    DeviceNumber, InodeId, InodeKind, Metadata, Tree,
    tree::{
        Absent, Children, FileContent, Follow, Found, MAX_LINKS, MAX_NAME_BYTES, MAX_SYMLINK_BYTES,
        MAX_SYMLINK_HOPS, ResolveError,
    },
};

pub use exclude::{Excluded, Excludes, PatternError, RuleSavings};

/// An edit cannot be made. The tree is as it was, except that directories on the way may have been created.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {kind}", path = crate::text::printable(path))]
pub struct EditError {
    /// The path that was given.
    pub path: Vec<u8>,
    /// What is wrong.
    pub kind: EditErrorKind,
}

/// Why an edit cannot be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EditErrorKind {
    /// Nothing is there.
    #[error("does not exist")]
    NotFound,
    /// Something on the way, or what should be a directory, is none.
    #[error("is not a directory, or leads through something that is none")]
    NotDirectory,
    /// A directory is there and something else is to take its place.
    #[error("is a directory")]
    IsDirectory,
    /// More than 40 symbolic links on the way.
    #[error("leads through more than 40 symbolic links")]
    SymlinkLoop,
    /// A name is longer than 255 bytes, or a symbolic link's target is empty or longer than 4,095 bytes.
    #[error("has a name or a target that is too long or empty")]
    InvalidLength,
    /// A path or a target has a NUL.
    #[error("has a NUL byte")]
    NulByte,
    /// The root cannot be removed or become something else.
    #[error("is the root")]
    Root,
    /// The inode has 65,000 names already.
    #[error("has as many names as ext4 allows")]
    TooManyLinks,
}

impl Tree {
    /// What is at a path; a symbolic link at its end is not followed.
    #[must_use]
    pub fn lookup(&self, path: &[u8]) -> Option<InodeId> {
        self.find(&split(path), Follow::Parents, Absent::Fails).ok()?.id()
    }

    /// What a path leads to, all symbolic links followed.
    ///
    /// # Errors
    /// [`EditErrorKind::NotFound`], [`EditErrorKind::NotDirectory`] and [`EditErrorKind::SymlinkLoop`].
    pub fn resolve(&self, path: &[u8]) -> Result<InodeId, EditError> {
        let found = self
            .find(&split(path), Follow::All, Absent::Fails)
            .map_err(|error| at(path, error.into()))?;
        found.id().ok_or_else(|| at(path, EditErrorKind::NotFound))
    }

    /// Makes a directory and those above it where they are missing, each with a copy of `metadata`, and returns the
    /// last one. Directories that are there stay as they are.
    ///
    /// A symbolic link counts as the directory it leads to; if that is missing, it is made, with those above it.
    ///
    /// # Errors
    /// [`EditErrorKind::NotDirectory`] when something else is in the way; otherwise as the path is wrong.
    pub fn create_directories(&mut self, path: &[u8], metadata: &Metadata) -> Result<InodeId, EditError> {
        let path_so_far = checked(path)?;
        let mut links = 0;
        // Directories that are still to be made, the next one last: a link puts those that it leads through before it.
        let mut remaining: Vec<Vec<u8>> = prefixes(&path_so_far);
        while let Some(next) = remaining.pop() {
            let components = split(&next);
            let beyond = match self.create_directory(&components, metadata) {
                Ok(()) => continue,
                Err(EditErrorKind::NotFound) => self.beyond_link(&components),
                Err(kind) => return Err(at(path, kind)),
            };
            let Some(target) = beyond else {
                return Err(at(path, EditErrorKind::NotFound));
            };
            links += 1;
            if links > MAX_SYMLINK_HOPS {
                return Err(at(path, EditErrorKind::SymlinkLoop));
            }
            remaining.push(next.clone());
            remaining.extend(prefixes(&split(&target)));
        }
        match self.find(&path_so_far, Follow::All, Absent::Fails) {
            Ok(found) => found.id().ok_or_else(|| at(path, EditErrorKind::NotFound)),
            Err(error) => Err(at(path, error.into())),
        }
    }

    /// Puts a regular file at a path, in place of anything but a directory, and returns it. The parent directory must
    /// exist. A symbolic link at the end of the path is replaced, not followed, and other names of a file that is
    /// replaced keep the old content.
    ///
    /// # Errors
    /// See [`EditErrorKind`].
    pub fn put_file(
        &mut self,
        path: &[u8],
        metadata: Metadata,
        content: FileContent,
    ) -> Result<InodeId, EditError> {
        self.put(path, metadata, InodeKind::File(content))
    }

    /// Puts a symbolic link at a path, as [`Tree::put_file`] does a file. Its mode becomes 0777.
    ///
    /// # Errors
    /// See [`EditErrorKind`].
    pub fn put_symlink(
        &mut self,
        path: &[u8],
        metadata: Metadata,
        target: &[u8],
    ) -> Result<InodeId, EditError> {
        if target.is_empty() || target.len() > MAX_SYMLINK_BYTES {
            return Err(at(path, EditErrorKind::InvalidLength));
        }
        if target.contains(&0) {
            return Err(at(path, EditErrorKind::NulByte));
        }
        self.put(
            path,
            Metadata {
                mode: 0o777,
                ..metadata
            },
            InodeKind::Symlink(target.into()),
        )
    }

    /// Puts a character device at a path, as [`Tree::put_file`] does a file.
    ///
    /// # Errors
    /// See [`EditErrorKind`].
    pub fn put_character_device(
        &mut self,
        path: &[u8],
        metadata: Metadata,
        device: DeviceNumber,
    ) -> Result<InodeId, EditError> {
        self.put(path, metadata, InodeKind::CharacterDevice(device))
    }

    /// Puts a block device at a path, as [`Tree::put_file`] does a file.
    ///
    /// # Errors
    /// See [`EditErrorKind`].
    pub fn put_block_device(
        &mut self,
        path: &[u8],
        metadata: Metadata,
        device: DeviceNumber,
    ) -> Result<InodeId, EditError> {
        self.put(path, metadata, InodeKind::BlockDevice(device))
    }

    /// Puts a named pipe at a path, as [`Tree::put_file`] does a file.
    ///
    /// # Errors
    /// See [`EditErrorKind`].
    pub fn put_fifo(&mut self, path: &[u8], metadata: Metadata) -> Result<InodeId, EditError> {
        self.put(path, metadata, InodeKind::Fifo)
    }

    /// Gives an inode that is no directory one more name, in place of anything but a directory.
    ///
    /// # Errors
    /// [`EditErrorKind::IsDirectory`] when `id` is one; otherwise see [`EditErrorKind`].
    pub fn put_link(&mut self, path: &[u8], id: InodeId) -> Result<(), EditError> {
        let inode = self.inode(id);
        if inode.kind.is_directory() {
            return Err(at(path, EditErrorKind::IsDirectory));
        }
        let (parent, name, existing) = self.place(path)?;
        if existing == Some(id) {
            return Ok(());
        }
        if self.inode(id).names >= MAX_LINKS {
            return Err(at(path, EditErrorKind::TooManyLinks));
        }
        self.replace(parent, &name, id);
        Ok(())
    }

    /// Removes what is at a path, with everything below it. A symbolic link at the end is removed, not followed.
    /// Returns false when nothing was there.
    ///
    /// # Errors
    /// [`EditErrorKind::Root`] for the root, [`EditErrorKind::SymlinkLoop`].
    pub fn remove(&mut self, path: &[u8]) -> Result<bool, EditError> {
        let components = split(path);
        let (parent, name) = match self.find(&components, Follow::Parents, Absent::Fails) {
            Ok(Found::Directory(_)) => return Err(at(path, EditErrorKind::Root)),
            Ok(Found::Name { id: None, .. }) | Err(ResolveError::Missing | ResolveError::NotDirectory) => {
                return Ok(false);
            }
            Ok(Found::Name { parent, name, .. }) => (parent, name.to_vec()),
            Err(ResolveError::Loop) => return Err(at(path, EditErrorKind::SymlinkLoop)),
        };
        self.remove_name(parent, &name);
        Ok(true)
    }

    /// Replaces owner, permissions, time and extended attributes of an inode, under all of its names. A symbolic link
    /// keeps its mode.
    ///
    /// # Panics
    /// When the inode was removed since the name was taken.
    pub fn set_metadata(&mut self, id: InodeId, metadata: Metadata) {
        let inode = self.inode_mut(id);
        let mode = match inode.kind {
            InodeKind::Symlink(_) => inode.metadata.mode,
            _ => metadata.mode & 0o7777,
        };
        inode.metadata = Metadata { mode, ..metadata };
    }

    /// Gives a regular file other content, under all of its names. Returns false, and changes nothing, when `id` is
    /// something else.
    ///
    /// # Panics
    /// When the inode was removed since the name was taken.
    pub fn set_content(&mut self, id: InodeId, content: FileContent) -> bool {
        match &mut self.inode_mut(id).kind {
            InodeKind::File(file) => {
                *file = content;
                true
            }
            _ => false,
        }
    }

    /// Removes a name from a directory and frees what has no name left.
    pub(crate) fn remove_name(&mut self, parent: InodeId, name: &[u8]) -> crate::tree::Removed {
        let mut orphans = Vec::new();
        let removed = self.detach(parent, name, &mut orphans);
        self.release(orphans);
        removed
    }

    /// Makes one directory unless it is there, symbolic links at its end followed.
    fn create_directory(&mut self, components: &[&[u8]], metadata: &Metadata) -> Result<(), EditErrorKind> {
        let (parent, name) = match self.find(components, Follow::All, Absent::Fails)? {
            Found::Directory(_) => return Ok(()),
            Found::Name { id: Some(id), .. } if self.inode(id).kind.is_directory() => return Ok(()),
            Found::Name { id: Some(_), .. } => return Err(EditErrorKind::NotDirectory),
            Found::Name {
                parent,
                name,
                id: None,
            } => (parent, name.to_vec()),
        };
        // The name may come from a symbolic link's target, which has no such limit.
        if name.len() > MAX_NAME_BYTES {
            return Err(EditErrorKind::InvalidLength);
        }
        let id = self.allocate(metadata.clone(), InodeKind::Directory(Children::new()));
        self.attach(parent, &name, id);
        Ok(())
    }

    /// The path of what the symbolic link at a path leads to, if that is one.
    fn beyond_link(&self, components: &[&[u8]]) -> Option<Vec<u8>> {
        let link = self.find(components, Follow::Parents, Absent::Fails).ok()?.id()?;
        let InodeKind::Symlink(target) = &self.inode(link).kind else {
            return None;
        };
        if target.starts_with(b"/") {
            return Some(target.to_vec());
        }
        let above = components.split_last().map_or(&[][..], |(_, above)| above);
        Some([&above.join(&b'/'), &target[..]].join(&b'/'))
    }

    fn put(&mut self, path: &[u8], mut metadata: Metadata, kind: InodeKind) -> Result<InodeId, EditError> {
        let (parent, name, _) = self.place(path)?;
        metadata.mode &= 0o7777;
        let id = self.allocate(metadata, kind);
        self.replace(parent, &name, id);
        Ok(id)
    }

    fn replace(&mut self, parent: InodeId, name: &[u8], id: InodeId) {
        self.remove_name(parent, name);
        self.attach(parent, name, id);
    }

    /// The directory and the name that a path leads to, which no directory has.
    fn place(&self, path: &[u8]) -> Result<(InodeId, Vec<u8>, Option<InodeId>), EditError> {
        let components = checked(path)?;
        match self
            .find(&components, Follow::Parents, Absent::Fails)
            .map_err(|error| at(path, error.into()))?
        {
            Found::Directory(_) => Err(at(path, EditErrorKind::IsDirectory)),
            Found::Name { id: Some(id), .. } if self.inode(id).kind.is_directory() => {
                Err(at(path, EditErrorKind::IsDirectory))
            }
            Found::Name { parent, name, id } => Ok((parent, name.to_vec(), id)),
        }
    }
}

impl From<ResolveError> for EditErrorKind {
    fn from(error: ResolveError) -> Self {
        match error {
            ResolveError::Missing => Self::NotFound,
            ResolveError::NotDirectory => Self::NotDirectory,
            ResolveError::Loop => Self::SymlinkLoop,
        }
    }
}

fn at(path: &[u8], kind: EditErrorKind) -> EditError {
    EditError {
        path: path.to_vec(),
        kind,
    }
}

fn split(path: &[u8]) -> Vec<&[u8]> {
    path.split(|&byte| byte == b'/')
        .filter(|name| !matches!(*name, b"" | b"."))
        .collect()
}

/// `a`, `a/b` and `a/b/c` for `a/b/c`, the shortest last.
fn prefixes(components: &[&[u8]]) -> Vec<Vec<u8>> {
    (1..=components.len())
        .rev()
        .map(|n| components[..n].join(&b'/'))
        .collect()
}

/// The components of a path that will get names in the tree.
fn checked(path: &[u8]) -> Result<Vec<&[u8]>, EditError> {
    if path.contains(&0) {
        return Err(at(path, EditErrorKind::NulByte));
    }
    let components = split(path);
    if components.iter().any(|name| name.len() > MAX_NAME_BYTES) {
        return Err(at(path, EditErrorKind::InvalidLength));
    }
    Ok(components)
}

#[cfg(test)]
mod tests;
