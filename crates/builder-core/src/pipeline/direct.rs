//! Contents written past the page cache, where the kernel cannot share blocks between files.
//!
//! A copy through the page cache takes as many fresh pages as the image has, which this process never looks at again, and
//! writes them out afterwards. Written directly they take no memory and are on the disk at once; what reads them next is a
//! virtual machine, with a cache of its own.

use std::{
    fs::{File, OpenOptions},
    io,
    os::{
        fd::AsRawFd as _,
        unix::fs::{FileExt as _, OpenOptionsExt as _},
    },
};

use rootfs::pack::Pack;
use rustix::fs::OFlags;

/// `EXT4_SUPER_MAGIC`, statfs(2). Others share blocks (XFS, btrfs) or are no disk of this machine.
const EXT4: i64 = 0xef53;

/// Where memory for direct writes begins: at a page, which is enough for every disk. open(2).
pub(super) const ALIGNMENT: usize = 4096;

/// Bytes of one write: the disk is kept busy, and the memory counts for little.
pub(super) const BUFFER_BYTES: usize = 2 << 20;

/// Less is copied by the kernel: each direct write waits for the disk.
const MIN_BYTES: u64 = 512 << 10;

/// Memory that a disk can read from and write to directly.
pub(super) struct Buffer {
    bytes: Vec<u8>,
    /// Where an aligned page begins.
    start: usize,
}

impl Buffer {
    /// [`BUFFER_BYTES`] of zeros.
    pub(super) fn new() -> Self {
        let bytes = vec![0; BUFFER_BYTES + ALIGNMENT];
        // In theory it may not know; then direct access says EINVAL.
        let start = bytes.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT);
        Self { bytes, start }
    }

    /// The first `length` bytes, of at most [`BUFFER_BYTES`].
    pub(super) fn first(&mut self, length: usize) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + length]
    }
}

/// Another descriptor of `file` whose reads or writes go past the page cache. `None` where it is of no use or cannot be
/// had.
pub(super) fn reopen(file: &File, options: &mut OpenOptions) -> Option<File> {
    let found = rustix::fs::fstatfs(file).ok()?;
    if i128::from(found.f_type) != i128::from(EXT4) {
        return None;
    }
    let flags = i32::try_from(OFlags::DIRECT.bits()).ok()?;
    // The file may have no name that could be trusted to be still its own.
    options
        .custom_flags(flags)
        .open(format!("/proc/self/fd/{}", file.as_raw_fd()))
        .ok()
}

/// Writes directly to an image.
pub(super) struct Direct {
    image: File,
    buffer: Buffer,
}

impl Direct {
    /// `None` where it is of no use or cannot be had.
    pub(super) fn open(image: &File) -> Option<Self> {
        let image = reopen(image, File::options().write(true))?;
        let buffer = Buffer::new();
        Some(Self { image, buffer })
    }

    /// Copies whole blocks. `false` when nothing is wrong but that this is not the way for them; some of them may be there.
    pub(super) fn copy(
        &mut self,
        pack: &Pack,
        pack_offset: u64,
        image_offset: u64,
        length: u64,
    ) -> io::Result<bool> {
        if length < MIN_BYTES {
            return Ok(false);
        }
        let mut done = 0;
        while done < length {
            let count = usize::try_from(length - done).map_or(BUFFER_BYTES, |left| left.min(BUFFER_BYTES));
            let buffer = self.buffer.first(count);
            pack.read_exact_at(buffer, pack_offset + done)?;
            match self.image.write_all_at(buffer, image_offset + done) {
                Ok(()) => done += count as u64,
                // A disk with larger sectors, or a file system that refuses it after all.
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn what_is_written_directly_is_what_was_in_the_pack() {
        // Where it is of no use there is nothing to be tested.
        let image = tempfile::tempfile_in(env!("CARGO_MANIFEST_DIR")).or_else(|_| tempfile::tempfile());
        let image = image.unwrap();
        let Some(mut direct) = Direct::open(&image) else {
            return;
        };
        let pack: Arc<[u8]> = (0..5_u32 << 20).map(|nth| (nth / 3).to_le_bytes()[0]).collect();
        let length = (3 << 20) + 4096;
        image.set_len(6 << 20).unwrap();
        image.write_all_at(b"structures", 4096).unwrap();
        if !direct
            .copy(&Pack::Memory(Arc::clone(&pack)), 8192, 1 << 20, length)
            .unwrap()
        {
            return;
        }
        let mut written = vec![0; 6 << 20];
        image.read_exact_at(&mut written, 0).unwrap();
        let length = usize::try_from(length).unwrap();
        assert!(written[1 << 20..][..length] == pack[8192..][..length]);
        assert_eq!(&written[4096..4106], b"structures");
        assert!(written[(1 << 20) + length..].iter().all(|byte| *byte == 0));
        assert!(!direct.copy(&Pack::Memory(pack), 0, 0, 4096).unwrap());
    }
}
