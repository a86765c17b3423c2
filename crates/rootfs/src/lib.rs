//! OCI layers in, a bootable ext4 image out.
//!
//! ```no_run
//! use std::fs::File;
//!
//! use rootfs::{
//!     ext4::Native,
//!     fold::{FoldLimits, Folder, Mode},
//!     image::{ImageBackend as _, ImageOptions},
//!     layer::{LayerLimits, index_layer},
//!     pack::{Pack, Packs},
//! };
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut pack = File::options().read(true).write(true).create_new(true).open("layer.pack")?;
//! let index = index_layer(File::open("layer.tar.gz")?, &mut pack, &LayerLimits::default())?;
//!
//! let mut packs = Packs::new();
//! let mut folder = Folder::new(Mode::Oci, FoldLimits::default());
//! folder.apply(&index, packs.push(Pack::File(pack.into())))?;
//!
//! let image = File::options().read(true).write(true).create_new(true).open("rootfs.ext4")?;
//! Native.write(&folder.finish().tree, &packs, &ImageOptions::new(index.diff_id), &image)?;
//! # Ok(())
//! # }
//! ```
//!
//! A build has four steps, and each is usable alone:
//!
//! 1. [`layer`]: one layer's bytes become a [`layer::LayerIndex`] (what the layer says) and a pack (the file bodies).
//!    Layers do not depend on each other here, so they can be indexed side by side, and kept.
//! 2. [`fold`]: the indexes, bottom layer first, become one [`Tree`]. This takes milliseconds and no disk.
//! 3. [`edit`]: files are added to the tree, replaced or left out.
//! 4. [`image`]: the tree and the packs become an ext4 image, by the [native writer](ext4) or by [e2fsprogs](mke2fs),
//!    with a [dm-verity](verity) hash tree where it is asked for.
//!
//! [`chunks`] tells what two images share.
//!
//! # What holds throughout
//!
//! - Names are bytes. No path of a layer is ever opened, created or looked up on the host: layers meet in memory, and
//!   symbolic links are followed inside the tree only. (The reference backend stages files on the host, one name at a
//!   time, in a directory of its own.)
//! - The same layers, edits and options make the same tree and, with the native writer, the same bytes. No clock is read.
//! - The size of an image is computed before its first byte is written.
//! - Input is bounded by limits with defaults; what exceeds them is a typed error that names the layer and the path.
//!   Nothing recurses over what a layer contains.
//!
//! # What it does not do
//!
//! It opens no socket, knows no registry and no manifest, and verifies no signature: whoever calls it compares
//! [`layer::LayerIndex::diff_id`] with the image's configuration. It mounts nothing, and reads no ext4 image back. It
//! knows no async runtime; the threads that hash end before a call returns. [`listing`] is for tests and for looking at things.

#![forbid(unsafe_code)]

pub mod chunks;
#[cfg(test)]
mod corpus;
pub mod edit;
pub mod ext4;
pub mod fold;
pub mod image;
pub mod layer;
pub mod listing;
mod metadata;
pub mod mke2fs;
pub mod pack;
mod text;
pub mod tree;
pub mod verity;

pub use metadata::{DeviceNumber, Metadata, Timestamp, Xattrs};
pub use tree::{Inode, InodeId, InodeKind, Tree};
