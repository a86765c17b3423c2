//! Where an image is written to.

use std::{fs::File, io, os::unix::fs::FileExt};

use rustix::{fs::copy_file_range, io::Errno};

use crate::pack::Pack;

/// Bytes copied at once where the kernel does not copy by itself: large enough that calls do not count, small enough
/// to stay in a processor's cache.
const COPY_BUFFER_BYTES: usize = 256 << 10;

/// Takes an image in pieces, at any offset, from any thread.
///
/// What was never written reads as zero: the writer skips zero blocks.
pub trait ImageSink: Sync {
    /// Gives the image its length in bytes, all of them zero. Called once, before anything is written.
    ///
    /// # Errors
    /// Whatever the storage reports, such as `StorageFull`.
    fn set_len(&self, length: u64) -> io::Result<()>;

    /// Writes all of `bytes` at `offset`.
    ///
    /// # Errors
    /// Whatever the storage reports.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Fills `buffer` with what was written from `offset` on. Only the checksum of the image needs it.
    ///
    /// # Errors
    /// `Unsupported` unless the sink can be read; whatever the storage reports.
    fn read_back(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let _ = (buffer, offset);
        Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "this sink cannot be read back",
        ))
    }

    /// Copies `length` bytes of a pack into the image. By default they are read and written; a sink that shares a file
    /// system with the pack can let the kernel copy or share them.
    ///
    /// # Errors
    /// `UnexpectedEof` when the pack is too short; whatever pack or storage report.
    fn copy_from_pack(
        &self,
        pack: &Pack,
        pack_offset: u64,
        image_offset: u64,
        length: u64,
    ) -> io::Result<()> {
        copy_by_reading(self, pack, pack_offset, image_offset, length)
    }
}

/// A file opened for reading and writing. Holes stay holes, and the kernel copies between files where it can: on XFS
/// and btrfs by sharing the blocks.
impl ImageSink for File {
    fn set_len(&self, length: u64) -> io::Result<()> {
        // Whatever a caller left in the file would show through the holes.
        Self::set_len(self, 0)?;
        Self::set_len(self, length)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }

    fn read_back(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.read_exact_at(buffer, offset)
    }

    fn copy_from_pack(
        &self,
        pack: &Pack,
        pack_offset: u64,
        image_offset: u64,
        length: u64,
    ) -> io::Result<()> {
        let done = match pack {
            Pack::File(source) => copy_in_kernel(source, pack_offset, self, image_offset, length)?,
            Pack::Memory(_) => 0,
        };
        copy_by_reading(self, pack, pack_offset + done, image_offset + done, length - done)
    }
}

/// `copy_file_range` until it is done or says that it cannot; returns how far it came. A source that ends early is
/// left to the reading copy, which reports it.
fn copy_in_kernel(source: &File, from: u64, target: &File, to: u64, length: u64) -> io::Result<u64> {
    let mut done = 0;
    while done < length {
        let (mut from, mut to) = (from + done, to + done);
        // The kernel copies at most 2 GiB less a page at once.
        let wanted = usize::try_from(length - done).unwrap_or(usize::MAX).min(1 << 30);
        match copy_file_range(source, Some(&mut from), target, Some(&mut to), wanted) {
            Ok(0) => break,
            Ok(copied) => done += copied as u64,
            Err(Errno::INTR) => {}
            // Different file systems before Linux 5.19, file systems without support, or a sandbox without the call.
            Err(Errno::XDEV | Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS | Errno::PERM) => break,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(done)
}

fn copy_by_reading(
    sink: &(impl ImageSink + ?Sized),
    pack: &Pack,
    pack_offset: u64,
    image_offset: u64,
    length: u64,
) -> io::Result<()> {
    let mut buffer = vec![0; COPY_BUFFER_BYTES.min(usize::try_from(length).unwrap_or(usize::MAX))];
    let mut done = 0;
    while done < length {
        let count = buffer
            .len()
            .min(usize::try_from(length - done).unwrap_or(usize::MAX));
        pack.read_exact_at(&mut buffer[..count], pack_offset + done)?;
        sink.write_at(&buffer[..count], image_offset + done)?;
        done += count as u64;
    }
    Ok(())
}
