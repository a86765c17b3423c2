//! CRC32C as ext4 uses it (feature `metadata_csum`).
//!
//! The kernel's `ext4_chksum` (`fs/ext4/ext4.h`) is the raw CRC: it starts with the seed and does not invert the result,
//! unlike the checksum that libraries call CRC32C. Sums are chained: the file system's seed is the sum of its UUID, an
//! inode's seed continues it with the inode's number and generation.

/// A raw CRC32C that can be continued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Checksum(u32);

impl Checksum {
    /// Over nothing: the value that the superblock's checksum starts from.
    pub(super) const START: Self = Self(!0);

    /// The file system's seed (`s_csum_seed` in memory, `ext4_fill_super`).
    pub(super) fn of_file_system(uuid: &[u8; 16]) -> Self {
        Self::START.over(uuid)
    }

    /// The seed of what belongs to one inode (`i_csum_seed`): its directory blocks, extent blocks and itself. The
    /// generation is always 0 here.
    #[must_use]
    pub(super) fn of_inode(self, number: u32) -> Self {
        self.over(&number.to_le_bytes()).over(&0u32.to_le_bytes())
    }

    /// Continues the sum over `bytes`.
    #[must_use]
    pub(super) fn over(self, bytes: &[u8]) -> Self {
        Self(!crc32c::crc32c_append(!self.0, bytes))
    }

    /// The sum.
    pub(super) fn value(self) -> u32 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_the_inverse_of_the_published_check_value() {
        // CRC-32C of "123456789" is 0xE3069283 (RFC 3720, B.4 uses the same polynomial); ours lacks the final inversion.
        assert_eq!(!Checksum::START.over(b"123456789").value(), 0xE306_9283);
    }

    #[test]
    fn parts_add_up() {
        assert_eq!(
            Checksum::START.over(b"1234").over(b"56789"),
            Checksum::START.over(b"123456789")
        );
    }
}
