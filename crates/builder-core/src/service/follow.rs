//! A build's log as a stream: from the database, then as it is written.
//!
//! The order of things makes it gapless. A line is stored before it is broadcast. A follower subscribes first and reads
//! the database after that, so a line that is written in between is in one of the two, or in both, which its number
//! tells. A follower that lags behind the broadcast goes back to the database. When the build has ended, one last look into
//! the database brings what is left.

use std::{collections::VecDeque, sync::Arc};

use futures_util::{Stream, stream::unfold};
use tenant::TenantId;
use tokio::sync::broadcast::{Receiver, error::RecvError};
use tokio_util::sync::CancellationToken;

use super::{Inner, internal};
use crate::{
    build::BuildId,
    error::ServiceError,
    event::LogLine,
    store::{has_ended, lines_after},
};

/// Lines that are read from the database at once, and that a follower who does not read keeps in memory: a quarter of a
/// mebibyte of the longest.
const PAGE_LINES: usize = 64;

pub(super) fn stream(
    inner: Arc<Inner>,
    tenant: TenantId,
    id: BuildId,
    from_sequence: u64,
    follow: bool,
) -> impl Stream<Item = Result<LogLine, ServiceError>> + Send + 'static {
    let follower = Follower {
        inner,
        tenant,
        id,
        follow,
        next: from_sequence.max(1),
        buffer: VecDeque::new(),
        live: None,
        step: Step::Open,
    };
    unfold(follower, |mut follower| async move {
        let item = follower.next().await?;
        Some((item, follower))
    })
}

struct Follower {
    inner: Arc<Inner>,
    tenant: TenantId,
    id: BuildId,
    follow: bool,
    /// The number of the next line to be given.
    next: u64,
    buffer: VecDeque<LogLine>,
    live: Option<Live>,
    step: Step,
}

struct Live {
    lines: Receiver<LogLine>,
    ended: CancellationToken,
}

#[derive(Clone, Copy)]
enum Step {
    /// Nothing was looked at yet.
    Open,
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
                Step::Open => self.open().await,
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

    async fn open(&mut self) -> Result<(), ServiceError> {
        if self.follow {
            // Before the first look into the database. A build that is not live has stored its last line.
            self.live = self.inner.live.get(self.id).map(|live| Live {
                lines: live.subscribe(),
                ended: live.ended_token(),
            });
        }
        self.inner.find(&self.tenant, self.id).await?;
        self.step = if self.live.is_some() {
            Step::Replay
        } else {
            Step::LastReplay
        };
        Ok(())
    }

    async fn replay(&mut self) -> Result<(), ServiceError> {
        let (id, next) = (self.id, self.next);
        let (lines, has_ended) = self
            .inner
            .store
            .read(move |connection| {
                let snapshot = connection.unchecked_transaction()?;
                let lines = lines_after(&snapshot, id, next, PAGE_LINES)?;
                Ok((lines, has_ended(&snapshot, id)?))
            })
            .await
            .map_err(internal)?;
        // Deleted under the reader: the end of the stream must not look like the end of the log.
        let has_ended = has_ended.ok_or(ServiceError::NotFound)?;
        if lines.len() < PAGE_LINES {
            self.step = match self.step {
                Step::LastReplay if self.follow && !has_ended => Step::Interrupted,
                Step::LastReplay => Step::Done,
                _ => Step::Follow,
            };
        }
        self.buffer = lines.into();
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
