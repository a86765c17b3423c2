//! The thread that writes a download to its part file, and has it hashed in order.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Weak};

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::blob::access::Accesses;
use crate::blob::download::Job;
use crate::blob::hashing::Hashing;
use crate::blob::verify::mismatch;
use crate::blob::{Phase, Progress};
use crate::cache::Cache;
use crate::cache::part::Part;
use crate::digest::Digest;
use crate::error::{FetchError, FetchErrorKind};
use crate::local::LocalBlob;

/// From the network's side to the writer. A closed channel without one of the last two means that the download was dropped.
pub(super) enum Message {
    Chunk {
        offset: u64,
        bytes: Bytes,
    },
    /// Every byte has been sent.
    Finish,
    /// The download failed; `keep` what has arrived for a later one.
    Abandon {
        keep: bool,
    },
}

/// What the writer does, from an empty or resumed part to a published blob.
pub(super) struct Writer {
    pub(super) cache: Arc<Cache>,
    pub(super) digest: Digest,
    pub(super) size_bytes: u64,
    pub(super) registry: String,
    /// Knows the repositories that the blob is from.
    pub(super) accesses: Arc<Accesses>,
    pub(super) progress: Arc<Progress>,
    /// Kept alive from the verdict to the end of publishing, so that whoever comes in between joins the job instead of
    /// finding neither it nor the blob and starting another download.
    pub(super) job: Weak<Job>,
}

struct Written {
    file: std::fs::File,
    hashing: Hashing,
    /// Everything below has been written, and given to be hashed.
    position: u64,
    /// What has been written above it, from start to end.
    islands: BTreeMap<u64, u64>,
}

impl Writer {
    /// Opens the part; gives the byte at which the download has to go on, then takes messages. Blocking.
    ///
    /// `started` hears the position. The result says whether the blob was verified; then the phase has been set to it too.
    /// Bytes that an earlier process has left are hashed again and kept.
    pub(super) fn run(
        self,
        started: tokio::sync::oneshot::Sender<u64>,
        mut messages: mpsc::Receiver<Message>,
    ) -> Result<bool, FetchError> {
        let mut part = self
            .cache
            .open_part(&self.digest, &self.registry)
            .map_err(|error| self.failed(error))?;
        let outcome = self.write(&mut part, started, &mut messages);
        // Nothing more is taken; the network's side notices at its next send.
        drop(messages);
        match outcome {
            Ok(End::Complete(found)) if found == self.digest => {
                let _job = self.job.upgrade();
                self.progress.phase.send_replace(Phase::Verified);
                // The bytes are right whether or not the cache can keep them.
                if let Err(error) =
                    self.cache
                        .publish(part, &self.digest, self.size_bytes, &self.accesses.proven())
                {
                    tracing::warn!(%error, digest = %self.digest, "Failed to keep a blob in the cache");
                }
                Ok(true)
            }
            Ok(End::Complete(_)) => {
                // After a power failure the resumed front may not hold what was once written.
                let error = if part.resumable_bytes > 0 {
                    FetchError::transient(format!(
                        "unfinished copy of layer {} was damaged and has been removed",
                        self.digest
                    ))
                } else {
                    mismatch(&self.digest)
                };
                part.remove();
                Err(error)
            }
            Ok(End::Stopped { keep }) => {
                if keep {
                    self.cache.keep_part(part);
                } else {
                    part.remove();
                }
                Ok(false)
            }
            Err(error) => {
                part.remove();
                Err(self.failed(error))
            }
        }
    }

    fn write(
        &self,
        part: &mut Part,
        started: tokio::sync::oneshot::Sender<u64>,
        messages: &mut mpsc::Receiver<Message>,
    ) -> io::Result<End> {
        if part.resumable_bytes >= self.size_bytes {
            part.file().set_len(0)?;
            part.resumable_bytes = 0;
        }
        let reader = LocalBlob {
            file: Arc::new(part.open_reader()?),
            offset: 0,
            size_bytes: self.size_bytes,
        };
        // The cell is empty: a download has one writer.
        let _ = self.progress.file.set(reader);
        let mut written = Written {
            file: part.file().try_clone()?,
            hashing: Hashing::start(self.digest.algorithm(), self.size_bytes, part.file().try_clone()?)?,
            position: 0,
            islands: BTreeMap::new(),
        };
        if part.resumable_bytes > 0 {
            written.islands.insert(0, part.resumable_bytes);
            // Readers see this only with the first new byte: before that nobody has shown that the registry would give the
            // blob to the party that asks now.
            written.join_islands(|_| ())?;
        }
        if started.send(written.position).is_err() {
            return Ok(End::Stopped { keep: true });
        }
        while let Some(message) = messages.blocking_recv() {
            match message {
                Message::Chunk { offset, bytes } => {
                    let progress = &self.progress;
                    written.write(offset, bytes, |position| {
                        progress.available.send_replace(position);
                    })?;
                }
                Message::Finish => {
                    if written.position != self.size_bytes {
                        return Err(io::Error::other("download ended with a gap"));
                    }
                    return Ok(End::Complete(written.hashing.finish()?));
                }
                Message::Abandon { keep } => return Ok(End::Stopped { keep }),
            }
        }
        Ok(End::Stopped { keep: true })
    }

    fn failed(&self, error: io::Error) -> FetchError {
        let message = match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                "no space left in the blob cache for layer"
            }
            _ => "failed to write to the blob cache layer",
        };
        FetchError::with_source(FetchErrorKind::Io, format!("{message} {}", self.digest), error)
    }
}

enum End {
    Complete(Digest),
    Stopped { keep: bool },
}

impl Written {
    /// Writes a chunk. What lies below the position has been given to be hashed and must not change any more, so it is left
    /// out.
    fn write(&mut self, offset: u64, mut bytes: Bytes, mut advanced: impl FnMut(u64)) -> io::Result<()> {
        let skip = usize::try_from(self.position.saturating_sub(offset)).unwrap_or(usize::MAX);
        if skip >= bytes.len() {
            return Ok(());
        }
        let bytes = bytes.split_off(skip);
        let offset = offset.max(self.position);
        let end = offset + bytes.len() as u64;
        if offset == self.position {
            // Hashed while it is written.
            self.hashing.bytes(bytes.clone())?;
            self.file.write_all_at(&bytes, offset)?;
            self.position = end;
            advanced(end);
            self.join_islands(advanced)
        } else {
            self.file.write_all_at(&bytes, offset)?;
            let known = self.islands.entry(offset).or_insert(end);
            *known = end.max(*known);
            Ok(())
        }
    }

    /// Gives to be hashed what was written before its turn and has its turn now.
    fn join_islands(&mut self, mut advanced: impl FnMut(u64)) -> io::Result<()> {
        while let Some(entry) = self.islands.first_entry() {
            if *entry.key() > self.position {
                break;
            }
            let end = entry.remove();
            if end > self.position {
                self.hashing.written(self.position, end)?;
                self.position = end;
                advanced(end);
            }
        }
        Ok(())
    }
}
