//! Finding a path in a tree, symbolic links followed inside it only.

use super::{InodeId, InodeKind, Tree};

/// Most symbolic links that one path may lead through (Linux: `MAXSYMLINKS`, `include/linux/namei.h`).
pub(crate) const MAX_SYMLINK_HOPS: usize = 40;

/// Why a path leads nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ResolveError {
    /// A directory on the way does not exist.
    Missing,
    /// Something on the way is no directory.
    NotDirectory,
    /// More than [`MAX_SYMLINK_HOPS`] symbolic links.
    Loop,
}

/// Where a path leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found<'a> {
    /// To a directory that the path names without a last component: the root, or one reached by `..`.
    Directory(InodeId),
    /// To a name in a directory, which may be free.
    Name {
        /// The directory.
        parent: InodeId,
        /// The name.
        name: &'a [u8],
        /// What has that name.
        id: Option<InodeId>,
    },
}

impl Found<'_> {
    /// The inode that was found.
    pub(crate) const fn id(self) -> Option<InodeId> {
        match self {
            Self::Directory(id) => Some(id),
            Self::Name { id, .. } => id,
        }
    }
}

/// What to do about symbolic links.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Follow {
    /// Follow those in the middle of the path, not a last one.
    Parents,
    /// Follow all.
    All,
}

/// What `..` means after something that does not exist or is no directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Absent {
    /// The path leads nowhere: the kernel's rule.
    Fails,
    /// The two cancel out: the rule of those who write through paths that layers give, and make what is missing
    /// (`a -> new/..` leads to the parent of `new`, whether `new` is there or not).
    IsText,
}

impl Tree {
    /// Finds a path given by its components, from the root. `..` is taken as the kernel takes it (the parent of what
    /// was reached), and the root is its own parent, so nothing outside the tree can be named.
    pub(crate) fn find<'a>(
        &'a self,
        components: &[&'a [u8]],
        follow: Follow,
        absent: Absent,
    ) -> Result<Found<'a>, ResolveError> {
        // The directories from the root to here as far as they exist, and what is still to be walked, the next
        // component last.
        let mut stack = vec![Ok(Self::ROOT)];
        let mut remaining: Vec<&[u8]> = components.iter().rev().copied().collect();
        let mut hops = 0;
        while let Some(name) = remaining.pop() {
            match name {
                b"" | b"." => continue,
                b".." => {
                    if stack.len() > 1 {
                        stack.pop();
                    }
                    continue;
                }
                _ => {}
            }
            let is_last = remaining.iter().all(|rest| matches!(*rest, b"" | b"."));
            let here = *stack.last().expect("the root is never taken from the stack");
            let next = match (here, here.ok().and_then(|here| self.child(here, name))) {
                (Err(error), _) => Err(error),
                (Ok(here), None) if is_last => {
                    return Ok(Found::Name {
                        parent: here,
                        name,
                        id: None,
                    });
                }
                (Ok(_), None) => Err(ResolveError::Missing),
                (Ok(here), Some(id)) => match &self.inode(id).kind {
                    InodeKind::Symlink(target) if !is_last || follow == Follow::All => {
                        hops += 1;
                        if hops > MAX_SYMLINK_HOPS {
                            return Err(ResolveError::Loop);
                        }
                        if target.first() == Some(&b'/') {
                            stack.truncate(1);
                        }
                        remaining.extend(target.split(|&byte| byte == b'/').rev());
                        continue;
                    }
                    _ if is_last => {
                        return Ok(Found::Name {
                            parent: here,
                            name,
                            id: Some(id),
                        });
                    }
                    InodeKind::Directory(_) => Ok(id),
                    _ => Err(ResolveError::NotDirectory),
                },
            };
            if absent == Absent::Fails {
                next?;
            }
            stack.push(next);
        }
        stack
            .last()
            .expect("the root is never taken from the stack")
            .map(Found::Directory)
    }
}
