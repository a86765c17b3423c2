//! Reading a blob in order while it arrives.

use std::future::Future;
use std::io;
use std::os::unix::fs::FileExt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, ReadBuf};
use tokio::task::JoinHandle;

use crate::blob::{Phase, Shared, given_up};
use crate::digest::Digest;

/// Large enough that the hop to a blocking thread costs little beside the read itself.
const BUFFER_BYTES: usize = 256 * 1024;

/// The bytes of a [`Blob`](crate::Blob), from the first on.
///
/// A read waits for bytes that have not arrived yet and never yields any that have not. It ends after exactly the blob's
/// size; a download that fails makes the next read fail with the [`FetchError`](crate::FetchError) as the source of an
/// [`io::Error`]. The end of the stream does not mean that the digest is right: ask
/// [`Blob::verified`](crate::Blob::verified).
///
/// A slow reader holds up nothing but itself: the download goes to the disk at full speed.
pub struct BlobReader {
    shared: Arc<Shared>,
    position: u64,
    buffer: Vec<u8>,
    /// What of the buffer has been handed out.
    consumed: usize,
    state: State,
}

enum State {
    Idle,
    Waiting(Pin<Box<dyn Future<Output = io::Result<u64>> + Send + Sync>>),
    Reading(JoinHandle<io::Result<Vec<u8>>>),
}

impl BlobReader {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            position: 0,
            buffer: Vec::new(),
            consumed: 0,
            state: State::Idle,
        }
    }

    /// The digest that the blob must have.
    #[must_use]
    pub fn digest(&self) -> &Digest {
        &self.shared.digest
    }

    fn wait(&self) -> State {
        let shared = Arc::clone(&self.shared);
        let mut available = self.shared.progress.available.subscribe();
        let mut phase = self.shared.progress.phase.subscribe();
        let position = self.position;
        State::Waiting(Box::pin(async move {
            let error = tokio::select! {
                biased;
                refusal = shared.refused() => refusal,
                found = available.wait_for(|available| *available > position) => match found {
                    Ok(found) => return Ok(*found),
                    Err(_) => given_up(),
                },
                failed = phase.wait_for(|phase| matches!(phase, Phase::Failed(_))) => match failed.as_deref() {
                    Ok(Phase::Failed(error)) => error.clone(),
                    _ => given_up(),
                },
                late = shared.deadline.passed() => late,
            };
            Err(io::Error::other(error))
        }))
    }

    fn read(&mut self, available: u64) -> io::Result<State> {
        if let Some(refusal) = self.shared.refusal() {
            return Err(io::Error::other(refusal));
        }
        let blob = self
            .shared
            .progress
            .file
            .get()
            .cloned()
            .ok_or_else(|| io::Error::other("blob has no file"))?;
        let position = self.position;
        let length = usize::try_from(available - position)
            .unwrap_or(usize::MAX)
            .min(BUFFER_BYTES);
        let mut buffer = std::mem::take(&mut self.buffer);
        self.consumed = 0;
        Ok(State::Reading(tokio::task::spawn_blocking(move || {
            buffer.resize(length, 0);
            blob.file.read_exact_at(&mut buffer, blob.offset + position)?;
            Ok(buffer)
        })))
    }
}

impl AsyncRead for BlobReader {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        output: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            if this.consumed < this.buffer.len() {
                let length = output.remaining().min(this.buffer.len() - this.consumed);
                output.put_slice(&this.buffer[this.consumed..this.consumed + length]);
                this.consumed += length;
                return Poll::Ready(Ok(()));
            }
            match &mut this.state {
                State::Idle if this.position >= this.shared.size_bytes => return Poll::Ready(Ok(())),
                State::Idle => {
                    let available = *this.shared.progress.available.borrow();
                    this.state = if available > this.position {
                        this.read(available)?
                    } else {
                        this.wait()
                    };
                }
                State::Waiting(future) => {
                    let result = ready!(future.as_mut().poll(context));
                    this.state = State::Idle;
                    let available = result?;
                    this.state = this.read(available)?;
                }
                State::Reading(handle) => {
                    let result = ready!(Pin::new(handle).poll(context));
                    this.state = State::Idle;
                    this.buffer = result.map_err(io::Error::other)??;
                    this.position += this.buffer.len() as u64;
                }
            }
        }
    }
}

impl std::fmt::Debug for BlobReader {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("BlobReader")
            .field("digest", &self.shared.digest)
            .field("position", &self.position)
            .finish_non_exhaustive()
    }
}
