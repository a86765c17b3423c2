//! One download of one blob, for everybody who wants it.
//!
//! A task fetches the bytes, over one connection or several, and sends them to the [`Writer`]; it ends when the blob is
//! whole, when it fails for good, or when the last [`Download`] is dropped.

use std::collections::BTreeSet;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use http::Method;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::blob::access::Accesses;
use crate::blob::pace::{Pace, pace};
use crate::blob::shares::{MIN_SHARE_BYTES, Shares};
use crate::blob::writer::{Message, Writer};
use crate::blob::{Phase, Progress, given_up};
use crate::cache::Cache;
use crate::config::Ranges;
use crate::digest::Digest;
use crate::error::{FetchError, FetchErrorKind};
use crate::net::gate::{Gate, Permit};
use crate::net::response::Answer;
use crate::net::retry::Attempts;
use crate::net::slots::Traffic;
use crate::registry::{Ask, Session};

/// Chunks on their way to the writer. A chunk is at most as large as the HTTP client's read buffer, some hundred KiB.
const CHUNKS_IN_FLIGHT: usize = 2;

/// A body that yields less than this before it breaks counts as a failed attempt, or a server that sends one byte per
/// connection would be asked for ever.
const MIN_PROGRESS_BYTES: u64 = 64 * 1024;

/// Less than this within the no-progress timeout is no progress.
const MIN_WINDOW_BYTES: u64 = 4 * 1024;

/// What a download may cost beyond twice its size, for restarts without ranges.
const WASTE_BYTES: u64 = 4 << 20;

/// How often it is looked at how fast the one connection is.
const LOOK: Duration = Duration::from_millis(50);

/// A running download; dropped with its last [`Download`].
pub(crate) struct Job {
    progress: Arc<Progress>,
    accesses: Arc<Accesses>,
    task: AbortHandle,
}

/// One party's interest in a job, with its right to it.
pub(crate) struct Download {
    job: Arc<Job>,
    interest: u64,
    refusal: watch::Receiver<Option<FetchError>>,
}

impl Job {
    /// Starts a download. `limit` bounds the jobs that run at one time, because each has a thread that writes.
    pub(crate) fn start(
        cache: Arc<Cache>,
        limit: Arc<Gate>,
        sessions: &[Arc<Session>],
        digest: Digest,
        size_bytes: u64,
    ) -> Download {
        let registry = sessions
            .first()
            .map(|session| session.registry.clone())
            .unwrap_or_default();
        let progress = Arc::new(Progress::new());
        let accesses = Arc::new(Accesses::default());
        let (interest, refusal) = accesses.add(sessions);
        let fetcher = Fetcher {
            digest: digest.clone(),
            size_bytes,
            accesses: Arc::clone(&accesses),
            progress: Arc::clone(&progress),
            received_bytes: AtomicU64::new(0),
        };
        let job = Arc::new_cyclic(|job: &Weak<Self>| {
            let progress_of_writer = Arc::clone(&progress);
            let writer = Writer {
                cache,
                digest,
                size_bytes,
                registry,
                accesses: Arc::clone(&accesses),
                progress: progress_of_writer,
                job: Weak::clone(job),
            };
            let task = tokio::spawn(run(limit, fetcher, writer)).abort_handle();
            Self {
                progress,
                accesses,
                task,
            }
        });
        Download {
            job,
            interest,
            refusal,
        }
    }

    /// Whether a party that can read the manifest in this repository may join without further proof: the blob was shown to
    /// be in it, or somebody is just finding out.
    pub(crate) fn is_joinable_from(&self, source: &str) -> bool {
        self.accesses.is_proven(source) || self.accesses.is_asking(source)
    }

    /// Whether the registry has answered for the blob to one of the parties.
    pub(crate) fn is_proven(&self) -> bool {
        !self.accesses.proven().is_empty()
    }

    /// The registry has shown the blob in this session's repository.
    pub(crate) fn prove(&self, session: &Session) {
        self.accesses.prove(session);
    }

