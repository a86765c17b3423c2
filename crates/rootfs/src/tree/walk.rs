//! Walking a tree in byte order of its paths.

use std::{collections::btree_map, iter::Peekable};

use super::{InodeId, Tree};

/// Iterator of [`Tree::walk`].
#[derive(Debug)]
pub struct Walk<'a> {
    tree: &'a Tree,
    at_root: bool,
    path: Vec<u8>,
    frames: Vec<Frame<'a>>,
}

/// A directory whose content is being listed.
#[derive(Debug)]
struct Frame<'a> {
    /// Length of the directory's own path, with the slash.
    prefix: usize,
    children: Peekable<btree_map::Iter<'a, Box<[u8]>, InodeId>>,
    /// Child directories that were named but not entered: the content of `a` sorts as `a/`, after siblings such as
    /// `a-b`. The last one is the next in order.
    unentered: Vec<(&'a [u8], InodeId)>,
}

impl<'a> Walk<'a> {
    pub(super) fn new(tree: &'a Tree) -> Self {
        let mut walk = Self {
            tree,
            at_root: true,
            path: Vec::new(),
            frames: Vec::new(),
        };
        walk.enter(Tree::ROOT);
        walk
    }

    fn enter(&mut self, directory: InodeId) {
        if let Some(children) = self.tree.children(directory) {
            let children = children.iter().peekable();
            self.frames.push(Frame {
                prefix: self.path.len(),
                children,
                unentered: Vec::new(),
            });
        }
    }
}

impl Iterator for Walk<'_> {
    type Item = (Vec<u8>, InodeId);

    fn next(&mut self) -> Option<Self::Item> {
        if self.at_root {
            self.at_root = false;
            return Some((Vec::new(), Tree::ROOT));
        }
        loop {
            let frame = self.frames.last_mut()?;
            self.path.truncate(frame.prefix);
            if let Some(&(name, id)) = frame.unentered.last()
                && frame
                    .children
                    .peek()
                    .is_none_or(|(next, _)| content_precedes(name, next))
            {
                frame.unentered.pop();
                self.path.extend_from_slice(name);
                self.path.push(b'/');
                self.enter(id);
                continue;
            }
            let Some((name, &id)) = frame.children.next() else {
                self.frames.pop();
                continue;
            };
            self.path.extend_from_slice(name);
            if self.tree.inode(id).kind.is_directory() {
                frame.unentered.push((name, id));
            }
            return Some((self.path.clone(), id));
        }
    }
}

/// Whether `name` followed by a slash sorts before `next`, a later sibling of `name`.
fn content_precedes(name: &[u8], next: &[u8]) -> bool {
    next.strip_prefix(name)
        .is_none_or(|rest| rest.first().is_none_or(|&byte| byte > b'/'))
}
