//! Inodes.
//!
//! 256 bytes (`struct ext4_inode` in `fs/ext4/ext4.h`):
//!
//! | offset | fields |
//! |---|---|
//! | 0 | `i_mode` u16, `i_uid` low u16, `i_size_lo` u32, `i_atime`, `i_ctime`, `i_mtime`, `i_dtime` u32 |
//! | 24 | `i_gid` low u16, `i_links_count` u16, `i_blocks_lo` u32, `i_flags` u32, `i_version` low u32 |
//! | 40 | `i_block`, 60 bytes: extent tree, target of a short symbolic link, or device number |
//! | 100 | `i_generation` u32, `i_file_acl_lo` u32 (the attribute block), `i_size_high` u32, 4 unused bytes |
//! | 116 | `i_blocks_high`, `i_file_acl_high`, uid high, gid high, `i_checksum_lo`, reserved: u16 each |
//! | 128 | `i_extra_isize` u16, `i_checksum_hi` u16, extra bits of ctime, mtime, atime u32, `i_crtime` and its extra bits u32, `i_version_hi`, `i_projid` u32 |
//! | 160 | extended attributes |
//!
//! All four times are the modification time: access and change times of a build would be the clock's. Generation and
//! version are 0.

use super::{
    checksum::Checksum,
    format::{EXTRA_INODE_BYTES, INODE_BYTES, high_u16, high_u32, low_u16, low_u32, put_u16, put_u32},
    xattr::InodeArea,
};
use crate::{DeviceNumber, Timestamp};

/// `EXT4_EXTENTS_FL`: `i_block` holds an extent tree.
pub(super) const FLAG_EXTENTS: u32 = 0x8_0000;
/// `EXT4_INDEX_FL`: the directory is indexed.
pub(super) const FLAG_INDEX: u32 = 0x1000;

/// Largest file: 2^32 - 1 blocks, since the last block number stands for "none" (`ext4_max_size`, `EXT_MAX_BLOCKS`).
pub(super) const MAX_FILE_BYTES: u64 = (u32::MAX as u64) * 4096;
/// Longest target of a symbolic link that stands in the inode: 60 bytes less a NUL.
pub(super) const MAX_SHORT_LINK: usize = 59;
/// Longest target at all: a block less a NUL (`ext4_symlink`), which is also `PATH_MAX` less a NUL.
pub(super) const MAX_LONG_LINK: usize = 4095;
/// Most names of an inode, and most links of a directory that are counted (`EXT4_LINK_MAX`).
pub(super) const MAX_LINKS: u32 = 65_000;

/// The first second that ext4 can express, 1901-12-13.
const FIRST_SECOND: i64 = -(1 << 31);
/// The last one, 2446-05-10: 34 bits counted from there (`EXT4_EXTRA_TIMESTAMP_MAX`).
const LAST_SECOND: i64 = FIRST_SECOND + (1 << 34) - 1;

/// What an inode says.
#[derive(Clone, Debug)]
pub(super) struct Record {
    /// Type and permissions.
    pub(super) mode: u16,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) size: u64,
    pub(super) links: u16,
    /// Blocks of 4 KiB: content, extent tree and attribute block.
    pub(super) blocks: u64,
    pub(super) flags: u32,
    pub(super) content: [u8; 60],
    pub(super) mtime: Timestamp,
    /// 0 for none.
    pub(super) xattr_block: u64,
    pub(super) xattrs: InodeArea,
}

impl Record {
    /// A reserved inode: owned by root, of 1970, with nothing in it.
    pub(super) fn reserved(mode: u16, size: u64, blocks: u64, flags: u32, content: [u8; 60]) -> Self {
        let xattrs = [0; INODE_BYTES - 128 - EXTRA_INODE_BYTES as usize];
        let mtime = Timestamp::EPOCH;
        Self {
            mode,
            uid: 0,
            gid: 0,
            size,
            links: 1,
            blocks,
            flags,
            content,
            mtime,
            xattr_block: 0,
            xattrs,
        }
    }

