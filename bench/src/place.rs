//! Where the bench works: one directory, what is mounted below it, and that all of it is cleared away again.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, bail};
use rustix::{
    fs::{FlockOperation, flock, syncfs},
    mount::{UnmountFlags, unmount},
};
use tempfile::TempDir;

use crate::process;

/// Bytes of the XFS on a loop device. The file is sparse and removed at the end.
const XFS_BYTES: u64 = 24 << 30;

/// The bench's directory, for one bench at a time. Dropping it unmounts and removes what is not kept for the next run.
pub(crate) struct Place {
    root: PathBuf,
    /// Short paths for sockets, which may have 107 bytes. unix(7).
    sockets: TempDir,
    _lock: File,
}

impl Place {
    pub(crate) fn open(root: &Path) -> anyhow::Result<Self> {
        fs::create_dir_all(root).with_context(|| format!("failed to make {}", root.display()))?;
        let root = root.canonicalize()?;
        let lock = File::create(root.join("lock"))?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            bail!("another bench works in {}", root.display());
        }
        let place = Self {
            root,
            sockets: tempfile::Builder::new().prefix("builderd-bench-").tempdir()?,
            _lock: lock,
        };
        // What a run that was killed left behind.
        place.clear();
        Ok(place)
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn sockets(&self) -> &Path {
        self.sockets.path()
    }

    /// An empty directory.
    pub(crate) fn fresh(&self, name: &str) -> anyhow::Result<PathBuf> {
        empty(&self.root.join("work").join(name))
    }

    /// An XFS that can reflink, on a loop device, mounted.
    pub(crate) fn reflink(&self) -> anyhow::Result<PathBuf> {
        let directory = self.root.join("xfs");
        if self.mounts().contains(&directory) {
            return Ok(directory);
        }
        let file = self.root.join("xfs.img");
        fs::create_dir_all(&directory)?;
        File::create(&file)?.set_len(XFS_BYTES)?;
        let limit = Duration::from_secs(60);
        let mut mkfs = Command::new("mkfs.xfs");
        process::output(mkfs.args(["-q", "-f", "-m", "reflink=1"]).arg(&file), limit)?;
        let mut mount = Command::new("mount");
        process::output(mount.args(["-o", "loop"]).arg(&file).arg(&directory), limit)?;
        Ok(directory)
    }

    /// Writes out what earlier runs left to write, so that the next one does not pay for it.
    pub(crate) fn settle(&self) -> anyhow::Result<()> {
        for directory in self.mounts().iter().chain([&self.root]) {
            syncfs(File::open(directory)?)?;
        }
        Ok(())
    }

    /// Unmounts everything below `work`, and removes it.
    pub(crate) fn clear_work(&self) {
        let work = self.root.join("work");
        self.unmount_below(&work);
        if !self.mounts().iter().any(|mount| mount.starts_with(&work)) {
            // What is left is removed at the start of the next run.
            let _ = fs::remove_dir_all(&work);
        }
    }

    fn clear(&self) {
        self.clear_work();
        self.unmount_below(&self.root);
        let _ = fs::remove_file(self.root.join("xfs.img"));
    }

    fn unmount_below(&self, directory: &Path) {
        // Bounded: one that comes back does so at most so often.
        for _ in 0..100 {
            let mounts = self.mounts();
            let Some(last) = mounts.iter().rev().find(|mount| mount.starts_with(directory)) else {
                return;
            };
            if unmount(last, UnmountFlags::empty()).is_err() && unmount(last, UnmountFlags::DETACH).is_err() {
                return;
            }
        }
    }

    /// What is mounted below the bench's directory, in the order in which it was mounted. proc_pid_mountinfo(5).
    fn mounts(&self) -> Vec<PathBuf> {
        let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        text.lines()
            .filter_map(|line| line.split(' ').nth(4))
            .map(|path| PathBuf::from(path.replace("\\040", " ")))
            .filter(|path| path.starts_with(&self.root) && *path != self.root)
            .collect()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Makes a directory anew.
pub(crate) fn empty(directory: &Path) -> anyhow::Result<PathBuf> {
    if directory.exists() {
        fs::remove_dir_all(directory).with_context(|| format!("failed to remove {}", directory.display()))?;
    }
    fs::create_dir_all(directory).with_context(|| format!("failed to make {}", directory.display()))?;
    Ok(directory.to_owned())
}
