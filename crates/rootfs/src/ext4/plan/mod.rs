//! The exact image, decided before the first byte of it is written.

mod data;
mod placement;
mod walk;

use std::{collections::HashMap, ops::Range};

use sha2::{Digest, Sha256};

use self::{
    data::{Bodies, BodyRun, Source},
    placement::Placement,
    walk::Rows,
};
use super::{
    WRITER_VERSION,
    checksum::Checksum,
    directory::{self, Directory, Entry},
    extent::{self, Extent, ExtentList},
    format::{BLOCK_BYTES, BLOCKS_PER_GROUP, FIRST_INODE, position},
    inode,
    space::Run,
    xattr,
};
use crate::{
    Inode, InodeKind, Tree,
    image::{ImageError, ImageOptions, Profile},
    pack::PackId,
    verity::Geometry,
};

pub(super) use self::walk::number_of;

/// Stands for "none" in the plan's tables.
pub(super) const NONE: u32 = u32::MAX;

/// An image that is decided down to every block, and not yet written.
///
/// Making a plan reads nothing but the tree and allocates no more than a few hundred bytes per inode and name.
/// Its size is final: what [`Plan::emit`] writes is as large, and has as many free blocks and inodes, as the plan says.
#[derive(Debug)]
pub struct Plan<'tree> {
    pub(super) profile: Profile,
    pub(super) uuid: [u8; 16],
    pub(super) hash_seed: [u32; 4],
    pub(super) contents: Contents<'tree>,
    pub(super) placement: Placement,
    /// Inodes whose extents do not fit into them, ascending, with the position of the tree's first block among all
    /// blocks of trees.
    pub(super) trees: Vec<(u32, u64)>,
    /// The same position for the journal.
    pub(super) journal_tree: u64,
    /// The hash tree after the file system, if there shall be one.
    pub(super) verity: Option<Geometry>,
}

/// Bytes of a pack and where they go. All numbers are in bytes and multiples of 4,096.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BodyCopy {
    /// From which pack.
    pub pack: PackId,
    /// From where on.
    pub pack_offset: u64,
    /// To where in the image.
    pub image_offset: u64,
    /// How much. Where a file ends within a block, the rest of the block is zero in the pack and copied as well, so that
    /// storage can share it.
    pub length: u64,
}

/// What an image holds, apart from where it lies.
#[derive(Debug)]
pub(super) struct Contents<'tree> {
    pub(super) inodes: Vec<PlannedInode<'tree>>,
    entries: Vec<Entry<'tree>>,
    pub(super) directories: Vec<PlannedDirectory>,
    directory_blocks: u64,
    /// Rows of the symbolic links that need a block.
    pub(super) symlinks: Vec<u32>,
    pub(super) xattr_blocks: Vec<XattrBlock>,
    bodies: Bodies<'tree>,
}

/// One inode.
#[derive(Debug)]
pub(super) struct PlannedInode<'tree> {
    pub(super) inode: &'tree Inode,
    /// Row of the directory of its first name; the root's own for the root.
    parent: u32,
    /// Names found.
    pub(super) names: u32,
    /// Directories in this directory.
    pub(super) subdirectories: u32,
    /// Row of the directory, or [`NONE`].
    directory: u32,
    /// Position among the long symbolic links, or [`NONE`].
    symlink: u32,
    /// Row of the attribute block, or [`NONE`].
    pub(super) xattr_block: u32,
    first_run: u32,
    run_count: u32,
}

/// One directory.
#[derive(Debug)]
pub(super) struct PlannedDirectory {
    /// Row of its inode.
    pub(super) row: u32,
    first_entry: usize,
    entry_count: usize,
    layout: directory::Layout,
    /// First block, counted from the start of all directories.
    first_block: u64,
}

/// One block of attributes.
#[derive(Debug)]
pub(super) struct XattrBlock {
    /// Row of the first inode that uses it; the others have the same attributes in it.
    pub(super) owner: u32,
    pub(super) references: u32,
}

/// Decides an image of `tree`.
///
/// # Errors
/// `Unrepresentable` for what ext4 cannot hold, `TooLarge` for an image beyond [`ImageOptions::max_image_bytes`] or
/// 128 TiB, `Options` for a hash tree of what the guest may write.
pub fn plan<'tree>(tree: &'tree Tree, options: &ImageOptions) -> Result<Plan<'tree>, ImageError> {
    options.check()?;
    let (uuid, hash_seed) = derive_identity(&options.identity);
    let contents = Contents::gather(tree, hash_seed)?;
    let placement = placement::find(&contents, options)?;
    let (trees, journal_tree) = contents.trees(&placement);
    let verity = options
        .verity
        .then(|| Geometry::of(placement.blocks * BLOCK_BYTES))
        .flatten();
    Ok(Plan {
        profile: options.profile,
        uuid,
        hash_seed,
        contents,
        placement,
        trees,
        journal_tree,
        verity,
    })
}

