//! What survives a restart: one SQLite file, one thread that writes to it.
//!
//! `builderd.db` in the database directory, in WAL mode. All writes go through one thread, each as one
//! `BEGIN IMMEDIATE` transaction, in the order in which they were asked for: a deferred transaction that turns into a
//! writer fails under load, and one thread needs no retry. Reads have connections of their own and are never held up
//! by the writer.
//!
//! `synchronous=FULL`: an accepted build and a finished one are promises to a client, so a commit reaches the disk
//! before the answer goes out, also when the machine loses power (`NORMAL` would keep the file sound but could lose the
//! last commits). The price is one `fsync` per commit; log lines and progress are written in batches to keep that low.

mod answer;
mod audit;
pub mod backup;
mod builds;
mod logs;
mod outbox;
mod queue;
mod readers;
mod removal;
mod schema;
mod usage;
mod writer;

use std::{
    fmt, fs,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use rusqlite::{Connection, Transaction};
use rustix::{fs::FlockOperation, io::Errno};

pub(crate) use audit::note as note_audit_event;
pub(crate) use builds::{BuildChange, Finished, Requeued, StoredBuild};
pub(crate) use logs::{NewLine, PageSize, last_lines, lines_after};
pub(crate) use outbox::{Claimed, Deletion, Duty, LONGEST_WAIT, Postponed, Registration};
pub(crate) use queue::{Inserted, NewBuild, Started, Turn};
pub(crate) use readers::Lane;
pub(crate) use removal::{FileClaim, KeptImage, has_ended};
pub use usage::TenantUsage;

pub(crate) use schema::VERSION as SCHEMA_VERSION;

use self::{readers::Readers, writer::Writer};
use crate::error::ServiceError;

/// How long an opener waits for the one before to be gone.
const LOCK_PATIENCE: Duration = Duration::from_secs(1);

/// How long a reader waits for a lock that WAL mode should never make it wait for (a checkpoint at recovery).
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Why the store did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    /// SQLite refused.
    #[error("the database failed")]
    Sqlite(#[from] rusqlite::Error),
    /// A migration failed.
    #[error("the database could not be brought to this version")]
    Migration(#[source] rusqlite_migration::Error),
    /// The file is of a later version of builderd.
    #[error(
        "the database has schema version {found}, and this builderd knows versions up to {known}: use a later one"
    )]
    TooNew {
        /// The file's version.
        found: i64,
        /// The latest version of this program.
        known: i64,
    },
    /// Another process has the database.
    #[error("another builderd uses {directory}: stop it or use another directory", directory = directory.display())]
    Locked {
        /// Where the database is.
        directory: PathBuf,
    },
    /// The directory or the lock file could not be made.
    #[error("failed to open {path}", path = path.display())]
    Open {
        /// What was opened.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A row holds what no version of builderd wrote.
    #[error("column {column} of build {build} is not readable")]
    Malformed {
        /// Which build.
        build: String,
        /// Which column.
        column: &'static str,
    },
    /// There is no such build.
    #[error("there is no such build")]
    NoSuchBuild,
    /// The build has ended; nothing about it changes any more.
    #[error("the build has ended")]
    Ended,
    /// The build has not ended, and what was asked for needs that.
    #[error("the build has not ended")]
    NotEnded,
    /// The asset of the build is another one than the caller has looked at.
    #[error("the asset of the build has changed in the meantime")]
    AssetChanged,
    /// A tenant's row could not be read or written.
    #[error("the tenant's record failed")]
    Tenant(#[from] tenant::RecordError),
    /// The accounts of tenants could not be read or written.
    #[error("the accounts of tenants failed")]
    Account(#[from] tenant::AccountError),
    /// The build was looked at with the tenant's record at hand, and not accepted.
    #[error("the build was refused")]
    Refused(Box<ServiceError>),
    /// The writer thread is gone, or the work given to it panicked.
    #[error("the database writer has stopped")]
    Stopped,
}

/// The database. Cheap to clone; the file is closed when the last clone is gone.
#[derive(Clone)]
pub(crate) struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    writer: Writer,
    path: PathBuf,
    readers: Readers,
    /// Held as long as the store: the lock goes with the descriptor, also when the process is killed.
    _lock: fs::File,
}

impl fmt::Debug for Store {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Store")
            .field("path", &self.inner.path)
            .finish_non_exhaustive()
    }
}

impl Store {
    /// Opens `builderd.db` in `directory`, which is made when absent, and brings it to this version. Blocks, for as long
    /// as a migration takes.
    ///
    /// # Errors
    /// [`StoreError::Locked`] when another process has it, [`StoreError::TooNew`] for a file of a later version,
    /// [`StoreError::Open`] and [`StoreError::Sqlite`] for the rest.
    pub(crate) fn open(directory: &Path) -> Result<Self, StoreError> {
        let opening = |path: &Path| {
            let path = path.to_owned();
            move |source| StoreError::Open { path, source }
        };
        // For its owner alone: what tenants build is theirs to know.
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(opening(directory))?;
        let lock_path = directory.join("builderd.lock");
        let lock = fs::OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(false)
            .open(&lock_path)
            .map_err(opening(&lock_path))?;
        lock_in_time(&lock).map_err(|errno| match errno {
            Errno::WOULDBLOCK => StoreError::Locked {
                directory: directory.to_owned(),
            },
            errno => opening(&lock_path)(errno.into()),
        })?;

        let path = directory.join("builderd.db");
        let mut connection = Connection::open(&path)?;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        let found: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
        if found > schema::VERSION {
            let known = schema::VERSION;
            return Err(StoreError::TooNew { found, known });
        }
        connection.pragma_update(None, "journal_mode", "wal")?;
        connection.pragma_update(None, "synchronous", "full")?;
        connection.pragma_update(None, "foreign_keys", true)?;
        schema::migrations()
            .to_latest(&mut connection)
            .map_err(StoreError::Migration)?;
        Ok(Self {
            inner: Arc::new(Inner {
                writer: Writer::start(connection),
                readers: Readers::new(&path),
                path,
                _lock: lock,
            }),
        })
    }

    /// Runs `work` as one transaction on the writer thread, after everything that was handed over before.
    ///
    /// Dropping the future does not undo anything: the transaction runs all the same.
    pub(crate) async fn write<T, W>(&self, work: W) -> Result<T, StoreError>
    where
        T: Send + 'static,
        W: FnOnce(&Transaction<'_>) -> Result<T, StoreError> + Send + 'static,
    {
        self.inner.writer.run(work).await
    }

    /// Runs `work` on a read-only connection, in a thread for blocking work, in the lane of methods.
    pub(crate) async fn read<T, W>(&self, work: W) -> Result<T, StoreError>
    where
        T: Send + 'static,
        W: FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    {
        self.read_in(Lane::Methods, work).await
    }

    /// Runs `work` as [`Store::read`] does, among those of `lane`.
    ///
    /// Dropping the future does not end a read that has begun; it keeps its place in the lane until it is through.
    pub(crate) async fn read_in<T, W>(&self, lane: Lane, work: W) -> Result<T, StoreError>
    where
        T: Send + 'static,
        W: FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    {
        self.inner.readers.run(lane, work).await
    }
}

/// Takes the lock, waiting for [`LOCK_PATIENCE`]: a service that was killed leaves for a moment a worker behind that it
/// had just forked, and that one has the descriptor until it begins its own program.
fn lock_in_time(lock: &fs::File) -> Result<(), Errno> {
    let deadline = Instant::now() + LOCK_PATIENCE;
    loop {
        match rustix::fs::flock(lock, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) if Instant::now() < deadline => std::thread::sleep(LOCK_PATIENCE / 50),
            result => return result,
        }
    }
}

/// The present moment in the precision that the database keeps, so that what was answered at creation equals what is
/// read back.
pub(crate) fn now() -> SystemTime {
    from_micros(to_micros(SystemTime::now()))
}

/// Microseconds since 1970; times before are not met and count as 1970.
fn to_micros(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

fn from_micros(micros: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_micros(u64::try_from(micros).unwrap_or(0))
}

/// SQLite's integers are signed; no figure of ours reaches their limit.
fn to_integer(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn from_integer(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

#[cfg(test)]
pub(crate) mod tests;
