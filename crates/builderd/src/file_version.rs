//! Whether a file is still the one that was read.

use std::{fs, os::unix::fs::MetadataExt as _, path::Path};

/// What differs between a file and the one that replaced it, or the same file after it was written to: where it is,
/// when content and inode changed, its size. A changed mode or owner counts too, so that a file that could not be read
/// is tried again once it can.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileVersion {
    device: u64,
    inode: u64,
    modified: (i64, i64),
    changed: (i64, i64),
    size: u64,
}

impl FileVersion {
    /// The version that a path leads to now, symbolic links followed; `None` when it leads nowhere.
    pub(crate) fn of(path: &Path) -> Option<Self> {
        let metadata = fs::metadata(path).ok()?;
        Some(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
            size: metadata.size(),
        })
    }
}
