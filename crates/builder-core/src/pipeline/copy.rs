//! A copy of an image: one thread reads, one writes, one hashes what passes, so that the copy takes as long as the slowest.
//!
//! Holes stay holes. Where the file system is ext4 nothing goes through the page cache: an image was written past it
//! ([`direct`](super::direct)), so it would have to be filled from the disk, for nobody.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt as _,
    sync::{
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{Receiver, Sender, SyncSender, channel, sync_channel},
    },
};

use sha2::{Digest as _, Sha256};

use super::{
    direct::{self, ALIGNMENT, BUFFER_BYTES, Buffer},
    publish,
};

/// Pieces between two threads.
const QUEUE: usize = 2;

/// Pieces in memory: those in both queues, and one in the hands of each thread.
const PIECES: usize = 2 * QUEUE + 3;

/// A range of an image that is not a hole.
struct Piece {
    offset: u64,
    length: usize,
    buffer: Buffer,
}

/// A file, and the same without the page cache for as long as that works.
struct Access {
    plain: File,
    direct: Option<File>,
}

impl Access {
    fn attempt(
        &mut self,
        offset: u64,
        length: usize,
        mut call: impl FnMut(&File) -> io::Result<()>,
    ) -> io::Result<()> {
        let is_aligned = offset.is_multiple_of(ALIGNMENT as u64) && length.is_multiple_of(ALIGNMENT);
        if let Some(direct) = self.direct.as_ref().filter(|_| is_aligned) {
            match call(direct) {
                // A disk with larger sectors, or a file system that refuses it after all.
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => self.direct = None,
                result => return result,
            }
        }
        call(&self.plain)
    }
}

/// The part of a thread that reads.
pub(super) struct Reader {
    source: Access,
    size_bytes: u64,
    free: Receiver<Buffer>,
    pieces: SyncSender<Piece>,
}

/// The part of a thread that writes.
pub(super) struct Writer {
    target: Access,
    pieces: Receiver<Piece>,
    written: SyncSender<Piece>,
}

/// The part of a thread that hashes.
pub(super) struct Hasher {
    size_bytes: u64,
    written: Receiver<Piece>,
    free: Sender<Buffer>,
}

/// A copy of the first `size_bytes` of `source` into the empty `target`. The three parts run side by side; the first error
/// of one sets `given_up`, by which they all end.
pub(super) fn prepare(source: File, target: File, size_bytes: u64) -> io::Result<(Reader, Writer, Hasher)> {
    target.set_len(size_bytes)?;
    let (free, freed) = channel();
    for _ in 0..PIECES {
        let _ = free.send(Buffer::new());
    }
    let (pieces, read) = sync_channel(QUEUE);
    let (written, hashed) = sync_channel(QUEUE);
    let reader = Reader {
        source: Access {
            direct: direct::reopen(&source, File::options().read(true)),
            plain: source,
        },
        size_bytes,
        free: freed,
        pieces,
    };
    let writer = Writer {
        target: Access {
            direct: direct::reopen(&target, File::options().write(true)),
            plain: target,
        },
        pieces: read,
        written,
    };
    let hasher = Hasher {
        size_bytes,
        written: hashed,
        free,
    };
    Ok((reader, writer, hasher))
}

impl Reader {
    /// Reads to the end, or until the copy is given up.
    ///
    /// # Errors
    /// `UnexpectedEof` when the source was cut off since its size was looked at.
    pub(super) fn run(mut self, given_up: &AtomicBool) -> io::Result<()> {
        self.read(given_up)
            .inspect_err(|_| given_up.store(true, Ordering::Relaxed))
    }

    fn read(&mut self, given_up: &AtomicBool) -> io::Result<()> {
        let mut offset = 0;
        while offset < self.size_bytes {
            let data = publish::next_data(&self.source.plain, offset, self.size_bytes)?;
            offset = data.start;
            while offset < data.end && !given_up.load(Ordering::Relaxed) {
                let Ok(buffer) = self.free.recv() else {
                    return Ok(());
                };
                let left = usize::try_from(data.end - offset).unwrap_or(usize::MAX);
                let length = left.min(BUFFER_BYTES);
                let mut piece = Piece {
                    offset,
                    length,
                    buffer,
                };
                let bytes = piece.buffer.first(length);
                self.source
                    .attempt(offset, length, |file| file.read_exact_at(bytes, offset))?;
                offset += length as u64;
                if self.pieces.send(piece).is_err() {
                    return Ok(());
                }
            }
            if given_up.load(Ordering::Relaxed) {
                return Ok(());
            }
        }
        Ok(())
    }
}

impl Writer {
    /// Writes what was read, until nothing more comes.
    pub(super) fn run(mut self, given_up: &AtomicBool) -> io::Result<()> {
        self.write()
            .inspect_err(|_| given_up.store(true, Ordering::Relaxed))
    }

    fn write(&mut self) -> io::Result<()> {
        for mut piece in &self.pieces {
            let bytes = &*piece.buffer.first(piece.length);
            self.target.attempt(piece.offset, bytes.len(), |file| {
                file.write_all_at(bytes, piece.offset)
            })?;
            if self.written.send(piece).is_err() {
                break;
            }
        }
        Ok(())
    }
}

