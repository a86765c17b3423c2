//! A build's log as a stream: from the database, then as it is written.
//!
//! The order of things makes it gapless. A line is stored before it is broadcast. A follower subscribes first and reads
//! the database after that, so a line that is written in between is in one of the two, or in both, which its number
//! tells. A follower that lags behind the broadcast goes back to the database. When the build has ended, one last look into
//! the database brings what is left.

mod places;

use std::{collections::VecDeque, sync::Arc};

use futures_util::{Stream, stream::unfold};
use tenant::TenantId;
use tokio::sync::broadcast::{Receiver, error::RecvError};
use tokio_util::sync::CancellationToken;

pub(super) use self::places::LogStreams;
use self::places::Place;
pub use self::places::{MAX_LOG_STREAMS, MAX_LOG_STREAMS_PER_TENANT};
use super::{Inner, internal};
use crate::{
    build::BuildId,
    error::ServiceError,
    event::LogLine,
    store::{Lane, PageSize, has_ended, lines_after},
};

/// What is read from the database at once, and what a follower who does not read keeps in memory.
const PAGE: PageSize = PageSize {
    lines: 64,
    bytes: 16 << 10,
};

pub(super) async fn open(
    inner: Arc<Inner>,
    tenant: TenantId,
    id: BuildId,
    from_sequence: u64,
    follow: bool,
) -> Result<impl Stream<Item = Result<LogLine, ServiceError>> + Send + 'static, ServiceError> {
    // Before anything is looked at: those beyond the bound cost nothing.
    let place = inner.log_streams.take(&tenant)?;
    // Before the first look into the database. A build that is not live has stored its last line.
    let live = follow.then(|| inner.live.get(id)).flatten().map(|live| Live {
        lines: live.subscribe(),
        ended: live.ended_token(),
    });
    inner.find_in(Lane::Replay, &tenant, id).await?;
    let follower = Follower {
        step: match live {
            Some(_) => Step::Replay,
            None => Step::LastReplay,
        },
        inner,
        id,
        follow,
        next: from_sequence.max(1),
        buffer: VecDeque::new(),
        live,
        _place: place,
    };
    Ok(unfold(follower, |mut follower| async move {
        let item = follower.next().await?;
        Some((item, follower))
    }))
}

struct Follower {
    inner: Arc<Inner>,
    id: BuildId,
    follow: bool,
    /// The number of the next line to be given.
    next: u64,
    buffer: VecDeque<LogLine>,
    live: Option<Live>,
    step: Step,
    _place: Place,
}

struct Live {
    lines: Receiver<LogLine>,
    ended: CancellationToken,
}

#[derive(Clone, Copy)]
enum Step {
    /// Lines come from the database; when they are through, from the broadcast.
    Replay,
    /// Lines come from the database; when they are through, there are no more.
    LastReplay,
    /// Lines come as they are written.
    Follow,
    /// The build is no longer live here and has not ended: it was requeued, and goes on after the restart.
    Interrupted,
    /// Nothing more comes.
    Done,
}

impl Follower {
    async fn next(&mut self) -> Option<Result<LogLine, ServiceError>> {
        loop {
            if let Some(line) = self.buffer.pop_front() {
                self.next = line.sequence + 1;
                return Some(Ok(line));
            }
            let went_on = match self.step {
                Step::Replay | Step::LastReplay => self.replay().await,
                Step::Follow => self.follow().await,
                Step::Interrupted => Err(interrupted()),
                Step::Done => return None,
            };
            if let Err(error) = went_on {
                self.step = Step::Done;
                return Some(Err(error));
            }
        }
    }

    async fn replay(&mut self) -> Result<(), ServiceError> {
        let (id, next) = (self.id, self.next);
        let read = move |connection: &rusqlite::Connection| {
            let snapshot = connection.unchecked_transaction()?;
            let page = lines_after(&snapshot, id, next, PAGE)?;
            Ok((page, has_ended(&snapshot, id)?))
        };
        let read = self.inner.store.read_in(Lane::Replay, read).await;
        let (page, has_ended) = read.map_err(internal)?;
        // Deleted under the reader: the end of the stream must not look like the end of the log.
        let has_ended = has_ended.ok_or(ServiceError::NotFound)?;
        if page.is_last {
            self.step = match self.step {
                Step::LastReplay if self.follow && !has_ended => Step::Interrupted,
                Step::LastReplay => Step::Done,
                _ => Step::Follow,
            };
        }
        self.buffer = page.lines.into();
        Ok(())
    }

    async fn follow(&mut self) -> Result<(), ServiceError> {
        let Some(live) = &mut self.live else {
            self.step = Step::LastReplay;
            return Ok(());
        };
        tokio::select! {
            biased;
            () = live.ended.cancelled() => self.step = Step::LastReplay,
            () = self.inner.stopped.cancelled() => {
                return Err(interrupted());
            }
            line = live.lines.recv() => match line {
                Ok(line) if line.sequence == self.next => self.buffer.push_back(line),
                // It came with the replay.
                Ok(line) if line.sequence < self.next => {}
                Ok(_) | Err(RecvError::Lagged(_)) => self.step = Step::Replay,
                Err(RecvError::Closed) => self.step = Step::LastReplay,
            },
        }
        Ok(())
    }
}

fn interrupted() -> ServiceError {
    ServiceError::Unavailable(
        "the service is shutting down: follow again from the next sequence number".to_owned(),
    )
}

#[cfg(test)]
mod tests;