/// UUID and hash seed: SHA-256 over the backend's name, the writer's version and what decides the content. A UUID of
/// version 8 (RFC 9562, section 5.8) is one whose bits mean nothing to others.
fn derive_identity(identity: &[u8; 32]) -> ([u8; 16], [u32; 4]) {
    let mut hasher = Sha256::new();
    hasher.update(b"native ext4\0");
    hasher.update(WRITER_VERSION.to_le_bytes());
    hasher.update(identity);
    let digest: [u8; 32] = hasher.finalize().into();
    let mut uuid = [0; 16];
    uuid.copy_from_slice(&digest[..16]);
    uuid[6] = uuid[6] & 0x0f | 0x80;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    let mut seed = [0; 4];
    for (word, bytes) in seed.iter_mut().zip(digest[16..].as_chunks::<4>().0) {
        *word = u32::from_le_bytes(*bytes);
    }
    (uuid, seed)
}

impl Plan<'_> {
    /// Bytes of the image, holes and the hash tree included.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.file_system_bytes() + self.verity.as_ref().map_or(0, Geometry::area_bytes)
    }

    /// Bytes of the file system, holes included.
    #[must_use]
    pub fn file_system_bytes(&self) -> u64 {
        self.placement.blocks * BLOCK_BYTES
    }

    /// The file system's UUID.
    #[must_use]
    pub fn uuid(&self) -> [u8; 16] {
        self.uuid
    }

    /// Inodes in use, the 10 reserved ones included.
    #[must_use]
    pub fn inodes_used(&self) -> u64 {
        self.contents.inode_numbers()
    }

    /// Inodes that are free (`s_free_inodes_count`).
    #[must_use]
    pub fn free_inodes(&self) -> u64 {
        self.placement.inodes() - self.inodes_used()
    }

    /// Blocks of 4 KiB that are free (`s_free_blocks_count`).
    #[must_use]
    pub fn free_blocks(&self) -> u64 {
        self.placement.blocks - self.placement.used_blocks
    }

    /// What is to be copied from packs, in ascending order of the image. Neighbours are joined.
    #[must_use]
    pub fn copies(&self) -> Vec<BodyCopy> {
        let mut copies: Vec<BodyCopy> = Vec::new();
        for (run, piece, done) in self.body_pieces() {
            let (Source::Pack(offset), Some(pack)) =
                (run.source, self.contents.bodies.regions[run.region as usize].pack)
            else {
                continue;
            };
            let copy = BodyCopy {
                pack,
                pack_offset: offset + done,
                image_offset: piece.start * BLOCK_BYTES,
                length: piece.length * BLOCK_BYTES,
            };
            match copies.last_mut() {
                Some(last)
                    if last.pack == pack
                        && last.pack_offset + last.length == copy.pack_offset
                        && last.image_offset + last.length == copy.image_offset =>
                {
                    last.length += copy.length;
                }
                _ => copies.push(copy),
            }
        }
        copies
    }

    /// Content from memory and where it goes, in ascending order of the image.
    pub(super) fn inline_pieces(&self) -> impl Iterator<Item = (u64, &[u8])> {
        self.body_pieces()
            .filter_map(|(run, piece, done)| match run.source {
                Source::Inline(bytes) => {
                    let done = super::format::index(done);
                    let end = bytes
                        .len()
                        .min(done + super::format::index(piece.length * BLOCK_BYTES));
                    Some((piece.start, &bytes[done..end]))
                }
                Source::Pack(_) => None,
            })
    }

    /// Every run of every region with its pieces, and how many bytes of the run come before the piece.
    fn body_pieces(&self) -> impl Iterator<Item = (&BodyRun<'_>, Run, u64)> {
        let bodies = &self.contents.bodies;
        bodies
            .regions
            .iter()
            .zip(&self.placement.regions)
            .flat_map(move |(region, start)| {
                region.runs.iter().flat_map(move |row| {
                    let run = &bodies.runs[*row as usize];
                    let first = self.placement.backups.nth(*start, run.place);
                    let mut done = 0;
                    self.placement
                        .backups
                        .pieces(first, run.blocks())
                        .map(move |piece| {
                            let before = done;
                            done += piece.length * BLOCK_BYTES;
                            (run, piece, before)
                        })
                })
            })
    }

    /// The extents of an inode, and the position of its tree's first block among all trees' blocks.
    pub(super) fn extents_of(&self, row: u32) -> (Vec<Extent>, u64) {
        let tree = self.trees.binary_search_by_key(&row, |(row, _)| *row);
        (
            self.contents.extents_of(&self.placement, row),
            tree.map_or(0, |index| self.trees[index].1),
        )
    }

    /// The journal's extents.
    pub(super) fn journal_extents(&self) -> Vec<Extent> {
        extents_of_journal(&self.placement)
    }
}