impl Hasher {
    /// SHA-256 of the copy in hexadecimal; of a part of it once it is given up. `done` counts.
    pub(super) fn run(self, done: &AtomicU64, given_up: &AtomicBool) -> String {
        let zeros = vec![0; 1 << 20];
        let mut hasher = Sha256::new();
        let mut offset = 0;
        let skip_to = |hasher: &mut Sha256, offset: &mut u64, end: u64| {
            while *offset < end && !given_up.load(Ordering::Relaxed) {
                let left = usize::try_from(end - *offset).unwrap_or(usize::MAX);
                let length = left.min(zeros.len());
                hasher.update(&zeros[..length]);
                *offset += length as u64;
                done.store(*offset, Ordering::Relaxed);
            }
        };
        for mut piece in self.written {
            skip_to(&mut hasher, &mut offset, piece.offset);
            hasher.update(piece.buffer.first(piece.length));
            offset += piece.length as u64;
            done.store(offset, Ordering::Relaxed);
            // The reader may have no use for it any more.
            let _ = self.free.send(piece.buffer);
        }
        skip_to(&mut hasher, &mut offset, self.size_bytes);
        hex::encode(hasher.finalize())
    }
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::MetadataExt, thread};

    use super::*;

    type Copied = (io::Result<()>, io::Result<()>, String);

    fn copy(source: &File, target: &File, size_bytes: u64, given_up: &AtomicBool) -> Copied {
        let (source, target) = (source.try_clone().unwrap(), target.try_clone().unwrap());
        let (reader, writer, hasher) = prepare(source, target, size_bytes).unwrap();
        let done = AtomicU64::new(0);
        let copied = thread::scope(|scope| {
            let reading = scope.spawn(|| reader.run(given_up));
            let writing = scope.spawn(|| writer.run(given_up));
            let hash = hasher.run(&done, given_up);
            (reading.join().unwrap(), writing.join().unwrap(), hash)
        });
        assert!(done.into_inner() <= size_bytes);
        copied
    }

    /// Files where packages are built, which may be a disk, and in memory, where nothing is direct.
    fn places() -> Vec<tempfile::TempDir> {
        let places = [env!("CARGO_MANIFEST_DIR"), "/dev/shm"];
        places
            .into_iter()
            .filter_map(|place| tempfile::tempdir_in(place).ok())
            .collect()
    }

    fn open(place: &tempfile::TempDir, name: &str) -> File {
        let path = place.path().join(name);
        File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(path)
            .unwrap()
    }

    #[test]
    fn a_copy_has_the_same_bytes_and_holes() {
        for place in places() {
            for size in [40 << 20, (40 << 20) + 123, 0] {
                let (source, target) = (
                    open(&place, &format!("source-{size}")),
                    open(&place, &format!("target-{size}")),
                );
                source.set_len(size).unwrap();
                if size > 0 {
                    source.write_all_at(&[1; 5000], 0).unwrap();
                    source.write_all_at(&vec![2; 20 << 20], 10 << 20).unwrap();
                    source.write_all_at(b"end", size - 3).unwrap();
                }
                let (read, written, hash) = copy(&source, &target, size, &AtomicBool::new(false));
                read.and(written).unwrap();
                let content = |file: &File| {
                    let mut bytes = vec![0; usize::try_from(size).unwrap()];
                    file.read_exact_at(&mut bytes, 0).unwrap();
                    bytes
                };
                assert!(content(&source) == content(&target), "{size}");
                assert_eq!(hash, hex::encode(Sha256::digest(content(&target))));
                assert_eq!(target.metadata().unwrap().len(), size);
                let allocated = |file: &File| {
                    file.sync_all().unwrap();
                    file.metadata().unwrap().blocks() * 512
                };
                assert!(allocated(&target) <= allocated(&source) + (1 << 20));
                if size > 0 {
                    // Not the same file: a write to one is none to the other.
                    source.write_all_at(b"x", 0).unwrap();
                    assert_eq!(content(&target)[0], 1);
                }
            }
        }
    }

    #[test]
    fn a_source_that_is_cut_off_meanwhile_ends_in_an_error() {
        for place in places() {
            let source = open(&place, "source");
            source.write_all_at(&[1; 8192], 0).unwrap();
            let mut source = Access {
                direct: direct::reopen(&source, File::options().read(true)),
                plain: source,
            };
            let mut buffer = Buffer::new();
            let read = source.attempt(8192, 4096, |file| file.read_exact_at(buffer.first(4096), 8192));
            assert_eq!(read.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        }
    }

    #[test]
    fn all_parts_end_when_one_cannot_go_on() {
        let place = tempfile::tempdir().unwrap();
        let source = open(&place, "source");
        source.write_all_at(&vec![1; 64 << 20], 0).unwrap();
        // Given up before it begins; and a target that takes nothing.
        let (read, written, _) = copy(&source, &open(&place, "target"), 64 << 20, &AtomicBool::new(true));
        assert!(read.is_ok() && written.is_ok());
        open(&place, "read-only").set_len(64 << 20).unwrap();
        let read_only = File::open(place.path().join("read-only")).unwrap();
        let (reader, mut writer, hasher) = prepare(source, open(&place, "other"), 64 << 20).unwrap();
        writer.target = Access {
            plain: read_only,
            direct: None,
        };
        let (done, given_up) = (AtomicU64::new(0), AtomicBool::new(false));
        thread::scope(|scope| {
            let reading = scope.spawn(|| reader.run(&given_up));
            let writing = scope.spawn(|| writer.run(&given_up));
            hasher.run(&done, &given_up);
            assert!(reading.join().unwrap().is_ok());
            assert_eq!(
                writing.join().unwrap().unwrap_err().raw_os_error(),
                Some(9),
                "EBADF"
            );
        });
    }
}
