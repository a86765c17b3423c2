//! Hashing a blob in order while it is written: beside the writing when the blob is large.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, SyncSender};
use std::thread::JoinHandle;

use bytes::Bytes;

use crate::digest::{Algorithm, Digest, Hasher};

/// A smaller blob is hashed in less time than handing its pieces over takes to pay.
const MIN_BESIDE_BYTES: u64 = 4 << 20;

/// Pieces that wait for the hashing thread. It is faster than writing, so one is enough to keep it busy.
const PIECES_IN_FLIGHT: usize = 1;

/// How much is read back at once of what was written out of order: what a core's own cache holds.
const READ_BACK_BYTES: usize = 256 << 10;

/// A blob's hash, as far as its bytes have been given.
pub(super) enum Hashing {
    Inline(Work),
    Beside(Beside),
}

/// What comes next in the blob.
enum Piece {
    /// These bytes.
    Bytes(Bytes),
    /// What stands in the file between these two places, and will not change any more.
    Written { from: u64, to: u64 },
}

pub(super) struct Work {
    hasher: Hasher,
    file: File,
    buffer: Vec<u8>,
    /// Nobody wants the digest any more.
    is_given_up: Arc<AtomicBool>,
}

/// A thread that hashes; told to end when this is dropped.
pub(super) struct Beside {
    /// `None` once everything was given.
    pieces: Option<SyncSender<Piece>>,
    thread: Option<JoinHandle<io::Result<Digest>>>,
    is_given_up: Arc<AtomicBool>,
}

impl Hashing {
    /// For a blob of so many bytes that is written to this file.
    pub(super) fn start(algorithm: Algorithm, size_bytes: u64, file: File) -> io::Result<Self> {
        let is_given_up = Arc::new(AtomicBool::new(false));
        let mut work = Work {
            hasher: Hasher::new(algorithm),
            file,
            buffer: Vec::new(),
            is_given_up: Arc::clone(&is_given_up),
        };
        if size_bytes < MIN_BESIDE_BYTES {
            return Ok(Self::Inline(work));
        }
        let (pieces, taken) = mpsc::sync_channel(PIECES_IN_FLIGHT);
        // Not from the runtime's pool: writers wait for this thread, and a pool full of them would never start it.
        let thread = std::thread::Builder::new()
            .name("blob-hash".to_owned())
            .spawn(move || {
                for piece in taken {
                    work.take(piece)?;
                }
                Ok(work.hasher.finish())
            })?;
        Ok(Self::Beside(Beside {
            pieces: Some(pieces),
            thread: Some(thread),
            is_given_up,
        }))
    }

    /// The next bytes of the blob.
    pub(super) fn bytes(&mut self, bytes: Bytes) -> io::Result<()> {
        self.give(Piece::Bytes(bytes))
    }

    /// The next bytes of the blob stand in the file.
    pub(super) fn written(&mut self, from: u64, to: u64) -> io::Result<()> {
        self.give(Piece::Written { from, to })
    }

    fn give(&mut self, piece: Piece) -> io::Result<()> {
        match self {
            Self::Inline(work) => work.take(piece),
            Self::Beside(beside) => {
                let pieces = beside.pieces.as_ref().ok_or_else(ended)?;
                match pieces.send(piece) {
                    Ok(()) => Ok(()),
                    // The thread takes no more only after an error, which it tells.
                    Err(_) => Err(beside.finish().err().unwrap_or_else(ended)),
                }
            }
        }
    }

    /// The digest of everything that was given.
    pub(super) fn finish(self) -> io::Result<Digest> {
        match self {
            Self::Inline(work) => Ok(work.hasher.finish()),
            Self::Beside(mut beside) => beside.finish(),
        }
    }
}

impl Work {
    fn take(&mut self, piece: Piece) -> io::Result<()> {
        match piece {
            Piece::Bytes(bytes) => {
                self.hasher.update(&bytes);
                Ok(())
            }
            Piece::Written { from, to } => self.read_back(from, to),
        }
    }

    /// From the page cache, as a rule.
    fn read_back(&mut self, from: u64, to: u64) -> io::Result<()> {
        let mut position = from;
        while position < to {
            if self.is_given_up.load(Ordering::Relaxed) {
                return Err(ended());
            }
            let left = usize::try_from(to - position).unwrap_or(usize::MAX);
            self.buffer.resize(left.min(READ_BACK_BYTES), 0);
            self.file.read_exact_at(&mut self.buffer, position)?;
            self.hasher.update(&self.buffer);
            position += self.buffer.len() as u64;
        }
        Ok(())
    }
}

impl Beside {
    /// Waits until everything that was given is hashed.
    fn finish(&mut self) -> io::Result<Digest> {
        self.pieces = None;
        let thread = self.thread.take().ok_or_else(ended)?;
        thread.join().map_err(|_| ended())?
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        // The thread is not waited for: it holds a descriptor and a buffer, and ends within one of them.
        self.is_given_up.store(true, Ordering::Relaxed);
    }
}

fn ended() -> io::Error {
    io::Error::other("hashing of the blob has ended")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_in_order_make_the_digest_whichever_way_they_come() {
        let content: Vec<u8> = (0..1_000_000_u32).flat_map(u32::to_le_bytes).collect();
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&content, 0).unwrap();
        let half = content.len() / 2;
        for (name, size_bytes) in [("inline", 1), ("beside", MIN_BESIDE_BYTES)] {
            for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
                let mut hashing = Hashing::start(algorithm, size_bytes, file.try_clone().unwrap()).unwrap();
                for chunk in content[..half].chunks(100_000) {
                    hashing.bytes(Bytes::copy_from_slice(chunk)).unwrap();
                }
                hashing.written(half as u64, content.len() as u64).unwrap();
                let expected = Digest::of(algorithm, &content);
                assert_eq!(hashing.finish().unwrap(), expected, "{name} {algorithm:?}");
            }
        }
    }

    #[test]
    fn what_cannot_be_read_back_is_an_error_and_no_digest() {
        for size_bytes in [1, MIN_BESIDE_BYTES] {
            let file = tempfile::tempfile().unwrap();
            let mut hashing = Hashing::start(Algorithm::Sha256, size_bytes, file).unwrap();
            // Beside, the error may come with a later piece, or at the end.
            let given = (0..10).try_for_each(|_| hashing.written(0, 10));
            let error = given.and_then(|()| hashing.finish()).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{size_bytes}");
        }
    }
}