    /// Whether it is worth joining.
    pub(crate) fn is_alive(&self) -> bool {
        !matches!(*self.progress.phase.borrow(), Phase::Failed(_))
    }

    /// Lets another party wait for the same bytes. `is_proven` is whether the registry has shown to this party that the
    /// repository holds the blob.
    pub(crate) fn join(self: Arc<Self>, sessions: &[Arc<Session>], is_proven: bool) -> Download {
        if is_proven && let Some(session) = sessions.first() {
            self.accesses.prove(session);
        }
        let (interest, refusal) = self.accesses.add(sessions);
        Download {
            job: self,
            interest,
            refusal,
        }
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Download {
    pub(crate) fn progress(&self) -> &Arc<Progress> {
        &self.job.progress
    }

    pub(crate) fn job(&self) -> &Arc<Job> {
        &self.job
    }

    /// Why this party gets nothing, once that is certain; before the first byte becomes available.
    pub(crate) fn refusal(&self) -> &watch::Receiver<Option<FetchError>> {
        &self.refusal
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        self.job.accesses.remove_all_of(self.interest);
    }
}

/// The job's task. Aborted, it drops the channel to the writer, which then keeps the part and ends.
async fn run(limit: Arc<Gate>, fetcher: Fetcher, writer: Writer) {
    let _running = turn(&limit, &fetcher.accesses).await;
    let (sender, receiver) = mpsc::channel(CHUNKS_IN_FLIGHT);
    let (started, starts) = oneshot::channel();
    let written = tokio::task::spawn_blocking(move || writer.run(started, receiver));
    let fetched = match starts.await {
        Ok(position) => fetcher.fetch(position, &sender).await,
        // The writer has failed; its result tells how.
        Err(_) => Err(given_up()),
    };
    let last = match &fetched {
        Ok(()) => Message::Finish,
        Err(error) => Message::Abandon {
            keep: is_worth_resuming(error),
        },
    };
    // A closed channel, too, is told by the writer's result.
    let _ = sender.send(last).await;
    drop(sender);
    let error = match written.await {
        Ok(Ok(true)) => return,
        Ok(Ok(false)) => fetched.err().unwrap_or_else(given_up),
        Ok(Err(error)) => error,
        Err(error) => FetchError::with_source(FetchErrorKind::Io, "blob writer failed", error),
    };
    tracing::debug!(digest = %fetcher.digest, %error, "Download failed");
    fetcher.progress.phase.send_replace(Phase::Failed(error));
}

/// Waits for a place among the running jobs, in the queues of all parties that want the blob, also of those that join
/// meanwhile: who asks for what another asked for before must not wait behind everything else that the other asked for.
async fn turn(limit: &Arc<Gate>, accesses: &Accesses) -> Permit {
    let mut waiting = FuturesUnordered::new();
    let mut queued = BTreeSet::new();
    loop {
        // Before the parties are looked at, so that none joins unseen.
        let joined = accesses.joined();
        for party in accesses.parties() {
            if queued.insert(party.clone()) {
                let limit = Arc::clone(limit);
                waiting.push(async move {
                    let permit = limit.acquire(&party).await;
                    (party, permit)
                });
            }
        }
        tokio::select! {
            Some((party, permit)) = waiting.next() => {
                queued.remove(&party);
                // A place is not counted for a party that has gone.
                if accesses.parties().contains(&party) {
                    // The connections are to be counted for the same party.
                    accesses.prefer(&party);
                    return permit;
                }
            }
            () = joined => {}
        }
    }
}

fn is_worth_resuming(error: &FetchError) -> bool {
    matches!(
        error.kind(),
        FetchErrorKind::Transient
            | FetchErrorKind::RateLimited { .. }
            | FetchErrorKind::Unauthorized
            | FetchErrorKind::Denied
    )
}

/// The network's side of a job.
struct Fetcher {
    digest: Digest,
    size_bytes: u64,
    accesses: Arc<Accesses>,
    progress: Arc<Progress>,
    /// Body bytes over all connections, whether of use or not.
    received_bytes: AtomicU64,
}

type Sender = mpsc::Sender<Message>;

/// A body that is about to be read.
struct Stream {
    answer: Answer,
    registry: String,
    /// By which way it came.
    session: Arc<Session>,
    /// Where in the blob the body begins, and where it ends.
    start: u64,
    end: u64,
    no_progress: std::time::Duration,
}

enum Opened {
    /// What was asked for.
    Range(Stream),
    /// The whole blob, asked for or not.
    Whole(Stream),
    /// The server does not do ranges, or not right.
    Unusable,
}

/// Why a range could not be fetched.
enum RangeFailure {
    Unusable,
    Failed(FetchError),
}

/// Where a body ended, and what ended it before its time.
struct Pumped {
    position: u64,
    broken: Option<FetchError>,
}

impl Fetcher {
    async fn fetch(&self, position: u64, sender: &Sender) -> Result<(), FetchError> {
        if position >= self.size_bytes {
            return Ok(());
        }
        let session = self.accesses.first().ok_or_else(given_up)?;
        let ranges = session.transport.config().ranges;
        let ranges = Ranges {
            range_bytes: ranges.range_bytes.max(MIN_PROGRESS_BYTES),
            ..ranges
        };
        drop(session);
        let is_split = ranges.connections > 1
            && self.size_bytes >= ranges.min_blob_bytes
            && self.size_bytes - position > ranges.range_bytes;
        if is_split {
            match self.fetch_split(position, ranges, sender).await {
                Ok(()) => return Ok(()),
                Err(RangeFailure::Failed(error)) => return Err(error),
                Err(RangeFailure::Unusable) => {}
            }
        }
        // What is on its way to the writer may be fetched again; the writer leaves it out.
        let position = position.max(*self.progress.available.borrow());
        self.fetch_single(position, sender).await
    }

    /// Fetches the rest over one connection at a time.
    async fn fetch_single(&self, start: u64, sender: &Sender) -> Result<(), FetchError> {
        let mut position = start;
        let mut attempts = self.attempts()?;
        let mut without_ranges = false;
        while position < self.size_bytes {
            let range = if position == 0 || without_ranges {
                None
            } else {
                Some((position, self.size_bytes))
            };
            let stream = match self.open(range, &mut attempts).await? {
                Opened::Range(stream) | Opened::Whole(stream) => stream,
                Opened::Unusable if range.is_some() => {
                    // Once from the beginning costs less than never.
                    without_ranges = true;
                    continue;
                }
                Opened::Unusable => {
                    return Err(FetchError::protocol(
                        "registry answers a request for a whole layer with a range",
                    ));
                }
            };
            let session = Arc::clone(&stream.session);
            let pumped = self.pump(stream, position, sender).await?;
            if pumped.position >= position + MIN_PROGRESS_BYTES {
                attempts.reset();
            }
            position = pumped.position.max(position);
            if let Some(error) = pumped.broken {
                self.pause(&session, &mut attempts, error).await?;
            }
        }
        Ok(())
    }

    /// Fetches the rest in ranges over several connections, if a first range shows that the server can do that.
    async fn fetch_split(&self, start: u64, ranges: Ranges, sender: &Sender) -> Result<(), RangeFailure> {
        let Ranges {
            connections,
            range_bytes,
            one_connection_time,
            ..
        } = ranges;
        let first_end = (start + range_bytes).min(self.size_bytes);
        let mut attempts = self.attempts()?;
        let first = match self.open(Some((start, first_end)), &mut attempts).await? {
            Opened::Range(stream) => stream,
            Opened::Whole(stream) => {
                // A pull-through cache that is cold sends everything. Take it as it comes; if it breaks, a single
                // connection goes on behind what has been written.
                let pumped = self.pump(stream, start, sender).await?;
                return if pumped.position >= self.size_bytes {
                    Ok(())
                } else {
                    Err(RangeFailure::Unusable)
                };
            }
            Opened::Unusable => return Err(RangeFailure::Unusable),
        };
        let shares = Shares::new(first_end, self.size_bytes, range_bytes, connections);
        let worker = async |mut range: Option<(u64, u64)>, mut stream: Option<Stream>| {
            loop {
                let Some((from, to)) = range.take().or_else(|| shares.take()) else {
                    return Ok::<(), RangeFailure>(());
                };
                self.fetch_range(from, to, stream.take(), sender).await?;
            }
        };
        let mut one = pin!(worker(Some((start, first_end)), Some(first)));
        tokio::select! {
            biased;
            // It has had all of them.
            ended = &mut one => return ended,
            () = self.until_slow(one_connection_time, &shares) => {}
        }
        let smallest = range_bytes.min(MIN_SHARE_BYTES);
        let others = usize::try_from(shares.left_bytes().div_ceil(smallest)).unwrap_or(usize::MAX);
        let further = (1..connections.min(others.saturating_add(1))).map(|_| worker(None, None));
        let further = futures_util::future::try_join_all(further);
        futures_util::future::try_join(one, further).await.map(drop)
    }

    /// Waits until it is seen that the rest takes one connection too long.
    async fn until_slow(&self, limit: Duration, shares: &Shares) {
        if limit.is_zero() {
            return shares.share();
        }
        let started = Instant::now();
        let before = self.received_bytes.load(Ordering::Relaxed);
        loop {
            tokio::time::sleep(LOOK).await;
            let received = self.received_bytes.load(Ordering::Relaxed) - before;
            let left = shares.left_bytes();
            match pace(received, started.elapsed(), left, limit) {
                Pace::Slow => return shares.share(),
                Pace::Fast { range_bytes } => shares.lengthen(range_bytes),
            }
        }
    }

    async fn fetch_range(
        &self,
        start: u64,
        end: u64,
        mut stream: Option<Stream>,
        sender: &Sender,
    ) -> Result<(), RangeFailure> {
        let mut position = start;
        let mut attempts = self.attempts()?;
        while position < end {
            let stream = match stream.take() {
                Some(stream) => stream,
                None => match self.open(Some((position, end)), &mut attempts).await? {
                    Opened::Range(stream) => stream,
                    Opened::Whole(_) | Opened::Unusable => return Err(RangeFailure::Unusable),
                },
            };
            let session = Arc::clone(&stream.session);
            let pumped = self.pump(stream, position, sender).await?;
            if pumped.position >= position + MIN_PROGRESS_BYTES {
                attempts.reset();
            }
            position = pumped.position.max(position);
            if let Some(error) = pumped.broken {
                self.pause(&session, &mut attempts, error).await?;
            }
        }
        Ok(())
    }

    fn attempts(&self) -> Result<Attempts, FetchError> {
        self.accesses
            .first()
            .map(|session| session.attempts())
            .ok_or_else(given_up)
    }

    /// Waits before a broken body is gone on with, or leaves the way that it came by.
    async fn pause(
        &self,
        session: &Arc<Session>,
        attempts: &mut Attempts,
        error: FetchError,
    ) -> Result<(), FetchError> {
        match attempts.pause(error, None).await {
            Err(error) if self.accesses.leave(session, &error) => {
                *attempts = self.attempts()?;
                Ok(())
            }
            result => result,
        }
    }

    /// Asks for the blob, or for a part of it up to but without the byte at the range's end.
    async fn open(&self, range: Option<(u64, u64)>, attempts: &mut Attempts) -> Result<Opened, FetchError> {
        let path = format!("blobs/{}", self.digest);
        let ask = Ask {
            method: Method::GET,
            path: &path,
            accept: None,
            range: range.map(|(start, end)| (start, Some(end - 1))),
            traffic: Traffic::Blob,
            what: "layer",
        };
        loop {
            let session = self.accesses.first().ok_or_else(given_up)?;
            let answer = match session.fetch(&ask, attempts).await {
                Ok(answer) => answer,
                Err(error) if self.accesses.leave(&session, &error) => {
                    *attempts = self.attempts()?;
                    continue;
                }
                Err(error) => return Err(error),
            };
            answer.check_encoding(&session.route.registry)?;
            if matches!(answer.status().as_u16(), 200 | 206) {
                self.accesses.prove(&session);
            }
            let stream = |answer, start, end| Stream {
                answer,
                registry: session.route.registry.clone(),
                session: Arc::clone(&session),
                start,
                end,
                no_progress: session.transport.config().timeouts.no_progress,
            };
            return match (answer.status().as_u16(), range) {
                (200, _) => {
                    if answer
                        .content_length()
                        .is_some_and(|length| length != self.size_bytes)
                    {
                        return Err(self.wrong_size());
                    }
                    Ok(Opened::Whole(stream(answer, 0, self.size_bytes)))
                }
                (206, Some((start, end))) => match answer.content_range() {
                    Some(found) if found.total.is_some_and(|total| total != self.size_bytes) => {
                        Err(self.wrong_size())
                    }
                    Some(found) if found.first == start && found.last < end => {
                        Ok(Opened::Range(stream(answer, start, found.last + 1)))
                    }
                    _ => Ok(Opened::Unusable),
                },
                _ => Ok(Opened::Unusable),
            };
        }
    }

    /// Sends the body's bytes from `position` on to the writer; those below are skipped.
    ///
    /// An error is one that no further attempt can mend.
    async fn pump(&self, mut stream: Stream, position: u64, sender: &Sender) -> Result<Pumped, FetchError> {
        let mut offset = stream.start;
        let mut wanted = position;
        let mut window_start = Instant::now();
        let mut window_bytes = 0;
        let stalled = |registry: &str| {
            FetchError::transient(format!("registry {registry} has stopped sending a layer"))
        };
        let broken = |position, error| {
            Ok(Pumped {
                position,
                broken: Some(error),
            })
        };
        loop {
            if offset == stream.end && stream.answer.content_length().is_some() {
                break;
            }
            let chunk =
                match tokio::time::timeout(stream.no_progress, stream.answer.chunk(&stream.registry)).await {
                    Err(_) => return broken(wanted, stalled(&stream.registry)),
                    Ok(Err(error)) => return broken(wanted, error),
                    Ok(Ok(None)) => break,
                    Ok(Ok(Some(chunk))) => chunk,
                };
            let length = chunk.len() as u64;
            if length > stream.end - offset {
                return Err(self.wrong_size());
            }
            let received = self.received_bytes.fetch_add(length, Ordering::Relaxed) + length;
            if received > self.size_bytes.saturating_mul(2).saturating_add(WASTE_BYTES) {
                return Err(FetchError::transient(format!(
                    "registry {} breaks off too often to get a layer through",
                    stream.registry
                )));
            }
            window_bytes += length;
            if window_start.elapsed() >= stream.no_progress {
                if window_bytes < MIN_WINDOW_BYTES {
                    return broken(wanted, stalled(&stream.registry));
                }
                window_start = Instant::now();
                window_bytes = 0;
            }
            let skip = wanted.saturating_sub(offset).min(length);
            let useful = chunk.slice(usize::try_from(skip).unwrap_or(usize::MAX)..);
            if !useful.is_empty() {
                let message = Message::Chunk {
                    offset: offset + skip,
                    bytes: useful,
                };
                sender.send(message).await.map_err(|_| given_up())?;
            }
            offset += length;
            wanted = wanted.max(offset);
        }
        if offset < stream.end {
            let error = FetchError::transient(format!(
                "registry {} broke off in the middle of a layer",
                stream.registry
            ));
            return broken(wanted, error);
        }
        // The slot is tied to the connection: it is free from here on, whoever still has to read the blob.
        drop(stream.answer.slot);
        Ok(Pumped {
            position: wanted,
            broken: None,
        })
    }

    fn wrong_size(&self) -> FetchError {
        FetchError::new(
            FetchErrorKind::DigestMismatch,
            format!("layer {} does not have the size its manifest gives", self.digest),
        )
    }
}

impl From<FetchError> for RangeFailure {
    fn from(error: FetchError) -> Self {
        Self::Failed(error)
    }
}