impl<'tree> PlannedInode<'tree> {
    fn new(inode: &'tree Inode, parent: u32) -> Self {
        Self {
            inode,
            parent,
            names: 0,
            subdirectories: 0,
            directory: NONE,
            symlink: NONE,
            xattr_block: NONE,
            first_run: 0,
            run_count: 0,
        }
    }

    /// Position among the long symbolic links.
    pub(super) fn long_link(&self) -> Option<u32> {
        (self.symlink != NONE).then_some(self.symlink)
    }
}

impl PlannedDirectory {
    fn entries(&self) -> Range<usize> {
        self.first_entry..self.first_entry + self.entry_count
    }
}

impl<'tree> Contents<'tree> {
    /// Collects what the tree has, and refuses what ext4 cannot hold.
    fn gather(tree: &'tree Tree, hash_seed: [u32; 4]) -> Result<Self, ImageError> {
        let mut rows = walk::walk(tree, hash_seed)?;
        let mut bodies = Bodies::default();
        let mut symlinks = Vec::new();
        for row in 0..position(rows.inodes.len()) {
            let inode = rows.inodes[row as usize].inode;
            match &inode.kind {
                InodeKind::File(content) => {
                    let first = bodies.runs.len();
                    bodies.add(content).map_err(|reason| rows.refuse(row, reason))?;
                    let planned = &mut rows.inodes[row as usize];
                    planned.first_run = position(first);
                    planned.run_count = position(bodies.runs.len() - first);
                }
                InodeKind::Symlink(target) => {
                    if target.is_empty() || target.len() > inode::MAX_LONG_LINK || target.contains(&0) {
                        let length = target.len();
                        let limit = inode::MAX_LONG_LINK;
                        return Err(rows.refuse(
                            row,
                            format!("its target has {length} bytes, a link holds 1 to {limit} without a NUL"),
                        ));
                    }
                    if target.len() > inode::MAX_SHORT_LINK {
                        rows.inodes[row as usize].symlink = position(symlinks.len());
                        symlinks.push(row);
                    }
                }
                InodeKind::CharacterDevice(device) | InodeKind::BlockDevice(device) => {
                    if inode::encode_device(*device).is_none() {
                        let reason = format!(
                            "its device number {}:{} does not fit 12 and 20 bits",
                            device.major, device.minor
                        );
                        return Err(rows.refuse(row, reason));
                    }
                }
                InodeKind::Directory(_) | InodeKind::Fifo => {}
            }
        }
        bodies.arrange();
        let xattr_blocks = gather_xattrs(&mut rows)?;
        let mut directory_blocks = 0;
        for directory in &mut rows.directories {
            directory.first_block = directory_blocks;
            directory_blocks += u64::from(directory.layout.blocks());
        }
        let Rows {
            inodes,
            entries,
            directories,
        } = rows;
        Ok(Self {
            inodes,
            entries,
            directories,
            directory_blocks,
            symlinks,
            xattr_blocks,
            bodies,
        })
    }

    /// Inode numbers in use: from 1 to the last one, all of them.
    pub(super) fn inode_numbers(&self) -> u64 {
        // Row 0 is the root, one of the reserved numbers; row 1 has the first number after them. An image has at
        // least the root.
        self.inodes.len() as u64 - 1 + u64::from(FIRST_INODE - 1)
    }

