//! OCI layers in, a bootable ext4 image out.
//!
//! The crate is synchronous, opens no socket and builds no host path from a name in a layer. A build has four steps,
//! and each is usable alone:
//!
//! 1. [`layer`]: one layer's bytes become a [`layer::LayerIndex`] (what the layer says) and a pack (the file bodies).
//! 2. [`fold`]: the indexes, bottom layer first, become one [`Tree`].
//! 3. [`edit`]: files are added to the tree, replaced or left out.
//! 4. [`image`]: the tree and the packs become an ext4 image.

#![forbid(unsafe_code)]

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

pub use metadata::{DeviceNumber, Metadata, Timestamp, Xattrs};
pub use tree::{Inode, InodeId, InodeKind, Tree};
