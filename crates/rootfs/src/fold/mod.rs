//! Layers onto each other, bottom first.
//!
//! A [`Folder`] takes the indexes of an image's layers from the bottom up and keeps one [`Tree`]. No path is ever
//! looked up outside that tree, so a layer cannot name anything of the host. Nothing recurses, and every loop is
//! bounded by [`FoldLimits`] or by the layer's own length.
//!
//! # What a layer means
//!
//! The rules of the OCI image specification (`layer.md`), and where it is silent, these. They hold in both modes
//! unless the table below says otherwise.
//!
//! - **Whiteouts** (`.wh.NAME`) and **opaque markers** (`.wh..wh..opq`) act on the layers below only and are applied
//!   before anything else of their layer, wherever they stand in the archive. What the same layer brings stays. A
//!   whiteout removes the name itself, never what a symbolic link points to; one that finds nothing does nothing; its
//!   type and its body do not matter. A whiteout that names nothing (`.wh.`), or `.` or `..`, is an error.
//! - **Paths** are relative to the root whatever they begin with; `.`, empty components and a trailing slash do not
//!   count, and `..` goes up lexically and stops at the root.
//! - **Duplicates**: the last entry wins. A directory over a directory keeps its children and replaces all
//!   attributes, the extended ones included; anything else over anything replaces it whole.
//! - **Parents** that a path implies and nobody names are made as 0755, 0:0, dated 1970. One that is there but is no
//!   directory is replaced by such a directory.
//! - **Hard links** mean what the same layer says of their target, even when it says it later. If it says nothing,
//!   they mean what the layers below had there before this layer's whiteouts. Parents of a target may be symbolic
//!   links; its last component is not followed. A link to a directory, to the root, to itself, in a circle or to
//!   nothing is an error.
//! - **The root** must be a directory.
//! - **Devices**: a character device 0:0 is a device, although overlay file systems use it as a whiteout.
//! - **Symbolic links** have mode 0777, whatever their header says: Linux knows no other.
//! - **Extended attributes** are kept in the name spaces that ext4 has (`user.`, `trusted.`, `security.` and POSIX
//!   ACLs). Dropped with a note: other name spaces, `user.` on anything but files and directories (Linux refuses
//!   them), and `trusted.overlay.` and `user.overlay.`, which are the storage state of the host that packed the layer.
//! - **AUFS remains** at the root (`.wh..wh.aufs`, `.wh..wh.orph`, `.wh..wh.plnk/`) do not become files; the files in
//!   `.wh..wh.plnk` serve as targets of hard links.
//!
//! # Where the modes differ
//!
//! | case | [`Mode::Oci`] | [`Mode::Docker`] |
//! |---|---|---|
//! | an entry below a symbolic link of a lower layer (`lib/x` where `lib` is a link to `usr/lib`) | written through the link, inside the tree; 40 links at most, a loop is an error | the link becomes a directory |
//! | the same, the link coming from the same layer | written through the link | written through the link |
//! | a whiteout below a symbolic link of a lower layer | removes what the link leads to | removes nothing; the link becomes a directory |
//! | an entry for the root | its owner, mode, time and attributes are the root's | ignored |
//! | a hard link's own header | ignored | its owner, mode, time and attributes are given to the shared inode |
//! | `.wh.` at the beginning of a component other than the last | an error | the entry is skipped |
//!
//! [`Mode::Docker`] is what users of Docker and containerd see with an overlay file system (`tests/differential`
//! compares the two), but for what an overlay loses, brings back, refuses or makes up. In both modes:
//!
//! - a whiteout that stands after a file of the same layer neither deletes the file nor fails;
//! - a directory that is made anew after its whiteout does not show its old content;
//! - hard links to lower layers work, and link counts are those of the names that are there;
//! - directories that only a whiteout's path mentions are not made, and none is dated to the time of the build;
//! - a character device 0:0 hides nothing.
//!
//! Every entry for which the modes differ, or with which a layer breaks the specification, is named by a [`Note`] in
//! the [`Report`]; of those below one symbolic link that [`Mode::Docker`] makes a directory, the first, as for the others
//! the link is no longer there. The two sorts have bounds of their own: notes for which the modes differ
//! ([`NoteKind::modes_differ`]) are kept up to [`FoldLimits::max_difference_notes`] and 64 MiB of paths, the others up to
//! [`FoldLimits::max_notes`]. What exceeds a bound is counted; as long as [`Report::differences_omitted`] is zero, no entry
//! for which the modes differ is missing.