    /// What a directory's blocks are made from.
    pub(super) fn directory<'a>(
        &'a self,
        directory: &'a PlannedDirectory,
        file_system: Checksum,
    ) -> Directory<'a> {
        let number = number_of(directory.row);
        Directory {
            number,
            parent: number_of(self.inodes[directory.row as usize].parent),
            entries: &self.entries[directory.entries()],
            layout: &directory.layout,
            seed: file_system.of_inode(number),
        }
    }

    /// The directory that an inode is.
    pub(super) fn directory_of(&self, row: u32) -> Option<(&PlannedDirectory, bool, u64)> {
        let directory = self
            .directories
            .get(self.inodes[row as usize].directory as usize)?;
        Some((
            directory,
            directory.layout.is_indexed(),
            u64::from(directory.layout.blocks()),
        ))
    }

    /// The extents of an inode.
    fn extents_of(&self, placement: &Placement, row: u32) -> Vec<Extent> {
        let inode = &self.inodes[row as usize];
        let mut list = ExtentList::default();
        let mut add = |logical: u64, start: u64, blocks: u64| {
            let mut logical = logical;
            for piece in placement.backups.pieces(start, blocks) {
                list.push(logical, piece);
                logical += piece.length;
            }
        };
        if let Some((directory, _, blocks)) = self.directory_of(row) {
            add(
                0,
                placement
                    .backups
                    .nth(placement.directories, directory.first_block),
                blocks,
            );
        } else if let Some(link) = inode.long_link() {
            add(0, placement.backups.nth(placement.symlinks, u64::from(link)), 1);
        } else {
            let first = inode.first_run as usize;
            for run in &self.bodies.runs[first..first + inode.run_count as usize] {
                let start = placement.regions[run.region as usize];
                add(run.logical, placement.backups.nth(start, run.place), run.blocks());
            }
        }
        list.finish()
    }

    /// Blocks of the extent tree of an inode: none while the inode itself holds its extents.
    fn tree_blocks_of(&self, placement: &Placement, row: u32) -> usize {
        // Most files have one run, and are not worth laying out. A run of less than a group is cut by at most one
        // backup of the superblock, and an inode holds four extents.
        let inode = &self.inodes[row as usize];
        let (first, count) = (inode.first_run as usize, inode.run_count as usize);
        let is_small = inode.directory == NONE
            && inode.long_link().is_none()
            && count <= 2
            && self.bodies.runs[first..first + count]
                .iter()
                .all(|run| run.blocks() < BLOCKS_PER_GROUP);
        if is_small {
            debug_assert_eq!(extent::tree_blocks(self.extents_of(placement, row).len()), 0);
            return 0;
        }
        extent::tree_blocks(self.extents_of(placement, row).len())
    }

    /// Blocks that all extent trees take, the journal's included.
    fn tree_blocks(&self, placement: &Placement) -> u64 {
        let inodes = (0..position(self.inodes.len())).map(|row| self.tree_blocks_of(placement, row) as u64);
        inodes.sum::<u64>() + extent::tree_blocks(extents_of_journal(placement).len()) as u64
    }

    /// Where the blocks of each extent tree start, counted from the first, and where the journal's do.
    fn trees(&self, placement: &Placement) -> (Vec<(u32, u64)>, u64) {
        let mut trees = Vec::new();
        let mut next = 0;
        for row in 0..position(self.inodes.len()) {
            let blocks = self.tree_blocks_of(placement, row);
            if blocks > 0 {
                trees.push((row, next));
                next += blocks as u64;
            }
        }
        (trees, next)
    }
}

fn extents_of_journal(placement: &Placement) -> Vec<Extent> {
    let mut list = ExtentList::default();
    let mut logical = 0;
    for piece in placement
        .backups
        .pieces(placement.journal, placement.journal_blocks)
    {
        list.push(logical, piece);
        logical += piece.length;
    }
    list.finish()
}

/// Encodes all attributes once, to see what needs a block and which blocks are equal. The bytes are made again when
/// they are written, so that a plan does not hold them.
fn gather_xattrs(rows: &mut Rows<'_>) -> Result<Vec<XattrBlock>, ImageError> {
    let mut blocks: Vec<XattrBlock> = Vec::new();
    let mut known: HashMap<[u8; 32], u32> = HashMap::new();
    for row in 0..position(rows.inodes.len()) {
        let xattrs = &rows.inodes[row as usize].inode.metadata.xattrs;
        if xattrs.is_empty() {
            continue;
        }
        let encoded = xattr::encode(xattrs).map_err(|error| rows.refuse(row, error.reason))?;
        let Some(block) = encoded.block else { continue };
        let digest: [u8; 32] = Sha256::digest(&block[..]).into();
        let shared = known
            .get(&digest)
            .copied()
            .filter(|block| blocks[*block as usize].references < xattr::MAX_SHARES);
        let block = shared.unwrap_or_else(|| {
            let new = position(blocks.len());
            blocks.push(XattrBlock {
                owner: row,
                references: 0,
            });
            known.insert(digest, new);
            new
        });
        blocks[block as usize].references += 1;
        rows.inodes[row as usize].xattr_block = block;
    }
    Ok(blocks)
}
