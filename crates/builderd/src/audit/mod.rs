//! The audit log (`AUDIT_ENABLED`): who did what to what, and what came of it.
//!
//! One [`AuditEvent`] a line, as JSON, in a file of bounded size. Every call that changes something is in it, and
//! every call that is refused because of who asks (UNAUTHENTICATED, PERMISSION_DENIED) or how much (RESOURCE_EXHAUSTED);
//! what the service removes of its own accord; and what operators change with `builderd tenant`, which the database hands
//! over. Nobody waits for the disk: events go to a thread of their own, and what it cannot write is logged and counted, and
//! told in the log itself as soon as that can be written again.

mod file;
mod trail;

use std::{
    fmt, io,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    time::{Duration, SystemTime},
};

use builder_core::{
    audit::{Actor, AuditEvent, AuditResult},
    service::Builder,
};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use self::file::RotatingFile;
pub(crate) use self::trail::Call;
pub use self::trail::Trail;

/// Events on their way to the thread. More at once are lost, and counted.
const WAITING_EVENTS: usize = 10_000;

/// Lines in one write.
const BATCH: usize = 256;

/// How often the database is asked for events of other processes.
const EXPORT_INTERVAL: Duration = Duration::from_secs(1);

/// Where and how much is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditConfig {
    /// The file; those before it are `PATH.1`, `PATH.2` and so on.
    pub path: PathBuf,
    /// Bytes after which a new file is begun.
    pub max_bytes: u64,
    /// Files that are kept, this one among them; at least 1.
    pub max_files: u32,
}

/// The log. Cheap to clone.
#[derive(Clone)]
pub struct AuditLog {
    messages: SyncSender<Message>,
    lost: Arc<AtomicU64>,
}

enum Message {
    Line(String),
    /// Lines, and whether they were written.
    Lines(Vec<String>, oneshot::Sender<bool>),
}

impl fmt::Debug for AuditLog {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("AuditLog")
            .field("lost", &self.lost())
            .finish_non_exhaustive()
    }
}

impl AuditLog {
    /// Opens the file, and starts the thread that writes to it; it ends with the last clone.
    ///
    /// # Errors
    /// When the file cannot be opened for writing or the thread cannot be started.
    pub fn open(config: &AuditConfig) -> io::Result<Self> {
        let file = RotatingFile::open(config)?;
        let (messages, received) = sync_channel(WAITING_EVENTS);
        let lost = Arc::new(AtomicU64::new(0));
        let writer = Writer {
            file,
            lost: Arc::clone(&lost),
            untold: 0,
        };
        std::thread::Builder::new()
            .name("audit-log".to_owned())
            .spawn(move || writer.run(&received))?;
        Ok(Self { messages, lost })
    }

    /// Events that could not be written since the start.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Hands an event over. Never waits.
    pub fn record(&self, event: &AuditEvent) {
        if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) =
            self.messages.try_send(Message::Line(event.to_line()))
        {
            count_lost(&self.lost, 1, "they come faster than they can be written");
        }
    }

    /// Waits until everything that was handed over before is written, or cannot be; for at most `patience`.
    pub async fn flush(&self, patience: Duration) {
        drop(tokio::time::timeout(patience, self.write(Vec::new())).await);
    }

    /// Writes lines, after everything that was handed over before; says whether they are in the file.
    async fn write(&self, lines: Vec<String>) -> bool {
        let (reply, written) = oneshot::channel();
        let mut message = Message::Lines(lines, reply);
        // The thread takes them as fast as the disk does; a full channel is rare and short.
        loop {
            match self.messages.try_send(message) {
                Ok(()) => break,
                Err(TrySendError::Disconnected(_)) => return false,
                Err(TrySendError::Full(back)) => message = back,
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        written.await.unwrap_or(false)
    }

    /// Takes events from outside of requests to the log, until `stopped` is cancelled. One that is written and not marked,
    /// because of a crash in between, is written again.
    pub(crate) async fn export(self, builder: Builder, stopped: CancellationToken) {
        loop {
            let exported = async {
                loop {
                    let events = builder.audit_events(BATCH).await?;
                    if events.is_empty() {
                        return Ok(());
                    }
                    let (numbers, lines): (Vec<_>, Vec<_>) = events.into_iter().unzip();
                    // They are kept in the database until they are in the file: none of them is lost.
                    if !self.write(lines).await {
                        return Ok(());
                    }
                    builder.audit_events_written(numbers).await?;
                }
            };
            let exported: Result<(), builder_core::ServiceError> = exported.await;
            if let Err(error) = exported {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "Failed to take events of the database to the audit log"
                );
            }
            tokio::select! {
                () = tokio::time::sleep(EXPORT_INTERVAL) => {}
                () = stopped.cancelled() => return,
            }
        }
    }
}

/// The thread's side.
struct Writer {
    file: RotatingFile,
    lost: Arc<AtomicU64>,
    /// Lost events that the log does not tell of yet.
    untold: u64,
}

impl Writer {
    fn run(mut self, received: &Receiver<Message>) {
        while let Ok(first) = received.recv() {
            let mut lines = Vec::new();
            let mut kept = Vec::new();
            let mut add = |message| match message {
                Message::Line(line) => lines.push(line),
                Message::Lines(more, reply) => kept.push((more, reply)),
            };
            add(first);
            for _ in 1..BATCH {
                let Ok(next) = received.try_recv() else { break };
                add(next);
            }
            self.write(lines, false);
            for (lines, reply) in kept {
                let written = self.write(lines, true);
                // Who asked may have gone away.
                let _ = reply.send(written);
            }
        }
    }

    /// Writes lines, all or none.
    fn write(&mut self, mut lines: Vec<String>, is_kept_elsewhere: bool) -> bool {
        if lines.is_empty() {
            return true;
        }
        let count = lines.len() as u64;
        if self.untold > 0 {
            let mut event = AuditEvent::new("audit.lost", Actor::builderd(), SystemTime::now()).because(
                format!("{} events before this one could not be written", self.untold),
            );
            event.result = AuditResult::Failed;
            lines.insert(0, event.to_line());
        }
        match self.file.append(&lines) {
            Ok(()) => {
                self.untold = 0;
                true
            }
            Err(error) => {
                // Those of the database come again.
                if !is_kept_elsewhere {
                    self.untold += count;
                    count_lost(&self.lost, count, &error.to_string());
                } else {
                    tracing::error!(%error, "Failed to write to the audit log; the database keeps the events");
                }
                false
            }
        }
    }
}

/// Counts lost events, and says so each time that there are twice as many.
fn count_lost(lost: &AtomicU64, count: u64, reason: &str) {
    let before = lost.fetch_add(count, Ordering::Relaxed);
    let after = before + count;
    if before == 0 || before.ilog2() < after.ilog2() {
        tracing::error!(audit.lost = after, reason, "Events of the audit log are lost");
    }
}

#[cfg(test)]
mod tests;
