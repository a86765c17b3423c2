//! A copy of the database, taken beside a running service.

use std::{
    fs, io,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use rusqlite::{
    Connection, OpenFlags,
    backup::{Backup, StepResult},
};

use super::schema;

/// Pages that are copied at once.
const PAGES: i32 = 1024;

/// How long a busy database is waited for, and how often in a row.
const PAUSE: Duration = Duration::from_millis(50);
const PATIENCE: u32 = 600;

/// What a backup holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BackupReport {
    /// Bytes of the copy.
    pub bytes: u64,
    /// Builds in it, deleted ones included.
    pub builds: u64,
    /// Its schema version.
    pub schema_version: i64,
}

/// Why there is no backup.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackupError {
    /// There is no database in the directory.
    #[error("there is no database at {path}", path = path.display())]
    NoDatabase {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// The copy's name is taken.
    #[error("{path} is there already and is not replaced", path = path.display())]
    Exists {
        /// The name.
        path: PathBuf,
    },
    /// The copy cannot be written.
    #[error("cannot write {path}", path = path.display())]
    Write {
        /// Where to.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The database cannot be read or copied.
    #[error("the database cannot be copied")]
    Sqlite(#[from] rusqlite::Error),
    /// The copy is not sound.
    #[error("the copy is not sound: {0}")]
    Unsound(String),
    /// The database is locked all the time.
    #[error("the database was busy for too long")]
    Busy,
}

/// Copies `builderd.db` of `directory` to `output`, which must not be there, as it is at one moment: what was committed
/// before is in it, nothing is by half. A running service goes on meanwhile and takes no notice. The copy is for its owner
/// alone, needs no other file, and is on disk and checked when this returns. Blocks.
///
/// # Errors
/// See [`BackupError`]; nothing is left behind.
pub fn backup(directory: &Path, output: &Path) -> Result<BackupReport, BackupError> {
    let path = directory.join("builderd.db");
    if !path.is_file() {
        return Err(BackupError::NoDatabase { path });
    }
    let writing = |source| BackupError::Write {
        path: output.to_owned(),
        source,
    };
    // Written under a name of its own, so that a backup that is there is a whole one.
    let parent = match output.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    if output.symlink_metadata().is_ok() {
        return Err(BackupError::Exists {
            path: output.to_owned(),
        });
    }
    let unfinished = tempfile::Builder::new()
        .prefix(".builderd-backup-")
        .make_in(parent, |path| {
            fs::OpenOptions::new()
                .read(true)
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(path)
        })
        .map_err(writing)?;
    let report = copy(&path, unfinished.path())?;
    unfinished.as_file().sync_all().map_err(writing)?;
    // Fails when somebody took the name in the meantime.
    unfinished
        .persist_noclobber(output)
        .map_err(|error| match error.error.kind() {
            io::ErrorKind::AlreadyExists => BackupError::Exists {
                path: output.to_owned(),
            },
            _ => writing(error.error),
        })?;
    fs::File::open(parent)
        .and_then(|directory| directory.sync_all())
        .map_err(writing)?;
    Ok(report)
}

fn copy(from: &Path, to: &Path) -> Result<BackupReport, BackupError> {
    // Not read-only: a database in WAL mode that nobody has open is read through files that have to be made.
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let source = Connection::open_with_flags(from, flags)?;
    let mut copy = Connection::open(to)?;
    // One read transaction holds one moment fast: without it each commit of the service would begin the copy anew.
    source.execute_batch("BEGIN; SELECT COUNT(*) FROM sqlite_schema;")?;
    {
        let backup = Backup::new(&source, &mut copy)?;
        let mut waited = 0;
        loop {
            match backup.step(PAGES)? {
                StepResult::Done => break,
                StepResult::More => waited = 0,
                // The enum may grow; whatever it is, it is not done.
                _ if waited >= PATIENCE => return Err(BackupError::Busy),
                _ => {
                    waited += 1;
                    std::thread::sleep(PAUSE);
                }
            }
        }
    }
    source.execute_batch("COMMIT")?;
    // One file that needs no other; a daemon that opens it turns the log on again.
    copy.pragma_update(None, "journal_mode", "delete")?;
    let sound: String = copy.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))?;
    if sound != "ok" {
        return Err(BackupError::Unsound(sound));
    }
    let schema_version: i64 = copy.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    if schema_version == 0 || schema_version > schema::VERSION {
        return Err(BackupError::Unsound(format!(
            "schema version {schema_version}, this builderd knows versions 1 to {}",
            schema::VERSION
        )));
    }
    let builds: i64 = copy.query_row("SELECT COUNT(*) FROM builds", [], |row| row.get(0))?;
    copy.close().map_err(|(_, error)| error)?;
    let bytes = to.metadata().map_or(0, |metadata| metadata.len());
    Ok(BackupReport {
        bytes,
        builds: super::from_integer(builds),
        schema_version,
    })
}
