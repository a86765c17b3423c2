//! The native ext4 writer: no root, no mount, no other program, and the same bytes every time.
//!
//! [`plan`] decides the whole image: every inode number, every block, the exact size. [`Plan::emit`] writes it, each
//! structure once. [`Native`] does both for whoever wants an [`ImageBackend`].
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
mod hash;
mod inode;
mod journal;
mod plan;
mod resize;
mod sink;
mod space;
mod superblock;
mod xattr;

use std::fs::File;

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
        plan.emit(packs, output)?;
        Ok(ImageSummary {
            size_bytes: plan.size_bytes(),
            uuid: plan.uuid(),
            inodes_used: plan.inodes_used(),
        })
    }
}
