//! One layer: from compressed tar bytes to an index and a pack.
//!
//! [`index_layer`] reads a blob once, as fast as it can be inflated. What the layer says becomes a [`LayerIndex`], the
//! bodies of its files a pack (see [`crate::pack`]). The index can be kept ([`LayerIndex::write_to`]) and taken back as
//! input that may be hostile ([`LayerIndex::read_from`]).
//!
//! ```
//! use rootfs::layer::{LayerLimits, index_layer};
//!
//! let empty_archive = [0; 1024];
//! let mut pack = Vec::new();
//! let index = index_layer(&empty_archive[..], &mut pack, &LayerLimits::default())?;
//! assert!(index.entries.is_empty());
//! assert_eq!(index.uncompressed_size_bytes, 1024);
//! # Ok::<(), rootfs::layer::LayerError>(())
//! ```

mod budget;
mod compression;
mod error;
mod format;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
mod index;
mod indexer;
mod limits;
mod pack_writer;
mod stream;
mod tar;

pub use compression::Compression;
pub use error::{LayerError, LayerErrorKind, TarProblem};
pub use format::{IndexError, IndexProblem};
pub use index::{Body, BodyExtent, Entry, EntryKind, LayerIndex};
pub use indexer::index_layer;
pub use limits::{LayerLimits, Limit};

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
