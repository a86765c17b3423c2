//! From a tree to rows: every inode gets a number, every directory its entries.
//!
//! Directories are visited breadth first and children in byte order, so the numbers depend on nothing but the tree's
//! shape and names, and the children of one directory have neighbouring inodes.

use std::sync::LazyLock;

use super::{super::directory::Entry, NONE, PlannedDirectory, PlannedInode};
use crate::{
    Inode, InodeId, InodeKind, Metadata, Tree,
    ext4::{
        directory::{self, Layout},
        format::{FIRST_INODE, ROOT_INODE, position},
        inode::MAX_LINKS,
    },
    image::ImageError,
    tree::Children,
};

/// The name that e2fsck looks for in the root.
const LOST_AND_FOUND: &[u8] = b"lost+found";

/// What stands for `lost+found` where the tree has none: owned by root, 0700, of 1970.
static LOST_AND_FOUND_INODE: LazyLock<Inode> = LazyLock::new(|| Inode {
    metadata: Metadata::root(0o700),
    kind: InodeKind::Directory(Children::new()),
    names: 1,
});

/// All inodes, names and directories of an image.
#[derive(Debug, Default)]
pub(in crate::ext4) struct Rows<'tree> {
    pub(in crate::ext4) inodes: Vec<PlannedInode<'tree>>,
    pub(in crate::ext4) entries: Vec<Entry<'tree>>,
    pub(in crate::ext4) directories: Vec<PlannedDirectory>,
}

/// The inode number of a row: the root has its reserved number, the others follow the reserved ones.
pub(in crate::ext4) fn number_of(row: u32) -> u32 {
    if row == 0 {
        ROOT_INODE
    } else {
        FIRST_INODE - 1 + row
    }
}

impl Rows<'_> {
    /// A path that leads to a row, for messages.
    pub(in crate::ext4) fn path_of(&self, row: u32) -> Vec<u8> {
        let mut names = Vec::new();
        let mut at = row;
        while at != 0 && names.len() < self.inodes.len() {
            let parent = self.inodes[at as usize].parent;
            let directory = &self.directories[self.inodes[parent as usize].directory as usize];
            let name = self.entries[directory.entries()]
                .iter()
                .find(|entry| entry.child == at);
            names.push(name.map_or(&b"?"[..], |entry| entry.name));
            at = parent;
        }
        let mut path = Vec::new();
        for name in names.iter().rev() {
            path.push(b'/');
            path.extend_from_slice(name);
        }
        if path.is_empty() { b"/".to_vec() } else { path }
    }

    /// The error for what ext4 cannot hold.
    pub(in crate::ext4) fn refuse(&self, row: u32, reason: impl Into<String>) -> ImageError {
        ImageError::Unrepresentable {
            path: self.path_of(row),
            reason: reason.into(),
        }
    }
}

/// Visits the whole tree. Links are counted by what is found, not by what the tree claims.
pub(in crate::ext4) fn walk(tree: &Tree, seed: [u32; 4]) -> Result<Rows<'_>, ImageError> {
    let mut rows = Rows::default();
    let mut known: Vec<u32> = Vec::new();
    let root = tree.inode(Tree::ROOT);
    let InodeKind::Directory(root_children) = &root.kind else {
        return Err(ImageError::Unrepresentable {
            path: b"/".to_vec(),
            reason: "the root is no directory".into(),
        });
    };
    remember(&mut known, Tree::ROOT, 0);
    rows.inodes.push(PlannedInode::new(root, 0));
    add_directory(&mut rows, 0);

    // `lost+found` comes first, so that it has the first number. `None`: the root has something else of that name.
    let own = root_children.get(LOST_AND_FOUND).map(|id| (*id, tree.inode(*id)));
    let made = own.is_none();
    match own {
        None => {
            rows.inodes.push(PlannedInode::new(&LOST_AND_FOUND_INODE, 0));
            add_directory(&mut rows, 1);
        }
        Some((id, inode)) if inode.kind.is_directory() => {
            remember(&mut known, id, 1);
            rows.inodes.push(PlannedInode::new(inode, 0));
            add_directory(&mut rows, 1);
        }
        Some(_) => {}
    }

    let mut next = 0;
    while next < rows.directories.len() {
        let row = rows.directories[next].row;
        let first = rows.entries.len();
        if let InodeKind::Directory(children) = &rows.inodes[row as usize].inode.kind {
            let mut made_is_due = made && row == 0;
            for (name, id) in children {
                if made_is_due && **name > *LOST_AND_FOUND {
                    made_is_due = false;
                    add_entry(&mut rows, row, LOST_AND_FOUND, 1);
                }
                check_name(&rows, row, name)?;
                let child = visit(&mut rows, &mut known, tree, *id, row)?;
                add_entry(&mut rows, row, name, child);
            }
            if made_is_due {
                add_entry(&mut rows, row, LOST_AND_FOUND, 1);
            }
        }
        let entries = &mut rows.entries[first..];
        let layout = directory::lay_out(entries, seed);
        let count = entries.len();
        let directory = &mut rows.directories[next];
        directory.first_entry = first;
        directory.entry_count = count;
        directory.layout = match layout {
            Ok(Layout::List { .. }) if made && row == 1 => Layout::List {
                blocks: directory::LOST_AND_FOUND_BLOCKS,
            },
            Ok(layout) => layout,
            Err(directory::TooManyNames) => {
                return Err(rows.refuse(
                    row,
                    format!("an index of two levels does not hold its {count} names"),
                ));
            }
        };
        next += 1;
    }
    check_links(&rows)?;
    Ok(rows)
}

