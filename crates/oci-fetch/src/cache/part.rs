//! The file that a download is written to.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::SeekFrom;

/// Ranges that were written out of order leave holes; a hole is only seen in whole blocks of the file system, so what
/// counts as written ends this far before the first one at the latest.
const RESUME_ALIGNMENT: u64 = 64 * 1024;

/// A `.part` file with its lock.
///
/// The lock is an flock, which the kernel takes back when the process dies, so a part without one is abandoned.
pub(crate) struct Part {
    path: PathBuf,
    file: File,
    /// Bytes at the front that a former process has written, to be hashed before they are trusted.
    pub(crate) resumable_bytes: u64,
}

impl Part {
    /// Opens `STEM.part`, and a fresh one of another name when somebody works on that.
    pub(super) fn open(directory: &Path, stem: &str) -> io::Result<Self> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let mut path = directory.join(format!("{stem}.part"));
        // Each turn that fails found the path taken or replaced by another process between two system calls.
        for _ in 0..64 {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(&path)?;
            if file.try_lock().is_ok() && is_same_file(&file, &path)? {
                let resumable_bytes = written_front(&file)?;
                return Ok(Self {
                    path,
                    file,
                    resumable_bytes,
                });
            }
            let number = NUMBER.fetch_add(1, Ordering::Relaxed);
            path = directory.join(format!("{stem}.{}-{number}.part", std::process::id()));
        }
        Err(io::Error::other("no free name for a partial blob"))
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// A second, read-only descriptor of the same file.
    pub(crate) fn open_reader(&self) -> io::Result<File> {
        File::open(&self.path)
    }

    /// Makes the part the blob. The lock goes with the descriptor, after the rename.
    pub(super) fn publish(self, path: &Path, durable: bool) -> io::Result<()> {
        if durable {
            self.file.sync_all()?;
        }
        // Nobody writes to a published blob again, not even this process by mistake.
        rustix::fs::fchmod(&self.file, rustix::fs::Mode::RUSR)?;
        std::fs::rename(&self.path, path)?;
        if durable && let Some(directory) = path.parent() {
            File::open(directory)?.sync_all()?;
        }
        Ok(())
    }

    pub(crate) fn remove(self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(%error, "Failed to remove a partial blob");
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Leaves the part to be resumed by a later download, unless it has a name that no download looks for or nothing in
    /// it. Gives its path and size when it is left.
    pub(super) fn keep(self) -> Option<(PathBuf, u64)> {
        let is_resumable = self
            .path
            .file_stem()
            .and_then(|stem| stem.to_str())
            .is_some_and(|stem| !stem.contains('.'));
        let size_bytes = self.file.metadata().map_or(0, |metadata| metadata.len());
        if is_resumable && size_bytes > 0 {
            // Closing is not enough: a child that another thread has just forked holds the same lock until its exec.
            if let Err(error) = self.file.unlock() {
                tracing::debug!(%error, "A partial blob stays locked until its last descriptor is closed");
            }
            return Some((self.path, size_bytes));
        }
        self.remove();
        None
    }
}

/// Removes a part whose lock is free.
pub(super) fn remove_if_abandoned(path: &Path) {
    let Ok(file) = File::open(path) else { return };
    if file.try_lock().is_ok() && is_same_file(&file, path).unwrap_or(false) {
        let _ = std::fs::remove_file(path);
    }
}

/// Whether the path still leads to the open file: it may have been renamed or removed before the lock was had.
fn is_same_file(file: &File, path: &Path) -> io::Result<bool> {
    let open = file.metadata()?;
    match std::fs::symlink_metadata(path) {
        Ok(named) => Ok(named.ino() == open.ino() && named.dev() == open.dev()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// How much of the file's front has been written without a gap. A file system that knows no holes reports none; then the
/// digest finds the gap and the download starts over.
fn written_front(file: &File) -> io::Result<u64> {
    let length = file.metadata()?.len();
    if length == 0 {
        return Ok(0);
    }
    let hole = rustix::fs::seek(file, SeekFrom::Hole(0)).unwrap_or(0);
    Ok(hole.min(length).saturating_sub(1) / RESUME_ALIGNMENT * RESUME_ALIGNMENT)
}
