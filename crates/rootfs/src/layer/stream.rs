//! Decompressed bytes: counted, hashed, and handed on without a copy.

use std::{
    io::Read,
    panic,
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread::{self, Scope, ScopedJoinHandle},
};

use sha2::{Digest, Sha256};

use super::{LayerError, LayerLimits, compression::Decoder, error::Fault, limits::Limit, tar::ByteSource};

/// Bytes in one buffer. Large enough that a hand-over between threads costs nothing, small enough that buffers stay in
/// the processor's caches. A multiple of the tar block.
const BUFFER_BYTES: usize = 256 * 1024;

/// Buffers in use: one that is filled or parsed, the others waiting to be hashed.
const BUFFERS: usize = 4;

/// A buffer and how much of it is filled. Frozen once it is shared with the hasher.
type Buffer = Arc<Vec<u8>>;

/// The decompressed bytes of a layer.
pub(super) struct Stream<'l, 'scope, R> {
    decoder: Decoder<R>,
    limits: &'l LayerLimits,
    hasher: Hasher<'scope>,
    current: Option<(Buffer, usize)>,
    position: usize,
    /// Decompressed bytes so far, those in `current` included.
    produced_bytes: u64,
    ended: bool,
}

impl<'l, 'scope, R: Read> Stream<'l, 'scope, R> {
    /// Reads the start of `input`; hashes in a thread of `scope`.
    pub(super) fn open<'env>(
        input: R,
        limits: &'l LayerLimits,
        scope: &'scope Scope<'scope, 'env>,
    ) -> Result<Self, LayerError> {
        Ok(Self {
            decoder: Decoder::open(input)?,
            limits,
            hasher: Hasher::start(scope),
            current: None,
            position: 0,
            produced_bytes: 0,
            ended: false,
        })
    }

    /// Reads to the end, behind the archive's: the digest covers all of it. Gives digest and length.
    pub(super) fn finish(mut self) -> Result<([u8; 32], u64), LayerError> {
        loop {
            let count = self.chunk()?.len();
            if count == 0 {
                break;
            }
            self.consume(count);
        }
        Ok((self.hasher.finish(), self.produced_bytes))
    }

    /// Replaces the current buffer, which is used up, by the next one.
    fn refill(&mut self) -> Result<(), LayerError> {
        // Given up first, so that the hasher's reference is the last one.
        self.current = None;
        self.position = 0;
        let mut buffer = self.hasher.buffer();
        let bytes = Arc::get_mut(&mut buffer).expect("the hasher gives back what nobody else holds");
        let mut filled = 0;
        while filled < bytes.len() {
            let count = self.decoder.read(&mut bytes[filled..])?;
            if count == 0 {
                self.ended = true;
                break;
            }
            filled += count;
            self.produced_bytes += count as u64;
            self.check_limits()?;
        }
        self.hasher.update(&buffer, filled);
        self.current = Some((buffer, filled));
        Ok(())
    }

    fn check_limits(&self) -> Result<(), LayerError> {
        let exceeded = |limit, value, allowed| {
            Fault::Limit {
                limit,
                value,
                allowed,
                attribute: None,
            }
            .at(self.produced_bytes, &[])
        };
        let produced = self.produced_bytes;
        if produced > self.limits.max_output_bytes {
            return Err(exceeded(
                Limit::OutputBytes,
                produced,
                self.limits.max_output_bytes,
            ));
        }
        let compressed = self.decoder.compressed_bytes().max(1);
        if produced > self.limits.ratio_grace_bytes && produced / compressed > self.limits.max_ratio {
            return Err(exceeded(
                Limit::Ratio,
                produced / compressed,
                self.limits.max_ratio,
            ));
        }
        Ok(())
    }
}

impl<R: Read> ByteSource for Stream<'_, '_, R> {
    fn chunk(&mut self) -> Result<&[u8], LayerError> {
        let used_up = self
            .current
            .as_ref()
            .is_none_or(|(_, filled)| self.position == *filled);
        if used_up && !self.ended {
            self.refill()?;
        }
        Ok(match &self.current {
            Some((buffer, filled)) => &buffer[self.position..*filled],
            None => &[],
        })
    }

    fn consume(&mut self, count: usize) {
        self.position += count;
    }

    fn offset(&self) -> u64 {
        let filled = self.current.as_ref().map_or(0, |(_, filled)| *filled);
        self.produced_bytes - (filled - self.position) as u64
    }
}

/// SHA-256, in a thread of its own where one can be had.
///
/// Measured with `examples/measure_layer.rs` on 795 MB of `/usr/lib` as gzip, two processors with SHA instructions: 539 MB/s,
/// against 395 MB/s for inflating and hashing by turns and 549 MB/s for inflating alone. With one processor it is
/// 397 MB/s, so the hand-over costs nothing where it gains nothing.
enum Hasher<'scope> {
    Thread {
        full: SyncSender<(Buffer, usize)>,
        free: Receiver<Buffer>,
        /// Buffers not made yet.
        unmade: usize,
        thread: ScopedJoinHandle<'scope, [u8; 32]>,
    },
    Inline {
        digest: Sha256,
        buffer: Option<Buffer>,
    },
}

fn new_buffer() -> Buffer {
    Arc::new(vec![0; BUFFER_BYTES])
}

impl<'scope> Hasher<'scope> {
    fn start<'env>(scope: &'scope Scope<'scope, 'env>) -> Self {
        let (full, to_hash) = sync_channel::<(Buffer, usize)>(BUFFERS);
        let (hashed, free) = sync_channel(BUFFERS);
        let thread = thread::Builder::new()
            .name("layer-digest".to_owned())
            .spawn_scoped(scope, move || {
                let mut digest = Sha256::new();
                for (buffer, filled) in to_hash {
                    digest.update(&buffer[..filled]);
                    // Nobody waits for it when the parser has failed; the channel has room for all buffers.
                    let _ = hashed.send(buffer);
                }
                digest.finalize().into()
            });
        match thread {
            Ok(thread) => Self::Thread {
                full,
                free,
                unmade: BUFFERS,
                thread,
            },
            // A sandbox may allow only one thread.
            Err(_) => Self::Inline {
                digest: Sha256::new(),
                buffer: None,
            },
        }
    }

    /// A buffer that nobody else holds. Waits until one is hashed.
    fn buffer(&mut self) -> Buffer {
        match self {
            Self::Thread { free, unmade, .. } => match free.try_recv() {
                Ok(buffer) => buffer,
                Err(_) if *unmade > 0 => {
                    *unmade -= 1;
                    new_buffer()
                }
                // An error means that the thread has panicked; `finish` will say so.
                Err(_) => free.recv().unwrap_or_else(|_| new_buffer()),
            },
            Self::Inline { buffer, .. } => buffer.take().unwrap_or_else(new_buffer),
        }
    }

    fn update(&mut self, buffer: &Buffer, filled: usize) {
        match self {
            // As above for the error.
            Self::Thread { full, .. } => drop(full.send((Arc::clone(buffer), filled))),
            Self::Inline { digest, .. } => digest.update(&buffer[..filled]),
        }
    }

    fn finish(self) -> [u8; 32] {
        match self {
            Self::Thread { full, thread, .. } => {
                drop(full);
                thread
                    .join()
                    .unwrap_or_else(|payload| panic::resume_unwind(payload))
            }
            Self::Inline { digest, .. } => digest.finalize().into(),
        }
    }
}
