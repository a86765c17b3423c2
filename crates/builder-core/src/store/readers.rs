//! Read-only connections, in lanes that do not hold each other up.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use rusqlite::{Connection, OpenFlags};
use tokio::sync::Semaphore;

use super::{BUSY_TIMEOUT, StoreError};

/// What a read is for. Reads of one lane wait for each other and for no others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lane {
    /// Answers of methods, and the service's own work.
    Methods,
    /// The logs of builds. One caller may follow many, and each follower reads again and again.
    Replay,
    /// The health check: that others wait must not look like a database that does not answer.
    Health,
}

impl Lane {
    /// Reads at the same time. Followers of logs are many, disks are not.
    const fn width(self) -> usize {
        match self {
            Self::Methods | Self::Replay => 4,
            Self::Health => 1,
        }
    }
}

/// The lanes with their connections, which are opened when they are first needed.
#[derive(Debug)]
pub(super) struct Readers {
    methods: Pool,
    replay: Pool,
    health: Pool,
}

#[derive(Debug)]
struct Pool {
    path: PathBuf,
    permits: Arc<Semaphore>,
    idle: Arc<Mutex<Vec<Connection>>>,
}

impl Readers {
    pub(super) fn new(path: &Path) -> Self {
        let pool = |lane: Lane| Pool {
            path: path.to_owned(),
            permits: Arc::new(Semaphore::new(lane.width())),
            idle: Arc::default(),
        };
        Self {
            methods: pool(Lane::Methods),
            replay: pool(Lane::Replay),
            health: pool(Lane::Health),
        }
    }

    pub(super) async fn run<T, W>(&self, lane: Lane, work: W) -> Result<T, StoreError>
    where
        T: Send + 'static,
        W: FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    {
        let pool = match lane {
            Lane::Methods => &self.methods,
            Lane::Replay => &self.replay,
            Lane::Health => &self.health,
        };
        let permit = Arc::clone(&pool.permits).acquire_owned().await;
        let permit = permit.map_err(|_| StoreError::Stopped)?;
        let (path, idle) = (pool.path.clone(), Arc::clone(&pool.idle));
        let job = move || {
            // With the work and not with the caller: who asks and goes away must not have more reads than the lane is
            // wide.
            let _permit = permit;
            let pooled = idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let connection = match pooled {
                Some(connection) => connection,
                None => open(&path)?,
            };
            let result = work(&connection);
            idle.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(connection);
            result
        };
        tokio::task::spawn_blocking(job)
            .await
            .map_err(|_| StoreError::Stopped)?
    }
}

fn open(path: &Path) -> Result<Connection, StoreError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    Ok(connection)
}