/// The row of a child, made when this is its first name.
fn visit<'tree>(
    rows: &mut Rows<'tree>,
    known: &mut Vec<u32>,
    tree: &'tree Tree,
    id: InodeId,
    parent: u32,
) -> Result<u32, ImageError> {
    if let Some(row) = known.get(id.0 as usize).copied().filter(|row| *row != NONE) {
        let inode = &rows.inodes[row as usize];
        // The tree's own `lost+found` has its row before it is met here.
        if inode.inode.kind.is_directory() && inode.names > 0 {
            return Err(rows.refuse(row, "a directory has one name only"));
        }
        return Ok(row);
    }
    // Numbers up to the first reserved ones' end are taken, and the count of all inodes must fit 32 bits.
    let row = u32::try_from(rows.inodes.len())
        .ok()
        .filter(|row| *row < u32::MAX - FIRST_INODE)
        .ok_or_else(|| rows.refuse(parent, "ext4 numbers at most 2^32 inodes"))?;
    remember(known, id, row);
    let inode = tree.inode(id);
    rows.inodes.push(PlannedInode::new(inode, parent));
    if inode.kind.is_directory() {
        add_directory(rows, row);
    }
    Ok(row)
}

fn remember(known: &mut Vec<u32>, id: InodeId, row: u32) {
    let index = id.0 as usize;
    if known.len() <= index {
        known.resize(index + 1, NONE);
    }
    known[index] = row;
}

fn add_directory(rows: &mut Rows<'_>, row: u32) {
    rows.inodes[row as usize].directory = position(rows.directories.len());
    rows.directories.push(PlannedDirectory {
        row,
        first_entry: 0,
        entry_count: 0,
        layout: Layout::List { blocks: 1 },
        first_block: 0,
    });
    // The root's own name does not come from an entry.
    if row == 0 {
        rows.inodes[0].names = 1;
    }
}

fn add_entry<'tree>(rows: &mut Rows<'tree>, parent: u32, name: &'tree [u8], child: u32) {
    rows.inodes[child as usize].names += 1;
    if rows.inodes[child as usize].inode.kind.is_directory() {
        rows.inodes[parent as usize].subdirectories += 1;
    }
    rows.entries.push(Entry::new(name, child));
}

/// Names that the tree promises not to have: they would make an image that e2fsck has to repair.
fn check_name(rows: &Rows<'_>, row: u32, name: &[u8]) -> Result<(), ImageError> {
    let reason = match name {
        b"" => "a name is empty".to_owned(),
        b"." | b".." => "a name is . or ..".to_owned(),
        _ if name.contains(&b'/') || name.contains(&0) => "a name contains a slash or NUL".to_owned(),
        _ if name.len() > 255 => format!("a name has {} bytes, 255 are allowed", name.len()),
        _ => return Ok(()),
    };
    Err(rows.refuse(row, reason))
}

fn check_links(rows: &Rows<'_>) -> Result<(), ImageError> {
    let over = rows.inodes.iter().position(|inode| inode.names > MAX_LINKS);
    over.map_or(Ok(()), |row| {
        let names = rows.inodes[row].names;
        Err(rows.refuse(
            position(row),
            format!("it has {names} names, an inode holds {MAX_LINKS}"),
        ))
    })
}
