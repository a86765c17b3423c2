//! One layer: from compressed tar bytes to an index and a pack.

mod index;

pub use index::{Body, BodyExtent, Entry, EntryKind, LayerIndex};
