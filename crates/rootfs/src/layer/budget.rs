//! What an index costs in memory.

use super::{Entry, EntryKind, LayerLimits, error::Fault, limits::Limit};

/// An entry without what it points to, with room for the growth of the list that it stands in.
const ENTRY_BYTES: u64 = 256;
/// An extended attribute without name and value: two vectors in a tree's node.
const XATTR_BYTES: u64 = 64;
/// An extent, or a segment of a sparse map.
pub(super) const EXTENT_BYTES: u64 = 24;

/// Counts what an index costs while it grows; [`Limit::IndexBytes`] says by which estimate.
#[derive(Debug)]
pub(super) struct Budget {
    used_bytes: u64,
    allowed_bytes: u64,
}

impl Budget {
    pub(super) fn new(limits: &LayerLimits) -> Self {
        Self {
            used_bytes: 0,
            allowed_bytes: limits.max_index_bytes,
        }
    }

    pub(super) fn charge(&mut self, bytes: u64) -> Result<(), Fault> {
        let value = self.used_bytes.saturating_add(bytes);
        if value > self.allowed_bytes {
            let (limit, allowed) = (Limit::IndexBytes, self.allowed_bytes);
            return Err(Fault::Limit {
                limit,
                value,
                allowed,
                attribute: None,
            });
        }
        self.used_bytes = value;
        Ok(())
    }

    /// Charges for an entry, its extents not counted.
    pub(super) fn charge_entry(&mut self, entry: &Entry) -> Result<(), Fault> {
        let target = match &entry.kind {
            EntryKind::Symlink(target) | EntryKind::HardLink(target) => target.len(),
            _ => 0,
        };
        let xattrs = entry.metadata.xattrs.iter();
        let xattrs: u64 = xattrs
            .map(|(name, value)| XATTR_BYTES + (name.len() + value.len()) as u64)
            .sum();
        self.charge(ENTRY_BYTES + (entry.path.len() + target) as u64 + xattrs)
    }
}
