//! How much one layer may ask for.

use std::fmt;

/// Bounds on one layer, enforced while it streams: nothing beyond a bound is kept in memory or written.
///
/// The defaults suit images from the internet; a caller that knows its tenant's disk lowers
/// [`max_output_bytes`](Self::max_output_bytes).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LayerLimits {
    /// Entries, extended headers not counted. 2,000,000.
    pub max_entries: u64,
    /// Bytes of one path component. 255, what ext4 holds.
    pub max_name_bytes: u64,
    /// Bytes of a path or of a link's target. 4,096, Linux' `PATH_MAX`.
    pub max_path_bytes: u64,
    /// Components of a path; empty ones and `.` are not counted. 255.
    pub max_depth: u64,
    /// Segments of one sparse file's map. 65,536.
    pub max_sparse_segments: u64,
    /// Bytes of one extended attribute's value. 65,536, the kernel's `XATTR_SIZE_MAX`.
    pub max_xattr_value_bytes: u64,
    /// Bytes of all names and values of one entry's extended attributes. 131,072. What the image can hold is less and
    /// is checked by the image writer.
    pub max_xattrs_bytes: u64,
    /// Bytes of one PAX header or GNU long name. 1 MiB.
    pub max_extended_header_bytes: u64,
    /// Bytes of one file, holes included. 16 TiB − 4 KiB, what ext4 holds.
    pub max_file_size_bytes: u64,
    /// Bytes of the layer when decompressed, and, on its own, bytes of the pack. 128 GiB.
    pub max_output_bytes: u64,
    /// Memory that the index may take, by the estimate that [`Limit::IndexBytes`] describes. 1 GiB.
    pub max_index_bytes: u64,
    /// Decompressed bytes for each compressed one, once [`ratio_grace_bytes`](Self::ratio_grace_bytes) are past. 200.
    pub max_ratio: u64,
    /// So many decompressed bytes are not held against [`max_ratio`](Self::max_ratio). 64 MiB.
    pub ratio_grace_bytes: u64,
}

impl Default for LayerLimits {
    fn default() -> Self {
        Self {
            max_entries: 2_000_000,
            max_name_bytes: 255,
            max_path_bytes: 4096,
            max_depth: 255,
            max_sparse_segments: 65_536,
            max_xattr_value_bytes: 65_536,
            max_xattrs_bytes: 131_072,
            max_extended_header_bytes: 1 << 20,
            max_file_size_bytes: (16 << 40) - 4096,
            max_output_bytes: 128 << 30,
            max_index_bytes: 1 << 30,
            max_ratio: 200,
            ratio_grace_bytes: 64 << 20,
        }
    }
}

/// Which bound of [`LayerLimits`] was passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Limit {
    /// [`LayerLimits::max_entries`].
    Entries,
    /// [`LayerLimits::max_name_bytes`].
    NameBytes,
    /// [`LayerLimits::max_path_bytes`].
    PathBytes,
    /// [`LayerLimits::max_depth`].
    Depth,
    /// [`LayerLimits::max_sparse_segments`].
    SparseSegments,
    /// The kernel's `XATTR_NAME_MAX`, 255 bytes.
    XattrNameBytes,
    /// [`LayerLimits::max_xattr_value_bytes`].
    XattrValueBytes,
    /// [`LayerLimits::max_xattrs_bytes`].
    XattrsBytes,
    /// [`LayerLimits::max_extended_header_bytes`].
    ExtendedHeaderBytes,
    /// [`LayerLimits::max_file_size_bytes`].
    FileSizeBytes,
    /// [`LayerLimits::max_output_bytes`].
    OutputBytes,
    /// [`LayerLimits::max_index_bytes`]: 256 bytes for each entry and 64 for each extended attribute, plus paths, link
    /// targets, attribute names and values, plus 24 bytes for each extent.
    IndexBytes,
    /// [`LayerLimits::max_ratio`].
    Ratio,
}

impl fmt::Display for Limit {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Entries => "number of entries",
            Self::NameBytes => "bytes in a name",
            Self::PathBytes => "bytes in a path",
            Self::Depth => "depth of a path",
            Self::SparseSegments => "segments of a sparse file",
            Self::XattrNameBytes => "bytes in an extended attribute's name",
            Self::XattrValueBytes => "bytes in an extended attribute",
            Self::XattrsBytes => "bytes in an entry's extended attributes",
            Self::ExtendedHeaderBytes => "bytes in an extended header",
            Self::FileSizeBytes => "bytes in a file",
            Self::OutputBytes => "decompressed bytes",
            Self::IndexBytes => "bytes of memory for the index",
            Self::Ratio => "decompressed bytes per compressed byte",
        })
    }
}