    /// The bytes of the inode of that number.
    pub(super) fn encode(&self, number: u32, file_system: Checksum) -> [u8; INODE_BYTES] {
        let mut bytes = [0; INODE_BYTES];
        let (seconds, extra) = encode_time(self.mtime);
        // `i_blocks` counts sectors of 512 bytes in 48 bits (feature `huge_file`).
        let sectors = self.blocks * 8;
        put_u16(&mut bytes, 0, self.mode);
        put_u16(&mut bytes, 2, low_u16(u64::from(self.uid)));
        put_u32(&mut bytes, 4, low_u32(self.size));
        put_u32(&mut bytes, 8, seconds);
        put_u32(&mut bytes, 12, seconds);
        put_u32(&mut bytes, 16, seconds);
        put_u16(&mut bytes, 24, low_u16(u64::from(self.gid)));
        put_u16(&mut bytes, 26, self.links);
        put_u32(&mut bytes, 28, low_u32(sectors));
        put_u32(&mut bytes, 32, self.flags);
        bytes[40..100].copy_from_slice(&self.content);
        put_u32(&mut bytes, 104, low_u32(self.xattr_block));
        put_u32(&mut bytes, 108, high_u32(self.size));
        put_u16(&mut bytes, 116, low_u16(u64::from(high_u32(sectors))));
        put_u16(&mut bytes, 118, low_u16(u64::from(high_u32(self.xattr_block))));
        put_u16(&mut bytes, 120, high_u16(self.uid));
        put_u16(&mut bytes, 122, high_u16(self.gid));
        put_u16(&mut bytes, 128, EXTRA_INODE_BYTES);
        put_u32(&mut bytes, 132, extra);
        put_u32(&mut bytes, 136, extra);
        put_u32(&mut bytes, 140, extra);
        put_u32(&mut bytes, 144, seconds);
        put_u32(&mut bytes, 148, extra);
        bytes[160..].copy_from_slice(&self.xattrs);
        // Over the whole inode with zeros in place of the sum, seeded by the inode's own number (`ext4_inode_csum`).
        let sum = file_system.of_inode(number).over(&bytes).value();
        put_u16(&mut bytes, 124, low_u16(u64::from(sum)));
        put_u16(&mut bytes, 130, high_u16(sum));
        bytes
    }
}

/// `i_block` of a device (`ext4_set_inode_flags`'s neighbours `old_encode_dev` and `new_encode_dev` in
/// `include/linux/kdev_t.h`): the old form in word 0 if both numbers fit 8 bits, else the new one in word 1. `None`
/// when the new form has no room.
pub(super) fn encode_device(device: DeviceNumber) -> Option<[u8; 60]> {
    let DeviceNumber { major, minor } = device;
    let mut content = [0; 60];
    if major < 256 && minor < 256 {
        put_u32(&mut content, 0, major << 8 | minor);
    } else if major < 1 << 12 && minor < 1 << 20 {
        put_u32(
            &mut content,
            4,
            (minor & 0xff) | major << 8 | (minor & !0xff) << 12,
        );
    } else {
        return None;
    }
    Some(content)
}

/// The low 32 bits of the seconds, and the extra word: two more bits of the seconds, 30 of nanoseconds
/// (`ext4_encode_extra_time`). The low bits count as signed, so the two extra bits are what has to be added to them.
/// Times that ext4 cannot express become the nearest whole second that it can.
fn encode_time(time: Timestamp) -> (u32, u32) {
    let seconds = time.seconds.clamp(FIRST_SECOND, LAST_SECOND);
    let nanoseconds = if seconds == time.seconds {
        time.nanoseconds.min(999_999_999)
    } else {
        0
    };
    let low = low_u32(seconds.cast_unsigned());
    let epoch = (seconds - i64::from(low.cast_signed())) >> 32;
    (low, nanoseconds << 2 | low_u32(epoch.cast_unsigned() & 3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_split_and_clamped() {
        let time = |seconds, nanoseconds| encode_time(Timestamp { seconds, nanoseconds });
        let cases = [
            ("epoch", time(0, 0), (0, 0)),
            (
                "before 1970",
                time(-1, 750_000_000),
                (0xffff_ffff, 750_000_000 << 2),
            ),
            ("first second", time(-(1 << 31), 5), (0x8000_0000, 5 << 2)),
            ("2038", time(1 << 31, 1), (0x8000_0000, 1 << 2 | 1)),
            ("2106", time((1 << 32) - 1, 0), (0xffff_ffff, 1)),
            ("after 2106", time(1 << 32, 0), (0, 1)),
            (
                "last second",
                time(15_032_385_535, 999_999_999),
                (0x7fff_ffff, 999_999_999 << 2 | 3),
            ),
            ("too late", time(15_032_385_536, 7), (0x7fff_ffff, 3)),
            ("too early", time(i64::MIN, 7), (0x8000_0000, 0)),
        ];
        for (name, actual, expected) in cases {
            assert_eq!(actual, expected, "{name}");
        }
    }

    #[test]
    fn device_numbers_have_two_forms() {
        let words = |major, minor| {
            encode_device(DeviceNumber { major, minor })
                .map(|content| (content[..4].to_vec(), content[4..8].to_vec()))
        };
        assert_eq!(words(1, 3), Some((vec![3, 1, 0, 0], vec![0; 4])));
        assert_eq!(words(8, 300), Some((vec![0; 4], vec![0x2c, 8, 0x10, 0])));
        assert_eq!(words(4095, 1_048_575), Some((vec![0; 4], vec![0xff; 4])));
        assert_eq!(words(4096, 0), None);
        assert_eq!(words(0, 1 << 20), None);
    }
}