mod apply;
mod error;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
mod links;
mod parents;
mod path;
mod report;
mod survey;

use crate::{Tree, layer::LayerIndex, pack::PackId, tree::MAX_LINKS};

pub use error::{FoldError, FoldErrorKind};
pub use report::{LayerChanges, Note, NoteKind, Report};

/// Whose reading of a layer is followed. See the [module documentation](self).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Mode {
    /// The OCI image specification to the letter.
    #[default]
    Oci,
    /// What users of Docker and containerd see.
    Docker,
}

/// How much a fold may take in.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct FoldLimits {
    /// Most entries of all layers together, and most inodes of the tree at any moment, implied directories included.
    pub max_entries: u64,
    /// Longest path of an entry or of a hard link's target in bytes.
    pub max_path_bytes: usize,
    /// Most components of a path, before and after symbolic links.
    pub max_depth: usize,
    /// Most names of an inode that is no directory.
    pub max_links: u32,
    /// Most notes that the report keeps of those for which the modes do not differ; the rest is counted.
    pub max_notes: usize,
    /// Most notes that the report keeps of those for which the modes differ; the rest is counted.
    pub max_difference_notes: usize,
}

impl Default for FoldLimits {
    /// 2,000,000 entries, paths of 4,096 bytes and 255 components, 65,000 names (what ext4 can hold), 1,000 notes, and
    /// 100,000 about differences between the modes.
    fn default() -> Self {
        Self {
            max_entries: 2_000_000,
            max_path_bytes: 4096,
            max_depth: 255,
            max_links: MAX_LINKS,
            max_notes: 1000,
            max_difference_notes: 100_000,
        }
    }
}

/// The layers so far. See the [module documentation](self).
///
/// ```
/// use rootfs::{Metadata, fold::{Folder, FoldLimits, Mode}, layer::{Entry, EntryKind, LayerIndex}, pack::PackId};
///
/// # fn main() -> Result<(), rootfs::fold::FoldError> {
/// let layer = LayerIndex {
///     diff_id: [0; 32],
///     uncompressed_size_bytes: 0,
///     pack_size_bytes: 0,
///     entries: vec![Entry {
///         path: b"usr/bin/sh".to_vec(),
///         kind: EntryKind::Symlink(b"busybox".to_vec()),
///         metadata: Metadata::root(0o777),
///     }],
/// };
/// let mut folder = Folder::new(Mode::Oci, FoldLimits::default());
/// folder.apply(&layer, PackId(0))?;
/// assert!(folder.finish().tree.lookup(b"/usr/bin/sh").is_some());
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Folder {
    mode: Mode,
    limits: FoldLimits,
    tree: Tree,
    report: Report,
    entries: u64,
    stamps: apply::Stamps,
}

/// What the layers make together.
#[derive(Clone, Debug)]
pub struct Folded {
    /// The file system.
    pub tree: Tree,
    /// What was noticed, and what each layer did.
    pub report: Report,
}

impl Folder {
    /// No layers yet: the tree has only its root, 0755, owned by root, dated 1970.
    #[must_use]
    pub fn new(mode: Mode, limits: FoldLimits) -> Self {
        let report = Report::new(&limits);
        Self {
            mode,
            limits,
            tree: Tree::new(),
            report,
            entries: 0,
            stamps: apply::Stamps::default(),
        }
    }

    /// Puts the next layer on top. `pack` is where its file bodies are.
    ///
    /// The index is taken as valid, as the one who made or read it has verified it.
    ///
    /// # Errors
    /// The layer's first entry that has no meaning or exceeds a limit. The folder is then to be dropped: part of the
    /// layer may have been applied.
    pub fn apply(&mut self, layer: &LayerIndex, pack: PackId) -> Result<(), FoldError> {
        apply::apply(self, layer, pack)
    }

    /// The layers so far.
    #[must_use]
    pub const fn tree(&self) -> &Tree {
        &self.tree
    }

    /// What was noticed so far.
    #[must_use]
    pub const fn report(&self) -> &Report {
        &self.report
    }

    /// The result.
    #[must_use]
    pub fn finish(self) -> Folded {
        Folded {
            tree: self.tree,
            report: self.report,
        }
    }
}
