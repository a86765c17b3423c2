//! The bytes of a layer on their way to the worker that indexes it.

use std::{fs::File, io, os::fd::OwnedFd, pin::pin, time::Duration};

use oci_fetch::Blob;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::unix::pipe,
};

use super::{Work, fetch};
use crate::{error::BuildError, worker::input_pipe};

/// Bytes that are handed to a worker at once, and that its pipe holds.
const FEED_BYTES: usize = 256 << 10;
const PIPE_BYTES: usize = 1 << 20;

/// How often it is looked at how far a worker is in its file.
const INTERVAL: Duration = Duration::from_millis(200);

/// Where a worker's bytes come from, as this side of it sees them.
pub(super) enum Input {
    /// They are fed while they arrive.
    Pipe(pipe::Sender),
    /// It has the file: all of them are there. The position is the worker's too.
    File(File),
}

impl Input {
    /// The worker's descriptor, and this side of it: the file where all bytes are at hand, else a pipe.
    pub(super) async fn open(blob: &Blob) -> io::Result<(OwnedFd, Self)> {
        if let Some(file) = blob.file_at_hand().await {
            return Ok((file.try_clone()?.into(), Self::File(file)));
        }
        let (theirs, feed) = input_pipe()?;
        // More than the default lets inflate and download run apart; less is only slower.
        let _ = rustix::pipe::fcntl_setpipe_size(&theirs, PIPE_BYTES);
        Ok((theirs, Self::Pipe(feed)))
    }
}

/// How the feeding of a worker ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fed {
    /// The worker has all bytes, and they are the right ones.
    Verified,
    /// The worker takes no more; its events say why.
    Refused,
}

/// Brings a worker its bytes, or waits until those that it has are known to be right.
pub(super) async fn feed(work: &Work<'_>, blob: &Blob, input: Input) -> Result<Fed, BuildError> {
    match input {
        Input::Pipe(pipe) => feed_pipe(work, blob, pipe).await,
        Input::File(file) => follow(work, blob, &file).await,
    }
}

/// Waits until the bytes of a file that a worker reads are known to be right, and counts meanwhile what it has read.
async fn follow(work: &Work<'_>, blob: &Blob, file: &File) -> Result<Fed, BuildError> {
    let mut interval = tokio::time::interval(INTERVAL);
    let mut verified = pin!(blob.verified());
    let mut counted = 0;
    loop {
        tokio::select! {
            verified = &mut verified => {
                verified.map_err(|error| fetch::explain(&error))?;
                work.progress.advance(blob.size_bytes() - counted);
                return Ok(Fed::Verified);
            }
            // Whatever the worker makes of the position, it stays within the blob and never goes back.
            _ = interval.tick() => {
                let position = rustix::fs::tell(file).unwrap_or(0);
                let read = position.clamp(counted, blob.size_bytes());
                work.progress.advance(read - counted);
                counted = read;
            }
        }
    }
}

async fn feed_pipe(work: &Work<'_>, blob: &Blob, mut pipe: pipe::Sender) -> Result<Fed, BuildError> {
    let mut reader = blob.reader();
    let mut buffer = vec![0; FEED_BYTES];
    loop {
        let length = match reader.read(&mut buffer).await {
            Ok(0) => break,
            Ok(length) => length,
            Err(error) => {
                // The blob knows better than its reader what went wrong.
                blob.verified().await.map_err(|error| fetch::explain(&error))?;
                return Err(BuildError::from_io("read a layer", error));
            }
        };
        if let Err(error) = pipe.write_all(&buffer[..length]).await {
            return match error.kind() {
                io::ErrorKind::BrokenPipe => Ok(Fed::Refused),
                _ => Err(BuildError::internal("feed a worker", error)),
            };
        }
        work.progress.advance(length as u64);
    }
    drop(pipe);
    blob.verified().await.map_err(|error| fetch::explain(&error))?;
    Ok(Fed::Verified)
}
