//! What an entry of a layer and an inode of the tree say of themselves.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Extended attributes by full name (`security.capability`, `user.comment`), in byte order of the names.
///
/// Values are kept byte-exact. POSIX ACLs stand here in the form in which tar and the kernel's `getxattr` carry them
/// (version 2); the image writer turns them into ext4's own form.
pub type Xattrs = BTreeMap<Vec<u8>, Vec<u8>>;

/// A point in time, as tar's PAX records have it: whole seconds since 1970 (negative before) plus nanoseconds.
///
/// `nanoseconds` is always in `0..1_000_000_000` and counts forward, so -0.25 s is `{ -1, 750_000_000 }`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Timestamp {
    /// Seconds since 1970-01-01T00:00:00Z, negative before.
    pub seconds: i64,
    /// Nanoseconds after `seconds`, `0..1_000_000_000`.
    pub nanoseconds: u32,
}

impl Timestamp {
    /// 1970-01-01T00:00:00Z: the time of directories that a layer implies but does not name.
    pub const EPOCH: Self = Self {
        seconds: 0,
        nanoseconds: 0,
    };

    /// A whole second.
    #[must_use]
    pub const fn from_seconds(seconds: i64) -> Self {
        Self {
            seconds,
            nanoseconds: 0,
        }
    }
}

/// A device number in Linux's split form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct DeviceNumber {
    /// 12 bits on disk (0..=4095).
    pub major: u32,
    /// 20 bits on disk (0..=1_048_575).
    pub minor: u32,
}

/// Owner, permissions, time and extended attributes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Metadata {
    /// Permission bits with setuid, setgid and sticky: `0..=0o7777`. Never type bits.
    pub mode: u16,
    /// Numeric owner; all 32 bits are kept.
    pub uid: u32,
    /// Numeric group; all 32 bits are kept.
    pub gid: u32,
    /// Time of last modification. Access and change times are set equal to it in the image.
    pub mtime: Timestamp,
    /// Extended attributes.
    pub xattrs: Xattrs,
}

impl Metadata {
    /// `mode`, owned by root, dated [`Timestamp::EPOCH`], without extended attributes.
    #[must_use]
    pub const fn root(mode: u16) -> Self {
        Self {
            mode,
            uid: 0,
            gid: 0,
            mtime: Timestamp::EPOCH,
            xattrs: Xattrs::new(),
        }
    }
}
