//! The native ext4 writer: no root, no mount, no other program, and the same bytes every time.
//!
//! [`plan`] decides the whole image: every inode number, every block, the exact size. [`Plan::emit`] writes it, each
//! structure once. [`Native`] does both for whoever wants an [`ImageBackend`].
//!
//! ```
//! use rootfs::{Metadata, Tree, ext4::Native, image::{ImageBackend, ImageOptions}, pack::Packs, tree::FileContent};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut tree = Tree::new();
//! tree.put_file(b"/hello", Metadata::root(0o644), FileContent::inline(*b"hello\n"))?;
//! let image = tempfile::tempfile()?;
//! let summary = Native.write(&tree, &Packs::new(), &ImageOptions::new([0; 32]), &image)?;
//! assert_eq!(image.metadata()?.len(), summary.size_bytes);
//! # Ok(())
//! # }
//! ```
//!
//! # The image
//!
//! Blocks of 4 KiB and inodes of 256 bytes; the features `ext_attr`, `dir_index`, `filetype`, `extent`, `flex_bg`,
//! `sparse_super`, `large_file`, `huge_file`, `dir_nlink`, `extra_isize` and `metadata_csum`; read-write images have a
//! journal and `resize_inode` as well and can grow 1,024-fold, read-only ones are marked as such (`read-only`); beyond
//! 16 TiB `64bit`. Every kernel since 4.0 mounts it.
//!
//! All metadata stands at the front. Then file contents, by pack and in the order of the pack, each pack from a 512 KiB
//! boundary on: images with layers in common have the chunks of these layers in common. Free space is at the end.
//! Zero blocks are not written, so the image is as sparse as the storage allows.
//!
//! # What is decided here
//!
//! - A read-only image has the feature `read-only`: a guest that mounts it `rw` by mistake gets it read-only.
//! - `lost+found` (0700, 16 KiB, inode 11, dated 1970) is made unless the tree has something of that name.
//! - Access, change and creation times are the modification time. What ext4 cannot express (before 1901, after 2446)
//!   becomes the nearest second that it can. e2fsck takes the years 2310 to 2378 for a wrong encoding of times before
//!   1970, and says so; the kernel reads them right, so they are written as they are.
//! - Attributes of names that the kernel's ext4 has no handler for (`system.` other than POSIX ACLs) are refused. Inodes
//!   with equal attribute blocks share one.
//! - A read-write image has no blocks reserved for root, and exactly as many free blocks as asked for, or those that
//!   the alignment of contents leaves, if these are more.
//!
//! # Limits
//!
//! Files to 16 TiB - 4 KiB, images to 128 TiB, 65,000 names per file, 258,570 blocks per directory, extended
//! attributes to what the inode (88 bytes) and one block (4,060 bytes) hold. What does not fit is
//! [`crate::image::ImageError::Unrepresentable`], with the path. ext4 has at most 32,768 inodes per 128 MiB, so an image
//! of nothing but empty files is larger than its contents; the difference is a hole.

mod acl;
mod checksum;
mod directory;
mod emit;
mod extent;
mod format;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
mod hash;
mod inode;
mod journal;
mod output;
mod plan;
mod resize;
mod sink;
mod space;
mod superblock;
mod xattr;

use std::fs::File;

pub use output::Emitted;
pub use plan::{BodyCopy, Plan, plan};
pub use sink::ImageSink;

use crate::{
    Tree,
    image::{ImageBackend, ImageError, ImageOptions, ImageSummary},
    pack::Packs,
};

/// Part of what UUID and hash seed are derived from, and of the keys of caches that hold images: counts up with every
/// change that makes other bytes of the same tree.
pub const WRITER_VERSION: u32 = 1;

/// The backend `native`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Native;

impl Native {
    /// Writes an image without the contents of files, for a caller that copies these itself: what is to be copied, in
    /// ascending order of the image. [`ImageOptions::findings`] are left out, as the image is not whole yet.
    ///
    /// # Errors
    /// As [`ImageBackend::write`].
    pub fn write_without_contents(
        &self,
        tree: &Tree,
        packs: &Packs,
        options: &ImageOptions,
        output: &File,
    ) -> Result<(ImageSummary, Vec<BodyCopy>), ImageError> {
        let plan = plan(tree, options)?;
        let verity = plan.emit_without_contents(packs, output)?;
        let summary = ImageSummary {
            size_bytes: plan.size_bytes(),
            uuid: plan.uuid(),
            inodes_used: plan.inodes_used(),
            verity,
            sha256: None,
            chunks: None,
        };
        Ok((summary, plan.copies()))
    }
}

impl ImageBackend for Native {
    fn name(&self) -> &'static str {
        "native"
    }

    fn write(
        &self,
        tree: &Tree,
        packs: &Packs,
        options: &ImageOptions,
        output: &File,
    ) -> Result<ImageSummary, ImageError> {
        let plan = plan(tree, options)?;
        let emitted = plan.emit_and_find(packs, output, options.findings)?;
        Ok(ImageSummary {
            size_bytes: plan.size_bytes(),
            uuid: plan.uuid(),
            inodes_used: plan.inodes_used(),
            verity: emitted.verity,
            sha256: emitted.sha256,
            chunks: emitted.chunks,
        })
    }
}
